//! `Network`: the interfaces that a caller gives a sandbox by descriptors of the data link layer (gVisor's
//! `runsc/boot/network.go`).

use super::types::{Base64, Empty, List};
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

crate::methods! {
    receiver "Network", from "gVisor runsc/boot/network.go; seed 002";
    /// Makes interfaces with their addresses, routes and neighbours, and begins to move frames between them and the
    /// donated descriptors; once in the life of a sandbox.
    CreateLinksAndRoutes: CreateLinksAndRoutesArgs => Empty, fds "in: for each of FDBasedLinks its channels (packet socket, tap, or unix socket); for each of XDPLinks socket, program, map and link (Bind 0) or the socket (Bind 1); with PCAP the file after the first link's; with NATBlob that file last", errors "`received both fdbased and XDP links, but only one can be used at a time`; `args.FilePayload.Files has N FDs but we need M entries based on FDBasedLinks, XDPLinks, and PCAP`; `unknown bind value: n`; `XDP only supports one link device, but got n`; `invalid interface name \"N\" for default route`; `CreateNICWithOptions(…) failed: …`; `AddProtocolAddress(…) failed: …`; `failed to SetEntries: …`", blocks "until the interfaces are there";
    /// For network stacks that are plugged in; there is none.
    InitPluginStack: InitPluginStackArgs => Empty, fds "in: any", errors "always `plugin stack is not registered`";
}

/// Most channels of one link: a tap has up to 256 queues, a JSON message carries up to 128 descriptors.
pub const MAX_CHANNELS: i32 = 64;

/// An IP address, or none; JSON has Go's `net.IP`: text, empty for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ip(pub Option<IpAddr>);

impl From<IpAddr> for Ip {
    fn from(ip: IpAddr) -> Self {
        Self(Some(ip))
    }
}

impl Serialize for Ip {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match (s.is_human_readable(), self.0) {
            (false, ip) => ip.serialize(s),
            (true, Some(ip)) => s.collect_str(&ip),
            (true, None) => s.serialize_str(""),
        }
    }
}

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        if !d.is_human_readable() {
            return Option::deserialize(d).map(Self);
        }
        let text = String::deserialize(d)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        // Go knows one form of an IPv4 address only.
        text.parse::<IpAddr>()
            .map(|ip| Self(Some(ip.to_canonical())))
            .map_err(|_| serde::de::Error::custom(format!("invalid IP address: {text}")))
    }
}

/// A network as Go's `net.IPNet` has it; all empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpNet {
    /// The network's address.
    #[serde(rename = "IP")]
    pub ip: Ip,
    /// The mask's bytes: 4 or 16.
    #[serde(rename = "Mask")]
    pub mask: Base64,
}

impl IpNet {
    /// The network `ip`/`prefix`.
    pub fn new(ip: IpAddr, prefix: u8) -> Self {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let mask = u128::MAX.checked_shl(u32::from(bits - prefix.min(bits))).unwrap_or(0);
        let bytes =
            if ip.is_ipv4() { (mask as u32).to_be_bytes().to_vec() } else { mask.to_be_bytes().to_vec() };
        Self { ip: ip.into(), mask: Base64(bytes) }
    }

    /// Address and length of the prefix.
    ///
    /// # Errors
    /// An address without a mask or the other way round; a mask whose length is not the address' or that has holes.
    pub fn prefix(&self) -> Result<Option<(IpAddr, u8)>> {
        let (ip, mask) = match (self.ip.0, self.mask.0.as_slice()) {
            (None, []) => return Ok(None),
            // An IPv4 mask may be written as that of the mapped IPv6 address.
            (Some(ip @ IpAddr::V4(_)), [high @ .., a, b, c, d])
                if high.is_empty() || (high.len() == 12 && high.iter().all(|b| *b == 0xff)) =>
            {
                (ip, u128::from(u32::from_be_bytes([*a, *b, *c, *d])) << 96)
            }
            (Some(ip @ IpAddr::V6(_)), mask) if mask.len() == 16 => {
                (ip, mask.iter().fold(0, |all, b| all << 8 | u128::from(*b)))
            }
            (ip, mask) => {
                return Err(Error::invalid_argument(format!(
                    "no network: address {} with a mask of {} bytes",
                    ip.map_or_else(|| "missing".to_owned(), |ip| ip.to_string()),
                    mask.len()
                )));
            }
        };
        if mask.leading_ones() + mask.trailing_zeros().min(128) < 128 {
            return Err(Error::invalid_argument(format!("no network: the mask of {ip} has holes")));
        }
        Ok(Some((ip, mask.leading_ones() as u8)))
    }
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpWithPrefix {
    /// The address.
    #[serde(rename = "Address")]
    pub address: Ip,
    /// Bits of the prefix: 0 to 32 or 128.
    #[serde(rename = "PrefixLen")]
    pub prefix_len: i32,
}

/// A route out of the interface that it belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Where to.
    #[serde(rename = "Destination")]
    pub destination: IpNet,
    /// Over whom; none for what is reached directly.
    #[serde(rename = "Gateway")]
    pub gateway: Ip,
    /// Largest packet on this way in bytes; 0 for the interface's.
    #[serde(rename = "MTU")]
    pub mtu: u32,
}

impl Route {
    /// Nothing is set, which means no route.
    pub fn is_empty(&self) -> bool {
        self.destination.ip.0.is_none() && self.destination.mask.0.is_empty() && self.gateway.0.is_none()
    }
}

/// The route for all that has no other one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DefaultRoute {
    /// The route; empty for none.
    #[serde(rename = "Route")]
    pub route: Route,
    /// Name of the interface, one of this call's.
    #[serde(rename = "Name")]
    pub name: String,
}

/// A neighbour's hardware address, known from the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Neighbor {
    /// The neighbour.
    #[serde(rename = "IP")]
    pub ip: Ip,
    /// Its hardware address, 6 bytes.
    #[serde(rename = "HardwareAddr")]
    pub hardware_addr: Base64,
}

/// The loopback interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoopbackLink {
    /// Its name; the kernel has one, `lo`.
    #[serde(rename = "Name")]
    pub name: String,
    /// Addresses.
    #[serde(rename = "Addresses")]
    pub addresses: List<IpWithPrefix>,
    /// Routes.
    #[serde(rename = "Routes")]
    pub routes: List<Route>,
    /// gVisor's receive offload; Linux' loopback has its own.
    #[serde(rename = "GVisorGRO")]
    pub gvisor_gro: bool,
}

/// An interface whose other side are descriptors. What says how gVisor's own network stack shall work (`GVisorGSO…`,
/// `GVisorGRO`, `ProcessorsPerChannel`, the checksum offloads) is accepted without effect: Linux' is used, and frames are
/// as large as both sides can take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FdBasedLink {
    /// Name: 1 to 15 bytes.
    #[serde(rename = "Name")]
    pub name: String,
    /// Index of the interface on the caller's side; for its information.
    #[serde(rename = "InterfaceIndex")]
    pub interface_index: i32,
    /// Largest packet in bytes, 68 to 65521; 0 for 1500.
    #[serde(rename = "MTU")]
    pub mtu: i32,
    /// Addresses.
    #[serde(rename = "Addresses")]
    pub addresses: List<IpWithPrefix>,
    /// Routes.
    #[serde(rename = "Routes")]
    pub routes: List<Route>,
    /// Largest packet that is handed over to be cut into segments on the other side; 0 for the kernel's choice.
    #[serde(rename = "GSOMaxSize")]
    pub gso_max_size: u32,
    /// gVisor's own.
    #[serde(rename = "GVisorGSOEnabled", alias = "SoftwareGSOEnabled")]
    pub gvisor_gso_enabled: bool,
    /// gVisor's own.
    #[serde(rename = "GVisorGRO")]
    pub gvisor_gro: bool,
    /// gVisor's own.
    #[serde(rename = "TXChecksumOffload")]
    pub tx_checksum_offload: bool,
    /// gVisor's own.
    #[serde(rename = "RXChecksumOffload")]
    pub rx_checksum_offload: bool,
    /// Hardware address, 6 bytes; empty for a random one.
    #[serde(rename = "LinkAddress")]
    pub link_address: Base64,
    /// Queueing discipline: 0 none, 1 fifo, 2 token bucket.
    #[serde(rename = "QDisc")]
    pub qdisc: i32,
    /// Rate of the token bucket in bytes per second.
    #[serde(rename = "TBFRate")]
    pub tbf_rate: u64,
    /// Size of the token bucket in bytes.
    #[serde(rename = "TBFBurst")]
    pub tbf_burst: u32,
    /// Neighbours.
    #[serde(rename = "Neighbors")]
    pub neighbors: List<Neighbor>,
    /// Number of descriptors, 1 to [`MAX_CHANNELS`].
    #[serde(rename = "NumChannels")]
    pub num_channels: i32,
    /// gVisor's own.
    #[serde(rename = "ProcessorsPerChannel")]
    pub processors_per_channel: i32,
    /// Which of the descriptors are packet sockets; what a descriptor is, is found out anyway.
    #[serde(rename = "IsPacket")]
    pub is_packet: List<bool>,
    /// gVisor's own.
    #[serde(rename = "PreConfigured")]
    pub pre_configured: bool,
}

/// An interface whose other side is an AF_XDP socket: one that has neither memory nor rings, which the sandbox gives it.
/// Fields are those of [`FdBasedLink`]; the MTU is at most 3822.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct XdpLink {
    #[serde(rename = "Name")]
    pub name: String,
    #[serde(rename = "InterfaceIndex")]
    pub interface_index: i32,
    #[serde(rename = "MTU")]
    pub mtu: i32,
    #[serde(rename = "Addresses")]
    pub addresses: List<IpWithPrefix>,
    #[serde(rename = "Routes")]
    pub routes: List<Route>,
    #[serde(rename = "TXChecksumOffload")]
    pub tx_checksum_offload: bool,
    #[serde(rename = "RXChecksumOffload")]
    pub rx_checksum_offload: bool,
    #[serde(rename = "LinkAddress")]
    pub link_address: Base64,
    #[serde(rename = "QDisc")]
    pub qdisc: i32,
    #[serde(rename = "TBFRate")]
    pub tbf_rate: u64,
    #[serde(rename = "TBFBurst")]
    pub tbf_burst: u32,
    #[serde(rename = "Neighbors")]
    pub neighbors: List<Neighbor>,
    #[serde(rename = "GVisorGRO")]
    pub gvisor_gro: bool,
    /// Who binds the socket to queue 0 of its interface: 0 the sandbox, to `InterfaceIndex` in the network namespace where
    /// the socket was made; 1 the caller, once the link is there.
    #[serde(rename = "Bind")]
    pub bind: i32,
    #[serde(rename = "NumChannels")]
    pub num_channels: i32,
}

impl From<&XdpLink> for FdBasedLink {
    /// The interface inside the sandbox, which is none but another kind's.
    fn from(link: &XdpLink) -> Self {
        let XdpLink { name, addresses, routes, link_address, neighbors, .. } = link.clone();
        Self {
            name,
            interface_index: link.interface_index,
            mtu: link.mtu,
            addresses,
            routes,
            link_address,
            qdisc: link.qdisc,
            tbf_rate: link.tbf_rate,
            tbf_burst: link.tbf_burst,
            neighbors,
            num_channels: 1,
            ..Self::default()
        }
    }
}

/// Argument of [`CreateLinksAndRoutes`] and [`SetNetworkArgs`](super::container_manager::SetNetworkArgs).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateLinksAndRoutesArgs {
    /// Loopback interfaces: at most one, `lo`.
    #[serde(rename = "LoopbackLinks")]
    pub loopback_links: List<LoopbackLink>,
    /// Interfaces on descriptors.
    #[serde(rename = "FDBasedLinks")]
    pub fd_based_links: List<FdBasedLink>,
    /// Interfaces on AF_XDP sockets: at most one, and none beside `FDBasedLinks`.
    #[serde(rename = "XDPLinks")]
    pub xdp_links: List<XdpLink>,
    /// Default route of IPv4.
    #[serde(rename = "Defaultv4Gateway")]
    pub default_v4_gateway: DefaultRoute,
    /// Default route of IPv6.
    #[serde(rename = "Defaultv6Gateway")]
    pub default_v6_gateway: DefaultRoute,
    /// Every frame is written to a descriptor of this call, as pcap(5).
    #[serde(rename = "PCAP")]
    pub pcap: bool,
    /// A line about every frame is written to the sandbox's log.
    #[serde(rename = "LogPackets")]
    pub log_packets: bool,
    /// A descriptor follows with the rules of iptables' table `nat` for the sandbox: `struct ipt_replace` of
    /// linux/netfilter_ipv4/ip_tables.h and its entries.
    #[serde(rename = "NATBlob")]
    pub nat_blob: bool,
    /// No frames are moved until `Lifecycle.ResumeExternalNetworking`.
    #[serde(rename = "PauseExternalNetworking")]
    pub pause_external_networking: bool,
    /// Whether connections may be saved is decided by a checkpoint's own arguments here; accepted.
    #[serde(rename = "AllowConnectedOnSave")]
    pub allow_connected_on_save: bool,
    /// The links are those of a sandbox that is about to be restored.
    #[serde(rename = "IsRestore")]
    pub is_restore: bool,
}

/// Argument of [`InitPluginStack`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitPluginStackArgs {
    /// The plugin's own words.
    #[serde(rename = "InitStr")]
    pub init_str: String,
}

/// Which of a call's descriptors is what, as indices into them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkLayout {
    /// The channels of each of `FDBasedLinks`.
    pub fd_based: Vec<Range<usize>>,
    /// Those of each of `XDPLinks`.
    pub xdp: Vec<Range<usize>>,
    /// The capture file, which all links share.
    pub pcap: Option<usize>,
    /// The translation rules.
    pub nat: Option<usize>,
}

impl CreateLinksAndRoutesArgs {
    /// Assigns `count` descriptors to their purposes.
    ///
    /// # Errors
    /// gVisor's texts, for both kinds of links in one call, two XDP links, an unknown `Bind`, and a wrong number of
    /// descriptors; a link with too few or too many channels.
    pub fn layout(&self, count: usize) -> Result<LinkLayout> {
        if !self.fd_based_links.is_empty() && !self.xdp_links.is_empty() {
            return Err(Error::invalid_argument(
                "received both fdbased and XDP links, but only one can be used at a time",
            ));
        }
        if self.xdp_links.len() > 1 {
            return Err(Error::invalid_argument(format!(
                "XDP only supports one link device, but got {}",
                self.xdp_links.len()
            )));
        }
        let mut layout = LinkLayout::default();
        let mut next = 0usize;
        let mut pcap_wanted = self.pcap;
        for link in self.fd_based_links.iter() {
            if !(1..=MAX_CHANNELS).contains(&link.num_channels) {
                return Err(Error::invalid_argument(format!(
                    "link {:?}: NumChannels is {}: give 1 to {MAX_CHANNELS} descriptors",
                    link.name, link.num_channels
                )));
            }
            let channels = link.num_channels as usize;
            layout.fd_based.push(next..next + channels);
            next += channels;
            if std::mem::take(&mut pcap_wanted) {
                layout.pcap = Some(next);
                next += 1;
            }
        }
        for link in self.xdp_links.iter() {
            let channels = match link.bind {
                0 => 4,
                1 => 1,
                n => return Err(Error::invalid_argument(format!("unknown bind value: {n}"))),
            };
            layout.xdp.push(next..next + channels);
            next += channels;
            if std::mem::take(&mut pcap_wanted) {
                layout.pcap = Some(next);
                next += 1;
            }
        }
        // Counted without any link, too.
        next += usize::from(pcap_wanted);
        if self.nat_blob {
            layout.nat = Some(next);
            next += 1;
        }
        if count != next {
            return Err(Error::invalid_argument(format!(
                "args.FilePayload.Files has {count} FDs but we need {next} entries based on FDBasedLinks, XDPLinks, and PCAP"
            )));
        }
        Ok(layout)
    }

    /// The first link for which `count` descriptors are too few, in gVisor's words for `SetNetworkArgs`.
    ///
    /// # Errors
    /// `insufficient FDs provided for link "L"`.
    pub fn check_sufficient(&self, count: usize) -> Result<()> {
        let fd_based = self.fd_based_links.iter().map(|l| (&l.name, l.num_channels));
        let xdp = self.xdp_links.iter().map(|l| (&l.name, if l.bind == 0 { 4 } else { 1 }));
        let mut next = 0usize;
        for (i, (name, channels)) in fd_based.chain(xdp).enumerate() {
            next = next.saturating_add(usize::try_from(channels).unwrap_or(0));
            if next > count {
                return Err(Error::invalid_argument(format!("insufficient FDs provided for link {name:?}")));
            }
            next += usize::from(i == 0 && self.pcap);
        }
        Ok(())
    }
}

/// Addresses and route of a loopback interface, as gVisor's command line gives them where nothing else is known.
pub fn default_loopback() -> LoopbackLink {
    let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let v6 = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
    LoopbackLink {
        name: "lo".to_owned(),
        addresses: vec![
            IpWithPrefix { address: v4.into(), prefix_len: 8 },
            IpWithPrefix { address: v6.into(), prefix_len: 128 },
        ]
        .into(),
        ..LoopbackLink::default()
    }
}

#[cfg(test)]
mod tests;
