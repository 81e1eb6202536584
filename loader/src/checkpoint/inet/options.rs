//! Socket options that are saved and set again.
//!
//! Saved is what differs from a socket that was just made: the defaults are the business of the machine that restores.
//! An image may be forged, and options are set with privileges that its owner need not have, so nothing is set but
//! what is listed here.
#![forbid(unsafe_code)]

use crate::checkpoint::state::Bytes;
use crate::sys::net;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// When an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the socket gets an address.
    Early,
    /// When it has its address, its peer and its data.
    Late,
}

/// A known option.
#[derive(Debug, Clone, Copy)]
struct Known {
    level: i32,
    name: i32,
    /// Largest size of its value.
    size: usize,
    when: When,
}

const fn int(level: i32, name: i32) -> Known {
    Known { level, name, size: 4, when: When::Early }
}

const fn late(level: i32, name: i32) -> Known {
    Known { level, name, size: 4, when: When::Late }
}

const fn sized(level: i32, name: i32, size: usize, when: When) -> Known {
    Known { level, name, size, when }
}

const SOCKET: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;
const RAW: i32 = 255;
const ICMPV6: i32 = libc::IPPROTO_ICMPV6;
const PACKET: i32 = 263;
const NETLINK: i32 = 270;

/// SO_BUF_LOCK: which buffer sizes the program chose itself.
const SO_BUF_LOCK: i32 = 72;

/// Names by number where libc has none: they are those of include/uapi/asm-generic/socket.h and linux/{in,in6,tcp}.h.
const KNOWN: &[Known] = &[
    int(SOCKET, libc::SO_DEBUG),
    late(SOCKET, libc::SO_REUSEADDR),
    int(SOCKET, libc::SO_REUSEPORT),
    int(SOCKET, libc::SO_DONTROUTE),
    int(SOCKET, libc::SO_BROADCAST),
    late(SOCKET, libc::SO_KEEPALIVE),
    late(SOCKET, libc::SO_OOBINLINE),
    int(SOCKET, libc::SO_NO_CHECK),
    int(SOCKET, libc::SO_PRIORITY),
    sized(SOCKET, libc::SO_LINGER, 8, When::Late),
    late(SOCKET, libc::SO_PASSCRED),
    late(SOCKET, libc::SO_RCVLOWAT),
    sized(SOCKET, libc::SO_RCVTIMEO, 16, When::Late),
    sized(SOCKET, libc::SO_SNDTIMEO, 16, When::Late),
    late(SOCKET, libc::SO_TIMESTAMP),
    late(SOCKET, libc::SO_TIMESTAMPNS),
    late(SOCKET, libc::SO_TIMESTAMPING),
    late(SOCKET, 63), // SO_TIMESTAMP_NEW
    late(SOCKET, 64), // SO_TIMESTAMPNS_NEW
    late(SOCKET, 65), // SO_TIMESTAMPING_NEW
    late(SOCKET, libc::SO_PASSSEC),
    int(SOCKET, libc::SO_MARK),
    late(SOCKET, libc::SO_RXQ_OVFL),
    late(SOCKET, libc::SO_WIFI_STATUS),
    late(SOCKET, libc::SO_PEEK_OFF),
    late(SOCKET, libc::SO_NOFCS),
    late(SOCKET, libc::SO_SELECT_ERR_QUEUE),
    late(SOCKET, libc::SO_BUSY_POLL),
    sized(SOCKET, libc::SO_MAX_PACING_RATE, 8, When::Late),
    late(SOCKET, libc::SO_ZEROCOPY),
    sized(SOCKET, 61, 8, When::Late), // SO_TXTIME
    int(SOCKET, 62),                  // SO_BINDTOIFINDEX
    late(SOCKET, 69),                 // SO_PREFER_BUSY_POLL
    late(SOCKET, 70),                 // SO_BUSY_POLL_BUDGET
    late(SOCKET, 73),                 // SO_RESERVE_MEM
    late(SOCKET, 74),                 // SO_TXREHASH
    late(SOCKET, 75),                 // SO_RCVMARK
    late(SOCKET, 76),                 // SO_PASSPIDFD
    late(SOCKET, 82),                 // SO_RCVPRIORITY
    late(SOCKET, 83),                 // SO_PASSRIGHTS
    late(SOCKET, libc::SO_SNDBUF),
    late(SOCKET, libc::SO_RCVBUF),
    late(SOCKET, SO_BUF_LOCK),
    int(IP, libc::IP_TOS),
    int(IP, libc::IP_TTL),
    int(IP, libc::IP_HDRINCL),
    sized(IP, libc::IP_OPTIONS, 40, When::Late),
    int(IP, libc::IP_ROUTER_ALERT),
    int(IP, libc::IP_RECVOPTS),
    int(IP, libc::IP_RETOPTS),
    int(IP, libc::IP_PKTINFO),
    int(IP, libc::IP_MTU_DISCOVER),
    late(IP, libc::IP_RECVERR),
    int(IP, libc::IP_RECVTTL),
    int(IP, libc::IP_RECVTOS),
    int(IP, libc::IP_FREEBIND),
    int(IP, libc::IP_PASSSEC),
    int(IP, libc::IP_TRANSPARENT),
    int(IP, libc::IP_RECVORIGDSTADDR),
    late(IP, libc::IP_MINTTL),
    int(IP, libc::IP_NODEFRAG),
    int(IP, 23), // IP_CHECKSUM
    int(IP, libc::IP_BIND_ADDRESS_NO_PORT),
    int(IP, 25),  // IP_RECVFRAGSIZE
    late(IP, 26), // IP_RECVERR_RFC4884
    int(IP, libc::IP_MULTICAST_IF),
    int(IP, libc::IP_MULTICAST_TTL),
    int(IP, libc::IP_MULTICAST_LOOP),
    int(IP, libc::IP_MULTICAST_ALL),
    int(IP, libc::IP_UNICAST_IF),
    int(IP, 51), // IP_LOCAL_PORT_RANGE
    int(IPV6, libc::IPV6_2292PKTINFO),
    int(IPV6, libc::IPV6_2292HOPOPTS),
    int(IPV6, libc::IPV6_2292DSTOPTS),
    int(IPV6, libc::IPV6_2292RTHDR),
    int(IPV6, libc::IPV6_2292HOPLIMIT),
    int(IPV6, libc::IPV6_UNICAST_HOPS),
    int(IPV6, libc::IPV6_MULTICAST_IF),
    int(IPV6, libc::IPV6_MULTICAST_HOPS),
    int(IPV6, libc::IPV6_MULTICAST_LOOP),
    int(IPV6, libc::IPV6_MTU_DISCOVER),
    late(IPV6, libc::IPV6_RECVERR),
    int(IPV6, libc::IPV6_V6ONLY),
    int(IPV6, 29),  // IPV6_MULTICAST_ALL
    int(IPV6, 30),  // IPV6_ROUTER_ALERT_ISOLATE
    late(IPV6, 31), // IPV6_RECVERR_RFC4884
    int(IPV6, 33),  // IPV6_FLOWINFO_SEND
    int(IPV6, libc::IPV6_HDRINCL),
    int(IPV6, libc::IPV6_RECVPKTINFO),
    int(IPV6, libc::IPV6_RECVHOPLIMIT),
    int(IPV6, libc::IPV6_RECVHOPOPTS),
    int(IPV6, libc::IPV6_RECVRTHDR),
    int(IPV6, libc::IPV6_RECVDSTOPTS),
    int(IPV6, libc::IPV6_RECVPATHMTU),
    int(IPV6, libc::IPV6_DONTFRAG),
    int(IPV6, libc::IPV6_RECVTCLASS),
    int(IPV6, libc::IPV6_TCLASS),
    int(IPV6, libc::IPV6_AUTOFLOWLABEL),
    int(IPV6, libc::IPV6_ADDR_PREFERENCES),
    late(IPV6, libc::IPV6_MINHOPCOUNT),
    int(IPV6, libc::IPV6_RECVORIGDSTADDR),
    int(IPV6, libc::IPV6_TRANSPARENT),
    int(IPV6, libc::IPV6_UNICAST_IF),
    int(IPV6, libc::IPV6_RECVFRAGSIZE),
    int(IPV6, libc::IPV6_FREEBIND),
    late(TCP, libc::TCP_NODELAY),
    int(TCP, libc::TCP_MAXSEG),
    late(TCP, libc::TCP_CORK),
    late(TCP, libc::TCP_KEEPIDLE),
    late(TCP, libc::TCP_KEEPINTVL),
    late(TCP, libc::TCP_KEEPCNT),
    late(TCP, libc::TCP_SYNCNT),
    late(TCP, libc::TCP_LINGER2),
    late(TCP, libc::TCP_DEFER_ACCEPT),
    int(TCP, libc::TCP_WINDOW_CLAMP),
    sized(TCP, libc::TCP_CONGESTION, 16, When::Early),
    late(TCP, libc::TCP_THIN_LINEAR_TIMEOUTS),
    late(TCP, libc::TCP_THIN_DUPACK),
    late(TCP, libc::TCP_USER_TIMEOUT),
    late(TCP, libc::TCP_FASTOPEN),
    late(TCP, libc::TCP_NOTSENT_LOWAT),
    late(TCP, libc::TCP_SAVE_SYN),
    late(TCP, libc::TCP_FASTOPEN_CONNECT),
    late(TCP, libc::TCP_FASTOPEN_NO_COOKIE),
    late(TCP, libc::TCP_INQ),
    late(TCP, 37), // TCP_TX_DELAY
    late(TCP, 44), // TCP_RTO_MAX_MS
    late(TCP, 45), // TCP_RTO_MIN_US
    late(TCP, 46), // TCP_DELACK_MAX_US
    late(UDP, libc::UDP_CORK),
    late(UDP, 100), // UDP_ENCAP
    int(UDP, libc::UDP_NO_CHECK6_TX),
    int(UDP, libc::UDP_NO_CHECK6_RX),
    late(UDP, libc::UDP_SEGMENT),
    late(UDP, libc::UDP_GRO),
    int(RAW, 1),                       // ICMP_FILTER
    int(RAW, 7),                       // IPV6_CHECKSUM
    sized(ICMPV6, 1, 32, When::Early), // ICMPV6_FILTER
    late(PACKET, libc::PACKET_COPY_THRESH),
    int(PACKET, libc::PACKET_AUXDATA),
    int(PACKET, libc::PACKET_ORIGDEV),
    int(PACKET, libc::PACKET_VERSION),
    int(PACKET, libc::PACKET_RESERVE),
    int(PACKET, libc::PACKET_LOSS),
    int(PACKET, libc::PACKET_VNET_HDR),
    int(PACKET, libc::PACKET_TIMESTAMP),
    int(PACKET, libc::PACKET_QDISC_BYPASS),
    int(PACKET, 23), // PACKET_IGNORE_OUTGOING
    int(NETLINK, libc::NETLINK_PKTINFO),
    int(NETLINK, libc::NETLINK_BROADCAST_ERROR),
    int(NETLINK, libc::NETLINK_NO_ENOBUFS),
    int(NETLINK, libc::NETLINK_LISTEN_ALL_NSID),
    int(NETLINK, libc::NETLINK_CAP_ACK),
    int(NETLINK, libc::NETLINK_EXT_ACK),
    int(NETLINK, 12), // NETLINK_GET_STRICT_CHK
];

/// Of a TCP socket that is or was connected these tell what was negotiated or measured, not what the program chose.
const NOT_WHEN_CONNECTED: &[(i32, i32)] = &[(TCP, libc::TCP_MAXSEG), (TCP, libc::TCP_WINDOW_CLAMP)];

/// An option as it is kept in an image: level, name, value.
pub type Saved = (i32, i32, Bytes);

/// Values of options in the order of a table; none for one that the kernel does not know.
type Values = Vec<Option<Vec<u8>>>;

/// Reads options. Keeps one new socket of each kind to compare with.
#[derive(Debug, Default)]
pub struct Reference {
    fresh: HashMap<(i32, i32, i32), Values>,
}

impl Reference {
    /// The options of `fd` that differ from those of a new socket of the same `family`, `kind` and `protocol`, made in
    /// the calling thread's network namespace.
    pub fn changed(
        &mut self,
        fd: BorrowedFd<'_>,
        (family, kind, protocol): (i32, i32, i32),
        connected: bool,
    ) -> Vec<Saved> {
        let known = || KNOWN.iter().filter(move |k| applies(k, family, kind, protocol));
        let fresh = self.fresh.entry((family, kind, protocol)).or_insert_with(|| {
            match net::socket(family, kind, protocol) {
                Ok(fd) => known().map(|k| read(fd.as_fd(), k)).collect(),
                Err(_) => Vec::new(),
            }
        });
        let mut changed = Vec::new();
        for (i, k) in known().enumerate() {
            if connected && NOT_WHEN_CONNECTED.contains(&(k.level, k.name)) {
                continue;
            }
            let Some(value) = read(fd, k) else { continue };
            if fresh.get(i).is_none_or(|f| f.as_ref() != Some(&value)) {
                changed.push((k.level, k.name, value.into()));
            }
        }
        changed
    }
}

fn applies(k: &Known, family: i32, kind: i32, protocol: i32) -> bool {
    const MPTCP: i32 = 262;
    let inet = matches!(family, libc::AF_INET | libc::AF_INET6);
    // Of a stream these tell what its peer's packets looked like, and cannot be set.
    let multicast = match k.level {
        IP => matches!(k.name, libc::IP_MULTICAST_IF..=libc::IP_MULTICAST_LOOP | libc::IP_MULTICAST_ALL),
        IPV6 => matches!(k.name, libc::IPV6_MULTICAST_IF..=libc::IPV6_MULTICAST_LOOP | 29),
        _ => false,
    };
    if multicast && kind == libc::SOCK_STREAM {
        return false;
    }
    match k.level {
        SOCKET => true,
        IP => inet,
        IPV6 => family == libc::AF_INET6,
        TCP => inet && kind == libc::SOCK_STREAM && matches!(protocol, libc::IPPROTO_TCP | MPTCP),
        UDP => inet && kind == libc::SOCK_DGRAM && protocol == libc::IPPROTO_UDP,
        RAW => inet && kind == libc::SOCK_RAW,
        ICMPV6 => family == libc::AF_INET6 && kind == libc::SOCK_RAW && protocol == libc::IPPROTO_ICMPV6,
        PACKET => family == libc::AF_PACKET,
        NETLINK => family == libc::AF_NETLINK,
        _ => false,
    }
}

fn read(fd: BorrowedFd<'_>, k: &Known) -> Option<Vec<u8>> {
    let mut value = vec![0; k.size];
    let len = net::get(fd, k.level, k.name, &mut value).ok()?;
    value.truncate(len);
    Some(value)
}

/// Sets those of `saved` that belong to `when`.
///
/// # Errors
/// [`Kind::InvalidArgument`] for an option that no image of ours has; else the kernel's reason for one that it refuses.
/// Options that the kernel does not know are left out and named in `missing`.
pub fn apply(fd: BorrowedFd<'_>, saved: &[Saved], when: When, missing: &mut Vec<String>) -> Result<()> {
    for (level, name, value) in saved {
        let known = KNOWN.iter().find(|k| k.level == *level && k.name == *name && value.len() <= k.size);
        let known = known.ok_or_else(|| {
            Error::invalid_argument(format!(
                "the statefile is damaged: socket option {name} of level {level} with {} bytes",
                value.len()
            ))
        })?;
        if known.when != when {
            continue;
        }
        match set(fd, *level, *name, value) {
            Ok(()) => {}
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::ENOENT) => {
                missing.push(format!("socket option {name} of level {level} is not known here"));
            }
            // What only improves on something, or was allowed by privileges that are not there.
            Err(Errno::EPERM | Errno::EACCES) => {
                missing.push(format!("socket option {name} of level {level} needs more privileges"));
            }
            Err(e) => {
                let text = format!("setting socket option {name} of level {level}");
                return Err(Error::from(e).context(text));
            }
        }
    }
    Ok(())
}

fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> std::result::Result<(), Errno> {
    match (level, name) {
        (SOCKET, libc::SO_SNDBUF | libc::SO_RCVBUF) => {
            let bytes: [u8; 4] = value.try_into().map_err(|_| Errno::EINVAL)?;
            set_buffer(fd, name, i32::from_ne_bytes(bytes))
        }
        _ => net::set(fd, level, name, value),
    }
}

/// Sets a buffer's size to `size` as getsockopt(2) tells it, beyond the limits of the system if need be.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_buffer(fd: BorrowedFd<'_>, name: i32, size: i32) -> std::result::Result<(), Errno> {
    let force = if name == libc::SO_SNDBUF { libc::SO_SNDBUFFORCE } else { libc::SO_RCVBUFFORCE };
    // The kernel doubles what it is told.
    let half = size / 2;
    match net::set_int(fd, SOCKET, force, half) {
        Err(Errno::EPERM) => net::set_int(fd, SOCKET, name, half),
        result => result,
    }
}

/// The value of an `int` option in `saved`.
pub fn value(saved: &[Saved], level: i32, name: i32) -> Option<i32> {
    let (_, _, value) = saved.iter().find(|(l, n, _)| (*l, *n) == (level, name))?;
    Some(i32::from_ne_bytes(value.as_ref().try_into().ok()?))
}

/// Makes room in a socket's buffers for as much as an image may hold, and remembers how they were.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    send: i32,
    receive: i32,
    lock: Option<i32>,
}

impl Room {
    /// Makes room for `send` and `receive` bytes.
    pub fn make(fd: BorrowedFd<'_>, send: usize, receive: usize) -> Self {
        let get = |name| net::get_int(fd, SOCKET, name);
        let room = Self {
            send: get(libc::SO_SNDBUF).unwrap_or(0),
            receive: get(libc::SO_RCVBUF).unwrap_or(0),
            lock: get(SO_BUF_LOCK).ok(),
        };
        // Small segments cost the kernel several times their size.
        let wanted = |bytes: usize| i32::try_from(bytes.saturating_mul(8)).unwrap_or(i32::MAX / 2);
        if wanted(send) > room.send {
            let _ = set_buffer(fd, libc::SO_SNDBUF, wanted(send));
        }
        if wanted(receive) > room.receive {
            let _ = set_buffer(fd, libc::SO_RCVBUF, wanted(receive));
        }
        room
    }

    /// Puts the sizes back.
    pub fn end(self, fd: BorrowedFd<'_>) {
        let get = |name| net::get_int(fd, SOCKET, name).unwrap_or(0);
        if get(libc::SO_SNDBUF) != self.send {
            let _ = set_buffer(fd, libc::SO_SNDBUF, self.send);
        }
        if get(libc::SO_RCVBUF) != self.receive {
            let _ = set_buffer(fd, libc::SO_RCVBUF, self.receive);
        }
        if let Some(lock) = self.lock {
            let _ = net::set_int(fd, SOCKET, SO_BUF_LOCK, lock);
        }
    }
}

/// Attaches what is saved of a socket's filter.
///
/// # Errors
/// The kernel's.
pub fn apply_filter(fd: BorrowedFd<'_>, program: &[u8], locked: bool) -> Result<()> {
    if !program.is_empty() {
        let (instructions, rest) = program.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Error::invalid_argument("the statefile is damaged: a socket filter of odd length"));
        }
        net::attach_filter(fd, instructions)
            .map_err(|e| Error::from(e).context("attaching a socket filter"))?;
    }
    if locked {
        net::set_int(fd, SOCKET, libc::SO_LOCK_FILTER, 1)
            .map_err(|e| Error::from(e).context("locking a socket filter"))?;
    }
    Ok(())
}

/// What a socket has attached as filter, and whether it is locked.
///
/// # Errors
/// [`Kind::Unsupported`]: an eBPF program, which cannot be read.
pub fn read_filter(fd: BorrowedFd<'_>) -> Result<(Bytes, bool)> {
    let locked = net::get_int(fd, SOCKET, libc::SO_LOCK_FILTER).is_ok_and(|v| v != 0);
    match net::filter(fd) {
        Ok(program) => Ok((program.concat().into(), locked)),
        Err(Errno::EACCES) => {
            Err(Error::new(Kind::Unsupported, "an eBPF program is attached to it, which cannot be read back"))
        }
        Err(e) => Err(Error::from(e).context("reading its filter")),
    }
}

/// A socket that was made only to be compared with or to help.
pub type Helper = OwnedFd;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_found_and_set_again() {
        let kind = (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP);
        let make = || net::socket(kind.0, kind.1, kind.2).unwrap();
        let mut reference = Reference::default();
        let (a, b) = (make(), make());
        assert_eq!(reference.changed(a.as_fd(), kind, false), []);
        let set = [
            (SOCKET, libc::SO_REUSEADDR, 1),
            (SOCKET, libc::SO_KEEPALIVE, 1),
            (IPV6, libc::IPV6_V6ONLY, 1),
            (TCP, libc::TCP_NODELAY, 1),
            (TCP, libc::TCP_KEEPIDLE, 77),
            (TCP, libc::TCP_USER_TIMEOUT, 1234),
        ];
        for (level, name, value) in set {
            net::set_int(a.as_fd(), level, name, value).unwrap();
        }
        net::set_int(a.as_fd(), SOCKET, libc::SO_RCVBUF, 50_000).unwrap();
        net::set(a.as_fd(), SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 9, 0, 0, 0]).unwrap();
        net::set(a.as_fd(), TCP, libc::TCP_CONGESTION, b"reno").unwrap();
        let saved = reference.changed(a.as_fd(), kind, false);
        let mut missing = Vec::new();
        for when in [When::Early, When::Late] {
            apply(b.as_fd(), &saved, when, &mut missing).unwrap();
        }
        assert_eq!(missing, Vec::<String>::new());
        assert_eq!(reference.changed(b.as_fd(), kind, false), saved);
        assert!(saved.len() >= set.len() + 2, "{saved:?}");
        assert_eq!(value(&saved, TCP, libc::TCP_KEEPIDLE), Some(77));
    }

    #[test]
    fn only_what_is_known_is_set() {
        let fd = net::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        // IPT_SO_SET_REPLACE, and a value that is too long.
        for bad in [(IP, 64, vec![0u8; 4]), (SOCKET, libc::SO_REUSEADDR, vec![1u8; 5])] {
            let saved = [(bad.0, bad.1, bad.2.into())];
            let error = apply(fd.as_fd(), &saved, When::Late, &mut Vec::new()).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn room_is_made_and_given_back() {
        let fd = net::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let get = |name| net::get_int(fd.as_fd(), SOCKET, name).unwrap();
        let before = (get(libc::SO_SNDBUF), get(libc::SO_RCVBUF), get(SO_BUF_LOCK));
        let room = Room::make(fd.as_fd(), 1 << 20, 1 << 20);
        assert!(get(libc::SO_SNDBUF) >= 1 << 20 && get(libc::SO_RCVBUF) >= 1 << 20);
        room.end(fd.as_fd());
        assert_eq!((get(libc::SO_SNDBUF), get(libc::SO_RCVBUF), get(SO_BUF_LOCK)), before);
    }
}
