//! `/proc/net/tcp`: all TCP sockets of a network namespace, those that no process holds among them.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A line of `/proc/net/tcp` or `/proc/net/tcp6` (proc_net_tcp(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Own address, IPv4 without IPv6's clothes.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// TCP_ESTABLISHED 1, …
    pub state: u8,
    /// Bytes in the send queue; of a listener, connections that it may keep waiting.
    pub sending: u32,
    /// Bytes in the receive queue; of a listener, connections that wait.
    pub receiving: u32,
    /// 0 when it belongs to no process.
    pub inode: u64,
}

/// Parses the text of either file. Lines that cannot be read are left out.
pub fn parse(text: &str) -> Vec<Entry> {
    text.lines().skip(1).filter_map(line).collect()
}

fn line(text: &str) -> Option<Entry> {
    let mut fields = text.split_ascii_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    let (sending, receiving) = fields.next()?.split_once(':')?;
    let inode = fields.nth(4)?.parse().ok()?;
    Some(Entry {
        local,
        remote,
        state,
        sending: u32::from_str_radix(sending, 16).ok()?,
        receiving: u32::from_str_radix(receiving, 16).ok()?,
        inode,
    })
}

/// `0100007F:0050`: the address as words of the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if !words.is_ascii() || words.len() % 8 != 0 {
        return None;
    }
    let mut bytes = Vec::with_capacity(16);
    for i in (0..words.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(&words[i..i + 8], 16).ok()?.to_ne_bytes());
    }
    let ip: IpAddr = match *bytes {
        [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some((ip.to_canonical(), port).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_both_files() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 0A00020F:0016 01 00000003:00000005 00:00000000 00000000  1000        0 4711 1 0 20 4 30 10 -1\n   \
            1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000001000000:BE1E 06 00000000:00000000 03:000017F6 00000000     0        0 0 3 0\n\
            garbage\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(entries[0].remote, "15.2.0.10:22".parse().unwrap());
        let e = entries[0];
        assert_eq!((e.state, e.sending, e.receiving, e.inode), (1, 3, 5, 4711));
        assert_eq!(entries[1].local, "127.0.0.1:80".parse().unwrap());
        assert_eq!(entries[1].remote, "[::1]:48670".parse().unwrap());
    }

    proptest! {
        #[test]
        fn any_text_is_fine(text in "(\\PC{0,60}\n){0,4}") {
            let _ = parse(&text);
        }
    }
}
