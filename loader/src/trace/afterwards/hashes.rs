//! Hashes of executed files.
//!
//! The file is taken from the process, or by its path if the process has ended. It counts only if it is the file of the
//! record: same inode, size, mode and time of change, before and after it was read. A file that is executed cannot be written to,
//! and every later change sets that time, which programs cannot choose.
#![forbid(unsafe_code)]

use crate::procfs::ProcFs;
use crate::trace::event::File;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Larger files are not hashed.
const MAX_SIZE: i64 = 512 << 20;
/// How long an event is held back until it is told without; the loader waits longer for answers of the session.
const PATIENCE: Duration = Duration::from_secs(2);
/// Files in which a process of the container answers for what is read: it could let us wait.
const FUSE: u32 = 0x6573_5546;
const OVERLAYFS: u32 = 0x794c_7630;

/// Hashes of a file; empty if not wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digests {
    /// 32 bytes.
    pub sha256: Vec<u8>,
    /// 20 bytes.
    pub sha1: Vec<u8>,
}

/// Computes hashes, on a thread of its own, so that a slow disk holds nobody up for long; and remembers them.
#[derive(Debug)]
pub struct Hashes {
    jobs: Sender<Job>,
    done: Receiver<(File, Option<Digests>)>,
    /// The thread has something to do.
    busy: bool,
    known: HashMap<File, Digests>,
    /// In the order in which they came.
    order: VecDeque<File>,
    capacity: usize,
}

#[derive(Debug)]
struct Job {
    file: File,
    path: String,
    process: i32,
    init: Option<i32>,
}

impl Hashes {
    /// Starts the thread. `wanted` are SHA-256 and SHA-1.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(procfs: ProcFs, wanted: (bool, bool), capacity: usize) -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (results, done) = channel();
        std::thread::Builder::new()
            .name("hashes".to_owned())
            .spawn(move || {
                while let Ok(job) = todo.recv() {
                    let digests = hash(&procfs, &job, wanted);
                    if results.send((job.file, digests)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|e| Error::from(e).context("starting a thread (is the pids limit reached?)"))?;
        let (known, order) = (HashMap::new(), VecDeque::new());
        Ok(Self { jobs, done, busy: false, known, order, capacity: capacity.max(1) })
    }

    /// The hashes of the file that `process` has executed under this path. `init` leads a container where it may be found
    /// too. `None` if it is not there any more, too large, in a filesystem that a program serves, or not read in time. Blocks
    /// for two seconds at most.
    pub fn of(&mut self, file: File, path: String, process: i32, init: Option<i32>) -> Option<Digests> {
        // What came too late for its own event.
        while self.busy
            && let Ok(done) = self.done.try_recv()
        {
            self.note(done);
        }
        if let Some(known) = self.known.get(&file) {
            return Some(known.clone());
        }
        let worth = file.magic != FUSE && (0..=MAX_SIZE).contains(&file.size);
        if self.busy || !worth || self.jobs.send(Job { file, path, process, init }).is_err() {
            return None;
        }
        self.busy = true;
        let done = self.done.recv_timeout(PATIENCE).ok()?;
        self.note(done)
    }

    fn note(&mut self, (file, digests): (File, Option<Digests>)) -> Option<Digests> {
        self.busy = false;
        let digests = digests?;
        if self.order.len() >= self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        if self.known.insert(file, digests.clone()).is_none() {
            self.order.push_back(file);
        }
        Some(digests)
    }
}

fn hash(procfs: &ProcFs, job: &Job, (sha256, sha1): (bool, bool)) -> Option<Digests> {
    let place = find(procfs, job)?;
    let mut reader = procfs.reopen(place.as_fd()).ok()?.take(MAX_SIZE as u64 + 1);
    let (mut of256, mut of1) = (sha256.then(Sha256::new), sha1.then(Sha1::new));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return None,
        };
        let part = buffer.get(..n)?;
        of256.iter_mut().for_each(|h| h.update(part));
        of1.iter_mut().for_each(|h| h.update(part));
    }
    let after = fstat(&place).ok()?;
    is_same(&job.file, &after).then(|| Digests {
        sha256: of256.map(|h| h.finalize().to_vec()).unwrap_or_default(),
        sha1: of1.map(|h| h.finalize().to_vec()).unwrap_or_default(),
    })
}

/// The file, opened so that nothing happens to it (`O_PATH`).
fn find(procfs: &ProcFs, job: &Job) -> Option<OwnedFd> {
    let here = |fd: OwnedFd| fstat(&fd).is_ok_and(|stat| is_same(&job.file, &stat)).then_some(fd);
    let exe = format!("{}/exe", job.process);
    let by_process = openat(procfs.root(), exe.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let by_path = |pid: i32| procfs.open_inside(pid, &job.path, OFlag::O_PATH).ok().and_then(here);
    by_process.ok().and_then(here).or_else(|| by_path(job.process)).or_else(|| by_path(job.init?))
}

fn is_same(file: &File, stat: &FileStat) -> bool {
    // The kernel's own number of a file in an overlay is not always the one that it shows.
    let inode = file.magic == OVERLAYFS || file.inode == stat.st_ino;
    let regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    let changed = (stat.st_ctime, stat.st_ctime_nsec);
    inode
        && regular
        && file.mode == stat.st_mode
        && file.size == stat.st_size
        && (file.ctime.0, i64::from(file.ctime.1)) == changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::agent::open_procfs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    fn file(path: &Path) -> File {
        let meta = std::fs::metadata(path).unwrap();
        File {
            inode: meta.ino(),
            mode: meta.mode(),
            magic: 0,
            device: 0,
            uid: 0,
            gid: 0,
            size: meta.size() as i64,
            ctime: (meta.ctime(), meta.ctime_nsec() as u32),
            links: 1,
        }
    }

    fn hashes(wanted: (bool, bool), capacity: usize) -> Hashes {
        Hashes::start(ProcFs::new(open_procfs().unwrap()), wanted, capacity).unwrap()
    }

    #[test]
    fn the_file_of_the_record_is_hashed_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, "abc").unwrap();
        let (record, text) = (file(&path), path.to_str().unwrap().to_owned());
        let me = std::process::id() as i32;
        // FIPS 180-2's examples.
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let sha1 = "a9993e364706816aba3e25717850c26c9cd0d89d";
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let mut both = hashes((true, true), 8);
        let found = both.of(record, text.clone(), 0, Some(me)).unwrap();
        assert_eq!((hex(&found.sha256), hex(&found.sha1)), (sha256.to_owned(), sha1.to_owned()));
        let only = hashes((false, true), 8).of(record, text.clone(), me, None).unwrap();
        assert_eq!((only.sha256.len(), only.sha1.len()), (0, 20));
        // Another file of that name, as large.
        std::fs::write(dir.path().join("new"), "abd").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(both.of(record, text.clone(), 0, Some(me)), Some(found), "remembered");
        assert_eq!(hashes((true, true), 8).of(record, text.clone(), me, Some(me)), None);
        for record in [File { magic: FUSE, ..file(&path) }, File { size: MAX_SIZE + 1, ..file(&path) }] {
            assert_eq!(both.of(record, text.clone(), me, None), None);
        }
        assert_eq!(both.of(file(&path), "/nowhere".to_owned(), 0, None), None);
    }

    #[test]
    fn as_many_are_remembered_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id() as i32;
        let mut hashes = hashes((true, false), 2);
        for name in ["a", "b", "c"] {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            assert!(hashes.of(file(&path), path.to_str().unwrap().to_owned(), 0, Some(me)).is_some());
        }
        assert_eq!((hashes.known.len(), hashes.order.len()), (2, 2));
    }
}
