//! UDP sockets and the datagrams that waited in them.
#![forbid(unsafe_code)]

use super::Maker;
use crate::checkpoint::inet::address;
use crate::checkpoint::inet::options::Room;
use crate::checkpoint::state::{SocketMessage, SocketState};
use crate::sys::net;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) fn make(maker: &mut Maker<'_>, socket: &SocketState) -> Result<OwnedFd> {
    let fd = maker.bound(socket)?;
    super::other::join_groups(maker, fd.as_fd(), socket)?;
    // Before it is connected, while it takes datagrams from everybody.
    if !socket.queue.is_empty() {
        refill(maker, fd.as_fd(), socket);
    }
    if !socket.remote.is_empty() {
        let remote = maker.place.translate_address(&socket.remote)?;
        match net::connect(fd.as_fd(), &remote) {
            Ok(()) => {}
            // As it would be if the network had changed while it was connected.
            Err(e @ (Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => {
                maker.warnings.push(format!("{}: no route to its peer: {e}", super::describe(socket)));
            }
            Err(e) => return Err(Error::from(e).context("connecting it")),
        }
    }
    if socket.shutdown != 0 {
        let how = if socket.shutdown == 3 { libc::SHUT_RDWR } else { i32::from(socket.shutdown) - 1 };
        let _ = net::shutdown(fd.as_fd(), how);
    }
    Ok(fd)
}

/// Sends it the datagrams again, from the addresses they had come from. What gets lost is told: programs have to expect
/// it of a network.
fn refill(maker: &mut Maker<'_>, fd: BorrowedFd<'_>, socket: &SocketState) {
    let bytes: usize = socket.queue.iter().map(|m| m.data.len() + 1024).sum();
    let room = Room::make(fd, 0, bytes);
    let mut lost = 0;
    for message in &socket.queue {
        if send(fd, socket.family, message).is_err() {
            lost += 1;
        }
    }
    room.end(fd);
    if lost > 0 {
        let all = socket.queue.len();
        maker
            .warnings
            .push(format!("{}: {lost} of {all} unread datagrams are lost", super::describe(socket)));
    }
}

fn send(fd: BorrowedFd<'_>, family: i32, message: &SocketMessage) -> nix::Result<()> {
    let to = address::parse_as_is(&net::local(fd)?).ok_or(Errno::EINVAL)?;
    let from = address::parse_as_is(&message.from).ok_or(Errno::EINVAL)?;
    let to = match to.ip() {
        ip if !ip.is_unspecified() => to,
        // Who sent to any of this machine's addresses sent from one of the same family.
        IpAddr::V6(_) if !matches!(from.ip().to_canonical(), IpAddr::V4(_)) => {
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), to.port())
        }
        _ => address::for_family(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), to.port()), family),
    };
    let sender = net::socket(family, libc::SOCK_DGRAM, libc::IPPROTO_UDP)?;
    let sender = sender.as_fd();
    for (level, name) in [
        (libc::SOL_SOCKET, libc::SO_REUSEADDR),
        // The address may be another machine's.
        (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    ] {
        let _ = net::set_int(sender, level, name, 1);
    }
    net::bind(sender, &address::to_bytes(from))?;
    let room = Room::make(sender, message.data.len(), 0);
    let sent = net::send(sender, &message.data, &address::to_bytes(to), 0);
    room.end(sender);
    sent?;
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::from(200u16))? == 0 { Err(Errno::ETIMEDOUT) } else { Ok(()) }
}
