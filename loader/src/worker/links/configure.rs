//! What the caller says of its links, carried out by rtnetlink in gVisor's order and with its errors.
#![forbid(unsafe_code)]

use crate::netlink::{LinkChange, NAME_MAX, Netlink, Qdisc, Route};
use crate::sys::process;
use crate::worker::Worker;
use airlock_wire::api::network::{self as api, CreateLinksAndRoutesArgs, FdBasedLink};
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};

/// Largest packet where the caller does not say.
const MTU: u32 = 1500;
/// What a veth device can have.
const MTU_MIN: u32 = 68;
const MTU_MAX: u32 = 65_535;
/// Index of the first far end. The kernel lets a device whose other side has another index carry frames as soon as both
/// are up; where they are equal it takes up to a second.
const FAR_INDEX: u32 = 1 << 20;
/// Largest packet that passes the pump uncut.
const GSO_MAX: u32 = 65_536;

/// The work in progress.
pub struct Configuration<'a> {
    args: &'a CreateLinksAndRoutesArgs,
    /// The sandbox's network namespace, and a connection to it.
    sandbox: OwnedFd,
    netlink: Netlink,
    /// To the pump's own, in which this process is now.
    far: Netlink,
    /// Name and index of each interface so far. gVisor counts them from 1 on, loopback first.
    made: Vec<(&'a str, u32)>,
    routes: Vec<Route>,
    /// Far ends to be removed if this comes to nothing. They would go with this process, but not at once.
    undo: Vec<u32>,
}

impl Drop for Configuration<'_> {
    fn drop(&mut self) {
        for far in &self.undo {
            let _ = self.far.delete_link(*far);
        }
    }
}

impl<'a> Configuration<'a> {
    /// Looks through the arguments, sets up the loopback interface, and moves this process, which has one thread, into a
    /// network namespace of its own.
    pub fn begin(
        args: &'a CreateLinksAndRoutesArgs,
        links: &'a [FdBasedLink],
        worker: &Worker,
    ) -> Result<Self> {
        for gateway in [&args.default_v4_gateway, &args.default_v6_gateway] {
            let names = args.loopback_links.iter().map(|l| &l.name);
            let mut names = names.chain(links.iter().map(|l| &l.name));
            if !gateway.route.is_empty() && !names.any(|name| *name == gateway.name) {
                return Err(Error::invalid_argument(format!(
                    "invalid interface name {:?} for default route",
                    gateway.name
                )));
            }
        }
        let open = |path, flags| openat(worker.procfs.root(), path, flags | OFlag::O_CLOEXEC, Mode::empty());
        let (sandbox, netlink) = (open("self/ns/net", OFlag::O_RDONLY)?, Netlink::open()?);
        process::unshare(libc::CLONE_NEWNET)
            .map_err(|e| Error::from(e).context("making the pump's network namespace"))?;
        // Nothing of its own shall come out of the far ends: no address, no multicast.
        if let Ok(file) = open("sys/net/ipv6/conf/default/disable_ipv6", OFlag::O_WRONLY) {
            nix::unistd::write(&file, b"1")?;
        }
        let (made, routes) = (Vec::new(), Vec::new());
        let mut this = Self { args, sandbox, netlink, far: Netlink::open()?, made, routes, undo: Vec::new() };
        for link in args.loopback_links.iter() {
            let found = this.netlink.link(&link.name)?.filter(|l| l.loopback);
            let Some(lo) = found.filter(|_| !this.made.iter().any(|(name, _)| *name == link.name)) else {
                return Err(this.no_nic(&link.name, "Linux has one loopback interface, lo"));
            };
            this.netlink.set_link(lo.index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
            this.made.push((&link.name, lo.index));
            this.addresses(lo.index, &link.addresses)?;
            // Those within its own networks are there with the addresses.
            let local = |r: &&api::Route| r.destination.ip.0.is_some_and(|ip| ip.is_loopback());
            this.collect_routes(lo.index, link.routes.iter().filter(|r| !local(r)))?;
        }
        Ok(this)
    }

    fn no_nic(&self, name: &str, why: impl std::fmt::Display) -> Error {
        let id = self.made.len() + 1;
        Error::invalid_argument(format!("CreateNICWithOptions({id}, _, {{Name:{name}}}) failed: {why}"))
    }

    /// Makes one link and sets it up; returns the index of its far end.
    pub fn link(&mut self, link: &'a FdBasedLink) -> Result<u32> {
        let name = &link.name;
        check(link).map_err(|e| self.no_nic(name, e))?;
        if self.netlink.link(name)?.is_some() {
            return Err(self.no_nic(name, "there is an interface of this name"));
        }
        let far = FAR_INDEX + self.made.len() as u32;
        self.far
            .add_pair(&format!("far{}", self.made.len()), far, name, self.sandbox.as_fd())
            .map_err(|e| self.no_nic(name, e))?;
        self.undo.push(far);
        let made = self.netlink.link(name)?.ok_or_else(|| self.no_nic(name, "it is not there"))?;
        // Nothing is too long for it that the near end has let through.
        let up = LinkChange { mtu: Some(MTU_MAX), up: Some(true), ..LinkChange::default() };
        self.far.set_link(far, &up)?;
        let (index, mtu) = (made.index, mtu(link));
        let mac = Some(link.link_address.0.clone()).filter(|mac| !mac.is_empty());
        let gso_max_size = Some(link.gso_max_size.min(GSO_MAX)).filter(|size| *size > 0);
        let set = LinkChange { mtu: Some(mtu), mac, gso_max_size, up: None };
        self.netlink.set_link(index, &set).map_err(|e| self.no_nic(name, e))?;
        let qdisc = match link.qdisc {
            0 => Qdisc::None,
            1 => Qdisc::Fifo,
            _ => Qdisc::TokenBucket(link.tbf_rate, link.tbf_burst),
        };
        if qdisc != Qdisc::None {
            let set = self.netlink.set_qdisc(index, qdisc, mtu);
            set.map_err(|e| self.no_nic(name, e.context(format!("queueing discipline {qdisc:?}"))))?;
        }
        self.netlink.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() })?;
        self.made.push((name, index));
        self.addresses(index, &link.addresses)?;
        for neighbour in link.neighbors.iter() {
            let failed = |why: &dyn std::fmt::Display| {
                Error::invalid_argument(format!("failed to SetEntries: neighbor of {name}: {why}"))
            };
            let ip = neighbour.ip.0.ok_or_else(|| failed(&"no address"))?;
            self.netlink
                .add_neighbour(index, ip, &neighbour.hardware_addr.0)
                .map_err(|e| failed(&e.context(ip)))?;
        }
        self.collect_routes(index, link.routes.iter())?;
        Ok(far)
    }

    fn addresses(&mut self, index: u32, addresses: &[api::IpWithPrefix]) -> Result<()> {
        let id = self.made.len();
        for api::IpWithPrefix { address, prefix_len } in addresses {
            let text = address.0.map(|ip| ip.to_string()).unwrap_or_default();
            let failed = |why: &dyn std::fmt::Display| {
                Error::invalid_argument(format!(
                    "AddProtocolAddress({id}, {{Address:{text}/{prefix_len}}}, {{}}) failed: {why}"
                ))
            };
            let ip = address.0.ok_or_else(|| failed(&"no address"))?;
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let prefix = u8::try_from(*prefix_len).ok().filter(|n| *n <= most);
            let prefix = prefix.ok_or_else(|| failed(&format!("a prefix has 0 to {most} bits")))?;
            self.netlink.add_address(index, ip, prefix).map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    /// Keeps routes for [`Configuration::finish`]: a gateway may be reached by another link.
    fn collect_routes<'r>(&mut self, index: u32, routes: impl Iterator<Item = &'r api::Route>) -> Result<()> {
        for route in routes {
            let Some(to) = route.destination.prefix()? else {
                return Err(Error::invalid_argument("a route without a destination"));
            };
            self.routes.push(Route { index, to, gateway: route.gateway.0, mtu: route.mtu, by_kernel: false });
        }
        Ok(())
    }

    /// Sets all routes.
    pub fn finish(mut self) -> Result<()> {
        for (gateway, v4) in [(&self.args.default_v4_gateway, true), (&self.args.default_v6_gateway, false)] {
            let route = &gateway.route;
            // Which name it is was checked before anything was made.
            let made = self.made.iter().find(|(name, _)| *name == gateway.name && !route.is_empty());
            let Some((_, index)) = made else { continue };
            let anywhere = if v4 { [0; 4].into() } else { [0u8; 16].into() };
            let to = route.destination.prefix()?.unwrap_or((anywhere, 0));
            let via = route.gateway.0;
            if to.0.is_ipv4() != v4 || via.is_some_and(|ip| ip.is_ipv4() != v4) {
                return Err(Error::invalid_argument(format!(
                    "the default route of {} is of the other IP version",
                    gateway.name
                )));
            }
            self.routes.push(Route { index: *index, to, gateway: via, mtu: route.mtu, by_kernel: false });
        }
        // Those without a gateway first: they say where gateways are.
        self.routes.sort_by_key(|route| route.gateway.is_some());
        for route in &self.routes {
            self.netlink.add_route(route).map_err(|e| {
                let via = route.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
                e.context(format!("adding the route to {}/{}{via}", route.to.0, route.to.1))
            })?;
        }
        self.undo.clear();
        Ok(())
    }
}

fn mtu(link: &FdBasedLink) -> u32 {
    if link.mtu == 0 { MTU } else { link.mtu.unsigned_abs() }
}

/// What is wrong with a link by itself.
fn check(link: &FdBasedLink) -> std::result::Result<(), String> {
    let name = link.name.as_bytes();
    let odd = |b: &u8| !b.is_ascii_graphic() || b"/:%".contains(b);
    if name.is_empty() || name.len() > NAME_MAX || matches!(name, b"." | b"..") || name.iter().any(odd) {
        return Err(format!(
            "an interface's name has 1 to {NAME_MAX} letters, digits or signs without / : %"
        ));
    }
    if link.mtu < 0 || !(MTU_MIN..=MTU_MAX).contains(&mtu(link)) {
        return Err(format!("MTU {}: it is {MTU_MIN} to {MTU_MAX}", link.mtu));
    }
    match link.link_address.0.as_slice() {
        [] => {}
        [first, _, _, _, _, _] if first & 1 == 0 => {}
        mac => {
            return Err(format!(
                "LinkAddress of {} bytes: a hardware address has 6 and is no group's",
                mac.len()
            ));
        }
    }
    match link.qdisc {
        0 | 1 => Ok(()),
        2 if link.tbf_rate > 0 && link.tbf_burst > 0 => Ok(()),
        2 => Err("QDisc 2 (token bucket) takes a TBFRate and a TBFBurst".to_owned()),
        n => Err(format!("unknown queueing discipline {n}: 0 none, 1 fifo, 2 token bucket")),
    }
}
