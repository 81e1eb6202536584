//! Calls that sleep for a time go on for what was left of it.
//!
//! The kernel keeps the end of an interrupted sleep in a note of its own, which nobody can write. So the thread begins
//! the sleep once more, for the time that is left, and is interrupted at once: that leaves the note, and the kernel
//! restarts the program's call by it.
#![forbid(unsafe_code)]

use super::stopped;
use crate::checkpoint::dump::waits::{self, Limit};
use crate::checkpoint::remote::arch::BLOB_GADGET;
use crate::checkpoint::remote::{Region, Regs, Tracee};
use crate::checkpoint::state::ThreadState;
use crate::sys::ptrace::{self, Change};
use airlock_wire::error::{Error, Result};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
/// -ERESTART_RESTARTBLOCK: see the note.
const RESTART: u64 = -516_i64 as u64;
/// -ERESTARTNOHAND to -ERESTARTSYS: make the call again.
const AGAIN: std::ops::RangeInclusive<i64> = -514..=-512;

/// Begins the call that a thread was in, if it was one that sleeps for a time, and interrupts it. Answers what the call
/// has returned: mostly that it is to be restarted. Nothing may sleep in the thread afterwards; its registers are to be
/// set.
///
/// # Errors
/// The thread has ended.
pub fn begin(tracee: &mut Tracee, region: &Region, saved: &ThreadState) -> Result<Option<u64>> {
    let Some(left) = saved.wait_left_ns else { return Ok(None) };
    let regs = Regs::from_bytes(&saved.regs)?;
    let mut args = waits::arguments(&regs);
    let Some(nr) = regs.in_syscall() else { return Ok(None) };
    match waits::limit(nr, args) {
        Some(Limit::Timespec(n, _)) => {
            const NANOS: u64 = 1_000_000_000;
            let words = [left / NANOS, left % NANOS];
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            tracee.mem().write(region.data(), &bytes)?;
            args[n] = region.data();
        }
        Some(Limit::Milliseconds(n)) => args[n] = left.div_ceil(1_000_000).min(i32::MAX as u64),
        // An image that was tampered with.
        None => return Ok(None),
    }
    let failed = |e: Error| e.context(format!("putting thread {} to sleep again", saved.tid));
    let call = tracee.regs()?.for_call(region.base + BLOB_GADGET, nr as i64, args, 0);
    tracee.set_regs(&call)?;
    interrupted_call(tracee.tid()).map_err(failed)?;
    let returned = tracee.regs()?.returned();
    // Those that need no note.
    Ok((!AGAIN.contains(&(returned as i64))).then_some(returned))
}

/// Runs a thread into the call that it is about to make, and out of it again.
fn interrupted_call(tid: i32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        ptrace::cont_to_syscall(tid, 0)?;
        match stopped::wait(tid, deadline)? {
            Change::Syscall => break,
            change => alive(change)?,
        }
    }
    ptrace::interrupt(tid)?;
    loop {
        ptrace::cont(tid, 0)?;
        match stopped::wait(tid, deadline)? {
            Change::Event { event: ptrace::EVENT_STOP, .. } => return Ok(()),
            change => alive(change)?,
        }
    }
}

fn alive(change: Change) -> Result<()> {
    match change {
        Change::Ended(status) => Err(Error::failure(format!("it ended with wait status {status:#x}"))),
        _ => Ok(()),
    }
}

/// Registers that have the kernel act on what [`begin`] answered.
pub fn registers(saved: &ThreadState, returned: Option<u64>) -> Result<Regs> {
    let mut regs = Regs::from_bytes(&saved.regs)?;
    if let Some(returned) = returned {
        regs.rax = returned;
        if returned != RESTART {
            // It is over: not a call to be looked after any more.
            regs.orig_rax = u64::MAX;
        }
    }
    Ok(regs)
}
