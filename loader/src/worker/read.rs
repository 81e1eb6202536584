//! Files of a container, read as the container sees them.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker, exactly};
use crate::checkpoint::inside;
use crate::init::paths;
use crate::procfs::ProcFs;
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::sendfile::sendfile;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Whence, lseek, read, write};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Bytes that are moved in one call.
const PIECE: usize = 1 << 20;

/// Writes the content of files, one after the other, to a descriptor. Descriptors: a pidfd of a process in the container,
/// and where to. Symbolic links lead nowhere outside; magic links of procfs are not followed; what would block is not
/// waited for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReadFiles {
    /// Paths from the container's root.
    pub paths: Vec<String>,
    /// Where in each to begin, bytes.
    pub offset: u64,
    /// How much of each; 0: to the end.
    pub size: u64,
}

impl Task for ReadFiles {
    type Reply = ();

    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        // A reader that is gone is an error, not a death.
        process::block_signals();
        let [container, out] = exactly(fds)?;
        let procfs = &worker.procfs;
        inside::run(container.as_fd(), libc::CLONE_NEWNS, || {
            let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            for path in &self.paths {
                let failed = |e: Error| e.context(format!("cannot read from file {path}"));
                let file = open_file(procfs, root.as_fd(), path, self.size > 0)
                    .map_err(|e| failed(e.context(format!("failed to open file {path}"))))?;
                self.copy(&file, &out).map_err(failed)?;
            }
            Ok(())
        })?;
        Ok(Done::with(()))
    }
}

impl ReadFiles {
    fn copy(&self, from: &OwnedFd, to: &OwnedFd) -> Result<()> {
        let status = fstat(from)?;
        let regular = paths::type_of(&status) == SFlag::S_IFREG;
        if regular && self.offset >= status.st_size.max(0) as u64 && self.offset > 0 {
            return Ok(());
        }
        if self.offset > 0 {
            let offset = i64::try_from(self.offset).map_err(|_| Errno::EINVAL)?;
            lseek(from, offset, Whence::SeekSet)?;
        }
        let mut left = if self.size == 0 { u64::MAX } else { self.size };
        let mut by_kernel = regular;
        let mut buffer = Vec::new();
        while left > 0 {
            let piece = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
            let moved = if by_kernel {
                match sendfile(to, from, None, piece) {
                    // Not between these two: procfs, or a file that is appended to.
                    Err(Errno::EINVAL) => {
                        by_kernel = false;
                        continue;
                    }
                    Err(Errno::EAGAIN) => {
                        room(to.as_fd())?;
                        continue;
                    }
                    result => result,
                }
            } else {
                buffer.resize(PIECE, 0);
                match read(from, &mut buffer[..piece]) {
                    // All that is there now.
                    Err(Errno::EAGAIN) => Ok(0),
                    Ok(n) => write_all(to.as_fd(), &buffer[..n]).map(|()| n),
                    result => result,
                }
            };
            match moved {
                Ok(0) => break,
                Ok(n) => left -= n as u64,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

/// Opens what can be read without harm: a regular file, a pipe, and, if the size is `limited`, a character device.
fn open_file(procfs: &ProcFs, root: BorrowedFd<'_>, path: &str, limited: bool) -> Result<OwnedFd> {
    let found = paths::open_in_root(root, Path::new(path), OFlag::O_PATH)?;
    match paths::file_type(found.as_fd())? {
        SFlag::S_IFREG | SFlag::S_IFIFO => {}
        SFlag::S_IFCHR if limited => {}
        SFlag::S_IFDIR => return Err(Errno::EISDIR.into()),
        SFlag::S_IFCHR => {
            return Err(Error::invalid_argument(
                "it is a character device, which may have no end: give a size",
            ));
        }
        SFlag::S_IFBLK => return Err(Error::invalid_argument("it is a block device")),
        _ => return Err(Errno::ENXIO.into()),
    }
    // What was looked at, and not what may have come in its place.
    let again = format!("thread-self/fd/{}", found.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    Ok(openat(procfs.root(), again.as_str(), flags, Mode::empty())?)
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EAGAIN) => room(to)?,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits until something can be written.
fn room(to: BorrowedFd<'_>) -> nix::Result<()> {
    match poll(&mut [PollFd::new(to, PollFlags::POLLOUT)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e),
    }
}
