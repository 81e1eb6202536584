//! Multicast groups that a socket joined. The kernel does not list them by socket: each group that is joined in the
//! network namespace at all is tried.
#![forbid(unsafe_code)]

use crate::checkpoint::inet::{address, multicast::Filter};
use crate::checkpoint::state::MulticastGroup;
use crate::procfs::ProcFs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// Every host is in these by itself.
const ALL_HOSTS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
];

/// Groups with a member in the namespace of `pid`, by interface.
pub(super) fn groups(procfs: &ProcFs, pid: i32) -> Vec<(u32, IpAddr)> {
    let read = |name: &str| procfs.read(pid, name).unwrap_or_default();
    let mut all = parse_igmp(&read("net/igmp"));
    all.extend(parse_igmp6(&read("net/igmp6")));
    all.retain(|(_, group)| !ALL_HOSTS.contains(group));
    all
}

/// An interface's line begins with its index; its groups follow, indented, as words of the machine's byte order.
pub(super) fn parse_igmp(text: &str) -> Vec<(u32, IpAddr)> {
    let mut interface = 0;
    let mut all = Vec::new();
    for line in text.lines().skip(1) {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            interface = first.parse().unwrap_or(0);
        } else if let Ok(word) = u32::from_str_radix(first, 16) {
            all.push((interface, IpAddr::from(word.to_ne_bytes())));
        }
    }
    all
}

/// `1    lo    ff020000000000000000000000000001     1 0000000C 0`
pub(super) fn parse_igmp6(text: &str) -> Vec<(u32, IpAddr)> {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let interface = fields.next()?.parse().ok()?;
        let group = u128::from_str_radix(fields.nth(1)?, 16).ok()?;
        Some((interface, Ipv6Addr::from(group).into()))
    };
    text.lines().filter_map(line).collect()
}

/// Which of `groups` the socket is in.
pub(super) fn memberships(fd: BorrowedFd<'_>, family: i32, groups: &[(u32, IpAddr)]) -> Vec<MulticastGroup> {
    let mut all = Vec::new();
    for (interface, group) in groups.iter().filter(|(_, g)| family == libc::AF_INET6 || g.is_ipv4()) {
        let Ok(filter) = Filter::get(fd, *interface, *group) else { continue };
        let sources = filter.sources.iter().filter_map(|s| address::parse(s)).map(|a| a.ip().to_string());
        all.push(MulticastGroup {
            interface: *interface,
            group: group.to_string(),
            include: filter.include,
            sources: sources.collect(),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read() {
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
            1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
            12\teth0      :     1      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        let group = |t: &str| t.parse::<IpAddr>().unwrap();
        assert_eq!(parse_igmp(igmp), [(1, group("224.0.0.1")), (12, group("224.0.0.251"))]);
        let igmp6 = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(parse_igmp6(igmp6), [(1, group("ff02::1"))]);
    }
}
