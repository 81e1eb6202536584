//! Removes a container's cgroups once its processes are gone.
#![forbid(unsafe_code)]

use super::{Manager, open};
use airlock_loader::cgroup::{control, remove_tree};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long [`Manager::remove`] waits for processes that were killed.
const LIMIT: Duration = Duration::from_secs(10);

impl Manager {
    /// Removes the leaves and every directory that this container made, with all that is in them. Waits for processes
    /// that are ending, at most 10 seconds; does not kill any.
    ///
    /// # Errors
    /// [`Kind::InvalidState`] naming the processes that are left.
    pub fn remove(&self) -> Result<()> {
        self.remove_by(Instant::now() + LIMIT)
    }

    /// As [`Self::remove`], waiting until `deadline` at most.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn remove_by(&self, deadline: Instant) -> Result<()> {
        self.check()?;
        let Some(first) = self.hierarchies.iter().find(|h| h.leaf && !self.disputed) else { return Ok(()) };
        // Planned only, and our leaf was never there: another may use the place by now.
        let ours = self.complete || first.path.join(self.leaf()?).is_dir();
        // The leaf goes last: it tells a later `create` that what is still there is ours.
        for h in self.hierarchies.iter().rev() {
            if self.made.contains(&h.path) {
                if ours {
                    remove_dir(&h.path, deadline)?;
                } else {
                    remove_empty(&h.path)?;
                }
            } else if h.leaf && ours {
                remove_dir(&h.path.join(self.leaf()?), deadline)?;
            }
        }
        // Directories on the way: others may use them by now.
        for dir in self.made.iter().rev().filter(|d| !self.hierarchies.iter().any(|h| &h.path == *d)) {
            remove_empty(dir)?;
        }
        Ok(())
    }
}

/// Removes a directory unless it is in use.
fn remove_empty(dir: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    let parent = match open::open_dir(parent) {
        Ok(parent) => parent,
        Err(e) if e.kind == Kind::NoSuchEntity => return Ok(()),
        Err(e) => return Err(e),
    };
    match unlinkat(&parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::EBUSY | Errno::ENOTEMPTY | Errno::ENODEV) => Ok(()),
        Err(e) => Err(Error::from(e).context(format!("removing {}", dir.display()))),
    }
}

/// Removes a directory and all below it, waiting for processes that are ending.
fn remove_dir(path: &Path, deadline: Instant) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(());
    };
    let parent = match open::open_dir(parent) {
        Ok(parent) => parent,
        Err(e) if e.kind == Kind::NoSuchEntity => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut pause = Duration::from_micros(50);
    loop {
        let gone = remove_tree(parent.as_fd(), name).map_err(|e| e.context(path.display()))?;
        if gone {
            return Ok(());
        }
        let left = wait_for_processes(path, deadline)?;
        if Instant::now() >= deadline {
            return Err(Error::invalid_state(if left.is_empty() {
                format!("cgroup {} is still in use by processes that are ending; try again", path.display())
            } else {
                format!(
                    "cgroup {} still has the processes {left:?}; kill them first (delete --force does)",
                    path.display()
                )
            }));
        }
        if left.is_empty() {
            // The kernel counts a dead process until its last moment on a CPU, and tells nobody when that was.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}

/// See [`control::glance`]; a cgroup that is gone has no processes.
fn wait_for_processes(path: &Path, deadline: Instant) -> Result<Vec<i32>> {
    match open::open_dir(path) {
        Ok(dir) => control::glance(dir.as_fd(), deadline),
        Err(e) if e.kind == Kind::NoSuchEntity => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}
