//! Reading a tree.
#![forbid(unsafe_code)]

use super::{Entry, EntryKind, MAX_DEPTH, PIECE, write_entry};
use crate::checkpoint::state::Bytes;
use crate::init::paths;
use crate::sys::xattr;
use airlock_wire::error::{Error, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use nix::unistd::{Whence, lseek};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// How a tree is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The tree is the upper layer of an overlay, and this is what the two layers look like together: it tells what
    /// is in a directory.
    pub merged: Option<BorrowedFd<'a>>,
    /// Paths that are not read.
    pub skip: &'a [&'a str],
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved {
    /// Entries.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Writes the tree below the directory or file `root` to `to`. Sockets are left out, and what lies on other filesystems.
///
/// # Errors
/// With the path that cannot be read, and why.
pub fn save(root: BorrowedFd<'_>, options: Options<'_>, to: &mut dyn Write) -> Result<Saved> {
    let status = fstat(root)?;
    let mut saver =
        Saver { to, options, device: status.st_dev, links: HashMap::new(), saved: Saved::default() };
    let path = Vec::new();
    if paths::type_of(&status) == SFlag::S_IFDIR {
        // O_PATH is enough for the caller, but not for reading.
        let dir = openat(root, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let merged = options.merged.map(|m| m.try_clone_to_owned()).transpose()?;
        saver.directory(&dir, merged, &path, &status, MAX_DEPTH)?;
    } else {
        saver.file(&File::from(root.try_clone_to_owned()?), &path, &status)?;
    }
    let saved = saver.saved;
    to.write_all(&0u32.to_le_bytes())?;
    Ok(saved)
}

struct Saver<'a> {
    to: &'a mut dyn Write,
    options: Options<'a>,
    device: u64,
    /// First path of files with several names, by inode.
    links: HashMap<u64, Vec<u8>>,
    saved: Saved,
}

impl Saver<'_> {
    fn directory(
        &mut self,
        dir: &OwnedFd,
        merged: Option<OwnedFd>,
        path: &[u8],
        status: &FileStat,
        depth: u32,
    ) -> Result<()> {
        if depth == 0 {
            return Err(Error::from(Errno::ENAMETOOLONG).context(show(path)));
        }
        let own = names(dir.as_fd()).map_err(|e| Error::from(e).context(show(path)))?;
        let all = match &merged {
            Some(merged) => names(merged.as_fd()).map_err(|e| Error::from(e).context(show(path)))?,
            None => own.clone(),
        };
        let kind = EntryKind::Directory { names: all.iter().map(|n| Bytes::from(n.as_slice())).collect() };
        self.entry(path, kind, status, xattrs(dir.as_fd(), self.options.merged.is_some()))?;
        for name in &own {
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend(name);
            if self.options.skip.iter().any(|s| s.as_bytes() == below) {
                continue;
            }
            self.below(dir, merged.as_ref(), name, &below, depth).map_err(|e| {
                match e.message.starts_with('/') {
                    true => e,
                    false => e.context(show(&below)),
                }
            })?;
        }
        Ok(())
    }

    fn below(
        &mut self,
        dir: &OwnedFd,
        merged: Option<&OwnedFd>,
        name: &[u8],
        path: &[u8],
        depth: u32,
    ) -> Result<()> {
        let name = OsStr::from_bytes(name);
        let status = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if status.st_dev != self.device {
            return Ok(());
        }
        let open = |dir: &OwnedFd, flags: OFlag| {
            let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
            openat(dir, name, flags, Mode::empty())
        };
        let number = (major(status.st_rdev), minor(status.st_rdev));
        let kind = match paths::type_of(&status) {
            SFlag::S_IFDIR => {
                let merged = merged.map(|m| open(m, OFlag::O_DIRECTORY)).transpose()?;
                let dir = open(dir, OFlag::O_DIRECTORY)?;
                return self.directory(&dir, merged, path, &status, depth - 1);
            }
            SFlag::S_IFSOCK => return Ok(()),
            _ if status.st_nlink > 1 && self.links.contains_key(&status.st_ino) => {
                let to = self.links.get(&status.st_ino).cloned().unwrap_or_default();
                EntryKind::Link { to: to.into() }
            }
            SFlag::S_IFREG => {
                self.remember(&status, path);
                let file = open(dir, OFlag::O_NOATIME).or_else(|_| open(dir, OFlag::empty()))?;
                return self.file(&File::from(file), path, &status);
            }
            SFlag::S_IFLNK => EntryKind::Symlink { to: readlinkat(dir, name)?.as_bytes().into() },
            // What an upper layer says of a file that is gone.
            SFlag::S_IFCHR if self.options.merged.is_some() && number == (0, 0) => return Ok(()),
            SFlag::S_IFCHR => EntryKind::Char { number },
            SFlag::S_IFBLK => EntryKind::Block { number },
            _ => EntryKind::Fifo,
        };
        self.remember(&status, path);
        self.entry(path, kind, &status, Vec::new())
    }

    fn remember(&mut self, status: &FileStat, path: &[u8]) {
        if status.st_nlink > 1 {
            self.links.entry(status.st_ino).or_insert_with(|| path.to_vec());
        }
    }

    fn file(&mut self, file: &File, path: &[u8], status: &FileStat) -> Result<()> {
        let size = status.st_size.max(0) as u64;
        let extents = extents(file, size)?;
        let kind = EntryKind::File { size, extents: extents.clone() };
        self.entry(path, kind, status, xattrs(file.as_fd(), self.options.merged.is_some()))?;
        let mut buffer = vec![0; PIECE.min(extents.iter().map(|(_, len)| *len as usize).max().unwrap_or(0))];
        for (mut offset, mut len) in extents {
            while len > 0 {
                let part = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
                file.read_exact_at(&mut buffer[..part], offset)?;
                self.to.write_all(&buffer[..part])?;
                offset += part as u64;
                len -= part as u64;
                self.saved.bytes += part as u64;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        status: &FileStat,
        xattrs: Vec<(Bytes, Bytes)>,
    ) -> Result<()> {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        let entry = Entry {
            path: path.into(),
            kind,
            mode: status.st_mode & 0o7777,
            owner: (status.st_uid, status.st_gid),
            times: (
                nanos(status.st_atime, status.st_atime_nsec),
                nanos(status.st_mtime, status.st_mtime_nsec),
            ),
            xattrs,
        };
        self.saved.files += 1;
        write_entry(self.to, &entry)
    }
}

fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// What is in a directory, sorted.
pub(crate) fn names(dir: BorrowedFd<'_>) -> nix::Result<BTreeSet<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::from_fd(openat(dir, ".", flags, Mode::empty())?)?;
    let mut all = BTreeSet::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            all.insert(name);
        }
    }
    Ok(all)
}

/// Where a file has content; what is zero all over may be told as well.
pub(crate) fn extents(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut all = Vec::new();
    let mut at = 0i64;
    while (at as u64) < size {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => {
                all.push((0, size));
                break;
            }
            Err(e) => return Err(e.into()),
        };
        let end = lseek(file, start, Whence::SeekHole).unwrap_or(size as i64).min(size as i64);
        if end <= start {
            break;
        }
        all.push((start as u64, (end - start) as u64));
        at = end;
    }
    Ok(all)
}

/// Attributes that can be set again. Those by which an overlay runs its layers mean nothing elsewhere.
pub(crate) fn xattrs(fd: BorrowedFd<'_>, overlay: bool) -> Vec<(Bytes, Bytes)> {
    let mut all = Vec::new();
    for name in xattr::list(fd).unwrap_or_default() {
        let bytes = name.to_bytes();
        let own = bytes.starts_with(b"trusted.overlay.") || bytes.starts_with(b"user.overlay.");
        if (overlay && own) || !super::apply::is_settable(bytes) {
            continue;
        }
        if let Ok(value) = xattr::get(fd, &name) {
            all.push((bytes.into(), value.into()));
        }
    }
    all
}
