//! A container's cgroup as the sandbox holds it: directory descriptors, no paths.
//!
//! The parent side (crate `airlock`, module `cgroups`) finds, makes and removes the directories; this module lists,
//! freezes, kills and measures what is in them, and knows how limits are written ([`resources`]).
#![forbid(unsafe_code)]

pub mod control;
pub mod files;
pub mod resources;
pub mod stats;
pub mod tree;

pub use stats::Stats;

use crate::sys::mount::openat2;
use airlock_wire::api::boot::CgroupFds;
use airlock_wire::error::{Error, Kind, Result};
use files::{Dir, Files, explain};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// The v2 hierarchy beside v1 ones is called so in [`Cgroup::new`]'s list.
pub const UNIFIED: &str = "unified";

/// Files that move, freeze or kill processes (in v2 the sandbox's own, too) or run programs on the host: never written on
/// behalf of a caller.
const NEVER_WRITTEN: [&str; 8] = [
    "cgroup.procs",
    "cgroup.threads",
    "tasks",
    "release_agent",
    "cgroup.event_control",
    "cgroup.freeze",
    "cgroup.kill",
    "freezer.state",
];

/// What gVisor says of a control file that is not there.
pub const NO_SUCH_FILE: &str = "no such control file";

fn explain_control(what: &str, file: &str, errno: Errno) -> Error {
    match errno {
        Errno::ENOENT => {
            Error::no_such_entity(format!("{NO_SUCH_FILE}: {}", explain(what, file, errno).message))
        }
        errno => explain(what, file, errno),
    }
}

/// The longest container id that [`leaf_name`] takes, in bytes.
pub const MAX_CID: usize = 247;

/// The name of a container's leaf, `airlock-<cid>`.
///
/// # Errors
/// [`Kind::InvalidArgument`] when the id is empty, too long or has characters other than letters, digits, `_`,
/// `+`, `-` and `.`.
pub fn leaf_name(cid: &str) -> Result<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.');
    if cid.is_empty() || cid.len() > MAX_CID || cid == "." || cid == ".." || !cid.bytes().all(fits) {
        return Err(Error::invalid_argument(format!(
            "container id {cid:?} cannot name a cgroup: use 1 to {MAX_CID} of the characters A-Z a-z 0-9 _ + - ."
        )));
    }
    Ok(format!("airlock-{cid}"))
}

/// The cgroups of one container: in v1 one directory in each hierarchy; in a pure v2 tree two, where its processes are
/// and where its limits and statistics are.
///
/// One of them is the *leaf*: the v1 `freezer` directory, else the v2 one. It holds the container's processes and
/// nothing else, so that it can be listed, frozen and killed as a whole.
#[derive(Debug)]
pub struct Cgroup {
    v2: bool,
    dirs: Vec<(String, OwnedFd)>,
    leaf: usize,
    inside: bool,
}

impl Cgroup {
    /// Takes the directories of a container: `(hierarchy, descriptor)`, as in [`CgroupFds`]. With `v2` there are two,
    /// [`CgroupFds::V2_LEAF`] and [`CgroupFds::V2_LIMITS`], in either order.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] when none of them can be the leaf, and for a v2 list that is not exactly those two.
    pub fn new(v2: bool, dirs: Vec<(String, OwnedFd)>) -> Result<Self> {
        if v2 {
            let leaf = dirs.iter().position(|(name, _)| name == CgroupFds::V2_LEAF);
            let limits = dirs.iter().any(|(name, _)| name == CgroupFds::V2_LIMITS);
            return match leaf {
                Some(leaf) if limits && dirs.len() == 2 => Ok(Self { v2, dirs, leaf, inside: false }),
                _ => {
                    let names: Vec<_> = dirs.iter().map(|(name, _)| name).collect();
                    Err(Error::invalid_argument(format!(
                        "v2 cgroup directories have to be {:?} and {:?}, not {names:?}",
                        CgroupFds::V2_LEAF,
                        CgroupFds::V2_LIMITS
                    )))
                }
            };
        }
        let position = |name: &str| dirs.iter().position(|(n, _)| n.split(',').any(|c| c == name));
        let leaf = position("freezer").or(position(UNIFIED)).ok_or_else(|| {
            Error::invalid_argument("cgroup directories without a freezer or v2 directory among them")
        })?;
        Ok(Self { v2, dirs, leaf, inside: false })
    }

    /// Says that the process that forks the container's processes is in all these cgroups but the leaf already
    /// (the root container's are those of the sandbox): [`Self::join_fd`] then gives the leaf's file only.
    #[must_use]
    pub fn sandbox_inside(mut self) -> Self {
        self.inside = true;
        self
    }

    /// True for a pure v2 tree.
    pub fn v2(&self) -> bool {
        self.v2
    }

    /// The leaf's directory.
    pub fn leaf(&self) -> BorrowedFd<'_> {
        // `leaf` was found by `new` and `dirs` never shrinks.
        self.dirs[self.leaf].1.as_fd()
    }

    /// The number by which the kernel knows the leaf (`bpf_get_current_cgroup_id`).
    ///
    /// # Errors
    /// As fstat(2).
    pub fn leaf_id(&self) -> Result<u64> {
        Ok(nix::sys::stat::fstat(self.leaf())?.st_ino)
    }

    /// Whether the leaf has the v2 control files (`cgroup.freeze`): so in a pure v2 tree, and in a mixed one
    /// without a v1 freezer.
    pub(crate) fn leaf_is_v2(&self) -> bool {
        self.v2 || self.dirs[self.leaf].0 == UNIFIED
    }

    /// The directory to clone into with `CLONE_INTO_CGROUP` (clone3(2)), if the leaf is a v2 one.
    pub fn v2_dir(&self) -> Option<BorrowedFd<'_>> {
        self.leaf_is_v2().then(|| self.leaf())
    }

    /// Files through which a new, single-threaded process joins by writing `0`: the v1 `tasks` files. (A write to
    /// v1 `cgroup.procs` costs a grace period of several milliseconds, one to `tasks` does not.) Empty for v2, see
    /// [`Self::v2_dir`].
    ///
    /// # Errors
    /// As open(2): the cgroup was removed, or belongs to another user.
    pub fn join_fd(&self) -> Result<Vec<OwnedFd>> {
        let mut files = Vec::with_capacity(self.dirs.len());
        for (index, (name, dir)) in self.dirs.iter().enumerate() {
            if self.v2 || name == UNIFIED || (self.inside && index != self.leaf) {
                continue;
            }
            let file = Dir(dir.as_fd()).open("tasks", OFlag::O_WRONLY);
            files.push(file.map_err(|e| explain(&format!("opening tasks of {name}"), "tasks", e))?);
        }
        Ok(files)
    }

    /// The directory of the hierarchy that has `controller` (`memory`, `cpuacct`, `systemd`); in a v2 tree always
    /// the container's cgroup above the leaf: the leaf has no controllers, what is used in it is charged there.
    pub fn dir(&self, controller: &str) -> Option<BorrowedFd<'_>> {
        if self.v2 {
            let found = self.dirs.iter().find(|(name, _)| name == CgroupFds::V2_LIMITS);
            return found.map(|(_, dir)| dir.as_fd());
        }
        let found = self.dirs.iter().find(|(name, _)| name.split(',').any(|c| c == controller));
        found.map(|(_, dir)| dir.as_fd())
    }

    /// The hierarchies, as they are called below `/sys/fs/cgroup`, with their directories (v2: as in [`CgroupFds`]).
    pub fn dirs(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.dirs.iter().map(|(name, dir)| (name.as_str(), dir.as_fd()))
    }

    /// Process ids in the leaf and below, as the caller's pid namespace shows them, sorted.
    ///
    /// # Errors
    /// As reading control files; a removed cgroup is empty.
    pub fn procs(&self) -> Result<Vec<i32>> {
        control::ids(self.leaf(), "cgroup.procs")
    }

    /// Thread ids in the leaf and below, sorted; see [`Self::procs`].
    ///
    /// # Errors
    /// See [`Self::procs`].
    pub fn threads(&self) -> Result<Vec<i32>> {
        control::ids(self.leaf(), if self.leaf_is_v2() { "cgroup.threads" } else { "tasks" })
    }

    /// Freezes (`on`) or thaws the container's processes. Blocks until they are frozen, at most 5 seconds.
    ///
    /// # Errors
    /// [`Kind::Failure`] when a process does not stop in time; the cgroup is thawed then.
    pub fn freeze(&self, on: bool) -> Result<()> {
        control::freeze(self.leaf(), self.leaf_is_v2(), on)
    }

    /// Asks for the container's processes to be frozen and does not wait for it: for those that a tracer holds, which stop
    /// when it lets go of them. [`Self::freeze`] waits.
    ///
    /// # Errors
    /// As writing control files.
    pub fn start_freezing(&self) -> Result<()> {
        control::start_freezing(self.leaf(), self.leaf_is_v2())
    }

    /// Whether the container's processes are frozen.
    ///
    /// # Errors
    /// As reading control files.
    pub fn frozen(&self) -> Result<bool> {
        control::frozen(self.leaf(), self.leaf_is_v2())
    }

    /// Kills all processes of the container with SIGKILL, also when it is frozen (it is thawed). Does not wait for
    /// them.
    ///
    /// # Errors
    /// [`Kind::Permission`] when one may not be killed.
    pub fn kill(&self) -> Result<()> {
        control::kill(self.leaf(), self.leaf_is_v2())
    }

    /// What the container has used, and its limits. Containers that share a cgroup (see [`Self::make_child`]) are
    /// counted together, and with a root container the sandbox's own processes.
    ///
    /// # Errors
    /// As reading control files; absent files count as zero.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(self)
    }

    /// The text of `file` in the hierarchy of `controller`, in the cgroup `below` this one (`a/b`; empty for this one).
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for names that are no file name or lead out of this cgroup, [`Kind::NoSuchEntity`] for a
    /// controller or cgroup that is not there and for [`NO_SUCH_FILE`], else as reading.
    pub fn read(&self, controller: &str, below: &str, file: &str) -> Result<String> {
        let dir = self.open_below(controller, below, file)?;
        Dir(dir.as_fd()).read(file).map_err(|e| explain_control(&format!("reading {file}"), file, e))
    }

    /// Writes `value` to `file` with one write(2); the rest is as in [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`]; files that move, freeze or kill processes or run programs are refused.
    pub fn write(&self, controller: &str, below: &str, file: &str, value: &str) -> Result<()> {
        let dir = self.open_below(controller, below, file)?;
        if NEVER_WRITTEN.contains(&file) {
            return Err(Error::invalid_argument(format!(
                "cgroup: {file} is not written on behalf of callers: it moves, freezes or kills processes, for which \
                 there are methods"
            )));
        }
        let written = Dir(dir.as_fd()).write(file, value);
        written.map_err(|e| explain_control(&format!("writing {value:?} to {file}"), file, e))
    }

    fn open_below(&self, controller: &str, below: &str, file: &str) -> Result<OwnedFd> {
        if !files::valid_file_name(file) {
            return Err(Error::invalid_argument(format!(
                "cgroup: {file:?} is not the name of a control file"
            )));
        }
        let names_both = !matches!(controller, "" | "cgroup") && !file.starts_with("cgroup.");
        if self.v2 && names_both && files::controller_of(file) != controller {
            return Err(Error::no_such_entity(format!("no such control file: {controller} has no {file}")));
        }
        let dir = self.dir(controller).ok_or_else(|| {
            let known: Vec<_> = self.dirs.iter().map(|(n, _)| n.as_str()).collect();
            Error::no_such_entity(format!(
                "cgroup: no hierarchy has the controller {controller:?}; there are: {}",
                known.join(" ")
            ))
        })?;
        let below = if below.is_empty() { "." } else { below };
        if below.split('/').any(|part| part == "..") {
            return Err(Error::invalid_argument(format!(
                "cgroup path {below:?} leads out of the container's cgroup"
            )));
        }
        let inside =
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        openat2(dir, below, OFlag::O_DIRECTORY | OFlag::O_PATH, 0, inside).map_err(|e| match e {
            Errno::ENOENT | Errno::ENOTDIR => {
                Error::no_such_entity(format!("cgroup: there is no cgroup {below:?} in the container's"))
            }
            Errno::EXDEV | Errno::ELOOP => {
                Error::invalid_argument(format!("cgroup path {below:?} leads out of the container's cgroup"))
            }
            e => explain(&format!("opening {below}"), "cgroup", e),
        })
    }

    /// Makes a leaf for a further container beside this one, sharing all other directories: for subcontainers that
    /// come without cgroups of their own. Undo it with [`Self::remove_child`].
    ///
    /// # Errors
    /// [`Kind::InvalidState`] when that leaf exists already, else as mkdir(2).
    pub fn make_child(&self, cid: &str) -> Result<Self> {
        let name = leaf_name(cid)?;
        let parent = self.parent()?;
        mkdirat(&parent, name.as_str(), Mode::from_bits_truncate(0o755)).map_err(|e| match e {
            Errno::EEXIST => Error::invalid_state(format!(
                "cgroup {name} exists already: another container of this sandbox has the id {cid:?}"
            )),
            e => explain(&format!("making {name}"), "cgroup", e),
        })?;
        let made = self.share(parent.as_fd(), &name);
        if made.is_err() {
            // Nothing has joined it: removing cannot fail in a way that matters more than the first error.
            let _ = unlinkat(&parent, name.as_str(), UnlinkatFlags::RemoveDir);
        }
        made
    }

    fn share(&self, parent: BorrowedFd<'_>, name: &str) -> Result<Self> {
        let mut dirs = Vec::with_capacity(self.dirs.len());
        for (index, (hierarchy, dir)) in self.dirs.iter().enumerate() {
            let dir = if index == self.leaf {
                let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
                Dir(parent).open(name, flags).map_err(|e| explain(&format!("opening {name}"), "cgroup", e))?
            } else {
                dir.try_clone()?
            };
            dirs.push((hierarchy.clone(), dir));
        }
        Ok(Self { v2: self.v2, dirs, leaf: self.leaf, inside: self.inside })
    }

    /// Removes the leaf that [`Self::make_child`] made for `cid`. Call it on the same cgroup. Processes that have
    /// just ended may still count for the kernel: waits for them, at most a second.
    ///
    /// # Errors
    /// [`Kind::InvalidState`] while processes are in it.
    pub fn remove_child(&self, cid: &str) -> Result<()> {
        let name = leaf_name(cid)?;
        let parent = self.parent()?;
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut pause = Duration::from_micros(50);
        while !remove_tree(parent.as_fd(), &name)? {
            if Instant::now() > deadline {
                return Err(Error::invalid_state(format!(
                    "cgroup {name} cannot be removed: processes are in it; kill container {cid:?} first"
                )));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The directory above the leaf. The parent side opens leaves through a detached mount of that directory, so
    /// that `..` ends there.
    fn parent(&self) -> Result<OwnedFd> {
        if self.v2
            && let Some(limits) = self.dir("")
        {
            return Ok(limits.try_clone_to_owned()?);
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(self.leaf(), "..", flags, Mode::empty())
            .map_err(|e| explain("opening the directory above the leaf", "cgroup", e))
    }
}

/// Removes the cgroup `name` below `parent` with everything below it. Returns false when processes are still in
/// one of them.
///
/// # Errors
/// As rmdir(2), except "busy" and "does not exist"; [`Kind::Failure`] for a tree that is too deep.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &str) -> Result<bool> {
    remove_level(parent, name, 0)
}

fn remove_level(parent: BorrowedFd<'_>, name: &str, depth: usize) -> Result<bool> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => return Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
        Err(e) => return Err(explain(&format!("removing {name}"), "cgroup", e)),
    }
    if depth > 64 {
        return Err(Error::new(Kind::Failure, format!("cgroup: {name} is nested too deeply to be removed")));
    }
    let dir = match Dir(parent).open(name, OFlag::O_DIRECTORY | OFlag::O_RDONLY) {
        Ok(dir) => dir,
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(true),
        Err(e) => return Err(explain(&format!("opening {name}"), "cgroup", e)),
    };
    let children = control::children(dir.as_fd())?;
    let mut empty = true;
    for child in &children {
        empty &= remove_level(dir.as_fd(), child, depth + 1)?;
    }
    if children.is_empty() || !empty {
        return Ok(false);
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
        Err(e) => Err(explain(&format!("removing {name}"), "cgroup", e)),
    }
}

/// True when the directory lies on a v1 or v2 cgroup file system.
///
/// # Errors
/// As fstatfs(2).
pub fn is_cgroup_fs(dir: BorrowedFd<'_>) -> Result<bool> {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs};
    let kind = fstatfs(dir)?.filesystem_type();
    Ok(kind == CGROUP_SUPER_MAGIC || kind == CGROUP2_SUPER_MAGIC)
}

/// Gives a cgroup's directory and the files through which processes join and are frozen to another user: needed
/// when the sandbox is in a user namespace. Absent files are skipped. With `passage` only what is needed to make leaves
/// below and to move processes into them: for the v2 cgroup of limits, where its own processes are not to be frozen.
///
/// # Errors
/// As fchownat(2).
pub fn delegate(dir: BorrowedFd<'_>, uid: u32, gid: u32, passage: bool) -> Result<()> {
    let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
    const PASSAGE: [&str; 2] = ["", "cgroup.procs"];
    const FILES: [&str; 8] = [
        "",
        "cgroup.procs",
        "tasks",
        "cgroup.threads",
        "cgroup.subtree_control",
        "cgroup.freeze",
        "cgroup.kill",
        "freezer.state",
    ];
    for file in if passage { &PASSAGE[..] } else { &FILES } {
        let flags = if file.is_empty() { AtFlags::AT_EMPTY_PATH } else { AtFlags::AT_SYMLINK_NOFOLLOW };
        match nix::unistd::fchownat(dir, *file, Some(uid), Some(gid), flags) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(explain(&format!("giving {file:?} to user {uid}"), file, e)),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
