//! Raw, ping, netlink and packet sockets: what they are set to is saved; data that waits in them is not.
#![forbid(unsafe_code)]

use super::{Sockets, refusal};
use crate::checkpoint::inet::{address, diag};
use crate::checkpoint::state::{MulticastGroup, Refusal, SocketState};
use crate::procfs::ProcFs;
use crate::sys::net;
use nix::errno::Errno;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

/// Raw and ping sockets. Unread packets are lost, as they may be on any network.
pub(super) fn raw(sockets: &Sockets, procfs: &ProcFs, socket: &mut SocketState) -> Result<(), Refusal> {
    // getpeername(2) has none for them, because they have no ports.
    let Some(network) = sockets.networks.get(socket.network as usize) else { return Ok(()) };
    let table = network.table(procfs, &["raw", "icmp"]).unwrap_or_default();
    let own = table.iter().find(|e| e.inode == socket.inode && !e.remote.ip().is_unspecified());
    if let Some(own) = own {
        let peer = SocketAddr::new(own.remote.ip(), 0);
        socket.remote = address::to_bytes(address::for_family(peer, socket.family)).into();
    }
    Ok(())
}

/// Netlink sockets: answers that wait are the rest of a conversation with the kernel, which cannot be taken up again.
pub(super) fn netlink(fd: BorrowedFd<'_>, socket: &mut SocketState) -> Result<(), Refusal> {
    const NETLINK_LIST_MEMBERSHIPS: i32 = 9;
    const SOL_NETLINK: i32 = 270;
    const GENERIC: i32 = 16;
    let name = "netlink socket";
    if !matches!(
        socket.protocol,
        libc::NETLINK_ROUTE
            | libc::NETLINK_SOCK_DIAG
            | libc::NETLINK_KOBJECT_UEVENT
            | libc::NETLINK_USERSOCK
            | libc::NETLINK_AUDIT
            | libc::NETLINK_CONNECTOR
            | libc::NETLINK_NETFILTER
            | GENERIC
    ) {
        return Err(refusal(name, format!("of protocol {}, which is not supported", socket.protocol)));
    }
    match net::receive(fd, &mut [0; 1], libc::MSG_PEEK | libc::MSG_TRUNC) {
        Err(Errno::EAGAIN) => {}
        // Overrun: told once, and taken by this look. Programs have to expect it at any time.
        Err(Errno::ENOBUFS) => {}
        Ok(_) => {
            return Err(refusal(
                name,
                "messages of the kernel wait in it, which cannot be put into another; try again when the program has read them",
            ));
        }
        Err(e) => return Err(refusal(name, format!("looking at it: {e}"))),
    }
    let mut words = [0u8; 1024];
    if let Ok(len) = net::get(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &mut words) {
        for (i, byte) in words[..len].iter().enumerate() {
            let bits = (0..8).filter(|bit| byte & (1 << bit) != 0);
            socket.groups.extend(bits.map(|bit| i as u32 * 8 + bit + 1));
        }
    }
    // The kernel is the peer of a socket that was not connected.
    let remote = net::remote(fd).unwrap_or_default();
    if remote.get(4..12).is_some_and(|b| b.iter().any(|b| *b != 0)) {
        socket.remote = remote.into();
    }
    Ok(())
}

/// Packet sockets without rings.
pub(super) fn packet(sockets: &Sockets, fd: BorrowedFd<'_>, socket: &mut SocketState) -> Result<(), Refusal> {
    const PACKET_FANOUT: i32 = 18;
    const SOL_PACKET: i32 = 263;
    let name = "packet socket";
    if net::get_int(fd, SOL_PACKET, PACKET_FANOUT).is_ok_and(|v| v != 0) {
        return Err(refusal(name, "it belongs to a fanout group, which is not supported"));
    }
    let Some(network) = sockets.networks.get(socket.network as usize) else { return Ok(()) };
    let all = network.enter(diag::packets).map_err(|e| refusal(name, e.message))?;
    let Some(found) = all.into_iter().find(|p| p.inode == socket.inode) else { return Ok(()) };
    if found.ring {
        return Err(refusal(name, "it has a ring in memory that is shared with the kernel (PACKET_RX_RING)"));
    }
    for (interface, kind, address) in found.memberships {
        let group = match kind {
            0 => address.iter().map(|b| format!("{b:02x}")).collect(),
            1 => "promiscuous".to_owned(),
            2 => "allmulti".to_owned(),
            other => return Err(refusal(name, format!("membership of type {other} is not supported"))),
        };
        socket.multicast.push(MulticastGroup { interface, group, ..MulticastGroup::default() });
    }
    Ok(())
}
