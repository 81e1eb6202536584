//! Files by path: opened as the container sees them, if they are still what they were.
#![forbid(unsafe_code)]

use super::{Context, OPENABLE, file, in_container, name_of, objects, put, reopen};
use crate::checkpoint::state::{FileKind, Id, PathFile, SandboxState, VmaKind};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};
use nix::unistd::{Whence, lseek};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// `pos` of files that only mappings show.
const MAPPED: i64 = -1;
/// Device nodes that may be opened; see `dump::files`.
const HARMLESS: &[(u64, u64)] = &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];
const PROC: &str = "/proc/";

fn type_of(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}

/// Finds `file` in the calling thread's root, without opening it yet (O_PATH), and checks that it is what it was.
pub(super) fn open_checked(file: &PathFile) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(AT_FDCWD, file.path.as_str(), flags, Mode::empty()).map_err(|e| match e {
        Errno::ENOENT | Errno::ENOTDIR => Error::no_such_entity("the file is missing in the container"),
        e => e.into(),
    })?;
    let stat = fstat(&fd)?;
    if type_of(stat.st_mode) != type_of(file.mode) {
        return Err(Error::invalid_argument(format!(
            "it was a {} and is a {} now",
            describe(file.mode),
            describe(stat.st_mode)
        )));
    }
    let numbers = |rdev: u64| (major(rdev), minor(rdev));
    if matches!(type_of(stat.st_mode), SFlag::S_IFCHR | SFlag::S_IFBLK) && stat.st_rdev != file.rdev {
        let ((a, b), (c, d)) = (numbers(file.rdev), numbers(stat.st_rdev));
        return Err(Error::invalid_argument(format!("it was device {a}:{b} and is {c}:{d} now")));
    }
    Ok(fd)
}

fn describe(mode: u32) -> &'static str {
    match type_of(mode) {
        SFlag::S_IFREG => "regular file",
        SFlag::S_IFDIR => "directory",
        SFlag::S_IFLNK => "symbolic link",
        SFlag::S_IFCHR | SFlag::S_IFBLK => "device",
        SFlag::S_IFIFO => "FIFO",
        SFlag::S_IFSOCK => "socket",
        _ => "file of no known type",
    }
}

/// A file to be opened.
struct Wanted {
    id: Id,
    file: PathFile,
    flags: i32,
    pos: i64,
    /// It has to have the very content that it had: code that runs from it.
    exact: bool,
    who: String,
}

impl Wanted {
    fn open(&self, procfs: BorrowedFd<'_>) -> Result<(OwnedFd, Option<String>)> {
        self.try_open(procfs).map_err(|e| e.context(format!("{} ({})", self.file.path, self.who)))
    }

    fn try_open(&self, procfs: BorrowedFd<'_>) -> Result<(OwnedFd, Option<String>)> {
        let found = open_checked(&self.file)?;
        if self.flags & libc::O_PATH != 0 {
            return Ok((found, None));
        }
        let (stat, rdev) = (fstat(&found)?, self.file.rdev);
        match type_of(stat.st_mode) {
            SFlag::S_IFREG | SFlag::S_IFDIR => {}
            SFlag::S_IFCHR if HARMLESS.contains(&(major(rdev), minor(rdev))) => {}
            _ => return Err(Error::invalid_argument(format!("a {} is not opened", describe(stat.st_mode)))),
        }
        let fd = reopen(procfs, found.as_fd(), self.flags & OPENABLE)
            .map_err(|e| Error::from(e).context("opening it again"))?;
        let mut warning = None;
        let regular = type_of(stat.st_mode) == SFlag::S_IFREG;
        let size = stat.st_size as u64;
        if self.exact && regular {
            self.check_content(
                size,
                stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
            )?;
        }
        if self.pos > 0 {
            if regular && size < self.pos as u64 && !self.file.path.starts_with(PROC) {
                warning = Some(format!(
                    "{} ({}) is shorter ({size} bytes) than where it is read or written ({})",
                    self.file.path, self.who, self.pos
                ));
            }
            lseek(&fd, self.pos, Whence::SeekSet)
                .map_err(|e| Error::from(e).context(format!("going to position {} in it", self.pos)))?;
        }
        Ok((fd, warning))
    }

    fn check_content(&self, size: u64, mtime_ns: i64) -> Result<()> {
        // Archives keep whole seconds only.
        let second = |ns: i64| ns.div_euclid(1_000_000_000);
        if size != self.file.size {
            return Err(Error::invalid_argument(format!(
                "it has {size} bytes, and had {} when it was saved: the restored program would run other code",
                self.file.size
            )));
        }
        if second(mtime_ns) != second(self.file.mtime_ns) {
            return Err(Error::invalid_argument(
                "it was changed after it was saved (its modification time differs): the restored program would run other code",
            ));
        }
        Ok(())
    }
}

/// Code is run from it, by any process.
fn executed(state: &SandboxState, id: Id) -> bool {
    const PROT_EXEC: u32 = 4;
    state.mms.iter().any(|mm| {
        mm.exe == Some(id) || mm.vmas.iter().any(|v| v.kind == VmaKind::File(id) && v.prot & PROT_EXEC != 0)
    })
}

fn wanted(ctx: &Context, ids: &[Id], of_processes: bool) -> Result<Vec<Wanted>> {
    let mut all = Vec::new();
    for id in ids {
        let state = file(&ctx.state, *id)?;
        let path = match &state.kind {
            FileKind::Path(path) => path.clone(),
            // It has another name.
            FileKind::Deleted { file, link: Some(link), .. } => {
                PathFile { path: link.clone(), ..file.clone() }
            }
            _ => continue,
        };
        if path.path.starts_with(PROC) != of_processes {
            continue;
        }
        let mapped = state.pos == MAPPED;
        all.push(Wanted {
            id: *id,
            file: path,
            flags: state.flags,
            pos: state.pos,
            exact: mapped && executed(&ctx.state, *id),
            who: name_of(&ctx.state, *id),
        });
    }
    Ok(all)
}

fn open_all(ctx: &mut Context, container: Id, wanted: &[Wanted]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let procfs = ctx.procfs.root();
    let made = in_container(ctx, container, libc::CLONE_NEWNS, || {
        wanted.iter().map(|w| w.open(procfs)).collect::<Result<Vec<_>>>()
    })?;
    for (w, (fd, warning)) in wanted.iter().zip(made) {
        if let Some(warning) = warning {
            ctx.warn(warning);
        }
        put(ctx, w.id, fd)?;
    }
    Ok(())
}

/// Opens files by path, deleted files and memfds.
pub(super) fn open(ctx: &mut Context, container: Id, ids: &[Id]) -> Result<()> {
    let deleted = objects::make(ctx, container, ids)?;
    let mut first = BTreeSet::new();
    for id in ids {
        let state = file(&ctx.state, *id)?;
        let base = match &state.kind {
            FileKind::Memfd(object) => ctx.shmems.get(*object as usize).and_then(Option::as_ref),
            FileKind::Deleted { file, link: None, .. } => deleted.get(&file.identity),
            _ => continue,
        };
        let Some(base) = base else {
            return Err(Error::failure(format!("{} was not made", name_of(&ctx.state, *id))));
        };
        let (flags, pos) = (state.flags, state.pos);
        // The description that a memfd was made with does not count as one to write with: with another one, the kernel
        // would not have the memfd as a process' program.
        let made_with = match state.kind {
            FileKind::Memfd(object) => flags & OPENABLE == libc::O_RDWR && first.insert(object),
            _ => false,
        };
        let fd = if made_with {
            base.try_clone()?
        } else if flags & libc::O_PATH != 0 {
            reopen(ctx.procfs.root(), base.as_fd(), libc::O_PATH)?
        } else {
            // O_TMPFILE has the bit of O_DIRECTORY.
            let not = if flags & libc::O_TMPFILE == libc::O_TMPFILE { libc::O_DIRECTORY } else { 0 };
            reopen(ctx.procfs.root(), base.as_fd(), flags & OPENABLE & !not)
                .map_err(|e| Error::from(e).context(name_of(&ctx.state, *id)))?
        };
        if pos > 0 {
            lseek(&fd, pos, Whence::SeekSet)?;
        }
        put(ctx, *id, fd)?;
    }
    let all = wanted(ctx, ids, false)?;
    open_all(ctx, container, &all)
}

/// Opens files below `/proc`, which need the processes that they tell of.
pub(super) fn open_of_processes(ctx: &mut Context, container: Id, ids: &[Id]) -> Result<()> {
    let all = wanted(ctx, ids, true)?;
    open_all(ctx, container, &all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn wanted(path: &std::path::Path, pos: i64, exact: bool) -> Wanted {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let file = PathFile {
            path: path.to_str().unwrap().to_owned(),
            mode: meta.mode(),
            size: meta.size(),
            mtime_ns: meta.mtime() * 1_000_000_000,
            rdev: meta.rdev(),
            ..PathFile::default()
        };
        Wanted {
            id: 0,
            file,
            flags: libc::O_RDWR | libc::O_APPEND,
            pos,
            exact,
            who: "descriptor 3 of process 7".into(),
        }
    }

    #[test]
    fn positions_flags_and_files_that_have_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "0123456789").unwrap();
        let proc = std::fs::File::open("/proc").unwrap();
        let w = wanted(&path, 4, true);
        let (fd, warning) = w.open(proc.as_fd()).unwrap();
        assert_eq!((lseek(&fd, 0, Whence::SeekCur), warning), (Ok(4), None));
        let flags = crate::sys::files::fcntl(fd.as_fd(), libc::F_GETFL, 0).unwrap();
        assert_eq!(flags & (libc::O_ACCMODE | libc::O_APPEND), libc::O_RDWR | libc::O_APPEND);

        std::fs::write(&path, "01").unwrap();
        let error = w.open(proc.as_fd()).unwrap_err().message;
        assert!(error.contains("2 bytes") && error.contains("descriptor 3 of process 7"), "{error}");
        let (_, warning) = Wanted { exact: false, ..w }.open(proc.as_fd()).unwrap();
        assert!(warning.unwrap().contains("shorter"));

        let gone = wanted(&path, 0, false);
        std::fs::remove_file(&path).unwrap();
        assert!(gone.open(proc.as_fd()).unwrap_err().message.contains("missing"));
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        let error = gone.open(proc.as_fd()).unwrap_err().message;
        assert!(error.contains("was a regular file and is a FIFO"), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(gone.open(proc.as_fd()).unwrap_err().message.contains("symbolic link"));
    }

    #[test]
    fn only_harmless_devices_are_opened() {
        let proc = std::fs::File::open("/proc").unwrap();
        let mut w = wanted("/dev/null".as_ref(), 0, false);
        assert!(w.open(proc.as_fd()).is_ok());
        w.file.rdev = nix::sys::stat::makedev(1, 5);
        assert!(w.open(proc.as_fd()).unwrap_err().message.contains("1:5"));
        let w = wanted("/dev/kmsg".as_ref(), 0, false);
        assert!(w.open(proc.as_fd()).unwrap_err().message.contains("is not opened"));
    }
}
