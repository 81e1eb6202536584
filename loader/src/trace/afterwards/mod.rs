//! What the kernel's programs cannot note at the moment of an event and is looked up when the event is told, a few milliseconds
//! later: hashes of executed files ([`hashes`]), and who is at the other end of a pipe.
#![forbid(unsafe_code)]

mod hashes;

pub use hashes::{Digests, Hashes};

use super::bpf::record::{Kind, tag};
use super::config::{BINARY_SHA1, BINARY_SHA256, PIPE_PROC_INFO, Plan};
use super::event::{Event, PIPEFS};
use super::points::Point;
use crate::procfs::ProcFs;
use airlock_wire::error::Result;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::fstatat;

/// Descriptors that are looked at for one pipe.
const MAX_DESCRIPTORS: usize = 16_384;
/// Nanoseconds of a clock tick in procfs.
const TICK: u64 = 10_000_000;

/// What was found out about an event.
#[derive(Debug, Default)]
pub struct Found {
    /// Hashes of the executed file, if they are wanted and it is still there.
    pub digests: Option<Digests>,
    /// Who writes into the pipe that is its standard input.
    pub input: Option<Other>,
    /// Who reads from the pipe that is its standard output.
    pub output: Option<Other>,
}

/// A process at the other end of a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Its pid in the sandbox's pid namespace.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// When it was made, nanoseconds since boot, as exact as procfs is (10 ms).
    pub start: u64,
    /// uid, gid, suid, sgid, euid, egid.
    pub credentials: [u32; 6],
    /// Its name.
    pub name: String,
    /// Current folder.
    pub cwd: String,
}

/// Looks things up for a session.
#[derive(Debug)]
pub struct Afterwards {
    procfs: ProcFs,
    hashes: Option<Hashes>,
    pipes: bool,
}

impl Afterwards {
    /// For a plan; `None` if it wants nothing of this. `capacity` is how many files' hashes are remembered.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(plan: &Plan, procfs: &ProcFs, capacity: usize) -> Result<Option<Self>> {
        let Some(wanted) = plan.wants(Point::Execve).map(|wanted| wanted.optional) else { return Ok(None) };
        let (sha256, sha1) = (wanted.has(BINARY_SHA256), wanted.has(BINARY_SHA1));
        let hashes = if sha256 || sha1 {
            Some(Hashes::start(procfs.try_clone()?, (sha256, sha1), capacity)?)
        } else {
            None
        };
        let pipes = wanted.has(PIPE_PROC_INFO);
        Ok((pipes || hashes.is_some()).then_some(Self { procfs: procfs.try_clone()?, hashes, pipes }))
    }

    /// What there is to be found about an event in a container with this init.
    pub fn look(&mut self, event: &Event<'_>, init: Option<i32>) -> Found {
        if event.kind != Kind::Exec {
            return Found::default();
        }
        let digests = match (&mut self.hashes, event.file(tag::FILE), event.file_path(tag::FILE)) {
            (Some(hashes), Some(Some(file)), Some(path)) => hashes.of(file, path, event.tgid, init),
            _ => None,
        };
        let end = |number: u16, writer: bool| {
            let file = event.file(tag::STDIO + number)?.filter(|file| self.pipes && file.magic == PIPEFS)?;
            other(&self.procfs, event.tgid, init?, file.inode, writer)
        };
        Found { digests, input: end(0, true), output: end(1, false) }
    }
}

/// Who of the container of `init` has that end of a pipe, besides `process`. The process that made it, as a shell for a
/// pipeline, often has it still: another is preferred.
fn other(procfs: &ProcFs, process: i32, init: i32, inode: u64, writer: bool) -> Option<Other> {
    let container = cgroup(procfs, init)?;
    let parent = procfs.stat(process).map(|stat| stat.ppid).ok();
    let mut left = MAX_DESCRIPTORS;
    let mut last = None;
    for pid in procfs.pids().ok()? {
        let within = || {
            cgroup(procfs, pid)?.strip_prefix(&container).map(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if pid == process || within() != Some(true) {
            continue;
        }
        let descriptors = procfs.descriptors(pid).unwrap_or_default();
        if left == 0 || !descriptors.iter().take(left).any(|fd| is_end(procfs, pid, *fd, inode, writer)) {
            left = left.saturating_sub(descriptors.len());
            continue;
        }
        left = left.saturating_sub(descriptors.len());
        let found = describe(procfs, pid);
        if Some(pid) != parent {
            return found;
        }
        last = found;
    }
    last
}

/// The cgroup that a container's processes are told by: the freezer's on v1, whose name airlock has given.
fn cgroup(procfs: &ProcFs, pid: i32) -> Option<String> {
    let text = procfs.read(pid, "cgroup").ok()?;
    let path =
        |start: &str| text.lines().find_map(|line| line.split_once(start).map(|(_, path)| path.to_owned()));
    path(":freezer:").or_else(|| path("0::"))
}

/// Whether a descriptor is that end of a pipe. procfs shows in a link's mode what the descriptor may do.
fn is_end(procfs: &ProcFs, pid: i32, fd: i32, inode: u64, writer: bool) -> bool {
    let link = format!("{pid}/fd/{fd}");
    let access = if writer { 0o200 } else { 0o400 };
    readlinkat(procfs.root(), link.as_str()).is_ok_and(|to| to.to_str() == Some(&format!("pipe:[{inode}]")))
        && fstatat(procfs.root(), link.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| stat.st_mode & access != 0)
}

fn describe(procfs: &ProcFs, pid: i32) -> Option<Other> {
    let stat = procfs.stat(pid).ok()?;
    let ids = |field: &str| -> Option<[u32; 3]> {
        let text = procfs.status_field(pid, field).ok()??;
        let mut ids = text.split_ascii_whitespace().map_while(|id| id.parse().ok());
        Some([ids.next()?, ids.next()?, ids.next()?])
    };
    let ([uid, euid, suid], [gid, egid, sgid]) = (ids("Uid")?, ids("Gid")?);
    let cwd = readlinkat(procfs.root(), format!("{pid}/cwd").as_str()).unwrap_or_default();
    Some(Other {
        pid,
        parent: stat.ppid,
        start: stat.starttime.saturating_mul(TICK),
        credentials: [uid, gid, suid, sgid, euid, egid],
        name: stat.comm,
        cwd: cwd.to_string_lossy().into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::agent::open_procfs;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn both_ends_of_a_pipe_are_told_apart() {
        let procfs = ProcFs::new(open_procfs().unwrap());
        let (reader, writer) = std::io::pipe().unwrap();
        let inode = nix::sys::stat::fstat(reader.as_fd()).unwrap().st_ino;
        let me = std::process::id() as i32;
        let end = |fd, writer| is_end(&procfs, me, fd, inode, writer);
        assert!(end(reader.as_raw_fd(), false) && !end(reader.as_raw_fd(), true));
        assert!(end(writer.as_raw_fd(), true) && !end(writer.as_raw_fd(), false));
        assert!(!is_end(&procfs, me, writer.as_raw_fd(), inode + 1, true));
        let found = other(&procfs, 0, me, inode, true).unwrap();
        assert_eq!((found.pid, found.cwd.as_str()), (me, std::env::current_dir().unwrap().to_str().unwrap()));
        assert_eq!(found.credentials[0], nix::unistd::getuid().as_raw());
        assert_eq!(other(&procfs, me, me, inode, true), None, "nobody else");
    }
}
