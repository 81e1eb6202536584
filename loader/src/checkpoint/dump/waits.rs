//! How much time is left of calls that sleep for a time.
//!
//! The kernel keeps the end of an interrupted sleep to itself, and where a program has not asked for the rest (the third
//! argument of nanosleep(2)), nobody can tell how long it has slept. But the scheduler notes when a thread ran last,
//! which for one that sleeps is when it began to. The stop itself wakes it up, so this is looked up before.
#![forbid(unsafe_code)]

use crate::checkpoint::remote::{Mem, Regs};
use crate::procfs::ProcFs;
use std::collections::HashMap;

/// Of a wait that has ended, but whose thread has not noticed.
const LEAST_NS: u64 = 1000;
const FUTEX_WAIT: u64 = 0;
/// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
const FUTEX_FLAGS: u64 = 128 | 256;

/// Threads that wait for a time.
#[derive(Debug, Default)]
pub struct Sleepers(HashMap<i32, Sleeper>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sleeper {
    /// The call that it is in, told by where in the kernel it sleeps; see [`Sleepers::call`].
    call: Option<u64>,
    /// When it began to.
    sched: Option<Sched>,
}

/// What the scheduler tells of a thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sched {
    /// When it ran last, on the scheduler's clock, nanoseconds.
    ran: u64,
    /// How often it has stopped running.
    switches: u64,
    /// Where it ran. These clocks leave out what a CPU was busy with otherwise, so those of two CPUs differ.
    cpu: u32,
}

/// How a call that waits for a time is told how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Argument number of the address of a timespec, and address where the kernel stores the rest (0: nowhere).
    Timespec(usize, u64),
    /// Argument number of a count of milliseconds.
    Milliseconds(usize),
}

/// What limits the call with these arguments, if it is one that the kernel restarts for the rest of its time.
pub fn limit(nr: u64, args: [u64; 6]) -> Option<Limit> {
    match nr as i64 {
        libc::SYS_nanosleep => Some(Limit::Timespec(0, args[1])),
        libc::SYS_clock_nanosleep if args[1] & libc::TIMER_ABSTIME as u64 == 0 => {
            Some(Limit::Timespec(2, args[3]))
        }
        libc::SYS_poll if args[2] as i32 > 0 => Some(Limit::Milliseconds(2)),
        libc::SYS_futex if args[1] & !FUTEX_FLAGS == FUTEX_WAIT && args[3] != 0 => {
            Some(Limit::Timespec(3, 0))
        }
        _ => None,
    }
}

/// The arguments of the call that a thread is in.
pub fn arguments(regs: &Regs) -> [u64; 6] {
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
}

impl Sleepers {
    /// Notes what threads of `pids` wait for a time. What goes wrong only makes waits begin anew.
    pub fn look(&mut self, procfs: &ProcFs, pids: &[i32]) {
        self.0.clear();
        for pid in pids {
            for tid in procfs.threads(*pid).unwrap_or_default() {
                if let Some(sleeper) = sleeping(procfs, *pid, tid) {
                    self.0.insert(tid, sleeper);
                }
            }
        }
    }

    /// Number of the call that a stopped thread is in. One that was interrupted before is in restart_syscall(2), and has
    /// the arguments of the call that it restarts, but not its number.
    pub fn call(&self, tid: i32, regs: &Regs, mem: &Mem) -> Option<u64> {
        let nr = regs.in_syscall()?;
        if nr != libc::SYS_restart_syscall as u64 {
            return Some(nr);
        }
        // Mostly: mov eax, number; syscall.
        let mut code = [0; 5];
        let number = mem.read(regs.call_site().wrapping_sub(5), &mut code).ok().and_then(|()| match code {
            [0xb8, number @ ..] => Some(u64::from(u32::from_le_bytes(number))),
            _ => None,
        });
        let args = arguments(regs);
        number.filter(|nr| limit(*nr, args).is_some()).or_else(|| self.0.get(&tid)?.call)
    }

    /// What is left of call `nr` that a thread was stopped in, nanoseconds, if that can be told. Of a wait that had been
    /// interrupted before, it may be too much, but never more than it was made for.
    pub fn left(&self, procfs: &ProcFs, tid: i32, nr: u64, regs: &Regs, mem: &Mem) -> Option<u64> {
        if !regs.in_restart_block() {
            return None;
        }
        let args = arguments(regs);
        let wanted = match limit(nr, args)? {
            Limit::Timespec(_, rest) if rest != 0 => return timespec(mem, rest).map(|ns| ns.max(LEAST_NS)),
            Limit::Timespec(n, _) => timespec(mem, args[n])?,
            Limit::Milliseconds(n) => u64::from(args[n] as u32) * 1_000_000,
        };
        let before = self.0.get(&tid)?.sched?;
        let now = Sched::read(procfs, &tid.to_string())?;
        // It has been running for its stop alone, or this is another wait.
        if now.switches != before.switches + 1 || now.cpu != before.cpu {
            return None;
        }
        Some(wanted.saturating_sub(now.ran.saturating_sub(before.ran)).max(LEAST_NS))
    }
}

/// Of a thread that is in such a call.
fn sleeping(procfs: &ProcFs, pid: i32, tid: i32) -> Option<Sleeper> {
    let text = procfs.read_path(&format!("{pid}/task/{tid}/syscall")).ok()?;
    let mut words = text.split_ascii_whitespace();
    let nr: u64 = words.next()?.parse().ok()?;
    let mut args = [0u64; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    let call = if nr == libc::SYS_restart_syscall as u64 {
        let place = procfs.read_path(&format!("{pid}/task/{tid}/wchan")).unwrap_or_default();
        restarted(&place, args)
    } else {
        Some(nr)
    };
    let sched = || Sched::read(procfs, &format!("{pid}/task/{tid}"));
    let limited = call.and_then(|nr| limit(nr, args));
    match limited {
        // The kernel will tell.
        Some(Limit::Timespec(_, rest)) if rest != 0 => Some(Sleeper { call, sched: None }),
        Some(_) => Some(Sleeper { call, sched: sched() }),
        None => None,
    }
}

/// Which call is restarted with these arguments, by the place in the kernel where it waits.
fn restarted(place: &str, args: [u64; 6]) -> Option<u64> {
    const CLOCKS: u64 = 16;
    let nr = match place {
        "" | "0" => return None,
        p if p.contains("futex") => libc::SYS_futex,
        p if p.contains("poll") => libc::SYS_poll,
        // What is left are two that sleep, and one of them begins with the number of a clock.
        _ if args[0] < CLOCKS => libc::SYS_clock_nanosleep,
        _ => libc::SYS_nanosleep,
    };
    Some(nr as u64).filter(|nr| limit(*nr, args).is_some())
}

/// Reads a text as what procfs says of a thread's place in the kernel, and of its turns on a processor.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(text: &str) {
    let _ = (cpu(text), Sched::parse(text, 0), restarted(text, [0; 6]));
}

impl Sched {
    /// Of the thread with that directory in procfs.
    fn read(procfs: &ProcFs, thread: &str) -> Option<Self> {
        let cpu = cpu(&procfs.read_path(&format!("{thread}/stat")).ok()?)?;
        Self::parse(&procfs.read_path(&format!("{thread}/sched")).ok()?, cpu)
    }

    /// Lines `name : value`. The thread's name in the first line may look like some, so the last ones count.
    fn parse(text: &str, cpu: u32) -> Option<Self> {
        let value = |name: &str| {
            text.lines().rev().find_map(|l| {
                let (key, value) = l.split_once(':')?;
                (key.trim_end() == name).then(|| value.trim())
            })
        };
        // Milliseconds with six decimals.
        let (ms, fraction) = value("se.exec_start")?.split_once('.')?;
        let (ms, fraction): (u64, u64) = (ms.parse().ok()?, fraction.get(..6)?.parse().ok()?);
        let ran = ms.checked_mul(1_000_000)?.checked_add(fraction)?;
        Some(Self { ran, switches: value("nr_switches")?.parse().ok()?, cpu })
    }
}

/// The CPU that a thread ran on last: field 39 of proc_pid_stat(5), of which the second may hold anything.
fn cpu(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

fn timespec(mem: &Mem, at: u64) -> Option<u64> {
    let (seconds, nanos) = (mem.word(at).ok()?, mem.word(at.checked_add(8)?).ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_scheduler_says_when_a_thread_ran() {
        let proc: std::os::fd::OwnedFd = std::fs::File::open("/proc").unwrap().into();
        let procfs = ProcFs::new(proc);
        let Some(own) = Sched::read(&procfs, "thread-self") else {
            eprintln!("skipped: the kernel has no /proc/<pid>/sched");
            return;
        };
        assert!(own.ran > 0);
        let text = "se.exec_start : 9.000000\nx (1, #threads: 1)\n---\nse.exec_start   :   12.000345\nnr_switches : 7\n";
        assert_eq!(Sched::parse(text, 3), Some(Sched { ran: 12_000_345, switches: 7, cpu: 3 }));
        let stat = format!("1 (a) 9 b) S {}", "0 ".repeat(35) + "5 7");
        assert_eq!(cpu(&stat), Some(5));
    }

    #[test]
    fn a_restarted_call_is_known_by_where_it_waits() {
        let clock = [1, 0, 0x7000, 0, 0, 0];
        assert_eq!(restarted("do_syscall_64", clock), Some(libc::SYS_clock_nanosleep as u64));
        assert_eq!(restarted("hrtimer_nanosleep", [0x7000; 6]), Some(libc::SYS_nanosleep as u64));
        assert_eq!(
            restarted("poll_schedule_timeout.constprop.0", [1, 1, 5, 0, 0, 0]),
            Some(libc::SYS_poll as u64)
        );
        assert_eq!(restarted("futex_do_wait", [9, 128, 0, 9, 0, 0]), Some(libc::SYS_futex as u64));
        assert_eq!(restarted("0", clock), None);
        assert_eq!(restarted("futex_do_wait", clock), None, "no time limit");
    }

    #[test]
    fn only_waits_that_go_on_by_themselves_are_known() {
        let sleep = libc::SYS_clock_nanosleep as u64;
        assert_eq!(limit(sleep, [1, 0, 5, 6, 0, 0]), Some(Limit::Timespec(2, 6)));
        assert_eq!(limit(sleep, [1, 1, 5, 6, 0, 0]), None, "until a point in time");
        let futex = libc::SYS_futex as u64;
        assert_eq!(limit(futex, [1, 128, 0, 7, 0, 0]), Some(Limit::Timespec(3, 0)));
        assert_eq!(limit(futex, [1, 128 | 9, 0, 7, 0, 0]), None, "FUTEX_WAIT_BITSET has a point in time");
        assert_eq!(limit(libc::SYS_poll as u64, [1, 1, u64::MAX, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(se.exec_start *: *[0-9.]{0,12}\n)?.{0,50}(nr_switches:[0-9]*)?") {
            let _ = (Sched::parse(&text, 0), cpu(&text));
        }
    }
}
