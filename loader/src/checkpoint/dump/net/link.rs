//! Which ends of TCP connections belong together, and which have their other end elsewhere.
#![forbid(unsafe_code)]

use super::{Kept, Sockets, mute, tcp};
use crate::checkpoint::dump::context::Context;
use crate::checkpoint::inet::address;
use crate::checkpoint::inet::repair::{Info, after, state};
use crate::checkpoint::inet::table::Entry;
use crate::checkpoint::state::{Bytes, FileKind, Id, SocketState, TcpPeer, TcpState};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// A connection's end: network, own address, the peer's.
pub(super) type End = (Id, SocketAddr, SocketAddr);

/// The end of a connected socket.
pub(super) fn end_of(socket: &SocketState) -> Option<End> {
    if !state::connected(socket.tcp.as_ref()?.state) {
        return None;
    }
    Some((socket.network, address::parse(&socket.local)?, address::parse(&socket.remote)?))
}

pub(super) fn socket(ctx: &Context, file: Id) -> Option<&SocketState> {
    match &ctx.state.files.get(file as usize)?.kind {
        FileKind::Socket(socket) => Some(socket),
        _ => None,
    }
}

pub(super) fn socket_mut(ctx: &mut Context, file: Id) -> Option<&mut SocketState> {
    match &mut ctx.state.files.get_mut(file as usize)?.kind {
        FileKind::Socket(socket) => Some(socket),
        _ => None,
    }
}

fn tcp_mut(ctx: &mut Context, file: Id) -> Option<&mut TcpState> {
    socket_mut(ctx, file)?.tcp.as_mut()
}

pub(super) fn link(sockets: &mut Sockets, ctx: &mut Context) {
    let mut ends: HashMap<End, Id> = HashMap::new();
    for file in 0..ctx.state.files.len() as Id {
        if let Some(end) = socket(ctx, file).and_then(end_of) {
            ends.insert(end, file);
        }
    }
    if ends.is_empty() {
        return;
    }
    let mut tables: HashMap<Id, Vec<Entry>> = HashMap::new();
    let mut done = Vec::new();
    for (end, file) in &ends {
        let (network, local, remote) = *end;
        if let Some(other) = ends.get(&(network, remote, local)) {
            if file <= other {
                done.push((*file, *other));
            }
            continue;
        }
        let table = tables.entry(network).or_insert_with(|| {
            let network = sockets.networks.get(network as usize);
            network.and_then(|n| n.table(&ctx.procfs, &["tcp"]).ok()).unwrap_or_default()
        });
        let other = table.iter().find(|e| e.local == remote && e.remote == local).copied();
        let own = sockets.networks.get(network as usize).is_some_and(|n| n.own);
        let peer = match other {
            Some(entry) if entry.inode == 0 => held_by_nobody(ctx, network, entry),
            // Somebody else in the same network namespace has it.
            Some(_) => TcpPeer::Outside,
            // Nothing is left of the other end. In a network of its own it can have been nowhere else.
            None if own && is_local(ctx, network, remote) => vanished(ctx, *file),
            None => TcpPeer::Outside,
        };
        if let Some(tcp) = tcp_mut(ctx, *file) {
            tcp.peer = peer;
        }
        match peer {
            TcpPeer::Outside => leaves(sockets, ctx, *file, remote),
            TcpPeer::Lost => ctx.warn(format!(
                "the connection from {local} to {remote} will be broken after a restore: nobody holds its other end"
            )),
            _ => {}
        }
    }
    for (a, b) in done {
        if !agree(sockets, ctx, a, b) {
            for file in [a, b] {
                if let Some(tcp) = tcp_mut(ctx, file) {
                    tcp.peer = TcpPeer::Lost;
                }
            }
            ctx.warn(
                "a connection inside the sandbox would not hold still, and will be broken after a restore",
            );
        }
    }
}

/// The other end exists and belongs to no process: it waits to be accepted, or was closed and is not over.
fn held_by_nobody(ctx: &Context, network: Id, entry: Entry) -> TcpPeer {
    match entry.state {
        state::ESTABLISHED | state::CLOSE_WAIT | state::SYN_RECV => {
            if listener(ctx, network, entry.local).is_some() { TcpPeer::Waiting } else { TcpPeer::Outside }
        }
        // A FIN that was not acknowledged counts as a byte.
        state::FIN_WAIT1 | state::LAST_ACK | state::CLOSING if entry.sending > 1 => TcpPeer::Lost,
        _ => TcpPeer::Closed,
    }
}

/// The listener of the sandbox that has connections to `local` in its queue.
pub(super) fn listener(ctx: &Context, network: Id, local: SocketAddr) -> Option<Id> {
    let fits = |file: Id, exactly: bool| {
        let socket = socket(ctx, file).filter(|s| s.listen.is_some() && s.network == network)?;
        let at = address::parse(&socket.local)?;
        let ip = at.ip() == local.ip() || (!exactly && at.ip().is_unspecified());
        (at.port() == local.port() && ip).then_some(file)
    };
    let all = 0..ctx.state.files.len() as Id;
    all.clone().find_map(|f| fits(f, true)).or_else(|| all.clone().find_map(|f| fits(f, false)))
}

/// The kernel forgets a closed end after a while; the other one learns of it when it sends.
fn vanished(ctx: &Context, file: Id) -> TcpPeer {
    match socket(ctx, file).and_then(|s| s.tcp.as_ref()) {
        Some(tcp) if state::got_fin(tcp.state) => TcpPeer::Closed,
        _ => TcpPeer::Lost,
    }
}

fn is_local(ctx: &Context, network: Id, remote: SocketAddr) -> bool {
    if remote.ip().is_loopback() {
        return true;
    }
    let Some(network) = ctx.state.networks.get(network as usize) else { return false };
    let ip = remote.ip().to_string();
    network.interfaces.iter().flat_map(|i| &i.addresses).any(|a| a.split('/').next() == Some(ip.as_str()))
}

/// A connection leaves the sandbox: it is kept as it is, if that was asked for.
fn leaves(sockets: &mut Sockets, ctx: &mut Context, file: Id, remote: SocketAddr) {
    let Some(inode) = socket(ctx, file).map(|s| s.inode) else { return };
    let tcp_established = sockets.tcp_established;
    let Some(kept) = sockets.kept.get_mut(&inode) else { return };
    kept.outside = true;
    if !tcp_established {
        // It goes on without us; nobody shall take what was read of it for the truth.
        if let Some(tcp) = tcp_mut(ctx, file) {
            tcp.window = Bytes::default();
        }
        ctx.warn(format!(
            "the connection to {remote} leaves the sandbox and will be broken after a restore (--tcp-established keeps such connections)"
        ));
        return;
    }
    // From here on nothing that comes is acknowledged, so that what is saved stays true until somebody goes on with it.
    let result = hush(kept, socket_mut(ctx, file));
    if let Err(e) = result {
        let users = users(ctx, file);
        for (index, fd) in users {
            let what = format!("it leads to {remote}, outside the sandbox, and cannot be held still: {e}");
            ctx.refuse(index, Some(fd), "TCP connection", what);
        }
    }
}

fn hush(kept: &mut Kept, socket: Option<&mut SocketState>) -> nix::Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    let fd = kept.fd.as_fd();
    if kept.muted.is_none() {
        mute(fd)?;
        kept.muted = Some(socket.filter.clone());
    }
    match &mut socket.tcp {
        Some(state) => tcp::connection(fd, Info::of(fd)?, state),
        None => Ok(()),
    }
}

/// Processes that have `file`, with its number.
pub(super) fn users(ctx: &Context, file: Id) -> Vec<(usize, i32)> {
    let number = |table: Id| {
        let table = ctx.state.fd_tables.get(table as usize)?;
        table.fds.iter().find(|e| e.file == file).map(|e| e.fd)
    };
    let processes = ctx.state.processes.iter().enumerate();
    processes.filter_map(|(i, p)| Some((i, number(p.threads.first()?.fd_table)?))).collect()
}

/// Makes what two ends know of each other fit together: they were looked at one after the other, while acknowledgements
/// may have been on their way. What one has received, the other need not send again.
fn agree(sockets: &Sockets, ctx: &mut Context, a: Id, b: Id) -> bool {
    const ATTEMPTS: usize = 5;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            for file in [a, b] {
                look_again(sockets, ctx, file);
            }
        }
        let (Some(one), Some(two)) =
            (socket(ctx, a).and_then(|s| s.tcp.clone()), socket(ctx, b).and_then(|s| s.tcp.clone()))
        else {
            return true;
        };
        if fits(&one, &two) && fits(&two, &one) {
            for (file, other) in [(a, two), (b, one)] {
                if let Some(tcp) = tcp_mut(ctx, file) {
                    tcp.peer = TcpPeer::Inside;
                    trim(tcp, &other);
                }
            }
            return true;
        }
    }
    false
}

/// The receiver is neither behind what the sender has thrown away, nor ahead of what it has.
fn fits(sender: &TcpState, receiver: &TcpState) -> bool {
    let end = sender.send_seq.wrapping_add(sender.send_data.len() as u32);
    !after(sender.send_seq, receiver.recv_seq) && !after(receiver.recv_seq, end)
}

/// Drops what the other end has; the rest is sent when the connection is made again.
fn trim(sender: &mut TcpState, receiver: &TcpState) {
    let had = receiver.recv_seq.wrapping_sub(sender.send_seq) as usize;
    if had <= sender.send_data.len() {
        sender.send_data.0.drain(..had);
        sender.send_seq = receiver.recv_seq;
        sender.unsent = sender.send_data.len() as u32;
    }
}

fn look_again(sockets: &Sockets, ctx: &mut Context, file: Id) {
    let Some(socket) = socket_mut(ctx, file) else { return };
    let (Some(kept), Some(tcp)) = (sockets.kept.get(&socket.inode), &mut socket.tcp) else { return };
    let fd = kept.fd.as_fd();
    if let Ok(info) = Info::of(fd) {
        let _ = tcp::connection(fd, info, tcp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(seq: u32, data: &[u8]) -> TcpState {
        TcpState { send_seq: seq, send_data: data.into(), ..TcpState::default() }
    }

    #[test]
    fn what_was_received_is_not_sent_again() {
        let receiver = TcpState { recv_seq: 1, ..TcpState::default() };
        let mut s = sender(u32::MAX - 1, b"abcdef");
        assert!(fits(&s, &receiver));
        trim(&mut s, &receiver);
        assert_eq!((s.send_seq, &*s.send_data.0, s.unsent), (1, b"def".as_slice(), 3));
        assert!(
            !fits(&sender(2, b"abc"), &receiver),
            "the sender has thrown away what the receiver has not got"
        );
        assert!(!fits(&sender(u32::MAX, b"a"), &receiver), "the receiver has what the sender never had");
        assert!(fits(&sender(1, b""), &receiver));
    }
}
