//! The network namespaces of the containers.
#![forbid(unsafe_code)]

use super::multicast;
use crate::checkpoint::dump::context::Context;
use crate::checkpoint::inet::SYSCTLS;
use crate::checkpoint::inet::netlink::{Address, Link, Netlink};
use crate::checkpoint::inet::table::{self, Entry};
use crate::checkpoint::inside;
use crate::checkpoint::state::{Id, MulticastGroup, NetInterface, NetworkState};
use crate::checkpoint::sysctl;
use crate::oci::namespaces::joined;
use crate::procfs::ProcFs;
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::os::fd::{AsFd, BorrowedFd};

/// A network namespace.
#[derive(Debug)]
pub(super) struct Network {
    /// Inode of the namespace.
    pub inode: u64,
    /// A process in it.
    pub pid: i32,
    /// The agent itself is in it.
    pub ours: bool,
    /// The sandbox made it, so that nobody else is in it.
    pub own: bool,
    /// Multicast groups that somebody in it joined; read when they are first needed.
    groups: Option<Vec<(u32, std::net::IpAddr)>>,
}

impl Network {
    /// All sockets in it of `protocols` (`tcp`, `raw`, …), of both families.
    pub(super) fn table(&self, procfs: &ProcFs, protocols: &[&str]) -> Result<Vec<Entry>> {
        let mut all = Vec::new();
        for (protocol, suffix) in protocols.iter().flat_map(|p| [(p, ""), (p, "6")]) {
            match procfs.read_whole(self.pid, &format!("net/{protocol}{suffix}")) {
                Ok(bytes) => all.extend(table::parse(&String::from_utf8_lossy(&bytes))),
                // No IPv6 in this kernel.
                Err(_) if suffix == "6" => {}
                Err(e) => return Err(e.context(format!("reading the table of {protocol} sockets"))),
            }
        }
        Ok(all)
    }

    /// Groups that the socket is a member of.
    pub(super) fn memberships(
        &mut self,
        procfs: &ProcFs,
        fd: BorrowedFd<'_>,
        family: i32,
    ) -> Vec<MulticastGroup> {
        let pid = self.pid;
        let groups = self.groups.get_or_insert_with(|| multicast::groups(procfs, pid));
        multicast::memberships(fd, family, groups)
    }

    /// Runs `work` on a thread in it.
    pub(super) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.ours {
            return work();
        }
        let pidfd = process::pidfd_open(self.pid)?;
        inside::run(pidfd.as_fd(), libc::CLONE_NEWNET, work)
    }
}

/// Fills `state.networks` and the containers' `network`.
pub(super) fn collect(ctx: &mut Context) -> Result<Vec<Network>> {
    let ours = inode(&ctx.procfs, "thread-self/ns/net").unwrap_or(0);
    let mut networks: Vec<Network> = Vec::new();
    let mut ids = Vec::new();
    for container in &ctx.order.containers {
        let inode = namespace_inode(&ctx.procfs, container.init, "net")?;
        let found = networks.iter().position(|n| n.inode == inode).unwrap_or_else(|| {
            networks.push(Network {
                inode,
                pid: container.init,
                ours: inode == ours,
                own: false,
                groups: None,
            });
            networks.len() - 1
        });
        // A subcontainer may share a namespace that the root container's spec makes.
        networks[found].own |= makes_namespace(&container.spec, LinuxNamespaceType::Network);
        ids.push(found as Id);
    }
    for (i, id) in ids.into_iter().enumerate() {
        if let Some(container) = ctx.state.containers.get_mut(i) {
            container.network = Some(id);
        }
    }
    for network in &networks {
        let state = describe(network, &ctx.procfs)?;
        ctx.state.networks.push(state);
    }
    Ok(networks)
}

/// Inode of a process' namespace.
pub(crate) fn namespace_inode(procfs: &ProcFs, pid: i32, kind: &str) -> Result<u64> {
    inode(procfs, &format!("{pid}/ns/{kind}"))
        .map_err(|e| Error::from(e).context(format!("looking at /proc/{pid}/ns/{kind}")))
}

fn inode(procfs: &ProcFs, path: &str) -> nix::Result<u64> {
    fstatat(procfs.root(), path, AtFlags::empty()).map(|s| s.st_ino)
}

/// The spec wants a new namespace of that kind.
pub(crate) fn makes_namespace(spec: &str, kind: LinuxNamespaceType) -> bool {
    let Ok(spec) = serde_json::from_str::<Spec>(spec) else { return false };
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    namespaces.is_some_and(|all| all.iter().any(|n| n.typ() == kind && joined(n).is_none()))
}

fn describe(network: &Network, procfs: &ProcFs) -> Result<NetworkState> {
    let (links, addresses) = network.enter(|| {
        let mut netlink = Netlink::route()?;
        Ok((netlink.links()?, netlink.addresses()?))
    })?;
    let interfaces = links.into_iter().map(|link| interface(link, &addresses)).collect();
    let sysctls = if network.own { read_sysctls(procfs, network)? } else { Vec::new() };
    Ok(NetworkState { own: network.own, interfaces, sysctls })
}

fn interface(link: Link, addresses: &[Address]) -> NetInterface {
    let mine = addresses.iter().filter(|a| a.link == link.index);
    NetInterface {
        addresses: mine.map(|a| format!("{}/{}", a.ip, a.prefix)).collect(),
        name: link.name,
        index: link.index,
        flags: link.flags,
        mtu: link.mtu,
    }
}

fn read_sysctls(procfs: &ProcFs, network: &Network) -> Result<Vec<(String, String)>> {
    // Kernels differ in what they have.
    let names = || SYSCTLS.iter().map(|name| format!("net.{name}"));
    network.enter(|| Ok(names().filter_map(|n| Some((n.clone(), sysctl::read(procfs, &n).ok()?))).collect()))
}
