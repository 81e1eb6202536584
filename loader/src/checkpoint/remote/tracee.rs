//! A traced thread: registers, signals, what ptrace tells, letting go.
#![forbid(unsafe_code)]

use super::inject::Gadget;
use super::seize::{Options, ptrace_options};
use super::{Mem, Regs, errno, procfs, stop};
use crate::sys::ptrace::{self, Instruction, RseqConfiguration, UserDispatch};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::marker::PhantomData;

/// A thread that this thread traces and that is stopped. Dropping it lets the thread go (see [`Options::kill`]).
#[derive(Debug)]
pub struct Tracee {
    pub(super) tid: i32,
    pub(super) ptrace_options: u64,
    pub(super) kill: bool,
    /// Where a system call instruction was found.
    pub(super) gadget: Option<Gadget>,
    /// The thread is not traced by us any more.
    pub(super) over: bool,
    group_stop: Option<i32>,
    /// Syscall User Dispatch of the thread, which calls from the outside must not run into.
    pub(super) dispatch: Option<UserDispatch>,
    pub(super) mem: Mem,
    thread_bound: PhantomData<*mut ()>,
}

/// One seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeccompFilter {
    /// Classic BPF, as seccomp(2) takes it.
    pub program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`, as far as the kernel tells (`LOG`).
    pub flags: u64,
}

impl Tracee {
    pub(super) fn stopped(tid: i32, options: Options, signal: i32) -> Result<Self> {
        let mut tracee = Self {
            tid,
            ptrace_options: ptrace_options(options),
            kill: options.kill,
            gadget: None,
            over: false,
            dispatch: None,
            group_stop: (signal != libc::SIGTRAP).then_some(signal),
            mem: Mem::new(tid),
            thread_bound: PhantomData,
        };
        match tracee.settle() {
            // 32-bit code: named when somebody asks for its registers.
            Err(e) if e.kind == Kind::Unsupported => {}
            other => other?,
        }
        tracee.dispatch = tracee.user_dispatch()?;
        Ok(tracee)
    }

    /// Puts right what the stop itself did to the thread, once, before anything is looked at or injected.
    pub(super) fn settle(&mut self) -> Result<()> {
        let before = self.regs()?;
        let mut regs = before;
        regs.undo_spurious_eintr();
        if let Some(abort) = self.rseq_abort(regs.ip())? {
            // The kernel does this to every thread that is preempted or signalled in a restartable sequence. It would
            // not find out by itself: with injected registers it takes the sequence for left, and forgets it.
            regs.set_ip(abort);
        }
        if regs != before {
            self.set_regs(&regs)?;
        }
        Ok(())
    }

    /// Abort handler of the restartable sequence that `ip` lies in.
    fn rseq_abort(&self, ip: u64) -> Result<Option<u64>> {
        let config = self.rseq_configuration()?;
        // struct rseq { cpu_id_start: u32, cpu_id: u32, rseq_cs: u64, … }
        let Some(pointer) = config.filter(|c| c.pointer != 0).and_then(|c| c.pointer.checked_add(8)) else {
            return Ok(None);
        };
        let Some(section) = self.mem.word(pointer).ok().filter(|s| *s != 0) else { return Ok(None) };
        // struct rseq_cs { version: u32, flags: u32, start_ip, post_commit_offset, abort_ip: u64 }
        let words = (self.mem.word(section.wrapping_add(8)), self.mem.word(section.wrapping_add(16)));
        let (Ok(start), Ok(length)) = words else { return Ok(None) };
        if ip.wrapping_sub(start) >= length {
            return Ok(None);
        }
        Ok(self.mem.word(section.wrapping_add(24)).ok())
    }

    /// Thread id, in this process' pid namespace.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The signal that had stopped the thread's process (SIGSTOP, SIGTSTP, …) when it was seized. Calls can be injected
    /// nevertheless; when it is let go, it is stopped as before.
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// The thread's memory.
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// General purpose registers, with the bases of fs and gs.
    ///
    /// # Errors
    /// `Unsupported` for a thread that runs 32-bit code, `NoSuchEntity`.
    pub fn regs(&self) -> Result<Regs> {
        let mut bytes = [0u8; 512];
        let n = ptrace::regset(self.tid, ptrace::NT_PRSTATUS, &mut bytes)
            .map_err(|e| self.failed("read the registers", e))?;
        let regs = Regs::from_bytes(bytes.get(..n).unwrap_or_default());
        regs.and_then(|r| r.check_mode().map(|()| r)).map_err(|e| e.context(procfs::describe(self.tid)))
    }

    /// Replaces the general purpose registers, and with them what the thread does when it is let go.
    ///
    /// # Errors
    /// When the kernel refuses a value (segments, addresses beyond user memory), `NoSuchEntity`.
    pub fn set_regs(&mut self, regs: &Regs) -> Result<()> {
        ptrace::set_regset(self.tid, ptrace::NT_PRSTATUS, &regs.to_bytes())
            .map_err(|e| self.failed("set the registers", e))
    }

    /// FPU, vector registers and protection keys, in the processor's XSAVE layout; empty on machines without.
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn xstate(&self) -> Result<Vec<u8>> {
        // 11 KiB with all that processors have today; a set that fills the buffer may be cut.
        let mut size = 16 << 10;
        loop {
            let mut bytes = vec![0; size];
            let n = match ptrace::regset(self.tid, ptrace::NT_X86_XSTATE, &mut bytes) {
                Err(Errno::ENODEV | Errno::EINVAL) => 0,
                other => other.map_err(|e| self.failed("read the extended registers", e))?,
            };
            if n < size {
                bytes.truncate(n);
                return Ok(bytes);
            }
            size *= 4;
        }
    }

    /// Puts back what [`Tracee::xstate`] returned.
    ///
    /// # Errors
    /// When the kernel finds it malformed, or made on a processor with features that this one lacks.
    pub fn set_xstate(&mut self, bytes: &[u8]) -> Result<()> {
        ptrace::set_regset(self.tid, ptrace::NT_X86_XSTATE, bytes)
            .map_err(|e| self.failed("set the extended registers", e))
    }

    /// True when the thread uses a shadow stack (which nothing here saves).
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn has_shadow_stack(&self) -> Result<bool> {
        match ptrace::regset(self.tid, ptrace::NT_X86_SHSTK, &mut [0; 64]) {
            Ok(n) => Ok(n > 0),
            Err(Errno::ENODEV | Errno::EINVAL) => Ok(false),
            Err(e) => Err(self.failed("look for a shadow stack", e)),
        }
    }

    /// The signal mask: bit N-1 is signal N.
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn sigmask(&self) -> Result<u64> {
        ptrace::sigmask(self.tid).map_err(|e| self.failed("read the signal mask", e))
    }

    /// Replaces the signal mask.
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn set_sigmask(&mut self, mask: u64) -> Result<()> {
        ptrace::set_sigmask(self.tid, mask).map_err(|e| self.failed("set the signal mask", e))
    }

    /// Pending signals in the order of their queue, each a `siginfo_t`: the thread's own, or (`shared`) its process'.
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn peek_siginfo(&self, shared: bool) -> Result<Vec<[u8; 128]>> {
        let mut all = Vec::new();
        loop {
            let more = ptrace::peek_siginfo(self.tid, shared, all.len() as u64)
                .map_err(|e| self.failed("read the pending signals", e))?;
            if more.is_empty() {
                return Ok(all);
            }
            all.extend(more);
        }
    }

    /// The rseq(2) registration; `None` where the kernel cannot tell (before 5.13).
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn rseq_configuration(&self) -> Result<Option<RseqConfiguration>> {
        match ptrace::rseq_configuration(self.tid) {
            Ok(config) => Ok(Some(config)),
            Err(Errno::EIO | Errno::EINVAL) => Ok(None),
            Err(e) => Err(self.failed("read the rseq registration", e)),
        }
    }

    /// Syscall User Dispatch (prctl(2)); `None` when it is off or the kernel cannot tell (before 6.4). Injected calls pass
    /// it.
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn user_dispatch(&self) -> Result<Option<UserDispatch>> {
        match ptrace::user_dispatch(self.tid) {
            Ok(config) => Ok((config.mode != 0).then_some(config)),
            Err(Errno::EIO | Errno::EINVAL) => Ok(None),
            Err(e) => Err(self.failed("read Syscall User Dispatch", e)),
        }
    }

    /// Replaces the settings of Syscall User Dispatch; `None` turns it off.
    ///
    /// # Errors
    /// When the kernel refuses them.
    pub fn set_user_dispatch(&mut self, config: Option<UserDispatch>) -> Result<()> {
        self.write_user_dispatch(config.unwrap_or_default())?;
        self.dispatch = config;
        Ok(())
    }

    pub(super) fn write_user_dispatch(&self, config: UserDispatch) -> Result<()> {
        ptrace::set_user_dispatch(self.tid, &config).map_err(|e| self.failed("set Syscall User Dispatch", e))
    }

    /// The seccomp filters, the one installed first first.
    ///
    /// # Errors
    /// `Permission` without CAP_SYS_ADMIN in the initial user namespace or with a filter on this process; `Unsupported`
    /// on a kernel built without CONFIG_CHECKPOINT_RESTORE.
    pub fn seccomp_filters(&self) -> Result<Vec<SeccompFilter>> {
        let mut filters = Vec::new();
        loop {
            match ptrace::seccomp_filter(self.tid, filters.len()) {
                Ok(program) => {
                    let flags = ptrace::seccomp_flags(self.tid, filters.len()).unwrap_or(0);
                    filters.push(SeccompFilter { program, flags });
                }
                Err(Errno::ENOENT) => break,
                // The task has no filter at all (mode 0 or 1).
                Err(Errno::EINVAL) if filters.is_empty() => break,
                Err(e) => return Err(self.failed("read its seccomp filters", e)),
            }
        }
        Ok(filters)
    }

    /// What seccomp does to the thread: 0 nothing, 1 strict mode, 2 filters. Where it is not 0, calls must not be injected
    /// before [`Tracee::suspend_seccomp`]: a filter may kill the process for them.
    ///
    /// # Errors
    /// `NoSuchEntity`.
    pub fn seccomp_mode(&self) -> Result<u32> {
        let mode = procfs::status_field(self.tid, "Seccomp").and_then(|v| v.parse().ok());
        // Kernels without seccomp have no such line; tasks that are gone have no such file.
        match mode {
            Some(mode) => Ok(mode),
            None if procfs::state(self.tid).is_some() => Ok(0),
            None => Err(self.failed("read the status of", Errno::ESRCH)),
        }
    }

    /// Lets injected calls pass the thread's seccomp filters, or ends that. It ends by itself when the thread is let go.
    ///
    /// # Errors
    /// `Permission` without CAP_SYS_ADMIN in the initial user namespace or with a filter on this process; `Unsupported`
    /// on a kernel built without CONFIG_CHECKPOINT_RESTORE.
    pub fn suspend_seccomp(&mut self, on: bool) -> Result<()> {
        let options = match on {
            true => self.ptrace_options | ptrace::O_SUSPEND_SECCOMP,
            false => self.ptrace_options & !ptrace::O_SUSPEND_SECCOMP,
        };
        self.set_ptrace_options(options).map_err(|e| match e {
            Errno::EINVAL => Error::unsupported(format!(
                "{}: the kernel cannot suspend seccomp filters (CONFIG_CHECKPOINT_RESTORE)",
                procfs::describe(self.tid)
            )),
            e => self.failed("suspend its seccomp filters", e),
        })
    }

    pub(super) fn set_ptrace_options(&mut self, options: u64) -> std::result::Result<(), Errno> {
        if options != self.ptrace_options {
            ptrace::set_options(self.tid, options)?;
            self.ptrace_options = options;
        }
        Ok(())
    }

    /// Lets the thread go, with the registers that it has. An interrupted call goes on; one whose process was stopped is
    /// stopped again. `signal` (0: none) is sent to the thread first.
    ///
    /// # Errors
    /// `NoSuchEntity` when it ended meanwhile.
    pub fn detach(mut self, signal: i32) -> Result<()> {
        if signal != 0 {
            ptrace::signal_thread(self.tid, signal).map_err(|e| self.failed("send a signal to", e))?;
        }
        self.let_go().map_err(|e| self.failed("detach from", e))
    }

    fn let_go(&mut self) -> std::result::Result<(), Errno> {
        self.over = true;
        // The kernel restarts an interrupted call when it looks for signals, and it does look, because of this: the
        // stop that the thread is in need not be one on the way to that.
        ptrace::interrupt(self.tid)?;
        ptrace::detach(self.tid, 0)
    }

    /// Kills the thread's whole process, and waits for the thread's end if it is the last one; see
    /// [`super::task_list::kill_all`] for processes with several threads.
    ///
    /// # Errors
    /// `NoSuchEntity` when it ended meanwhile.
    pub fn kill(mut self) -> Result<()> {
        self.over = true;
        let killed = ptrace::signal_thread(self.tid, libc::SIGKILL);
        stop::reap(self.tid);
        killed.map_err(|e| self.failed("kill", e))
    }

    pub(super) fn failed(&self, what: &str, e: Errno) -> Error {
        errno(e).context(format!("{what}: {}", procfs::describe(self.tid)))
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if !self.over {
            self.over = true;
            if self.kill {
                let _ = ptrace::signal_thread(self.tid, libc::SIGKILL);
                stop::reap(self.tid);
            } else {
                let _ = self.let_go();
            }
        }
    }
}
