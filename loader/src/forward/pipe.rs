//! Pipes between sockets, kept for reuse.
#![forbid(unsafe_code)]

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use std::os::fd::OwnedFd;

/// How much a pipe should hold: what moves in one call. The kernel may give less to who has no privileges and many
/// pipes (pipe(7), pipe-user-pages-soft).
const SIZE: i32 = 256 << 10;
/// Empty pipes that are kept.
const SPARE: usize = 8;

/// A pipe, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
    pub(super) filled: usize,
}

/// Empty pipes.
#[derive(Debug, Default)]
pub(super) struct Pipes(Vec<Pipe>);

impl Pipes {
    /// An empty pipe.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub(super) fn take(&mut self) -> nix::Result<Pipe> {
        if let Some(pipe) = self.0.pop() {
            return Ok(pipe);
        }
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(SIZE));
        Ok(Pipe { reader, writer, filled: 0 })
    }

    /// Takes a pipe back, if it is empty and there are not enough.
    pub(super) fn put(&mut self, pipe: Pipe) {
        if pipe.filled == 0 && self.0.len() < SPARE {
            self.0.push(pipe);
        }
    }
}
