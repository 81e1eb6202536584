//! Finding and making files inside a container's root without ever leaving it.
//!
//! Everything below a root directory may be hostile: any component may be a symbolic link, and may change while it
//! is being looked at. So no function here returns a path: it returns a descriptor of what it found, and callers act
//! on that. The kernel resolves (openat2(2) with `RESOLVE_IN_ROOT`, magic links refused); where it cannot, a walk
//! by components with a descriptor a step does the same.

#![forbid(unsafe_code)]

pub mod procfs;
mod walk;

pub use procfs::ProcHandle;

use crate::sys::mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use walk::{Missing, walk};

type Result<T> = std::result::Result<T, Errno>;

/// Opens `path` below `root` as if `root` were `/`: `..` and absolute links stay inside, magic links (`/proc/*/fd/*`)
/// are refused. `flags` are those of open(2) without `O_CREAT`; close-on-exec is added.
///
/// # Errors
/// `ELOOP` for magic links and for `O_NOFOLLOW` without `O_PATH` on a link; else those of open(2).
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd> {
    resolve(root, path, flags, false)
}

/// [`open_in_root`] that refuses symbolic links in every component.
///
/// # Errors
/// `ELOOP` when any component is a symbolic link.
pub fn open_in_root_no_symlinks(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd> {
    resolve(root, path, flags, true)
}

fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlag, no_symlinks: bool) -> Result<OwnedFd> {
    let mut rules = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if no_symlinks {
        rules |= ResolveFlag::RESOLVE_NO_SYMLINKS;
    }
    match mount::openat2(root, path, flags, 0, rules) {
        // Not there, or somebody keeps renaming: the walk needs no still-standing tree.
        Err(Errno::ENOSYS | Errno::EAGAIN) => walk(root, path, flags, no_symlinks, Missing::Fail),
        result => result,
    }
}

/// Opens the directory `path` below `root` (`O_PATH`), making what is missing with mode `mode` as far as the umask
/// lets it. A dangling symbolic link gets the directory that it names, inside the root.
///
/// # Errors
/// `ENOTDIR` when a component is no directory; `EROFS`, `EACCES`, … of mkdir(2).
pub fn mkdir_all_in_root(root: BorrowedFd<'_>, path: &Path, mode: u32) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match open_in_root(root, path, flags) {
        Err(Errno::ENOENT) => walk(root, path, flags, false, Missing::Directory(mode)),
        result => result,
    }
}

/// [`mkdir_all_in_root`] that refuses symbolic links in every component.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` when a component is a symbolic link.
pub fn mkdir_all_no_symlinks(root: BorrowedFd<'_>, path: &Path, mode: u32) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    match open_in_root_no_symlinks(root, path, flags) {
        Err(Errno::ENOENT) => walk(root, path, flags, true, Missing::Directory(mode)),
        result => result,
    }
}

/// Opens `path` below `root` (`O_PATH`); if nothing is there, an empty file with mode `mode` is made, and the
/// directories above it with mode 0755. What is there may be of any type.
///
/// # Errors
/// Those of open(2) and mkdir(2).
pub fn create_file_in_root(root: BorrowedFd<'_>, path: &Path, mode: u32) -> Result<OwnedFd> {
    match open_in_root(root, path, OFlag::O_PATH) {
        Err(Errno::ENOENT) => walk(root, path, OFlag::O_PATH, false, Missing::File(mode)),
        result => result,
    }
}

/// [`create_file_in_root`] that refuses symbolic links in every component.
///
/// # Errors
/// `ELOOP` when a component is a symbolic link.
pub fn create_file_no_symlinks(root: BorrowedFd<'_>, path: &Path, mode: u32) -> Result<OwnedFd> {
    match open_in_root_no_symlinks(root, path, OFlag::O_PATH) {
        Err(Errno::ENOENT) => walk(root, path, OFlag::O_PATH, true, Missing::File(mode)),
        result => result,
    }
}

/// The directory that holds `path`, opened in-root and made if missing, and the last component, which is not looked
/// at. For making nodes with the `*at` calls that never follow a link in the last component.
///
/// # Errors
/// `EINVAL` when `path` has no last component; else as [`mkdir_all_in_root`].
pub fn parent_in_root<'p>(root: BorrowedFd<'_>, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
    let name = path.file_name().ok_or(Errno::EINVAL)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok((mkdir_all_in_root(root, parent, 0o755)?, name))
}

/// What kind of file `fd` is (`S_IFDIR`, …).
///
/// # Errors
/// Those of fstat(2).
pub fn file_type(fd: BorrowedFd<'_>) -> Result<SFlag> {
    Ok(type_of(&fstat(fd)?))
}

/// The type bits of a file status.
pub fn type_of(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
}

/// True when `fd` lies on procfs.
///
/// # Errors
/// Those of fstatfs(2).
pub fn is_procfs(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(nix::sys::statfs::fstatfs(fd)?.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// Opens one component below `dir` without following it.
fn open_component(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

fn read_link(link: BorrowedFd<'_>) -> Result<OsString> {
    nix::fcntl::readlinkat(link, "")
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
