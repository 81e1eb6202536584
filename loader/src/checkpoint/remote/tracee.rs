//! A traced thread: attaching, registers, signals, what ptrace tells.
#![forbid(unsafe_code)]

use super::{Mem, Regs, errno, procfs, stop};
use crate::sys::ptrace::{self, Change, Instruction, RseqConfiguration, UserDispatch};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// How long [`Tracee::seize`] and [`Tracee::adopt`] wait for a thread to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What becomes of a tracee when things go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The task is worth nothing unless all goes well (one that is being restored): it is killed when its [`Tracee`]
    /// is dropped without [`Tracee::detach`], and when this process dies. Otherwise it is let go, unharmed.
    pub kill: bool,
}

/// A thread that has been told to stop and need not have stopped yet. Dropping it lets the thread go.
#[derive(Debug)]
pub struct Seizing {
    tid: i32,
    options: Options,
    armed: bool,
    thread_bound: PhantomData<*mut ()>,
}

/// A thread that this thread traces and that is stopped. Dropping it lets the thread go (see [`Options::kill`]).
#[derive(Debug)]
pub struct Tracee {
    pub(super) tid: i32,
    pub(super) ptrace_options: u64,
    pub(super) kill: bool,
    /// Where a system call instruction was found.
    pub(super) gadget: Option<u64>,
    /// The thread is not traced by us any more.
    pub(super) over: bool,
    group_stop: Option<i32>,
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

impl Seizing {
    /// Waits until the thread has stopped. A signal that was on its way to the thread is delivered first, as if nobody
    /// traced it.
    ///
    /// # Errors
    /// `NoSuchEntity` when it ended; `Timeout` when `deadline` passes: the message tells what it is doing. It stays
    /// attached then (the kernel cannot detach a thread that runs) until it stops or this thread ends.
    pub fn wait(&mut self, deadline: Instant) -> Result<Tracee> {
        let tid = self.tid;
        let failed = |e: Error| e.context(format!("stop {}", procfs::describe(tid)));
        loop {
            let Some(change) = stop::next(tid, Some(deadline)).map_err(failed)? else {
                return Err(self.too_late());
            };
            let signal = match change {
                Change::Event { event: ptrace::EVENT_STOP, signal } => {
                    self.armed = false;
                    return Tracee::stopped(tid, self.options, signal).map_err(failed);
                }
                // It was taken off the queue for delivery, so this is its only chance.
                Change::Signal(signal) => signal,
                Change::Event { .. } | Change::Syscall => 0,
                Change::Ended(status) => {
                    self.armed = false;
                    return Err(failed(ended(status)));
                }
            };
            match ptrace::cont(tid, signal) {
                // Killed meanwhile; the wait will tell.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(failed(errno(e))),
            }
        }
    }

    /// Thread id, in this process' pid namespace.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    fn too_late(&self) -> Error {
        let tid = self.tid;
        let text = |name: &str| {
            procfs::read(&format!("{tid}/{name}")).ok().map(|b| String::from_utf8_lossy(&b).trim().to_owned())
        };
        let wchan = text("wchan").filter(|w| !w.is_empty() && w != "0");
        let why = match (procfs::state(tid), wchan.as_deref()) {
            (_, Some("wait_for_vfork_done" | "kernel_clone")) => {
                "it waits in vfork(2) for its child to execute a program or to exit, which nothing can interrupt".into()
            }
            (Some('D'), at) => format!(
                "it is frozen (v1 cgroup freezer), or in an uninterruptible wait in the kernel ({})",
                at.unwrap_or("of a device, or of vfork(2)")
            ),
            (Some(state), _) => format!("it has not stopped (state {state})"),
            (None, _) => "it is gone".into(),
        };
        Error::new(Kind::Timeout, format!("stop {}: {why}", procfs::describe(tid)))
    }
}

impl Drop for Seizing {
    fn drop(&mut self) {
        if self.armed {
            self.armed = false;
            // If it does not stop in this time, the kernel lets it go when this thread ends.
            drop(self.wait(Instant::now() + Duration::from_millis(100)));
        }
    }
}

/// The error for a thread that ended with this wait status.
pub(super) fn ended(status: i32) -> Error {
    let how = match libc::WIFSIGNALED(status) {
        true => format!("it was killed by signal {}", libc::WTERMSIG(status)),
        false => format!("it exited with status {}", libc::WEXITSTATUS(status)),
    };
    Error::new(Kind::NoSuchEntity, how)
}

impl Tracee {
    /// Attaches to thread `tid` (a number in this process' pid namespace) and stops it. What the thread was doing goes
    /// on when it is let go: sleeps with the time that remains, interrupted calls as if nothing had been.
    ///
    /// # Errors
    /// `NoSuchEntity` when it is gone, `InvalidState` when it is a zombie (also a leader whose other threads live on)
    /// or traced by somebody else, `Timeout` as [`Seizing::wait`] after 10 s.
    pub fn seize(tid: i32) -> Result<Self> {
        Self::seize_begin(tid, Options::default())?.wait(Instant::now() + STOP_TIMEOUT)
    }

    /// First half of [`Tracee::seize`]: tells the thread to stop and does not wait for it. To stop many threads, begin
    /// all and wait for each then: they stop at the same time. A thread that is frozen (v1 cgroup freezer) stops when it
    /// is thawed, before it runs any of its own code.
    ///
    /// # Errors
    /// As [`Tracee::seize`], without `Timeout`.
    pub fn seize_begin(tid: i32, options: Options) -> Result<Seizing> {
        let failed = |e: Error| e.context(format!("trace {}", procfs::describe(tid)));
        ptrace::seize(tid, ptrace_options(options)).map_err(|e| failed(why_not(tid, e)))?;
        ptrace::interrupt(tid).map_err(|e| failed(errno(e)))?;
        Ok(Seizing { tid, options, armed: true, thread_bound: PhantomData })
    }

    /// A thread or process that a tracee made, traced from birth: waits for its first stop, in which it has not run a
    /// single instruction yet.
    ///
    /// # Errors
    /// As [`Tracee::seize`].
    pub fn adopt(tid: i32, options: Options) -> Result<Self> {
        Seizing { tid, options, armed: true, thread_bound: PhantomData }.wait(Instant::now() + STOP_TIMEOUT)
    }

    fn stopped(tid: i32, options: Options, signal: i32) -> Result<Self> {
        let mut tracee = Self {
            tid,
            ptrace_options: ptrace_options(options),
            kill: options.kill,
            gadget: None,
            over: false,
            group_stop: (signal != libc::SIGTRAP).then_some(signal),
            mem: Mem::new(tid),
            thread_bound: PhantomData,
        };
        match tracee.settle() {
            // 32-bit code: named when somebody asks for its registers.
            Err(e) if e.kind == Kind::Unsupported => {}
            other => other?,
        }
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
        let mut bytes = vec![0; 64 << 10];
        let n = match ptrace::regset(self.tid, ptrace::NT_X86_XSTATE, &mut bytes) {
            Err(Errno::ENODEV | Errno::EINVAL) => 0,
            other => other.map_err(|e| self.failed("read the extended registers", e))?,
        };
        bytes.truncate(n);
        Ok(bytes)
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

    /// Syscall User Dispatch (prctl(2)); `None` when it is off or the kernel cannot tell (before 6.4). Calls cannot be
    /// injected while it is on and blocks.
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
    pub fn set_user_dispatch(&mut self, config: Option<&UserDispatch>) -> Result<()> {
        ptrace::set_user_dispatch(self.tid, config.unwrap_or(&UserDispatch::default()))
            .map_err(|e| self.failed("set Syscall User Dispatch", e))
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
        filters.reverse();
        Ok(filters)
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

    /// Kills the thread's whole process and does not wait for that; see [`super::task_list::kill_all`] for many.
    ///
    /// # Errors
    /// `NoSuchEntity` when it ended meanwhile.
    pub fn kill(mut self) -> Result<()> {
        self.over = true;
        let killed = ptrace::signal_thread(self.tid, libc::SIGKILL);
        // Whoever traces a thread must reap it, or its real parent never hears of the end.
        let _ = stop::next(self.tid, Some(Instant::now() + Duration::from_millis(100)));
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
                let _ = ptrace::wait(self.tid);
            } else {
                let _ = self.let_go();
            }
        }
    }
}

fn ptrace_options(options: Options) -> u64 {
    ptrace::O_TRACESYSGOOD | if options.kill { ptrace::O_EXITKILL } else { 0 }
}

/// Why a thread cannot be seized.
fn why_not(tid: i32, e: Errno) -> Error {
    if e != Errno::EPERM {
        return errno(e);
    }
    if matches!(procfs::state(tid), Some('Z' | 'X')) {
        return Error::new(Kind::InvalidState, "it is a zombie");
    }
    match procfs::status_field(tid, "TracerPid").and_then(|v| v.parse::<i32>().ok()) {
        Some(tracer) if tracer != 0 => Error::new(
            Kind::InvalidState,
            format!("{} traces it already (a debugger?)", procfs::describe(tracer)),
        ),
        _ => errno(e),
    }
}
