//! Descriptors on Unix sockets.

/// Who is at the other end of a Unix socket, as `SO_PEERCRED` (socket(7)) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCred {
    /// Process id in the reader's pid namespace; 0 if it has none there.
    pub pid: i32,
    /// Effective user id when the peer connected, in the reader's user namespace.
    pub uid: u32,
    /// Effective group id when the peer connected.
    pub gid: u32,
}
