//! POSIX timers and interval timers.
#![forbid(unsafe_code)]

use super::bounds::{Bounds, CAP_WAKE_ALARM};
use crate::checkpoint::remote::{Arg, Batch, Region, Tracee};
use crate::checkpoint::state::{PosixTimer, ProcessState};
use airlock_wire::error::{Error, Result};

const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;
/// CLOCK_REALTIME_ALARM and CLOCK_BOOTTIME_ALARM wake the machine.
const ALARMS: [i32; 2] = [8, 9];

/// Makes POSIX timers with the ids that the program keeps, not armed yet. Answers what cannot be as it was.
///
/// # Errors
/// An id cannot be had.
pub fn make(
    tracee: &mut Tracee,
    region: &Region,
    timers: &[PosixTimer],
    bounds: &Bounds,
) -> Result<Vec<String>> {
    if timers.is_empty() {
        return Ok(Vec::new());
    }
    let switch = |batch: &mut Batch, on: u64| {
        let args = [PR_TIMER_CREATE_RESTORE_IDS.into(), on.into(), Arg::NULL, Arg::NULL, Arg::NULL];
        batch.call(libc::SYS_prctl, args)
    };
    let mut sorted: Vec<&PosixTimer> = timers.iter().collect();
    sorted.sort_unstable_by_key(|t| t.id);
    let mut warnings = Vec::new();
    sorted.retain(|t| {
        let may = !ALARMS.contains(&t.clock) || bounds.has(CAP_WAKE_ALARM);
        if !may {
            warnings.push(format!("timer {} would wake the machine, which the container must not", t.id));
        }
        may
    });
    let mut batch = Batch::new();
    let on = switch(&mut batch, 1);
    if batch.run(tracee, region)?.result(on).is_err() {
        // Kernels before 6.15 count ids up for each process, and have just begun to.
        let mut next = 0;
        for timer in sorted {
            next = count_to(tracee, region, timer, next)?;
        }
        return Ok(warnings);
    }
    let mut batch = Batch::new();
    let made: Vec<_> = sorted.iter().map(|t| create(&mut batch, t)).collect();
    switch(&mut batch, 0);
    let ran = batch.run(tracee, region)?;
    for ((call, id), timer) in made.into_iter().zip(sorted) {
        let failed = |e: Error| e.context(format!("making timer {}", timer.id));
        ran.get(call).map_err(failed)?;
        if ran.int(id) != timer.id {
            return Err(failed(Error::failure(format!("the kernel gave it the id {}", ran.int(id)))));
        }
    }
    Ok(warnings)
}

fn create(batch: &mut Batch, timer: &PosixTimer) -> (crate::checkpoint::remote::CallId, Arg) {
    let id = batch.data(&timer.id.to_ne_bytes());
    // A timer whose thread has ended tells nobody any more.
    let lost = timer.notify & libc::SIGEV_THREAD_ID != 0 && timer.tid <= 0;
    let notify = if lost { libc::SIGEV_NONE } else { timer.notify };
    // struct sigevent: value, signal, how, thread.
    let mut event = timer.value.to_ne_bytes().to_vec();
    for word in [timer.signal, notify, timer.tid] {
        event.extend_from_slice(&word.to_ne_bytes());
    }
    event.resize(64, 0);
    let event = batch.data(&event);
    (batch.call(libc::SYS_timer_create, [timer.clock.into(), event, id]), id)
}

/// Makes timers until one has the id of `timer`, and deletes the others.
fn count_to(tracee: &mut Tracee, region: &Region, timer: &PosixTimer, mut next: i32) -> Result<i32> {
    /// Made at a time; each is deleted before the next ones are made.
    const BATCH: i32 = 400;
    /// At some microseconds each.
    const MOST: i32 = 4_000_000;
    let failed = |e: Error| e.context(format!("making timer {}", timer.id));
    if timer.id - next > MOST {
        return Err(failed(Error::unsupported(
            "this kernel would have to count too far (Linux 6.15 gives any id)",
        )));
    }
    loop {
        let count = (timer.id - next + 1).min(BATCH);
        let mut batch = Batch::new();
        let made: Vec<_> = (0..count).map(|_| create(&mut batch, timer)).collect();
        let ran = batch.run(tracee, region)?;
        let mut extra = Vec::new();
        for (call, id) in made {
            ran.get(call).map_err(failed)?;
            extra.push(ran.int(id));
        }
        let last = extra.iter().max().copied().unwrap_or(next);
        extra.retain(|id| *id != timer.id);
        let found = last >= timer.id && extra.len() < count as usize;
        delete_all(tracee, region, &mut extra)?;
        if found {
            return Ok(last + 1);
        }
        if last < next || last > timer.id {
            return Err(failed(Error::failure(format!("the kernel's count went from {next} to {last}"))));
        }
        next = last + 1;
    }
}

fn delete_all(tracee: &mut Tracee, region: &Region, ids: &mut Vec<i32>) -> Result<()> {
    let mut batch = Batch::new();
    for id in ids.drain(..) {
        batch.call(libc::SYS_timer_delete, [id.into()]);
    }
    if batch.is_empty() { Ok(()) } else { batch.run(tracee, region)?.check() }
}

/// Calls that arm what was armed.
pub fn arm(batch: &mut Batch, state: &ProcessState) {
    let words = |batch: &mut Batch, words: [u64; 4]| {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        batch.data(&bytes)
    };
    for (which, timer) in (0u64..3).zip(&state.itimers).filter(|(_, t)| t.value_us != 0) {
        let (interval, value) = (timer.interval_us, timer.value_us);
        let value = words(batch, [interval / MICROS, interval % MICROS, value / MICROS, value % MICROS]);
        batch.call(libc::SYS_setitimer, [which.into(), value, Arg::NULL]);
    }
    for timer in state.timers.iter().filter(|t| t.remaining_ns != 0) {
        let (interval, value) = (timer.interval_ns, timer.remaining_ns);
        let value = words(batch, [interval / NANOS, interval % NANOS, value / NANOS, value % NANOS]);
        batch.call(libc::SYS_timer_settime, [timer.id.into(), Arg::NULL, value, Arg::NULL]);
    }
}
