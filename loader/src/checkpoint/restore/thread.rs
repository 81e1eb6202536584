//! What a restored thread sets up for itself.
#![forbid(unsafe_code)]

use super::bounds::{Bounds, CAP_SYS_RESOURCE};
use super::waits;
use crate::checkpoint::dump::signals;
use crate::checkpoint::remote::{Arg, Batch, CallId, Ran, Tracee};
use crate::checkpoint::state::{Bytes, SandboxState, ThreadState};
use crate::sys::ptrace::UserDispatch;
use airlock_wire::error::{Error, Kind, Result};

const PR_SET_SPECULATION_CTRL: i32 = 53;
/// PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE, PR_SPEC_DISABLE_NOEXEC: there is no other way to have less of it.
const SPECULATION_OFF: u64 = 0b11100;
const PR_SET_IO_FLUSHER: i32 = 57;
const PR_MCE_KILL_SET: u64 = 1;
const SS_AUTODISARM: i32 = i32::MIN;
const SS_DISABLE: i32 = 2;
const SECCOMP_SET_MODE_STRICT: u64 = 0;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// SECCOMP_FILTER_FLAG_LOG and _SPEC_ALLOW.
const FILTER_FLAGS: u64 = 0b110;
const SPEC_ALLOW: u64 = 0b100;

/// Calls of a batch, and what it means if one fails: an error, or a warning of these words.
#[derive(Debug, Default)]
pub struct Setup {
    steps: Vec<(CallId, Option<String>)>,
}

impl Setup {
    /// The call has to work.
    pub fn must(&mut self, call: CallId) {
        self.steps.push((call, None));
    }

    /// It does little harm if it does not work.
    pub fn wish(&mut self, call: CallId, what: impl Into<String>) {
        self.steps.push((call, Some(what.into())));
    }

    /// Everything but privileges and filters.
    pub fn ordinary(&mut self, batch: &mut Batch, thread: &ThreadState, bounds: &Bounds) {
        let prctl = |batch: &mut Batch, option: i32, a: Arg, b: Arg, c: Arg| {
            batch.call(libc::SYS_prctl, [option.into(), a, b, c, Arg::NULL])
        };
        let name = batch.text(thread.comm.get(..15).unwrap_or(&thread.comm));
        self.must(prctl(batch, libc::PR_SET_NAME, name, Arg::NULL, Arg::NULL));
        if thread.robust_list.0 != 0 {
            let (head, len) = thread.robust_list;
            self.must(batch.call(libc::SYS_set_robust_list, [head.into(), len.into()]));
        }
        self.must(batch.call(libc::SYS_set_tid_address, [thread.clear_tid.into()]));
        if let Some(rseq) = &thread.rseq {
            let args = [rseq.address.into(), rseq.size.into(), Arg::NULL, rseq.signature.into()];
            self.must(batch.call(libc::SYS_rseq, args));
        }
        let (sp, flags, size) = thread.altstack;
        if flags & SS_DISABLE == 0 && size != 0 {
            let mut stack = sp.to_ne_bytes().to_vec();
            stack.extend_from_slice(&(flags & SS_AUTODISARM).to_ne_bytes());
            stack.extend_from_slice(&[0; 4]);
            stack.extend_from_slice(&size.to_ne_bytes());
            let stack = batch.data(&stack);
            self.must(batch.call(libc::SYS_sigaltstack, [stack, Arg::NULL]));
        }
        // Of real-time threads it is 0, which would mean the default.
        if thread.timerslack_ns != 0 {
            let slack = thread.timerslack_ns.into();
            self.wish(prctl(batch, libc::PR_SET_TIMERSLACK, slack, Arg::NULL, Arg::NULL), "the timer slack");
        }
        if thread.tsc == libc::PR_TSC_SIGSEGV {
            let call = prctl(batch, libc::PR_SET_TSC, thread.tsc.into(), Arg::NULL, Arg::NULL);
            self.wish(call, "keeping it from reading the time stamp counter");
        }
        // Only options that are known to be harmless: an image may name any.
        for (option, value) in &thread.prctls {
            match *option {
                libc::PR_MCE_KILL => {
                    let call = prctl(batch, *option, PR_MCE_KILL_SET.into(), (*value).into(), Arg::NULL);
                    self.wish(call, "the policy for broken memory");
                }
                PR_SET_IO_FLUSHER if bounds.has(CAP_SYS_RESOURCE) => {
                    let call = prctl(batch, *option, (*value & 1).into(), Arg::NULL, Arg::NULL);
                    self.wish(call, "being an I/O flusher");
                }
                _ => {}
            }
        }
        for (which, value) in thread.speculation.iter().filter(|(_, value)| value & !SPECULATION_OFF == 0) {
            let call = prctl(batch, PR_SET_SPECULATION_CTRL, (*which).into(), (*value).into(), Arg::NULL);
            self.wish(call, format!("speculation control {which}"));
        }
    }

    /// Pending signals: of the thread, or (no `tid`) of its process `pid`. The calls must be made by the thread itself,
    /// and for a process by its leader: nobody else may send any signal that the kernel sends.
    pub fn pending(&mut self, batch: &mut Batch, pid: i32, tid: Option<i32>, infos: &[Bytes]) {
        for info in infos {
            let signal = signals::signal_of(info);
            if !signals::SIGNALS.contains(&signal) || signal == libc::SIGKILL || signal == libc::SIGSTOP {
                continue;
            }
            let mut bytes = info.0.clone();
            bytes.resize(128, 0);
            let info = batch.data(&bytes);
            let call = match tid {
                Some(tid) => {
                    let args = [pid.into(), tid.into(), signal.into(), info];
                    batch.call(libc::SYS_rt_tgsigqueueinfo, args)
                }
                None => batch.call(libc::SYS_rt_sigqueueinfo, [pid.into(), signal.into(), info]),
            };
            self.wish(call, format!("the pending signal {signal}"));
        }
    }

    /// Seccomp filters, `there` of which have been inherited.
    ///
    /// # Errors
    /// `Permission` when the container has a profile and the thread is not under it.
    pub fn filters(
        &mut self,
        batch: &mut Batch,
        thread: &ThreadState,
        state: &SandboxState,
        bounds: &Bounds,
        there: u32,
    ) -> Result<()> {
        let saved = || thread.seccomp.iter().filter_map(|id| state.seccomp_filters.get(*id as usize));
        let confined = thread.seccomp_strict || saved().next().is_some_and(|f| f.from_spec);
        if bounds.filter.is_some() && !confined {
            return Err(Error::new(
                Kind::Permission,
                "the container's configuration has a seccomp profile, and the image a thread that is not under it",
            ));
        }
        for filter in saved().skip(there as usize) {
            let (program, flags) = match &bounds.filter {
                // The profile as this container has it, whatever the image says it is.
                Some(profile) if filter.from_spec => (profile.program.as_slice(), profile.flags),
                // What the thread may speculate on is restored by itself.
                _ => (filter.program.as_ref(), filter.flags | SPEC_ALLOW),
            };
            // struct sock_fprog: length, padding, pointer.
            let mut header = ((program.len() / 8) as u16).to_ne_bytes().to_vec();
            header.resize(16, 0);
            let header = batch.data(&header);
            let program = batch.data(program);
            batch.pointer(header.at(8), program);
            let args = [SECCOMP_SET_MODE_FILTER.into(), (flags & FILTER_FLAGS).into(), header];
            self.must(batch.call(libc::SYS_seccomp, args));
        }
        Ok(())
    }

    /// What changing credentials resets, and what forbids all further calls.
    pub fn last(&mut self, batch: &mut Batch, thread: &ThreadState) {
        if thread.pdeathsig != 0 {
            let args =
                [libc::PR_SET_PDEATHSIG.into(), thread.pdeathsig.into(), Arg::NULL, Arg::NULL, Arg::NULL];
            self.must(batch.call(libc::SYS_prctl, args));
        }
        if thread.seccomp_strict {
            self.must(batch.call(libc::SYS_seccomp, [SECCOMP_SET_MODE_STRICT.into(), Arg::NULL, Arg::NULL]));
        }
    }

    /// Checks what the calls answered. Answers warnings.
    ///
    /// # Errors
    /// The first call that had to work.
    pub fn check(self, ran: &Ran) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for (call, wish) in self.steps {
            match (ran.get(call), wish) {
                (Ok(_), _) => {}
                (Err(e), None) => return Err(e),
                (Err(e), Some(what)) => warnings.push(format!("{what} cannot be restored: {e}")),
            }
        }
        Ok(warnings)
    }
}

/// Registers and mask: the thread goes on where it was when it is let go. `returned` is what the call has returned that
/// it was in, if it was made again ([`super::waits`]).
///
/// # Errors
/// Registers that this machine does not take.
pub fn registers(tracee: &mut Tracee, thread: &ThreadState, returned: Option<u64>) -> Result<()> {
    let failed = |e: Error| e.context(format!("setting the registers of thread {}", thread.tid));
    if !thread.xstate.is_empty() {
        tracee.set_xstate(&thread.xstate).map_err(failed)?;
    }
    tracee.set_regs(&waits::registers(thread, returned)?).map_err(failed)?;
    tracee.set_sigmask(thread.sigmask).map_err(failed)?;
    if let Some((selector, offset, len)) = thread.user_dispatch {
        tracee.set_user_dispatch(Some(UserDispatch { mode: 1, selector, offset, len })).map_err(failed)?;
    }
    Ok(())
}
