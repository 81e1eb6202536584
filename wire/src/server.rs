//! The answering end: one thread a connection, one call at a time on each.

#![forbid(unsafe_code)]

mod conn;

use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::scm::{self, PeerCred};
use conn::Conn;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Stack of a connection's thread. Only what is used takes memory; parsing nested JSON and OCI specs uses most.
const STACK: usize = 1 << 20;

/// Limits of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// Who may connect besides root and this process's own effective user, as user ids of this process's user
    /// namespace. Users without an id there show up as the overflow id (65534).
    pub allowed_uids: Vec<u32>,
    /// Connections beyond this number are closed at once.
    pub max_connections: usize,
    /// Longest request in bytes.
    pub max_body: usize,
    /// How long calls in flight usually get when the server stops.
    pub grace: Duration,
}

impl Default for ServerOptions {
    /// Nobody else, 4096 connections, 16 MiB, 15 seconds.
    fn default() -> Self {
        Self {
            allowed_uids: Vec::new(),
            max_connections: 4096,
            max_body: crate::binary::DEFAULT_MAX_BODY,
            grace: Duration::from_secs(15),
        }
    }
}

/// Answers calls in both dialects. Clones share everything.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: RwLock<Arc<Registry>>,
    options: ServerOptions,
    stopping: AtomicBool,
    conns: Mutex<Conns>,
    /// Signalled whenever a connection ends.
    ended: Condvar,
    /// Closed to make room for one descriptor when none is left.
    reserve: Mutex<Option<OwnedFd>>,
    overflow: Mutex<Overflow>,
    /// Signalled when a connection is put into `overflow`, and when the server stops.
    overflowed: Condvar,
}

/// Connections for which no thread could be started.
#[derive(Default)]
struct Overflow {
    /// Threads in [`Server::stand_by`].
    threads: usize,
    waiting: VecDeque<Open>,
}

impl std::fmt::Debug for Overflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} threads for {} connections", self.threads, self.waiting.len())
    }
}

#[derive(Debug, Default)]
struct Conns {
    next_id: u64,
    open: BTreeMap<u64, Arc<Conn>>,
}

impl Server {
    /// A server that answers the methods of `registry`. It starts no thread until a connection comes.
    pub fn new(registry: Registry, options: ServerOptions) -> Self {
        Self {
            shared: Arc::new(Shared {
                registry: RwLock::new(Arc::new(registry)),
                options,
                stopping: AtomicBool::new(false),
                conns: Mutex::default(),
                ended: Condvar::new(),
                reserve: Mutex::new(reserve()),
                overflow: Mutex::default(),
                overflowed: Condvar::new(),
            }),
        }
    }

    /// The server's limits.
    pub fn options(&self) -> &ServerOptions {
        &self.shared.options
    }

    /// Accepts one connection and serves it on a thread of its own; blocks like accept(2).
    ///
    /// A connection that is refused (by its peer's credentials, by the number of connections, because the server
    /// stops or because this process has no free descriptor) is closed, which is no error.
    ///
    /// # Errors
    /// When the listener itself fails, or no thread can be started.
    pub fn accept(&self, listener: &UnixListener) -> Result<()> {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) => return self.not_accepted(listener, e),
        };
        let peer = scm::peer_cred(&stream)?;
        if !self.allowed(&peer) {
            log::warn!("rpc: refused user {} (pid {}): neither root nor allowed", peer.uid, peer.pid);
            return Ok(());
        }
        match self.shared.open(stream, peer) {
            Ok(open) => open.spawn(),
            Err(e) => {
                log::warn!("rpc: refused pid {}: {e}", peer.pid);
                Ok(())
            }
        }
    }

    fn not_accepted(&self, listener: &UnixListener, e: io::Error) -> Result<()> {
        match e.raw_os_error() {
            Some(libc::EAGAIN | libc::ECONNABORTED) => return Ok(()),
            Some(libc::EMFILE | libc::ENFILE) => {}
            _ => return Err(Error::from(e).context("accepting a control connection")),
        }
        // The connection would stay in the queue and wake the caller up again and again: take it and close it.
        let mut spare = lock(&self.shared.reserve);
        drop(spare.take());
        let refused = listener.accept().is_ok();
        *spare = reserve();
        log::warn!("rpc: no free descriptor for a connection (refused: {refused}): raise RLIMIT_NOFILE");
        Ok(())
    }

    fn allowed(&self, peer: &PeerCred) -> bool {
        peer.uid == 0
            || peer.uid == nix::unistd::geteuid().as_raw()
            || self.shared.options.allowed_uids.contains(&peer.uid)
    }

    /// Serves a connected stream on a thread of its own. Whoever donated it may call: its peer is not checked.
    ///
    /// # Errors
    /// `InvalidState` when the server stops or has its full number of connections; when no thread can be started.
    pub fn serve_stream(&self, stream: UnixStream) -> Result<()> {
        let peer = scm::peer_cred(&stream)?;
        self.shared.open(stream, peer)?.spawn()
    }

    /// Serves a connected stream on this thread until the peer hangs up or the server stops. The peer is not checked.
    ///
    /// # Errors
    /// As [`Server::serve_stream`], and `Protocol` when the peer broke the framing rules.
    pub fn serve_blocking(&self, stream: UnixStream) -> Result<()> {
        let peer = scm::peer_cred(&stream)?;
        self.shared.open(stream, peer)?.serve()
    }

    /// Serves connections for which no thread can be started, one after the other, on this thread; returns when the server
    /// stops. For processes that count against a limit of tasks which others use up: without such a thread those
    /// connections are closed.
    pub fn stand_by(&self) {
        self.promise_stand_by().serve();
    }

    /// Says that a thread is about to call [`StandBy::serve`]: connections wait for it from now on.
    pub fn promise_stand_by(&self) -> StandBy {
        lock(&self.shared.overflow).threads += 1;
        StandBy { shared: self.shared.clone() }
    }

    /// Stops: new connections and calls are refused, idle connections closed at once; calls in flight may finish within
    /// `grace` and still deliver their replies; then everything is closed, which ends calls that wait in
    /// [`Call::wait_readable`](crate::Call::wait_readable).
    ///
    /// Returns when no connection is left or `grace` is over. Do not call it from a handler: it would wait for its
    /// own call.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now().checked_add(grace);
        let never_served = {
            let mut overflow = lock(&self.shared.overflow);
            self.shared.stopping.store(true, Ordering::SeqCst);
            std::mem::take(&mut overflow.waiting)
        };
        self.shared.overflowed.notify_all();
        drop(never_served);
        let mut conns = lock(&self.shared.conns);
        for conn in conns.open.values() {
            conn.close_if_idle();
        }
        while !conns.open.is_empty() {
            let left = deadline.map_or(Duration::MAX, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                log::warn!("rpc: {} calls were cut off after {grace:?}", conns.open.len());
                conns.open.values().for_each(|conn| conn.abort());
                return;
            }
            let waited = self.shared.ended.wait_timeout(conns, left);
            conns = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Answers from `registry` from now on. Connections stay; calls in flight keep their handlers.
    pub fn replace_registry(&self, registry: Registry) {
        *self.shared.registry.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registry);
    }

    /// Number of connections now.
    pub fn connections(&self) -> usize {
        lock(&self.shared.conns).open.len()
    }
}

/// A promise to serve connections for which no thread can be started; see [`Server::stand_by`].
#[derive(Debug)]
pub struct StandBy {
    shared: Arc<Shared>,
}

impl StandBy {
    /// Serves them, one after the other, on this thread; returns when the server stops.
    pub fn serve(self) {
        let mut overflow = lock(&self.shared.overflow);
        while !self.shared.stopping.load(Ordering::SeqCst) {
            if let Some(open) = overflow.waiting.pop_front() {
                drop(overflow);
                open.serve_logged();
                overflow = lock(&self.shared.overflow);
            } else {
                let waited = self.shared.overflowed.wait(overflow);
                overflow = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Drop for StandBy {
    fn drop(&mut self) {
        let left = {
            let mut overflow = lock(&self.shared.overflow);
            overflow.threads -= 1;
            // Nobody will come for those that wait.
            if overflow.threads == 0 { std::mem::take(&mut overflow.waiting) } else { VecDeque::new() }
        };
        drop(left);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reserve() -> Option<OwnedFd> {
    nix::sys::eventfd::EventFd::new().ok().map(OwnedFd::from)
}

impl Shared {
    fn registry(&self) -> Arc<Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open(self: &Arc<Self>, stream: UnixStream, peer: PeerCred) -> Result<Open> {
        let mut conns = lock(&self.conns);
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Error::invalid_state("the sandbox is ending: it takes no new connections"));
        }
        if conns.open.len() >= self.options.max_connections {
            return Err(Error::invalid_state(format!(
                "all {} control connections are in use: close some",
                self.options.max_connections
            )));
        }
        let id = conns.next_id;
        conns.next_id += 1;
        let conn = Arc::new(Conn::new(stream, peer));
        conns.open.insert(id, conn.clone());
        Ok(Open { shared: self.clone(), id, conn: Some(conn) })
    }
}

/// A registered connection; closed and forgotten when this is dropped.
struct Open {
    shared: Arc<Shared>,
    id: u64,
    conn: Option<Arc<Conn>>,
}

impl Open {
    fn spawn(self) -> Result<()> {
        // Not moved into the closure: that is gone when no thread can be started.
        let slot = Arc::new(Mutex::new(Some(self)));
        let of_thread = slot.clone();
        let thread = std::thread::Builder::new().name("rpc".to_owned()).stack_size(STACK);
        let started = thread.spawn(move || {
            let open = lock(&of_thread).take();
            drop(of_thread);
            if let Some(open) = open {
                open.serve_logged();
            }
        });
        let Err(e) = started else { return Ok(()) };
        let open = lock(&slot).take();
        if open.is_some_and(Self::wait_for_a_thread) {
            return Ok(());
        }
        Err(Error::from(e).context("starting a thread for a control connection"))
    }

    /// Leaves the connection to a thread that stands by; false, and the connection is closed, if there is none.
    fn wait_for_a_thread(self) -> bool {
        let shared = self.shared.clone();
        let mut overflow = lock(&shared.overflow);
        if overflow.threads == 0 || shared.stopping.load(Ordering::SeqCst) {
            // Closing takes another lock.
            drop(overflow);
            return false;
        }
        overflow.waiting.push_back(self);
        shared.overflowed.notify_one();
        true
    }

    fn serve_logged(self) {
        let peer = self.conn.as_ref().map_or(0, |c| c.peer().pid);
        if let Err(e) = self.serve() {
            log::warn!("rpc: closed the connection of pid {peer}: {e}");
        }
    }

    fn serve(self) -> Result<()> {
        self.conn.as_ref().map_or(Ok(()), |conn| conn::serve(&self.shared, conn))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut conns = lock(&self.shared.conns);
        conns.open.remove(&self.id);
        // The last reference: this closes the socket before anyone learns that the connection has ended.
        self.conn = None;
        self.shared.ended.notify_all();
    }
}

#[cfg(test)]
mod tests;
