//! Where the tree's mounts are, by descriptor.
//!
//! A path like `/proc/sys` leads through the image's own directory `/proc`, which whoever can write to the image may
//! exchange at any time. The mount that was attached there is known by descriptor, though: what lies below it is
//! looked up from there, and no exchange of directories in the image changes what is found.

#![forbid(unsafe_code)]

use crate::init::paths;
use nix::Result;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

pub(super) struct Places {
    root: OwnedFd,
    /// Mount points that were reached without symbolic links, and the mounts there, each not hidden by another.
    mounts: Vec<(PathBuf, OwnedFd)>,
}

impl Places {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, mounts: Vec::new() }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Notes that `mount` is on `path` now; `plain` when no symbolic link is on the way there.
    pub(super) fn add(&mut self, path: &Path, mount: OwnedFd, plain: bool) {
        if plain {
            self.mounts.retain(|(place, _)| !place.starts_with(path));
            self.mounts.push((path.to_owned(), mount));
        } else {
            // It may hide any of them, except those that nothing is let through to by a link.
            self.mounts.retain(|(place, _)| ["/proc", "/sys"].iter().any(|p| place == Path::new(p)));
        }
    }

    /// The innermost known mount that `path` lies on, and the way from there.
    fn nearest<'p>(&self, path: &'p Path) -> (BorrowedFd<'_>, &'p Path) {
        let inside = self.mounts.iter().filter_map(|(place, fd)| Some((fd, path.strip_prefix(place).ok()?)));
        match inside.min_by_key(|(_, rest)| rest.components().count()) {
            Some((fd, rest)) if rest.as_os_str().is_empty() => (fd.as_fd(), Path::new(".")),
            Some((fd, rest)) => (fd.as_fd(), rest),
            None => (self.root.as_fd(), path),
        }
    }

    /// [`paths::open_in_root`], from the innermost known mount if there is no link on the way.
    pub(super) fn open(&self, path: &Path, flags: OFlag) -> Result<OwnedFd> {
        let (base, rest) = self.nearest(path);
        match paths::open_in_root_no_symlinks(base, rest, flags) {
            Err(Errno::ELOOP) => paths::open_in_root(self.root(), path, flags),
            result => result,
        }
    }

    /// As [`Places::open`], but what is mounted on top of a known mount, at the same place, is found too.
    pub(super) fn open_topmost(&self, path: &Path, flags: OFlag) -> Result<OwnedFd> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return self.open(path, flags);
        };
        let (base, rest) = self.nearest(parent);
        match paths::open_in_root_no_symlinks(base, &rest.join(name), flags) {
            Err(Errno::ELOOP) => paths::open_in_root(self.root(), path, flags),
            result => result,
        }
    }

    /// The mount point `path` (`O_PATH`), made as a directory or an empty file if it is missing; and whether it was
    /// reached without symbolic links. With `strict` links are refused (`ELOOP`).
    pub(super) fn make(&self, path: &Path, directory: bool, strict: bool) -> Result<(OwnedFd, bool)> {
        let (base, rest) = self.nearest(path);
        let plain = if directory {
            paths::mkdir_all_no_symlinks(base, rest, 0o755)
        } else {
            paths::create_file_no_symlinks(base, rest, 0o755)
        };
        match plain {
            Err(Errno::ELOOP) if strict => Err(Errno::ELOOP),
            Err(Errno::ELOOP) if directory => {
                Ok((paths::mkdir_all_in_root(self.root(), path, 0o755)?, false))
            }
            Err(Errno::ELOOP) => Ok((paths::create_file_in_root(self.root(), path, 0o755)?, false)),
            result => Ok((result?, true)),
        }
    }
}
