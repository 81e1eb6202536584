//! Memory objects, and files that have no name any more.
//!
//! A deleted file is made anew under the name that it had, or beside it if somebody else has that name now, and removed
//! again.
#![forbid(unsafe_code)]

use super::{Context, in_container, reopen};
use crate::checkpoint::state::{Bytes, FileKind, Id, PathFile, ShmemKind, ShmemState};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, SFlag, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, fchown, ftruncate, mkfifoat, unlinkat};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Linux 6.3: executable, whatever `vm.memfd_noexec` says; the mode is set afterwards.
const MFD_EXEC: u32 = 0x10;
const MFD_HUGE_SHIFT: u32 = 26;

/// A deleted file as the image has it.
struct Deleted {
    file: PathFile,
    content: Option<Bytes>,
    shmem: Option<Id>,
    size: u64,
    unnamed: bool,
}

/// Makes all memory objects that are not made yet, empty, and deleted files with their content; those of the latter
/// whose content is a memory object's are such an object. Answers deleted files and directories by identity.
pub(super) fn make(ctx: &mut Context, container: Id, ids: &[Id]) -> Result<BTreeMap<(u64, u64), OwnedFd>> {
    let mut wanted: BTreeMap<(u64, u64), Deleted> = BTreeMap::new();
    for id in ids {
        let state = super::file(&ctx.state, *id)?;
        let FileKind::Deleted { file, content, shmem, link: None } = &state.kind else { continue };
        let size = shmem.and_then(|s| ctx.state.shmems.get(s as usize)).map_or(file.size, |s| s.size);
        let unnamed = state.flags & libc::O_TMPFILE == libc::O_TMPFILE || is_unnamed(&file.path);
        let (file, content, shmem) = (file.clone(), content.clone(), *shmem);
        wanted.entry(file.identity).or_insert(Deleted { file, content, shmem, size, unnamed });
    }
    let mut made = BTreeMap::new();
    if !wanted.is_empty() {
        let list: Vec<_> = wanted.into_iter().collect();
        let files = in_container(ctx, container, libc::CLONE_NEWNS, || {
            let make_one = |d: &Deleted| {
                make_deleted(d)
                    .map_err(|e| e.context(format!("making the deleted file {} again", d.file.path)))
            };
            list.iter()
                .map(|(identity, d)| Ok((*identity, d.shmem, make_one(d)?)))
                .collect::<Result<Vec<_>>>()
        })?;
        for (identity, shmem, fd) in files {
            if let Some(slot) = shmem.and_then(|s| ctx.shmems.get_mut(s as usize)) {
                *slot = Some(reopen(ctx.procfs.root(), fd.as_fd(), libc::O_RDWR)?);
            }
            made.insert(identity, fd);
        }
    }
    for (object, slot) in ctx.state.shmems.iter().zip(&mut ctx.shmems) {
        if slot.is_none() && !matches!(object.kind, ShmemKind::SysV { .. }) {
            *slot = Some(memfd(object)?);
        }
    }
    Ok(made)
}

/// The kernel shows files that never had a name as `#` and their inode.
fn is_unnamed(path: &str) -> bool {
    let name = path.rsplit('/').next().and_then(|name| name.strip_prefix('#'));
    name.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn memfd(object: &ShmemState) -> Result<OwnedFd> {
    let failed = |e: Errno| Error::from(e).context(format!("making the memory object {:?}", object.name));
    let name = if object.kind == ShmemKind::Anonymous { "shared" } else { object.name.as_str() };
    let name = CString::new(name)
        .map_err(|_| Error::invalid_argument("the statefile is damaged: name of a memfd"))?;
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if object.huge_page_size != 0 {
        let size = object.huge_page_size.trailing_zeros() << MFD_HUGE_SHIFT;
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(size);
    }
    let executable = MFdFlags::from_bits_retain(flags.bits() | MFD_EXEC);
    let fd = match memfd_create(name.as_c_str(), executable) {
        Err(Errno::EINVAL) => memfd_create(name.as_c_str(), flags),
        other => other,
    }
    .map_err(failed)?;
    ftruncate(&fd, size_of_object(object.size)?).map_err(failed)?;
    own(fd.as_fd(), object.mode, object.owner).map_err(failed)?;
    Ok(fd)
}

fn size_of_object(size: u64) -> Result<i64> {
    i64::try_from(size).map_err(|_| Error::invalid_argument("the statefile is damaged: size of a file"))
}

fn own(fd: BorrowedFd<'_>, mode: u32, owner: (u32, u32)) -> nix::Result<()> {
    let now = nix::sys::stat::fstat(fd)?;
    if (now.st_uid, now.st_gid) != owner {
        fchown(fd, Some(owner.0.into()), Some(owner.1.into()))?;
    }
    // After the owner: a change of that clears bits.
    if now.st_mode & 0o7777 != mode & 0o7777 || (now.st_uid, now.st_gid) != owner {
        fchmod(fd, Mode::from_bits_truncate(mode & 0o7777))?;
    }
    Ok(())
}

/// A directory to make something in, and a name that is free there.
struct Spot {
    dir: OwnedFd,
    /// Path of `dir`.
    parent: String,
    name: String,
}

/// Finds a place for something that was at `path`: there, or near.
fn spots(path: &str) -> Result<impl Iterator<Item = Spot>> {
    let mut at = path;
    let mut wanted = None;
    let (dir, parent) = loop {
        let (parent, name) = at.rsplit_once('/').unwrap_or(("", at));
        wanted.get_or_insert_with(|| (name.to_owned(), true)).1 &= at.len() == path.len();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(AT_FDCWD, if parent.is_empty() { "/" } else { parent }, flags, Mode::empty()) {
            Ok(dir) => break (dir, parent.to_owned()),
            Err(Errno::ENOENT | Errno::ENOTDIR) if !parent.is_empty() => at = parent,
            Err(e) => return Err(Error::from(e).context(format!("opening the directory {parent:?}"))),
        }
    };
    let (name, same_directory) = wanted.unwrap_or_default();
    let first = Some(name.clone()).filter(|n| same_directory && !n.is_empty() && n != "." && n != "..");
    let others = (0..1000).map(move |i| {
        format!(".{}.airlock-{}-{i}", &name.chars().take(100).collect::<String>(), std::process::id())
    });
    let names = first.into_iter().chain(others);
    Ok(names.filter_map(move |name| Some(Spot { dir: dir.try_clone().ok()?, parent: parent.clone(), name })))
}

/// Tries one place after the other until one is free.
fn place<T>(path: &str, mut make: impl FnMut(&Spot) -> nix::Result<T>) -> Result<(Spot, T)> {
    let mut last = Errno::ENOENT;
    for spot in spots(path)? {
        match make(&spot) {
            Ok(made) => return Ok((spot, made)),
            Err(Errno::EEXIST) => last = Errno::EEXIST,
            Err(e) => return Err(e.into()),
        }
    }
    Err(last.into())
}

fn make_deleted(deleted: &Deleted) -> Result<OwnedFd> {
    let file = &deleted.file;
    let mode = Mode::from_bits_truncate(0o600);
    if SFlag::from_bits_truncate(file.mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
        return make_directory(file);
    }
    let fd = if deleted.unnamed {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let parent = file
            .path
            .rsplit_once('/')
            .map_or("/", |(parent, _)| if parent.is_empty() { "/" } else { parent });
        openat(AT_FDCWD, parent, flags, mode)?
    } else {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let (spot, fd) = place(&file.path, |s| openat(&s.dir, s.name.as_str(), flags, mode))?;
        unlinkat(&spot.dir, spot.name.as_str(), UnlinkatFlags::NoRemoveDir)?;
        fd
    };
    if let Some(content) = &deleted.content {
        std::io::Write::write_all(&mut std::fs::File::from(fd.try_clone()?), content)?;
    }
    ftruncate(&fd, size_of_object(deleted.size)?)?;
    own(fd.as_fd(), file.mode, file.owner)?;
    let ns = 1_000_000_000;
    let time = TimeSpec::new(file.mtime_ns.div_euclid(ns), file.mtime_ns.rem_euclid(ns));
    futimens(&fd, &time, &time)?;
    Ok(fd)
}

/// A directory in the place of one that was removed, and where it is: path, directory that it is in, name. To be removed
/// by whoever has gone there.
pub(super) fn make_visible_directory(file: &PathFile) -> Result<(String, OwnedFd, String)> {
    let mode = Mode::from_bits_truncate(0o700);
    let (spot, ()) = place(&file.path, |s| mkdirat(&s.dir, s.name.as_str(), mode))?;
    Ok((format!("{}/{}", spot.parent, spot.name), spot.dir, spot.name))
}

/// A directory that was removed while somebody had it open.
fn make_directory(file: &PathFile) -> Result<OwnedFd> {
    let (spot, ()) =
        place(&file.path, |s| mkdirat(&s.dir, s.name.as_str(), Mode::from_bits_truncate(0o700)))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(&spot.dir, spot.name.as_str(), flags, Mode::empty());
    unlinkat(&spot.dir, spot.name.as_str(), UnlinkatFlags::RemoveDir)?;
    let fd = fd?;
    own(fd.as_fd(), file.mode, file.owner)?;
    Ok(fd)
}

/// A FIFO that was removed: a descriptor (O_PATH) of a new one.
pub(super) fn make_fifo(file: &PathFile) -> Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(file.mode & 0o7777);
    let (spot, ()) = place(&file.path, |s| mkfifoat(&s.dir, s.name.as_str(), mode))?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(&spot.dir, spot.name.as_str(), flags, Mode::empty());
    let (uid, gid) = (file.owner.0.into(), file.owner.1.into());
    nix::unistd::fchownat(&spot.dir, spot.name.as_str(), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    unlinkat(&spot.dir, spot.name.as_str(), UnlinkatFlags::NoRemoveDir)?;
    Ok(fd?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::stat::fstat;

    fn deleted(path: &str, content: &[u8]) -> Deleted {
        let file = PathFile {
            path: path.to_owned(),
            mode: SFlag::S_IFREG.bits() | 0o640,
            owner: (1, 2),
            mtime_ns: 1_234_567_890_123,
            ..PathFile::default()
        };
        Deleted { file, content: Some(content.into()), shmem: None, size: 10, unnamed: false }
    }

    #[test]
    fn a_deleted_file_comes_back_under_its_name_or_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone").to_str().unwrap().to_owned();
        let link = |fd: &OwnedFd| {
            use std::os::fd::AsRawFd;
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        let fd = make_deleted(&deleted(&path, b"hello")).unwrap();
        assert_eq!(link(&fd), format!("{path} (deleted)"));
        let stat = fstat(&fd).unwrap();
        assert_eq!((stat.st_nlink, stat.st_size, stat.st_mode & 0o7777), (0, 10, 0o640));
        assert_eq!((stat.st_uid, stat.st_gid, stat.st_mtime), (1, 2, 1234));
        let mut content = [0; 20];
        let n = std::os::unix::fs::FileExt::read_at(&std::fs::File::from(fd), &mut content, 0).unwrap();
        assert_eq!(&content[..n], b"hello\0\0\0\0\0");

        std::fs::write(&path, "somebody else's").unwrap();
        let fd = make_deleted(&deleted(&path, b"x")).unwrap();
        assert!(link(&fd).starts_with(&format!("{}/.gone.airlock-", dir.path().display())), "{}", link(&fd));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody else's");

        let fd = make_deleted(&deleted(&format!("{}/no/such/dir/file", dir.path().display()), b"y")).unwrap();
        assert!(link(&fd).starts_with(dir.path().to_str().unwrap()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn removed_directories_and_fifos() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, mode| PathFile {
            path: dir.path().join(name).to_str().unwrap().to_owned(),
            mode,
            ..PathFile::default()
        };
        let fd = make_directory(&at("d", SFlag::S_IFDIR.bits() | 0o711)).unwrap();
        let stat = fstat(&fd).unwrap();
        assert_eq!((stat.st_nlink, stat.st_mode & 0o777), (0, 0o711));
        let fifo = make_fifo(&at("f", SFlag::S_IFIFO.bits() | 0o600)).unwrap();
        assert_eq!(fstat(&fifo).unwrap().st_mode & SFlag::S_IFMT.bits(), SFlag::S_IFIFO.bits());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn memory_objects_have_name_size_mode_and_seals() {
        let object = ShmemState {
            kind: ShmemKind::Memfd,
            name: "buffers".to_owned(),
            size: 12345,
            mode: 0o755,
            ..ShmemState::default()
        };
        let fd = memfd(&object).unwrap();
        let stat = fstat(&fd).unwrap();
        assert_eq!((stat.st_size, stat.st_mode & 0o7777), (12345, 0o755));
        assert_eq!(fcntl(&fd, FcntlArg::F_GET_SEALS), Ok(0));
        assert!(memfd(&ShmemState { size: u64::MAX, ..object.clone() }).is_err());
        assert!(memfd(&ShmemState { name: "a\0b".to_owned(), ..object }).is_err());
    }
}
