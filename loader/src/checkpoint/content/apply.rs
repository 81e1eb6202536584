//! Making a tree again, in a place that may have something already.
//!
//! The stream may be forged. Paths are resolved by the kernel, from the root of the tree, never through links and never
//! into another mount; device nodes are those that the container has by its configuration.
#![forbid(unsafe_code)]

use super::save::names;
use super::{Entry, EntryKind, MAX_DEPTH, PIECE, damaged, read_entry};
use crate::checkpoint::state::Bytes;
use crate::init::paths;
use crate::sys::{mount, xattr};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, ResolveFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fstatat, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, fchownat, ftruncate, linkat, symlinkat, unlinkat};
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries made or found as they have to be.
    pub files: u64,
    /// What could not be made the same, in words.
    pub warnings: Vec<String>,
}

/// Makes what is below `root` (a directory, or a regular file that the stream has as its only entry) what the stream
/// says. `device` tells whether a node (character device, major, minor) may be made. `skip` are paths that are left as
/// they are.
///
/// # Errors
/// [`airlock_wire::error::Kind::InvalidArgument`] for a damaged or forged stream; else the path and the reason.
pub fn apply(
    root: BorrowedFd<'_>,
    from: &mut dyn Read,
    device: &dyn Fn(bool, u64, u64) -> bool,
    skip: &[&str],
) -> Result<Applied> {
    let mut applier = Applier { root, device, skip, directories: Vec::new(), applied: Applied::default() };
    while let Some(entry) = read_entry(from)? {
        applier.entry(&entry, from).map_err(|e| e.context(entry.shown()))?;
        applier.applied.files += 1;
    }
    applier.finish()?;
    Ok(applier.applied)
}

struct Applier<'a> {
    root: BorrowedFd<'a>,
    device: &'a dyn Fn(bool, u64, u64) -> bool,
    skip: &'a [&'a str],
    /// Directories, whose times change while something is made in them, and whose modes may forbid it.
    directories: Vec<Entry>,
    applied: Applied,
}

/// A place in the tree: the directory and the last component.
struct Place {
    dir: OwnedFd,
    name: Vec<u8>,
}

impl Place {
    fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    fn status(&self) -> nix::Result<Option<FileStat>> {
        match fstatat(&self.dir, self.name(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn open(&self, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        openat(&self.dir, self.name(), flags, mode)
    }

    fn remove(&self) -> nix::Result<()> {
        remove(self.dir.as_fd(), self.name(), MAX_DEPTH)
    }
}

impl Applier<'_> {
    fn entry(&mut self, entry: &Entry, from: &mut dyn Read) -> Result<()> {
        check_path(&entry.path)?;
        if entry.path.is_empty() {
            return self.root_entry(entry, from);
        }
        if self.skip.iter().any(|s| s.as_bytes() == &entry.path[..]) {
            return Err(damaged("it has a file that is never saved"));
        }
        let place = self.place(&entry.path)?;
        match &entry.kind {
            EntryKind::Directory { names } => {
                if self.in_the_way(&place, SFlag::S_IFDIR, |_| true)? {
                    mkdirat(&place.dir, place.name(), Mode::S_IRWXU)?;
                }
                // What is mounted on it is not part of this tree.
                let dir = resolve(self.root, &entry.path, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
                match dir {
                    Ok(dir) => self.keep_only(dir.as_fd(), &entry.path, names)?,
                    Err(Errno::EXDEV) => return Ok(()),
                    Err(e) => return Err(e.into()),
                }
                self.directories.push(entry.clone());
                return Ok(());
            }
            EntryKind::File { size, extents } => {
                self.in_the_way(&place, SFlag::S_IFREG, |status| status.st_nlink == 1)?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
                let file = File::from(place.open(flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
                fill(&file, *size, extents, from)?;
                self.set_owner(&place, entry)?;
                self.set_mode(file.as_fd(), entry)?;
                set_times(place.dir.as_fd(), place.name(), entry.times)?;
                return Ok(());
            }
            EntryKind::Link { to } => {
                check_path(to)?;
                let other = self.place(to)?;
                if place.status()?.is_some() {
                    place.remove()?;
                }
                linkat(&other.dir, other.name(), &place.dir, place.name(), LinkatFlags::empty())?;
                return Ok(());
            }
            EntryKind::Symlink { to } => {
                let same = |_: &FileStat| {
                    readlinkat(&place.dir, place.name()).is_ok_and(|t| t.as_bytes() == &to[..])
                };
                if self.in_the_way(&place, SFlag::S_IFLNK, same)? {
                    symlinkat(OsStr::from_bytes(to), &place.dir, place.name())?;
                }
            }
            EntryKind::Fifo => {
                if self.in_the_way(&place, SFlag::S_IFIFO, |_| true)? {
                    mknodat(&place.dir, place.name(), SFlag::S_IFIFO, mode_of(entry), 0)?;
                }
            }
            EntryKind::Char { number } => self.node(&place, entry, SFlag::S_IFCHR, *number)?,
            EntryKind::Block { number } => self.node(&place, entry, SFlag::S_IFBLK, *number)?,
        }
        if place.status()?.is_some() {
            self.set_owner(&place, entry)?;
            if !matches!(entry.kind, EntryKind::Symlink { .. }) {
                // It is none, and nobody is there who could exchange it: the programs do not run yet.
                let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
                let set = nix::sys::stat::fchmodat(&place.dir, place.name(), mode_of(entry), flags);
                self.minor(entry, set, "its permissions")?;
            }
            set_times(place.dir.as_fd(), place.name(), entry.times)?;
        }
        Ok(())
    }

    /// The root is there; only a file's content and what stands in the inode can be its business.
    fn root_entry(&mut self, entry: &Entry, from: &mut dyn Read) -> Result<()> {
        let is_directory = paths::file_type(self.root)? == SFlag::S_IFDIR;
        match (&entry.kind, is_directory) {
            (EntryKind::Directory { names }, true) => {
                self.keep_only(self.root, &[], names)?;
                self.directories.push(entry.clone());
                Ok(())
            }
            (EntryKind::File { size, extents }, false) => {
                let file = File::from(self.root.try_clone_to_owned()?);
                fill(&file, *size, extents, from)?;
                self.set_mode(file.as_fd(), entry)
            }
            _ => Err(Error::invalid_argument("a file is a directory now, or the other way round")),
        }
    }

    fn node(&mut self, place: &Place, entry: &Entry, kind: SFlag, (major, minor): (u64, u64)) -> Result<()> {
        let number = makedev(major, minor);
        if !self.in_the_way(place, kind, |status| status.st_rdev == number)? {
            return Ok(());
        }
        if !(self.device)(kind == SFlag::S_IFCHR, major, minor) {
            self.applied.warnings.push(format!(
                "{}: device {major}:{minor} is none of the container's devices, and is not made again",
                entry.shown()
            ));
            return Ok(());
        }
        let made = mknodat(&place.dir, place.name(), kind, mode_of(entry), number);
        self.minor(entry, made, "the device node")
    }

    /// True when something has to be made at `place`: what is of another kind, or not `good`, has been removed.
    fn in_the_way(&self, place: &Place, kind: SFlag, good: impl Fn(&FileStat) -> bool) -> nix::Result<bool> {
        match place.status()? {
            None => Ok(true),
            Some(status) if paths::type_of(&status) == kind && good(&status) => Ok(false),
            Some(_) => {
                place.remove()?;
                Ok(true)
            }
        }
    }

    /// Removes what a directory has and should not have.
    fn keep_only(&mut self, dir: BorrowedFd<'_>, path: &[u8], wanted: &[Bytes]) -> Result<()> {
        let wanted: BTreeSet<&[u8]> = wanted.iter().map(|n| &n[..]).collect();
        for name in names(dir)? {
            let mut full = path.to_vec();
            if !full.is_empty() {
                full.push(b'/');
            }
            full.extend(&name);
            if wanted.contains(name.as_slice()) || self.skip.iter().any(|s| s.as_bytes() == full) {
                continue;
            }
            match remove(dir, OsStr::from_bytes(&name), MAX_DEPTH) {
                // Something is mounted there.
                Ok(()) | Err(Errno::EBUSY | Errno::EXDEV) => {}
                Err(e) => {
                    let text = format!("removing {}", String::from_utf8_lossy(&full));
                    return Err(Error::from(e).context(text));
                }
            }
        }
        Ok(())
    }

    fn place(&self, path: &[u8]) -> Result<Place> {
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Ok(Place { dir: resolve(self.root, parent, flags)?, name: name.to_vec() })
    }

    fn set_owner(&mut self, place: &Place, entry: &Entry) -> Result<()> {
        let (uid, gid) = entry.owner;
        let (uid, gid) = (Some(uid.into()), Some(gid.into()));
        let set = fchownat(&place.dir, place.name(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW);
        self.minor(entry, set, "its owner")
    }

    /// Mode and attributes of an open file, after its owner, because a change of that takes privileges away.
    fn set_mode(&mut self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        nix::sys::stat::fchmod(fd, mode_of(entry))?;
        for (name, value) in &entry.xattrs {
            let name = CString::new(&name[..]).ok().filter(|n| is_settable(n.to_bytes()));
            let name = name.ok_or_else(|| damaged("an extended attribute that is never saved"))?;
            let set = xattr::set(fd, &name, value);
            self.minor(entry, set, "an extended attribute")?;
        }
        Ok(())
    }

    /// What a filesystem or missing privileges may refuse without harm.
    fn minor(&mut self, entry: &Entry, result: nix::Result<()>, what: &str) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(e @ (Errno::EPERM | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EACCES)) => {
                self.applied.warnings.push(format!("{}: {what}: {e}", entry.shown()));
                Ok(())
            }
            Err(e) => Err(Error::from(e).context(what)),
        }
    }

    /// Directories from the deepest up, when nothing is made in them any more.
    fn finish(&mut self) -> Result<()> {
        for entry in std::mem::take(&mut self.directories).into_iter().rev() {
            let dir = resolve(self.root, &entry.path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            let (uid, gid) = entry.owner;
            let owner = nix::unistd::fchown(&dir, Some(uid.into()), Some(gid.into()));
            self.minor(&entry, owner, "its owner")?;
            self.set_mode(dir.as_fd(), &entry)?;
            set_times(dir.as_fd(), OsStr::new("."), entry.times)
                .map_err(|e| Error::from(e).context(entry.shown()))?;
        }
        Ok(())
    }
}

/// Which extended attributes are kept: those of users, of access lists and capabilities, and those of administrators.
pub(super) fn is_settable(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// A path is relative and has neither empty components nor dots.
pub(super) fn check_path(path: &[u8]) -> Result<()> {
    let good = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && part.len() <= 255;
    if path.is_empty() || (path.split(|b| *b == b'/').all(good) && !path.contains(&0)) {
        return Ok(());
    }
    Err(damaged(format!("the path {:?}", String::from_utf8_lossy(path))))
}

/// Extents are in order, apart, and within the file.
pub(super) fn check_extents(size: u64, extents: &[(u64, u64)]) -> Result<&[(u64, u64)]> {
    const LARGEST: u64 = i64::MAX as u64;
    let mut last = 0;
    for (offset, len) in extents {
        let end = offset.checked_add(*len).filter(|end| *end <= size && *offset >= last);
        last = end.ok_or_else(|| damaged("the extents of a file"))?;
    }
    if size > LARGEST { Err(damaged("the size of a file")) } else { Ok(extents) }
}

fn mode_of(entry: &Entry) -> Mode {
    Mode::from_bits_truncate(entry.mode & 0o7777)
}

fn fill(file: &File, size: u64, extents: &[(u64, u64)], from: &mut dyn Read) -> Result<()> {
    check_extents(size, extents)?;
    ftruncate(file, 0)?;
    ftruncate(file, size as i64)?;
    let longest = extents.iter().map(|(_, len)| *len).max().unwrap_or(0);
    let mut buffer = vec![0; PIECE.min(usize::try_from(longest).unwrap_or(PIECE))];
    for (mut offset, mut len) in extents.iter().copied() {
        while len > 0 {
            let part = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            from.read_exact(&mut buffer[..part])?;
            file.write_all_at(&buffer[..part], offset)?;
            offset += part as u64;
            len -= part as u64;
        }
    }
    Ok(())
}

fn resolve(root: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    if path.is_empty() {
        return openat(root, ".", flags | OFlag::O_CLOEXEC, Mode::empty());
    }
    let rules = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    mount::openat2(root, OsStr::from_bytes(path), flags | OFlag::O_CLOEXEC, 0, rules)
}

/// Removes a file, or a directory with all that is in it.
fn remove(dir: BorrowedFd<'_>, name: &OsStr, depth: u32) -> nix::Result<()> {
    if depth == 0 {
        return Err(Errno::ENAMETOOLONG);
    }
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        result => return result,
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let rules =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let below = mount::openat2(dir, name, flags | OFlag::O_CLOEXEC, 0, rules)?;
    for child in names(below.as_fd())? {
        remove(below.as_fd(), OsStr::from_bytes(&child), depth - 1)?;
    }
    unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}

fn set_times(dir: BorrowedFd<'_>, name: &OsStr, (access, modification): (i64, i64)) -> nix::Result<()> {
    const NANOS: i64 = 1_000_000_000;
    let time = |t: i64| TimeSpec::new(t.div_euclid(NANOS), t.rem_euclid(NANOS));
    utimensat(dir, name, &time(access), &time(modification), UtimensatFlags::NoFollowSymlink)
}
