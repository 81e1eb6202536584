//! A network namespace that somebody has prepared, CNI for instance, taken over as runsc does: the sandbox gets one of its
//! own with interfaces of the same names, addresses and routes, whose frames go through sockets on the prepared ones. These
//! have no addresses meanwhile, and get them back when the sandbox is deleted.

#![forbid(unsafe_code)]

use crate::podspec::Bundle;
use airlock_loader::netlink::{self, Address, Link, Neighbour, Netlink};
use airlock_loader::oci::namespaces::joined;
use airlock_loader::sys::{iptables, net, xdp};
use airlock_wire::api::container_manager::SetNetworkArgs;
use airlock_wire::api::network::{
    CreateLinksAndRoutesArgs, DefaultRoute, FdBasedLink, IpNet, IpWithPrefix, LoopbackLink, Neighbor, Route,
    XdpLink, default_loopback,
};
use airlock_wire::api::types::Base64;
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How a namespace is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// By what frames are had.
    pub by: Frames,
    /// Packet sockets on each interface, 1 to [`MAX_CHANNELS`](airlock_wire::api::network::MAX_CHANNELS).
    pub channels: i32,
    /// The rules of iptables' table `nat` are taken along (of its legacy interface); the namespace keeps them.
    pub nat: bool,
}

impl Default for Takeover {
    fn default() -> Self {
        Self { by: Frames::PacketSockets, channels: 1, nat: false }
    }
}

/// By what the frames of the prepared interfaces are had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Frames {
    /// Packet sockets, packet(7).
    #[default]
    PacketSockets,
    /// An AF_XDP socket, for one interface.
    Xdp,
}

/// What was taken from a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The namespace.
    path: PathBuf,
    /// By which it is known again.
    device: u64,
    inode: u64,
    interfaces: Vec<TakenInterface>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TakenInterface {
    index: u32,
    addresses: Vec<(IpAddr, u8)>,
    routes: Vec<TakenRoute>,
    /// Neighbours that were set; they go with the last address.
    neighbours: Vec<(IpAddr, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TakenRoute {
    to: (IpAddr, u8),
    gateway: Option<IpAddr>,
    mtu: u32,
}

/// What there is to take over, with sockets on it. Nothing is taken yet.
#[derive(Debug)]
pub(super) struct Prepared {
    taken: Taken,
    namespace: File,
    args: CreateLinksAndRoutesArgs,
    fds: Vec<OwnedFd>,
}

/// The network namespace that a configuration joins.
fn joined_network(spec: &Spec) -> Option<&Path> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_deref()?;
    namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::Network).and_then(joined)
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map_err(|e| Error::from(e).context(format!("open {}", path.display())))
}

/// Does `work` on a thread in a network namespace.
fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::from(e).context("entering the network namespace"))?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Error::failure("a thread in the network namespace panicked")))
    })
}

/// Looks at the namespace that `bundle` joins, and opens sockets on its interfaces. Also gives the bundle that makes a new
/// one in its place. `None` when it joins none: there is nothing to take over.
///
/// # Errors
/// It is the caller's own; it has an interface with addresses whose frames are not Ethernet's; for AF_XDP, other than one
/// interface; no privilege there.
pub(super) fn prepare(bundle: &Bundle, how: Takeover) -> Result<Option<(Prepared, Bundle)>> {
    let Some(path) = joined_network(&bundle.spec) else { return Ok(None) };
    let context = |e: Error| e.context(format!("--network takeover: {}", path.display()));
    let namespace = open(path).map_err(context)?;
    let it = namespace.metadata()?;
    let own = std::fs::metadata("/proc/self/ns/net")?;
    if (it.dev(), it.ino()) == (own.dev(), own.ino()) {
        return Err(context(Error::invalid_argument(
            "it is the caller's own network namespace, which would be left without addresses",
        )));
    }
    let (args, fds, interfaces) = inside(&namespace, || look(how)).map_err(context)?;
    let taken = Taken { path: path.to_owned(), device: it.dev(), inode: it.ino(), interfaces };
    let bundle = bundle.with_new_network()?;
    Ok(Some((Prepared { taken, namespace, args, fds }, bundle)))
}

/// Arguments, descriptors, and what would be taken.
type Seen = (CreateLinksAndRoutesArgs, Vec<OwnedFd>, Vec<TakenInterface>);

/// Looks at the calling thread's network namespace.
fn look(how: Takeover) -> Result<Seen> {
    let mut netlink = Netlink::open()?;
    let (addresses, routes, neighbours) = (netlink.addresses()?, netlink.routes()?, netlink.neighbours()?);
    let mut args = CreateLinksAndRoutesArgs::default();
    let (mut fds, mut interfaces) = (Vec::new(), Vec::new());
    for link in netlink.links()?.into_iter().filter(|link| link.up) {
        let addresses: Vec<&Address> = addresses.iter().filter(|a| a.index == link.index).collect();
        let routes = routes.iter().filter(|r| r.index == link.index && !r.by_kernel);
        let routes: Vec<&netlink::Route> = routes.collect();
        let neighbours = neighbours.iter().filter(|n| n.index == link.index && n.permanent);
        let neighbours: Vec<&Neighbour> = neighbours.collect();
        if link.loopback {
            args.loopback_links = vec![loopback(&addresses)].into();
            continue;
        }
        if addresses.iter().all(|a| a.link_local) {
            log::info!("interface {} has no addresses: it is left alone", link.name);
            continue;
        }
        if !link.ethernet {
            return Err(Error::unsupported(format!(
                "interface {} does not carry Ethernet's frames: only such are taken over",
                link.name
            )));
        }
        interfaces.push(TakenInterface {
            index: link.index,
            addresses: addresses.iter().map(|a| (a.ip, a.prefix)).collect(),
            routes: routes.iter().map(|r| TakenRoute { to: r.to, gateway: r.gateway, mtu: r.mtu }).collect(),
            neighbours: neighbours.iter().map(|n| (n.ip, n.mac.clone())).collect(),
        });
        let mut described = described(&link, &addresses, &neighbours);
        described.num_channels = how.channels;
        described.is_packet = vec![true; how.channels.unsigned_abs() as usize].into();
        for route in routes {
            let (gateway, default) = (gateway(route), default_of(&mut args, route));
            match default {
                // The kernel tells those of most weight first.
                Some(default) if default.route.is_empty() => {
                    *default = DefaultRoute { route: gateway, name: link.name.clone() };
                }
                Some(_) => log::warn!("interface {}: one more default route is left out", link.name),
                None => described.routes.0.push(gateway),
            }
        }
        args.fd_based_links.0.push(described);
        match how.by {
            Frames::PacketSockets => {
                for _ in 0..how.channels {
                    fds.push(net::packet_socket(link.index)?);
                }
            }
            Frames::Xdp => fds.extend(xdp_socket(&link)?),
        }
    }
    if how.by == Frames::Xdp {
        let links = std::mem::take(&mut args.fd_based_links.0);
        if links.len() > 1 {
            let names: Vec<&str> = links.iter().map(|l| l.name.as_str()).collect();
            return Err(Error::unsupported(format!(
                "interfaces {} have addresses: an AF_XDP socket is for one of them",
                names.join(", ")
            )));
        }
        args.xdp_links = links.into_iter().map(of_xdp).collect::<Vec<_>>().into();
    }
    if how.nat {
        args.nat_blob = true;
        fds.push(nat_rules()?);
    }
    Ok((args, fds, interfaces))
}

/// The rules of the calling thread's network namespace, in a file of memory.
fn nat_rules() -> Result<OwnedFd> {
    let rules = iptables::socket().and_then(|socket| iptables::read(socket.as_fd(), "nat"));
    let rules = rules.map_err(|e| match e {
        Errno::ENOPROTOOPT | Errno::ENOENT => {
            Error::unsupported("--reproduce-nat: this kernel lacks iptables' legacy table nat")
        }
        e => Error::from(e).context("reading iptables' table nat"),
    })?;
    let memory = memfd::MemfdOptions::new().create("airlock-nat");
    let mut file = memory.map_err(|e| Error::failure(format!("memfd_create: {e}")))?.into_file();
    file.write_all(&rules)?;
    file.rewind()?;
    Ok(file.into())
}

fn default_of<'a>(
    args: &'a mut CreateLinksAndRoutesArgs,
    route: &netlink::Route,
) -> Option<&'a mut DefaultRoute> {
    match route.to {
        (IpAddr::V4(_), 0) => Some(&mut args.default_v4_gateway),
        (IpAddr::V6(_), 0) => Some(&mut args.default_v6_gateway),
        _ => None,
    }
}

fn gateway(route: &netlink::Route) -> Route {
    let (ip, prefix) = route.to;
    Route {
        destination: IpNet::new(ip, prefix),
        gateway: route.gateway.map(Into::into).unwrap_or_default(),
        mtu: route.mtu,
    }
}

fn with_prefix(address: &Address) -> IpWithPrefix {
    IpWithPrefix { address: address.ip.into(), prefix_len: address.prefix.into() }
}

/// The loopback interface, with what it has beyond the usual.
fn loopback(addresses: &[&Address]) -> LoopbackLink {
    let mut link = default_loopback();
    let more = addresses.iter().filter(|a| !a.ip.is_loopback() && !a.link_local).map(|a| with_prefix(a));
    link.addresses.0.extend(more);
    link
}

fn described(link: &Link, addresses: &[&Address], neighbours: &[&Neighbour]) -> FdBasedLink {
    // The kernel makes those that are valid on the link alone from the hardware address, which is the same.
    let global = addresses.iter().filter(|a| !a.link_local).map(|a| with_prefix(a));
    let known = neighbours.iter().map(|n| Neighbor { ip: n.ip.into(), hardware_addr: Base64(n.mac.clone()) });
    FdBasedLink {
        name: link.name.clone(),
        interface_index: link.index.cast_signed(),
        mtu: i32::try_from(link.mtu).unwrap_or(0),
        addresses: global.collect::<Vec<_>>().into(),
        neighbors: known.collect::<Vec<_>>().into(),
        gso_max_size: link.gso_max_size,
        link_address: Base64(link.mac.clone()),
        ..FdBasedLink::default()
    }
}

fn of_xdp(link: FdBasedLink) -> XdpLink {
    let FdBasedLink { name, interface_index, mtu, addresses, routes, neighbors, link_address, .. } = link;
    XdpLink {
        name,
        interface_index,
        mtu,
        addresses,
        routes,
        neighbors,
        link_address,
        num_channels: 1,
        ..XdpLink::default()
    }
}

/// A new AF_XDP socket, a program on the interface that redirects its frames there, the program's map, its attachment.
fn xdp_socket(link: &Link) -> Result<[OwnedFd; 4]> {
    let socket = xdp::socket().map_err(|e| match e {
        Errno::EAFNOSUPPORT => Error::unsupported("this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)"),
        e => Error::from(e).context("making an AF_XDP socket"),
    })?;
    let redirect = xdp::Redirect::attach(link.index, false).map_err(|refused| {
        Error::from(refused.errno)
            .context(format!("a program for XDP on interface {}: {}", link.name, refused.why))
    })?;
    redirect.to(0, socket.as_fd())?;
    let xdp::Redirect { program, map, link } = redirect;
    Ok([socket, program, map, link])
}

impl Prepared {
    /// What will be taken, to be remembered before it is.
    pub fn taken(&self) -> Taken {
        self.taken.clone()
    }

    /// Takes the addresses off their interfaces and gives them to the sandbox, whose root container is not started yet.
    ///
    /// # Errors
    /// No privilege in the namespace; what the sandbox says.
    pub fn give(self, client: &mut Client, restores: bool) -> Result<()> {
        let Self { taken, namespace, mut args, fds } = self;
        inside(&namespace, || taken.take())?;
        args.is_restore = restores;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        client.call::<SetNetworkArgs>(&Some(args), &fds).map(drop)
    }
}

impl Taken {
    fn take(&self) -> Result<()> {
        let mut netlink = Netlink::open()?;
        for interface in &self.interfaces {
            for (ip, prefix) in &interface.addresses {
                match netlink.delete_address(interface.index, *ip, *prefix) {
                    // It went with another one of its network.
                    Err(e) if e.kind == Error::from(Errno::EADDRNOTAVAIL).kind => {}
                    other => other.map_err(|e| e.context(format!("taking {ip} off its interface")))?,
                }
            }
        }
        Ok(())
    }

    /// True if `namespace` is the one that this was taken from.
    pub(super) fn is_from(&self, namespace: &impl AsFd) -> bool {
        let found = nix::sys::stat::fstat(namespace.as_fd());
        found.is_ok_and(|found| (self.device, self.inode) == (found.st_dev, found.st_ino))
    }

    /// Gives addresses and routes back, if the namespace is still there; whoever has prepared it may have removed it.
    ///
    /// # Errors
    /// The first thing that did not work; the rest is there.
    pub fn give_back(&self) -> Result<()> {
        let namespace = match open(&self.path) {
            Err(e) if e.kind == Kind::NoSuchEntity => return Ok(()),
            other => other?,
        };
        if !self.is_from(&namespace) {
            return Ok(());
        }
        inside(&namespace, || {
            let mut netlink = Netlink::open()?;
            let mut results = Vec::new();
            for interface in &self.interfaces {
                for (ip, prefix) in &interface.addresses {
                    results.push(netlink.add_address(interface.index, *ip, *prefix));
                }
                for (ip, mac) in &interface.neighbours {
                    results.push(netlink.add_neighbour(interface.index, *ip, mac));
                }
                let mut routes = interface.routes.clone();
                // Those without a gateway first: they say where gateways are.
                routes.sort_by_key(|route| route.gateway.is_some());
                for TakenRoute { to, gateway, mtu } in routes {
                    let route = netlink::Route { index: interface.index, to, gateway, mtu, by_kernel: false };
                    results.push(netlink.add_route(&route));
                }
            }
            results.into_iter().collect()
        })
        .map_err(|e| e.context(format!("giving addresses back to {}", self.path.display())))
    }
}
