//! Ports of a container, reached from outside its network.
//!
//! The caller accepts connections, or has one, and hands the socket to the sandbox, which moves the bytes: nothing of a
//! connection passes through this process.

#![forbid(unsafe_code)]

use super::Airlock;
use crate::files::connect_stream;
use crate::state::State;
use airlock_wire::api::container_manager as cm;
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::str::FromStr;

/// Which local port leads to which port of the container. As text: `LOCAL:REMOTE`, `REMOTE` for the same number on both
/// sides, `:REMOTE` for any local port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// Port to listen on; 0 lets the kernel choose.
    pub local: u16,
    /// Port of the container.
    pub remote: u16,
}

impl FromStr for PortMapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let port = |word: &str| match word.parse::<u16>() {
            Ok(port) if port > 0 && word.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(Error::invalid_argument(format!(
                "invalid port string {text:?}: write [LOCAL:]REMOTE, or :REMOTE for any local port; ports are 1 to 65535"
            ))),
        };
        Ok(match text.split_once(':') {
            None => Self { local: port(text)?, remote: port(text)? },
            Some(("" | "0", remote)) => Self { local: 0, remote: port(remote)? },
            Some((local, remote)) => Self { local: port(local)?, remote: port(remote)? },
        })
    }
}

/// Where a [`Forwarder`] listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAddress {
    /// 127.0.0.1, and ::1 where there is IPv6.
    Localhost,
    /// One address.
    Ip(IpAddr),
}

impl FromStr for LocalAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "localhost" => Ok(Self::Localhost),
            ip => ip.parse().map(Self::Ip).map_err(|_| {
                Error::invalid_argument(format!("{ip:?} is no address: write an IP address, or localhost"))
            }),
        }
    }
}

/// What a [`Forwarder`] has to tell.
#[derive(Debug)]
pub enum Forwarding<'a> {
    /// A connection was accepted on this local port.
    Accepted(u16),
    /// There is none to this port of the container.
    Failed(u16, &'a Error),
}

/// Listens on local ports and has the sandbox forward what connects there. The connections end with it.
#[derive(Debug)]
pub struct Forwarder {
    id: String,
    listeners: Vec<(TcpListener, SocketAddr, u16)>,
    /// For the calls, one after the other; the connections depend on it.
    client: Client,
    /// Has the container's end waited for.
    waits: Client,
}

impl Airlock {
    /// Connects `stream`, a connected stream socket, to a TCP port of a running container, on its 127.0.0.1 or else ::1.
    /// Bytes go both ways from now on, without this process, until either end closes. The socket becomes non-blocking.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; nothing listens there.
    pub fn port_forward(&self, id: &str, port: u16, stream: BorrowedFd<'_>) -> Result<()> {
        let state = self.alive(id)?;
        let args = args(&state.id, port, false);
        self.states.connect(&state)?.call::<cm::PortForward>(&args, &[stream]).map(drop)
    }

    /// [`Airlock::port_forward`] of a connection to the Unix socket `path`, which it makes.
    ///
    /// # Errors
    /// As that; nobody listens at `path`.
    pub fn port_forward_socket(&self, id: &str, port: u16, path: &Path) -> Result<()> {
        let stream = connect_stream(path)
            .map_err(|e| Error::from(e).context(format!("connect to {}", path.display())))?;
        self.port_forward(id, port, stream.as_fd())
    }

    /// Listens for connections to ports of a running container; [`Forwarder::run`] then serves them.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; a port cannot be listened on.
    pub fn forwarder(
        &self,
        id: &str,
        mappings: &[PortMapping],
        addresses: &[LocalAddress],
    ) -> Result<Forwarder> {
        let state: State = self.alive(id)?;
        let mut listeners = Vec::new();
        for mapping in mappings {
            let mut local = mapping.local;
            for address in addresses {
                for (listener, at) in listen(*address, local)? {
                    // With a port of the kernel's choice: the same on all addresses.
                    local = at.port();
                    listeners.push((listener, at, mapping.remote));
                }
            }
        }
        let mut waits = self.states.connect(&state)?;
        waits.start::<cm::Wait>(&state.id, &[])?;
        Ok(Forwarder { id: state.id.clone(), listeners, client: self.states.connect(&state)?, waits })
    }
}

fn args(id: &str, port: u16, ends_with_connection: bool) -> cm::PortForwardOpts {
    cm::PortForwardOpts { container_id: id.to_owned(), port, ends_with_connection }
}

fn listen(address: LocalAddress, port: u16) -> Result<Vec<(TcpListener, SocketAddr)>> {
    let one = |ip: IpAddr, port: u16| -> Result<(TcpListener, SocketAddr)> {
        let failed = |e: std::io::Error| Error::from(e).context(format!("listen on {ip} port {port}"));
        let listener = TcpListener::bind((ip, port)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        Ok((listener, at))
    };
    match address {
        LocalAddress::Ip(ip) => Ok(vec![one(ip, port)?]),
        LocalAddress::Localhost => {
            let first = one(Ipv4Addr::LOCALHOST.into(), port);
            let port = first.as_ref().map_or(port, |(_, at)| at.port());
            match (first, one(Ipv6Addr::LOCALHOST.into(), port)) {
                (Err(e), Err(_)) => Err(e),
                (first, second) => Ok(first.into_iter().chain(second).collect()),
            }
        }
    }
}

impl Forwarder {
    /// Where it listens, and which port of the container that leads to.
    pub fn listening(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        self.listeners.iter().map(|(_, at, remote)| (*at, *remote))
    }

    /// Serves connections until the container ends. `tell` hears of each.
    ///
    /// # Errors
    /// The sandbox cannot be talked to; no more descriptors.
    pub fn run(mut self, mut tell: impl FnMut(Forwarding<'_>)) -> Result<()> {
        loop {
            let waits = PollFd::new(self.waits.stream().as_fd(), PollFlags::POLLIN);
            let mut fds = vec![waits];
            fds.extend(self.listeners.iter().map(|(l, ..)| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::from(e).context("wait for connections")),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            if ready[0] {
                return Ok(());
            }
            for ((listener, at, remote), _) in self.listeners.iter().zip(&ready[1..]).filter(|(_, r)| **r) {
                let stream = match listener.accept() {
                    Ok((stream, _)) => stream,
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                        return Err(Error::from(e).context("accept a connection"));
                    }
                    // It is gone already.
                    Err(_) => continue,
                };
                tell(Forwarding::Accepted(at.port()));
                let args = args(&self.id, *remote, true);
                match self.client.call::<cm::PortForward>(&args, &[stream.as_fd()]) {
                    Ok(_) => {}
                    Err(e) if matches!(e.kind, Kind::Disconnected | Kind::Protocol) => {
                        // The sandbox ends, or is no more.
                        return if self.has_ended() { Ok(()) } else { Err(e) };
                    }
                    Err(e) => tell(Forwarding::Failed(*remote, &e)),
                }
            }
        }
    }

    /// Blocks for the time that a sandbox takes to say so.
    fn has_ended(&mut self) -> bool {
        let mut fds = [PollFd::new(self.waits.stream().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(5_000u16)).is_ok_and(|n| n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_as_kubectl_writes_them() {
        let is = |text: &str, local, remote| {
            assert_eq!(text.parse::<PortMapping>().unwrap(), PortMapping { local, remote }, "{text}");
        };
        is("80", 80, 80);
        is("8080:80", 8080, 80);
        is(":80", 0, 80);
        is("0:80", 0, 80);
        is("65535:1", 65535, 1);
        for wrong in
            ["", ":", "0", "80:", "80:0", "65536", "80:65536", "-1:80", "+1:80", "a:80", "1:2:3", " 80", "٣"]
        {
            let e = wrong.parse::<PortMapping>().unwrap_err();
            assert!(e.message.contains("invalid port string"), "{wrong}: {e}");
        }
    }

    #[test]
    fn addresses_are_numbers_or_localhost() {
        assert_eq!("localhost".parse::<LocalAddress>().unwrap(), LocalAddress::Localhost);
        assert_eq!("::".parse::<LocalAddress>().unwrap(), LocalAddress::Ip(Ipv6Addr::UNSPECIFIED.into()));
        assert!("example.org".parse::<LocalAddress>().is_err());
    }

    #[test]
    fn localhost_has_one_port_on_both_addresses() {
        let all = listen(LocalAddress::Localhost, 0).unwrap();
        let port = all[0].1.port();
        assert!(port > 0 && all.iter().all(|(_, at)| at.port() == port && at.ip().is_loopback()));
        let e = listen(LocalAddress::Ip(all[0].1.ip()), port).unwrap_err();
        assert!(e.message.starts_with(&format!("listen on {} port {port}", all[0].1.ip())), "{e}");
    }
}
