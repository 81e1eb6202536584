//! Processes that were stopped (SIGSTOP, job control) are stopped again, before anything of theirs runs.
#![forbid(unsafe_code)]

use super::context::{Context, Proc};
use crate::checkpoint::state::Life;
use crate::sys::ptrace::{self, Change};
use crate::sys::task;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// A stop takes microseconds.
const PATIENCE: Duration = Duration::from_secs(10);
const STOPS: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Stops those processes that were stopped, with all their threads, and has their parents hear of it that had heard.
/// To be called when all threads are there and before signal actions are set: the stop tells the parents by SIGCHLD,
/// which `task::finish` takes away again. Calls can still be injected.
///
/// # Errors
/// A process does not stop.
pub fn stop(ctx: &mut Context) -> Result<()> {
    for index in 0..ctx.procs.len() {
        let Some(state) = ctx.state.processes.get(index) else { continue };
        let Life::Stopped { signal } = state.life else { continue };
        let (pid, ppid, unreported) = (state.pid, state.ppid, state.stop_unreported);
        let container = state.container;
        let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut) else { continue };
        let failed = |e: Error| e.context(format!("stopping process {pid}"));
        let signal = if STOPS.contains(&signal) { signal } else { libc::SIGSTOP };
        // Job control signals do nothing to processes that nobody could continue.
        if !stop_with(proc, signal).map_err(failed)? && !stop_with(proc, libc::SIGSTOP).map_err(failed)? {
            return Err(failed(Error::failure("it goes on")));
        }
        if unreported {
            continue;
        }
        let parent = ctx.procs.iter_mut().flatten().find(|p| p.ns_pid == ppid && p.container == container);
        if let Some((tracee, _)) = parent.and_then(|p| p.injector().ok()) {
            let args = [pid as u64, 0, (libc::WUNTRACED | libc::WNOHANG) as u64, 0, 0, 0];
            // A parent that cannot be told hears of it again, which is what would happen without this.
            let _ = tracee.syscall(libc::SYS_wait4, args)?;
        }
    }
    Ok(())
}

/// Stops a process by the default action of `signal`; false when it does not stop for that.
fn stop_with(proc: &mut Proc, signal: i32) -> Result<bool> {
    let Some((first, others)) = proc.threads.split_first_mut() else { return Ok(true) };
    let mask = first.sigmask()?;
    // Nothing else is to be delivered on the way.
    first.set_sigmask(!(1u64 << (signal - 1).clamp(0, 63)))?;
    task::kill(proc.pid, signal)?;
    let stopped = run_into(first.tid(), signal, true)?;
    first.set_sigmask(mask)?;
    for other in others.iter().filter(|_| stopped) {
        if !run_into(other.tid(), signal, false)? {
            return Err(Error::failure(format!("its thread {} goes on", other.tid())));
        }
    }
    Ok(stopped)
}

/// Lets a thread run into a stop, without any instruction of the program: either the group stop for `signal` (true),
/// or, `with_signal`, once that signal was delivered in vain (false).
fn run_into(tid: i32, signal: i32, with_signal: bool) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let (mut deliver, mut delivered) = (0, !with_signal);
    loop {
        if delivered {
            // The thread traps on its way back to the program, at the latest.
            ptrace::interrupt(tid)?;
        }
        match ptrace::cont(tid, deliver) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e.into()),
        }
        deliver = 0;
        match wait(tid, deadline)? {
            Change::Signal(s) if s == signal => (deliver, delivered) = (s, true),
            Change::Event { event: ptrace::EVENT_STOP, signal: s } if STOPS.contains(&s) => return Ok(true),
            Change::Event { event: ptrace::EVENT_STOP, .. } if delivered && deliver == 0 => {
                // A stop that was asked for before the signal came does not count.
                if with_signal && pending(tid, signal) {
                    continue;
                }
                return Ok(false);
            }
            Change::Ended(status) => {
                return Err(Error::failure(format!("it ended with wait status {status:#x}")));
            }
            _ => {}
        }
    }
}

/// Whether the signal still waits for the thread or its process.
fn pending(tid: i32, signal: i32) -> bool {
    [false, true].into_iter().any(|shared| {
        ptrace::peek_siginfo(tid, shared, 0).is_ok_and(|all| {
            all.iter().any(|info| crate::checkpoint::dump::signals::signal_of(info) == signal)
        })
    })
}

/// The next report of a thread.
pub(super) fn wait(tid: i32, deadline: Instant) -> Result<Change> {
    loop {
        if let Some(change) = ptrace::wait(tid)? {
            return Ok(change);
        }
        if Instant::now() >= deadline {
            return Err(Error::failure(format!("thread {tid} does not stop")));
        }
        std::thread::yield_now();
    }
}
