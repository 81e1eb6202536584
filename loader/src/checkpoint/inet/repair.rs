//! TCP connections from outside their process: `struct tcp_info`, and the kernel's repair mode, in which sequence
//! numbers and queues of a connection can be read and set and nothing is sent (`TCP_REPAIR`, CAP_NET_ADMIN).
#![forbid(unsafe_code)]

use crate::sys::net;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;

type Result<T> = std::result::Result<T, Errno>;

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;

/// States as in `tcp_info.tcpi_state`.
pub mod state {
    /// Data flows both ways.
    pub const ESTABLISHED: u8 = 1;
    /// connect(2) was called and nobody answered yet.
    pub const SYN_SENT: u8 = 2;
    /// Somebody connects, and the last packet of the handshake is missing.
    pub const SYN_RECV: u8 = 3;
    /// Our end was closed, the peer does not know yet.
    pub const FIN_WAIT1: u8 = 4;
    /// Our end was closed.
    pub const FIN_WAIT2: u8 = 5;
    /// Both ends were closed; kept for stray packets.
    pub const TIME_WAIT: u8 = 6;
    /// Not connected.
    pub const CLOSE: u8 = 7;
    /// The peer's end was closed.
    pub const CLOSE_WAIT: u8 = 8;
    /// Both were closed, the peer does not know of ours yet.
    pub const LAST_ACK: u8 = 9;
    /// Waits for connections.
    pub const LISTEN: u8 = 10;
    /// Both were closed at the same time.
    pub const CLOSING: u8 = 11;

    /// The program will not send any more.
    pub fn sent_fin(state: u8) -> bool {
        matches!(state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING | TIME_WAIT)
    }

    /// The peer will not send any more.
    pub fn got_fin(state: u8) -> bool {
        matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT)
    }

    /// There is a peer.
    pub fn connected(state: u8) -> bool {
        matches!(state, ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING)
    }
}

/// Fields of `struct tcp_info` (linux/tcp.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// TCP_ESTABLISHED 1, …
    pub state: u8,
    /// Time stamps were agreed on.
    pub timestamps: bool,
    /// Selective acknowledgements were agreed on.
    pub sack: bool,
    /// Scale of the windows (the peer's, ours), if agreed on.
    pub wscale: Option<(u8, u8)>,
    /// Of a listener: connections that wait to be accepted.
    pub waiting: u32,
    /// Of a listener: how many may wait.
    pub backlog: u32,
    /// Segments sent and received since the socket was made or last connected.
    pub segments: u64,
}

impl Info {
    /// Reads it from a TCP or MPTCP socket.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for other sockets.
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self> {
        let mut bytes = [0u8; 192];
        let len = net::get(fd, TCP, libc::TCP_INFO, &mut bytes)?;
        if len < 32 {
            return Err(Errno::ENOPROTOOPT);
        }
        let word =
            |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let (options, scale) = (bytes[5], bytes[6]);
        Ok(Self {
            state: bytes[0],
            timestamps: options & 1 != 0,
            sack: options & 2 != 0,
            wscale: (options & 4 != 0).then_some((scale & 15, scale >> 4)),
            waiting: word(24),
            backlog: word(28),
            segments: u64::from(word(136)) + u64::from(word(140)),
        })
    }
}

/// One of the two queues of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// What was received.
    Receive = 1,
    /// What was sent and not acknowledged, and what was not sent yet.
    Send = 2,
}

/// A socket in repair mode. Ends the mode when dropped, without anything being sent.
#[derive(Debug)]
pub struct Repair<'a> {
    fd: BorrowedFd<'a>,
    reuse: i32,
}

impl<'a> Repair<'a> {
    /// Turns repair mode on.
    ///
    /// # Errors
    /// `EPERM`: no CAP_NET_ADMIN over the socket's network namespace, or a listener.
    pub fn on(fd: BorrowedFd<'a>) -> Result<Self> {
        let reuse = net::get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        net::set_int(fd, TCP, TCP_REPAIR, 1)?;
        Ok(Self { fd, reuse })
    }

    /// Turns repair mode on for good: nothing ends it but [`off`] or the end of the socket, which the peer then does not
    /// hear of.
    ///
    /// # Errors
    /// As [`Repair::on`].
    pub fn stay(fd: BorrowedFd<'a>) -> Result<()> {
        net::set_int(fd, TCP, TCP_REPAIR, 1)
    }

    /// What the next calls are about.
    ///
    /// # Errors
    /// The kernel's.
    pub fn choose(&self, queue: Queue) -> Result<()> {
        choose(self.fd, queue)
    }

    /// Sequence number after the last byte of a queue.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sequence(&self, queue: Queue) -> Result<u32> {
        self.choose(queue)?;
        Ok(net::get_int(self.fd, TCP, TCP_QUEUE_SEQ)? as u32)
    }

    /// The `len` bytes of a queue. The socket's SO_PEEK_OFF must be -1.
    ///
    /// # Errors
    /// `EAGAIN` when there are fewer.
    pub fn content(&self, queue: Queue, len: usize) -> Result<Vec<u8>> {
        self.choose(queue)?;
        let mut data = vec![0; len];
        if len > 0 {
            let got = net::receive(self.fd, &mut data, libc::MSG_PEEK)?.len;
            if got != len {
                return Err(Errno::EAGAIN);
            }
        }
        Ok(data)
    }

    /// `struct tcp_repair_window`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn window(&self) -> Result<Window> {
        let mut bytes = [0u8; 20];
        net::get(self.fd, TCP, TCP_REPAIR_WINDOW, &mut bytes)?;
        Ok(Window::from_bytes(bytes))
    }

    /// The largest segment that the peer takes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mss(&self) -> Result<u32> {
        Ok(net::get_int(self.fd, TCP, libc::TCP_MAXSEG)? as u32)
    }

    /// The connection's clock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn timestamp(&self) -> Result<u32> {
        Ok(net::get_int(self.fd, TCP, TCP_TIMESTAMP)? as u32)
    }
}

impl Drop for Repair<'_> {
    fn drop(&mut self) {
        let _ = off(self.fd, self.reuse);
    }
}

/// Ends repair mode without sending anything. Repair mode forgets SO_REUSEADDR, which is set to `reuse`.
///
/// # Errors
/// The kernel's.
pub fn off(fd: BorrowedFd<'_>, reuse: i32) -> Result<()> {
    const NO_WINDOW_PROBE: i32 = -1;
    net::set_int(fd, TCP, TCP_REPAIR, NO_WINDOW_PROBE)?;
    // The kernel shows forced reuse as 2.
    net::set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(reuse == 1))
}

/// Which queue the next calls on a socket in repair mode are about.
///
/// # Errors
/// The kernel's.
pub fn choose(fd: BorrowedFd<'_>, queue: Queue) -> Result<()> {
    net::set_int(fd, TCP, TCP_REPAIR_QUEUE, queue as i32)
}

/// Sets the sequence number at which a queue begins, on a socket that is not connected yet.
///
/// # Errors
/// `EPERM`: it is connected.
pub fn set_sequence(fd: BorrowedFd<'_>, queue: Queue, sequence: u32) -> Result<()> {
    choose(fd, queue)?;
    net::set_int(fd, TCP, TCP_QUEUE_SEQ, sequence as i32)
}

/// Appends to a queue of a socket in repair mode; what goes into the send queue counts as sent.
///
/// # Errors
/// The kernel's; `ENOBUFS` when it takes nothing.
pub fn fill(fd: BorrowedFd<'_>, queue: Queue, mut data: &[u8]) -> Result<()> {
    choose(fd, queue)?;
    let mut piece = 64 << 10;
    while !data.is_empty() {
        match net::send(fd, &data[..data.len().min(piece)], &[], 0) {
            Ok(0) => return Err(Errno::ENOBUFS),
            Ok(n) => data = &data[n..],
            // A segment is one allocation.
            Err(Errno::ENOMEM) if piece > 1 << 10 => piece /= 2,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What was agreed on in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Agreed {
    /// Largest segment the peer takes.
    pub mss: u32,
    /// Scale of the windows (the peer's, ours).
    pub wscale: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// Time stamps, and the connection's clock.
    pub timestamps: Option<u32>,
}

/// Sets what was agreed on, on a socket in repair mode that has been connected.
///
/// # Errors
/// The kernel's.
pub fn set_agreed(fd: BorrowedFd<'_>, agreed: Agreed) -> Result<()> {
    const MSS: u32 = 2;
    const WINDOW: u32 = 3;
    const SACK: u32 = 4;
    const TIMESTAMP: u32 = 8;
    let mut bytes = Vec::new();
    let mut add = |code: u32, value: u32| {
        bytes.extend(code.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
    };
    add(MSS, agreed.mss);
    if let Some((theirs, ours)) = agreed.wscale {
        add(WINDOW, u32::from(theirs) | u32::from(ours) << 16);
    }
    if agreed.sack {
        add(SACK, 0);
    }
    if agreed.timestamps.is_some() {
        add(TIMESTAMP, 0);
    }
    net::set(fd, TCP, TCP_REPAIR_OPTIONS, &bytes)?;
    if let Some(clock) = agreed.timestamps {
        net::set_int(fd, TCP, TCP_TIMESTAMP, clock as i32)?;
    }
    Ok(())
}

/// `struct tcp_repair_window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Sequence number of the packet that last changed the peer's window.
    pub snd_wl1: u32,
    /// The peer's window.
    pub snd_wnd: u32,
    /// The largest it ever was.
    pub max_window: u32,
    /// Our window.
    pub rcv_wnd: u32,
    /// Sequence number from which on it counts.
    pub rcv_wup: u32,
}

impl Window {
    /// From the kernel's bytes.
    pub fn from_bytes(bytes: [u8; 20]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { snd_wl1: word(0), snd_wnd: word(4), max_window: word(8), rcv_wnd: word(12), rcv_wup: word(16) }
    }

    /// As the kernel's bytes.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        let words = [self.snd_wl1, self.snd_wnd, self.max_window, self.rcv_wnd, self.rcv_wup];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Sets it on a socket in repair mode whose queues are filled.
    ///
    /// # Errors
    /// `EINVAL`: it does not fit the sequence numbers.
    pub fn set(self, fd: BorrowedFd<'_>) -> Result<()> {
        net::set(fd, TCP, TCP_REPAIR_WINDOW, &self.to_bytes())
    }
}

/// True when sequence number `a` comes after `b`.
pub fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_go_round() {
        assert!(after(2, 1) && !after(1, 2) && !after(5, 5));
        assert!(after(3, u32::MAX - 3) && !after(u32::MAX - 3, 3));
    }

    #[test]
    fn windows_keep_their_bytes() {
        let bytes: [u8; 20] = std::array::from_fn(|i| i as u8);
        assert_eq!(Window::from_bytes(bytes).to_bytes(), bytes);
    }
}
