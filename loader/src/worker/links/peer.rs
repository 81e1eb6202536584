//! The caller's side of a link: what a donated descriptor is, and how frames go through it.
#![forbid(unsafe_code)]

use super::offload::HEADER_LEN;
use super::xdp::Rings;
use crate::sys::{net, tap};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Room for packets in a socket's queues, in bytes: some hundred large ones.
const QUEUE: i32 = 8 << 20;

const PACKET_VNET_HDR: i32 = 15;
const PACKET_FANOUT: i32 = 18;
const PACKET_IGNORE_OUTGOING: i32 = 23;
const PACKET_FANOUT_HASH: i32 = 0;
const PACKET_FANOUT_FLAG_UNIQUEID: i32 = 0x2000;

/// How a descriptor carries frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A packet socket, packet(7); each message is a frame.
    Packet,
    /// A tap or macvtap; each read and write is a frame.
    Tap,
    /// A stream; each frame follows its length, 4 bytes in network order (QEMU's `stream` netdev, passt,
    /// gvisor-tap-vsock).
    Stream,
    /// A socket whose messages are frames (`SOCK_SEQPACKET`).
    Messages,
    /// Likewise, without connection (`SOCK_DGRAM`; vfkit's).
    Datagrams,
    /// An AF_XDP socket; frames are in its rings.
    Xdp,
}

/// A donated descriptor. Its flags are the caller's, too, and stay: it may block or not.
#[derive(Debug)]
pub struct Peer {
    /// The descriptor.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: Kind,
    /// Offload headers go before the frames: large packets go through as they are.
    pub offload: bool,
    /// Those of [`Kind::Xdp`].
    pub rings: Option<Box<Rings>>,
}

impl Peer {
    /// Finds out what `fd` is and makes it ready.
    ///
    /// # Errors
    /// Why it cannot be the other side of a link.
    pub fn identify(fd: OwnedFd) -> Result<Self> {
        let option = |name| net::get_int(fd.as_fd(), libc::SOL_SOCKET, name);
        let (kind, offload) = match option(libc::SO_DOMAIN) {
            Err(Errno::ENOTSOCK) => (Kind::Tap, prepare_tap(fd.as_fd())?),
            Err(e) => return Err(Error::from(e).context("a link's descriptor")),
            Ok(family) => {
                let kind = option(libc::SO_TYPE)?;
                match (family, kind) {
                    (libc::AF_PACKET, libc::SOCK_RAW) => (Kind::Packet, prepare_packet(fd.as_fd())?),
                    (libc::AF_PACKET, _) => {
                        return Err(wrong(
                            "a packet socket without the frames' headers (SOCK_DGRAM): use SOCK_RAW",
                        ));
                    }
                    (libc::AF_UNIX | libc::AF_VSOCK | libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => {
                        (Kind::Stream, false)
                    }
                    (libc::AF_UNIX, libc::SOCK_SEQPACKET) => (Kind::Messages, false),
                    (libc::AF_UNIX, libc::SOCK_DGRAM) => (Kind::Datagrams, false),
                    (libc::AF_XDP, _) => return Err(wrong("an AF_XDP socket: that belongs to XDPLinks")),
                    _ => return Err(wrong(&format!("a socket of family {family} and type {kind}"))),
                }
            }
        };
        if matches!(kind, Kind::Stream | Kind::Messages | Kind::Datagrams) {
            if option(libc::SO_ACCEPTCONN) == Ok(1) {
                return Err(wrong("a listening socket: give the accepted one"));
            }
            net::remote(fd.as_fd()).map_err(|_| wrong("a socket that is not connected"))?;
            enlarge(fd.as_fd());
        }
        Ok(Self { fd, kind, offload, rings: None })
    }
}

fn wrong(what: &str) -> Error {
    Error::invalid_argument(format!(
        "a link's descriptor is {what}; it takes a packet socket, a tap, or a connected unix socket"
    ))
}

fn enlarge(socket: BorrowedFd<'_>) {
    for (force, ask) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        // Without privilege over the socket's network namespace the system's limit counts.
        if net::set_int(socket, libc::SOL_SOCKET, force, QUEUE).is_err() {
            let _ = net::set_int(socket, libc::SOL_SOCKET, ask, QUEUE);
        }
    }
}

/// True if offload headers are used.
fn prepare_packet(socket: BorrowedFd<'_>) -> Result<bool> {
    // struct sockaddr_ll: the protocol and the interface's index follow the family.
    let address = net::local(socket)?;
    let bound = address.get(2..8).is_some_and(|a| a[..2] != [0, 0] && a[2..] != [0; 4]);
    if !bound {
        return Err(wrong("a packet socket that is not bound to a protocol and an interface"));
    }
    set_packet_options(socket)
}

/// Makes a packet socket ready; true if offload headers go before its frames.
///
/// # Errors
/// It has a mapped ring, through which nobody reads.
pub fn set_packet_options(socket: BorrowedFd<'_>) -> Result<bool> {
    // What is sent on this end of the cable is none of the other's business (Linux 4.20).
    let _ = net::set_int(socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    enlarge(socket);
    match net::set_int(socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1) {
        Ok(()) => Ok(true),
        Err(Errno::EBUSY) => Err(wrong("a packet socket with a mapped ring")),
        Err(_) => Ok(false),
    }
}

/// True if offload headers are used, which who made the tap has decided.
fn prepare_tap(fd: BorrowedFd<'_>) -> Result<bool> {
    let flags =
        tap::flags(fd).map_err(|_| wrong("neither a socket nor a tap that belongs to an interface"))?;
    if flags & tap::IFF_TAP == 0 {
        return Err(wrong("a tun device, which has no frames: use a tap (IFF_TAP)"));
    }
    if flags & tap::IFF_NO_PI == 0 {
        return Err(wrong("a tap with packet information: set IFF_NO_PI"));
    }
    if flags & tap::IFF_VNET_HDR == 0 {
        return Ok(false);
    }
    if tap::header_size(fd)? != HEADER_LEN as i32 {
        tap::set_header_size(fd, HEADER_LEN as i32)?;
    }
    // It hands out large packets as they are: those of TCP, and those of UDP where this kernel can. Without, everything
    // works, slower.
    let tcp = tap::TUN_F_CSUM | tap::TUN_F_TSO4 | tap::TUN_F_TSO6 | tap::TUN_F_TSO_ECN;
    let _ =
        tap::set_offload(fd, tcp | tap::TUN_F_USO4 | tap::TUN_F_USO6).or_else(|_| tap::set_offload(fd, tcp));
    Ok(true)
}

/// Has the kernel spread connections over several packet sockets of one interface, so that each gets its share instead of
/// all. Those that the caller has grouped already stay so.
///
/// # Errors
/// They are not of one interface.
pub fn spread<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>) -> Result<()> {
    let sockets: Vec<_> = sockets.collect();
    let group_of = |fd| net::get_int(fd, libc::SOL_PACKET, PACKET_FANOUT);
    if sockets.len() < 2 || sockets.iter().any(|fd| group_of(*fd).is_ok_and(|group| group != 0)) {
        return Ok(());
    }
    let mut group = (PACKET_FANOUT_HASH | PACKET_FANOUT_FLAG_UNIQUEID) << 16;
    for fd in sockets {
        net::set_int(fd, libc::SOL_PACKET, PACKET_FANOUT, group).map_err(|e| {
            Error::from(e).context("spreading packets over the sockets of a link (PACKET_FANOUT)")
        })?;
        group = group_of(fd)? & 0xffff | PACKET_FANOUT_HASH << 16;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn descriptors_are_told_apart() {
        for (kind, expected) in [
            (SockType::Stream, Kind::Stream),
            (SockType::SeqPacket, Kind::Messages),
            (SockType::Datagram, Kind::Datagrams),
        ] {
            let (a, _b) = socketpair(AddressFamily::Unix, kind, None, SockFlag::empty()).unwrap();
            let peer = Peer::identify(a).unwrap();
            assert_eq!((peer.kind, peer.offload), (expected, false));
        }
    }

    #[test]
    fn what_carries_no_frames_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let told = |fd: OwnedFd| Peer::identify(fd).unwrap_err().message;
        assert!(told(listener.into()).contains("listening"));
        let loose = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert!(told(loose.into()).contains("not connected"));
        assert!(
            told(std::fs::File::open("/dev/null").unwrap().into()).contains("neither a socket nor a tap")
        );
        assert!(
            told(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()).contains("family 2 and type 2")
        );
        if let Ok(packet) = net::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) {
            assert!(told(packet).contains("not bound"));
            let cooked = net::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0).unwrap();
            assert!(told(cooked).contains("SOCK_DGRAM"));
        }
    }
}
