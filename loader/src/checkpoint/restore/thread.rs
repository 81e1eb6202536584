//! What a restored thread sets up for itself, last of all its privileges.
#![forbid(unsafe_code)]

use crate::checkpoint::remote::{Arg, Batch, CallId, Ran, Regs, Tracee};
use crate::checkpoint::state::{Creds, SandboxState, Sched, ThreadState};
use crate::sys::ptrace::UserDispatch;
use airlock_wire::error::{Error, Result};

const PR_SPEC_SET: i32 = 53;
const SS_DISABLE: i32 = 2;
const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
const SECCOMP_SET_MODE_STRICT: u64 = 0;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const SCHED_FLAG_UTIL_CLAMP_MIN: u64 = 0x20;
const SCHED_FLAG_UTIL_CLAMP_MAX: u64 = 0x40;
/// SCHED_FLAG_RESET_ON_FORK, _RECLAIM, _DL_OVERRUN: what sched_getattr(2) tells of itself.
const SCHED_FLAGS: u64 = 0x07;

/// A call, and what it means that it failed: an error, or a warning of these words.
type Step = (CallId, Option<String>);

/// Calls that make a thread what it was.
#[derive(Debug, Default)]
pub struct Setup {
    steps: Vec<Step>,
}

impl Setup {
    fn must(&mut self, call: CallId) {
        self.steps.push((call, None));
    }

    fn wish(&mut self, call: CallId, what: impl Into<String>) {
        self.steps.push((call, Some(what.into())));
    }

    /// Everything that takes no privilege, or all of it.
    pub fn ordinary(&mut self, batch: &mut Batch, thread: &ThreadState) {
        let prctl = |batch: &mut Batch, option: i32, value: Arg| {
            batch.call(libc::SYS_prctl, [option.into(), value, Arg::NULL, Arg::NULL, Arg::NULL])
        };
        let name = batch.text(&thread.comm.0[..thread.comm.len().min(15)]);
        self.must(prctl(batch, libc::PR_SET_NAME, name));
        if thread.robust_list.0 != 0 {
            let (head, len) = thread.robust_list;
            self.must(batch.call(libc::SYS_set_robust_list, [head.into(), len.into()]));
        }
        self.must(batch.call(libc::SYS_set_tid_address, [thread.clear_tid.into()]));
        if let Some(rseq) = &thread.rseq {
            self.must(batch.call(
                libc::SYS_rseq,
                [rseq.address.into(), rseq.size.into(), Arg::NULL, rseq.signature.into()],
            ));
        }
        let (sp, flags, size) = thread.altstack;
        if flags & SS_DISABLE == 0 && size != 0 {
            let mut stack = sp.to_ne_bytes().to_vec();
            stack.extend_from_slice(&flags.to_ne_bytes());
            stack.extend_from_slice(&[0; 4]);
            stack.extend_from_slice(&size.to_ne_bytes());
            let stack = batch.data(&stack);
            self.must(batch.call(libc::SYS_sigaltstack, [stack, Arg::NULL]));
        }
        if thread.timerslack_ns != 0 {
            let slack = thread.timerslack_ns.into();
            self.wish(prctl(batch, libc::PR_SET_TIMERSLACK, slack), "the timer slack");
        }
        if thread.tsc != 0 {
            self.wish(prctl(batch, libc::PR_SET_TSC, thread.tsc.into()), "access to the time stamp counter");
        }
        for (option, value) in &thread.prctls {
            let what = format!("prctl {option} with {value:#x}");
            self.wish(prctl(batch, *option, (*value).into()), what);
        }
        for (which, value) in &thread.speculation {
            let call = batch.call(
                libc::SYS_prctl,
                [PR_SPEC_SET.into(), (*which).into(), (*value).into(), Arg::NULL, Arg::NULL],
            );
            self.wish(call, format!("speculation control {which}"));
        }
        self.scheduling(batch, &thread.sched);
    }

    fn scheduling(&mut self, batch: &mut Batch, sched: &Sched) {
        let mut flags = sched.flags & SCHED_FLAGS;
        let clamp = |value: i32, flag: u64, flags: &mut u64| {
            u32::try_from(value).map_or(0, |v| {
                *flags |= flag;
                v
            })
        };
        let least = clamp(sched.uclamp.0, SCHED_FLAG_UTIL_CLAMP_MIN, &mut flags);
        let most = clamp(sched.uclamp.1, SCHED_FLAG_UTIL_CLAMP_MAX, &mut flags);
        // struct sched_attr of 56 bytes.
        let mut attr = 56u32.to_ne_bytes().to_vec();
        attr.extend_from_slice(&sched.policy.to_ne_bytes());
        attr.extend_from_slice(&flags.to_ne_bytes());
        attr.extend_from_slice(&sched.nice.to_ne_bytes());
        attr.extend_from_slice(&sched.priority.to_ne_bytes());
        for time in [sched.deadline.0, sched.deadline.1, sched.deadline.2] {
            attr.extend_from_slice(&time.to_ne_bytes());
        }
        attr.extend_from_slice(&least.to_ne_bytes());
        attr.extend_from_slice(&most.to_ne_bytes());
        // A slice of its own is the default for ordinary policies: setting it would fix it.
        if sched.policy < 3 && sched.policy != 6 {
            attr[24..48].fill(0);
        }
        let attr = batch.data(&attr);
        let call = batch.call(libc::SYS_sched_setattr, [Arg::NULL, attr, Arg::NULL]);
        self.wish(call, format!("scheduling policy {}, nice {}", sched.policy, sched.nice));
        if !sched.affinity.is_empty() {
            let highest = sched.affinity.iter().max().copied().unwrap_or(0).min(1 << 16) as usize;
            let mut mask = vec![0u8; (highest / 64 + 1) * 8];
            for cpu in sched.affinity.iter().map(|c| *c as usize).filter(|c| *c <= highest) {
                if let Some(byte) = mask.get_mut(cpu / 8) {
                    *byte |= 1 << (cpu % 8);
                }
            }
            let len = mask.len();
            let mask = batch.data(&mask);
            // The kernel takes what there is of these; none at all is refused, and the thread may run everywhere.
            let call = batch.call(libc::SYS_sched_setaffinity, [Arg::NULL, len.into(), mask]);
            self.wish(call, format!("running on the CPUs {:?}", sched.affinity));
        }
        if sched.ioprio != 0 {
            const IOPRIO_WHO_PROCESS: i32 = 1;
            let call =
                batch.call(libc::SYS_ioprio_set, [IOPRIO_WHO_PROCESS.into(), Arg::NULL, sched.ioprio.into()]);
            self.wish(call, format!("I/O priority {:#x}", sched.ioprio));
        }
    }

    /// Seccomp filters, while the thread still has the privilege to install them without no_new_privs. Calls that are
    /// injected afterwards are not filtered.
    pub fn filters(&mut self, batch: &mut Batch, thread: &ThreadState, state: &SandboxState, skip: usize) {
        for id in thread.seccomp.iter().skip(skip) {
            let Some(filter) = state.seccomp_filters.get(*id as usize) else { continue };
            // struct sock_fprog: length, padding, pointer.
            let mut fprog = ((filter.program.len() / 8) as u16).to_ne_bytes().to_vec();
            fprog.resize(16, 0);
            let fprog = batch.data(&fprog);
            let program = batch.data(&filter.program);
            batch.pointer(fprog.at(8), program);
            let args = [SECCOMP_SET_MODE_FILTER.into(), filter.flags.into(), fprog];
            let call = batch.call(libc::SYS_seccomp, args);
            self.must(call);
        }
    }

    /// Credentials; what comes after them has no privilege any more.
    pub fn creds(&mut self, batch: &mut Batch, creds: &Creds, last_cap: u64) {
        let prctl = |batch: &mut Batch, option: i32, a: u64, b: u64| {
            batch.call(libc::SYS_prctl, [option.into(), a.into(), b.into(), Arg::NULL, Arg::NULL])
        };
        self.must(prctl(batch, libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0));
        let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        let groups = batch.data(&groups);
        self.must(batch.call(libc::SYS_setgroups, [creds.groups.len().into(), groups]));
        let [r, e, s, fs] = creds.gids;
        self.must(batch.call(libc::SYS_setresgid, [r.into(), e.into(), s.into()]));
        self.must(batch.call(libc::SYS_setfsgid, [fs.into()]));
        let [r, e, s, fs] = creds.uids;
        self.must(batch.call(libc::SYS_setresuid, [r.into(), e.into(), s.into()]));
        self.must(batch.call(libc::SYS_setfsuid, [fs.into()]));
        let [inheritable, permitted, effective, bounding, ambient] = creds.caps;
        for cap in (0..=last_cap).filter(|c| bounding & (1 << c) == 0) {
            self.must(prctl(batch, libc::PR_CAPBSET_DROP, cap, 0));
        }
        // Locked bits may forbid raising ambient ones, so those come before them.
        let all = |batch: &mut Batch, effective: u64, permitted: u64| {
            const VERSION_3: u32 = 0x2008_0522;
            let mut header = VERSION_3.to_ne_bytes().to_vec();
            header.extend_from_slice(&[0; 4]);
            let header = batch.data(&header);
            let mut data = Vec::new();
            for shift in [0, 32] {
                for set in [effective, permitted, inheritable] {
                    data.extend_from_slice(&((set >> shift) as u32).to_ne_bytes());
                }
            }
            let data = batch.data(&data);
            batch.call(libc::SYS_capset, [header, data])
        };
        const SETPCAP: u64 = 1 << 8;
        self.must(all(batch, effective | SETPCAP, permitted | SETPCAP));
        for cap in (0..=last_cap).filter(|c| ambient & (1 << c) != 0) {
            self.must(prctl(batch, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, cap));
        }
        self.must(prctl(batch, libc::PR_SET_SECUREBITS, creds.securebits.into(), 0));
        self.must(all(batch, effective, permitted));
        if creds.no_new_privs {
            self.must(prctl(batch, libc::PR_SET_NO_NEW_PRIVS, 1, 0));
        }
    }

    /// What changing credentials resets.
    pub fn after_creds(&mut self, batch: &mut Batch, thread: &ThreadState) {
        if thread.pdeathsig != 0 {
            let args = [libc::PR_SET_PDEATHSIG.into(), thread.pdeathsig.into()];
            self.must(batch.call(libc::SYS_prctl, args));
        }
        if thread.seccomp_strict {
            let args = [SECCOMP_SET_MODE_STRICT.into(), Arg::NULL, Arg::NULL];
            let call = batch.call(libc::SYS_seccomp, args);
            self.must(call);
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
                (Err(e), Some(what)) => warnings.push(format!("{what} cannot be set again: {e}")),
            }
        }
        Ok(warnings)
    }
}

/// Puts signals back into a queue: the thread's own, or that of its process.
pub fn queue(
    batch: &mut Batch,
    pid: i32,
    tid: Option<i32>,
    infos: &[crate::checkpoint::state::Bytes],
) -> Vec<CallId> {
    let mut calls = Vec::new();
    for info in infos {
        let Some(signal) = info.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes) else {
            continue;
        };
        let mut bytes = info.0.clone();
        bytes.resize(128, 0);
        let info = batch.data(&bytes);
        calls.push(match tid {
            Some(tid) => {
                batch.call(libc::SYS_rt_tgsigqueueinfo, [pid.into(), tid.into(), signal.into(), info])
            }
            None => batch.call(libc::SYS_rt_sigqueueinfo, [pid.into(), signal.into(), info]),
        });
    }
    calls
}

/// Registers and mask: the thread goes on where it was when it is let go.
///
/// # Errors
/// Registers that this kernel does not take.
pub fn registers(tracee: &mut Tracee, thread: &ThreadState) -> Result<()> {
    let failed = |e: Error| e.context(format!("setting the registers of thread {}", thread.tid));
    if let Some((selector, offset, len)) = thread.user_dispatch {
        tracee.set_user_dispatch(Some(UserDispatch { mode: 1, selector, offset, len })).map_err(failed)?;
    }
    if !thread.xstate.is_empty() {
        tracee.set_xstate(&thread.xstate).map_err(failed)?;
    }
    tracee.set_regs(&Regs::from_bytes(&thread.regs)?).map_err(failed)?;
    tracee.set_sigmask(thread.sigmask).map_err(failed)
}
