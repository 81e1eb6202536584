//! Connections that nobody has accepted yet.
//!
//! What their clients sent is in sockets that no descriptor leads to. So they are accepted here, their data is looked
//! at, and the same clients are connected to the same listener again, with the same data: for the containers, which are
//! stopped meanwhile, nothing has happened. At restore the clients are connected in the same way.
#![forbid(unsafe_code)]

use super::link::{end_of, listener, socket, socket_mut};
use super::{Sockets, tcp};
use crate::checkpoint::dump::context::Context;
use crate::checkpoint::inet::options::Room;
use crate::checkpoint::inet::repair::{Repair, off, state};
use crate::checkpoint::inet::table::Entry;
use crate::checkpoint::inet::{address, repair};
use crate::checkpoint::state::{Id, SocketState, TcpPeer};
use crate::sys::net;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

pub(super) fn settle(sockets: &mut Sockets, ctx: &mut Context) {
    let mut clients: HashMap<Id, Vec<Id>> = HashMap::new();
    for file in 0..ctx.state.files.len() as Id {
        let Some(one) = socket(ctx, file) else { continue };
        if one.tcp.as_ref().is_none_or(|t| t.peer != TcpPeer::Waiting) {
            continue;
        }
        if let Some((network, _, remote)) = end_of(one)
            && let Some(at) = listener(ctx, network, remote)
        {
            clients.entry(at).or_default().push(file);
        }
    }
    for (at, files) in clients {
        let order = take_over(sockets, ctx, at, &files);
        if let Some(tcp) = socket_mut(ctx, at).and_then(|s| s.tcp.as_mut()) {
            tcp.accept_queue = order;
        }
    }
}

/// Learns what `clients` of the listener have sent. Returns them in the order in which they wait.
fn take_over(sockets: &Sockets, ctx: &mut Context, at: Id, clients: &[Id]) -> Vec<Id> {
    let Some(one) = socket(ctx, at) else { return Vec::new() };
    let (network, inode) = (one.network, one.inode);
    let local = address::parse(&one.local).map(|a| a.port());
    let table = sockets.networks.get(network as usize).and_then(|n| n.table(&ctx.procfs, &["tcp"]).ok());
    let waiting: Vec<Entry> = table
        .unwrap_or_default()
        .into_iter()
        .filter(|e| e.inode == 0 && Some(e.local.port()) == local)
        .filter(|e| matches!(e.state, state::ESTABLISHED | state::CLOSE_WAIT))
        .collect();
    let ends: HashMap<SocketAddr, Id> =
        clients.iter().filter_map(|c| Some((end_of(socket(ctx, *c)?)?.1, *c))).collect();
    let unread = waiting.iter().any(|e| e.receiving > 0);
    if !unread {
        return clients.to_vec();
    }
    let strangers = waiting.iter().filter(|e| !ends.contains_key(&e.remote)).count();
    let Some(kept) = sockets.kept.get(&inode).filter(|_| strangers == 0) else {
        // Somebody outside waits in the same queue, whom we could not connect again.
        for entry in waiting.iter().filter(|e| e.receiving > 0) {
            let Some(tcp) = ends.get(&entry.remote).and_then(|c| socket_mut(ctx, *c)?.tcp.as_mut()) else {
                continue;
            };
            tcp.peer = TcpPeer::Lost;
            ctx.warn(format!(
                "the connection from {} to {}, which was not accepted yet, will be broken after a restore",
                entry.remote, entry.local
            ));
        }
        return clients.to_vec();
    };
    let mut order = Vec::new();
    let mut back = Vec::new();
    while let Ok(child) = accept(kept.fd.as_fd()) {
        let from = net::remote(child.as_fd()).ok().and_then(|bytes| address::parse(&bytes));
        let data = tcp::peek(child.as_fd());
        // In repair mode its end is not told to the client.
        let _ = Repair::stay(child.as_fd());
        drop(child);
        if let Some(client) = from.and_then(|a| ends.get(&a)) {
            order.push(*client);
            back.push((*client, data));
        }
    }
    for (client, data) in back {
        let Some(state) = socket_mut(ctx, client) else { continue };
        let Some(kept) = sockets.kept.get(&state.inode) else { continue };
        let result = connect_again(kept.fd.as_fd(), state, data);
        if let Err(e) = result {
            if let Some(tcp) = &mut state.tcp {
                tcp.peer = TcpPeer::Lost;
            }
            ctx.warn(format!("a connection that was not accepted yet is broken: connecting again: {e}"));
        }
    }
    order
}

/// The listener's own O_NONBLOCK is the program's; a queue that may be empty must not block us.
fn accept(fd: BorrowedFd<'_>) -> nix::Result<std::os::fd::OwnedFd> {
    if !tcp::ready(fd, PollFlags::POLLIN) {
        return Err(Errno::EAGAIN);
    }
    net::accept(fd)
}

/// Connects a client to its listener as if for the first time, and sends what had arrived and what was still to be sent.
fn connect_again(fd: BorrowedFd<'_>, socket: &mut SocketState, arrived: Vec<u8>) -> nix::Result<()> {
    let Some(tcp) = &mut socket.tcp else { return Ok(()) };
    let reuse = net::get_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
    Repair::stay(fd)?;
    let unspecified = [libc::AF_UNSPEC as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    net::connect(fd, &unspecified)?;
    off(fd, 1)?;
    // Breaking the old connection left this.
    let _ = net::get_int(fd, libc::SOL_SOCKET, libc::SO_ERROR);
    match net::bind(fd, &socket.local) {
        // It was bound by the program, and still is.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(e) => return Err(e),
    }
    match net::connect(fd, &socket.remote) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => {
            let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::from(1000u16))? == 0 {
                return Err(Errno::ETIMEDOUT);
            }
        }
        Err(e) => return Err(e),
    }
    let mut data = arrived;
    data.extend_from_slice(&tcp.send_data);
    let room = Room::make(fd, data.len(), 0);
    let mut rest = data.as_slice();
    while !rest.is_empty() {
        rest = &rest[net::send(fd, rest, &[], 0)?..];
    }
    room.end(fd);
    if repair::state::sent_fin(tcp.state) {
        net::shutdown(fd, libc::SHUT_WR)?;
    }
    net::set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(reuse == 1))?;
    tcp.send_data = data.into();
    tcp.unsent = tcp.send_data.len() as u32;
    Ok(())
}
