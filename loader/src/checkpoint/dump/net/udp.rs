//! UDP sockets and the datagrams that wait in them.
#![forbid(unsafe_code)]

use super::refusal;
use crate::checkpoint::state::{Refusal, SocketMessage, SocketState};
use crate::sys::net;
use nix::errno::Errno;
use nix::poll::PollFlags;
use std::os::fd::BorrowedFd;

/// Longest datagram.
const LONGEST: usize = 64 << 10;

pub(super) fn inspect(fd: BorrowedFd<'_>, socket: &mut SocketState) -> Result<(), Refusal> {
    let name = "UDP socket";
    let corked = net::get_int(fd, libc::IPPROTO_UDP, libc::UDP_CORK).is_ok_and(|v| v != 0);
    if corked && net::unacknowledged(fd).is_ok_and(|n| n > 0) {
        return Err(refusal(name, "a datagram is half written (UDP_CORK), and cannot be read back"));
    }
    socket.remote = net::remote(fd).unwrap_or_default().into();
    // Nothing tells about shutdown for writing.
    socket.shutdown = u8::from(super::tcp::ready(fd, super::tcp::RDHUP));
    socket.queue = queue(fd).map_err(|e| refusal(name, format!("looking at its datagrams: {e}")))?;
    Ok(())
}

/// Looks at the datagrams that wait, and leaves them. With an offset for peeking, each look shows the next.
fn queue(fd: BorrowedFd<'_>) -> Result<Vec<SocketMessage>, Errno> {
    if net::unread(fd) == Ok(0) && !super::tcp::ready(fd, PollFlags::POLLIN) {
        return Ok(Vec::new());
    }
    let before = net::get_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    net::set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
    let mut all = Vec::new();
    let mut buffer = vec![0; LONGEST];
    let result = loop {
        match net::receive(fd, &mut buffer, libc::MSG_PEEK) {
            Ok(received) => all.push(SocketMessage {
                from: received.from.into(),
                data: buffer[..received.len].into(),
                ..SocketMessage::default()
            }),
            Err(Errno::EAGAIN) => break Ok(all),
            // An error that a peer's answer left; it is reported once.
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {}
            Err(e) => break Err(e),
        }
    };
    let _ = net::set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, before);
    result
}
