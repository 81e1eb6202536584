//! Raw, ping, netlink and packet sockets; membership in groups.
#![forbid(unsafe_code)]

use super::Maker;
use crate::checkpoint::inet::address;
use crate::checkpoint::inet::multicast::Filter;
use crate::checkpoint::state::SocketState;
use crate::sys::net;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) fn raw(maker: &mut Maker<'_>, socket: &SocketState) -> Result<OwnedFd> {
    let fd = maker.bound(socket)?;
    join_groups(maker, fd.as_fd(), socket)?;
    if !socket.remote.is_empty() {
        let remote = maker.place.translate_address(&socket.remote)?;
        net::connect(fd.as_fd(), &remote).map_err(|e| Error::from(e).context("connecting it"))?;
    }
    Ok(fd)
}

/// Joins the multicast groups of an internet socket.
pub(super) fn join_groups(maker: &mut Maker<'_>, fd: BorrowedFd<'_>, socket: &SocketState) -> Result<()> {
    for member in &socket.multicast {
        let damaged =
            || Error::invalid_argument(format!("the statefile is damaged: group {:?}", member.group));
        let group: IpAddr = member.group.parse().map_err(|_| damaged())?;
        let sources: Vec<_> = member
            .sources
            .iter()
            .map(|s| Ok(address::to_bytes(SocketAddr::new(s.parse().map_err(|_| damaged())?, 0))))
            .collect::<Result<_>>()?;
        let filter = Filter { include: member.include, sources };
        let joined = maker.place.interface(member.interface).and_then(|i| Ok(filter.join(fd, i, group)?));
        if let Err(e) = joined {
            maker.warnings.push(format!("{}: joining {group}: {e}", super::describe(socket)));
        }
    }
    Ok(())
}

pub(super) fn netlink(maker: &mut Maker<'_>, socket: &SocketState) -> Result<OwnedFd> {
    const SOL_NETLINK: i32 = 270;
    let fd = maker.new_socket(socket)?;
    // `struct sockaddr_nl`: family, padding, port, groups.
    let port: Option<[u8; 4]> = socket.local.get(4..8).and_then(|b| b.try_into().ok());
    if port.is_some_and(|p| p != [0; 4]) {
        match net::bind(fd.as_fd(), &socket.local) {
            Ok(()) => {}
            // Another process of the network namespace has the number; most programs do not look at it.
            Err(Errno::EADDRINUSE) => {
                let mut any = socket.local.0.clone();
                any[4..8].fill(0);
                net::bind(fd.as_fd(), &any).map_err(|e| Error::from(e).context("binding it"))?;
                maker.warnings.push("a netlink socket has got another port number".to_owned());
            }
            Err(e) => return Err(Error::from(e).context("binding it")),
        }
    }
    for group in &socket.groups {
        if let Err(e) = net::set_int(fd.as_fd(), SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, *group as i32) {
            maker.warnings.push(format!("a netlink socket cannot join group {group}: {e}"));
        }
    }
    if !socket.remote.is_empty() {
        net::connect(fd.as_fd(), &socket.remote).map_err(|e| Error::from(e).context("connecting it"))?;
    }
    Ok(fd)
}

pub(super) fn packet(maker: &mut Maker<'_>, socket: &SocketState) -> Result<OwnedFd> {
    const SOL_PACKET: i32 = 263;
    const PACKET_ADD_MEMBERSHIP: i32 = 1;
    // Without a protocol it hears nothing until it is bound.
    let fd = net::socket(socket.family, socket.kind, 0).map_err(|e| Error::from(e).context("making it"))?;
    maker.dress(fd.as_fd(), socket)?;
    for member in &socket.multicast {
        let mut request = maker.place.interface(member.interface)?.to_ne_bytes().to_vec();
        let (kind, address) = match member.group.as_str() {
            "promiscuous" => (1u16, Vec::new()),
            "allmulti" => (2, Vec::new()),
            hex => (0, bytes_of(hex)?),
        };
        request.extend(kind.to_ne_bytes());
        request.extend((address.len() as u16).to_ne_bytes());
        request.extend(&address);
        request.resize(request.len().max(16), 0);
        net::set(fd.as_fd(), SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request)
            .map_err(|e| Error::from(e).context(format!("membership {}", member.group)))?;
    }
    // `struct sockaddr_ll`: family, protocol, interface, …
    let index = socket.local.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let protocol = socket.local.get(2..4).unwrap_or(&[0, 0]);
    let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
    address.extend(protocol);
    address.extend(maker.place.interface(index)?.to_ne_bytes());
    address.resize(20, 0);
    net::bind(fd.as_fd(), &address).map_err(|e| Error::from(e).context("binding it"))?;
    Ok(fd)
}

fn bytes_of(hex: &str) -> Result<Vec<u8>> {
    let damaged = || Error::invalid_argument(format!("the statefile is damaged: link address {hex:?}"));
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) || hex.len() > 64 {
        return Err(damaged());
    }
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).map_err(|_| damaged())).collect()
}
