//! A tree of cgroups over all hierarchies, held by directory descriptors: what domains of the supervisor and
//! containers of the container API (`docs/CONTAINERS.md`) are made of.
//!
//! Every node has a directory in the *core* hierarchy (v1: the freezer's; else the v2 one), which lists, freezes and
//! kills it. In the other v1 hierarchies it has one where it isolates something; elsewhere its processes are where its
//! parent's are. A directory that is only on the way to one further down isolates nothing: such a *passage*, and a
//! node that is not complete yet, have the sticky bit, which means nothing to the kernel. So the tree is in the kernel
//! alone, and a process that dies while it makes a node leaves something that is known for what it is.
//!
//! Names are single components, opened beneath the parent's descriptor (`openat2(2)`, `RESOLVE_BENEATH` without links
//! and mounts): nothing outside of the root can be reached.
#![forbid(unsafe_code)]

mod build;
mod kill;

pub use build::Making;

use super::files::{Dir, Files, explain};
use super::{Cgroup, Stats, UNIFIED, control, resources, stats};
use crate::sys::mount::openat2;
use airlock_wire::api::boot::CgroupFds;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use oci_spec::runtime::LinuxResources;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

/// How many levels below its root a tree may have.
pub const MAX_DEPTH: usize = 32;

/// Mode of a directory that isolates nothing (yet).
const UNFINISHED: Mode = Mode::S_ISVTX;
const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY);

/// One hierarchy of a tree.
#[derive(Debug)]
struct Hierarchy {
    /// Its controllers joined by commas; [`UNIFIED`] for v2.
    name: String,
    v2: bool,
    /// The tree's root.
    base: Arc<OwnedFd>,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.name.split(',').any(|c| c == controller)
    }

    /// The file through which processes join; v1 has a slower one for whole processes, too.
    fn join_file(&self) -> &'static str {
        if self.v2 { "cgroup.procs" } else { "tasks" }
    }
}

/// The hierarchies of a tree.
#[derive(Debug)]
struct Tree {
    core: Hierarchy,
    /// v1's others.
    others: Vec<Hierarchy>,
}

/// What a node has in one hierarchy.
#[derive(Debug, Clone)]
struct Part {
    /// The directory at the node's own path, if there is one.
    here: Option<Arc<OwnedFd>>,
    /// The directory that the node's processes are in: its own, or that of the nearest ancestor which isolates.
    joined: Arc<OwnedFd>,
}

impl Part {
    /// Finds the directories of the node at `path`.
    fn find(hierarchy: &Hierarchy, path: &[String]) -> Result<Self> {
        let base = &hierarchy.base;
        if path.is_empty() {
            return Ok(Self { here: Some(base.clone()), joined: base.clone() });
        }
        let mut here = None;
        for length in (1..=path.len()).rev() {
            let names = path.get(..length).unwrap_or_default();
            let Some(dir) = open_beneath(base.as_fd(), &names.join("/"))?.map(Arc::new) else { continue };
            if length == path.len() {
                here = Some(dir.clone());
            }
            if !sticky(fstat(&dir)?.st_mode) {
                return Ok(Self { here, joined: dir });
            }
        }
        Ok(Self { here, joined: base.clone() })
    }

    /// Whether the node has a directory of its own here for its processes.
    fn own(&self) -> bool {
        self.here.as_ref().is_some_and(|here| Arc::ptr_eq(here, &self.joined))
    }
}

/// A node of the tree. It stays valid when the cgroup is removed; what is done with it then fails with
/// [`airlock_wire::error::Kind::NoSuchEntity`] or says that a file is not there: see [`Node::gone`].
#[derive(Debug, Clone)]
pub struct Node {
    tree: Arc<Tree>,
    core: Arc<OwnedFd>,
    /// In the other hierarchies, once somebody wants to know.
    others: Arc<OnceLock<Vec<Part>>>,
    /// Names from the root to here.
    path: Vec<String>,
}

impl Node {
    /// The root of a tree: a directory in each hierarchy, `(controllers, descriptor)` (for a v2 hierarchy
    /// [`UNIFIED`] is the name). A v1 freezer among them is the core, else the v2 hierarchy; other directories of v2 are
    /// left aside.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::InvalidArgument`] when neither is there.
    pub fn root(dirs: Vec<(String, OwnedFd)>) -> Result<Self> {
        let mut all: Vec<Hierarchy> = dirs
            .into_iter()
            .map(|(name, dir)| Hierarchy { v2: name == UNIFIED, name, base: Arc::new(dir) })
            .collect();
        let freezer = all.iter().position(|h| h.has("freezer"));
        let core = freezer.or_else(|| all.iter().position(|h| h.v2)).ok_or_else(|| {
            Error::invalid_argument("a tree of cgroups needs a freezer or a v2 directory among its roots")
        })?;
        let core = all.remove(core);
        all.retain(|h| !h.v2);
        let node = core.base.clone();
        Ok(Self::at(Arc::new(Tree { core, others: all }), node, Vec::new()))
    }

    fn at(tree: Arc<Tree>, core: Arc<OwnedFd>, path: Vec<String>) -> Self {
        Self { tree, core, others: Arc::default(), path }
    }

    /// The node's parts in the other hierarchies, which are looked for at the first need.
    fn others(&self) -> Result<&[Part]> {
        if let Some(found) = self.others.get() {
            return Ok(found);
        }
        let found = self.tree.others.iter().map(|h| Part::find(h, &self.path)).collect::<Result<_>>()?;
        Ok(self.others.get_or_init(|| found))
    }

    /// All hierarchies with the node's part in each, the core last.
    fn parts(&self) -> Result<Vec<(&Hierarchy, Part)>> {
        let core = Part { here: Some(self.core.clone()), joined: self.core.clone() };
        let others = self.tree.others.iter().zip(self.others()?.iter().cloned());
        Ok(others.chain([(&self.tree.core, core)]).collect())
    }

    /// The tree below a sandbox's own cgroups, whose root is the container with its processes: v1, its directories, with
    /// the leaf of the freezer; v2, the leaf, where no controllers are.
    ///
    /// # Errors
    /// As [`Self::root`] and dup(2).
    pub fn below(cgroup: &Cgroup) -> Result<Self> {
        Self::of(cgroup, |leaf| Ok(leaf.try_clone_to_owned()?))
    }

    /// As [`Self::below`], with nodes beside the container instead of inside: pausing or killing it does not touch them.
    /// v2: the tree below the cgroup that the leaf is in, which hands on no controllers while the sandbox is in it.
    ///
    /// # Errors
    /// As [`Self::root`] and opening a directory.
    pub fn beside(cgroup: &Cgroup) -> Result<Self> {
        Self::of(cgroup, |leaf| match cgroup.dir("").filter(|_| cgroup.v2()) {
            Some(limits) => Ok(limits.try_clone_to_owned()?),
            None => openat(leaf, "..", DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|e| explain("opening the directory above the leaf", "cgroup", e)),
        })
    }

    fn of(cgroup: &Cgroup, core: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd>) -> Result<Self> {
        let leaf = core(cgroup.leaf())?;
        if cgroup.leaf_is_v2() && cgroup.v2() {
            return Self::root(vec![(UNIFIED.to_owned(), leaf)]);
        }
        let is_leaf = |name: &str| {
            if cgroup.leaf_is_v2() { name == UNIFIED } else { name.split(',').any(|c| c == "freezer") }
        };
        let mut dirs = Vec::new();
        let mut leaf = Some(leaf);
        for (name, dir) in cgroup.dirs() {
            match leaf.take_if(|_| is_leaf(name)) {
                Some(leaf) => dirs.push((name.to_owned(), leaf)),
                None => dirs.push((name.to_owned(), dir.try_clone_to_owned()?)),
            }
        }
        Self::root(dirs)
    }

    /// Whether the core is a v2 directory.
    pub fn v2(&self) -> bool {
        self.tree.core.v2
    }

    /// The directory in the core hierarchy.
    pub fn core_dir(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }

    /// Names from the tree's root to this node; empty for the root.
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// How the kernel knows the node, as long as it exists: two nodes of a path with different ones are not the same.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn id(&self) -> Result<u64> {
        Ok(fstat(self.core_dir())?.st_ino)
    }

    /// Whether the cgroup was removed.
    pub fn gone(&self) -> bool {
        // A removed cgroup's directory can be looked at for as long as it is open, but nothing is in it.
        !self.path.is_empty() && !Dir(self.core_dir()).exists("cgroup.procs")
    }

    /// The part in the hierarchy of `controller`.
    fn part(&self, controller: &str) -> Result<Option<&Part>> {
        let index = self.tree.others.iter().position(|h| h.has(controller));
        index.map_or(Ok(None), |index| Ok(self.others()?.get(index)))
    }

    /// The node's own directory in the hierarchy of `controller`, if it isolates that. The root and every v2 node have
    /// theirs always.
    ///
    /// # Errors
    /// As opening a directory.
    pub fn dir(&self, controller: &str) -> Result<Option<BorrowedFd<'_>>> {
        if self.v2() || self.tree.core.has(controller) {
            return Ok(Some(self.core_dir()));
        }
        Ok(self.part(controller)?.filter(|p| p.own()).map(|p| p.joined.as_fd()))
    }

    /// The directory of the hierarchy of `controller` that the node's processes are in, its own or not.
    ///
    /// # Errors
    /// As opening a directory.
    pub fn nearest(&self, controller: &str) -> Result<Option<BorrowedFd<'_>>> {
        if self.v2() || self.tree.core.has(controller) {
            return Ok(Some(self.core_dir()));
        }
        Ok(self.part(controller)?.map(|p| p.joined.as_fd()))
    }

    /// The directories that are the node's own.
    ///
    /// # Errors
    /// As opening a directory.
    pub fn own_dirs(&self) -> Result<Vec<BorrowedFd<'_>>> {
        let others = self.others()?.iter().filter(|p| p.own()).map(|p| p.joined.as_fd());
        Ok(others.chain([self.core_dir()]).collect())
    }

    /// Whether some hierarchy of the tree has `controller` (v2: `cgroup.controllers` of its root).
    pub fn offers(&self, controller: &str) -> bool {
        if self.v2() {
            let root = Dir(self.tree.core.base.as_fd());
            let listed = root.read("cgroup.controllers").unwrap_or_default();
            return listed.split_whitespace().any(|c| c == controller);
        }
        self.tree.core.has(controller) || self.tree.others.iter().any(|h| h.has(controller))
    }

    /// The controllers of v1's hierarchies besides the core.
    pub fn others_have(&self) -> impl Iterator<Item = &str> {
        self.tree.others.iter().flat_map(|h| h.name.split(','))
    }

    /// Names of the nodes directly below, unsorted. Those that are being made are left out, and directories whose names
    /// [`check_name`] does not take.
    ///
    /// # Errors
    /// As reading a directory.
    pub fn children(&self) -> Result<Vec<String>> {
        let mut names = control::children(self.core_dir())?;
        names.retain(|name| check_name(name).is_ok() && self.finished(name));
        Ok(names)
    }

    fn finished(&self, name: &str) -> bool {
        let complete = |mode: u32| is_directory(mode) && !sticky(mode);
        fstatat(self.core_dir(), name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|s| complete(s.st_mode))
    }

    /// Opens the child `name`.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::NoSuchEntity`] when there is none or it is not complete,
    /// [`airlock_wire::error::Kind::InvalidArgument`] for a bad name.
    pub fn child(&self, name: &str) -> Result<Self> {
        let node = self.open_child(name)?;
        if sticky(fstat(node.core_dir())?.st_mode) { Err(no_child(name)) } else { Ok(node) }
    }

    /// Opens the child, complete or not.
    fn open_child(&self, name: &str) -> Result<Self> {
        check_name(name)?;
        let core = open_beneath(self.core_dir(), name)?.ok_or_else(|| no_child(name))?;
        Ok(self.below_here(name, core))
    }

    fn below_here(&self, name: &str, core: OwnedFd) -> Self {
        let mut path = self.path.clone();
        path.push(name.to_owned());
        Self::at(self.tree.clone(), Arc::new(core), path)
    }

    /// The pids in the node alone, sorted, each once, as the reader's pid namespace shows them. v1 lists the pid of a
    /// visitor thread's process, too.
    ///
    /// # Errors
    /// As reading control files; a removed cgroup is empty.
    pub fn processes(&self) -> Result<Vec<i32>> {
        self.ids("cgroup.procs")
    }

    /// The thread ids in the node alone; see [`Self::processes`].
    ///
    /// # Errors
    /// See [`Self::processes`].
    pub fn threads(&self) -> Result<Vec<i32>> {
        self.ids(self.threads_file())
    }

    fn ids(&self, file: &str) -> Result<Vec<i32>> {
        let mut all = Vec::new();
        control::ids_of(self.core_dir(), file, &mut all)?;
        Ok(control::sorted(all))
    }

    fn threads_file(&self) -> &'static str {
        if self.v2() { "cgroup.threads" } else { "tasks" }
    }

    /// As [`Self::processes`], with all nodes below. Not atomic.
    ///
    /// # Errors
    /// See [`Self::processes`].
    pub fn processes_below(&self) -> Result<Vec<i32>> {
        control::ids(self.core_dir(), "cgroup.procs")
    }

    /// As [`Self::threads`], with all nodes below. Not atomic.
    ///
    /// # Errors
    /// See [`Self::processes`].
    pub fn threads_below(&self) -> Result<Vec<i32>> {
        control::ids(self.core_dir(), self.threads_file())
    }

    /// Stops (`on`) or resumes all threads in the node and below. Blocks until they stand still, at most 5 seconds.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::Failure`] when a process does not stop in time; the node is thawed then.
    pub fn freeze(&self, on: bool) -> Result<()> {
        control::freeze(self.core_dir(), self.v2(), on)
    }

    /// Whether the node is frozen.
    ///
    /// # Errors
    /// As reading control files.
    pub fn frozen(&self) -> Result<bool> {
        control::frozen(self.core_dir(), self.v2())
    }

    /// The files through which a process joins the node by writing `0` to each, in this order.
    ///
    /// # Errors
    /// As open(2).
    pub fn join_files(&self) -> Result<Vec<OwnedFd>> {
        let open = |(hierarchy, part): (&Hierarchy, Part)| {
            let file = hierarchy.join_file();
            let opened = Dir(part.joined.as_fd()).open(file, OFlag::O_WRONLY);
            opened.map_err(|e| explain(&format!("opening {file} of {}", hierarchy.name), file, e))
        };
        self.parts()?.into_iter().map(open).collect()
    }

    /// Moves a thread into the node, in every hierarchy. v2 moves processes as a whole: `tid` has to be a pid then.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::NoSuchEntity`] for a thread that is not there;
    /// [`airlock_wire::error::Kind::Unsupported`] for a v2 thread that is no process. The thread may be in some of the
    /// hierarchies then.
    pub fn enter(&self, tid: i32) -> Result<()> {
        self.move_in(tid, Hierarchy::join_file)
    }

    /// Moves a process with all its threads into the node, in every hierarchy. With v1 that takes the kernel milliseconds.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub fn enter_process(&self, pid: i32) -> Result<()> {
        self.move_in(pid, |_| "cgroup.procs")
    }

    fn move_in(&self, id: i32, file: impl Fn(&Hierarchy) -> &'static str) -> Result<()> {
        // The core comes last: who is listed in the node is in all of it.
        for (hierarchy, part) in self.parts()? {
            let file = file(hierarchy);
            let written = Dir(part.joined.as_fd()).write(file, &id.to_string());
            written.map_err(|e| match e {
                Errno::ESRCH => Error::no_such_entity(format!("there is no thread {id}")),
                Errno::EOPNOTSUPP | Errno::EINVAL if hierarchy.v2 => Error::unsupported(format!(
                    "moving thread {id}: cgroup v2 moves whole processes into such a cgroup; give the process' id"
                )),
                Errno::EBUSY if hierarchy.v2 => Error::invalid_state(format!(
                    "moving {id}: the cgroup hands controllers on to those below it, so cgroup v2 lets no process in"
                )),
                e => explain(&format!("moving {id} into {}", hierarchy.name), file, e),
            })?;
        }
        Ok(())
    }

    /// Writes limits to the directories of this node; what is not given stays as it is.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::Unsupported`] when a limit needs a controller for which the node has no directory of
    /// its own, else the first limit that is refused, naming file and value. Earlier ones stay.
    pub fn apply(&self, given: &LinuxResources) -> Result<()> {
        if self.v2() {
            return resources::apply_dir(true, "", self.core_dir(), given);
        }
        let own: Vec<_> = self.parts()?.into_iter().filter(|(_, part)| part.own()).collect();
        resources::check_v1(own.iter().map(|(hierarchy, _)| hierarchy.name.as_str()), given)?;
        let needed = resources::needed_v1(given);
        for (hierarchy, part) in own {
            if hierarchy.name.split(',').any(|c| needed.contains(&c)) {
                resources::apply_dir(false, &hierarchy.name, part.joined.as_fd(), given)?;
            }
        }
        Ok(())
    }

    /// What the node and those below it use, of the controllers that it isolates, and its limits.
    ///
    /// # Errors
    /// As reading control files; absent files count as zero.
    pub fn stats(&self) -> Result<Stats> {
        if self.v2() { stats::of_v2(self.core_dir()) } else { self.cgroup_of(Part::own)?.stats() }
    }

    /// The node as the cgroup of a container of the loader.
    ///
    /// # Errors
    /// As dup(2) and opening a directory.
    pub fn cgroup(&self) -> Result<Cgroup> {
        if self.v2() && self.tree.others.is_empty() {
            let dir = || self.core_dir().try_clone_to_owned();
            let named = [CgroupFds::V2_LEAF, CgroupFds::V2_LIMITS];
            let dirs = named.map(|name| Ok((name.to_owned(), dir()?))).into_iter().collect::<Result<_>>()?;
            return Cgroup::new(true, dirs);
        }
        self.cgroup_of(|_| true)
    }

    fn cgroup_of(&self, wanted: impl Fn(&Part) -> bool) -> Result<Cgroup> {
        let parts = self.parts()?;
        let parts = parts.into_iter().filter(|(_, part)| wanted(part));
        let dup = |(hierarchy, part): (&Hierarchy, Part)| {
            Ok((hierarchy.name.clone(), part.joined.as_fd().try_clone_to_owned()?))
        };
        Cgroup::new(false, parts.map(dup).collect::<Result<_>>()?)
    }
}

/// Checks the name of a node: 1 to 255 letters, digits, `_`, `-` and `.`, neither `.` nor `..`.
///
/// # Errors
/// [`airlock_wire::error::Kind::InvalidArgument`] naming it.
pub fn check_name(name: &str) -> Result<()> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > 255 || matches!(name, "." | "..") || !name.bytes().all(fits) {
        return Err(Error::invalid_argument(format!(
            "{name:?} cannot name a cgroup: use 1 to 255 of the characters A-Z a-z 0-9 _ - ."
        )));
    }
    Ok(())
}

fn is_directory(mode: u32) -> bool {
    mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

fn sticky(mode: u32) -> bool {
    is_directory(mode) && Mode::from_bits_truncate(mode).contains(UNFINISHED)
}

fn no_child(name: &str) -> Error {
    Error::no_such_entity(format!("there is no cgroup {name:?}"))
}

/// Opens the directory at `name`, one or more plain names, below `dir`; `None` when there is none.
fn open_beneath(dir: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>> {
    let inside =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    match openat2(dir, name, DIRECTORY, 0, inside) {
        Ok(fd) => Ok(Some(fd)),
        // ENOTDIR: a control file.
        Err(Errno::ENOENT | Errno::ENODEV | Errno::ENOTDIR) => Ok(None),
        Err(e) => Err(explain(&format!("opening {name}"), "cgroup", e)),
    }
}

#[cfg(test)]
mod tests;
