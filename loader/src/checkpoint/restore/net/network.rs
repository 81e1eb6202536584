//! The network namespace in which sockets are made: what it has of what the image's had.
#![forbid(unsafe_code)]

use crate::checkpoint::inet::SYSCTLS;
use crate::checkpoint::inet::address;
use crate::checkpoint::inet::netlink::{Address, Link, Netlink};
use crate::checkpoint::inet::options::Saved;
use crate::checkpoint::state::{Id, SandboxState};
use crate::checkpoint::sysctl;
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use std::net::{IpAddr, SocketAddr};

/// What there is.
#[derive(Debug)]
pub(super) struct Place {
    links: Vec<Link>,
    addresses: Vec<Address>,
    /// Interfaces of the image: index, name.
    saved: Vec<(u32, String)>,
}

impl Place {
    /// Looks around in the calling thread's namespace.
    pub(super) fn look(state: &SandboxState, network: Id) -> Result<Self> {
        let mut netlink = Netlink::route()?;
        let saved = state.networks.get(network as usize).map(|n| &n.interfaces);
        Ok(Self {
            links: netlink.links()?,
            addresses: netlink.addresses()?,
            saved: saved.into_iter().flatten().map(|i| (i.index, i.name.clone())).collect(),
        })
    }

    /// Makes the namespace what it was, as far as it is the sandbox's own: settings, addresses of the loopback
    /// interface. Says what else is missing.
    pub(super) fn prepare(
        &mut self,
        procfs: &ProcFs,
        state: &SandboxState,
        network: Id,
        warnings: &mut Vec<String>,
    ) {
        let Some(saved) = state.networks.get(network as usize) else { return };
        for interface in &saved.interfaces {
            let Some(link) = self.links.iter().find(|l| l.name == interface.name) else {
                if interface.flags & libc::IFF_UP as u32 != 0 {
                    warnings.push(format!("the network interface {:?} is not here", interface.name));
                }
                continue;
            };
            for text in &interface.addresses {
                let Some(wanted) = parse(text, link.index) else { continue };
                let link_local = matches!(wanted.ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
                if link_local || self.addresses.iter().any(|a| a.ip == wanted.ip) {
                    continue;
                }
                if saved.own && interface.name == "lo" {
                    match Netlink::route().and_then(|mut n| n.add_address(wanted)) {
                        Ok(()) => self.addresses.push(wanted),
                        Err(e) => warnings.push(e.message),
                    }
                } else {
                    warnings
                        .push(format!("the network interface {:?} has no address {text}", interface.name));
                }
            }
        }
        if saved.own {
            sysctl::restore(procfs, &saved.sysctls, known, warnings);
        }
    }

    /// Packets to `address` (`sockaddr` bytes) would be received here.
    pub(super) fn has(&self, address: &[u8]) -> bool {
        let Some(address) = address::parse(address) else { return false };
        address.ip().is_loopback() || self.addresses.iter().any(|a| a.ip == address.ip())
    }

    /// The interface that has the name which `index` had in the image.
    fn translate(&self, index: u32) -> Result<u32> {
        if index == 0 {
            return Ok(0);
        }
        let name = self.saved.iter().find(|(i, _)| *i == index).map(|(_, name)| name.as_str());
        let link = name.and_then(|name| self.links.iter().find(|l| l.name == name));
        link.map(|l| l.index).ok_or_else(|| {
            Error::no_such_entity(format!(
                "it is tied to the network interface {:?}, which is not here: make it first",
                name.unwrap_or("?")
            ))
        })
    }

    /// An address with its interface's index as it is here.
    pub(super) fn translate_address(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        match address::parse_as_is(bytes) {
            Some(SocketAddr::V6(mut v6)) if v6.scope_id() != 0 => {
                v6.set_scope_id(self.translate(v6.scope_id())?);
                Ok(address::to_bytes(v6.into()))
            }
            _ => Ok(bytes.to_vec()),
        }
    }

    /// The interface with this index in the image.
    pub(super) fn interface(&self, index: u32) -> Result<u32> {
        self.translate(index)
    }

    /// Options with the indexes of interfaces as they are here.
    pub(super) fn translate_options(&self, saved: &[Saved]) -> Result<Vec<Saved>> {
        const SO_BINDTOIFINDEX: i32 = 62;
        let word = |value: &[u8]| <[u8; 4]>::try_from(value).ok();
        let mut options = saved.to_vec();
        for (level, name, value) in &mut options {
            let Some(bytes) = word(value) else { continue };
            let new = match (*level, *name) {
                (libc::SOL_SOCKET, SO_BINDTOIFINDEX) | (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) => {
                    self.translate(u32::from_ne_bytes(bytes))?.to_ne_bytes()
                }
                // These are in network byte order.
                (libc::IPPROTO_IP, libc::IP_UNICAST_IF) | (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF) => {
                    self.translate(u32::from_be_bytes(bytes))?.to_be_bytes()
                }
                _ => continue,
            };
            *value = new.to_vec().into();
        }
        Ok(options)
    }
}

/// Lets packets of a connection through again, which was kept for its restore.
pub(super) fn let_go(local: &[u8], remote: &[u8]) -> Result<()> {
    match (address::parse(local), address::parse(remote)) {
        (Some(local), Some(remote)) => Netlink::route()?.let_go(local, remote),
        _ => Ok(()),
    }
}

fn parse(text: &str, link: u32) -> Option<Address> {
    let (ip, prefix) = text.split_once('/')?;
    Some(Address { link, ip: ip.parse().ok()?, prefix: prefix.parse().ok()? })
}

fn known(name: &str) -> bool {
    name.strip_prefix("net.").is_some_and(|n| SYSCTLS.contains(&n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            links: vec![Link { index: 5, name: "eth0".into(), ..Link::default() }],
            addresses: vec![Address { link: 5, ip: "10.1.1.1".parse().unwrap(), prefix: 24 }],
            saved: vec![(2, "eth0".into()), (3, "eth1".into())],
        }
    }

    #[test]
    fn interfaces_are_found_by_name() {
        let place = place();
        assert_eq!(place.interface(2).unwrap(), 5);
        assert_eq!(place.interface(0).unwrap(), 0);
        assert!(place.interface(3).unwrap_err().message.contains("eth1"));
        assert!(place.interface(9).is_err());
        let local: SocketAddr = "[fe80::1%2]:80".parse().unwrap();
        let here: SocketAddr = "[fe80::1%5]:80".parse().unwrap();
        assert_eq!(place.translate_address(&address::to_bytes(local)).unwrap(), address::to_bytes(here));
        let saved = [(libc::IPPROTO_IP, libc::IP_UNICAST_IF, 2u32.to_be_bytes().to_vec().into())];
        assert_eq!(*place.translate_options(&saved).unwrap()[0].2, 5u32.to_be_bytes());
    }

    #[test]
    fn addresses_that_are_here() {
        let at = |text: &str| place().has(&address::to_bytes(text.parse().unwrap()));
        assert!(at("127.0.0.9:1") && at("[::1]:1") && at("10.1.1.1:1") && at("[::ffff:10.1.1.1]:1"));
        assert!(!at("10.1.1.2:1"));
    }
}
