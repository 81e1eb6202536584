//! The sandbox's side of a link: a packet socket on the far end of the link's interface, which is in a network namespace
//! that nobody but the pump is in.
//!
//! A tap would do as well, but for that its device has to be opened in the sandbox, which the device rules of its cgroup
//! forbid, and in a user namespace the device's permissions.
#![forbid(unsafe_code)]

use super::peer;
use crate::netlink::{LinkChange, Netlink};
use crate::sys::net;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One socket of a link.
#[derive(Debug)]
pub struct Port {
    socket: OwnedFd,
    /// Index of the interface's far end.
    index: u32,
}

impl Port {
    /// Opens `count` sockets on interface `index` of the calling thread's network namespace, which share its frames.
    ///
    /// # Errors
    /// `EPERM`, `ENODEV`; a kernel without offload headers (PACKET_VNET_HDR).
    pub fn open(index: u32, count: usize) -> Result<Vec<Self>> {
        let ports: Vec<_> = (0..count).map(|_| Self::open_one(index)).collect::<Result<_>>()?;
        peer::spread(ports.iter().map(Self::fd))?;
        Ok(ports)
    }

    fn open_one(index: u32) -> Result<Self> {
        let socket =
            net::packet_socket(index).map_err(|e| Error::from(e).context("opening a packet socket"))?;
        // Whoever reads or writes has nothing else to do.
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
        if !peer::set_packet_options(socket.as_fd())? {
            return Err(Error::unsupported(
                "this kernel's packet sockets have no offload headers (PACKET_VNET_HDR)",
            ));
        }
        Ok(Self { socket, index })
    }

    /// The socket; it blocks.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes the carrier from the link's interface.
    ///
    /// # Errors
    /// `ENODEV`: it is gone.
    pub fn pull(&self) -> Result<()> {
        Netlink::open()?.set_link(self.index, &LinkChange { up: Some(false), ..LinkChange::default() })
    }
}
