//! AF_XDP sockets as the caller's side of a link (gVisor's `XDPLinks`).
//!
//! Who binds it: with `Bind` 0 the caller has attached a program to its interface and put the socket into the program's
//! map, and the sandbox gives the socket its memory and rings and binds it. With `Bind` 1 the caller binds it, and puts it
//! into its map, once the link is there.
#![forbid(unsafe_code)]

use super::peer::{Kind, Peer};
use super::pump::Received;
use crate::container::lock;
use crate::procfs::ProcFs;
use crate::sys::net;
use crate::sys::xdp::{self, HEADROOM, Receiver, Sender, Sizes};
use airlock_wire::api::network::XdpLink;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

/// Bytes of an Ethernet header with a VLAN tag.
const HEADERS: u32 = 18;
/// Room for a frame: small, or large where the MTU asks for it. What is sent needs no headroom.
const FRAMES: [u32; 2] = [2048, 4096];
/// Frames in each direction: 6 MiB of small ones, below the usual limit of locked memory.
const RECEIVE: u32 = 2048;
const SEND: u32 = 1024;
/// Nobody says that the interface of a socket is gone: it is asked that often, in milliseconds.
const LOOK: u16 = 1000;
/// How long a full queue is given to become emptier before frames are dropped, in milliseconds.
const FULL: u16 = 10;

/// Largest MTU that frames have room for.
pub const MTU_MAX: u32 = FRAMES[1] - HEADROOM - HEADERS;

/// Both directions of a socket, each for the one thread that moves its frames.
#[derive(Debug)]
pub struct Rings {
    receiver: Mutex<Receiver>,
    sender: Mutex<Sender>,
    /// What keeps frames coming: program, map, and the program's attachment.
    _kept: Vec<OwnedFd>,
}

/// Makes a socket ready. `fds` are those of the call for this link.
///
/// # Errors
/// A descriptor of the wrong kind; a socket that is in use; too little locked memory; no such interface.
pub fn peer(link: &XdpLink, mut fds: Vec<OwnedFd>, procfs: &ProcFs) -> Result<Peer> {
    let kept = fds.split_off(1.min(fds.len()));
    let fd = fds.pop().ok_or_else(|| Error::invalid_argument("no descriptor"))?;
    match net::get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN) {
        Ok(libc::AF_XDP) => {}
        _ => return Err(wrong("the first descriptor is no AF_XDP socket")),
    }
    for ((name, words), fd) in [
        ("program", ("anon_inode:bpf-prog", "prog_type:\t6\n")),
        ("map", ("anon_inode:bpf-map", "map_type:\t17\n")),
        ("link", ("anon_inode:bpf_link", "link_type:\txdp\n")),
    ]
    .into_iter()
    .zip(&kept)
    {
        if !is(procfs, fd.as_fd(), words)? {
            return Err(wrong(&format!(
                "the {name} is none of XDP's: socket, program, map of sockets and link"
            )));
        }
    }
    let mtu = u32::try_from(link.mtu).unwrap_or(0);
    let frame = FRAMES.into_iter().find(|room| mtu + HEADERS + HEADROOM <= *room).unwrap_or(FRAMES[1]);
    let sizes = Sizes { frame, receive: RECEIVE, send: SEND };
    let (receiver, sender) = xdp::open(fd.as_fd(), sizes).map_err(|e| match e {
        Errno::EBUSY | Errno::EINVAL => wrong(
            "the socket has memory or rings already, or is bound: give a new one, the sandbox gives it those",
        ),
        Errno::ENOBUFS | Errno::ENOMEM => Error::from(e).context(
            "locking the memory of an AF_XDP socket (is RLIMIT_MEMLOCK or the cgroup's memory too small?)",
        ),
        Errno::ENOPROTOOPT => Error::unsupported("AF_XDP of this kernel is too old: it takes Linux 5.4"),
        e => Error::from(e).context("giving an AF_XDP socket its rings"),
    })?;
    if link.bind == 0 {
        xdp::bind(fd.as_fd(), link.interface_index.cast_unsigned(), 0).map_err(|e| {
            Error::from(e).context(format!("binding the AF_XDP socket to interface {}", link.interface_index))
        })?;
    }
    let rings = Rings { receiver: receiver.into(), sender: sender.into(), _kept: kept };
    Ok(Peer { fd, kind: Kind::Xdp, offload: false, rings: Some(Box::new(rings)) })
}

fn wrong(what: &str) -> Error {
    Error::invalid_argument(what)
}

/// Whether a descriptor's name and its entry in `fdinfo` are those of a kind.
fn is(procfs: &ProcFs, fd: BorrowedFd<'_>, (name, line): (&str, &str)) -> Result<bool> {
    let number = fd.as_raw_fd();
    if readlinkat(procfs.root(), format!("self/fd/{number}").as_str())? != *name {
        return Ok(false);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = openat(procfs.root(), format!("self/fdinfo/{number}").as_str(), flags, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text.contains(line))
}

impl Rings {
    /// Waits for frames and takes those that are there; none when there was nothing to wait for any longer.
    ///
    /// # Errors
    /// `ENETDOWN`: the interface is gone.
    pub fn receive(&self, fd: BorrowedFd<'_>, received: &mut Received) -> std::result::Result<(), Errno> {
        let mut receiver = lock(&self.receiver);
        received.take(|arena, piece, lengths| receiver.take(arena, piece, lengths));
        if received.is_empty() {
            match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(LOOK)) {
                Ok(0) => gone(fd)?,
                Ok(_) => received.take(|arena, piece, lengths| receiver.take(arena, piece, lengths)),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Sends frames, each of some parts; those that there is no room for are lost, as on any cable.
    ///
    /// # Errors
    /// `ENETDOWN`: the interface is gone.
    pub fn send<'a>(
        &self,
        fd: BorrowedFd<'_>,
        frames: impl Iterator<Item = [IoSlice<'a>; 2]>,
    ) -> std::result::Result<(), Errno> {
        let mut sender = lock(&self.sender);
        for parts in frames {
            while !sender.put(&parts) {
                let moves = flush(&mut sender, fd)?;
                let room = &mut [PollFd::new(fd, PollFlags::POLLOUT)];
                // Not bound yet, or down; or the other side takes nothing.
                if !moves || matches!(poll(room, PollTimeout::from(FULL)), Ok(0)) {
                    break;
                }
            }
        }
        flush(&mut sender, fd).map(drop)
    }
}

/// Has the kernel send all that waits. False when it cannot just now.
fn flush(sender: &mut Sender, fd: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    loop {
        match sender.kick(fd) {
            Ok(()) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The device's own queue is full: what waits goes with what comes next.
            Err(Errno::EBUSY | Errno::ENOBUFS) => return Ok(true),
            Err(_) => return gone(fd).map(|()| false),
        }
    }
}

/// # Errors
/// `ENETDOWN`: the interface that the socket was bound to is gone.
fn gone(fd: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    match net::get_int(fd, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        error => Err(Errno::from_raw(error)),
    }
}

/// What the kernel has counted, for the log; `None` when nothing was lost.
pub fn losses(fd: BorrowedFd<'_>) -> Option<String> {
    let counted = xdp::statistics(fd).ok().filter(|counted| *counted != xdp::Statistics::default())?;
    Some(format!(
        "frames lost on its AF_XDP socket: {} too long or without room, {} while the pump was behind, {} not to be sent",
        counted.dropped, counted.full, counted.invalid
    ))
}
