//! Hearing from the kernel that it killed a container's process for lack of memory: an eventfd at `memory.oom_control`
//! (v1, as runc has it), or changes of `memory.events` (v2).
#![forbid(unsafe_code)]

use super::{Hierarchy, Manager, open};
use airlock_loader::cgroup::files::{self, Dir, Files};
use airlock_loader::cgroup::stats;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Tells of out-of-memory kills from the time when it was made.
#[derive(Debug)]
pub struct OomWatch {
    memory: OwnedFd,
    source: Source,
}

#[derive(Debug)]
enum Source {
    V1(EventFd),
    V2 { changes: Inotify, kills: u64 },
}

impl Manager {
    /// Begins to watch; `None` where the container has no memory cgroup.
    ///
    /// # Errors
    /// As opening and writing control files.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        self.check()?;
        let has_memory = |h: &&Hierarchy| self.v2 || h.name.split(',').any(|name| name == "memory");
        let Some(hierarchy) = self.hierarchies.iter().find(has_memory) else { return Ok(None) };
        let memory = open::open_dir(&hierarchy.path)?;
        let source = if self.v2 {
            match changes_of(&hierarchy.path.join("memory.events")) {
                Ok(changes) => Source::V2 { changes, kills: kills(memory.as_fd())? },
                // The memory controller is not handed on to this cgroup.
                Err(Errno::ENOENT) => return Ok(None),
                Err(e) => return Err(Error::from(e).context("watching memory.events")),
            }
        } else {
            let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let control = openat(&memory, "memory.oom_control", flags, Mode::empty())
                .map_err(|e| Error::from(e).context("opening memory.oom_control"))?;
            let both = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
            files::set(&Dir(memory.as_fd()), "cgroup.event_control", both)?;
            Source::V1(event)
        };
        Ok(Some(OomWatch { memory, source }))
    }
}

impl OomWatch {
    /// Becomes readable when there may be news; [`OomWatch::take`] then tells.
    pub fn ready(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::V1(event) => event.as_fd(),
            Source::V2 { changes, .. } => changes.as_fd(),
        }
    }

    /// How many kills there were since the last time; v1 tells several that follow each other closely as one. 0 once the
    /// cgroup is gone. Does not block.
    pub fn take(&mut self) -> u64 {
        match &mut self.source {
            // The kernel signals its end, too.
            Source::V1(event) => {
                u64::from(event.read().is_ok() && Dir(self.memory.as_fd()).exists("memory.oom_control"))
            }
            Source::V2 { changes, kills: known } => {
                let _ = changes.read_events();
                let now = kills(self.memory.as_fd()).unwrap_or(*known);
                let new = now.saturating_sub(*known);
                *known = now;
                new
            }
        }
    }
}

/// Tells of changes of a file.
fn changes_of(file: &Path) -> std::result::Result<Inotify, Errno> {
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    changes.add_watch(file, AddWatchFlags::IN_MODIFY)?;
    Ok(changes)
}

/// Kills in a v2 cgroup until now.
fn kills(memory: BorrowedFd<'_>) -> Result<u64> {
    Ok(stats::of_v2(memory)?.memory.oom_kills)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::fs;

    /// A folder stands for the cgroup: this machine's memory controller may be a v1 one.
    #[test]
    fn v2_tells_each_kill_once() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        fs::write(&events, "low 0\noom 0\noom_kill 3\n").unwrap();
        let memory = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let source =
            Source::V2 { changes: changes_of(&events).unwrap(), kills: kills(memory.as_fd()).unwrap() };
        let mut watch = OomWatch { memory, source };
        let ready = |watch: &OomWatch| {
            poll(&mut [PollFd::new(watch.ready(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
        };
        assert!(!ready(&watch) && watch.take() == 0);
        fs::write(&events, "low 0\noom 2\noom_kill 5\n").unwrap();
        assert!(ready(&watch));
        assert_eq!((watch.take(), watch.take()), (2, 0));
        assert!(!ready(&watch));
        assert_eq!(changes_of(&dir.path().join("none")).err(), Some(Errno::ENOENT));
    }
}
