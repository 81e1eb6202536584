//! Connections from a donated socket to a port inside a container.
//!
//! A worker in the container's network namespace makes the sockets ([`Connector`]) and hands them over; the loader moves
//! the bytes ([`Pump`]). The worker is shared by the connections to one container, and goes with the last of them.
#![forbid(unsafe_code)]

use super::{Loader, Working};
use crate::container::{Process, lock};
use crate::forward::{self, Connection, Pump};
use crate::sys::net;
use crate::worker::{Connector, Dial};
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// How long a server with a full backlog may take to accept.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything about forwarded connections that outlives a call.
#[derive(Debug)]
pub(super) struct Forwards {
    pump: Arc<Pump>,
    /// Workers by the pid of the init in whose namespace they are.
    dialers: Mutex<HashMap<i32, Weak<Dialer>>>,
}

impl Forwards {
    /// # Errors
    /// When there is no descriptor left.
    pub(super) fn new() -> Result<Self> {
        Ok(Self { pump: Arc::new(Pump::new()?), dialers: Mutex::default() })
    }
}

/// A connection that is being forwarded.
#[derive(Debug)]
pub struct Forwarded {
    pump: Arc<Pump>,
    id: u64,
    ended: Arc<AtomicBool>,
}

impl Forwarded {
    /// It is over.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends it.
    pub fn end(&self) {
        self.pump.end(self.id);
    }
}

/// What lives with a connection: its end is noticed by the drop.
struct Kept {
    _dialer: Arc<Dialer>,
    ended: Arc<AtomicBool>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Loader {
    /// Connects `stream`, a connected stream socket, to TCP port `port` as seen from inside container `cid`: on
    /// 127.0.0.1, or else on ::1. Blocks until that connection is made, 10 s at most. The socket becomes non-blocking.
    ///
    /// # Errors
    /// gVisor's `failed to get threadgroup from "X": …`, `container "X" not started` and `creating netstack port forward
    /// connection: …`; another kind of descriptor.
    pub fn port_forward(&self, cid: &str, port: u16, stream: OwnedFd) -> Result<Forwarded> {
        self.container(cid).map_err(|e| e.context(format!("failed to get threadgroup from {cid:?}")))?;
        let (_, init) = self.running(cid)?;
        forward::check(&stream)?;
        if port == 0 {
            return Err(Error::invalid_argument(
                "creating netstack port forward connection: port 0: ports are 1 to 65535",
            ));
        }
        let failed = |e: Error| e.context("creating netstack port forward connection");
        let dialer = self.dialer(&init).map_err(failed)?;
        let socket = dialer.connect(port).map_err(|e| {
            let what = format!("connecting endpoint: {}: port {port} of container {cid:?}", e.what);
            failed(Error::new(e.kind, what))
        })?;
        let ended = Arc::new(AtomicBool::new(false));
        let kept = Kept { _dialer: dialer, ended: ended.clone() };
        let connection = Connection::new([stream, socket], Box::new(kept))?;
        let id = self.forwards.pump.add(connection)?;
        Ok(Forwarded { pump: self.forwards.pump.clone(), id, ended })
    }

    /// The worker in the namespace of `init`.
    fn dialer(&self, init: &Arc<Process>) -> Result<Arc<Dialer>> {
        // Held while one is made: of many who ask at once, one makes it.
        let mut dialers = lock(&self.forwards.dialers);
        dialers.retain(|_, dialer| dialer.strong_count() > 0);
        if let Some(dialer) = dialers.get(&init.pid).and_then(Weak::upgrade)
            && !dialer.broken.load(Ordering::Relaxed)
        {
            return Ok(dialer);
        }
        let ((), _, working) = self.work(Connector, &[init.pidfd()])?;
        let dialer = Arc::new(Dialer { working: Mutex::new(working), broken: AtomicBool::new(false) });
        dialers.insert(init.pid, Arc::downgrade(&dialer));
        Ok(dialer)
    }
}

/// A worker that makes sockets.
#[derive(Debug)]
struct Dialer {
    working: Mutex<Working>,
    /// It died.
    broken: AtomicBool,
}

/// Why there is no connection, in gVisor's words.
struct Refused {
    kind: Kind,
    what: String,
}

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Self { kind: e.kind, what: e.message }
    }
}

impl From<Errno> for Refused {
    fn from(e: Errno) -> Self {
        let what = match e {
            Errno::ECONNREFUSED => "connection was refused",
            Errno::ENETUNREACH => "network is unreachable",
            Errno::ETIMEDOUT => "connection timed out",
            e => e.desc(),
        };
        // Not `Disconnected`, which would say that the sandbox is gone.
        Self { kind: Kind::Failure, what: what.to_owned() }
    }
}

impl Dialer {
    fn connect(&self, port: u16) -> std::result::Result<OwnedFd, Refused> {
        let [v4, v6] =
            [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        let first = match self.dial(v4)? {
            Ok(socket) => return Ok(socket),
            Err(e) => e,
        };
        // What IPv6 has to say against it is of no interest if it is not there at all.
        self.dial(v6)?.map_err(|_| first.into())
    }

    /// Begins a connection and waits for it.
    fn dial(&self, to: SocketAddr) -> Result<nix::Result<OwnedFd>> {
        let asked = {
            let working = lock(&self.working);
            binary::send(&working.channel, &Dial(to), &[])
                .and_then(|()| binary::recv::<std::result::Result<(), i32>>(&working.channel))
        };
        let (answer, fds) = asked.inspect_err(|_| self.broken.store(true, Ordering::Relaxed))?;
        Ok(match (answer, fds.into_iter().next()) {
            (Ok(()), Some(socket)) => finish(socket.as_fd()).map(|()| socket),
            (Err(errno), _) => Err(Errno::from_raw(errno)),
            (Ok(()), None) => return Err(Error::failure("a worker answered without a socket")),
        })
    }
}

/// Waits until a socket is connected.
fn finish(socket: BorrowedFd<'_>) -> nix::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now()).as_millis() as u16;
        match poll(&mut [PollFd::new(socket, PollFlags::POLLOUT)], left) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    match net::get_int(socket, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}
