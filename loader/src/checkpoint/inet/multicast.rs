//! Membership of a socket in multicast groups (RFC 3678: `struct group_filter`).
#![forbid(unsafe_code)]

use super::address;
use crate::sys::net;
use nix::errno::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
const MCAST_INCLUDE: u32 = 1;
/// Size of `struct sockaddr_storage`.
const STORAGE: usize = 128;
/// Where the parts of `struct group_filter` are.
const GROUP: usize = 8;
const MODE: usize = GROUP + STORAGE;
const COUNT: usize = MODE + 4;
const SOURCES: usize = COUNT + 4;
/// More sources than any system allows (igmp_max_msf is 10 by default).
const MOST_SOURCES: usize = 64;

/// Whom a member listens to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Only to these sources; otherwise to all but these.
    pub include: bool,
    /// `sockaddr` bytes.
    pub sources: Vec<Vec<u8>>,
}

impl Filter {
    /// The socket's filter for a group.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL`: it is no member.
    pub fn get(fd: BorrowedFd<'_>, interface: u32, group: IpAddr) -> Result<Self, Errno> {
        let mut bytes = head(interface, group);
        bytes.resize(SOURCES + MOST_SOURCES * STORAGE, 0);
        bytes[COUNT..SOURCES].copy_from_slice(&(MOST_SOURCES as u32).to_ne_bytes());
        net::get(fd, level(group), MCAST_MSFILTER, &mut bytes)?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let count = (word(COUNT) as usize).min(MOST_SOURCES);
        let sources = bytes[SOURCES..].chunks(STORAGE).take(count).map(<[u8]>::to_vec).collect();
        Ok(Self { include: word(MODE) == MCAST_INCLUDE, sources })
    }

    /// Makes the socket a member of a group, with this filter.
    ///
    /// # Errors
    /// `ENODEV`: there is no such interface; `EADDRINUSE`: it is a member; `ENOBUFS`: of too many.
    pub fn join(&self, fd: BorrowedFd<'_>, interface: u32, group: IpAddr) -> Result<(), Errno> {
        net::set(fd, level(group), MCAST_JOIN_GROUP, &head(interface, group))?;
        if self.sources.is_empty() && !self.include {
            return Ok(());
        }
        let mut bytes = head(interface, group);
        bytes.extend((if self.include { MCAST_INCLUDE } else { MCAST_EXCLUDE }).to_ne_bytes());
        bytes.extend((self.sources.len() as u32).to_ne_bytes());
        for source in &self.sources {
            let end = bytes.len() + STORAGE;
            bytes.extend(source.iter().take(STORAGE));
            bytes.resize(end, 0);
        }
        net::set(fd, level(group), MCAST_MSFILTER, &bytes)
    }
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
}

/// `struct group_req`, with which `struct group_filter` begins.
fn head(interface: u32, group: IpAddr) -> Vec<u8> {
    let mut bytes = interface.to_ne_bytes().to_vec();
    bytes.resize(GROUP, 0);
    bytes.extend(address::to_bytes(SocketAddr::new(group, 0)));
    bytes.resize(MODE, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::inet::testing::in_netns;
    use std::os::fd::AsFd;

    #[test]
    fn membership_is_seen_and_made_again() {
        in_netns("membership_is_seen_and_made_again", || {
            for (family, group, source) in
                [(libc::AF_INET, "239.1.2.3", "10.0.0.9"), (libc::AF_INET6, "ff05::77", "fd00::9")]
            {
                let group: IpAddr = group.parse().unwrap();
                let source = address::to_bytes(SocketAddr::new(source.parse().unwrap(), 0));
                for (include, sources) in
                    [(false, vec![]), (false, vec![source.clone()]), (true, vec![source])]
                {
                    let fd = net::socket(family, libc::SOCK_DGRAM, 0).unwrap();
                    assert_eq!(Filter::get(fd.as_fd(), 1, group), Err(Errno::EADDRNOTAVAIL));
                    let filter = Filter { include, sources };
                    filter.join(fd.as_fd(), 1, group).unwrap();
                    let got = Filter::get(fd.as_fd(), 1, group).unwrap();
                    assert_eq!(got.include, include);
                    let ips = |f: &Filter| f.sources.iter().map(|s| address::parse(s)).collect::<Vec<_>>();
                    assert_eq!(ips(&got), ips(&filter));
                }
            }
        });
    }
}
