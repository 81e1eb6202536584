//! Connections: by repair mode, or by connecting again.
#![forbid(unsafe_code)]

use crate::checkpoint::inet::options::Room;
use crate::checkpoint::inet::repair::{self, Agreed, Queue, Repair, Window, state};
use crate::checkpoint::state::{SocketState, TcpState};
use crate::sys::net;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{BorrowedFd, OwnedFd};

/// A filter that accepts no byte of any packet.
const MUTE: [net::Instruction; 1] = [[6, 0, 0, 0, 0, 0, 0, 0]];

/// Makes `fd` the end of a connection that the image describes. Nothing is sent and nothing heard.
pub(super) fn connected(fd: BorrowedFd<'_>, socket: &SocketState, tcp: &TcpState) -> Result<()> {
    let step = |what: &'static str| move |e: Errno| Error::from(e).context(what);
    Repair::stay(fd).map_err(step("entering repair mode (this needs CAP_NET_ADMIN)"))?;
    net::attach_filter(fd, &MUTE).map_err(step("silencing it"))?;
    let received = tcp.recv_data.len() as u32;
    repair::set_sequence(fd, Queue::Send, tcp.send_seq).map_err(step("setting its sequence numbers"))?;
    repair::set_sequence(fd, Queue::Receive, tcp.recv_seq.wrapping_sub(received))
        .map_err(step("setting its sequence numbers"))?;
    net::bind(fd, &socket.local).map_err(step("binding it"))?;
    net::connect(fd, &socket.remote).map_err(step("connecting it (is there a route to its peer?)"))?;
    let agreed = Agreed {
        mss: tcp.mss,
        wscale: tcp.wscale,
        sack: tcp.sack,
        timestamps: tcp.timestamps.then_some(tcp.timestamp),
    };
    repair::set_agreed(fd, agreed).map_err(step("setting what both ends agreed on"))?;
    let sent = sent(tcp)?;
    let room = Room::make(fd, tcp.send_data.len(), tcp.recv_data.len());
    let filled = repair::fill(fd, Queue::Receive, &tcp.recv_data)
        .and_then(|()| repair::fill(fd, Queue::Send, sent))
        .map_err(step("filling its queues"));
    room.end(fd);
    filled?;
    let window: [u8; 20] = tcp.window.as_ref().try_into().map_err(|_| {
        Error::invalid_argument(format!(
            "the statefile is damaged: a TCP window of {} bytes",
            tcp.window.len()
        ))
    })?;
    let window = Window::from_bytes(window);
    window.set(fd).map_err(step("setting its windows"))
}

/// What of the send queue had been sent.
fn sent(tcp: &TcpState) -> Result<&[u8]> {
    let sent = tcp.send_data.len().checked_sub(tcp.unsent as usize);
    sent.and_then(|n| tcp.send_data.get(..n)).ok_or_else(|| {
        Error::invalid_argument(format!(
            "the statefile is damaged: {} bytes of a send queue of {} are unsent",
            tcp.unsent,
            tcp.send_data.len()
        ))
    })
}

/// The other end of a connection whose program has closed it: to be closed again.
pub(super) fn closed_peer(socket: &SocketState, tcp: &TcpState) -> Result<OwnedFd> {
    let theirs: [u8; 20] = tcp.window.as_ref().try_into().unwrap_or_default();
    let theirs = Window::from_bytes(theirs);
    let ours = Window {
        snd_wl1: tcp.send_seq,
        snd_wnd: theirs.rcv_wnd,
        max_window: theirs.rcv_wnd,
        rcv_wnd: theirs.snd_wnd,
        rcv_wup: tcp.send_seq,
    };
    let mirrored = TcpState {
        state: state::ESTABLISHED,
        send_seq: tcp.recv_seq,
        recv_seq: tcp.send_seq,
        window: ours.to_bytes().to_vec().into(),
        mss: tcp.mss,
        wscale: tcp.wscale.map(|(theirs, ours)| (ours, theirs)),
        sack: tcp.sack,
        timestamps: tcp.timestamps,
        timestamp: tcp.timestamp,
        ..TcpState::default()
    };
    let address =
        SocketState { local: socket.remote.clone(), remote: socket.local.clone(), ..SocketState::default() };
    let fd = net::socket(socket.family, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    use std::os::fd::AsFd;
    connected(fd.as_fd(), &address, &mirrored).map_err(|e| e.context("its other end"))?;
    Ok(fd)
}

/// Lets an end, and the other one if nobody else has it, hear and speak.
pub(super) fn listen_again(
    fd: BorrowedFd<'_>,
    peer: Option<BorrowedFd<'_>>,
) -> std::result::Result<(), Errno> {
    for fd in [Some(fd), peer].into_iter().flatten() {
        net::detach_filter(fd)?;
        repair::off(fd, 1)?;
    }
    Ok(())
}

/// Sends what was not sent, and says again that no more will come.
pub(super) fn speak(fd: BorrowedFd<'_>, tcp: &TcpState) -> std::result::Result<(), Errno> {
    let unsent = tcp.send_data.len().saturating_sub(tcp.unsent as usize);
    send_all(fd, &tcp.send_data[unsent..])?;
    end_as_it_was(fd, tcp)
}

fn end_as_it_was(fd: BorrowedFd<'_>, tcp: &TcpState) -> std::result::Result<(), Errno> {
    let shutdown = |how| match net::shutdown(fd, how) {
        // Broken meanwhile: the program will hear of it.
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(e) => Err(e),
    };
    if state::sent_fin(tcp.state) {
        shutdown(libc::SHUT_WR)?;
    }
    if tcp.deaf {
        shutdown(libc::SHUT_RD)?;
    }
    Ok(())
}

fn send_all(fd: BorrowedFd<'_>, data: &[u8]) -> std::result::Result<(), Errno> {
    let room = Room::make(fd, data.len(), 0);
    let mut rest = data;
    let result = loop {
        if rest.is_empty() {
            break Ok(());
        }
        match net::send(fd, rest, &[], 0) {
            Ok(0) => break Err(Errno::ENOBUFS),
            Ok(n) => rest = &rest[n..],
            Err(Errno::EINTR) => {}
            // The peer broke the connection: that is for the program to see.
            Err(Errno::EPIPE | Errno::ECONNRESET) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    room.end(fd);
    result
}

/// Connects anew: to a listener of the sandbox in whose queue the connection was, or where nobody had answered yet.
pub(super) fn connect(
    fd: BorrowedFd<'_>,
    socket: &SocketState,
    tcp: &TcpState,
) -> std::result::Result<(), Errno> {
    match net::connect(fd, &socket.remote) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) if tcp.state == state::SYN_SENT => return Ok(()),
        Err(Errno::EINPROGRESS) => {
            let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::from(1000u16))? == 0 {
                return Err(Errno::ETIMEDOUT);
            }
        }
        // What the program would have been told.
        Err(_) if tcp.state == state::SYN_SENT => return Ok(()),
        Err(e) => return Err(e),
    }
    send_all(fd, &tcp.send_data)?;
    end_as_it_was(fd, tcp)
}
