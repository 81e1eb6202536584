//! What the kernel tells of a container.
#![forbid(unsafe_code)]

use crate::cgroup::files::{Dir, Files, explain, set};
use crate::cgroup::tree::Node;
use crate::machine::fields::Event;
use crate::sys::process::pidfd_open;
use airlock_wire::api::container::status::Code;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    /// Nothing that is to be told.
    Nothing,
    /// The event.
    Event,
    /// The cgroup was removed.
    Removed,
}

/// One event of one container.
#[derive(Debug)]
pub(super) struct Source {
    node: Node,
    signal: Signal,
}

#[derive(Debug)]
enum Signal {
    /// v1's memory; the kernel holds the control file.
    Memory(EventFd),
    /// v2's `memory.events`, and how often the container was out of memory.
    Events(OwnedFd, u64),
    /// v2's `cgroup.events`, and whether processes were there.
    Populated(OwnedFd, bool),
    /// v1: a process that was there.
    Process(Option<OwnedFd>),
}

impl Source {
    /// Connects with the kernel.
    pub(super) fn new(node: Node, event: Event) -> Result<Self> {
        let signal = match (event, node.v2()) {
            (Event::Empty, false) => Signal::Process(None),
            (Event::Empty, true) => {
                let events = Dir(node.core_dir()).open("cgroup.events", OFlag::O_RDONLY);
                let events = events.map_err(|e| explain("opening cgroup.events", "cgroup.events", e))?;
                Signal::Populated(events, !node.processes_below()?.is_empty())
            }
            (Event::Threshold(_), true) => {
                return Err(Code::Unimplemented.error(
                    "memory_threshold: cgroup v2 tells of no thresholds; the kernel has them in cgroup v1 only",
                ));
            }
            (Event::Oom, true) => {
                let dir = node.dir("memory")?.ok_or_else(not_isolated)?;
                let events = Dir(dir).open("memory.events", OFlag::O_RDONLY).map_err(|e| match e {
                    Errno::ENOENT => not_isolated(),
                    e => explain("opening memory.events", "memory.events", e),
                })?;
                let count = out_of_memory(&Dir(dir))?;
                Signal::Events(events, count)
            }
            (Event::Oom, false) => Signal::Memory(memory(&node, "memory.oom_control", None)?),
            (Event::Threshold(bytes), false) => {
                Signal::Memory(memory(&node, "memory.usage_in_bytes", Some(bytes))?)
            }
        };
        Ok(Self { node, signal })
    }

    pub(super) fn watch(&mut self, epoll: &Epoll, id: u64) -> Result<()> {
        let add = |fd: &dyn AsFd, flags| {
            let added = epoll.add(fd.as_fd(), EpollEvent::new(flags, id));
            added.map_err(|e| Error::from(e).context("watching a container"))
        };
        match &self.signal {
            Signal::Memory(eventfd) => add(eventfd, EpollFlags::EPOLLIN),
            // kernfs_notify(): priority data, until it is read again.
            Signal::Events(file, _) | Signal::Populated(file, _) => add(file, EpollFlags::EPOLLPRI),
            Signal::Process(_) => self.entered(epoll, id),
        }
    }

    pub(super) fn unwatch(&self, epoll: &Epoll) {
        // None of these is held by others: closing would do as well, but for a moment.
        let _ = match &self.signal {
            Signal::Memory(eventfd) => epoll.delete(eventfd),
            Signal::Events(file, _) | Signal::Populated(file, _) => epoll.delete(file),
            Signal::Process(Some(pidfd)) => epoll.delete(pidfd),
            Signal::Process(None) => Ok(()),
        };
    }

    /// A process has come in; on v1 nobody else tells.
    pub(super) fn entered(&mut self, epoll: &Epoll, id: u64) -> Result<()> {
        if let Signal::Process(watched @ None) = &mut self.signal {
            *watched = next_process(&self.node, epoll, id)?;
        }
        Ok(())
    }

    pub(super) fn look(&mut self, epoll: &Epoll, id: u64) -> Result<Happened> {
        let event = |happened: bool| if happened { Happened::Event } else { Happened::Nothing };
        match &mut self.signal {
            Signal::Memory(eventfd) => {
                // It is also told when the cgroup is removed.
                let told = eventfd.read().is_ok();
                if self.node.gone() { Ok(Happened::Removed) } else { Ok(event(told)) }
            }
            Signal::Events(file, before) => {
                let Some(text) = reread(file)? else { return Ok(Happened::Removed) };
                let now = count(&text);
                let happened = now > *before;
                *before = now;
                Ok(event(happened))
            }
            Signal::Populated(file, before) => {
                let Some(text) = reread(file)? else { return Ok(Happened::Removed) };
                let now = text.lines().any(|l| l == "populated 1");
                let happened = *before && !now;
                *before = now;
                Ok(event(happened))
            }
            Signal::Process(watched) => {
                if let Some(ended) = watched.take() {
                    let _ = epoll.delete(&ended);
                }
                if self.node.gone() {
                    return Ok(Happened::Removed);
                }
                *watched = next_process(&self.node, epoll, id)?;
                Ok(event(watched.is_none()))
            }
        }
    }
}

fn not_isolated() -> Error {
    Code::FailedPrecondition.error("the container does not isolate memory, so its memory is its parent's")
}

/// Has the kernel signal an eventfd for `file` (cgroup-v1 memory.txt, "Memory thresholds", "OOM Control").
fn memory(node: &Node, file: &str, threshold: Option<u64>) -> Result<EventFd> {
    let dir = node.dir("memory")?.ok_or_else(not_isolated)?;
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = Dir(dir).open(file, OFlag::O_RDONLY);
    let control = control.map_err(|e| explain(&format!("opening {file}"), file, e))?;
    let numbers = (eventfd.as_fd().as_raw_fd(), control.as_raw_fd());
    let argument = threshold.map_or_else(String::new, |bytes| format!(" {bytes}"));
    set(&Dir(dir), "cgroup.event_control", format!("{} {}{argument}", numbers.0, numbers.1))?;
    Ok(eventfd)
}

/// How often a v2 cgroup was out of memory.
fn out_of_memory(dir: &dyn Files) -> Result<u64> {
    let text = dir.read("memory.events").map_err(|e| explain("reading memory.events", "memory.events", e))?;
    Ok(count(&text))
}

fn count(text: &str) -> u64 {
    let number = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse().ok()).unwrap_or(0);
    number("oom ").max(number("oom_kill "))
}

/// What the file says now, which also waits for the next change; `None` when its cgroup is gone.
fn reread(file: &OwnedFd) -> Result<Option<String>> {
    let mut buffer = [0u8; 512];
    loop {
        return match nix::sys::uio::pread(file, &mut buffer, 0) {
            Ok(n) => Ok(Some(String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()).into_owned())),
            Err(Errno::ENODEV) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(e) => Err(explain("reading events", "cgroup.events", e)),
        };
    }
}

/// Watches one of the processes that are there; `None` when there is none.
fn next_process(node: &Node, epoll: &Epoll, id: u64) -> Result<Option<OwnedFd>> {
    loop {
        let pids = node.processes_below()?;
        if pids.is_empty() {
            return Ok(None);
        }
        // Those that cannot be opened have just ended, and are not listed again.
        let Some(pidfd) = pids.iter().rev().find_map(|pid| pidfd_open(*pid).ok()) else { continue };
        epoll.add(&pidfd, EpollEvent::new(EpollFlags::EPOLLIN, id))?;
        return Ok(Some(pidfd));
    }
}
