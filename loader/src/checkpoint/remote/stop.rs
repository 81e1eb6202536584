//! Waiting for a traced thread.
#![forbid(unsafe_code)]

use super::{errno, procfs};
use crate::sys::ptrace::{self, Change};
use airlock_wire::error::Result;
use std::time::{Duration, Instant};

/// Stops that follow a resume at once are awaited by asking again and again, which saves this thread's own sleep and
/// wake-up; after this time, by sleeping in between.
const SPIN: Duration = Duration::from_micros(300);
const LONGEST_NAP: Duration = Duration::from_millis(1);
const LOOK_FOR_DEATH_EVERY: Duration = Duration::from_millis(20);

/// The next report of thread `tid`; `None` when `deadline` passed.
///
/// Never waits for a thread that was killed: the kernel reports the end of a thread group's leader only when its
/// other threads have been waited for, and those may be tracees of ours too.
pub(super) fn next(tid: i32, deadline: Option<Instant>) -> Result<Option<Change>> {
    let start = Instant::now();
    let mut looked = start;
    loop {
        if let Some(change) = ptrace::wait(tid).map_err(errno)? {
            return Ok(Some(change));
        }
        let now = Instant::now();
        let waited = now - start;
        if waited < SPIN {
            std::thread::yield_now();
            continue;
        }
        if deadline.is_some_and(|d| now >= d) {
            return Ok(None);
        }
        if now - looked >= LOOK_FOR_DEATH_EVERY {
            looked = now;
            if matches!(procfs::state(tid), None | Some('Z' | 'X')) {
                // It may have been reaped between the two looks only by this thread, which did not.
                return Ok(Some(ptrace::wait(tid).map_err(errno)?.unwrap_or(Change::Ended(libc::SIGKILL))));
            }
        }
        std::thread::sleep((waited / 8).min(LONGEST_NAP));
    }
}

/// Reaps thread `tid`, which has been killed, so that its real parent hears of its end: whoever traces a thread must do
/// that. Gives up on the leader of a group whose other threads have not been reaped, and on one that takes 100 ms.
pub(super) fn reap(tid: i32) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        // In this order: it may end between the two.
        let ended = matches!(procfs::state(tid), None | Some('Z' | 'X'));
        match ptrace::wait(tid) {
            Ok(Some(Change::Ended(_))) | Err(_) => return,
            Ok(None) if ended => return,
            Ok(_) if start.elapsed() < SPIN => std::thread::yield_now(),
            Ok(_) => std::thread::sleep(SPIN),
        }
    }
}
