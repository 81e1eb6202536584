//! Interval timers and POSIX timers.
#![forbid(unsafe_code)]

use crate::checkpoint::remote::{Arg, Batch, CallId, Ran};
use crate::checkpoint::state::{Itimer, PosixTimer};
use airlock_wire::error::{Error, Result};
use std::collections::HashMap;

/// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
const ITIMERS: std::ops::Range<u64> = 0..3;

/// Takes `/proc/<pid>/timers` apart. Thread ids in it are of the procfs' pid namespace; `thread` gives those of the
/// process' own, none for a thread that has ended.
///
/// # Errors
/// When it is not of the form that the kernel writes.
pub fn parse(text: &str, thread: impl Fn(i32) -> Option<i32>) -> Result<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let bad = || Error::failure(format!("/proc timers: line {line:?} cannot be parsed"));
        let (key, value) = line.split_once(": ").ok_or_else(bad)?;
        if key == "ID" {
            timers.push(PosixTimer { id: value.parse().map_err(|_| bad())?, ..PosixTimer::default() });
            continue;
        }
        let timer = timers.last_mut().ok_or_else(bad)?;
        match key {
            // signal: 10/00007ffe…
            "signal" => {
                let (signal, value) = value.split_once('/').ok_or_else(bad)?;
                timer.signal = signal.parse().map_err(|_| bad())?;
                timer.value = match value {
                    "(null)" => 0,
                    hex => u64::from_str_radix(hex.trim_start_matches("0x"), 16).map_err(|_| bad())?,
                };
            }
            // notify: signal/tid.8, none/pid.7, thread/pid.7
            "notify" => {
                let (how, whom) = value.split_once('/').ok_or_else(bad)?;
                let (level, id) = whom.split_once('.').ok_or_else(bad)?;
                timer.notify = match how {
                    "signal" => libc::SIGEV_SIGNAL,
                    "none" => libc::SIGEV_NONE,
                    // The C library's business: the kernel treats it as a signal to the process.
                    "thread" => libc::SIGEV_THREAD,
                    _ => return Err(bad()),
                };
                if level == "tid" {
                    timer.notify |= libc::SIGEV_THREAD_ID;
                    timer.tid = thread(id.parse().map_err(|_| bad())?).unwrap_or(0);
                }
            }
            "ClockID" => timer.clock = value.parse().map_err(|_| bad())?,
            _ => {}
        }
    }
    timers.sort_unstable_by_key(|t| t.id);
    Ok(timers)
}

/// Calls that ask for times.
#[derive(Debug)]
pub struct Times {
    itimers: Vec<(CallId, Arg)>,
    /// Setting and overrun by timer.
    timers: HashMap<i32, (CallId, Arg, CallId)>,
}

impl Times {
    /// Adds the calls to a batch.
    pub fn ask(batch: &mut Batch, timers: &[PosixTimer]) -> Self {
        let itimers = ITIMERS
            .map(|which| {
                let value = batch.space(32);
                (batch.call(libc::SYS_getitimer, [which.into(), value]), value)
            })
            .collect();
        let timers = timers
            .iter()
            .map(|timer| {
                let value = batch.space(32);
                let gettime = batch.call(libc::SYS_timer_gettime, [timer.id.into(), value]);
                let overrun = batch.call(libc::SYS_timer_getoverrun, [timer.id.into()]);
                (timer.id, (gettime, value, overrun))
            })
            .collect();
        Self { itimers, timers }
    }

    /// What they answered about interval timers.
    ///
    /// # Errors
    /// When a call failed.
    pub fn itimers(&self, ran: &Ran) -> Result<Vec<Itimer>> {
        let time = |at: Arg| ran.word(at).saturating_mul(1_000_000).saturating_add(ran.word(at.at(8)));
        self.itimers
            .iter()
            .map(|(call, value)| {
                ran.get(*call)?;
                Ok(Itimer { interval_us: time(*value), value_us: time(value.at(16)) })
            })
            .collect()
    }

    /// Fills in what they answered about POSIX timers.
    ///
    /// # Errors
    /// When a call failed.
    pub fn timers(&self, ran: &Ran, timers: &mut [PosixTimer]) -> Result<()> {
        let time = |at: Arg| ran.word(at).saturating_mul(1_000_000_000).saturating_add(ran.word(at.at(8)));
        for timer in timers {
            let Some((gettime, value, overrun)) = self.timers.get(&timer.id) else { continue };
            ran.get(*gettime)?;
            timer.interval_ns = time(*value);
            timer.remaining_ns = time(value.at(16));
            timer.overrun = ran.get(*overrun)? as i32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timers_are_read_as_the_kernel_writes_them() {
        let text = "ID: 3\nsignal: 10/00007ffd0000abcd\nnotify: signal/tid.77\nClockID: 1\n\
                    ID: 9\nsignal: 0/(null)\nnotify: none/pid.70\nClockID: -6\n";
        let found = parse(text, |tid| (tid == 77).then_some(7)).unwrap();
        let first = PosixTimer {
            id: 3,
            clock: 1,
            notify: libc::SIGEV_THREAD_ID,
            signal: 10,
            tid: 7,
            value: 0x7ffd_0000_abcd,
            ..PosixTimer::default()
        };
        let second = PosixTimer { id: 9, clock: -6, notify: libc::SIGEV_NONE, ..PosixTimer::default() };
        assert_eq!(found, [first, second]);
        assert!(parse("", |_| None).unwrap().is_empty());
        for bad in
            ["signal: 1/0\n", "ID: x\n", "ID: 1\nnotify: signal\n", "ID: 1\nnotify: loud/pid.3\n", "ID 1\n"]
        {
            assert!(parse(bad, |_| None).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(ID: [0-9]{0,3}\n)?.{0,100}") {
            let _ = parse(&text, |_| None);
        }
    }
}
