//! Sockets.
#![forbid(unsafe_code)]

use super::{Bytes, Id};
use serde::{Deserialize, Serialize};

/// A socket of any family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketState {
    /// AF_*.
    pub family: i32,
    /// SOCK_STREAM & co.
    pub kind: i32,
    /// Protocol.
    pub protocol: i32,
    /// Inode at the dump; other sockets name it as their peer.
    pub inode: u64,
    /// Cookie, unique in its network namespace.
    pub cookie: u64,
    /// Network namespace.
    pub network: Id,
    /// Options to set again: (level, name, value).
    pub options: Vec<(i32, i32, Bytes)>,
    /// Own address (`sockaddr` bytes), empty: unbound.
    pub local: Bytes,
    /// Peer's address, empty: not connected.
    pub remote: Bytes,
    /// Listening, with this backlog.
    pub listen: Option<u32>,
    /// Shut down: 1 for reading, 2 for writing, 3 both.
    pub shutdown: u8,
    /// Unix sockets.
    pub unix: Option<UnixSocket>,
    /// TCP beyond the addresses.
    pub tcp: Option<TcpState>,
    /// Unread datagrams or stream data: (sender address, data, descriptors by file id).
    pub queue: Vec<SocketMessage>,
    /// User and group that the socket belongs to, as numbers of the container's user namespace.
    pub owner: (u32, u32),
    /// Attached classic BPF program, 8 bytes an instruction; empty: none.
    pub filter: Bytes,
    /// The program cannot be changed any more (SO_LOCK_FILTER).
    pub filter_locked: bool,
    /// Multicast groups that it joined.
    pub multicast: Vec<MulticastGroup>,
    /// Netlink: groups that it listens to, by number.
    pub groups: Vec<u32>,
}

/// A multicast group that a socket joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MulticastGroup {
    /// Interface.
    pub interface: u32,
    /// Group, as text; for a packet socket the link-layer address in hexadecimal, or `promiscuous`, `allmulti`.
    pub group: String,
    /// Sources are those that are let in; otherwise those that are kept out.
    pub include: bool,
    /// Sources, as text.
    pub sources: Vec<String>,
}

/// Data that waits in a receive queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketMessage {
    /// Sender's address; empty: unnamed or connected.
    pub from: Bytes,
    /// Data.
    pub data: Bytes,
    /// Descriptors in it (SCM_RIGHTS).
    pub files: Vec<Id>,
    /// Sender's pid, uid, gid, when it carries credentials.
    pub creds: Option<(i32, u32, u32)>,
}

/// What is special about a unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnixSocket {
    /// Inode of the peer, 0: none.
    pub peer: u64,
    /// Bound to a path (as the container sees it) rather than an abstract name.
    pub path: Option<String>,
    /// The path no longer leads to it.
    pub unlinked: bool,
    /// Mode and owner of the socket file.
    pub mode: u32,
    /// Owner of the socket file.
    pub owner: (u32, u32),
    /// Sockets that connected and wait to be accepted: inodes of the connecting ends, in order.
    pub pending: Vec<u64>,
    /// Connected to the listener of this inode; not accepted yet.
    pub connecting_to: u64,
    /// The peer is outside the sandbox (`--ext-unix-sk`): reconnect to its path.
    pub external: bool,
    /// SO_PEERCRED as the program saw it: pid (in the container), uid, gid.
    pub peer_creds: (i32, u32, u32),
}

/// TCP state (TCP_REPAIR).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpState {
    /// TCP_ESTABLISHED 1, … as in `tcp_info.tcpi_state`.
    pub state: u8,
    /// Where the other end is.
    pub peer: TcpPeer,
    /// State 7 (closed): it was connected once, and its address is free for others.
    pub was_connected: bool,
    /// State 7: the program has still to hear that the connection broke.
    pub broken: bool,
    /// The program does not want to receive any more (shutdown for reading).
    pub deaf: bool,
    /// Send queue: sequence number of its first byte, data, and how much of it had been sent.
    pub send_seq: u32,
    /// Data that was sent and not acknowledged, then data that was not sent.
    pub send_data: Bytes,
    /// Length of what was not sent yet.
    pub unsent: u32,
    /// Receive queue: sequence number after its last byte.
    pub recv_seq: u32,
    /// Data that was received and not read.
    pub recv_data: Bytes,
    /// TCP_REPAIR_WINDOW.
    pub window: Bytes,
    /// Negotiated options: mss, send window scale, receive window scale, SACK, timestamps.
    pub mss: u32,
    /// Send and receive window scale; none: not negotiated.
    pub wscale: Option<(u8, u8)>,
    /// SACK.
    pub sack: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// TCP_TIMESTAMP.
    pub timestamp: u32,
    /// Of a listener: the other ends (in `files`) of connections that wait to be accepted, the oldest first.
    pub accept_queue: Vec<Id>,
}

/// Where the other end of a connection is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpPeer {
    /// A socket of the sandbox, in `files`.
    #[default]
    Inside,
    /// In the accept queue of a listener of the sandbox: the connection is made anew, and `send_data` sent.
    Waiting,
    /// Closed by the program, and kept by the kernel until it is over.
    Closed,
    /// Inside, and cannot be made again: the connection breaks at restore.
    Lost,
    /// Outside the sandbox.
    Outside,
}
