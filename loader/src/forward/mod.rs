//! Forwarded connections: bytes move between two stream sockets by splice(2), through pipes, never through this process'
//! memory.
//!
//! One thread serves all connections with one epoll instance. It is there while there are connections. A connection that
//! rests costs its two sockets; a pipe is its own only while one side does not take what the other has sent.
#![forbid(unsafe_code)]

mod connection;
mod pipe;

pub use connection::{Connection, check};

use crate::container::lock;
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use connection::Step;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use pipe::Pipes;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

/// Data of the event that says: look at what is waiting.
const WAKE: u64 = u64::MAX;

/// Moves bytes of all connections.
#[derive(Debug)]
pub struct Pump {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    wake: EventFd,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The thread is there.
    running: bool,
    next: u64,
    /// Connections that the thread has not taken yet.
    new: Vec<(u64, Connection)>,
    /// Connections to be ended.
    ended: Vec<u64>,
}

impl Pump {
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { wake, waiting: Mutex::default() }) })
    }

    /// Takes a connection over. It ends by itself when both its ends have, or with [`Pump::end`] of the number that this
    /// answers.
    ///
    /// # Errors
    /// `EAGAIN` when the loader may have no further thread, `EMFILE`. The connection is ended then.
    pub fn add(&self, connection: Connection) -> Result<u64> {
        let mut waiting = lock(&self.shared.waiting);
        if !waiting.running {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            epoll.add(&self.shared.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
            let shared = self.shared.clone();
            std::thread::Builder::new()
                .name("forward".to_owned())
                .stack_size(256 << 10)
                .spawn(move || Loop { shared, epoll, pipes: Pipes::default(), all: BTreeMap::new() }.run())
                .map_err(|e| Error::from(e).context("a thread for forwarded connections"))?;
            waiting.running = true;
        }
        let id = waiting.next;
        // Two events a connection: one for each end.
        waiting.next += 2;
        waiting.new.push((id, connection));
        drop(waiting);
        self.shared.wake();
        Ok(id)
    }

    /// Ends a connection that may have ended already.
    pub fn end(&self, id: u64) {
        lock(&self.shared.waiting).ended.push(id);
        self.shared.wake();
    }
}

impl Shared {
    fn wake(&self) {
        // It cannot be full: the thread reads it, and a wake-up that is there already is enough.
        let _ = self.wake.write(1);
    }
}

struct Loop {
    shared: Arc<Shared>,
    epoll: Epoll,
    pipes: Pipes,
    all: BTreeMap<u64, Connection>,
}

impl Loop {
    fn run(mut self) {
        // What is written to a socket whose peer is gone raises SIGPIPE: the error is enough.
        process::block_signals();
        let mut events = [EpollEvent::empty(); 64];
        // Connections that could go on at once, but have had their share.
        let mut busy = Vec::new();
        loop {
            let timeout = if busy.is_empty() { EpollTimeout::NONE } else { EpollTimeout::ZERO };
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(n) => &events[..n],
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    log::error!("forwarded connections end: {e}");
                    lock(&self.shared.waiting).running = false;
                    return;
                }
            };
            let mut now = std::mem::take(&mut busy);
            let mut woken = false;
            for event in ready {
                match event.data() {
                    WAKE => woken = true,
                    data => {
                        let id = data & !1;
                        if let Some(connection) = self.all.get_mut(&id) {
                            connection.note((data & 1) as usize, event.events());
                            now.push(id);
                        }
                    }
                }
            }
            if woken && !self.take_waiting(&mut now) {
                return;
            }
            now.sort_unstable();
            now.dedup();
            for id in now {
                let Some(connection) = self.all.get_mut(&id) else { continue };
                match connection.step(&mut self.pipes) {
                    Step::Waits => {}
                    Step::CouldGoOn => busy.push(id),
                    Step::Ended => {
                        self.remove(id);
                        continue;
                    }
                }
                if let Err(e) = ask(&self.epoll, id, connection) {
                    log::warn!("a forwarded connection ends: watching it: {e}");
                    self.remove(id);
                }
            }
            if self.all.is_empty() && !self.take_waiting(&mut busy) {
                return;
            }
        }
    }

    /// Takes in what was told. False when there is nothing to do any more, and the thread ends.
    fn take_waiting(&mut self, now: &mut Vec<u64>) -> bool {
        let _ = self.shared.wake.read();
        let shared = self.shared.clone();
        let mut waiting = lock(&shared.waiting);
        let new = std::mem::take(&mut waiting.new);
        let ended = std::mem::take(&mut waiting.ended);
        for (id, connection) in new {
            match self.watch(id, &connection) {
                Ok(()) => {
                    self.all.insert(id, connection);
                    now.push(id);
                }
                Err(e) => log::warn!("a forwarded connection ends: watching it: {e}"),
            }
        }
        for id in ended {
            self.remove(id);
        }
        waiting.running = !self.all.is_empty();
        waiting.running
    }

    fn watch(&self, id: u64, connection: &Connection) -> nix::Result<()> {
        for (end, data) in connection.ends().into_iter().zip(id..) {
            self.epoll.add(end, EpollEvent::new(HEARS, data))?;
        }
        Ok(())
    }

    fn remove(&mut self, id: u64) {
        let Some(connection) = self.all.remove(&id) else { return };
        for end in connection.ends() {
            // Whoever gave a socket away may have it open still, and closing it here would not take it out.
            let _ = self.epoll.delete(end.as_fd());
        }
    }
}

/// What is always asked of an end; each is told once.
const HEARS: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

/// Asks of ends that took less than there was when they take more, and of no other: each byte that a peer takes would be
/// told.
fn ask(epoll: &Epoll, id: u64, connection: &mut Connection) -> nix::Result<()> {
    for (end, data) in [0, 1].into_iter().zip(id..) {
        let full = connection.is_full(end);
        if connection.asked[end] != full {
            let flags = if full { HEARS | EpollFlags::EPOLLOUT } else { HEARS };
            epoll.modify(connection.ends()[end], &mut EpollEvent::new(flags, data))?;
            connection.asked[end] = full;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
