//! Saving sockets of the internet, netlink and packet families.
//!
//! Sockets are looked at from outside, through a copy of the descriptor: options, addresses, and what is queued, which is
//! only peeked at. The order of calls:
//!
//! ```text
//! Sockets::new      network namespaces of the containers        state.networks
//! inspect           once for each open file description          SocketState
//! link              all descriptions are known: which ends belong together, what leaves the sandbox; refusals
//! settle            nothing will be refused any more: what waits to be accepted is taken over
//! release           the containers go on, or end
//! ```
#![forbid(unsafe_code)]

mod link;
mod multicast;
mod network;
mod other;
mod tcp;
mod udp;
mod waiting;

pub(crate) use network::{makes_namespace, namespace_inode};

use super::context::Context;
use crate::checkpoint::inet::netlink::Netlink;
use crate::checkpoint::inet::options::{self, Reference};
use crate::checkpoint::inet::{address, repair};
use crate::checkpoint::state::{Bytes, Id, Refusal, SocketState};
use crate::procfs::ProcFs;
use crate::sys::net;
use airlock_wire::error::Result;
use nix::sys::stat::fstat;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const MPTCP: i32 = 262;

/// What a dump keeps of sockets until the containers go on.
#[derive(Debug)]
pub struct Sockets {
    reference: Reference,
    /// Network namespaces in the order of `state.networks`.
    networks: Vec<network::Network>,
    /// Connected and listening TCP sockets by inode.
    kept: HashMap<u64, Kept>,
    /// Connections that leave the sandbox are kept.
    tcp_established: bool,
}

/// A TCP socket that has to be looked at again.
#[derive(Debug)]
struct Kept {
    fd: OwnedFd,
    /// Index of its network namespace.
    network: Id,
    /// It leaves the sandbox.
    outside: bool,
    /// It hears nothing; this was attached before.
    muted: Option<Bytes>,
}

impl Sockets {
    /// Finds the network namespaces of the containers and takes note of them in the state.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn new(ctx: &mut Context) -> Result<Self> {
        let networks = network::collect(ctx)?;
        Ok(Self {
            reference: Reference::default(),
            networks,
            kept: HashMap::new(),
            tcp_established: ctx.order.tcp_established,
        })
    }

    /// True for families that [`Sockets::inspect`] knows or refuses: all but AF_UNIX.
    pub fn knows(family: i32) -> bool {
        family != libc::AF_UNIX
    }

    /// Describes the socket behind `fd`, a copy of a container's descriptor. Nothing of it changes.
    ///
    /// # Errors
    /// What cannot be saved, with `kind` and `what` set and the rest left to the caller.
    pub fn inspect(
        &mut self,
        procfs: &ProcFs,
        fd: BorrowedFd<'_>,
    ) -> std::result::Result<SocketState, Refusal> {
        let ask = |name| net::get_int(fd, libc::SOL_SOCKET, name).map_err(|e| refusal("socket", e.desc()));
        let family = ask(libc::SO_DOMAIN)?;
        let kind = ask(libc::SO_TYPE)?;
        let protocol = ask(libc::SO_PROTOCOL)?;
        let stat = fstat(fd).map_err(|e| refusal("socket", e.desc()))?;
        let name = check_known(family, kind, protocol)?;
        let mut state = SocketState {
            family,
            kind,
            protocol,
            inode: stat.st_ino,
            cookie: cookie(fd),
            network: self.network_of(fd, name)?,
            owner: (stat.st_uid, stat.st_gid),
            local: net::local(fd).unwrap_or_default().into(),
            ..SocketState::default()
        };
        (state.filter, state.filter_locked) =
            options::read_filter(fd).map_err(|e| refusal(name, e.message))?;
        match (family, kind) {
            (libc::AF_NETLINK, _) => other::netlink(fd, &mut state)?,
            (libc::AF_PACKET, _) => other::packet(self, fd, &mut state)?,
            (_, libc::SOCK_STREAM) => tcp::inspect(fd, &mut state)?,
            (_, libc::SOCK_DGRAM) if protocol == libc::IPPROTO_UDP => udp::inspect(fd, &mut state)?,
            _ => other::raw(self, procfs, &mut state)?,
        }
        if kind != libc::SOCK_STREAM && matches!(family, libc::AF_INET | libc::AF_INET6) {
            state.multicast = self.networks[state.network as usize].memberships(procfs, fd, family);
        }
        let connected = state.tcp.as_ref().is_some_and(|t| repair::state::connected(t.state));
        let once = connected || state.tcp.as_ref().is_some_and(|t| t.was_connected);
        state.options = self.reference.changed(fd, (family, kind, protocol), once);
        let listens = state.listen.is_some();
        if connected || listens {
            let fd = fd.try_clone_to_owned().map_err(|e| refusal(name, e.to_string()))?;
            self.kept.insert(state.inode, Kept { fd, network: state.network, outside: false, muted: None });
        }
        Ok(state)
    }

    /// Finds out which sockets belong together, and refuses what cannot be made again. All descriptions are in
    /// `ctx.state.files` by now. Call it again when the containers ran in between.
    pub fn link(&mut self, ctx: &mut Context) {
        link::link(self, ctx);
    }

    /// Takes over what is in accept queues. Nothing is refused after this; the containers do not notice.
    pub fn settle(&mut self, ctx: &mut Context) {
        waiting::settle(self, ctx);
    }

    /// The containers are about to end (`kill`), or to go on. Afterwards connections that leave the sandbox break with
    /// their sockets, so that their peers hear of it at once, or are left alone when they are to be kept.
    pub fn release(self, kill: bool) {
        for kept in self.kept.values() {
            let fd = kept.fd.as_fd();
            if kill && kept.outside {
                if self.tcp_established {
                    self.hold(kept);
                    let _ = repair::Repair::stay(fd);
                } else {
                    // On, 0 seconds: the end of the socket sends RST.
                    let _ = net::set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]);
                }
            } else if let Some(before) = &kept.muted {
                unmute(fd, before);
            }
        }
    }

    /// Keeps the kernel from ending a connection that has no socket until it is restored.
    fn hold(&self, kept: &Kept) {
        let Some(network) = self.networks.get(kept.network as usize) else { return };
        let ends =
            |fd| Some((address::parse(&net::local(fd).ok()?)?, address::parse(&net::remote(fd).ok()?)?));
        if let Some((local, remote)) = ends(kept.fd.as_fd()) {
            // Without it the connection is lost only if its peer has something to say meanwhile.
            let _ = network.enter(|| Netlink::route()?.hold(local, remote));
        }
    }

    fn network_of(&self, fd: BorrowedFd<'_>, name: &str) -> std::result::Result<Id, Refusal> {
        // Without the privilege to ask it is taken for one of the sandbox's: containers share theirs as a rule.
        let Ok(ns) = net::namespace(fd) else { return Ok(0) };
        let inode = fstat(&ns).map_err(|e| refusal(name, e.desc()))?.st_ino;
        match self.networks.iter().position(|n| n.inode == inode) {
            Some(i) => Ok(i as Id),
            None => Err(refusal(name, "it is in a network namespace that is none of the containers'")),
        }
    }
}

/// Drops whatever comes in: a filter that accepts no byte. Nothing is acknowledged, so that peers try again later.
const MUTE: [net::Instruction; 1] = [[6, 0, 0, 0, 0, 0, 0, 0]];

fn mute(fd: BorrowedFd<'_>) -> nix::Result<()> {
    net::attach_filter(fd, &MUTE)
}

fn unmute(fd: BorrowedFd<'_>, before: &Bytes) {
    let _ = if before.is_empty() {
        net::detach_filter(fd)
    } else {
        net::attach_filter(fd, before.as_chunks::<8>().0)
    };
}

fn refusal(kind: &str, what: impl Into<String>) -> Refusal {
    Refusal { kind: kind.to_owned(), what: what.into(), ..Refusal::default() }
}

fn cookie(fd: BorrowedFd<'_>) -> u64 {
    let mut bytes = [0; 8];
    net::get(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}

/// What to call the socket; an error if it is of a kind that cannot be saved.
fn check_known(family: i32, kind: i32, protocol: i32) -> std::result::Result<&'static str, Refusal> {
    const XDP: i32 = 44;
    const SMC: i32 = 43;
    const QIPCRTR: i32 = 42;
    const KCM: i32 = 41;
    let unknown = |name: &str, why: &str| Err(refusal(name, why));
    match (family, kind, protocol) {
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => Ok("TCP socket"),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, MPTCP) => Ok("MPTCP socket"),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Ok("UDP socket"),
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6) => {
            Ok("ping socket")
        }
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => Ok("raw socket"),
        (libc::AF_NETLINK, ..) => Ok("netlink socket"),
        (libc::AF_PACKET, ..) => Ok("packet socket"),
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_SCTP) => unknown(
            "SCTP socket",
            "associations cannot be read from the kernel; close it before the checkpoint",
        ),
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_UDPLITE) => {
            unknown("UDP-Lite socket", "this protocol is not supported; use UDP")
        }
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_DCCP) => {
            unknown("DCCP socket", "connections cannot be read from the kernel")
        }
        (libc::AF_INET | libc::AF_INET6, ..) => {
            Err(refusal("socket", format!("of type {kind} and protocol {protocol}, which is not supported")))
        }
        (libc::AF_VSOCK, ..) => unknown("vsock socket", "it leads out of this machine's kernel"),
        (XDP, ..) => unknown("XDP socket", "its rings belong to a network device"),
        (libc::AF_ALG, ..) => unknown("crypto socket (AF_ALG)", "its keys cannot be read from the kernel"),
        (libc::AF_CAN, ..) => unknown("CAN socket", "it belongs to a device"),
        (libc::AF_BLUETOOTH, ..) => unknown("bluetooth socket", "it belongs to a device"),
        (SMC, ..) => unknown("SMC socket", "connections cannot be read from the kernel"),
        (KCM, ..) => unknown("KCM socket", "its state cannot be read from the kernel"),
        (QIPCRTR, ..) => unknown("QIPCRTR socket", "it belongs to a device"),
        _ => Err(refusal("socket", format!("of family {family}, which is not supported"))),
    }
}

/// Reads a text as the kernel's lists of multicast groups.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(text: &str) {
    let _ = (multicast::parse_igmp(text), multicast::parse_igmp6(text));
}

#[cfg(test)]
mod tests;
