//! Notifications: a line of JSON on a donated descriptor when something happens to a container.
//!
//! One thread waits for all of them (`epoll(7)`), for what the kernel tells: on cgroup v1 an eventfd that
//! `cgroup.event_control` connects with memory, on v2 `memory.events` and `cgroup.events`. v1 does not tell when a cgroup
//! is empty; there a pidfd of one of its processes is waited for, and then of another, until none is left.
//!
//! Nothing is queued for a reader that is slow: what cannot be written at once is counted, and the next record says how
//! much was lost. A reader that closes its end ends its notification.
#![forbid(unsafe_code)]

mod output;
mod source;

use super::fields::Event;
use super::names::Name;
use crate::cgroup::tree::Node;
use crate::container::lock;
use airlock_wire::api::container::Notification;
use airlock_wire::api::container::status::Code;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use output::{Output, Sent};
use source::{Happened, Source};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Most notifications at a time.
const MOST: usize = 1024;
/// In an epoll event's data: it is about the reader.
const READER: u64 = 1 << 63;
/// In an epoll event's data: the thread is to end.
const STOP: u64 = u64::MAX;

/// The notifications of one server.
#[derive(Debug)]
pub(super) struct Notifications {
    shared: Arc<Shared>,
    stop: EventFd,
    next: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    event: Event,
    source: Source,
    output: Output,
}

impl Notifications {
    /// Starts the thread.
    pub(super) fn new() -> Result<Self> {
        let failed = |e: Errno| Error::from(e).context("preparing notifications");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP)).map_err(failed)?;
        let shared = Arc::new(Shared { epoll, entries: Mutex::default() });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("notifications".to_owned());
        thread.spawn(move || of_thread.serve())?;
        Ok(Self { shared, stop, next: AtomicU64::new(1) })
    }

    /// Begins one.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when the node does not isolate what the event is about, `UNIMPLEMENTED` when the kernel does
    /// not tell it, `UNAVAILABLE` when there are too many.
    pub(super) fn register(&self, name: &Name, node: Node, event: Event, out: OwnedFd) -> Result<u64> {
        let output = Output::new(out)?;
        let source = Source::new(node, event)?;
        let mut entries = lock(&self.shared.entries);
        if entries.len() >= MOST {
            return Err(Code::Unavailable.error(format_args!("there are {MOST} notifications: end some")));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut entry = Entry { name: name.clone(), event, source, output };
        entry.watch(&self.shared.epoll, id)?;
        entries.insert(id, entry);
        Ok(id)
    }

    /// Ends one; false when the container has none of that number.
    pub(super) fn unregister(&self, name: &Name, id: u64) -> bool {
        let mut entries = lock(&self.shared.entries);
        if entries.get(&id).is_none_or(|entry| &entry.name != name) {
            return false;
        }
        self.shared.forget(&mut entries, id);
        true
    }

    /// Tells everyone who waits for this container or one below it that it was destroyed, and ends that.
    pub(super) fn destroyed(&self, name: &Name) {
        let mut entries = lock(&self.shared.entries);
        let within: Vec<u64> =
            entries.iter().filter(|(_, entry)| entry.name.is_within(name)).map(|(id, _)| *id).collect();
        for id in within {
            self.shared.end(&mut entries, id);
        }
    }

    /// A process has come into this container.
    pub(super) fn entered(&self, name: &Name) {
        let mut entries = lock(&self.shared.entries);
        for (id, entry) in entries.iter_mut().filter(|(_, entry)| name.is_within(&entry.name)) {
            if let Err(e) = entry.source.entered(&self.shared.epoll, *id) {
                log::warn!("notification {id}: {e}");
            }
        }
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        // The thread reads nothing but this; it cannot be full.
        let _ = self.stop.write(1);
    }
}

impl Shared {
    fn serve(&self) {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(e) => {
                    log::error!("waiting for notifications: {e}");
                    return;
                }
            };
            for event in events.iter().take(count) {
                match event.data() {
                    STOP => return,
                    data if data & READER != 0 => {
                        // It closed its end.
                        self.forget(&mut lock(&self.entries), data & !READER);
                    }
                    id => self.look(id),
                }
            }
        }
    }

    /// Something may have happened.
    fn look(&self, id: u64) {
        let mut entries = lock(&self.entries);
        let Some(entry) = entries.get_mut(&id) else { return };
        match entry.source.look(&self.epoll, id) {
            Ok(Happened::Nothing) => {}
            Ok(Happened::Event) => {
                if entry.send(id, "OK") == Sent::Gone {
                    self.forget(&mut entries, id);
                }
            }
            Ok(Happened::Removed) => self.end(&mut entries, id),
            Err(e) => {
                log::warn!("notification {id}: {e}");
                entry.send(id, Code::Internal.name());
                self.forget(&mut entries, id);
            }
        }
    }

    /// The last record.
    fn end(&self, entries: &mut BTreeMap<u64, Entry>, id: u64) {
        if let Some(entry) = entries.get_mut(&id) {
            entry.send(id, Code::NotFound.name());
        }
        self.forget(entries, id);
    }

    fn forget(&self, entries: &mut BTreeMap<u64, Entry>, id: u64) {
        if let Some(entry) = entries.remove(&id) {
            // Others hold the donated file as well: closing our descriptor would not end the watch.
            let _ = self.epoll.delete(&entry.output);
            entry.source.unwatch(&self.epoll);
        }
    }
}

impl Entry {
    fn watch(&mut self, epoll: &Epoll, id: u64) -> Result<()> {
        match epoll.add(self.output.as_fd(), EpollEvent::new(EpollFlags::empty(), id | READER)) {
            // A regular file, which nobody closes at the other end.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(e) => return Err(Error::from(e).context("watching the reader of notifications")),
        }
        let watched = self.source.watch(epoll, id);
        if watched.is_err() {
            let _ = epoll.delete(&self.output);
        }
        watched
    }

    fn send(&mut self, id: u64, status: &str) -> Sent {
        self.output.send(Notification {
            notification_id: id,
            container: self.name.to_string(),
            event: self.event.name().to_owned(),
            status: status.to_owned(),
            lost: 0,
        })
    }
}
