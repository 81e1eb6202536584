//! Sockets whose connection is over: what had arrived can be read, and then the program hears how it ended.
#![forbid(unsafe_code)]

use super::Maker;
use crate::checkpoint::inet::address;
use crate::checkpoint::inet::options::Room;
use crate::checkpoint::inet::repair::{Info, state};
use crate::checkpoint::state::{SocketState, TcpState};
use crate::sys::net;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a packet may take over the loopback interface.
const SOON: Duration = Duration::from_secs(2);

/// Makes a connection within this network namespace, to the socket's own address if that is here, sends it what had
/// arrived, and breaks it, or ends it in an orderly way if it had ended so.
pub(super) fn make(maker: &mut Maker<'_>, socket: &SocketState, tcp: &TcpState) -> Result<OwnedFd> {
    // A socket that had only been connecting knows no more than one that was refused.
    let broken = tcp.broken || state::connected(tcp.state) || tcp.state == state::SYN_SENT;
    if broken && !tcp.was_connected {
        let remote = address::parse(&socket.remote).map_or_else(|| "its peer".to_owned(), |a| a.to_string());
        maker.warnings.push(format!("the connection to {remote} is broken"));
    }
    let (fd, helper) = pair(socket).map_err(|e| Error::from(e).context("standing in for its peer"))?;
    maker.dress(fd.as_fd(), socket)?;
    finish(fd.as_fd(), helper, &tcp.recv_data, broken)
        .map_err(|e| Error::from(e).context("ending it as it had ended"))?;
    Ok(fd)
}

/// The socket and its stand-in for a peer.
fn pair(socket: &SocketState) -> nix::Result<(OwnedFd, OwnedFd)> {
    let loopback: IpAddr = match socket.family {
        libc::AF_INET6 => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    let own = address::parse_as_is(&socket.local);
    let port = own.map_or(0, |a| a.port());
    let candidates = own.into_iter().chain([SocketAddr::new(loopback, port), SocketAddr::new(loopback, 0)]);
    let mut last = Errno::EADDRNOTAVAIL;
    for candidate in candidates {
        match pair_at(socket.family, candidate) {
            Ok(pair) => return Ok(pair),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn pair_at(family: i32, at: SocketAddr) -> nix::Result<(OwnedFd, OwnedFd)> {
    let new = || net::socket(family, libc::SOCK_STREAM, libc::IPPROTO_TCP);
    let listener = new()?;
    net::set_int(listener.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    net::bind(listener.as_fd(), &address::to_bytes(at))?;
    net::listen(listener.as_fd(), 1)?;
    let helper = new()?;
    match net::connect(helper.as_fd(), &net::local(listener.as_fd())?) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    wait(listener.as_fd(), PollFlags::POLLIN)?;
    let fd = net::accept(listener.as_fd())?;
    if net::remote(fd.as_fd())? != net::local(helper.as_fd())? {
        // Somebody else was faster.
        return Err(Errno::EADDRINUSE);
    }
    Ok((fd, helper))
}

fn finish(fd: BorrowedFd<'_>, helper: OwnedFd, data: &[u8], broken: bool) -> nix::Result<()> {
    let peer = helper.as_fd();
    let (room, theirs) = (Room::make(fd, 0, data.len()), Room::make(peer, data.len(), 0));
    let mut rest = data;
    while !rest.is_empty() {
        match net::send(peer, rest, &[], 0) {
            Ok(n) => rest = &rest[n..],
            Err(Errno::EAGAIN) => wait(peer, PollFlags::POLLOUT)?,
            Err(e) => return Err(e),
        }
    }
    let deadline = Instant::now() + SOON;
    while (net::unread(fd)? as usize) < data.len() {
        if Instant::now() > deadline {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::yield_now();
    }
    room.end(fd);
    theirs.end(peer);
    if broken {
        net::set(peer, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0])?;
        drop(helper);
    } else {
        drop(helper);
        wait(fd, PollFlags::POLLIN)?;
        match net::shutdown(fd, libc::SHUT_WR) {
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(e) => return Err(e),
        }
    }
    let deadline = Instant::now() + SOON;
    while Info::of(fd)?.state != state::CLOSE {
        if Instant::now() > deadline {
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags) -> nix::Result<()> {
    let mut fds = [PollFd::new(fd, what)];
    let timeout = PollTimeout::try_from(SOON).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, timeout)? == 0 { Err(Errno::ETIMEDOUT) } else { Ok(()) }
}
