//! Signals to containers, processes and groups.
#![forbid(unsafe_code)]

use super::Loader;
use crate::container::{Container, State};
use crate::procfs::parse_nspid;
use crate::sys::process;
use airlock_wire::api::airlock::Killer;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// To whom a signal goes (gVisor `SignalDeliveryMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMode {
    /// One process; PID 0 is the container's init.
    Process,
    /// All processes of the container; PID must be 0.
    All,
    /// The foreground process group of the terminal of process PID; 0 is the init's.
    ForegroundGroup,
    /// The process group PID.
    Group,
}

impl DeliveryMode {
    /// From its number on the wire.
    pub fn from_number(n: i64) -> Option<Self> {
        Some(match n {
            0 => Self::Process,
            1 => Self::All,
            2 => Self::ForegroundGroup,
            3 => Self::Group,
            _ => return None,
        })
    }
}

impl Loader {
    /// Sends `signo` (0: check only). `pid` is in the sandbox's pid namespace, except that the container-namespace pid
    /// that an exec returned is recognised first.
    ///
    /// # Errors
    /// In the words of gVisor's `containerManager.Signal`.
    pub fn signal(&self, cid: &str, pid: i32, signo: i32, mode: DeliveryMode) -> Result<()> {
        if pid < 0 {
            return Err(Error::invalid_argument(format!("PID ({pid}) must be positive")));
        }
        if !(0..=64).contains(&signo) {
            return Err(Error::invalid_argument(format!("{signo} is no signal number")));
        }
        match mode {
            DeliveryMode::Process => self
                .signal_process(cid, pid, signo)
                .map_err(|e| e.context(format!("signaling process in container {cid:?} PID {pid}"))),
            DeliveryMode::All if pid != 0 => Err(Error::invalid_argument(format!(
                "PID ({pid}) cannot be set when signaling all processes"
            ))),
            DeliveryMode::All => self.signal_all(cid, signo),
            DeliveryMode::ForegroundGroup => self.signal_foreground(cid, pid, signo).map_err(|e| {
                e.context(format!("signaling foreground process group in container {cid:?} PID {pid}"))
            }),
            DeliveryMode::Group if pid == 0 => {
                Err(Error::invalid_argument("PGID must be set when signaling a process group"))
            }
            DeliveryMode::Group => self
                .signal_group(&*self.container(cid)?, pid, signo)
                .map_err(|e| e.context(format!("signaling process group {pid}"))),
        }
    }

    /// Sends a signal that was sent to the process that stands for a container (`pid` 0) or an executed process.
    ///
    /// # Errors
    /// As [`Loader::signal`].
    pub fn forward(&self, cid: &str, pid: i32, mut killer: Killer) -> Result<()> {
        let container = self.container(cid)?;
        let waits = matches!(container.state(), State::Creating | State::Created | State::RestoringUnstarted);
        let signo = match killer.signal {
            // An init that waits for its start has no handlers, and PID 1 of a namespace ignores what it does not handle.
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP if waits && pid == 0 => libc::SIGKILL,
            other => other,
        };
        if pid == 0 {
            killer.signal = signo;
            container.asked(killer);
        }
        self.signal(cid, pid, signo, DeliveryMode::Process)
    }

    fn signal_process(&self, cid: &str, pid: i32, signo: i32) -> Result<()> {
        let container = self.container(cid)?;
        if pid == 0 {
            return match (container.state(), container.init()) {
                (state, Some(init)) if state.lives() => {
                    init.signal(signo)?;
                    if signo == libc::SIGKILL && self.is_paused(&container) {
                        // In a frozen cgroup of v1 it would die only when it is resumed; runc does so, too.
                        container.cgroup()?.freeze(false)?;
                    }
                    Ok(())
                }
                (State::Stopped, _) => Err(Error::invalid_state(format!("container {cid:?} has stopped"))),
                _ => Err(Error::invalid_state(format!("container {cid:?} not started"))),
            };
        }
        if let Some(process) = container.process(pid) {
            return process.signal(signo);
        }
        let pidfd = self.open_member(&container, pid)?;
        process::pidfd_send_signal(pidfd.as_fd(), signo).map_err(|e| gone(e, pid))
    }

    /// Opens process `pid` (sandbox's namespace) and makes sure that it belongs to the container.
    ///
    /// # Errors
    /// `no such process with PID n`, `process n belongs to a different container: "Y"`.
    pub fn open_member(&self, container: &Container, pid: i32) -> Result<OwnedFd> {
        // The pidfd comes first: after the check it still names the process that was checked.
        let pidfd = process::pidfd_open(pid).map_err(|e| gone(e, pid))?;
        match self.owner_of(pid)? {
            Some(owner) if owner == container.cid => Ok(pidfd),
            Some(owner) => Err(Error::invalid_argument(format!(
                "process {pid} belongs to a different container: {owner:?}"
            ))),
            None => Err(gone(Errno::ESRCH, pid)),
        }
    }

    /// The container that process `pid` (sandbox's namespace) belongs to.
    ///
    /// # Errors
    /// When cgroups cannot be read.
    pub fn owner_of(&self, pid: i32) -> Result<Option<String>> {
        for container in self.containers() {
            if self.pids_of(&container)?.contains(&pid) {
                return Ok(Some(container.cid.clone()));
            }
        }
        Ok(None)
    }

    /// Opens the process whose pid in the container's own pid namespace is `ns_pid`.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::NoSuchEntity`]; `process n is part of a different container: "Y"`.
    pub fn open_in_namespace(&self, container: &Container, ns_pid: i32) -> Result<OwnedFd> {
        for pid in self.pids_of(container)? {
            let nspid = self.config.procfs.status_field(pid, "NSpid").ok().flatten().unwrap_or_default();
            if parse_nspid(&nspid).last() == Some(&ns_pid) {
                return self.open_member(container, pid);
            }
        }
        Err(gone(Errno::ESRCH, ns_pid))
    }

    /// All processes of a container as pids of the sandbox's namespace, ascending. Without a cgroup they are
    /// found by their pid namespace.
    ///
    /// # Errors
    /// When cgroups cannot be read.
    pub fn pids_of(&self, container: &Container) -> Result<Vec<i32>> {
        if container.state() == State::Stopped || container.init().is_none() {
            return Ok(Vec::new());
        }
        let mut pids = match container.cgroup.get() {
            Some(cgroup) => cgroup.procs()?,
            None => self.pids_by_namespace(container)?,
        };
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    fn pids_by_namespace(&self, container: &Container) -> Result<Vec<i32>> {
        let Some(init) = container.init() else { return Ok(Vec::new()) };
        let depth = |pid: i32| {
            let value = self.config.procfs.status_field(pid, "NSpid").ok().flatten()?;
            Some(parse_nspid(&value).len())
        };
        let own = depth(init.pid).unwrap_or(0);
        Ok(self
            .config
            .procfs
            .pids()?
            .into_iter()
            .filter(|pid| depth(*pid).is_some_and(|d| d >= own.max(2)))
            .collect())
    }

    fn signal_all(&self, cid: &str, signo: i32) -> Result<()> {
        let container = self.container(cid)?;
        match container.state() {
            state if state.lives() => {}
            State::Stopped => return Err(Error::invalid_state(format!("container {cid:?} has stopped"))),
            _ => return Err(Error::invalid_state(format!("container {cid:?} not started"))),
        }
        if signo == libc::SIGKILL
            && let Some(cgroup) = container.cgroup.get()
        {
            return cgroup
                .kill()
                .map_err(|e| e.context(format!("signaling all processes in container {cid:?}")));
        }
        for pid in self.pids_of(&container)? {
            // What has ended in the meantime needs no signal.
            if let Ok(pidfd) = self.open_member(&container, pid) {
                let _ = process::pidfd_send_signal(pidfd.as_fd(), signo);
            }
        }
        Ok(())
    }

    fn signal_foreground(&self, cid: &str, pid: i32, signo: i32) -> Result<()> {
        let (container, init) = self.running(cid)?;
        let pid = match pid {
            0 => init.pid,
            pid => match container.process(pid) {
                Some(p) => p.pid,
                None => {
                    self.open_member(&container, pid).map_err(|e| e.context("no thread group found"))?;
                    pid
                }
            },
        };
        let stat = self.config.procfs.stat(pid)?;
        if stat.tty_nr == 0 || stat.tpgid <= 0 {
            return Err(Error::invalid_state("no TTY attached"));
        }
        self.signal_group(&container, stat.tpgid, signo)
    }

    fn signal_group(&self, container: &Container, group: i32, signo: i32) -> Result<()> {
        let mut found = false;
        let mut foreign = false;
        let members = self.pids_of(container)?;
        for pid in &members {
            if self.config.procfs.stat(*pid).is_ok_and(|s| s.pgrp == group)
                && let Ok(pidfd) = self.open_member(container, *pid)
            {
                found |= process::pidfd_send_signal(pidfd.as_fd(), signo).is_ok();
            }
        }
        if !found {
            for pid in self.config.procfs.pids()? {
                foreign |= self.config.procfs.stat(pid).is_ok_and(|s| s.pgrp == group);
            }
        }
        match (found, foreign) {
            (true, _) => Ok(()),
            (false, true) => Err(Error::invalid_argument(format!(
                "process group {group} does not belong to container {:?}",
                container.cid
            ))),
            (false, false) => Err(Error::no_such_entity(format!("no such process group with PGID {group}"))),
        }
    }
}

fn gone(errno: Errno, pid: i32) -> Error {
    match errno {
        // ENOENT: the number is that of a thread.
        Errno::ESRCH | Errno::EINVAL | Errno::ENOENT => {
            Error::no_such_entity(format!("no such process with PID {pid}"))
        }
        e => e.into(),
    }
}
