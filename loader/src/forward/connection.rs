//! One forwarded connection: two sockets, and a way in each direction.
#![forbid(unsafe_code)]

use super::pipe::{Pipe, Pipes};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{
    Shutdown, SockType, SockaddrStorage, getpeername, getsockopt, setsockopt, shutdown, sockopt,
};
use std::any::Any;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// How much is asked for in one call.
const PIECE: usize = 1 << 20;
/// Calls that one connection makes in a row before others have their turn.
const TURN: u32 = 16;

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing moves until there is an event.
    Waits,
    /// It has had its share, and could go on.
    CouldGoOn,
    /// Both ways are closed.
    Ended,
}

/// Two connected stream sockets. What one says, the other hears; the end of what one says is heard as the end, while the
/// other direction goes on. Dropping it ends it for both peers.
pub struct Connection {
    ends: [OwnedFd; 2],
    /// From end 0 to end 1, and back.
    ways: [Way; 2],
    /// Something happened to the end that a way comes from, or goes to: bytes may move there.
    stirred: [bool; 2],
    /// Ends of which it is asked when they take more bytes.
    pub(super) asked: [bool; 2],
    /// Lives as long as the connection.
    _keeps: Box<dyn Any + Send>,
}

#[derive(Debug, Default)]
struct Way {
    state: WayState,
    /// What was heard and not yet said.
    pipe: Option<Pipe>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum WayState {
    #[default]
    Open,
    /// The one end says nothing more; the other has not heard everything.
    Draining,
    Closed,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("ends", &self.ends)
            .field("ways", &self.ways)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Joins two sockets, which become non-blocking: for everybody who has them. `keeps` is dropped with the connection.
    ///
    /// # Errors
    /// One is no connected stream socket.
    pub fn new(ends: [OwnedFd; 2], keeps: Box<dyn Any + Send>) -> Result<Self> {
        for end in &ends {
            check(end)?;
            let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
            fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            // Not for sockets of the unix family, which need neither: a peer that vanished without a word is noticed after
            // a while, and small pieces go on at once.
            let _ = setsockopt(end, sockopt::KeepAlive, &true);
            let _ = setsockopt(end, sockopt::TcpNoDelay, &true);
        }
        let (ways, stirred, asked) = (Default::default(), [true; 2], [false; 2]);
        Ok(Self { ends, ways, stirred, asked, _keeps: keeps })
    }

    pub(super) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.ends[0].as_fd(), self.ends[1].as_fd()]
    }

    /// Whether there are bytes for an end that it did not take.
    pub(super) fn is_full(&self, end: usize) -> bool {
        self.ways[1 - end].pipe.as_ref().is_some_and(|pipe| pipe.filled > 0)
    }

    /// Takes note of what happened to an end.
    pub(super) fn note(&mut self, end: usize, events: EpollFlags) {
        let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        self.stirred[end] |= events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | gone);
        self.stirred[1 - end] |= events.intersects(EpollFlags::EPOLLOUT | gone);
        if events.intersects(gone) {
            // Its peer hears nothing any more; what it has said before is still there.
            self.ways[1 - end].close();
        }
    }

    /// Moves what can be moved.
    pub(super) fn step(&mut self, pipes: &mut Pipes) -> Step {
        let mut step = Step::Waits;
        for from in [0, 1] {
            let to = 1 - from;
            if !std::mem::take(&mut self.stirred[from]) {
                continue;
            }
            if self.ways[from].advance(&self.ends[from], &self.ends[to], pipes) {
                self.stirred[from] = true;
                step = Step::CouldGoOn;
            }
        }
        let closed = |way: &Way| way.state == WayState::Closed;
        if self.ways.iter().all(closed) { Step::Ended } else { step }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for end in &self.ends {
            // To close it is not enough where others have it open.
            let _ = shutdown(end.as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Way {
    /// Moves a turn's worth of bytes. True if more could be moved at once.
    fn advance(&mut self, from: &OwnedFd, to: &OwnedFd, pipes: &mut Pipes) -> bool {
        for _ in 0..TURN {
            if self.state == WayState::Closed {
                return false;
            }
            let heard = self.hear(from, pipes);
            let said = self.say(from, to);
            if let Some(pipe) = self.pipe.take_if(|pipe| pipe.filled == 0) {
                pipes.put(pipe);
                if self.state == WayState::Draining {
                    let _ = shutdown(to.as_raw_fd(), Shutdown::Write);
                    self.close();
                }
            }
            if !heard && !said {
                return false;
            }
        }
        true
    }

    /// Fills the pipe. True if something came.
    fn hear(&mut self, from: &OwnedFd, pipes: &mut Pipes) -> bool {
        if self.state != WayState::Open {
            return false;
        }
        let pipe = match self.pipe.take().map_or_else(|| pipes.take(), Ok) {
            Ok(pipe) => self.pipe.insert(pipe),
            Err(e) => {
                log::warn!("a forwarded connection ends: making a pipe: {e}");
                self.close();
                let _ = shutdown(from.as_raw_fd(), Shutdown::Both);
                return false;
            }
        };
        match pass(from, &pipe.writer) {
            Ok(0) => self.state = WayState::Draining,
            Ok(n) => {
                pipe.filled += n;
                return true;
            }
            Err(Errno::EAGAIN) => {}
            // Reset: nothing more comes.
            Err(_) => self.state = WayState::Draining,
        }
        false
    }

    /// Empties the pipe. True if something went.
    fn say(&mut self, from: &OwnedFd, to: &OwnedFd) -> bool {
        let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.filled > 0) else { return false };
        match pass(&pipe.reader, to) {
            Ok(n) if n > 0 => {
                pipe.filled = pipe.filled.saturating_sub(n);
                true
            }
            Err(Errno::EAGAIN) => false,
            // Nobody hears it: whoever says more shall be told.
            _ => {
                let _ = shutdown(from.as_raw_fd(), Shutdown::Read);
                self.close();
                false
            }
        }
    }

    fn close(&mut self) {
        self.state = WayState::Closed;
        // One with something in it cannot be used again.
        self.pipe = None;
    }
}

fn pass(from: &OwnedFd, to: &OwnedFd) -> nix::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(from, None, to, None, PIECE, flags) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Whether `end` is a connected stream socket.
///
/// # Errors
/// Says what it is instead.
pub fn check(end: &OwnedFd) -> Result<()> {
    let wrong = |what: &str| {
        Error::invalid_argument(format!("a connected stream socket is needed, and this is {what}"))
    };
    match getsockopt(end, sockopt::SockType) {
        Ok(SockType::Stream) => {}
        Ok(_) => return Err(wrong("a socket of another type")),
        Err(Errno::ENOTSOCK) => return Err(wrong("no socket")),
        Err(e) => return Err(Error::from(e).context("looking at the stream")),
    }
    match getpeername::<SockaddrStorage>(end.as_raw_fd()) {
        // An address of a family that nix does not know is an address all the same.
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(Errno::ENOTCONN) => Err(wrong("not connected")),
        Err(e) => Err(Error::from(e).context("looking at the stream")),
    }
}
