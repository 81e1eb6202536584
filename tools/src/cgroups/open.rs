//! Opens a container's cgroups for donation to its sandbox.
#![forbid(unsafe_code)]

use super::{Manager, SANDBOX_LEAF};
use airlock_loader::cgroup::is_cgroup_fs;
use airlock_loader::sys::mount;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Descriptors of a container's cgroups, as [`airlock_wire::api::boot::CgroupFds`] wants them.
#[derive(Debug, Default)]
pub struct OpenedCgroup {
    /// Pure v2: one directory.
    pub v2: bool,
    /// The directories.
    pub dirs: Vec<OpenedDir>,
    /// Detached mounts of them, in the same order, if asked for.
    pub mounts: Vec<OwnedFd>,
}

/// A container's directory in one hierarchy.
#[derive(Debug)]
pub struct OpenedDir {
    /// As the hierarchy is called below `/sys/fs/cgroup`; empty in a pure v2 tree.
    pub name: String,
    /// The directory: the container's leaf where there is one, else its cgroup. It is reached through a detached
    /// mount of the container's cgroup: `..` does not lead out of that.
    pub dir: OwnedFd,
    /// Writing `0` there moves a process of the sandbox into the cgroup.
    pub join: Option<OwnedFd>,
}

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// Opens a cgroup directory on the host and makes sure that it is one.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let fd = openat(AT_FDCWD, path, DIRECTORY, Mode::empty()).map_err(|e| explain(path, e))?;
    if !is_cgroup_fs(fd.as_fd())? {
        return Err(Error::invalid_argument(format!("{} is not on a cgroup file system", path.display())));
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
    /// Opens the directories. `with_join` adds the files through which the sandbox's own processes join,
    /// `with_mounts` detached mounts to attach inside the container.
    ///
    /// # Errors
    /// [`Kind::NoSuchEntity`] when a directory is gone, [`Kind::Permission`] when it belongs to another user.
    pub fn open(&self, with_join: bool, with_mounts: bool) -> Result<OpenedCgroup> {
        self.check()?;
        let mut opened = OpenedCgroup { v2: self.v2, ..OpenedCgroup::default() };
        for h in &self.hierarchies {
            let own = open_dir(&h.path)?;
            // A descriptor of a directory in the host's own mount would let a sandbox climb to the host's root.
            let bounded = match mount::clone_tree(own.as_fd(), false) {
                Ok(clone) => clone,
                Err(e @ (Errno::EPERM | Errno::ENOSYS)) => {
                    log::debug!(
                        "cgroup {} is donated without a mount of its own: {}",
                        h.path.display(),
                        e.desc()
                    );
                    own.try_clone()?
                }
                Err(e) => return Err(Error::from(e).context(format!("open_tree {}", h.path.display()))),
            };
            let open = |name: &str, flags: OFlag| {
                openat(&bounded, name, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
                    .map_err(|e| explain(&h.path.join(name), e))
            };
            let inner = if h.leaf { self.leaf()? } else { ".".to_owned() };
            let dir = open(&inner, DIRECTORY)?;
            let join = match (with_join, h.v2_files) {
                (false, _) => None,
                // Not `cgroup.procs`: in v1 that costs a grace period of several milliseconds.
                (true, false) => Some(open("tasks", OFlag::O_WRONLY)?),
                (true, true) if self.v2 => {
                    Some(open(&format!("{SANDBOX_LEAF}/cgroup.procs"), OFlag::O_WRONLY)?)
                }
                (true, true) => Some(open("cgroup.procs", OFlag::O_WRONLY)?),
            };
            if with_mounts {
                let on_host = if h.leaf { open_dir(&h.path.join(&inner))? } else { own };
                let clone = mount::clone_tree(on_host.as_fd(), false);
                opened.mounts.push(clone.map_err(|e| {
                    Error::new(Kind::Permission, format!("open_tree {}: {}", h.path.display(), e.desc()))
                })?);
            }
            opened.dirs.push(OpenedDir { name: h.name.clone(), dir, join });
        }
        Ok(opened)
    }
}
