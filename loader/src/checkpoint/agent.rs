//! The agent: a process that the spawner forks for one checkpoint or one restore.
//!
//! The loader gave up the privileges that this takes, and answers calls on many threads; the agent is a privileged
//! process of its own that lives as long as the work takes. It traces the containers' tasks from its main thread. If it
//! dies, the kernel lets go of what it traced, and the loader reads the end of the channel as a failure.
#![forbid(unsafe_code)]

use super::order::{Event, Order, Progress};
use super::pages::background::{Share, Sharing};
use super::{dump, remote, restore};
use crate::procfs::ProcFs;
use crate::sys::{mount, process};
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The agent's side of the channel to the loader.
#[derive(Debug)]
pub struct Link {
    channel: UnixStream,
    /// Other threads send too.
    sending: Arc<Mutex<()>>,
    begun: Instant,
    /// Milliseconds after `begun` of the last word about progress.
    last_progress: AtomicU64,
}

impl Link {
    /// Wraps the channel.
    pub fn new(channel: UnixStream) -> Self {
        Self { channel, sending: Arc::default(), begun: Instant::now(), last_progress: AtomicU64::new(0) }
    }

    /// Tells the loader something. Blocks while the loader does not read.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::Disconnected`] when the loader is gone.
    pub fn send(&self, event: &Event) -> Result<()> {
        let _one = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        binary::send(&self.channel, event, &[])
    }

    /// What gives descriptors to the loader to keep ([`Event::Keep`]) and has it forget them, from any thread.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn keeper(&self) -> Result<Share> {
        let (channel, sending) = (self.channel.try_clone()?, self.sending.clone());
        Ok(Box::new(move |sharing| {
            let _one = sending.lock().unwrap_or_else(PoisonError::into_inner);
            match sharing {
                Sharing::Keep(fd) => binary::send(&channel, &Event::Keep { number: fd.as_raw_fd() }, &[fd]),
                Sharing::Forget(fd) => binary::send(&channel, &Event::Forget { number: fd.as_raw_fd() }, &[]),
            }
        }))
    }

    /// Puts a line into the sandbox's log.
    pub fn log(&self, level: log::Level, text: impl Into<String>) {
        let _ = self.send(&Event::Log { level: level as u8, text: text.into() });
    }

    /// Tells how far it is, at most 20 times a second.
    pub fn progress(&self, phase: &str, pages: u64, total: u64) {
        const PAUSE_MS: u64 = 50;
        let now = self.begun.elapsed().as_millis() as u64;
        if now - self.last_progress.load(Ordering::Relaxed).min(now) < PAUSE_MS {
            return;
        }
        self.last_progress.store(now, Ordering::Relaxed);
        let _ = self.send(&Event::Progress(Progress { phase: phase.to_owned(), pages, total }));
    }

    /// Tells `event` and blocks until the loader says to continue; gives the descriptors that come with its word.
    ///
    /// # Errors
    /// When the loader is gone or says anything else.
    pub fn ask(&self, event: &Event) -> Result<Vec<OwnedFd>> {
        self.send(event)?;
        match binary::recv::<Order>(&self.channel)? {
            (Order::Continue, fds) => Ok(fds),
            (other, _) => Err(out_of_turn(&other)),
        }
    }

    /// Blocks until the loader says to continue (true), or `other` is readable (false).
    ///
    /// # Errors
    /// When the loader is gone or says anything else.
    pub fn continued(&self, other: BorrowedFd<'_>) -> Result<bool> {
        let mut fds =
            [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN), PollFd::new(other, PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
        if fds[0].any() != Some(true) {
            return Ok(false);
        }
        match binary::recv::<Order>(&self.channel)? {
            (Order::Continue, _) => Ok(true),
            (other, _) => Err(out_of_turn(&other)),
        }
    }

    /// Tells that the image is complete and blocks until the loader says what becomes of the containers: true if they
    /// are to end.
    ///
    /// # Errors
    /// When the loader is gone or says anything else.
    pub fn saved(&self, event: &Event, fds: &[OwnedFd]) -> Result<bool> {
        let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        {
            let _one = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            binary::send(&self.channel, event, &refs)?;
        }
        match binary::recv::<Order>(&self.channel)? {
            (Order::Release { kill }, _) => Ok(kill),
            (other, _) => Err(out_of_turn(&other)),
        }
    }
}

fn out_of_turn(order: &Order) -> Error {
    let name = match order {
        Order::Dump(_) => "Dump",
        Order::Restore(_) => "Restore",
        Order::Continue => "Continue",
        Order::Release { .. } => "Release",
    };
    Error::failure(format!("the agent got the order {name} out of turn"))
}

/// Entry point of the agent; returns only by ending the process.
pub fn main(channel: UnixStream) -> ! {
    process::set_name(c"airlock-ckpt");
    process::reset_signals();
    // Containers below cannot look at it anyway; this also keeps its memory (which passes secrets on) out of cores.
    let _ = process::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    let link = Link::new(channel);
    let code = match run(&link) {
        Ok(()) => 0,
        Err(error) => {
            let _ = link.send(&Event::Failed(error));
            1
        }
    };
    process::exit_now(code)
}

fn run(link: &Link) -> Result<()> {
    let (order, fds) = binary::recv::<Order>(&link.channel)?;
    let root = open_procfs()?;
    remote::use_procfs(root.try_clone()?);
    let procfs = ProcFs::new(root);
    match order {
        Order::Dump(order) => dump::run(link, procfs, order, fds),
        Order::Restore(order) => restore::run(link, procfs, order, fds),
        other => Err(out_of_turn(&other)),
    }
}

/// A procfs of the sandbox's pid namespace, which no container can reach.
pub(crate) fn open_procfs() -> Result<OwnedFd> {
    let context = mount::fsopen("proc")?;
    mount::fsconfig_create(context.as_fd())?;
    let attrs = mount::MOUNT_ATTR_NOSUID | mount::MOUNT_ATTR_NODEV | mount::MOUNT_ATTR_NOEXEC;
    let mount = mount::fsmount(context.as_fd(), attrs)?;
    Ok(openat(&mount, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Takes the next of the descriptors that came with an order.
///
/// # Errors
/// When there are fewer than the order says.
pub fn next_fd(fds: &mut std::vec::IntoIter<OwnedFd>, what: &str) -> Result<OwnedFd> {
    fds.next().ok_or_else(|| Error::invalid_argument(format!("no descriptor came for the {what}")))
}
