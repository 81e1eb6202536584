//! `tmpcopyup`: copies a directory of the image into a new tmpfs.

#![forbid(unsafe_code)]

use crate::init::paths;
use crate::sys::xattr;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{fchownat, symlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Bounds recursion and open descriptors.
const MAX_DEPTH: u32 = 128;

/// Copies everything below `from` into `to`: contents, types, modes, owners, times and extended attributes. Sockets
/// are left out. `to` itself gets owner and attributes of `from`, but keeps its mode.
pub(super) fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let status = fstat(from)?;
    fchownat(to, ".", Some(status.st_uid.into()), Some(status.st_gid.into()), AtFlags::empty())?;
    copy_entries(from, to, MAX_DEPTH)?;
    set_times(to, OsStr::new("."), &status)
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<()> {
    if depth == 0 {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::from_fd(openat(from, ".", flags, Mode::empty())?)?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            copy_entry(from, to, name, depth)
                .map_err(|e| Error::new(e.kind(), format!("{}: {e}", name.display())))?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr, depth: u32) -> Result<()> {
    let status = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_bits_truncate(status.st_mode);
    let open = |dir: BorrowedFd<'_>, flags: OFlag, mode: Mode| -> Result<OwnedFd> {
        Ok(openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, mode)?)
    };
    match paths::type_of(&status) {
        SFlag::S_IFDIR => {
            let source = open(from, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
            mkdirat(to, name, Mode::S_IRWXU)?;
            let target = open(to, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
            copy_entries(source.as_fd(), target.as_fd(), depth - 1)?;
            finish(&source, &target, to, name, &status)?;
        }
        SFlag::S_IFREG => {
            let source = open(from, OFlag::O_RDONLY, Mode::empty())?;
            let target = open(to, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, Mode::S_IRUSR)?;
            let (mut source, mut target) = (File::from(source), File::from(target));
            std::io::copy(&mut source, &mut target)?;
            finish(&source, &target, to, name, &status)?;
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(from, name)?;
            symlinkat(target.as_os_str(), to, name)?;
            set_owner(to, name, &status)?;
        }
        SFlag::S_IFSOCK => return Ok(()),
        kind => {
            mknodat(to, name, kind, mode, status.st_rdev)?;
            set_owner(to, name, &status)?;
        }
    }
    set_times(to, name, &status)
}

/// Owner first: changing it takes set-id bits and capabilities away.
fn finish(
    source: impl AsFd,
    target: impl AsFd,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    status: &FileStat,
) -> Result<()> {
    set_owner(dir, name, status)?;
    fchmod(&target, Mode::from_bits_truncate(status.st_mode))?;
    for attribute in xattr::list(source.as_fd())? {
        let value = xattr::get(source.as_fd(), &attribute)?;
        match xattr::set(target.as_fd(), &attribute, &value) {
            // tmpfs keeps fewer kinds of attributes than most, and not everybody may set all of them.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::EPERM) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn set_owner(dir: BorrowedFd<'_>, name: &OsStr, status: &FileStat) -> Result<()> {
    let (uid, gid) = (status.st_uid.into(), status.st_gid.into());
    Ok(fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

fn set_times(dir: BorrowedFd<'_>, name: &OsStr, status: &FileStat) -> Result<()> {
    let access = TimeSpec::new(status.st_atime, status.st_atime_nsec);
    let modification = TimeSpec::new(status.st_mtime, status.st_mtime_nsec);
    Ok(utimensat(dir, name, &access, &modification, UtimensatFlags::NoFollowSymlink)?)
}
