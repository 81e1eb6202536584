//! A procfs that nothing in a container can have tampered with.
//!
//! Writes that security rests on (LSM labels, sysctls, OOM scores, time offsets) go to files below `/proc`. An image
//! or a racing neighbour can make `/proc` a symbolic link, an ordinary directory or a mount of something else, so
//! that the write succeeds and does nothing, or hits another file. [`ProcHandle`] therefore holds a mount that was
//! made by this process and is checked to be procfs, and every file is opened below it without crossing any mount
//! or link.

#![forbid(unsafe_code)]

use super::{is_procfs, open_component};
use crate::sys::mount::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Files of procfs are short; what is longer is not what the caller expects.
const MAX_READ: u64 = 1 << 20;
/// The root directory of every procfs instance has this inode number.
const ROOT_INODE: u64 = 1;

/// A verified procfs for the caller's pid namespace.
#[derive(Debug)]
pub struct ProcHandle {
    root: OwnedFd,
}

impl ProcHandle {
    /// Makes a procfs instance of its own, mounted nowhere, for the pid namespace of the calling process. It is gone
    /// when the handle is dropped.
    ///
    /// # Errors
    /// [`Kind::Permission`] in a user namespace in whose mount namespace no procfs is fully visible.
    pub fn open() -> Result<Self> {
        let make = || {
            let context = mount::fsopen("proc")?;
            mount::fsconfig_create(context.as_fd())?;
            mount::fsmount(context.as_fd(), MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID)
        };
        let root = make().map_err(|e| Error::from(e).context("private procfs"))?;
        Self::from_mount(root)
    }

    /// Uses `root`, the root directory of a procfs mount that the caller made itself.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] when `root` is no procfs, or not its root directory.
    pub fn from_mount(root: OwnedFd) -> Result<Self> {
        if !is_procfs(root.as_fd())? || fstat(&root)?.st_ino != ROOT_INODE {
            return Err(Error::invalid_argument("what should be a private procfs is something else"));
        }
        Ok(Self { root })
    }

    /// Opens `path`, which is relative to the root of procfs; a leading `self/` or `thread-self/` means the caller.
    /// `flags` as for open(2). Neither links nor mounts on the way are crossed.
    ///
    /// # Errors
    /// [`Kind::NoSuchEntity`]; [`Kind::Permission`]; [`Kind::InvalidArgument`] for `..` and empty paths.
    pub fn open_file(&self, path: &str, flags: OFlag) -> Result<OwnedFd> {
        self.open_errno(path, flags).map_err(|e| Error::from(e).context(format!("/proc/{path}")))
    }

    /// Writes `data` to `path` in one write(2), as procfs wants it.
    ///
    /// # Errors
    /// As [`ProcHandle::open_file`], and what the file's own handler answers.
    pub fn write(&self, path: &str, data: &[u8]) -> Result<()> {
        let file = self.open_file(path, OFlag::O_WRONLY | OFlag::O_NOCTTY)?;
        match nix::unistd::write(&file, data) {
            Ok(n) if n == data.len() => Ok(()),
            Ok(n) => Err(Error::failure(format!("/proc/{path} took {n} of {} bytes", data.len()))),
            Err(e) => {
                let kind = if e == Errno::EINVAL { Kind::InvalidArgument } else { Error::from(e).kind };
                Err(Error::new(kind, format!("write to /proc/{path}: {}", std::io::Error::from(e))))
            }
        }
    }

    /// Reads all of `path`, at most 1 MiB.
    ///
    /// # Errors
    /// As [`ProcHandle::open_file`].
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let file = File::from(self.open_file(path, OFlag::O_RDONLY | OFlag::O_NOCTTY)?);
        let mut data = Vec::new();
        file.take(MAX_READ)
            .read_to_end(&mut data)
            .map_err(|e| Error::from(e).context(format!("read /proc/{path}")))?;
        Ok(data)
    }

    fn open_errno(&self, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let absolute;
        let path = match path.split_once('/') {
            Some((who @ ("self" | "thread-self"), rest)) => {
                let link = readlinkat(&self.root, who)?;
                absolute = format!("{}/{rest}", link.to_str().ok_or(Errno::EINVAL)?);
                absolute.as_str()
            }
            _ => path,
        };
        if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(Errno::EINVAL);
        }
        let rules = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let file = match mount::openat2(self.root.as_fd(), path, flags | OFlag::O_NOFOLLOW, 0, rules) {
            Err(Errno::ENOSYS) => self.open_by_components(path, flags)?,
            result => result?,
        };
        // The kernel has checked this already; a file that lies elsewhere must not get a single byte.
        if mount::mount_id(file.as_fd())?.0 != mount::mount_id(self.root.as_fd())?.0
            || !is_procfs(file.as_fd())?
        {
            return Err(Errno::EXDEV);
        }
        Ok(file)
    }

    /// What [`Self::open_file`] does where openat2(2) is missing; the caller checks what came out.
    pub(super) fn open_by_components(&self, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let (mut here, mut rest) = (None::<OwnedFd>, path);
        while let Some((name, after)) = rest.split_once('/') {
            if !name.is_empty() {
                here = Some(open_component(here.as_ref().unwrap_or(&self.root).as_fd(), OsStr::new(name))?);
            }
            rest = after;
        }
        let dir = here.as_ref().unwrap_or(&self.root);
        openat(dir, rest, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
    }
}
