//! Mounts of a running container.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker, exactly};
use crate::checkpoint::inside;
use crate::init::paths;
use crate::sys::mount::{self, FsError, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::unistd::fchdir;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What is mounted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Filesystem {
    /// An erofs image, whose descriptor comes. It is read-only, and has neither devices nor set-id programs.
    Erofs,
    /// A detached mount, whose descriptor comes.
    Detached,
    /// A new tmpfs, with options as fsconfig(2) takes them.
    Tmpfs(Vec<(String, Option<String>)>),
}

/// Mounts something in a container. Descriptors: a pidfd of a process in it; then what `filesystem` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// What.
    pub filesystem: Filesystem,
    /// Where, from the container's root.
    pub path: String,
    /// `MOUNT_ATTR_*` to set on the mount.
    pub attrs: u64,
    /// Make the directory if it is missing; the one above it must be there.
    pub make: bool,
}

/// Unmounts in a container. Descriptor: a pidfd of a process in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unmount {
    /// Where, from the container's root.
    pub path: String,
    /// `MNT_*` and `UMOUNT_NOFOLLOW` of umount2(2).
    pub flags: u32,
}

impl Task for Mount {
    type Reply = ();

    fn run(self, worker: &Worker, mut fds: Vec<OwnedFd>) -> Result<Done<()>> {
        let given = if fds.len() > 1 { fds.pop() } else { None };
        let [container] = exactly(fds)?;
        let missing = || Error::invalid_argument("no descriptor came of what is to be mounted");
        let mounted = match &self.filesystem {
            Filesystem::Erofs => erofs(worker, given.ok_or_else(missing)?.as_fd())?,
            Filesystem::Detached => given.ok_or_else(missing)?,
            Filesystem::Tmpfs(options) => tmpfs(options)?,
        };
        if self.attrs != 0 {
            let attr = MountAttr { set: self.attrs, ..MountAttr::default() };
            mount::mount_setattr(mounted.as_fd(), &attr, true).map_err(|e| match e {
                Errno::EINVAL => Error::invalid_argument("the descriptor is no detached mount"),
                e => Error::from(e).context("changing mount attributes"),
            })?;
        }
        let is_directory = paths::file_type(mounted.as_fd())? == SFlag::S_IFDIR;
        inside::run(container.as_fd(), libc::CLONE_NEWNS, || {
            let root = root()?;
            let at = self.place(root.as_fd(), is_directory)?;
            if (paths::file_type(at.as_fd())? == SFlag::S_IFDIR) != is_directory {
                return Err(Error::invalid_argument(
                    "a directory and a file cannot be mounted on one another",
                ));
            }
            mount::attach(mounted.as_fd(), at.as_fd()).map_err(|e| match e {
                Errno::EINVAL => Error::invalid_argument("the descriptor is no detached mount"),
                e => e.into(),
            })
        })?;
        Ok(Done::with(()))
    }
}

impl Mount {
    /// Opens the place to mount on. What is there may change: the mount goes where the descriptor is.
    fn place(&self, root: BorrowedFd<'_>, directory: bool) -> Result<OwnedFd> {
        let path = Path::new(&self.path);
        if self.make
            && let (Some(parent), Some(name)) = (path.parent(), path.file_name())
        {
            let shown = parent.display();
            let above = paths::open_in_root(root, parent, OFlag::O_PATH)
                .map_err(|e| Error::from(e).context(format!("parent directory {shown} does not exist")))?;
            if paths::file_type(above.as_fd())? != SFlag::S_IFDIR {
                return Err(Error::invalid_argument(format!("parent {shown} is not a directory")));
            }
            if directory {
                match mkdirat(&above, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(Error::from(e).context(format!("making {}", path.display()))),
                }
            }
        }
        Ok(paths::open_in_root(root, path, OFlag::O_PATH)?)
    }
}

impl Task for Unmount {
    type Reply = ();

    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        let [container] = exactly(fds)?;
        let flags = MntFlags::from_bits(self.flags as i32).ok_or(Errno::EINVAL)?;
        inside::run(container.as_fd(), libc::CLONE_NEWNS, || {
            let found = paths::open_in_root(root()?.as_fd(), Path::new(&self.path), OFlag::O_PATH)?;
            if !mount::mount_id(found.as_fd())?.1 {
                return Err(Error::invalid_argument("nothing is mounted there"));
            }
            // Only a path can be unmounted, and an open descriptor would keep the mount busy. If the way is changed now,
            // another mount of the same container goes: its programs could have unmounted that as well.
            let link = format!("thread-self/fd/{}", found.as_raw_fd());
            let real = readlinkat(worker.procfs.root(), link.as_str())?;
            drop(found);
            Ok(umount2(real.as_os_str(), flags | MntFlags::UMOUNT_NOFOLLOW)?)
        })?;
        Ok(Done::with(()))
    }
}

fn root() -> nix::Result<OwnedFd> {
    open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Mounts an image that is given as a descriptor: the kernel wants a path, and procfs has one.
pub(super) fn erofs(worker: &Worker, image: BorrowedFd<'_>) -> Result<OwnedFd> {
    if paths::file_type(image)? != SFlag::S_IFREG {
        return Err(Error::invalid_argument("the image is no regular file"));
    }
    fchdir(worker.procfs.root())?;
    let attempt = || -> std::result::Result<OwnedFd, FsError> {
        let context = mount::fsopen("erofs")?;
        mount::fsconfig_string(context.as_fd(), "source", &format!("self/fd/{}", image.as_raw_fd()))?;
        mount::fsconfig_flag(context.as_fd(), "ro")?;
        mount::fsconfig_create(context.as_fd())?;
        mount::fsmount(context.as_fd(), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID)
    };
    attempt().map_err(|e| match e.errno {
        Errno::ENODEV => Error::unsupported("this kernel has no erofs"),
        Errno::ENOTBLK => Error::unsupported(
            "this kernel does not read an erofs image from a file, as Linux 6.12 does; airlock mount uses a loop device",
        ),
        Errno::EPERM => Error::new(Kind::Permission, "an erofs image cannot be mounted in a user namespace"),
        _ => Error::from(e).context("the erofs image cannot be mounted"),
    })
}

fn tmpfs(options: &[(String, Option<String>)]) -> Result<OwnedFd> {
    let context = mount::fsopen("tmpfs")?;
    let context = context.as_fd();
    for (key, value) in options {
        match value {
            Some(value) => mount::fsconfig_string(context, key, value)?,
            None => mount::fsconfig_flag(context, key)?,
        }
    }
    mount::fsconfig_create(context)?;
    Ok(mount::fsmount(context, 0)?)
}
