//! Opens a container's cgroups for donation to its sandbox.
#![forbid(unsafe_code)]

use super::{Manager, View};
use airlock_loader::cgroup::is_cgroup_fs;
use airlock_loader::sys::mount;
use airlock_wire::api::boot::CgroupFds;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Descriptors of a container's cgroups, as [`airlock_wire::api::boot::CgroupFds`] wants them.
#[derive(Debug, Default)]
pub struct OpenedCgroup {
    /// Pure v2: two directories, leaf and limits.
    pub v2: bool,
    /// The directories.
    pub dirs: Vec<OpenedDir>,
    /// Detached mounts, if asked for: in v1 of the directories, in the same order; in v2 one for each [`View`].
    pub mounts: Vec<OwnedFd>,
    /// The detached mounts through which the directories were reached. Closing them waits for a grace period of the
    /// kernel, milliseconds on a busy machine: hand them to somebody who can do that when nobody waits for it.
    pub kept: Vec<OwnedFd>,
}

/// A container's directory in one hierarchy.
#[derive(Debug)]
pub struct OpenedDir {
    /// As the hierarchy is called below `/sys/fs/cgroup`; in a pure v2 tree as [`CgroupFds`] calls the two directories.
    pub name: String,
    /// The directory: the container's leaf where there is one, else its cgroup. It was reached through a detached
    /// mount of the container's cgroup: `..` does not lead out of that.
    pub dir: OwnedFd,
    /// Writing `0` there moves a process of the sandbox into the cgroup (not into the leaf).
    pub join: Option<OwnedFd>,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// A detached mount of a cgroup directory. It is private: what is mounted on it later must not appear on the host,
/// where `/sys/fs/cgroup` is often shared.
fn clone_mount(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let clone = mount::open_tree(AT_FDCWD, path, mount::OPEN_TREE_CLONE | mount::AT_SYMLINK_NOFOLLOW)?;
    let private = mount::MountAttr { propagation: Some(mount::Propagation::Private), ..Default::default() };
    mount::mount_setattr(clone.as_fd(), &private, false)?;
    Ok(clone)
}

/// Opens a cgroup directory so that `..` does not lead out of it: a descriptor of a directory in the host's own mount
/// would let a sandbox climb to the host's root.
fn bounded(path: &Path) -> Result<OwnedFd> {
    match clone_mount(path) {
        Ok(clone) if is_cgroup_fs(clone.as_fd())? => Ok(clone),
        Ok(_) => Err(not_cgroup(path)),
        Err(e @ (Errno::EPERM | Errno::ENOSYS)) => {
            log::debug!("cgroup {} is donated without a mount of its own: {}", path.display(), e.desc());
            open_dir(path)
        }
        Err(e) => Err(explain(path, e)),
    }
}

fn not_cgroup(path: &Path) -> Error {
    Error::invalid_argument(format!("{} is not on a cgroup file system", path.display()))
}

/// Opens a cgroup directory on the host and makes sure that it is one.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let fd = openat(AT_FDCWD, path, DIRECTORY, Mode::empty()).map_err(|e| explain(path, e))?;
    if !is_cgroup_fs(fd.as_fd())? {
        return Err(not_cgroup(path));
    }
    Ok(fd)
}

fn explain(path: &Path, errno: Errno) -> Error {
    match errno {
        Errno::ENOENT | Errno::ENODEV => {
            Error::no_such_entity(format!("cgroup {} does not exist any more", path.display()))
        }
        Errno::ENOTDIR | Errno::ELOOP => Error::invalid_argument(format!(
            "{} is not a directory, so no container can live there; give another linux.cgroupsPath",
            path.display()
        )),
        e => Error::from(e).context(format!("opening cgroup {}", path.display())),
    }
}

impl Manager {
    /// Opens the directories. `with_join` adds the files through which the sandbox's own processes join, `views` detached
    /// mounts to attach inside the container (see [`super::views`]).
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::NoSuchEntity`] when a directory is gone,
    /// [`airlock_wire::error::Kind::Permission`] when it belongs to another user.
    pub fn open(&self, with_join: bool, views: &[View]) -> Result<OpenedCgroup> {
        self.check()?;
        let mut opened = OpenedCgroup { v2: self.v2, ..OpenedCgroup::default() };
        let mut stack = Stack(Vec::with_capacity(self.hierarchies.len()));
        // The leaf's hierarchy comes last and thus on top: from there `..` must lead to the leaf's own parent.
        for h in self.hierarchies.iter().rev() {
            let bounded = stack.push(bounded(&h.path)?);
            let open = |name: &str, flags: OFlag| {
                openat(bounded, name, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
                    .map_err(|e| explain(&h.path.join(name), e))
            };
            let join = match (with_join, h.v2_files) {
                (false, _) => None,
                // Not `cgroup.procs`: in v1 that costs a grace period of several milliseconds.
                (true, false) => Some(open("tasks", OFlag::O_WRONLY)?),
                (true, true) => Some(open("cgroup.procs", OFlag::O_WRONLY)?),
            };
            let leaf = if h.leaf { Some(self.leaf()?) } else { None };
            let dir = open(leaf.as_deref().unwrap_or("."), DIRECTORY)?;
            if self.v2 {
                let limits = open(".", DIRECTORY)?;
                let at_leaf = h.path.join(leaf.as_deref().unwrap_or("."));
                for view in views {
                    let path = if *view == View::Leaf { &at_leaf } else { &h.path };
                    opened.mounts.push(clone_mount(path).map_err(|e| explain(path, e))?);
                }
                let name = CgroupFds::V2_LEAF.to_owned();
                opened.dirs.push(OpenedDir { name, dir, join: None });
                opened.dirs.push(OpenedDir { name: CgroupFds::V2_LIMITS.to_owned(), dir: limits, join });
                continue;
            }
            if !views.is_empty() {
                let path = leaf.map_or_else(|| h.path.clone(), |leaf| h.path.join(leaf));
                opened.mounts.push(clone_mount(&path).map_err(|e| explain(&path, e))?);
            }
            opened.dirs.push(OpenedDir { name: h.name.clone(), dir, join });
        }
        if !self.v2 {
            opened.dirs.reverse();
            opened.mounts.reverse();
        }
        opened.kept = stack.0;
        Ok(opened)
    }
}

/// Detached mounts, one on top of the other where the kernel can do that (Linux 6.15), so that giving them up costs
/// one grace period and not one each: together that would be milliseconds on a busy machine.
struct Stack(Vec<OwnedFd>);

impl Stack {
    fn push(&mut self, mount: OwnedFd) -> &OwnedFd {
        if let Some(below) = self.0.last() {
            // Older kernels refuse; then each goes on its own.
            let _ = mount::attach(mount.as_fd(), below.as_fd());
        }
        self.0.push(mount);
        &self.0[self.0.len() - 1]
    }
}
