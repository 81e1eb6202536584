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
    /// The peer is outside the sandbox.
    pub outside: bool,
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
    /// Connections of this listener that wait to be accepted are in `files` as sockets without a descriptor.
    pub accept_queue: Vec<Id>,
}
