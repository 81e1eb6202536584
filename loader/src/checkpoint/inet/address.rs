//! Internet addresses as the kernel's bytes.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Reads `sockaddr` bytes of AF_INET or AF_INET6. An IPv4 address in IPv6's clothes (`::ffff:1.2.3.4`) comes out as
/// IPv4, because that is what the other end of such a connection has.
pub fn parse(bytes: &[u8]) -> Option<SocketAddr> {
    let raw = parse_as_is(bytes)?;
    Some(match raw.ip().to_canonical() {
        IpAddr::V4(ip) => (ip, raw.port()).into(),
        IpAddr::V6(_) => raw,
    })
}

/// [`parse`] that leaves IPv6 as it is.
pub fn parse_as_is(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
    let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some((Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let flow: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope: [u8; 4] = bytes.get(24..28)?.try_into().ok()?;
            let (flow, scope) = (u32::from_be_bytes(flow), u32::from_ne_bytes(scope));
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
        }
        _ => None,
    }
}

/// The `sockaddr` bytes of `address`.
pub fn to_bytes(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// `address` for a socket of `family`: an IPv4 address becomes one in IPv6's clothes for an IPv6 socket.
pub fn for_family(address: SocketAddr, family: i32) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if family == libc::AF_INET6 => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clothes_are_taken_off_and_put_on() {
        let dressed: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        let plain: SocketAddr = "10.1.2.3:80".parse().unwrap();
        assert_eq!(parse(&to_bytes(dressed)), Some(plain));
        assert_eq!(parse_as_is(&to_bytes(dressed)), Some(dressed));
        assert_eq!(for_family(plain, libc::AF_INET6), dressed);
        assert_eq!(for_family(plain, libc::AF_INET), plain);
        assert_eq!(to_bytes(plain), [2, 0, 0, 80, 10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        let local: SocketAddr = "[fe80::1%3]:7".parse().unwrap();
        assert_eq!(parse(&to_bytes(local)), Some(local));
    }

    proptest! {
        #[test]
        fn any_bytes_are_fine(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
