//! Removes a container's cgroups once its processes are gone.
#![forbid(unsafe_code)]

use super::{Manager, open};
use airlock_loader::cgroup::{control, remove_tree};
use airlock_loader::sys::process::pidfd_open;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long [`Manager::remove`] waits for processes that were killed.
const LIMIT: Duration = Duration::from_secs(10);

/// How long to wait for one process before the cgroup is tried again. A sandbox's spawner is in no cgroup any more while
/// it waits, as PID 1 of its namespace, until somebody has reaped the loader: it may not end for as long as it likes.
const GLANCE: Duration = Duration::from_millis(10);

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

/// Waits until one of the cgroup's processes has ended, or `deadline`. Returns those that were there.
fn wait_for_processes(path: &Path, deadline: Instant) -> Result<Vec<i32>> {
    let dir = match open::open_dir(path) {
        Ok(dir) => dir,
        Err(e) if e.kind == Kind::NoSuchEntity => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let pids = control::processes(dir.as_fd())?;
    // The last one to end tells that it is worth another try; a few are as good as all.
    let pidfds: Vec<OwnedFd> = pids.iter().rev().take(64).filter_map(|pid| pidfd_open(*pid).ok()).collect();
    for pidfd in &pidfds {
        let left = deadline.saturating_duration_since(Instant::now()).min(GLANCE);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            // Time to try again, whatever this one does.
            Ok(0) => break,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // Those that cannot be opened have just ended.
    Ok(if pidfds.is_empty() { Vec::new() } else { pids })
}
