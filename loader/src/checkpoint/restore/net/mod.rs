//! Making sockets of the internet, netlink and packet families again.
//!
//! Two steps. [`Sockets::make`]: all of them exist, and are bound and listening; connections inside the sandbox have
//! both ends in place, but silent (TCP's repair mode, and a filter that drops what comes in). [`Sockets::finish`], just
//! before the programs go on: connections speak, what was on its way is sent, and options that would disturb are set.
//!
//! Connections that cannot be made again end as if the network had broken them: the program reads what had arrived,
//! then ECONNRESET.
#![forbid(unsafe_code)]

mod ended;
mod network;
mod other;
mod tcp;
mod udp;

use super::context::Context;
use crate::checkpoint::inet::options::{self, When};
use crate::checkpoint::inet::repair::state;
use crate::checkpoint::inside;
use crate::checkpoint::state::{FileKind, Id, SandboxState, SocketState, TcpPeer, TcpState};
use crate::sys::{net, process};
use airlock_wire::error::{Error, Result};
use network::Place;
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Sockets that have been made, by index in `state.files`.
#[derive(Debug, Default)]
pub struct Sockets {
    made: HashMap<Id, Made>,
}

/// A socket and what is left to do with it.
#[derive(Debug)]
struct Made {
    fd: OwnedFd,
    after: After,
}

#[derive(Debug)]
enum After {
    /// Options.
    Options,
    /// It is in repair mode. `peer`: the other end that nobody holds, to be closed.
    Speak { peer: Option<OwnedFd> },
    /// To be connected to a listener of the sandbox.
    Connect,
}

impl Sockets {
    /// Makes all sockets of the containers that are restored, in the network namespaces of their waiting inits.
    ///
    /// # Errors
    /// With the socket that could not be made, and why.
    pub fn make(ctx: &mut Context) -> Result<Self> {
        let mut sockets = Self::default();
        let restored: Vec<Id> = ctx.order.containers.iter().map(|c| c.image).collect();
        for network in 0..ctx.state.networks.len().max(1) as Id {
            let wanted: Vec<Id> = (0..ctx.state.files.len() as Id)
                .filter(|id| restored.contains(&ctx.state.files[*id as usize].container))
                .filter(|id| socket(&ctx.state, *id).is_some_and(|s| s.network == network && ours(s)))
                .collect();
            let has_settings = ctx.state.networks.get(network as usize).is_some_and(|n| n.own);
            if wanted.is_empty() && !has_settings {
                continue;
            }
            let Some(init) = init_of(ctx, network) else { continue };
            let (procfs, state, established) = (&ctx.procfs, &ctx.state, ctx.order.tcp_established);
            let work = || {
                let mut maker =
                    Maker { place: Place::look(state, network)?, state, established, warnings: Vec::new() };
                maker.place.prepare(procfs, state, network, &mut maker.warnings);
                let made = maker.all(&wanted)?;
                Ok((made, maker.warnings))
            };
            let (made, warnings) = if same_network(ctx, init) {
                work()?
            } else {
                let pidfd = process::pidfd_open(init)?;
                inside::run(pidfd.as_fd(), libc::CLONE_NEWNET, work)?
            };
            sockets.made.extend(made);
            for warning in warnings {
                ctx.warn(warning);
            }
        }
        Ok(sockets)
    }

    /// The socket for `state.files[file]`; it does not block. None when it is not of these families. Copies given to
    /// programs stay the same socket, so they may be made before [`Sockets::finish`].
    pub fn get(&self, file: Id) -> Option<BorrowedFd<'_>> {
        self.made.get(&file).map(|m| m.fd.as_fd())
    }

    /// Lets connections speak. Nothing may fail for the programs after this.
    ///
    /// # Errors
    /// With the socket and the kernel's reason.
    pub fn finish(self, ctx: &mut Context) -> Result<()> {
        let mut ordered: Vec<_> = self.made.into_iter().collect();
        ordered.sort_unstable_by_key(|(id, _)| *id);
        let state = &ctx.state;
        let mut warnings = Vec::new();
        // Both ends have to be able to hear before either speaks.
        for (id, made) in &ordered {
            if let (After::Speak { peer }, Some((socket, tcp))) = (&made.after, tcp_of(state, *id)) {
                tcp::listen_again(made.fd.as_fd(), peer.as_ref().map(AsFd::as_fd))
                    .map_err(|e| named(e, "leaving repair mode", socket, tcp))?;
            }
        }
        for (id, made) in &mut ordered {
            if let (After::Speak { peer }, Some((socket, tcp))) = (&mut made.after, tcp_of(state, *id)) {
                drop(peer.take());
                tcp::speak(made.fd.as_fd(), tcp)
                    .map_err(|e| named(e, "sending what was on its way", socket, tcp))?;
            }
        }
        for id in connecting_order(state, &ordered) {
            let Some((_, made)) = ordered.iter().find(|(other, _)| *other == id) else { continue };
            if let Some((socket, tcp)) = tcp_of(state, id) {
                tcp::connect(made.fd.as_fd(), socket, tcp)
                    .map_err(|e| named(e, "connecting it again", socket, tcp))?;
            }
        }
        for (id, made) in &ordered {
            let Some(socket) = socket(state, *id) else { continue };
            let fd = made.fd.as_fd();
            if shares_address(socket) {
                let saved = options::value(&socket.options, libc::SOL_SOCKET, libc::SO_REUSEADDR);
                let _ = net::set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, saved.unwrap_or(0));
            }
            options::apply(fd, &socket.options, When::Late, &mut warnings)
                .and_then(|()| options::apply_filter(fd, &socket.filter, socket.filter_locked))
                .map_err(|e| e.context(describe(socket)))?;
        }
        for warning in warnings {
            ctx.warn(warning);
        }
        Ok(())
    }
}

/// Clients in the order in which they wait to be accepted, then those that are still connecting.
fn connecting_order(state: &SandboxState, made: &[(Id, Made)]) -> Vec<Id> {
    let connecting: Vec<Id> =
        made.iter().filter(|(_, m)| matches!(m.after, After::Connect)).map(|(id, _)| *id).collect();
    let queues = made.iter().filter_map(|(id, _)| tcp_of(state, *id)).flat_map(|(_, tcp)| &tcp.accept_queue);
    let mut all: Vec<Id> = Vec::new();
    for id in queues.chain(&connecting) {
        if connecting.contains(id) && !all.contains(id) {
            all.push(*id);
        }
    }
    all
}

/// It has to be allowed to share its address while sockets are bound, and no longer.
fn shares_address(socket: &SocketState) -> bool {
    socket.kind == libc::SOCK_STREAM || socket.protocol == libc::IPPROTO_UDP
}

fn socket(state: &SandboxState, file: Id) -> Option<&SocketState> {
    match &state.files.get(file as usize)?.kind {
        FileKind::Socket(socket) => Some(socket),
        _ => None,
    }
}

fn tcp_of(state: &SandboxState, file: Id) -> Option<(&SocketState, &TcpState)> {
    let socket = socket(state, file)?;
    Some((socket, socket.tcp.as_ref()?))
}

fn ours(socket: &SocketState) -> bool {
    socket.family != libc::AF_UNIX
}

/// The waiting init of a container that is in network `network` of the image.
fn init_of(ctx: &Context, network: Id) -> Option<i32> {
    let in_it = |image: Id| {
        ctx.state.containers.get(image as usize).is_some_and(|c| c.network.unwrap_or(0) == network)
    };
    ctx.order.containers.iter().find(|c| in_it(c.image)).map(|c| c.init)
}

fn same_network(ctx: &Context, pid: i32) -> bool {
    let inode = |path: String| {
        nix::sys::stat::fstatat(ctx.procfs.root(), path.as_str(), nix::fcntl::AtFlags::empty())
            .map(|s| s.st_ino)
            .ok()
    };
    inode(format!("{pid}/ns/net")) == inode("thread-self/ns/net".to_owned())
}

fn describe(socket: &SocketState) -> String {
    use crate::checkpoint::inet::address::parse;
    let text = |bytes: &[u8]| parse(bytes).map(|a| format!(" {a}")).unwrap_or_default();
    let to = if socket.remote.is_empty() { "" } else { " to" };
    let name = match (socket.family, socket.kind) {
        (libc::AF_NETLINK, _) => "netlink",
        (libc::AF_PACKET, _) => "packet",
        (_, libc::SOCK_STREAM) => "TCP",
        (_, libc::SOCK_DGRAM) => "UDP",
        _ => "raw",
    };
    format!("{name} socket{}{to}{}", text(&socket.local), text(&socket.remote))
}

fn named(e: Errno, what: &str, socket: &SocketState, tcp: &TcpState) -> Error {
    let text = format!("{} (state {}): {what}", describe(socket), tcp.state);
    Error::from(e).context(text)
}

/// Makes the sockets of one network namespace, in a thread that is in it.
struct Maker<'a> {
    state: &'a SandboxState,
    place: Place,
    established: bool,
    warnings: Vec<String>,
}

impl Maker<'_> {
    /// Broken connections come first, because they take an address for a moment; connections last, because they may
    /// share one with a listener.
    fn all(&mut self, wanted: &[Id]) -> Result<Vec<(Id, Made)>> {
        let mut made = Vec::new();
        let turn = |id: &Id| match socket(self.state, *id) {
            Some(s) if self.is_over(s) => 0,
            Some(s) if s.tcp.as_ref().is_some_and(|t| state::connected(t.state)) => 2,
            _ => 1,
        };
        let mut order: Vec<(u8, u64, Id)> =
            wanted.iter().map(|id| (turn(id), socket(self.state, *id).map_or(0, |s| s.inode), *id)).collect();
        // Sockets that share an address compete in the order in which they were made.
        order.sort_unstable();
        for (_, _, id) in order {
            let Some(socket) = socket(self.state, id) else { continue };
            let one = self.one(socket).map_err(|e| e.context(describe(socket)))?;
            made.push((id, one));
        }
        Ok(made)
    }

    fn one(&mut self, socket: &SocketState) -> Result<Made> {
        let plain = |fd| Made { fd, after: After::Options };
        match (socket.family, socket.kind) {
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => {
                let Some(tcp) = &socket.tcp else {
                    return Err(Error::invalid_argument(
                        "the statefile is damaged: nothing is said of its state",
                    ));
                };
                self.tcp(socket, tcp)
            }
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) if socket.protocol == libc::IPPROTO_UDP => {
                udp::make(self, socket).map(plain)
            }
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_RAW) => {
                other::raw(self, socket).map(plain)
            }
            (libc::AF_NETLINK, _) => other::netlink(self, socket).map(plain),
            (libc::AF_PACKET, _) => other::packet(self, socket).map(plain),
            (family, kind) => Err(Error::invalid_argument(format!(
                "the statefile is damaged: no socket of family {family} and type {kind} is ever saved"
            ))),
        }
    }

    fn tcp(&mut self, socket: &SocketState, tcp: &TcpState) -> Result<Made> {
        if self.is_over(socket) {
            let fd = ended::make(self, socket, tcp)?;
            return Ok(Made { fd, after: After::Options });
        }
        match tcp.state {
            state::SYN_SENT => Ok(Made { fd: self.bound(socket)?, after: After::Connect }),
            _ if tcp.peer == TcpPeer::Waiting => Ok(Made { fd: self.bound(socket)?, after: After::Connect }),
            s if state::connected(s) => {
                if tcp.peer == TcpPeer::Outside {
                    network::let_go(&socket.local, &socket.remote)?;
                }
                let fd = self.new_socket(socket)?;
                tcp::connected(fd.as_fd(), socket, tcp)?;
                let peer = match tcp.peer {
                    TcpPeer::Closed => Some(tcp::closed_peer(socket, tcp)?),
                    _ => None,
                };
                Ok(Made { fd, after: After::Speak { peer } })
            }
            _ => {
                let fd = self.bound(socket)?;
                if let Some(backlog) = socket.listen {
                    let queue = tcp.accept_queue.len() as u32;
                    let backlog = i32::try_from(backlog.max(queue)).unwrap_or(i32::MAX);
                    net::listen(fd.as_fd(), backlog).map_err(|e| Error::from(e).context("listening"))?;
                }
                Ok(Made { fd, after: After::Options })
            }
        }
    }

    /// It was connected once, or cannot be connected again.
    fn is_over(&self, socket: &SocketState) -> bool {
        let Some(tcp) = &socket.tcp else { return false };
        if !state::connected(tcp.state) && tcp.state != state::SYN_SENT {
            return tcp.was_connected;
        }
        match tcp.peer {
            TcpPeer::Outside if tcp.state != state::SYN_SENT => !self.established || tcp.window.is_empty(),
            TcpPeer::Lost => true,
            _ => !self.place.has(&socket.local),
        }
    }

    /// A socket with its owner and the options that come first.
    fn new_socket(&mut self, socket: &SocketState) -> Result<OwnedFd> {
        let fd = net::socket(socket.family, socket.kind, socket.protocol)
            .map_err(|e| Error::from(e).context("making it"))?;
        self.dress(fd.as_fd(), socket)?;
        Ok(fd)
    }

    fn dress(&mut self, fd: BorrowedFd<'_>, socket: &SocketState) -> Result<()> {
        if socket.owner != (0, 0) {
            let (uid, gid) = socket.owner;
            let owner = nix::unistd::fchown(fd, Some(uid.into()), Some(gid.into()));
            owner.map_err(|e| Error::from(e).context(format!("giving it to user {uid}")))?;
        }
        let options = self.place.translate_options(&socket.options)?;
        options::apply(fd, &options, When::Early, &mut self.warnings)
    }

    /// A socket at its address, if it has one.
    fn bound(&mut self, socket: &SocketState) -> Result<OwnedFd> {
        let fd = self.new_socket(socket)?;
        if shares_address(socket) {
            net::set_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        }
        self.bind(fd.as_fd(), socket)?;
        Ok(fd)
    }

    fn bind(&mut self, fd: BorrowedFd<'_>, socket: &SocketState) -> Result<()> {
        let Some(address) = crate::checkpoint::inet::address::parse_as_is(&socket.local) else {
            return Ok(());
        };
        if address.port() == 0 && address.ip().is_unspecified() {
            return Ok(());
        }
        let bytes = self.place.translate_address(&socket.local)?;
        match net::bind(fd, &bytes) {
            Ok(()) => Ok(()),
            Err(Errno::EADDRNOTAVAIL) => {
                self.warnings.push(format!("the address {} is not here (yet)", address.ip()));
                let (level, name) = match socket.family {
                    libc::AF_INET6 => (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND),
                    _ => (libc::IPPROTO_IP, libc::IP_FREEBIND),
                };
                net::set_int(fd, level, name, 1)?;
                let bound = net::bind(fd, &bytes);
                net::set_int(fd, level, name, options::value(&socket.options, level, name).unwrap_or(0))?;
                bound.map_err(|e| Error::from(e).context(format!("binding it to {address}")))
            }
            Err(e) => Err(Error::from(e).context(format!("binding it to {address}"))),
        }
    }
}

#[cfg(test)]
mod tests;
