//! Where this process spends processor time: a signal for each so much of it, whose handler keeps the stack that it came upon.
//!
//! A clock of the whole process (timer_create(2), `CLOCK_PROCESS_CPUTIME_ID`), because the loader has a short-lived thread for
//! each connection: a clock of each thread's own would hardly ever tick.

use super::backtrace::{self, MAX_FRAMES};
use nix::errno::Errno;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A signal that the loader, which has no terminal, never gets and does not pass on to its container.
const SIGNAL: i32 = libc::SIGTTIN;

const FREE: usize = 0;
const BEING_WRITTEN: usize = 1;
/// And above: full, with so many frames less [`FULL`].
const FULL: usize = 2;

struct Slot {
    state: AtomicUsize,
    frames: [AtomicUsize; MAX_FRAMES],
}

/// Stacks that nobody has taken yet.
static SLOTS: [Slot; 256] =
    [const { Slot { state: AtomicUsize::new(FREE), frames: [const { AtomicUsize::new(0) }; MAX_FRAMES] } };
        256];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_tick(_: libc::c_int) {
    // SAFETY: errno is the thread's own; the interrupted code must find it as it was.
    let errno = unsafe { *libc::__errno_location() };
    let slot = &SLOTS[NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS.len()];
    match slot.state.compare_exchange(FREE, BEING_WRITTEN, Ordering::Acquire, Ordering::Relaxed) {
        Ok(_) => {
            let mut frames = [0; MAX_FRAMES];
            let count = backtrace::here(&mut frames);
            slot.frames
                .iter()
                .zip(&frames[..count])
                .for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
            slot.state.store(FULL + count, Ordering::Release);
        }
        Err(_) => {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Lets the calling thread, and those that it will make, be seen by [`Ticks`]. Call once, before other threads exist.
pub fn enable() {
    // SAFETY: the handler uses atomics and the unwinder only.
    unsafe { backtrace::handle(SIGNAL, on_tick) };
}

/// The clock; it stops when this is dropped. There should be one at a time.
#[derive(Debug)]
pub struct Ticks {
    timer: libc::timer_t,
}

// SAFETY: a timer's id is the process', any thread may use it.
unsafe impl Send for Ticks {}

impl Ticks {
    /// Starts the clock, after [`enable`]: a tick for each `period` of processor time that this process uses.
    ///
    /// # Errors
    /// `EAGAIN` when there is no room for a timer.
    pub fn start(period: Duration) -> nix::Result<Self> {
        take(|_| {});
        LOST.store(0, Ordering::Relaxed);
        // SAFETY: the structures are initialised before use, and the kernel fills `timer` in.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = SIGNAL;
            let mut timer: libc::timer_t = std::ptr::null_mut();
            let clock = libc::CLOCK_PROCESS_CPUTIME_ID;
            Errno::result(libc::timer_create(clock, &raw mut event, &raw mut timer))?;
            let ticks = Self { timer };
            let time =
                libc::timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
            let every = libc::itimerspec { it_interval: time, it_value: time };
            Errno::result(libc::timer_settime(ticks.timer, 0, &raw const every, std::ptr::null_mut()))?;
            Ok(ticks)
        }
    }

    /// Takes out the stacks that ticks came upon since the last time, innermost address first.
    pub fn take(&self, seen: impl FnMut(Vec<usize>)) {
        take(seen);
    }

    /// Ticks whose stack could not be kept: [`Ticks::take`] was called too seldom.
    pub fn lost(&self) -> u64 {
        LOST.load(Ordering::Relaxed)
    }
}

fn take(mut seen: impl FnMut(Vec<usize>)) {
    for slot in &SLOTS {
        let Some(count) = slot.state.load(Ordering::Acquire).checked_sub(FULL) else { continue };
        seen(slot.frames.iter().take(count).map(|f| f.load(Ordering::Relaxed)).collect());
        slot.state.store(FREE, Ordering::Release);
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        // SAFETY: the timer is ours. A tick on its way finds the handler, which stays.
        unsafe { libc::timer_delete(self.timer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen() {
        enable();
        let ticks = Ticks::start(Duration::from_millis(1)).unwrap();
        let (mut stacks, mut sum) = (Vec::new(), 0u64);
        // Until the clock has ticked, however long that takes.
        while stacks.is_empty() {
            sum = (0..100_000u64).fold(sum, |s, i| s ^ std::hint::black_box(i));
            ticks.take(|stack| stacks.push(stack));
        }
        assert!(stacks[0].len() > 2, "{stacks:?}");
    }
}
