//! Makes the directories of a container, and unmakes them when something fails.
#![forbid(unsafe_code)]

use super::{CreateOptions, Hierarchy, Manager, open};
use airlock_loader::cgroup::files::{Dir, Files};
use airlock_loader::cgroup::resources::cpu;
use airlock_loader::cgroup::{control, delegate, files};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::sys::stat::Mode;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The directories that [`Manager::create`] made. Dropped, it removes exactly these (as far as they are empty);
/// call [`Created::keep`] once the container is there.
#[derive(Debug, Default)]
#[must_use = "dropped, it removes the cgroups"]
pub struct Created {
    dirs: Vec<PathBuf>,
}

impl Created {
    /// Leaves the directories.
    pub fn keep(mut self) {
        self.dirs.clear();
    }

    /// Removes the directories now, the innermost first.
    pub fn undo(self) {
        drop(self);
    }

    /// The directories, in the order in which they were made.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for dir in self.dirs.iter().rev() {
            match nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, dir, nix::unistd::UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => log::warn!("cgroup {} stays: {}", dir.display(), e.desc()),
            }
        }
    }
}

/// Whether processes are in a leaf of this container's name or beside it.
pub(super) fn disputed(manager: &Manager) -> Result<bool> {
    let leaf = manager.leaf()?;
    let marked = manager.hierarchies.iter().filter(|h| h.leaf && h.path.join(&leaf).is_dir());
    for h in marked {
        if !control::processes(open::open_dir(&h.path)?.as_fd())?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The directories that have to be made for a container, the outermost of each hierarchy first.
///
/// # Errors
/// [`Kind::InvalidState`] when one exists and is in use.
pub(super) fn missing(manager: &Manager) -> Result<Vec<PathBuf>> {
    let leaf = manager.leaf()?;
    let mut made = Vec::new();
    let remains = manager.has_remains(&leaf);
    for h in &manager.hierarchies {
        let first = made.len();
        let mut dir = h.path.as_path();
        while dir != h.mount && !dir.exists() {
            made.push(dir.to_owned());
            let Some(parent) = dir.parent() else { break };
            dir = parent;
        }
        if made.len() == first {
            check_unused(h, &manager.cid)?;
            if remains {
                made.push(h.path.clone());
            }
        } else if dir != h.mount {
            // A new cgroup below a frozen one would freeze whoever joins it.
            check_thawed(h, dir)?;
        }
        if let Some(new) = made.get_mut(first..) {
            new.reverse();
        }
    }
    Ok(made)
}

/// Refuses a cgroup that others use.
fn check_unused(h: &Hierarchy, cid: &str) -> Result<()> {
    let dir = open::open_dir(&h.path)?;
    let pids = control::processes(dir.as_fd())?;
    if let Some(first) = pids.first() {
        return Err(Error::invalid_state(format!(
            "cgroup {} is not empty: {} process(es) found, the first is {first}; container {cid:?} needs one of its \
             own: end them, or give another linux.cgroupsPath",
            h.path.display(),
            pids.len()
        )));
    }
    check_thawed(h, &h.path)
}

/// Refuses a v2 cgroup that no process can join: it hands controllers on to those below it.
fn check_joinable(h: &Hierarchy) -> Result<()> {
    let fd = open::open_dir(&h.path)?;
    let enabled = Dir(fd.as_fd()).read("cgroup.subtree_control").unwrap_or_default();
    let enabled: Vec<String> = enabled.split_whitespace().map(|c| format!("-{c}")).collect();
    if enabled.is_empty() {
        return Ok(());
    }
    let (path, off) = (h.path.display(), enabled.join(" "));
    Err(Error::invalid_state(format!(
        "cgroup {path} hands controllers on to the cgroups below it, so no process can join it: end that (echo '{off}' \
         > {path}/cgroup.subtree_control), or give another linux.cgroupsPath"
    )))
}

fn check_thawed(h: &Hierarchy, dir: &Path) -> Result<()> {
    if !h.leaf {
        return Ok(());
    }
    let (file, thaw) = if h.v2_files { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
    let fd = open::open_dir(dir)?;
    if control::is_frozen(fd.as_fd(), h.v2_files)? {
        return Err(Error::invalid_state(format!(
            "cgroup {} is frozen, so a container in it could not start: thaw it (echo {thaw} > {}/{file})",
            dir.display(),
            dir.display()
        )));
    }
    Ok(())
}

impl Manager {
    /// Makes the directories that [`Manager::plan`] found missing.
    ///
    /// # Errors
    /// mkdir(2), naming the directory. On error what was made is removed again, and the manager is one without cgroups.
    pub fn make_dirs(&mut self, options: CreateOptions) -> Result<Created> {
        self.check()?;
        let mut created = Created::default();
        match self.settle().and_then(|()| self.make_all(options, &mut created)) {
            Ok(()) => {
                self.complete = true;
                Ok(created)
            }
            Err(e) => {
                // Whoever cleans up after this must not take another's cgroups for ours.
                *self = Self::default();
                Err(e)
            }
        }
    }

    /// Plans again what could not be planned: by now the leaf is free, or it is another's; or directories that were
    /// there have gone with what a killed command had left.
    fn settle(&mut self) -> Result<()> {
        let gone = |h: &Hierarchy| !self.made.contains(&h.path) && !h.path.is_dir();
        if self.disputed || self.hierarchies.iter().any(gone) {
            self.made = missing(self)?;
            self.disputed = false;
        }
        Ok(())
    }

    /// Whether a `create` that was killed left its cgroups: a leaf of this container's name. It is made first and
    /// removed last; whether processes are in it is another question.
    fn has_remains(&self, leaf: &str) -> bool {
        self.hierarchies.iter().any(|h| h.leaf && h.path.join(leaf).is_dir())
    }

    fn make_all(&self, options: CreateOptions, created: &mut Created) -> Result<()> {
        let leaf = self.leaf()?;
        let remains = self.has_remains(&leaf);
        for h in &self.hierarchies {
            let ours = |dir: &&PathBuf| h.path.starts_with(dir) && dir.starts_with(&h.mount);
            for dir in self.made.iter().filter(ours) {
                match make(dir) {
                    Ok(()) => created.dirs.push(dir.clone()),
                    // A parent that another container needs as well.
                    Err(Errno::EEXIST) if dir != &h.path => {}
                    Err(Errno::EEXIST) if remains => check_unused(h, &self.cid)?,
                    Err(Errno::EEXIST) if dir.is_dir() => {
                        return Err(Error::invalid_state(format!(
                            "cgroup {} has just been made by another; give another linux.cgroupsPath",
                            dir.display()
                        )));
                    }
                    Err(Errno::ENOENT) => {
                        // A parent has gone since: another container ended. Make the way again.
                        make_way(h, created)?;
                    }
                    Err(e) => return Err(refused(dir, e)),
                }
            }
            if h.leaf {
                if self.v2 && !created.dirs.contains(&h.path) {
                    check_joinable(h)?;
                }
                self.make_leaf(h, &h.path.join(&leaf), remains, created)?;
            }
            if h.name.split(',').any(|c| c == "cpuset") && !h.v2_files {
                fill_cpusets(h)?;
            }
            if self.v2 {
                enable_controllers(h);
            }
            if let Some((uid, gid)) = options.owner {
                self.delegate_all(h, &leaf, uid, gid)?;
            }
        }
        Ok(())
    }

    fn make_leaf(&self, h: &Hierarchy, leaf: &Path, remains: bool, created: &mut Created) -> Result<()> {
        match make(leaf) {
            Ok(()) => {
                created.dirs.push(leaf.to_owned());
                Ok(())
            }
            Err(Errno::EEXIST) if remains => check_unused(h, &self.cid),
            Err(Errno::EEXIST) => Err(Error::invalid_state(format!(
                "cgroup {} belongs to another sandbox: remove it if that is gone (rmdir), or give another \
                 linux.cgroupsPath",
                leaf.display()
            ))),
            Err(e) => Err(refused(leaf, e)),
        }
    }

    fn delegate_all(&self, h: &Hierarchy, leaf: &str, uid: u32, gid: u32) -> Result<()> {
        let at = |dir: &Path, e: Error| e.context(dir.display());
        let mut dirs = vec![h.path.clone()];
        if h.leaf {
            dirs.push(h.path.join(leaf));
        }
        for dir in dirs {
            match open::open_dir(&dir) {
                Ok(fd) => {
                    let passage = self.v2 && dir == h.path;
                    delegate(fd.as_fd(), uid, gid, passage).map_err(|e| at(&dir, e))?;
                }
                Err(e) if e.kind == Kind::NoSuchEntity => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn make(dir: &Path) -> std::result::Result<(), Errno> {
    nix::unistd::mkdir(dir, Mode::from_bits_truncate(0o755))
}

/// Makes all missing directories from the mount down to the container's.
fn make_way(h: &Hierarchy, created: &mut Created) -> Result<()> {
    let below = h.path.strip_prefix(&h.mount).unwrap_or(Path::new(""));
    let mut dir = h.mount.clone();
    for name in below {
        dir.push(name);
        match make(&dir) {
            Ok(()) => created.dirs.push(dir.clone()),
            Err(Errno::EEXIST) => {}
            Err(e) => return Err(refused(&dir, e)),
        }
    }
    Ok(())
}

/// Explains why a directory cannot be made.
fn refused(dir: &Path, errno: Errno) -> Error {
    let error = files::explain(&format!("making {}", dir.display()), "cgroup", errno);
    match errno {
        Errno::ENOTDIR | Errno::EEXIST => Error::invalid_argument(format!(
            "{}: a control file has that name; give another linux.cgroupsPath",
            dir.display()
        )),
        Errno::ENAMETOOLONG => Error::invalid_argument(format!("{}: the name is too long", dir.display())),
        _ => error,
    }
}

/// A new v1 cpuset is empty, and nobody can join an empty one: it gets its parent's CPUs and memory nodes.
fn fill_cpusets(h: &Hierarchy) -> Result<()> {
    let below = h.path.strip_prefix(&h.mount).unwrap_or(Path::new(""));
    let mut parent = open::open_dir(&h.mount)?;
    let mut path = h.mount.clone();
    for name in below {
        path.push(name);
        let dir = open::open_dir(&path)?;
        cpu::inherit_cpuset(&Dir(parent.as_fd()), &Dir(dir.as_fd()))
            .map_err(|e| e.context(path.display()))?;
        parent = dir;
    }
    Ok(())
}

/// Enables all available controllers from the root down to the parent of the container's cgroup, so that it has their
/// files. It does not hand them on: it has processes of its own. A controller that cannot be had is not an error here:
/// a limit that needs it will name it.
fn enable_controllers(h: &Hierarchy) {
    let below = h.path.strip_prefix(&h.mount).unwrap_or(Path::new(""));
    let mut path = h.mount.clone();
    for name in below {
        let Ok(fd) = open::open_dir(&path) else { return };
        let dir = Dir(fd.as_fd());
        let read = |file: &str| dir.read(file).unwrap_or_default();
        let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
        let wanted: Vec<String> = available
            .split_whitespace()
            .filter(|c| !enabled.split_whitespace().any(|e| e == *c))
            .map(|c| format!("+{c}"))
            .collect();
        if !wanted.is_empty() && dir.write("cgroup.subtree_control", &wanted.join(" ")).is_err() {
            for one in &wanted {
                if let Err(e) = dir.write("cgroup.subtree_control", one) {
                    log::debug!("{}: enabling {one}: {}", path.display(), e.desc());
                }
            }
        }
        path.push(name);
    }
}
