//! The processes of a container and what they use, as the host sees them.
#![forbid(unsafe_code)]

use super::{Hierarchy, Manager, open};
use airlock_loader::cgroup::{Cgroup, Stats, control};
use airlock_wire::error::{Error, Kind, Result};
use std::os::fd::{AsFd, OwnedFd};

impl Manager {
    /// The container's cgroups without leaves.
    fn whole(&self) -> Result<Option<Cgroup>> {
        self.handle(|m, h| m.open_existing(h, false))
    }

    /// The container's leaf alone, with nothing of the sandbox.
    fn leaf_handle(&self) -> Result<Option<Cgroup>> {
        self.handle(|m, h| if h.leaf { m.open_existing(h, true) } else { Ok(None) })
    }

    fn handle(&self, open: impl Fn(&Self, &Hierarchy) -> Result<Option<OwnedFd>>) -> Result<Option<Cgroup>> {
        self.check()?;
        let mut dirs = Vec::with_capacity(self.hierarchies.len());
        for h in &self.hierarchies {
            match open(self, h)? {
                Some(dir) => dirs.push((h.name.clone(), dir)),
                None if h.leaf => return Ok(None),
                None => {}
            }
        }
        if dirs.is_empty() { Ok(None) } else { Cgroup::new(self.v2, dirs).map(Some) }
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
        self.leaf_handle()?.map_or(Ok(Vec::new()), |c| c.procs())
    }

    /// Pids of everything in the container's cgroups, loader and spawner too, in any hierarchy.
    ///
    /// # Errors
    /// As reading control files.
    pub fn all_procs(&self) -> Result<Vec<i32>> {
        let mut all = Vec::new();
        if let Some(whole) = self.whole()? {
            for (_, dir) in whole.dirs() {
                all.extend(control::processes(dir)?);
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
        self.whole()?.map_or_else(|| Ok(Stats::default()), |c| c.stats())
    }

    /// Freezes or thaws the container's processes; loader and spawner go on. Blocks until they stand still, at most 5
    /// seconds.
    ///
    /// # Errors
    /// [`Kind::NoSuchEntity`] when the cgroup is gone; [`Kind::Failure`] when a process does not stop in time.
    pub fn freeze(&self, on: bool) -> Result<()> {
        let leaf = self.leaf_handle()?;
        leaf.ok_or_else(|| Error::no_such_entity(format!("container {:?} has no cgroup", self.cid)))?
            .freeze(on)
    }

    /// Whether the container's processes are frozen.
    ///
    /// # Errors
    /// As reading control files.
    pub fn is_frozen(&self) -> Result<bool> {
        self.leaf_handle()?.map_or(Ok(false), |c| c.frozen())
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
