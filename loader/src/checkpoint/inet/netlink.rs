//! Just enough of rtnetlink(7): interfaces, addresses and routing rules of the calling thread's network namespace.
#![forbid(unsafe_code)]

use crate::sys::net;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;

/// A netlink socket.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// IFF_*.
    pub flags: u32,
    /// MTU.
    pub mtu: u32,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Interface.
    pub link: u32,
    /// Address.
    pub ip: IpAddr,
    /// Length of the network's prefix, bits.
    pub prefix: u8,
}

impl Netlink {
    /// Opens a socket of `protocol` (NETLINK_ROUTE 0, …).
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(protocol: i32) -> Result<Self> {
        let fd = net::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)
            .map_err(|e| Error::from(e).context("opening a netlink socket"))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Opens a socket for interfaces and addresses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn route() -> Result<Self> {
        Self::open(libc::NETLINK_ROUTE)
    }

    /// Interfaces.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let answers = self.dump(RTM_GETLINK, &[0; 16])?;
        Ok(answers.iter().filter(|(kind, _)| *kind == RTM_NEWLINK).filter_map(|(_, b)| link(b)).collect())
    }

    /// Addresses of all interfaces.
    ///
    /// # Errors
    /// The kernel's.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let answers = self.dump(RTM_GETADDR, &[0; 8])?;
        Ok(answers.iter().filter(|(kind, _)| *kind == RTM_NEWADDR).filter_map(|(_, b)| address(b)).collect())
    }

    /// Adds an address. One that is there already is no error.
    ///
    /// # Errors
    /// The kernel's: `EPERM`, `ENODEV`.
    pub fn add_address(&mut self, address: Address) -> Result<()> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        const IFA_F_NODAD: u8 = 2;
        let (family, octets) = match address.ip {
            IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
            IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
        };
        let mut body = vec![family as u8, address.prefix, IFA_F_NODAD, 0];
        body.extend(address.link.to_ne_bytes());
        for kind in [IFA_LOCAL, IFA_ADDRESS] {
            attribute(&mut body, kind, &octets);
        }
        match self.ask(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body) {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(e) => Err(Error::from(e).context(format!("adding address {}", address.ip))),
        }
    }

    /// Keeps this machine from answering to a TCP connection that nobody has for now: what arrives for it would be
    /// answered with RST, which would end it. A routing rule says that there is no way for packets of that connection.
    ///
    /// # Errors
    /// The kernel's: `EPERM`, `EOPNOTSUPP`.
    pub fn hold(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<()> {
        match self.ask(RTM_NEWRULE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &no_way(local, remote)) {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(e) => {
                Err(Error::from(e).context(format!("keeping the connection to {remote} for its restore")))
            }
        }
    }

    /// Takes the rule of [`Netlink::hold`] away, if it is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn let_go(&mut self, local: SocketAddr, remote: SocketAddr) -> Result<()> {
        match self.ask(RTM_DELRULE, NLM_F_ACK, &no_way(local, remote)) {
            Ok(_) | Err(Errno::ENOENT | Errno::ESRCH | Errno::EAFNOSUPPORT) => Ok(()),
            Err(e) => Err(Error::from(e).context(format!("letting go of the connection to {remote}"))),
        }
    }

    /// Asks for all of something; answers are (type, body).
    ///
    /// # Errors
    /// The kernel's.
    pub fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<(u16, Vec<u8>)>> {
        self.ask(kind, NLM_F_DUMP, body)
            .map_err(|e| Error::from(e).context(format!("netlink request {kind}")))
    }

    /// Sends a request and collects what comes until the kernel says that it is done.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> std::result::Result<Vec<(u16, Vec<u8>)>, Errno> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        let kernel = [libc::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        net::send(self.fd.as_fd(), &message, &kernel, 0)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            let len = match net::receive(self.fd.as_fd(), &mut buffer, 0) {
                Ok(received) => received.len,
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut fds, PollTimeout::from(2000u16))? == 0 {
                        return Err(Errno::ETIMEDOUT);
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            for (kind, sequence, body) in messages(&buffer[..len]) {
                match kind {
                    _ if sequence != self.sequence => {}
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => {
                        let code =
                            body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        return if code == 0 { Ok(answers) } else { Err(Errno::from_raw(-code)) };
                    }
                    _ => answers.push((kind, body.to_vec())),
                }
            }
        }
    }
}

/// `struct fib_rule_hdr` and attributes: a rule for what goes from `local` to `remote`.
fn no_way(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    const BLACKHOLE: u8 = 6;
    const PRIORITY: u32 = 77;
    const FRA_DST: u16 = 1;
    const FRA_SRC: u16 = 2;
    const FRA_PRIORITY: u16 = 6;
    const FRA_IP_PROTO: u16 = 22;
    const FRA_SPORT_RANGE: u16 = 23;
    const FRA_DPORT_RANGE: u16 = 24;
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (from, to) = (octets(local), octets(remote));
    let family = if remote.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let bits = |bytes: &[u8]| (bytes.len() * 8) as u8;
    let mut body = vec![family as u8, bits(&to), bits(&from), 0, 0, 0, 0, BLACKHOLE, 0, 0, 0, 0];
    attribute(&mut body, FRA_DST, &to);
    attribute(&mut body, FRA_SRC, &from);
    attribute(&mut body, FRA_PRIORITY, &PRIORITY.to_ne_bytes());
    attribute(&mut body, FRA_IP_PROTO, &[libc::IPPROTO_TCP as u8]);
    for (kind, port) in [(FRA_SPORT_RANGE, local.port()), (FRA_DPORT_RANGE, remote.port())] {
        let range = [port.to_ne_bytes(), port.to_ne_bytes()].concat();
        attribute(&mut body, kind, &range);
    }
    body
}

/// The messages in a datagram: type, sequence number, body.
fn messages(mut bytes: &[u8]) -> Vec<(u16, u32, &[u8])> {
    let mut all = Vec::new();
    while let Some(header) = bytes.get(..16) {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let Some(body) = bytes.get(16..len) else { break };
        all.push((kind, sequence, body));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// The attributes (type, value) in `bytes`.
pub fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    const TYPE_MASK: u16 = 0x3fff;
    let mut all = Vec::new();
    while let Some(header) = bytes.get(..4) {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(value) = bytes.get(4..len) else { break };
        all.push((u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK, value));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// Appends an attribute.
pub fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend((4 + value.len() as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn link(body: &[u8]) -> Option<Link> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    let mut link = Link { index: word(body, 4)?, flags: word(body, 8)?, ..Link::default() };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => {
                link.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
            }
            IFLA_MTU => link.mtu = word(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}

fn address(body: &[u8]) -> Option<Address> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let (mut ip, mut local) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        let parsed = match *value {
            [a, b, c, d] => Some(IpAddr::from(Ipv4Addr::new(a, b, c, d))),
            _ => <[u8; 16]>::try_from(value).ok().map(|b| Ipv6Addr::from(b).into()),
        };
        match kind {
            IFA_ADDRESS => ip = parsed,
            IFA_LOCAL => local = parsed,
            _ => {}
        }
    }
    Some(Address { link: word(body, 4)?, ip: local.or(ip)?, prefix: *body.get(1)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::inet::testing;
    use proptest::prelude::*;

    #[test]
    fn loopback_and_its_addresses() {
        testing::in_netns("loopback_and_its_addresses", || {
            let mut netlink = Netlink::route().unwrap();
            let links = netlink.links().unwrap();
            let lo = links.iter().find(|l| l.name == "lo").unwrap();
            assert_eq!((lo.index, lo.mtu, lo.flags & 1), (1, 65536, 1));
            let ip: IpAddr = "127.0.0.1".parse().unwrap();
            assert!(netlink.addresses().unwrap().contains(&Address { link: 1, ip, prefix: 8 }));
            for new in ["10.9.8.7", "fd00::5"] {
                let new = Address { link: 1, ip: new.parse().unwrap(), prefix: 24 };
                netlink.add_address(new).unwrap();
                netlink.add_address(new).unwrap();
                assert!(netlink.addresses().unwrap().contains(&new));
            }
            let none = Address { link: 99, ip, prefix: 8 };
            assert!(netlink.add_address(none).is_err());
        });
    }

    proptest! {
        #[test]
        fn any_bytes_are_fine(bytes: Vec<u8>) {
            let _ = (messages(&bytes), attributes(&bytes), link(&bytes), address(&bytes));
        }
    }
}
