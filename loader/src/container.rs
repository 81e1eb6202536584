//! Containers and their processes, as the loader keeps them.
#![forbid(unsafe_code)]

use crate::cgroup::Cgroup;
use crate::loader::Layer;
use crate::sys::process;
use airlock_wire::api::airlock::Killer;
use airlock_wire::error::{Error, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};
use oci_spec::runtime::Spec;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

/// Locks `mutex`; a handler that panicked while it held the lock must not stop the others.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a container is in its life (OCI runtime spec, "State").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The id is reserved; there is no process yet.
    Creating,
    /// Set up; the init waits for the start.
    Created,
    /// The program runs.
    Started,
    /// The init has ended.
    Stopped,
    /// Being restored; the program does not run yet.
    RestoringUnstarted,
    /// Being restored; the program runs and memory still follows.
    RestoringStarted,
    /// Restored completely; the program runs.
    Restored,
    /// It was to be restored, and that has failed.
    RestoreFailed,
}

impl State {
    /// The name that error messages and `Airlock.Info` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::RestoringUnstarted => "restoringUnstarted",
            Self::RestoringStarted => "restoringStarted",
            Self::Restored => "restored",
            Self::RestoreFailed => "restoreFailed",
        }
    }

    /// The program runs, however it came to.
    pub fn runs(self) -> bool {
        matches!(self, Self::Started | Self::RestoringStarted | Self::Restored)
    }

    /// There is an init, which runs its program or waits to do so.
    pub fn lives(self) -> bool {
        self.runs() || matches!(self, Self::Created | Self::RestoringUnstarted)
    }
}

/// One process that the loader had started: a container's init or an exec'd one.
#[derive(Debug)]
pub struct Process {
    /// Pid in the sandbox's pid namespace.
    pub pid: i32,
    pidfd: OwnedFd,
    ns_pid: OnceLock<i32>,
    status: OnceLock<u32>,
    // Readable for ever once the process has ended: waiters poll it together with their client.
    ended: EventFd,
    /// A restore has put another process in its place; who knows only this one means that.
    successor: OnceLock<Arc<Process>>,
    predecessor: Weak<Process>,
}

impl Process {
    /// Wraps a process that was just forked.
    ///
    /// # Errors
    /// When no eventfd can be made.
    pub fn new(pid: i32, pidfd: OwnedFd) -> Result<Self> {
        let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            pid,
            pidfd,
            ns_pid: OnceLock::new(),
            status: OnceLock::new(),
            ended,
            successor: OnceLock::new(),
            predecessor: Weak::new(),
        })
    }

    /// Puts this process in the place of `old`: those who wait for that one, or signal it, do so with this one.
    pub(crate) fn instead_of(mut self, old: Option<&Arc<Self>>) -> Arc<Self> {
        self.predecessor = old.map(Arc::downgrade).unwrap_or_default();
        let new = Arc::new(self);
        if let Some(old) = old {
            let _ = old.successor.set(new.clone());
        }
        new
    }

    /// Pid in the container's own pid namespace; the sandbox's pid until the process has told it.
    pub fn ns_pid(&self) -> i32 {
        self.ns_pid.get().copied().unwrap_or(self.pid)
    }

    pub(crate) fn set_ns_pid(&self, pid: i32) {
        let _ = self.ns_pid.set(pid);
    }

    /// Its process descriptor.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Raw wait status, once it has ended.
    pub fn status(&self) -> Option<u32> {
        self.status.get().copied()
    }

    /// Becomes readable when the process has ended and stays so: wait on it, then read [`Process::status`].
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Takes note of its wait status, for those who wait.
    pub fn end(&self, status: u32) {
        if self.status.set(status).is_ok() {
            let _ = self.ended.write(1);
        }
        if let Some(old) = self.predecessor.upgrade() {
            old.end(status);
        }
    }

    /// Sends a signal; 0 checks for existence.
    ///
    /// # Errors
    /// `ESRCH` as [`airlock_wire::error::Kind::NoSuchEntity`].
    pub fn signal(&self, signo: i32) -> Result<()> {
        if let Some(successor) = self.successor.get() {
            return successor.signal(signo);
        }
        if self.status().is_some() {
            return Err(Error::no_such_entity(format!("no such process with PID {}", self.ns_pid())));
        }
        process::pidfd_send_signal(self.pidfd(), signo).map_err(|e| match e {
            nix::errno::Errno::ESRCH => {
                Error::no_such_entity(format!("no such process with PID {}", self.ns_pid()))
            }
            nix::errno::Errno::EINVAL => Error::invalid_argument(format!("{signo} is no signal number")),
            e => e.into(),
        })
    }
}

/// Moments in a container's life.
#[derive(Debug, Default, Clone, Copy)]
pub struct Times {
    /// When the init was set up.
    pub created: Option<SystemTime>,
    /// When the program was executed.
    pub started: Option<SystemTime>,
    /// When the init ended.
    pub finished: Option<SystemTime>,
}

/// What changes in a container's life.
#[derive(Debug)]
pub(crate) struct Life {
    pub state: State,
    pub init: Option<Arc<Process>>,
    /// Channel to an init that waits for its start.
    pub channel: Option<UnixStream>,
    /// Exec'd processes by their pid in the container.
    pub execs: HashMap<i32, Arc<Process>>,
    pub times: Times,
    /// Why the init ended, in a word or two.
    pub reason: String,
    /// Who asked last that a signal be sent to the init.
    pub asked: Option<Killer>,
}

/// A container of the sandbox.
#[derive(Debug)]
pub struct Container {
    /// Container ID.
    pub cid: String,
    /// The sandbox's root container.
    pub root: bool,
    /// Its spec, once one was given.
    pub(crate) spec: OnceLock<Spec>,
    /// The same as it came: a checkpoint keeps it.
    pub(crate) spec_text: OnceLock<String>,
    pub(crate) cgroup: OnceLock<Cgroup>,
    pub(crate) devpts: OnceLock<OwnedFd>,
    /// Console donated with `CreateSubcontainer`.
    pub(crate) tty: Mutex<Option<OwnedFd>>,
    pub(crate) seccomp: OnceLock<Option<Vec<u8>>>,
    pub(crate) own_pid_namespace: OnceLock<bool>,
    /// `CLONE_NEW*` flags of what an exec has to enter: where the container differs from the spawner.
    pub(crate) namespaces: OnceLock<i32>,
    /// Upper layers of overlays: a checkpoint saves those in memory, and notes what those on a disk are like.
    pub(crate) layers: OnceLock<Vec<Layer>>,
    /// The newest mount that its init made (listmount(2)), 0 where the kernel does not tell.
    pub(crate) newest_mount: OnceLock<u64>,
    /// Descriptors that the init got from outside, as it waits: number, device, inode. A checkpoint knows them by that.
    pub(crate) origin: OnceLock<Vec<(i32, u64, u64)>>,
    /// The loader itself made the cgroup leaf.
    pub(crate) made_leaf: AtomicBool,
    pub(crate) executed: AtomicU64,
    pub(crate) life: Mutex<Life>,
}

impl Container {
    pub(crate) fn reserve(cid: &str, root: bool, tty: Option<OwnedFd>) -> Self {
        Self {
            cid: cid.to_owned(),
            root,
            spec: OnceLock::new(),
            spec_text: OnceLock::new(),
            cgroup: OnceLock::new(),
            devpts: OnceLock::new(),
            tty: Mutex::new(tty),
            seccomp: OnceLock::new(),
            own_pid_namespace: OnceLock::new(),
            namespaces: OnceLock::new(),
            layers: OnceLock::new(),
            newest_mount: OnceLock::new(),
            origin: OnceLock::new(),
            made_leaf: AtomicBool::new(false),
            executed: AtomicU64::new(0),
            life: Mutex::new(Life {
                state: State::Creating,
                init: None,
                channel: None,
                execs: HashMap::new(),
                times: Times::default(),
                reason: String::new(),
                asked: None,
            }),
        }
    }

    /// The `process` of its spec.
    pub fn process_spec(&self) -> Option<&oci_spec::runtime::Process> {
        self.spec.get()?.process().as_ref()
    }

    /// True when a terminal was donated at its reservation.
    pub fn has_tty(&self) -> bool {
        lock(&self.tty).is_some()
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        lock(&self.life).state
    }

    /// Its init, once there is one (also after it has ended).
    pub fn init(&self) -> Option<Arc<Process>> {
        lock(&self.life).init.clone()
    }

    /// Moments of its life.
    pub fn times(&self) -> Times {
        lock(&self.life).times
    }

    /// Why its init ended: empty while it runs, then `exited`, `signal N`, `oom` or what prevented the start.
    pub fn reason(&self) -> String {
        lock(&self.life).reason.clone()
    }

    /// Who sent the signal that its init ended by.
    pub fn killed_by(&self) -> Option<Killer> {
        let life = lock(&self.life);
        let signal = life.init.as_ref()?.status()? & 0x7f;
        life.asked.clone().filter(|killer| signal != 0 && killer.signal.cast_unsigned() == signal)
    }

    /// Notes who asks that a signal be sent to its init, or to all its processes.
    pub fn asked(&self, killer: Killer) {
        let mut life = lock(&self.life);
        if killer.signal != 0 && life.init.as_ref().is_some_and(|init| init.status().is_none()) {
            life.asked = Some(killer);
        }
    }

    /// Processes that were executed in it, besides its init.
    pub fn executed(&self) -> u64 {
        self.executed.load(Ordering::Relaxed)
    }

    /// Its cgroup, once it has one.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::InvalidState`] for a container without a process or without cgroups.
    pub fn cgroup(&self) -> Result<&Cgroup> {
        self.cgroup
            .get()
            .ok_or_else(|| Error::invalid_state(format!("container {:?} has no cgroup", self.cid)))
    }

    /// An exec'd process by its pid in the container's pid namespace; the init is found by its own pid too.
    pub fn process(&self, ns_pid: i32) -> Option<Arc<Process>> {
        let life = lock(&self.life);
        if let Some(p) = life.execs.get(&ns_pid) {
            return Some(p.clone());
        }
        life.init.clone().filter(|p| p.ns_pid() == ns_pid)
    }

    /// Forgets an exec'd process whose status was delivered (its number may come again).
    pub fn forget_process(&self, ns_pid: i32, process: &Arc<Process>) {
        let mut life = lock(&self.life);
        if life.execs.get(&ns_pid).is_some_and(|p| Arc::ptr_eq(p, process)) {
            life.execs.remove(&ns_pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    #[test]
    fn an_ended_process_stays_readable_for_every_waiter() {
        let me = std::process::id() as i32;
        let p = Process::new(me, process::pidfd_open(me).unwrap()).unwrap();
        assert_eq!(p.status(), None);
        assert!(p.signal(0).is_ok());
        p.end(7 << 8);
        p.end(0);
        for _ in 0..3 {
            let mut fds = [PollFd::new(p.ended(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(1));
        }
        assert_eq!(p.status(), Some(7 << 8));
        assert!(p.signal(0).is_err());
    }

    #[test]
    fn who_waits_for_a_replaced_process_waits_for_its_successor() {
        let me = std::process::id() as i32;
        let process = || Process::new(me, process::pidfd_open(me).unwrap()).unwrap();
        let old = Arc::new(process());
        let new = process().instead_of(Some(&old));
        assert!(old.signal(0).is_ok());
        new.end(3);
        let mut fds = [PollFd::new(old.ended(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(1));
        assert_eq!((old.status(), new.status()), (Some(3), Some(3)));
        assert!(old.signal(0).is_err());
    }
}
