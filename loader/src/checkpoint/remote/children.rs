//! Children and threads that a tracee makes.
#![forbid(unsafe_code)]

use super::{Arg, Batch, Options, Region, Tracee, procfs};
use crate::sys::ptrace;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;

/// Arguments of clone3(2) (Linux 5.5 for `set_tid`). Addresses are the tracee's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clone3 {
    /// `CLONE_*`.
    pub flags: u64,
    /// Signal that the parent gets when the child ends; 0 for threads.
    pub exit_signal: i32,
    /// Pids of the child, innermost pid namespace first; may name fewer namespaces than the child is in. Empty: any.
    pub set_tid: Vec<i32>,
    /// Thread-local storage, with `CLONE_SETTLS`.
    pub tls: u64,
    /// Where the child's thread id is stored, with `CLONE_CHILD_SETTID` and `CLONE_CHILD_CLEARTID`.
    pub child_tid: u64,
    /// Lowest address of a stack and its size; 0 leaves the stack pointer as it is.
    pub stack: (u64, u64),
    /// Descriptor number (in the tracee) of a v2 cgroup, with `CLONE_INTO_CGROUP`.
    pub cgroup: u64,
}

impl Tracee {
    /// Makes the thread clone itself. The child is traced and stopped, has not run a single instruction, and has the
    /// registers of its parent in the middle of the call: give it others before letting it go. Its signal mask blocks
    /// everything. It is dealt with as its parent is when dropped ([`Options::kill`]).
    ///
    /// A thread made with `CLONE_THREAD` is the new [`Tracee`]; so is a process. `CLONE_VFORK` is refused, since the
    /// parent would wait for the child.
    ///
    /// # Errors
    /// The outer one: the call could not be made. The inner one: the call's errno (`EEXIST`: the pid is taken).
    pub fn clone3(&mut self, region: &Region, args: &Clone3) -> Result<std::result::Result<Tracee, Errno>> {
        let failed = |e: Error, t: &Self| e.context(format!("make a child of {}", procfs::describe(t.tid)));
        if args.flags & (libc::CLONE_VFORK | libc::CLONE_UNTRACED) as u64 != 0 {
            return Err(failed(
                Error::invalid_argument("CLONE_VFORK and CLONE_UNTRACED cannot be used"),
                self,
            ));
        }
        let trace = ptrace::O_TRACECLONE | ptrace::O_TRACEFORK | ptrace::O_TRACEVFORK;
        self.set_ptrace_options(self.ptrace_options | trace)
            .map_err(|e| self.failed("trace children of", e))?;

        // struct clone_args, 88 bytes, and behind it the pids.
        let base = region.data();
        let words = [
            args.flags,
            0,
            args.child_tid,
            0,
            args.exit_signal as u64,
            args.stack.0,
            args.stack.1,
            args.tls,
            if args.set_tid.is_empty() { 0 } else { base + 88 },
            args.set_tid.len() as u64,
            args.cgroup,
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        args.set_tid.iter().for_each(|pid| bytes.extend_from_slice(&pid.to_ne_bytes()));
        if bytes.len() as u64 > region.data_len() {
            return Err(failed(Error::invalid_argument("too many pids"), self));
        }
        self.mem().write(base, &bytes)?;
        let (result, happened) = self.syscall_watching(libc::SYS_clone3, [base, 88, 0, 0, 0, 0])?;
        let child = match (result, happened.children.first()) {
            (Err(e), _) => return Ok(Err(e)),
            (Ok(_), Some(child)) => *child,
            (Ok(pid), None) => {
                let text = format!("the kernel did not attach to the child that it calls {pid}");
                return Err(failed(Error::failure(text), self));
            }
        };
        let mut child = Tracee::adopt(child, Options { kill: self.kill }).map_err(|e| failed(e, self))?;
        child.gadget = self.gadget;
        child.ptrace_options = self.ptrace_options;
        Ok(Ok(child))
    }

    /// Ends the thread's process as another one ended: `status` is a raw wait status, an exit code or a signal. Its parent
    /// finds a zombie with that status (without the mark of a core dump: none is written). For processes with a single
    /// thread.
    ///
    /// # Errors
    /// When `status` is not that of an ended process, or the process survives.
    pub fn end_as(mut self, region: &Region, status: i32) -> Result<()> {
        let failed = |e: Error, t: &Self| {
            e.context(format!("end {} with wait status {status:#x}", procfs::describe(t.tid)))
        };
        let gone = if libc::WIFEXITED(status) {
            self.syscall(libc::SYS_exit_group, [libc::WEXITSTATUS(status) as u64, 0, 0, 0, 0, 0]).map(drop)
        } else if libc::WIFSIGNALED(status) {
            self.die_of(region, libc::WTERMSIG(status))
        } else {
            Err(Error::invalid_argument("it is not the status of an ended process"))
        };
        match gone {
            Err(e) if self.over && e.kind == Kind::NoSuchEntity => Ok(()),
            Err(e) => Err(failed(e, &self)),
            Ok(()) => Err(failed(Error::failure("it lives on"), &self)),
        }
    }

    /// Runs the thread with nothing but `signal`, by its default action.
    fn die_of(&mut self, region: &Region, signal: i32) -> Result<()> {
        let mut batch = Batch::new();
        let (default, none) = (batch.space(32), batch.space(16));
        batch.must(libc::SYS_setrlimit, [libc::RLIMIT_CORE.into(), none]);
        if signal != libc::SIGKILL {
            batch.must(libc::SYS_rt_sigaction, [signal.into(), default, Arg::NULL, 8.into()]);
        }
        batch.run(self, region)?.check()?;
        self.set_sigmask(!(1u64 << (signal - 1).clamp(0, 63)))?;
        ptrace::signal_thread(self.tid, signal).map_err(|e| self.failed("send a signal to", e))?;
        let mut deliver = 0;
        for _ in 0..10 {
            match self.resume_with(ptrace::cont, deliver)? {
                ptrace::Change::Signal(s) if s == signal => deliver = s,
                _ => deliver = 0,
            }
        }
        Ok(())
    }
}
