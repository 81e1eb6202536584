//! Interfaces, addresses, routes, neighbours and queueing disciplines of a network namespace by rtnetlink(7).
//!
//! A [`Netlink`] belongs to the network namespace in which it was opened, whoever uses it later. Calls block until the
//! kernel has answered, which it does at once.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Longest name of an interface (`IFNAMSIZ`, less the NUL).
pub const NAME_MAX: usize = 15;
/// Packets in a fifo, as gVisor has it.
const FIFO_PACKETS: u32 = 1000;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Hardware address; 6 bytes where it is Ethernet.
    pub mac: Vec<u8>,
    /// It is the loopback interface.
    pub loopback: bool,
    /// Its frames are Ethernet's.
    pub ethernet: bool,
    /// It is up.
    pub up: bool,
    /// Largest packet that is handed to it to be cut into segments.
    pub gso_max_size: u32,
}

/// What to change of an interface; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<Vec<u8>>,
    /// See [`Link::gso_max_size`].
    pub gso_max_size: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Bits of the prefix of its network.
    pub prefix: u8,
    /// It is valid on its link only, and made by the kernel.
    pub link_local: bool,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface.
    pub index: u32,
    /// The network, an address and the bits of its prefix; 0 for the default route.
    pub to: (IpAddr, u8),
    /// Over whom.
    pub gateway: Option<IpAddr>,
    /// Largest packet; 0 for the interface's.
    pub mtu: u32,
    /// The kernel has made it, with an address.
    pub by_kernel: bool,
}

/// A known neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Index of the interface.
    pub index: u32,
    /// Who.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// It was set by somebody, not learnt.
    pub permanent: bool,
}

/// A queueing discipline (tc(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qdisc {
    /// Frames go to the interface at once.
    None,
    /// First in, first out.
    Fifo,
    /// Token bucket: bytes per second, and the bucket's size in bytes.
    TokenBucket(u64, u32),
}

/// A connection to the kernel; see the module.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

fn family(ip: &IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// `EMFILE`, `ENOBUFS`.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Takes in the answer to the last request: `item` gets what is in it.
    fn receive(&mut self, mut item: impl FnMut(RouteNetlinkMessage)) -> Result<()> {
        let bad = |e: &dyn std::fmt::Display| Error::failure(format!("an answer of rtnetlink: {e}"));
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while rest.len() >= size_of::<libc::nlmsghdr>() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|e| bad(&e))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                let (header, payload) = message.into_parts();
                if header.sequence_number == self.sequence {
                    match payload {
                        NetlinkPayload::Done(_) => return Ok(()),
                        NetlinkPayload::Error(e) => {
                            return e.code.map_or(Ok(()), |code| Err(Errno::from_raw(-code.get()).into()));
                        }
                        NetlinkPayload::InnerMessage(message) => item(message),
                        _ => {}
                    }
                }
                rest = rest.get(length.max(1)..).unwrap_or_default();
            }
        }
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        self.receive(drop)
    }

    fn list<T>(
        &mut self,
        message: RouteNetlinkMessage,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut items = Vec::new();
        self.send(message, NLM_F_DUMP)?;
        self.receive(|message| items.extend(pick(message)))?;
        Ok(items)
    }

    /// All interfaces.
    ///
    /// # Errors
    /// `ENOBUFS`.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.list(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            let RouteNetlinkMessage::NewLink(message) = message else { return None };
            let header = &message.header;
            let mut link = Link {
                index: header.index,
                name: String::new(),
                mtu: 0,
                mac: Vec::new(),
                loopback: header.flags.contains(LinkFlags::Loopback),
                ethernet: header.link_layer_type == LinkLayerType::Ether,
                up: header.flags.contains(LinkFlags::Up),
                gso_max_size: 0,
            };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    LinkAttribute::Address(mac) => link.mac = mac,
                    LinkAttribute::GsoMaxSize(size) => link.gso_max_size = size,
                    _ => {}
                }
            }
            Some(link)
        })
    }

    /// The interface called `name`.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Makes a pair of Ethernet interfaces that are each other's other side (veth(4)): `name` with index `index` here, and
    /// `far` in the network namespace behind `namespace`. Both are down, and go when one of them goes.
    ///
    /// # Errors
    /// `EEXIST`: there is an interface of this name; `EPERM`; `EOPNOTSUPP`: the kernel has no veth.
    pub fn add_pair(&mut self, name: &str, index: u32, far: &str, namespace: BorrowedFd<'_>) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes =
            vec![LinkAttribute::IfName(far.to_owned()), LinkAttribute::NetNsFd(namespace.as_raw_fd())];
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes interface `index`.
    ///
    /// # Errors
    /// `ENODEV`; `EOPNOTSUPP`: one that is there for good.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.change(RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Changes interface `index`.
    ///
    /// # Errors
    /// `EPERM`, `EINVAL`: a value that this interface cannot have; `EADDRNOTAVAIL`: no hardware address.
    pub fn set_link(&mut self, index: u32, change: &LinkChange) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = change.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(change.mac.clone().map(LinkAttribute::Address));
        message.attributes.extend(change.gso_max_size.map(LinkAttribute::GsoMaxSize));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// All addresses.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            let (mut peer, mut local) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Address(ip) => peer = Some(*ip),
                    AddressAttribute::Local(ip) => local = Some(*ip),
                    _ => {}
                }
            }
            Some(Address {
                index: message.header.index,
                // Of a point-to-point interface the first is the other end's.
                ip: local.or(peer)?,
                prefix: message.header.prefix_len,
                link_local: message.header.scope == AddressScope::Link,
            })
        })
    }

    fn address(index: u32, ip: IpAddr, prefix: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family(&ip);
        message.header.prefix_len = prefix;
        message.header.index = index;
        if ip.is_loopback() {
            message.header.scope = AddressScope::Host;
        }
        message.attributes = vec![AddressAttribute::Address(ip), AddressAttribute::Local(ip)];
        message
    }

    /// Gives interface `index` an address, at once usable: nobody is asked whether they have the same. One that it has
    /// already stays.
    ///
    /// # Errors
    /// `EPERM`; `EACCES`, `EOPNOTSUPP`: the namespace has no IPv6, or the MTU is too small for it.
    pub fn add_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        let mut message = Self::address(index, ip, prefix);
        match ip {
            IpAddr::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
            IpAddr::V4(v4) if prefix < 31 && !ip.is_loopback() => {
                let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                let broadcast = (u32::from(v4) | host_bits).into();
                message.attributes.push(AddressAttribute::Broadcast(broadcast));
            }
            IpAddr::V4(_) => {}
        }
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address away from interface `index`.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL`: it is not there.
    pub fn delete_address(&mut self, index: u32, ip: IpAddr, prefix: u8) -> Result<()> {
        self.change(RouteNetlinkMessage::DelAddress(Self::address(index, ip, prefix)), 0)
    }

    /// The unicast routes of the main table that leave by one interface.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            all.extend(self.list(RouteNetlinkMessage::GetRoute(request), |message| match message {
                RouteNetlinkMessage::NewRoute(message) => route(&message),
                _ => None,
            })?);
        }
        Ok(all)
    }

    /// Adds a route, in the place of one to the same network.
    ///
    /// # Errors
    /// `ENETUNREACH`: nobody knows where the gateway is; `ENETDOWN`, `EINVAL`.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let mut message = RouteMessage::default();
        let (to, prefix) = route.to;
        message.header.address_family = family(&to);
        message.header.destination_prefix_length = prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = match route.gateway {
            None if to.is_ipv4() => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(route.index));
        if prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(to.into()));
        }
        message.attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
        if route.mtu > 0 {
            message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
        }
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The neighbours whose hardware address is known.
    ///
    /// # Errors
    /// As [`Netlink::links`].
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        self.list(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), |message| {
            let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
            let (mut ip, mut mac) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(v4.into()),
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(v6.into()),
                    NeighbourAttribute::LinkLayerAddress(address) => mac = Some(address),
                    _ => {}
                }
            }
            let permanent = message.header.state == NeighbourState::Permanent;
            Some(Neighbour { index: message.header.ifindex, ip: ip?, mac: mac?, permanent })
        })
    }

    /// Makes a neighbour known for good.
    ///
    /// # Errors
    /// `EINVAL`: no hardware address of this interface's kind.
    pub fn add_neighbour(&mut self, index: u32, ip: IpAddr, mac: &[u8]) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(&ip);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(match ip {
                IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
                IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
            }),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Gives interface `index` a queueing discipline. `mtu` decides how long a token bucket's queue is.
    ///
    /// # Errors
    /// `ENOENT`: this kernel has no such discipline; `EINVAL`: a bucket of no size or rate.
    pub fn set_qdisc(&mut self, index: u32, qdisc: Qdisc, mtu: u32) -> Result<()> {
        const TCA_OPTIONS: u16 = 2;
        let (kind, options) = match qdisc {
            Qdisc::None => ("noqueue", None),
            Qdisc::Fifo => ("pfifo", Some(FIFO_PACKETS.to_ne_bytes().to_vec())),
            Qdisc::TokenBucket(rate, burst) => {
                ("tbf", Some(token_bucket(rate, burst, mtu.saturating_mul(FIFO_PACKETS))))
            }
        };
        let mut message = TcMessage::default();
        message.header.index = index as i32;
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        message.attributes.extend(options.map(|o| TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, o))));
        self.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
    }
}

/// Reads one entry of the routing tables; `None` for those that [`Netlink::routes`] leaves out.
fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let known = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
        _ => None,
    };
    let nowhere: IpAddr = match header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0u8; 16].into(),
        _ => return None,
    };
    let (mut index, mut to, mut gateway, mut mtu) = (None, nowhere, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(i) => index = Some(*i),
            RouteAttribute::Destination(address) => to = known(address)?,
            RouteAttribute::Gateway(address) => gateway = known(address),
            RouteAttribute::Metrics(metrics) => {
                let of = |m: &RouteMetric| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None };
                mtu = metrics.iter().find_map(of).unwrap_or(0);
            }
            _ => {}
        }
    }
    let by_kernel = header.protocol == RouteProtocol::Kernel;
    Some(Route { index: index?, to: (to, header.destination_prefix_length), gateway, mtu, by_kernel })
}

/// The options of tbf (`struct tc_tbf_qopt` and what follows it in linux/pkt_sched.h). Rates above 32 bits go beside the
/// structure, and with the bucket's size in bytes the kernel needs no tables from us.
fn token_bucket(rate: u64, burst: u32, limit: u32) -> Vec<u8> {
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_BURST: u16 = 6;
    const LINKLAYER_ETHERNET: u8 = 1;
    let mut spec = [0u8; 12];
    spec[1] = LINKLAYER_ETHERNET;
    spec[8..].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    let mut parms = spec.to_vec();
    parms.extend([0; 12]);
    parms.extend(limit.to_ne_bytes());
    parms.extend([0; 8]);
    let mut options = Vec::new();
    let mut add = |kind: u16, value: &[u8]| {
        options.extend((value.len() as u16 + 4).to_ne_bytes());
        options.extend(kind.to_ne_bytes());
        options.extend(value);
    };
    add(TCA_TBF_PARMS, &parms);
    add(TCA_TBF_RATE64, &rate.to_ne_bytes());
    add(TCA_TBF_BURST, &burst.to_ne_bytes());
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    /// A namespace of this test's thread alone; needs root.
    fn in_new_namespace(work: impl FnOnce(&mut Netlink) + Send) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    process::unshare(libc::CLONE_NEWNET).unwrap();
                    work(&mut Netlink::open().unwrap());
                })
                .join()
                .unwrap();
        });
    }

    #[test]
    fn what_is_set_is_listed() {
        in_new_namespace(|netlink| {
            let lo = netlink.link("lo").unwrap().unwrap();
            assert!(lo.loopback && !lo.up && lo.mtu > 60_000);
            assert_eq!(netlink.link("eth0").unwrap(), None);
            netlink
                .set_link(lo.index, &LinkChange { up: Some(true), mtu: Some(9000), ..Default::default() })
                .unwrap();
            let lo = netlink.link("lo").unwrap().unwrap();
            assert!(lo.up && lo.mtu == 9000);
            let (v4, v6): (IpAddr, IpAddr) = ("10.9.8.7".parse().unwrap(), "fd00::7".parse().unwrap());
            netlink.add_address(lo.index, v4, 24).unwrap();
            netlink.add_address(lo.index, v4, 24).unwrap();
            netlink.add_address(lo.index, v6, 64).unwrap();
            let found = netlink.addresses().unwrap();
            assert!(found.iter().any(|a| a.ip == v4 && a.prefix == 24 && !a.link_local), "{found:?}");
            assert!(found.iter().any(|a| a.ip == v6 && a.prefix == 64), "{found:?}");
            // Over loopback IPv6 has no gateways.
            for (to, gateway) in [("10.20.0.0", "10.9.8.1"), ("fd01::", ""), ("0.0.0.0", "10.9.8.1")] {
                let to: IpAddr = to.parse().unwrap();
                let bits = if to.is_unspecified() { 0 } else { 16 };
                let gateway = gateway.parse().ok();
                let route = Route { index: lo.index, to: (to, bits), gateway, mtu: 1300, by_kernel: false };
                netlink.add_route(&route).unwrap();
                assert!(netlink.routes().unwrap().contains(&route), "{to}");
            }
            let nowhere = Route {
                index: lo.index,
                to: (v4, 32),
                gateway: Some("192.0.2.1".parse().unwrap()),
                mtu: 0,
                by_kernel: false,
            };
            let e = netlink.add_route(&Route { to: ("198.51.100.0".parse().unwrap(), 24), ..nowhere });
            // The default route covers the gateway, but only a neighbour can be one.
            assert!(e.is_err());
            netlink.delete_address(lo.index, v4, 24).unwrap();
            assert!(netlink.delete_address(lo.index, v4, 24).is_err());
            assert!(!netlink.addresses().unwrap().iter().any(|a| a.ip == v4));
        });
    }

    #[test]
    fn disciplines_are_the_kernels() {
        in_new_namespace(|netlink| {
            let lo = netlink.link("lo").unwrap().unwrap().index;
            for qdisc in [Qdisc::Fifo, Qdisc::TokenBucket(5_000_000_000, 200_000), Qdisc::None] {
                netlink.set_qdisc(lo, qdisc, 1500).unwrap();
            }
            assert!(netlink.set_qdisc(lo, Qdisc::TokenBucket(0, 0), 1500).is_err());
            assert!(netlink.set_qdisc(4711, Qdisc::Fifo, 1500).is_err());
        });
    }
}
