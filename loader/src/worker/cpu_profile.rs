//! CPU profiles: where threads spend processor time, of the loader or of containers.
//!
//! The kernel's clock ticks while a thread runs ([`crate::sys::perf`]), and each tick leaves registers and a piece of the stack in
//! a ring. Nothing is sent to or stopped in the programs, and nothing needs to be built for it.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use crate::checkpoint::inside;
use crate::procfs::ProcFs;
use crate::profile::samples::{Record, parse};
use crate::profile::stacks::{Seen, to_flame, to_pprof};
use crate::stacks;
use crate::sys::perf::{self, Ring, Sampling};
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

/// Stack that each sample has, in bytes: what lies deeper is not seen.
const STACK: u32 = 32 << 10;
/// Size of each processor's ring, in pages: some 60 samples.
const RING: usize = 512;
/// Most clocks (threads times processors).
const MOST_CLOCKS: usize = 1 << 15;
/// Processor time for naming what was found, and for each second of sampling.
const EFFORT: Duration = Duration::from_secs(60);

/// Samples processes of the sandbox's pid namespace, and all that they make meanwhile. Answers as soon as the clocks run; then, on
/// the channel, with `Result<`[`Sampled`]`>`.
///
/// Descriptors: the file for a gzipped pprof profile, then, with `flame`, the file for an SVG flame graph.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct CpuProfile {
    /// The processes.
    pub pids: Vec<i32>,
    /// How long, in nanoseconds.
    pub duration: u64,
    /// Samples for each second of processor time.
    pub frequency: u32,
    /// Draw a flame graph, with this title.
    pub flame: Option<String>,
}

/// What came of a profile.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampled {
    /// Samples in it.
    pub samples: u64,
    /// Samples that were lost.
    pub lost: u64,
}

impl Task for CpuProfile {
    type Reply = ();

    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        let wanted = 1 + usize::from(self.flame.is_some());
        if fds.len() != wanted {
            return Err(Error::invalid_argument(format!(
                "{wanted} output files are wanted, not {}",
                fds.len()
            )));
        }
        if self.frequency == 0 || self.frequency > 10_000 {
            return Err(Error::invalid_argument(format!(
                "{} samples a second: 1 to 10000 can be",
                self.frequency
            )));
        }
        // A reader of the profile that goes away is an error, not the end of this process.
        let mut broken_pipe = SigSet::empty();
        broken_pipe.add(Signal::SIGPIPE);
        broken_pipe.thread_block()?;
        stacks::limit_effort(EFFORT + Duration::from_nanos(self.duration));
        inside::many_descriptors();
        let clocks = Clocks::start(&worker.procfs, &self)?;
        let begun = SystemTime::now();
        let then = move |worker: &Worker| {
            let result = clocks.watch(worker, &self).and_then(|found| match found {
                Some((seen, took)) => write(&self, seen, begun, took, fds).map(Some),
                None => Ok(None),
            });
            match result {
                // Nobody waits for it any more.
                Ok(None) => Ok(()),
                Ok(Some(sampled)) => binary::send(&worker.channel, &Ok::<Sampled, Error>(sampled), &[]),
                Err(e) => binary::send(&worker.channel, &Err::<Sampled, _>(e), &[]),
            }
        };
        Ok(Done { reply: (), fds: Vec::new(), then: Some(Box::new(then)) })
    }
}

fn period(task: &CpuProfile) -> u64 {
    1_000_000_000 / u64::from(task.frequency)
}

struct Clocks {
    rings: Vec<Ring>,
    /// The other clocks; they write into the rings of their processors.
    others: Vec<OwnedFd>,
    kernel: bool,
}

impl Clocks {
    fn start(procfs: &ProcFs, task: &CpuProfile) -> Result<Self> {
        let cpus = processors(&String::from_utf8_lossy(&procfs.read_whole_path("stat")?));
        let tids: Vec<i32> =
            task.pids.iter().flat_map(|pid| procfs.threads(*pid).unwrap_or_default()).collect();
        if tids.is_empty() {
            return Err(Error::no_such_entity("there is no process to profile"));
        }
        if tids.len() * cpus.len() > MOST_CLOCKS {
            return Err(Error::unsupported(format!(
                "{} threads on {} processors are too many to profile: {MOST_CLOCKS} clocks can be used",
                tids.len(),
                cpus.len()
            )));
        }
        let mut clocks = Self { rings: Vec::new(), others: Vec::new(), kernel: true };
        for cpu in cpus {
            clocks.start_on(cpu, &tids, period(task))?;
        }
        if clocks.rings.is_empty() {
            return Err(Error::no_such_entity("the processes to profile have ended"));
        }
        Ok(clocks)
    }

    fn start_on(&mut self, cpu: i32, tids: &[i32], period: u64) -> Result<()> {
        let mut own = None;
        for tid in tids {
            let event = match self.open(*tid, cpu, period) {
                // It has ended, or the processor was turned off.
                Err(Errno::ESRCH | Errno::ENODEV) => continue,
                other => other.map_err(refused)?,
            };
            let Some(ring) = own else {
                let ring =
                    Ring::new(event, RING).map_err(|e| Error::from(e).context("making room for samples"))?;
                own = Some(self.rings.len());
                self.rings.push(ring);
                continue;
            };
            if let Some(ring) = self.rings.get(ring) {
                perf::redirect(event.as_fd(), ring.event())?;
            }
            self.others.push(event);
        }
        Ok(())
    }

    fn open(&mut self, tid: i32, cpu: i32, period: u64) -> std::result::Result<OwnedFd, Errno> {
        let sampling = |kernel| Sampling { period, stack: STACK, kernel };
        match perf::open(tid, cpu, sampling(self.kernel)) {
            // A sandbox in a user namespace may look at its own programs, not at the kernel.
            Err(Errno::EACCES | Errno::EPERM) if self.kernel && self.rings.is_empty() => {
                self.kernel = false;
                perf::open(tid, cpu, sampling(false))
            }
            other => other,
        }
    }

    /// Collects samples for as long as was asked for; `None` when the loader does not want them any more.
    fn watch<'a>(mut self, worker: &'a Worker, task: &CpuProfile) -> Result<Option<(Seen<'a>, Duration)>> {
        let begun = Instant::now();
        let until = begun + Duration::from_nanos(task.duration);
        let mut seen = Seen::new(&worker.procfs);
        let mut record = Vec::new();
        loop {
            for ring in &mut self.rings {
                while ring.take(&mut record) {
                    match parse(&record, self.kernel) {
                        Some(Record::Sample(sample)) => seen.add(&sample),
                        Some(Record::Exec { pid }) => seen.forget(pid),
                        Some(Record::Lost(n)) => seen.lost(n),
                        Some(Record::Other) => {}
                        None => seen.lost(1),
                    }
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Some((seen, begun.elapsed())));
            }
            let mut fds = vec![PollFd::new(worker.channel.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.rings.iter().map(|r| PollFd::new(r.event(), PollFlags::POLLIN)));
            // Rounded up, so that the last millisecond is not spent in a circle.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::from(e).context("waiting for samples")),
            }
            let ready = |fd: &PollFd<'_>, what| fd.revents().is_some_and(|r| r.intersects(what));
            if fds.first().is_some_and(|fd| ready(fd, PollFlags::all())) {
                return Ok(None);
            }
            // All that a clock measured have ended: it says so for ever, and there is nothing more to come.
            let (all, ended) =
                (fds.len() - 1, fds.iter().skip(1).filter(|fd| ready(fd, PollFlags::POLLHUP)).count());
            if all == ended {
                let left = until.saturating_duration_since(Instant::now());
                if wait_for_end(worker, left)? {
                    return Ok(None);
                }
            }
        }
    }
}

/// Waits for the rest of the time; true when the loader does not want the profile any more.
fn wait_for_end(worker: &Worker, left: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(worker.channel.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(n) => Ok(n > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn write(
    task: &CpuProfile,
    seen: Seen<'_>,
    begun: SystemTime,
    took: Duration,
    fds: Vec<OwnedFd>,
) -> Result<Sampled> {
    let (stacks, lost) = seen.finish();
    let samples = stacks.iter().map(|s| s.count).sum();
    let mut profile = to_pprof(&stacks, period(task), begun, took);
    profile.comment(format!("{samples} samples, {} a second of processor time; {lost} lost", task.frequency));
    let mut files = fds.into_iter().map(File::from);
    let failed = |what| move |e: std::io::Error| Error::from(e).context(what);
    if let Some(file) = files.next() {
        profile.write(file).map_err(failed("writing the profile"))?;
    }
    if let (Some(title), Some(mut file)) = (&task.flame, files.next()) {
        let svg = to_flame(&stacks).to_svg(title, "samples");
        file.write_all(svg.as_bytes()).map_err(failed("writing the flame graph"))?;
    }
    Ok(Sampled { samples, lost })
}

/// Numbers of the processors that run, from `/proc/stat` (proc(5)).
fn processors(stat: &str) -> Vec<i32> {
    stat.lines().filter_map(|line| line.split(' ').next()?.strip_prefix("cpu")?.parse().ok()).collect()
}

fn refused(e: Errno) -> Error {
    let error = Error::from(e).context("perf_event_open");
    match e {
        Errno::EACCES | Errno::EPERM => error.context(
            "the kernel refuses to sample (a sysctl kernel.perf_event_paranoid above 2, a security module, or the sandbox is \
             in a user namespace that may not look at the process)",
        ),
        Errno::ENOSYS | Errno::ENOENT | Errno::EOPNOTSUPP => {
            Error::new(Kind::Unsupported, format!("this kernel cannot sample programs: {error}"))
        }
        Errno::EMFILE => error.context("more threads than there are descriptors for; profile one container at a time"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_that_run() {
        assert_eq!(processors("cpu  1 2\ncpu0 1 2\ncpu11 1\nintr 3\n"), [0, 11]);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        assert!(refused(Errno::EACCES).message.contains("perf_event_paranoid"));
        assert_eq!(refused(Errno::ENOSYS).kind, Kind::Unsupported);
    }
}
