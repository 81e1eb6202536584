//! Clocks that count from the machine's start: a restored program must not see them jump (time_namespaces(7)).
#![forbid(unsafe_code)]

use super::remote::fdpass::{Channel, Pass};
use super::remote::{Arg, Batch, Region, Tracee, fdpass};
use super::state::Clocks;
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::AsFd;

const NANOS: i64 = 1_000_000_000;

/// Offsets of a time namespace to the machine's clocks, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Offsets {
    monotonic: i64,
    boottime: i64,
}

impl Offsets {
    /// Of process `who` (a pid, or `self`); none where the kernel has no time namespaces.
    fn of(procfs: &ProcFs, who: &str) -> Self {
        procfs.read_path(&format!("{who}/timens_offsets")).map(|t| Self::parse(&t)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut offsets = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(clock), Some(seconds), Some(nanos)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let number = |t: &str| t.parse::<i64>().unwrap_or(0);
            let offset = number(seconds).saturating_mul(NANOS).saturating_add(number(nanos));
            match clock {
                "monotonic" | "1" => offsets.monotonic = offset,
                "boottime" | "7" => offsets.boottime = offset,
                _ => {}
            }
        }
        offsets
    }

    fn text(self) -> String {
        let line = |name: &str, value: i64| {
            format!("{name} {} {}\n", value.div_euclid(NANOS), value.rem_euclid(NANOS))
        };
        line("monotonic", self.monotonic) + &line("boottime", self.boottime)
    }
}

fn now(clock: ClockId) -> Result<i64> {
    let time = clock_gettime(clock).map_err(|e| Error::from(e).context("reading a clock"))?;
    Ok(time.tv_sec() * NANOS + time.tv_nsec())
}

/// The clocks as the process with pid `init` sees them.
///
/// # Errors
/// When a clock cannot be read.
pub fn read(procfs: &ProcFs, init: i32) -> Result<Clocks> {
    let (own, theirs) = (Offsets::of(procfs, "self"), Offsets::of(procfs, &init.to_string()));
    Ok(Clocks {
        realtime_ns: now(ClockId::CLOCK_REALTIME)?,
        monotonic_ns: now(ClockId::CLOCK_MONOTONIC)? - own.monotonic + theirs.monotonic,
        boottime_ns: now(ClockId::CLOCK_BOOTTIME)? - own.boottime + theirs.boottime,
    })
}

/// How long ago the process with pid `pid` was started, nanoseconds, to a hundredth of a second.
///
/// # Errors
/// When it is gone.
pub fn age(procfs: &ProcFs, pid: i32) -> Result<u64> {
    // The unit of `/proc` on every architecture: 1/100 s, since boot as this process' clocks count it.
    const TICK: u64 = 10_000_000;
    let started = procfs.stat(pid)?.starttime.saturating_mul(TICK);
    Ok((now(ClockId::CLOCK_BOOTTIME)?.max(0) as u64).saturating_sub(started).max(1))
}

/// Puts a stopped process, which has one thread, into a time namespace in which the clocks go on from `saved`.
///
/// # Errors
/// When the process cannot make calls. Answers, in words, why the clocks will jump if they do: a kernel without time
/// namespaces (before 5.6), or no privilege.
pub fn enter(
    procfs: &ProcFs,
    tracee: &mut Tracee,
    region: &Region,
    channel: &Channel,
    link: &mut fdpass::Link,
    saved: &Clocks,
) -> Result<Option<String>> {
    let flag = libc::CLONE_NEWTIME;
    let jumps = |why: &str, e: nix::errno::Errno| {
        Ok(Some(format!("CLOCK_MONOTONIC and CLOCK_BOOTTIME jump: {why}: {}", e.desc())))
    };
    let mut batch = Batch::new();
    let call = batch.call(libc::SYS_unshare, [Arg::from(flag)]);
    if let Err(e) = batch.run(tracee, region)?.result(call) {
        return jumps("no time namespace can be made", e);
    }
    let pid = tracee.tid();
    let own = Offsets::of(procfs, "self");
    let offsets = Offsets {
        monotonic: saved.monotonic_ns - (now(ClockId::CLOCK_MONOTONIC)? - own.monotonic),
        boottime: saved.boottime_ns - (now(ClockId::CLOCK_BOOTTIME)? - own.boottime),
    };
    let open = |name: &str, flags: OFlag| {
        openat(procfs.root(), format!("{pid}/{name}").as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
    };
    let written = open("timens_offsets", OFlag::O_WRONLY)
        .and_then(|file| nix::unistd::write(&file, offsets.text().as_bytes()));
    if let Err(e) = written {
        return jumps("the offsets of a time namespace cannot be set (it takes CAP_SYS_TIME)", e);
    }
    let namespace = match open("ns/time_for_children", OFlag::O_RDONLY) {
        Ok(fd) => fd,
        Err(e) => return jumps("a time namespace cannot be opened", e),
    };
    let number = link.number + 1;
    channel.send(tracee, region, link, &[Pass { fd: namespace.as_fd(), number, cloexec: true }])?;
    let mut batch = Batch::new();
    let entered = batch.call(libc::SYS_setns, [Arg::from(number), Arg::from(flag)]);
    batch.call(libc::SYS_close, [Arg::from(number)]);
    match batch.run(tracee, region)?.result(entered) {
        Ok(_) => Ok(None),
        Err(e) => jumps("a time namespace cannot be entered", e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_and_written_as_the_kernel_does() {
        let text = "monotonic           -5         500000000\nboottime             7                 0\n";
        let offsets = Offsets::parse(text);
        assert_eq!(offsets, Offsets { monotonic: -4_500_000_000, boottime: 7_000_000_000 });
        assert_eq!(offsets.text(), "monotonic -5 500000000\nboottime 7 0\n");
        assert_eq!(Offsets::parse(&offsets.text()), offsets);
        assert_eq!(Offsets::parse("nonsense\nmonotonic x y\n"), Offsets::default());
    }
}
