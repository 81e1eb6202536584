//! What tells whether a tree that stays outside the image is still the same.
#![forbid(unsafe_code)]

use super::MAX_DEPTH;
use super::save::names;
use crate::checkpoint::image::Digest;
use crate::init::paths;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// A digest of the names, types, modes, owners, sizes and times of modification of everything below `root`; contents are
/// not read. The times of directories do not count, because making a mount touches some.
///
/// # Errors
/// When the tree cannot be read.
pub fn digest(root: BorrowedFd<'_>) -> Result<String> {
    let mut text = Vec::new();
    describe(&mut text, b"", &fstat(root)?);
    if paths::file_type(root)? == SFlag::S_IFDIR {
        walk(root, &mut text, MAX_DEPTH)?;
    }
    Ok(Digest::of(&text).to_string())
}

fn walk(dir: BorrowedFd<'_>, text: &mut Vec<u8>, depth: u32) -> Result<()> {
    if depth == 0 {
        return Err(Error::from(Errno::ENAMETOOLONG));
    }
    for name in names(dir)? {
        let path = OsStr::from_bytes(&name);
        let status = fstatat(dir, path, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        describe(text, &name, &status);
        match paths::type_of(&status) {
            SFlag::S_IFDIR => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                walk(openat(dir, path, flags, Mode::empty())?.as_fd(), text, depth - 1)?;
            }
            SFlag::S_IFLNK => text.extend(readlinkat(dir, path)?.as_bytes()),
            _ => {}
        }
        text.push(0);
    }
    Ok(())
}

fn describe(text: &mut Vec<u8>, name: &[u8], status: &FileStat) {
    let is_directory = paths::type_of(status) == SFlag::S_IFDIR;
    let (size, seconds, nanos) = match is_directory {
        true => (0, 0, 0),
        false => (status.st_size, status.st_mtime, status.st_mtime_nsec),
    };
    text.extend(name);
    text.push(0);
    for number in [
        u64::from(status.st_mode),
        status.st_uid.into(),
        status.st_gid.into(),
        status.st_rdev,
        size as u64,
        seconds as u64,
        nanos as u64,
    ] {
        text.extend(number.to_le_bytes());
    }
}
