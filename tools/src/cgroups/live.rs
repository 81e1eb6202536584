//! The processes of a container and what they use, as the host sees them.
#![forbid(unsafe_code)]

use super::{Hierarchy, Manager, open};
use airlock_loader::cgroup::files::{self, Dir};
use airlock_loader::cgroup::{Cgroup, Stats, control, stats};
use airlock_wire::error::{Error, Kind, Result};
use std::os::fd::{AsFd, OwnedFd};

impl Manager {
    /// The container's leaf, and whether it has the files of v2; `None` when it is gone.
    fn leaf_dir(&self) -> Result<Option<(OwnedFd, bool)>> {
        self.check()?;
        let Some(h) = self.hierarchies.iter().find(|h| h.leaf) else { return Ok(None) };
        Ok(self.open_existing(h, true)?.map(|dir| (dir, h.v2_files)))
    }

    /// The directory, or the leaf below it; `None` when it is gone.
    fn open_existing(&self, h: &Hierarchy, leaf: bool) -> Result<Option<OwnedFd>> {
        let path = if leaf { h.path.join(self.leaf()?) } else { h.path.clone() };
        match open::open_dir(&path) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if e.kind == Kind::NoSuchEntity => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Pids of the container's processes as this process sees them, sorted; without loader and spawner. Empty when
    /// the cgroup is gone.
    ///
    /// # Errors
    /// As reading control files.
    pub fn procs(&self) -> Result<Vec<i32>> {
        self.leaf_dir()?.map_or(Ok(Vec::new()), |(leaf, _)| control::processes(leaf.as_fd()))
    }

    /// Pids of everything in the container's cgroups, loader and spawner too, in any hierarchy.
    ///
    /// # Errors
    /// As reading control files.
    pub fn all_procs(&self) -> Result<Vec<i32>> {
        self.check()?;
        let mut all = Vec::new();
        for h in &self.hierarchies {
            if let Some(dir) = self.open_existing(h, false)? {
                all.extend(control::processes(dir.as_fd())?);
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// What the container and its sandbox use, and the limits.
    ///
    /// # Errors
    /// As reading control files; a cgroup that is gone has used nothing.
    pub fn stats(&self) -> Result<Stats> {
        self.check()?;
        let mut dirs = Vec::with_capacity(self.hierarchies.len());
        for h in &self.hierarchies {
            match self.open_existing(h, false)? {
                Some(dir) if self.v2 => return stats::of_v2(dir.as_fd()),
                Some(dir) => dirs.push((h.name.clone(), dir)),
                None if h.leaf => return Ok(Stats::default()),
                None => {}
            }
        }
        if dirs.is_empty() { Ok(Stats::default()) } else { Cgroup::new(false, dirs)?.stats() }
    }

    /// Moves process `pid`, which must have one thread only, into the container's cgroups, where loader and spawner of a
    /// root container are: callers look the cgroups of an OCI pid up.
    ///
    /// # Errors
    /// As opening and writing control files.
    pub fn adopt(&self, pid: i32) -> Result<()> {
        self.check()?;
        for h in &self.hierarchies {
            let dir = open::open_dir(&h.path)?;
            // A thread is moved at once, a v1 process only after a grace period.
            let file = if h.v2_files { "cgroup.procs" } else { "tasks" };
            files::set(&Dir(dir.as_fd()), file, pid).map_err(|e| e.context(h.path.display()))?;
        }
        Ok(())
    }

    /// Freezes or thaws the container's processes; loader and spawner go on. Blocks until they stand still, at most 5
    /// seconds.
    ///
    /// # Errors
    /// [`Kind::NoSuchEntity`] when the cgroup is gone; [`Kind::Failure`] when a process does not stop in time.
    pub fn freeze(&self, on: bool) -> Result<()> {
        let (leaf, v2_files) = self
            .leaf_dir()?
            .ok_or_else(|| Error::no_such_entity(format!("container {:?} has no cgroup", self.cid)))?;
        control::freeze(leaf.as_fd(), v2_files, on)
    }

    /// Whether the container's processes are frozen.
    ///
    /// # Errors
    /// As reading control files.
    pub fn is_frozen(&self) -> Result<bool> {
        self.leaf_dir()?.map_or(Ok(false), |(leaf, v2_files)| control::is_frozen(leaf.as_fd(), v2_files))
    }

    /// Kills everything in the container's cgroups with SIGKILL, loader and spawner too, frozen or not. Does not wait.
    /// Cgroups that were planned and not made are left alone.
    ///
    /// # Errors
    /// [`Kind::Permission`] when a process may not be killed.
    pub fn kill_all(&self) -> Result<()> {
        self.check()?;
        let Some(first) = self.hierarchies.iter().find(|h| h.leaf && !self.disputed) else { return Ok(()) };
        // Killed before everything was made: only where our leaf is have we been.
        if !self.complete && self.open_existing(first, true)?.is_none() {
            return Ok(());
        }
        if let Some(dir) = self.open_existing(first, false)?
            && !control::processes(dir.as_fd())?.is_empty()
        {
            control::kill(dir.as_fd(), first.v2_files)?;
        }
        // Who left the freezer's cgroup (a container with writable cgroups can) is still in another.
        for h in self.hierarchies.iter().filter(|h| !h.leaf) {
            if let Some(dir) = self.open_existing(h, false)? {
                control::kill_each(&control::processes(dir.as_fd())?)?;
            }
        }
        Ok(())
    }
}
