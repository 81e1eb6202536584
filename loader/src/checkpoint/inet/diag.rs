//! sock_diag(7): what of packet sockets no option tells.
#![forbid(unsafe_code)]

use super::netlink::{Netlink, attributes};
use airlock_wire::error::Result;

const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// A packet socket.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packet {
    /// Inode.
    pub inode: u64,
    /// It has a ring that is shared with its process.
    pub ring: bool,
    /// It belongs to a fanout group.
    pub fanout: bool,
    /// Memberships: interface, type (PACKET_MR_*), link-layer address.
    pub memberships: Vec<(u32, u16, Vec<u8>)>,
}

/// All packet sockets of the calling thread's network namespace.
///
/// # Errors
/// The kernel's: it may have no support for asking (CONFIG_PACKET_DIAG).
pub fn packets() -> Result<Vec<Packet>> {
    const SHOW_INFO: u32 = 1;
    const SHOW_MEMBERSHIPS: u32 = 2;
    const SHOW_RINGS: u32 = 4;
    const SHOW_FANOUT: u32 = 8;
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0, 0, 0, 0, 0];
    request.extend((SHOW_INFO | SHOW_MEMBERSHIPS | SHOW_RINGS | SHOW_FANOUT).to_ne_bytes());
    request.extend([0; 8]);
    let answers = Netlink::open(libc::NETLINK_SOCK_DIAG)?.dump(SOCK_DIAG_BY_FAMILY, &request)?;
    Ok(answers.iter().filter_map(|(_, body)| packet(body)).collect())
}

/// `struct packet_diag_msg` and its attributes (linux/packet_diag.h).
fn packet(body: &[u8]) -> Option<Packet> {
    const MEMBERSHIPS: u16 = 1;
    const RX_RING: u16 = 2;
    const TX_RING: u16 = 3;
    const FANOUT: u16 = 4;
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
    };
    let mut packet = Packet { inode: u64::from(word(body, 4)?), ..Packet::default() };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            MEMBERSHIPS => {
                // index, count, type and length of the address, 32 bytes of address
                for entry in value.chunks_exact(44) {
                    let what = u16::from_ne_bytes([entry[8], entry[9]]);
                    let len = usize::from(u16::from_ne_bytes([entry[10], entry[11]])).min(32);
                    packet.memberships.push((word(entry, 0)?, what, entry[12..12 + len].to_vec()));
                }
            }
            RX_RING | TX_RING => packet.ring = true,
            FANOUT => packet.fanout = true,
            _ => {}
        }
    }
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::inet::testing::in_netns;
    use crate::sys::net;
    use nix::sys::stat::fstat;
    use std::os::fd::AsFd;

    #[test]
    fn memberships_of_a_packet_socket() {
        in_netns("memberships_of_a_packet_socket", || {
            let fd = net::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).unwrap();
            // struct packet_mreq: lo, PACKET_MR_PROMISC
            let request = [1u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            net::set(fd.as_fd(), 263, 1, &request).unwrap();
            let inode = fstat(&fd).unwrap().st_ino;
            let all = packets().unwrap();
            let mine = all.iter().find(|p| p.inode == inode).unwrap();
            assert_eq!((mine.memberships.len(), mine.ring, mine.fanout), (1, false, false));
            assert_eq!((mine.memberships[0].0, mine.memberships[0].1), (1, 1));
        });
    }

    #[test]
    fn short_answers_are_none() {
        assert_eq!(packet(&[17, 3, 0, 0]), None);
    }
}
