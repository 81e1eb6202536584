//! Connections from inside a container's network namespace.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use crate::sys::{net, process};
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

/// Goes into the network namespace of a process, whose pidfd comes with it, and stays: after the answer it takes
/// [`Dial`]s over its channel, one after the other, and answers each with a `Result<(), Errno's number>` and, if it is
/// `Ok`, the socket. It never waits for a connection.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Connector;

/// Wants a TCP socket that connects to this address: it may be at it still.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Dial(pub SocketAddr);

impl Task for Connector {
    type Reply = ();

    fn run(self, _: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        let target = fds.first().ok_or_else(|| Error::invalid_argument("no pidfd came for the connector"))?;
        process::setns(target.as_fd(), libc::CLONE_NEWNET)
            .map_err(|e| Error::from(e).context("entering a container's network namespace"))?;
        Ok(Done { reply: (), fds: Vec::new(), then: Some(Box::new(serve)) })
    }
}

fn serve(worker: &Worker) -> Result<()> {
    loop {
        let dial = match binary::recv::<Dial>(&worker.channel) {
            Ok((dial, _)) => dial,
            Err(e) if e.kind == Kind::Disconnected => return Ok(()),
            Err(e) => return Err(e),
        };
        match begin(dial.0) {
            Ok(socket) => binary::send(&worker.channel, &Ok::<(), i32>(()), &[socket.as_fd()])?,
            Err(e) => binary::send(&worker.channel, &Err::<(), i32>(e as i32), &[])?,
        }
    }
}

fn begin(to: SocketAddr) -> nix::Result<OwnedFd> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = net::socket(family, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    match net::connect(socket.as_fd(), &address(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// `struct sockaddr_in` or `sockaddr_in6` (ip(7), ipv6(7)).
fn address(of: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match of.ip() {
        IpAddr::V4(ip) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend(of.port().to_be_bytes());
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(ip) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend(of.port().to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses_are_the_kernels() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any) else { continue };
            let socket = begin(listener.local_addr().unwrap()).unwrap();
            let (peer, _) = listener.accept().unwrap();
            assert_eq!(address(peer.peer_addr().unwrap()), net::local(socket.as_fd()).unwrap());
        }
    }
}
