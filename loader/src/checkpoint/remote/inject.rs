//! Making a stopped thread run system calls, and leaving no trace of it.
#![forbid(unsafe_code)]

use super::arch::{BLOB_DONE, BLOB_TRAPPED, GADGET, Regs};
use super::seize::ended;
use super::{Region, Tracee, procfs, stop};
use crate::sys::ptrace::{self, Change, UserDispatch};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;

/// Every signal that can be blocked.
const ALL: u64 = u64::MAX;
/// The signal by which the blob ends.
const DONE: i32 = libc::SIGURG;

/// A system call instruction in a tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gadget {
    pub at: u64,
    /// The region that it is part of.
    pub region: Option<Region>,
}

/// What an injection has to put back.
pub(super) struct Before {
    regs: Regs,
    mask: u64,
}

impl Before {
    fn save_block(&self) -> [u8; super::arch::SAVE_BLOCK] {
        self.regs.save_block(self.mask)
    }
}

/// What happened on the way.
#[derive(Default)]
pub(super) struct Happened {
    /// Children that became tracees by birth, in this process' pid namespace.
    pub children: Vec<i32>,
    /// Signals that could not be kept from being taken off their queue.
    pub taken: Vec<[u8; 128]>,
}

impl Tracee {
    /// Makes the thread run one system call and returns what it returned. Registers, signal mask, pending signals and
    /// an interrupted call of the thread's own are as before afterwards. Pointers among the arguments are addresses in
    /// the tracee. It takes two stops; a [`super::Batch`] takes one for any number of calls.
    ///
    /// The call must not be one that waits, and should not be one that sleeps for a time (nanosleep, poll, futex): the
    /// kernel keeps one note of an interrupted sleep for each thread, and the tracee may need its own.
    ///
    /// # Errors
    /// The outer one: the call could not be made (`NoSuchEntity`: the thread ended, which is what a successful exit(2)
    /// gives). The inner one: the call's errno.
    pub fn syscall(&mut self, nr: i64, args: [u64; 6]) -> Result<std::result::Result<u64, Errno>> {
        let (result, happened) = self.syscall_watching(nr, args)?;
        match happened.children.first() {
            None => Ok(result),
            Some(child) => Err(Error::failure(format!(
                "{}: system call {nr} made task {child}; children are made with clone3()",
                procfs::describe(self.tid)
            ))),
        }
    }

    pub(super) fn syscall_watching(
        &mut self,
        nr: i64,
        args: [u64; 6],
    ) -> Result<(std::result::Result<u64, Errno>, Happened)> {
        let before = self.look()?;
        let mut happened = Happened::default();
        let made = self
            .with_gadget(&before, |t, gadget| {
                let entry = gadget.region.map_or(0, Region::spare_entry);
                t.run_call(&before.regs.for_call(gadget.at, nr, args, entry), &mut happened)
            })
            .map_err(|e| e.context(format!("{} in {}", call_name(nr), procfs::describe(self.tid))));
        let ended = self.end(&before, &happened);
        let value = made?;
        ended?;
        Ok((decode(value), happened))
    }

    /// What an injection will change.
    fn look(&self) -> Result<Before> {
        Ok(Before { regs: self.regs()?, mask: self.sigmask()? })
    }

    /// Gives the thread the registers and the signal mask of an injection. The registers come first, and go last in
    /// [`Tracee::end`]: should this process die in between, the code in the region restores both.
    fn arm(&mut self, regs: &Regs, mask: u64) -> Result<()> {
        self.set_regs(regs)?;
        self.set_sigmask(mask)?;
        if self.dispatch.is_some() {
            self.write_user_dispatch(UserDispatch::default())?;
        }
        Ok(())
    }

    /// Puts back what an injection changed.
    fn end(&mut self, before: &Before, happened: &Happened) -> Result<()> {
        if self.over {
            return Ok(());
        }
        if let Some(dispatch) = self.dispatch {
            self.write_user_dispatch(dispatch)?;
        }
        self.set_sigmask(before.mask)?;
        self.set_regs(&before.regs)?;
        for info in &happened.taken {
            // Only SIGSTOP cannot be blocked. It carries nothing that anybody could look at.
            if signal_of(info) == libc::SIGSTOP {
                ptrace::signal_thread(self.tid, libc::SIGSTOP).map_err(|e| self.failed("stop", e))?;
            }
        }
        Ok(())
    }

    /// Runs one call up to its end; returns its raw result.
    fn run_call(&mut self, regs: &Regs, happened: &mut Happened) -> Result<u64> {
        self.arm(regs, ALL)?;
        let mut inside = false;
        loop {
            match self.resume(ptrace::cont_to_syscall)? {
                Change::Syscall if !inside => inside = true,
                Change::Syscall => {
                    let after = self.regs()?;
                    if !after.wants_restart() {
                        return Ok(after.returned());
                    }
                    // Something wanted the thread to look for signals; the kernel makes the call again.
                    inside = false;
                }
                other => self.on_the_way(other, happened)?,
            }
        }
    }

    /// Copies `data` to the start of the region's data and runs the blob over the table that is in it, from address
    /// `first` to `end`. `data` begins with room for a save block. Returns the entry at which the blob stopped.
    pub(super) fn run_blob(
        &mut self,
        region: &Region,
        data: &mut [u8],
        first: u64,
        end: u64,
    ) -> Result<(u64, Happened)> {
        let mut happened = Happened::default();
        let before = self.look()?;
        for (to, from) in data.iter_mut().zip(before.save_block()) {
            *to = from;
        }
        let ran = self
            .mem
            .write(region.header(), data)
            .and_then(|()| self.run_to_end(&before.regs, region.base, first, end, &mut happened))
            .map_err(|e| e.context(format!("calls in {}", procfs::describe(self.tid))));
        let ended = self.end(&before, &happened);
        let ran = ran?;
        ended?;
        Ok((ran.blob_progress(), happened))
    }

    fn run_to_end(
        &mut self,
        regs: &Regs,
        code: u64,
        first: u64,
        end: u64,
        happened: &mut Happened,
    ) -> Result<Regs> {
        const SI_TKILL: i32 = -6;
        self.arm(&regs.for_blob(code, first, end), ALL & !(1 << (DONE - 1)))?;
        loop {
            let change = self.resume(ptrace::cont)?;
            if let Change::Signal(signal @ (DONE | libc::SIGTRAP)) = change {
                let regs = self.regs()?;
                let info = ptrace::siginfo(self.tid).map_err(|e| self.failed("look at a signal of", e))?;
                let done = signal == DONE && regs.ip() == code + BLOB_DONE && code_of(&info) == SI_TKILL;
                // A seccomp filter forbids to send the signal.
                let trapped = signal == libc::SIGTRAP && regs.ip() == code + BLOB_TRAPPED;
                if done || trapped {
                    return Ok(regs);
                }
            }
            self.on_the_way(change, happened)?;
        }
    }

    /// A stop that is not the one waited for.
    fn on_the_way(&mut self, change: Change, happened: &mut Happened) -> Result<()> {
        match change {
            Change::Event {
                event: ptrace::EVENT_FORK | ptrace::EVENT_VFORK | ptrace::EVENT_CLONE, ..
            } => {
                let child =
                    ptrace::event_message(self.tid).map_err(|e| self.failed("ask about a child of", e))?;
                happened.children.push(child as i32);
            }
            Change::Signal(signal) => {
                let info = ptrace::siginfo(self.tid).map_err(|e| self.failed("look at a signal of", e))?;
                // Positive codes come from the kernel: it is what we made the thread do that fails.
                let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS];
                if faults.contains(&signal) && code_of(&info) > 0 {
                    return Err(fault(signal, &info));
                }
                happened.taken.push(info);
            }
            Change::Syscall | Change::Event { .. } => {}
            Change::Ended(_) => {}
        }
        Ok(())
    }

    /// Lets the thread run to its next stop.
    fn resume(&mut self, how: fn(i32, i32) -> std::result::Result<(), Errno>) -> Result<Change> {
        self.resume_with(how, 0)
    }

    pub(super) fn resume_with(
        &mut self,
        how: fn(i32, i32) -> std::result::Result<(), Errno>,
        signal: i32,
    ) -> Result<Change> {
        match how(self.tid, signal) {
            // Killed; the wait tells how.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(self.failed("resume", e)),
        }
        match stop::next(self.tid, None)? {
            Some(Change::Ended(status)) => {
                self.over = true;
                Err(ended(status))
            }
            Some(change) => Ok(change),
            None => Err(Error::failure("no deadline was set")),
        }
    }

    /// Finds a system call instruction in the thread's memory, or puts one there for as long as `run` runs.
    fn with_gadget<T>(
        &mut self,
        before: &Before,
        run: impl FnOnce(&mut Self, Gadget) -> Result<T>,
    ) -> Result<T> {
        // The program (or a restore) may have unmapped it. A look costs less than to find out when the call fails.
        let known = self.gadget.filter(|gadget| match gadget.region {
            Some(region) => self.mem.write(region.header(), &before.save_block()).is_ok(),
            None => self.is_gadget(gadget.at),
        });
        let regs = &before.regs;
        let found = known.or_else(|| {
            let here = regs.in_syscall().map(|_| regs.call_site()).filter(|at| self.is_gadget(*at));
            let at = here.or_else(|| self.gadget_in_vdso())?;
            Some(Gadget { at, region: None })
        });
        self.gadget = found;
        match found {
            Some(at) => run(self, at),
            None => self.with_poked_gadget(regs, run),
        }
    }

    fn is_gadget(&self, at: u64) -> bool {
        let Ok(word) = ptrace::peek(self.tid, at) else {
            // The word may cross into a page that is not mapped.
            let mut bytes = [0; GADGET.len()];
            return self.mem.read(at, &mut bytes).is_ok() && bytes == GADGET;
        };
        !GADGET.is_empty() && word.to_ne_bytes().starts_with(GADGET)
    }

    /// The vdso makes system calls of its own.
    fn gadget_in_vdso(&self) -> Option<u64> {
        const AT_SYSINFO_EHDR: u64 = 33;
        let auxv = procfs::read(&format!("{}/auxv", self.tid)).ok()?;
        let mut words = auxv.chunks_exact(8).filter_map(|w| w.try_into().ok()).map(u64::from_ne_bytes);
        let vdso = loop {
            let (key, value) = (words.next()?, words.next()?);
            if key == AT_SYSINFO_EHDR {
                break value;
            }
        };
        let mut text = vec![0; 16 << 10];
        let n = self.mem.read_some(vdso, &mut text).ok()?;
        let at = text.get(..n)?.windows(GADGET.len().max(1)).position(|w| w == GADGET)?;
        Some(vdso + at as u64)
    }

    /// Overwrites the word that the thread is about to execute.
    fn with_poked_gadget<T>(
        &mut self,
        regs: &Regs,
        run: impl FnOnce(&mut Self, Gadget) -> Result<T>,
    ) -> Result<T> {
        let at = regs.ip() & !7;
        let original = ptrace::peek(self.tid, at).map_err(|e| self.failed("read code of", e))?;
        let mut word = original.to_ne_bytes();
        for (to, from) in word.iter_mut().zip(GADGET) {
            *to = *from;
        }
        ptrace::poke(self.tid, at, u64::from_ne_bytes(word)).map_err(|e| self.failed("write code of", e))?;
        let result = run(self, Gadget { at, region: None });
        if !self.over {
            ptrace::poke(self.tid, at, original).map_err(|e| self.failed("put back code of", e))?;
        }
        result
    }
}

fn fault(signal: i32, info: &[u8; 128]) -> Error {
    let what = match signal {
        libc::SIGSYS => "a seccomp filter refuses the call".to_owned(),
        _ => {
            let address = info.get(16..24).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
            format!("signal {signal} (code {}) at address {address:#x}", code_of(info))
        }
    };
    Error::new(Kind::Failure, what)
}

/// `si_signo`.
pub(super) fn signal_of(info: &[u8; 128]) -> i32 {
    word_of(info, 0)
}

/// `si_code`.
pub(super) fn code_of(info: &[u8; 128]) -> i32 {
    word_of(info, 8)
}

fn word_of(info: &[u8; 128], at: usize) -> i32 {
    info.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

/// Takes a raw result apart.
pub(super) fn decode(value: u64) -> std::result::Result<u64, Errno> {
    match value as i64 {
        error @ -4095..=-1 => Err(Errno::from_raw(-error as i32)),
        _ => Ok(value),
    }
}

/// Name of call `nr`, for messages.
pub(super) fn call_name(nr: i64) -> String {
    crate::seccomp::syscalls::native_name(nr).map_or_else(|| format!("system call {nr}"), str::to_owned)
}
