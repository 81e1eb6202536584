//! Which descriptor tables there are, and what `/proc` says of the descriptors in them.
#![forbid(unsafe_code)]

use super::fdinfo::FdInfo;
use crate::checkpoint::dump::context::Context;
use crate::checkpoint::inside;
use crate::checkpoint::mountinfo::unescape;
use crate::checkpoint::state::{FsState, Id};
use crate::procfs::ProcFs;
use crate::sys::files::{self, Compare};
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::read;
use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// A thread of a saved process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Index of its process.
    pub process: usize,
    /// Index among the process' threads.
    pub thread: usize,
    /// Thread id in the sandbox's pid namespace.
    pub tid: i32,
}

/// Something that tasks share: a descriptor table, or root and current directory.
#[derive(Debug)]
pub struct Shared<T> {
    /// Who uses it; through the first one it is looked at.
    pub users: Vec<Task>,
    /// Container of the first user.
    pub container: Id,
    /// What was found.
    pub content: T,
}

/// A descriptor as `/proc` shows it.
#[derive(Debug, Clone)]
pub struct Raw {
    /// Number.
    pub fd: RawFd,
    /// Where `/proc/<pid>/fd/<n>` leads, as the container sees it.
    pub link: String,
    /// What is wrong with `link`, if it cannot be had.
    pub problem: Option<String>,
    /// fstat(2) of it.
    pub stat: FileStat,
    /// fdinfo.
    pub info: FdInfo,
    /// Device and inode of what the path in `link` leads to now.
    pub named: Option<(u64, u64)>,
}

impl Raw {
    /// st_dev and st_ino.
    pub fn identity(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// `link` leads to this very file.
    pub fn reachable(&self) -> bool {
        self.named == Some(self.identity())
    }
}

/// Sorts the threads of all processes by what they share.
///
/// # Errors
/// Those of kcmp(2).
pub fn group(ctx: &Context, what: Compare) -> Result<Vec<Shared<()>>> {
    let compare = |a: i32, b: i32| {
        files::kcmp(a, b, what)
            .map_err(|e| Error::from(e).context(format!("comparing tasks {a} and {b} (kcmp)")))
    };
    let mut groups: Vec<Shared<()>> = Vec::new();
    // Indexes of `groups`, in the kernel's order.
    let mut sorted: Vec<usize> = Vec::new();
    for (process, proc) in ctx.procs.iter().enumerate() {
        let mut last = None;
        for (thread, tracee) in proc.threads.iter().enumerate() {
            let task = Task { process, thread, tid: tracee.tid() };
            // Threads of a process nearly always share all.
            if let Some(at) = last
                && compare(task.tid, first(&groups, at))? == Ordering::Equal
            {
                groups[at].users.push(task);
                continue;
            }
            let (mut low, mut high, mut equal) = (0, sorted.len(), None);
            while low < high {
                let middle = low + (high - low) / 2;
                match compare(task.tid, first(&groups, sorted[middle]))? {
                    Ordering::Less => high = middle,
                    Ordering::Greater => low = middle + 1,
                    Ordering::Equal => {
                        equal = Some(sorted[middle]);
                        break;
                    }
                }
            }
            let at = equal.unwrap_or_else(|| {
                sorted.insert(low, groups.len());
                groups.push(Shared { users: Vec::new(), container: proc.container, content: () });
                groups.len() - 1
            });
            groups[at].users.push(task);
            last.get_or_insert(at);
        }
    }
    Ok(groups)
}

fn first(groups: &[Shared<()>], at: usize) -> i32 {
    groups[at].users[0].tid
}

/// What one container's part of the work is.
#[derive(Debug, Default)]
pub struct Seen {
    /// Descriptors, in the order of the tables asked for.
    pub tables: Vec<Vec<Raw>>,
    /// Directories, in the order of the tasks asked for.
    pub fs: Vec<Directories>,
    /// The mounts that the container sees.
    pub mounts: Vec<Mount>,
}

/// A mount, as mountinfo has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its ID.
    pub id: i64,
    /// Device of its filesystem.
    pub dev: u64,
    /// Where it is mounted.
    pub path: String,
    /// Type of the filesystem.
    pub fstype: String,
}

impl Mount {
    /// Parses a line of mountinfo (proc_pid_mountinfo(5)).
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let id = words.next()?.parse().ok()?;
        let (major, minor) = words.nth(1)?.split_once(':')?;
        let path = unescape(words.nth(1)?);
        let fstype = line.split_once(" - ")?.1.split_ascii_whitespace().next()?.to_owned();
        Some(Self {
            id,
            dev: nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?),
            path,
            fstype,
        })
    }
}

/// Root and current directory.
#[derive(Debug, Default)]
pub struct Directories {
    /// As they will be restored.
    pub state: FsState,
    /// Which of them is not where its path says, and why nothing can be done.
    pub problem: Option<String>,
}

/// Reads descriptor tables and directories of tasks of one container, with the eyes of the container: on a thread that
/// is in its mount namespace.
///
/// # Errors
/// When `/proc` cannot be read or the container's mount namespace not be entered.
pub fn look(procfs: &ProcFs, init: i32, tables: &[i32], fs: &[i32]) -> Result<Seen> {
    let target = process::pidfd_open(init)?;
    inside::run(target.as_fd(), libc::CLONE_NEWNS, || {
        let text = read_all(procfs.root(), "thread-self/mountinfo")?;
        let mounts: Vec<Mount> = String::from_utf8_lossy(&text).lines().filter_map(Mount::parse).collect();
        // Programs that serve filesystems stand still: to ask those for anything would take for ever.
        let fuse = mounts.iter().any(|m| m.fstype.starts_with("fuse")) && serves(procfs, tables);
        let mute: &[Mount] = if fuse { &mounts } else { &[] };
        let tables = tables.iter().map(|tid| table(procfs, *tid, mute)).collect::<Result<_>>()?;
        let fs = fs.iter().map(|tid| directories(procfs, *tid, mute)).collect::<Result<_>>()?;
        Ok(Seen { tables, fs, mounts })
    })
}

/// One of the tasks has `/dev/fuse` open.
fn serves(procfs: &ProcFs, tables: &[i32]) -> bool {
    tables.iter().any(|tid| {
        let Ok(numbers) = numbers(procfs, *tid) else { return false };
        numbers.iter().any(|fd| {
            readlinkat(procfs.root(), format!("{tid}/fd/{fd}").as_str()).is_ok_and(|l| l == "/dev/fuse")
        })
    })
}

/// It is on a filesystem that a program serves.
fn is_fuse(mounts: &[Mount], is: impl Fn(&Mount) -> bool) -> bool {
    mounts.iter().rfind(|m| is(m)).is_some_and(|m| m.fstype.starts_with("fuse"))
}

const SERVED: &str = "it is on a filesystem that a program of the sandbox serves (FUSE)";

/// As [`look`], for descriptors of this process (which came in a message, say).
///
/// # Errors
/// As [`look`].
pub fn look_at_own(procfs: &ProcFs, init: i32, fds: &[BorrowedFd<'_>]) -> Result<Vec<Raw>> {
    use std::os::fd::AsRawFd;
    let target = process::pidfd_open(init)?;
    let (dir, me) = (procfs.root(), std::process::id());
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    inside::run(target.as_fd(), libc::CLONE_NEWNS, || {
        numbers.iter().filter_map(|fd| descriptor(dir, &me.to_string(), *fd, &[]).transpose()).collect()
    })
}

fn numbers(procfs: &ProcFs, tid: i32) -> Result<Vec<RawFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut numbers: Vec<RawFd> =
        Dir::openat(procfs.root(), format!("{tid}/fd").as_str(), flags, Mode::empty())?
            .iter()
            .filter_map(|e| e.ok()?.file_name().to_str().ok()?.parse().ok())
            .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn table(procfs: &ProcFs, tid: i32, mute: &[Mount]) -> Result<Vec<Raw>> {
    let during = |e: Error| e.context(format!("reading the descriptors of task {tid}"));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let base = openat(procfs.root(), tid.to_string().as_str(), flags, Mode::empty())
        .map_err(|e| during(e.into()))?;
    let numbers = numbers(procfs, tid).map_err(during)?;
    numbers.into_iter().filter_map(|fd| descriptor(base.as_fd(), "", fd, mute).transpose()).collect()
}

/// A small file of a procfs, whole.
fn read_all(base: BorrowedFd<'_>, path: &str) -> nix::Result<Vec<u8>> {
    let file = openat(base, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut bytes = vec![0; 4096];
    let mut len = 0;
    loop {
        match read(&file, &mut bytes[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        if len == bytes.len() {
            bytes.resize(2 * len, 0);
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Reads one descriptor; none when it has been closed meanwhile (a description that another task shares may be).
fn descriptor(base: BorrowedFd<'_>, prefix: &str, fd: RawFd, mute: &[Mount]) -> Result<Option<Raw>> {
    let at =
        |what: &str| if prefix.is_empty() { format!("{what}/{fd}") } else { format!("{prefix}/{what}/{fd}") };
    let link = at("fd");
    let during = |e: Errno| Error::from(e).context(format!("looking at descriptor {fd}"));
    let info = match read_all(base, &at("fdinfo")) {
        Ok(text) => FdInfo::parse(&String::from_utf8_lossy(&text)),
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(during(e)),
    };
    let served = is_fuse(mute, |m| m.id == info.mnt_id);
    // Of those that cannot be asked, nothing but the path is known.
    let stat = if served { fstat(base) } else { fstatat(base, link.as_str(), AtFlags::empty()) };
    let stat = match stat {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(during(e)),
    };
    let mut raw = Raw { fd, link: String::new(), problem: None, stat, info, named: None };
    match readlinkat(base, link.as_str()).map(std::ffi::OsString::into_string) {
        Ok(Ok(text)) if served => {
            raw.problem = Some(format!("{text}: {SERVED}"));
            raw.link = text;
        }
        Ok(Ok(text)) => raw.link = text,
        Ok(Err(bytes)) => {
            raw.problem = Some(format!("its path {:?} is not UTF-8 text", bytes.to_string_lossy()));
        }
        Err(e) => raw.problem = Some(format!("its path cannot be read ({e})")),
    }
    if raw.link.starts_with('/') && !served {
        raw.named = identity_at(&raw.link);
    }
    Ok(Some(raw))
}

/// Device and inode at a path, symbolic links at its end not followed.
fn identity_at(path: &str) -> Option<(u64, u64)> {
    fstatat(nix::fcntl::AT_FDCWD, path, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|s| (s.st_dev, s.st_ino))
}

fn directories(procfs: &ProcFs, tid: i32, mute: &[Mount]) -> Result<Directories> {
    let during = |e: Errno, name: &str| Error::from(e).context(format!("reading {name} of task {tid}"));
    let cwd = readlinkat(procfs.root(), format!("{tid}/cwd").as_str()).map_err(|e| during(e, "cwd"))?;
    if is_fuse(mute, |m| std::path::Path::new(&cwd).starts_with(&m.path)) {
        let problem = Some(format!("its current directory {cwd:?}: {SERVED}"));
        return Ok(Directories { state: FsState::default(), problem });
    }
    let read = |name: &str| -> Result<(std::ffi::OsString, bool)> {
        let path = format!("{tid}/{name}");
        let link = readlinkat(procfs.root(), path.as_str()).map_err(|e| during(e, name))?;
        let stat = fstatat(procfs.root(), path.as_str(), AtFlags::empty()).map_err(|e| during(e, name))?;
        let there = link.to_str().and_then(identity_at) == Some((stat.st_dev, stat.st_ino));
        Ok((link, there))
    };
    let (cwd, cwd_there) = read("cwd")?;
    let (root, root_there) = read("root")?;
    let (cwd, root) = (cwd.to_string_lossy().into_owned(), root.to_string_lossy().into_owned());
    let umask =
        procfs.status_field(tid, "Umask")?.and_then(|v| u32::from_str_radix(&v, 8).ok()).unwrap_or(0o22);
    let deleted = cwd.strip_suffix(" (deleted)").filter(|_| !cwd_there).map(str::to_owned);
    let problem = if !root_there {
        Some(format!("its root directory {root:?} has been removed, or something is mounted over it"))
    } else if !cwd_there && deleted.is_none() {
        Some(format!("its current directory {cwd:?} cannot be reached in the container"))
    } else {
        None
    };
    let state = FsState { cwd_deleted: deleted.is_some(), cwd: deleted.unwrap_or(cwd), root, umask };
    Ok(Directories { state, problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = r"36 35 98:0 /mnt1 /mnt\040two rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.id, mount.path.as_str(), mount.fstype.as_str()), (36, "/mnt two", "ext3"));
        assert_eq!(mount.dev, nix::sys::stat::makedev(98, 0));
        assert_eq!(unescape(r"\134a\011\8"), "\\a\t\\8");
    }

    proptest! {
        #[test]
        fn hostile_mountinfo_never_panics(line in r"([0-9: /\\é-]|x - y){0,60}") {
            let _ = (Mount::parse(&line), unescape(&line));
        }
    }
}
