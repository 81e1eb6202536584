//! TCP sockets: unconnected, listening, connected.
#![forbid(unsafe_code)]

use super::{MPTCP, refusal};
use crate::checkpoint::inet::repair::{Info, Queue, Repair, Window, state};
use crate::checkpoint::state::{Refusal, SocketState, TcpState};
use crate::sys::net;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;

const TCP_ULP: i32 = 31;
/// Nothing more will be received.
pub(super) const RDHUP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

pub(super) fn inspect(fd: BorrowedFd<'_>, socket: &mut SocketState) -> Result<(), Refusal> {
    let name = if socket.protocol == MPTCP { "MPTCP socket" } else { "TCP socket" };
    let info = Info::of(fd).map_err(|e| refusal(name, format!("reading its state: {e}")))?;
    check_upper_protocol(fd, name)?;
    let mut tcp = TcpState { state: info.state, ..TcpState::default() };
    match info.state {
        state::LISTEN => socket.listen = Some(info.backlog),
        state::CLOSE => closed(fd, info, &mut tcp).map_err(|e| refusal(name, e.desc()))?,
        state::SYN_SENT => {
            socket.remote = net::remote(fd).unwrap_or_default().into();
        }
        _ if socket.protocol == MPTCP => {
            return Err(refusal("MPTCP connection", "the kernel does not let its state be read or set"));
        }
        _ if state::connected(info.state) => {
            socket.remote = net::remote(fd)
                .map_err(|e| refusal("TCP connection", format!("asking for its peer: {e}")))?
                .into();
            connection(fd, info, &mut tcp).map_err(|e| match e {
                Errno::EPERM => refusal(
                    "TCP connection",
                    "reading its state needs CAP_NET_ADMIN over the network namespace that it is in",
                ),
                e => refusal("TCP connection", format!("reading its state: {e}")),
            })?;
        }
        other => {
            return Err(refusal("TCP connection", format!("it is being set up (state {other}); try again")));
        }
    }
    socket.tcp = Some(tcp);
    Ok(())
}

/// Something that sits on top of TCP and whose state is the kernel's.
fn check_upper_protocol(fd: BorrowedFd<'_>, name: &str) -> Result<(), Refusal> {
    let mut bytes = [0u8; 16];
    let len = net::get(fd, libc::IPPROTO_TCP, TCP_ULP, &mut bytes).unwrap_or(0);
    let text = bytes[..len].split(|b| *b == 0).next().unwrap_or_default();
    if text.is_empty() || text == b"mptcp" {
        return Ok(());
    }
    let text = String::from_utf8_lossy(text).into_owned();
    Err(refusal(name, format!("the kernel speaks {text} on it, and keeps the keys to itself")))
}

/// Reads a connection anew.
///
/// # Errors
/// The kernel's; `EAGAIN` when it would not hold still.
pub(super) fn connection(fd: BorrowedFd<'_>, info: Info, tcp: &mut TcpState) -> Result<(), Errno> {
    // A late acknowledgement may shorten a queue between two of these calls.
    const ATTEMPTS: usize = 20;
    let peek_offset = hold_peek_offset(fd)?;
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..ATTEMPTS {
        result = read_connection(fd, info, tcp);
        if result != Err(Errno::EAGAIN) {
            break;
        }
    }
    release_peek_offset(fd, peek_offset);
    result?;
    tcp.deaf = !state::got_fin(tcp.state) && ready(fd, RDHUP);
    Ok(())
}

fn read_connection(fd: BorrowedFd<'_>, info: Info, tcp: &mut TcpState) -> Result<(), Errno> {
    let repair = Repair::on(fd)?;
    let now = Info::of(fd)?.state;
    if !state::connected(now) {
        return Err(Errno::EAGAIN);
    }
    tcp.state = now;
    // A FIN takes a number of its own at the end of a queue. What is left of the send queue is then one less than what
    // the kernel counts, unless the FIN was acknowledged.
    let (sent_fin, got_fin) = (state::sent_fin(now), state::got_fin(now));
    let end = repair.sequence(Queue::Send)?.wrapping_sub(u32::from(sent_fin));
    let unsent = net::unsent(fd)?;
    let mut queued = net::unacknowledged(fd)?;
    let fin_waits = sent_fin && matches!(now, state::FIN_WAIT1 | state::LAST_ACK | state::CLOSING);
    let data = match repair.content(Queue::Send, queued as usize) {
        Err(Errno::EAGAIN) if fin_waits && queued > 0 => {
            queued -= 1;
            repair.content(Queue::Send, queued as usize)
        }
        other => other,
    }?;
    tcp.recv_seq = repair.sequence(Queue::Receive)?.wrapping_sub(u32::from(got_fin));
    let unread = net::unread(fd)?;
    tcp.recv_data = repair.content(Queue::Receive, unread as usize)?.into();
    tcp.unsent = unsent.saturating_sub(u32::from(fin_waits)).min(queued);
    tcp.send_seq = end.wrapping_sub(queued);
    tcp.send_data = data.into();
    let mut window: Window = repair.window()?;
    if got_fin && window.rcv_wup == tcp.recv_seq.wrapping_add(1) {
        window.rcv_wup = tcp.recv_seq;
    }
    tcp.window = window.to_bytes().to_vec().into();
    tcp.mss = repair.mss()?;
    tcp.wscale = info.wscale;
    tcp.sack = info.sack;
    tcp.timestamps = info.timestamps;
    tcp.timestamp = repair.timestamp()?;
    // Nothing came or went meanwhile.
    let same = repair.sequence(Queue::Send)?.wrapping_sub(u32::from(sent_fin)) == end
        && repair.sequence(Queue::Receive)?.wrapping_sub(u32::from(got_fin)) == tcp.recv_seq
        && Info::of(fd)?.state == now;
    if same { Ok(()) } else { Err(Errno::EAGAIN) }
}

/// A socket that is not connected, and may have been once.
fn closed(fd: BorrowedFd<'_>, info: Info, tcp: &mut TcpState) -> Result<(), Errno> {
    tcp.was_connected = info.segments > 0;
    if !tcp.was_connected {
        return Ok(());
    }
    tcp.broken = ready(fd, PollFlags::POLLERR);
    let peek_offset = hold_peek_offset(fd)?;
    tcp.recv_data = peek(fd).into();
    release_peek_offset(fd, peek_offset);
    Ok(())
}

/// All that can be read.
pub(super) fn peek(fd: BorrowedFd<'_>) -> Vec<u8> {
    let mut data = vec![0; net::unread(fd).unwrap_or(0) as usize];
    if data.is_empty() {
        // Asking for more would take an error that the program has still to hear of.
        return data;
    }
    let got = net::receive(fd, &mut data, libc::MSG_PEEK).map_or(0, |r| r.len);
    data.truncate(got);
    data
}

pub(super) fn ready(fd: BorrowedFd<'_>, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, what)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
        && fds[0].revents().is_some_and(|r| r.intersects(what))
}

/// A program may have told the kernel where peeking begins.
fn hold_peek_offset(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    let offset = net::get_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1);
    if offset >= 0 {
        net::set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    }
    Ok(offset)
}

fn release_peek_offset(fd: BorrowedFd<'_>, offset: i32) {
    if offset >= 0 {
        let _ = net::set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset);
    }
}
