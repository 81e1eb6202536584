//! Copy-on-write shadows: what a program's memory was at one moment, while the program goes on.
//!
//! A shadow is a clone of the program, made by the program itself in an injected call: the kernel copies page tables only
//! (20 ms for 1 GB in small pages, below 1 ms in huge ones). It never runs an instruction; it stays in ptrace's stop until
//! its pages are written, and is killed then, or with us. Memory that is shared (MAP_SHARED) is not copied: who saves
//! shared objects does so while the program stands still.
//!
//! What the program can notice: a process more in its `/proc` for the time. No SIGCHLD comes of it (its exit signal is 0),
//! `wait` without `__WALL` does not see it, it shares the table of descriptors (so none is duplicated or closed), and the
//! zombie is reaped in an injected call, since nobody but its parent can.
#![forbid(unsafe_code)]

use super::Memory;
use crate::checkpoint::remote::{Arg, Batch, Clone3, Region, Tracee};
use crate::procfs::{ProcFs, parse_nspid};
use crate::sys::ptrace;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::ops::Range;

/// Why a mapping would be missing from a clone: advice that has to be lifted for the moment of the cloning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// `MADV_DONTFORK` (`dc` in VmFlags).
    DontFork,
    /// `MADV_WIPEONFORK` (`wf`).
    WipeOnFork,
}

impl Apart {
    /// Advice that lifts it, and advice that puts it back.
    fn advice(self) -> (i32, i32) {
        match self {
            Self::DontFork => (libc::MADV_DOFORK, libc::MADV_DONTFORK),
            Self::WipeOnFork => (libc::MADV_KEEPONFORK, libc::MADV_WIPEONFORK),
        }
    }
}

/// A shadow of a process. Dropping it kills it, but its zombie stays with the process: [`Shadow::end`].
#[derive(Debug)]
pub struct Shadow {
    tracee: Option<Tracee>,
    pid: i32,
    memory: Memory,
}

impl Shadow {
    /// Makes a shadow of the process of `t`, none of whose threads runs. `apart` lists its mappings that a fork leaves
    /// out. `None` when the program's limits do not allow another process or its memory (RLIMIT_NPROC, `pids.max`,
    /// overcommit): its pages have to be saved while it stands still.
    ///
    /// # Errors
    /// The calls cannot be injected. The process is as it was.
    pub fn make(
        procfs: &ProcFs,
        t: &mut Tracee,
        region: &Region,
        apart: &[(Range<u64>, Apart)],
    ) -> Result<Option<Self>> {
        advise(t, region, apart, true)?;
        let args = Clone3 {
            flags: (libc::CLONE_FILES | libc::CLONE_FS) as u64,
            exit_signal: 0,
            ..Clone3::default()
        };
        let made = t.clone3(region, &args);
        let back = advise(t, region, apart, false);
        let shadow = match made? {
            Ok(tracee) => {
                let pid = tracee.tid();
                // Held by a value that kills it, whatever comes next.
                let mut shadow = Pending(Some(tracee));
                ptrace::set_options(pid, ptrace::O_EXITKILL | ptrace::O_TRACESYSGOOD)?;
                let memory = Memory::open(procfs, pid)?;
                // It is worth less than anything else.
                if let Err(e) = set_oom_score(procfs, pid) {
                    log::debug!("the shadow {pid} is not preferred when memory runs out: {e}");
                }
                Some(Self { tracee: shadow.0.take(), pid, memory })
            }
            Err(e @ (Errno::EAGAIN | Errno::ENOMEM | Errno::EPERM | Errno::ENOSPC)) => {
                log::info!("process {} cannot be shadowed: {}", t.tid(), e.desc());
                None
            }
            Err(e) => return Err(Error::from(e).context(format!("make a shadow of process {}", t.tid()))),
        };
        // Without its advice the program would leak into its children what it meant to keep.
        back?;
        Ok(shadow)
    }

    /// The shadow's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The memory, as it was.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Kills the shadow and has its zombie reaped by the process that it was made of (or that inherited it), which is
    /// stopped for the moment that this takes (well below 1 ms), unless it is stopped already: then `stopped` is a thread of
    /// it. To be called on the thread that made the shadow.
    ///
    /// # Errors
    /// The shadow is dead in any case; when the process cannot be stopped the zombie stays until that ends.
    pub fn end(mut self, procfs: &ProcFs, stopped: Option<&mut Tracee>) -> Result<()> {
        let status = procfs.read(self.pid, "status")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .unwrap_or_default()
        };
        let parent: i32 = field("PPid").parse().unwrap_or(0);
        let pids = parse_nspid(field("NSpid"));
        kill(self.tracee.take());
        if parent == 0
            || parent == nix::unistd::getppid().as_raw()
            || parent == nix::unistd::getpid().as_raw()
        {
            // Its parent has ended, and the spawner inherited it, who reaps whatever comes.
            return Ok(());
        }
        let is_of_parent = |t: &&mut Tracee| {
            procfs.status_field(t.tid(), "Tgid").ok().flatten().is_some_and(|v| v.parse() == Ok(parent))
        };
        let mut seized;
        let t = match stopped.filter(is_of_parent) {
            Some(t) => t,
            None => match seize_any(procfs, parent)? {
                Some(t) => {
                    seized = t;
                    &mut seized
                }
                // Gone, or about to be: so is the zombie then.
                None => return Ok(()),
            },
        };
        // The parent may be in a pid namespace further out than the shadow's own.
        let depth = procfs.status_field(parent, "NSpid")?.map_or(1, |v| parse_nspid(&v).len());
        let number = pids.get(depth.saturating_sub(1)).or(pids.last()).copied().unwrap_or(self.pid);
        let options = (libc::__WALL | libc::WNOHANG) as u64;
        match t.syscall(libc::SYS_wait4, [number as u64, 0, options, 0, 0, 0])? {
            Ok(n) if n == number as u64 => Ok(()),
            Err(Errno::ECHILD) => Ok(()),
            other => Err(Error::failure(format!("the shadow {} could not be reaped: {other:?}", self.pid))),
        }
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        kill(self.tracee.take());
    }
}

/// A clone that must not get away.
struct Pending(Option<Tracee>);

impl Drop for Pending {
    fn drop(&mut self) {
        kill(self.0.take());
    }
}

/// Kills a stopped clone and waits until it is a zombie of its parent's only.
fn kill(tracee: Option<Tracee>) {
    let Some(tracee) = tracee else { return };
    let pid = tracee.tid();
    if tracee.kill().is_ok() {
        // Large memory takes its time to go. Fails at once when that was seen already.
        while matches!(ptrace::wait_blocking(pid), Ok(change) if !matches!(change, ptrace::Change::Ended(_)))
        {
        }
    }
}

/// Stops one thread of a process; `None` when there is none any more.
fn seize_any(procfs: &ProcFs, pid: i32) -> Result<Option<Tracee>> {
    for tid in procfs.threads(pid).unwrap_or_default() {
        match Tracee::seize(tid) {
            Ok(t) => return Ok(Some(t)),
            Err(e) if matches!(e.kind, Kind::NoSuchEntity | Kind::InvalidState) => {}
            Err(e) => return Err(e.context("reap a shadow")),
        }
    }
    Ok(None)
}

fn advise(t: &mut Tracee, region: &Region, apart: &[(Range<u64>, Apart)], lift: bool) -> Result<()> {
    if apart.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    for (range, why) in apart {
        let (off, on) = why.advice();
        let advice = if lift { off } else { on };
        batch.call(
            libc::SYS_madvise,
            [Arg::Value(range.start), Arg::Value(range.end - range.start), Arg::Value(advice as u64)],
        );
    }
    batch.run(t, region)?.check()
}

fn set_oom_score(procfs: &ProcFs, pid: i32) -> Result<()> {
    let path = format!("{pid}/oom_score_adj");
    let file = openat(procfs.root(), path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&file, b"1000")?;
    Ok(())
}
