//! Attaching to a thread and waiting until it stops.
#![forbid(unsafe_code)]

use super::tracee::Tracee;
use super::{errno, procfs, stop};
use crate::sys::ptrace::{self, Change};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// How long [`Tracee::seize`] and [`Tracee::adopt`] wait for a thread to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What becomes of a tracee when things go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The task is worth nothing unless all goes well (one that is being restored): it is killed when its [`Tracee`]
    /// is dropped without [`Tracee::detach`], and when this process dies. Otherwise it is let go, unharmed.
    pub kill: bool,
}

/// A thread that has been told to stop and need not have stopped yet. Dropping it lets the thread go.
#[derive(Debug)]
pub struct Seizing {
    tid: i32,
    options: Options,
    armed: bool,
    thread_bound: PhantomData<*mut ()>,
}

impl Seizing {
    /// Waits until the thread has stopped. A signal that was on its way to the thread is delivered first, as if nobody
    /// traced it.
    ///
    /// # Errors
    /// `NoSuchEntity` when it ended; `Timeout` when `deadline` passes: the message tells what it is doing. It stays
    /// attached then (the kernel cannot detach a thread that runs) until it stops or this thread ends.
    pub fn wait(&mut self, deadline: Instant) -> Result<Tracee> {
        let tid = self.tid;
        let failed = |e: Error| e.context(format!("stop {}", procfs::describe(tid)));
        loop {
            let Some(change) = stop::next(tid, Some(deadline)).map_err(failed)? else {
                return Err(self.too_late());
            };
            let signal = match change {
                Change::Event { event: ptrace::EVENT_STOP, signal } => {
                    self.armed = false;
                    return Tracee::stopped(tid, self.options, signal).map_err(failed);
                }
                // It was taken off the queue for delivery, so this is its only chance.
                Change::Signal(signal) => signal,
                Change::Event { .. } | Change::Syscall => 0,
                Change::Ended(status) => {
                    self.armed = false;
                    return Err(failed(ended(status)));
                }
            };
            match ptrace::cont(tid, signal) {
                // Killed meanwhile; the wait will tell.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(failed(errno(e))),
            }
        }
    }

    /// Thread id, in this process' pid namespace.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    fn too_late(&self) -> Error {
        let tid = self.tid;
        let text = |name: &str| {
            procfs::read(&format!("{tid}/{name}")).ok().map(|b| String::from_utf8_lossy(&b).trim().to_owned())
        };
        let wchan = text("wchan").filter(|w| !w.is_empty() && w != "0");
        let why = match (procfs::state(tid), wchan.as_deref()) {
            (_, Some("wait_for_vfork_done" | "kernel_clone")) => {
                "it waits in vfork(2) for its child to execute a program or to exit, which nothing can interrupt".into()
            }
            (Some('D'), at) => format!(
                "it is frozen (v1 cgroup freezer), or in an uninterruptible wait in the kernel ({})",
                at.unwrap_or("of a device, or of vfork(2)")
            ),
            (Some(state), _) => format!("it has not stopped (state {state})"),
            (None, _) => "it is gone".into(),
        };
        Error::new(Kind::Timeout, format!("stop {}: {why}", procfs::describe(tid)))
    }
}

impl Drop for Seizing {
    fn drop(&mut self) {
        if self.armed {
            self.armed = false;
            // If it does not stop in this time, the kernel lets it go when this thread ends.
            drop(self.wait(Instant::now() + Duration::from_millis(100)));
        }
    }
}

/// The error for a thread that ended with this wait status.
pub(super) fn ended(status: i32) -> Error {
    let how = match libc::WIFSIGNALED(status) {
        true => format!("it was killed by signal {}", libc::WTERMSIG(status)),
        false => format!("it exited with status {}", libc::WEXITSTATUS(status)),
    };
    Error::new(Kind::NoSuchEntity, how)
}

impl Tracee {
    /// Attaches to thread `tid` (a number in this process' pid namespace) and stops it. What the thread was doing goes
    /// on when it is let go: sleeps with the time that remains, interrupted calls as if nothing had been.
    ///
    /// # Errors
    /// `NoSuchEntity` when it is gone, `InvalidState` when it is a zombie (also a leader whose other threads live on)
    /// or traced by somebody else, `Timeout` as [`Seizing::wait`] after 10 s.
    pub fn seize(tid: i32) -> Result<Self> {
        Self::seize_begin(tid, Options::default())?.wait(Instant::now() + STOP_TIMEOUT)
    }

    /// First half of [`Tracee::seize`]: tells the thread to stop and does not wait for it. To stop many threads, begin
    /// all and wait for each then: they stop at the same time. A thread that is frozen (v1 cgroup freezer) stops when it
    /// is thawed, before it runs any of its own code.
    ///
    /// # Errors
    /// As [`Tracee::seize`], without `Timeout`.
    pub fn seize_begin(tid: i32, options: Options) -> Result<Seizing> {
        let failed = |e: Error| e.context(format!("trace {}", procfs::describe(tid)));
        match ptrace::seize(tid, ptrace_options(options)) {
            Ok(()) => {}
            // A tracee made it with CLONE_PTRACE: it is traced from birth.
            Err(Errno::EPERM) if tracer(tid) == Some(nix::unistd::gettid().as_raw()) => {}
            Err(e) => return Err(failed(why_not(tid, e))),
        }
        ptrace::interrupt(tid).map_err(|e| failed(errno(e)))?;
        Ok(Seizing { tid, options, armed: true, thread_bound: PhantomData })
    }

    /// A thread or process that a tracee made, traced from birth: waits for its first stop, in which it has not run a
    /// single instruction yet.
    ///
    /// # Errors
    /// As [`Tracee::seize`].
    pub fn adopt(tid: i32, options: Options) -> Result<Self> {
        Seizing { tid, options, armed: true, thread_bound: PhantomData }.wait(Instant::now() + STOP_TIMEOUT)
    }
}

pub(super) fn ptrace_options(options: Options) -> u64 {
    ptrace::O_TRACESYSGOOD | if options.kill { ptrace::O_EXITKILL } else { 0 }
}

/// Why a thread cannot be seized.
fn why_not(tid: i32, e: Errno) -> Error {
    if e != Errno::EPERM {
        return errno(e);
    }
    if matches!(procfs::state(tid), Some('Z' | 'X')) {
        return Error::new(Kind::InvalidState, "it is a zombie");
    }
    match tracer(tid) {
        Some(tracer) if tracer != 0 => Error::new(
            Kind::InvalidState,
            format!("{} traces it already (a debugger?)", procfs::describe(tracer)),
        ),
        // Processes outside of the sandbox cannot be seen from here.
        _ => errno(e)
            .context("somebody outside of the sandbox traces it already (a debugger?), or it is protected"),
    }
}

/// The thread that traces another one: 0 for none, or one that cannot be seen from here.
fn tracer(tid: i32) -> Option<i32> {
    procfs::status_field(tid, "TracerPid")?.parse().ok()
}
