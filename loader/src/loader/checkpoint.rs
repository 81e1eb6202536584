//! Checkpoint and restore, as the loader coordinates them: who may, which containers, what an [agent] is told, and who
//! waits for it. The work itself is the agent's.
//!
//! [agent]: crate::checkpoint::agent
#![forbid(unsafe_code)]

mod conversation;
mod notice;
mod restore;
mod room;
mod save;
#[cfg(test)]
mod tests;

pub use notice::Notice;
pub use restore::RestoreRequest;
pub(super) use save::names;
pub use save::{CheckpointRequest, Saved};

use super::Loader;
use crate::checkpoint::order::{Progress, Tracked};
use crate::container::{Process, lock};
use crate::spawner::{Exited, Placement, Role, Spawned};
use airlock_wire::error::{Error, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};

/// Why a container ended whose sandbox was saved and not resumed.
pub const CHECKPOINTED: &str = "checkpointed";

/// Annotation by which containers of a pod are told apart, as in gVisor.
pub(crate) const NAME_ANNOTATION: &str = "io.kubernetes.cri.container-name";

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Checkpoint,
    Filesystems,
    Restore,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Filesystems => "filesystem checkpoint",
            Self::Restore => "restore",
        }
    }
}

/// Everything about checkpoints and restores that outlives a call.
#[derive(Debug)]
pub(super) struct Work {
    /// What an agent is at work on: one thing at a time.
    busy: Mutex<Option<(Kind, Progress)>>,
    /// New processes wait while the containers stand still.
    closed: Mutex<bool>,
    opened: Condvar,
    /// Who waits for the next checkpoint. Those who hang up let go of theirs.
    waiting: Mutex<Vec<Weak<Notice>>>,
    /// Agents and workers that have not been reaped.
    agents: Mutex<HashMap<i32, Arc<Process>>>,
    /// While containers are being made anew: ends that wait for what the agent says.
    postponed: Mutex<Option<Vec<Exited>>>,
    /// A restore that has begun and waits for further containers.
    collecting: Mutex<Option<restore::Collecting>>,
    /// After a restore on demand: who brings in the rest of the memory, and whether he was asked to.
    on_demand: Mutex<Option<(UnixStream, bool)>>,
    /// The restore's end, from its begin on.
    restored: OnceLock<Arc<Notice>>,
    /// CPU and wall time that a restore has saved, nanoseconds.
    savings: OnceLock<(u64, u64)>,
    /// What tracks writes, and since which image.
    tracking: Mutex<Option<(Tracked, Vec<OwnedFd>)>>,
    end: OnceLock<u32>,
    end_event: EventFd,
}

impl Work {
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            busy: Mutex::default(),
            closed: Mutex::default(),
            opened: Condvar::new(),
            waiting: Mutex::default(),
            agents: Mutex::default(),
            postponed: Mutex::default(),
            collecting: Mutex::default(),
            on_demand: Mutex::default(),
            restored: OnceLock::new(),
            savings: OnceLock::new(),
            tracking: Mutex::default(),
            end: OnceLock::new(),
            end_event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// True if it was an agent that has ended.
    pub(super) fn agent_ended(&self, exited: Exited) -> bool {
        let agent = lock(&self.agents).remove(&exited.pid);
        agent.is_some_and(|agent| {
            agent.end(exited.status as u32);
            true
        })
    }

    /// True if what follows from an end is decided later: the containers are being made anew, and only the agent knows
    /// which ends are part of that.
    pub(super) fn postpones(&self, exited: Exited) -> bool {
        match &mut *lock(&self.postponed) {
            Some(list) => {
                list.push(exited);
                true
            }
            None => false,
        }
    }

    pub(super) fn late_end(&self) -> BorrowedFd<'_> {
        self.end_event.as_fd()
    }

    pub(super) fn ended(&self) -> Option<u32> {
        self.end.get().copied()
    }

    fn end_sandbox(&self, status: u32) {
        if self.end.set(status).is_ok() {
            let _ = self.end_event.write(1);
        }
    }

    /// Begins a piece of work.
    pub(super) fn begin(&self, kind: Kind) -> Result<Busy<'_>> {
        let mut busy = lock(&self.busy);
        if let Some((other, progress)) = &*busy {
            return Err(Error::invalid_state(format!(
                "a {} is in progress already (now: {}): wait for it",
                other.name(),
                progress.phase
            )));
        }
        *busy = Some((kind, Progress { phase: "begin".to_owned(), ..Progress::default() }));
        Ok(Busy { work: self })
    }

    fn set_progress(&self, progress: Progress) {
        if let Some((_, now)) = &mut *lock(&self.busy) {
            *now = progress;
        }
    }

    /// Makes new processes wait until [`Work::open`].
    fn close(&self) {
        *lock(&self.closed) = true;
    }

    fn open(&self) {
        *lock(&self.closed) = false;
        self.opened.notify_all();
    }

    /// Waits while the containers stand still for a checkpoint.
    pub(super) fn wait_open(&self) {
        let mut closed = lock(&self.closed);
        while *closed {
            closed = self.opened.wait(closed).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn notify_checkpoint(&self, outcome: &Result<()>) {
        for waiting in lock(&self.waiting).drain(..).filter_map(|w| w.upgrade()) {
            waiting.set(outcome.clone());
        }
    }
}

/// The one piece of work at a time; over when this is dropped.
pub(super) struct Busy<'a> {
    work: &'a Work,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *lock(&self.work.busy) = None;
        self.work.open();
    }
}

impl Loader {
    /// The next checkpoint's end: whatever checkpoint finishes next from now on, well or not.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn next_checkpoint(&self) -> Result<Arc<Notice>> {
        let notice = Arc::new(Notice::new()?);
        let mut waiting = lock(&self.work.waiting);
        waiting.retain(|w| w.strong_count() > 0);
        waiting.push(Arc::downgrade(&notice));
        Ok(notice)
    }

    /// Has an agent forked, and remembers it so that its end is not taken for a container process'.
    fn spawn_agent(&self) -> Result<conversation::Agent> {
        let (channel, process) = self.spawn_for(Role::Agent)?;
        Ok(conversation::Agent { channel, process, kept: Mutex::default() })
    }

    /// Has a process forked that is not a container's, likewise.
    pub(super) fn spawn_for(&self, role: Role) -> Result<(UnixStream, Option<Arc<Process>>)> {
        let placement = Placement { role, ..Placement::default() };
        self.config.spawner.spawn(placement, |Spawned { pid, pidfd, channel }| {
            let process = Process::new(pid, pidfd).ok().map(Arc::new);
            if let Some(process) = &process {
                lock(&self.work.agents).insert(pid, process.clone());
            }
            (channel, process)
        })
    }

    /// CPU and wall time in nanoseconds that the restored processes had used when they were saved; zero if the sandbox was
    /// not restored.
    pub fn savings(&self) -> (u64, u64) {
        self.work.savings.get().copied().unwrap_or_default()
    }

    /// What an agent is at work on, `checkpoint` or `restore`, and how far it is.
    pub fn checkpoint_progress(&self) -> Option<(&'static str, Progress)> {
        lock(&self.work.busy).as_ref().map(|(kind, progress)| (kind.name(), progress.clone()))
    }
}
