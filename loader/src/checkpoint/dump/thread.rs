//! Everything that is saved of one thread.
#![forbid(unsafe_code)]

use super::signals;
use super::status::Status;
use super::waits::Sleepers;
use crate::checkpoint::remote::{Arg, Batch, CallId, Ran, Regs, Tracee};
use crate::checkpoint::state::{Rseq, Sched, ThreadState};
use crate::procfs::ProcFs;
use crate::sys::task;
use airlock_wire::error::{Error, Result};

const PR_GET_TID_ADDRESS: i32 = 40;
const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;
const PR_GET_SPECULATION_CTRL: i32 = 52;
/// PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH.
const SPECULATIONS: std::ops::Range<u64> = 0..3;
/// The thread may control it itself; without this bit the state is the machine's.
const PR_SPEC_PRCTL: u64 = 1;
const PR_SPEC_ENABLE: u64 = 2;

/// SS_AUTODISARM; SS_ONSTACK is no setting, and SS_DISABLE is 2.
const SS_AUTODISARM: i32 = i32::MIN;
const SS_DISABLE: i32 = 2;

/// What ptrace tells of a thread that has just stopped.
///
/// # Errors
/// When it has ended; `Unsupported` for 32-bit code.
pub fn registers(
    procfs: &ProcFs,
    sleepers: &Sleepers,
    tracee: &Tracee,
    status: &Status,
) -> Result<ThreadState> {
    let rseq = tracee.rseq_configuration()?.filter(|c| c.pointer != 0).map(|c| Rseq {
        address: c.pointer,
        size: c.size,
        signature: c.signature,
        // The stop has ended any critical section.
        critical_section: 0,
    });
    let regs = tracee.regs()?;
    let mut image = regs.for_image();
    let call = sleepers.call(tracee.tid(), &regs, tracee.mem());
    let mut wait_left_ns = None;
    if let Some(nr) = call.filter(|_| regs.in_restart_block()) {
        wait_left_ns = sleepers.left(procfs, tracee.tid(), nr, &regs, tracee.mem());
        if wait_left_ns.is_some() || regs.in_syscall() != call {
            // With its own number and arguments: the time that is left is told besides.
            image = Regs { rax: image.rax, orig_rax: nr, ..regs };
        }
    }
    Ok(ThreadState {
        tid: status.tid(),
        regs: image.to_bytes().into(),
        wait_left_ns,
        xstate: tracee.xstate()?.into(),
        sigmask: tracee.sigmask()?,
        pending: signals::pending(tracee, false, status.pending.0)?,
        rseq,
        user_dispatch: tracee.user_dispatch()?.map(|d| (d.selector, d.offset, d.len)),
        ..ThreadState::default()
    })
}

/// What calls from outside tell of a thread.
///
/// # Errors
/// When it has ended.
pub fn outside(tid: i32, thread: &mut ThreadState) -> Result<()> {
    let failed = |what: &str, e: nix::errno::Errno| Error::from(e).context(format!("{what} of thread {tid}"));
    let (attr, clamps) = task::sched_getattr(tid).map_err(|e| failed("reading the scheduling", e))?;
    // All there is, or nothing at all: no clamps.
    let uclamp = match clamps {
        [0, 0] | [0, 1024] => (-1, -1),
        [least, greatest] => (least as i32, greatest as i32),
    };
    // Of ordinary policies, the runtime is a time slice (Linux 6.12): the kernel's own choice, or the thread's.
    const SCHED_DEADLINE: u32 = 6;
    let usual = task::sched_getattr(0).map_or(0, |(own, _)| own.runtime);
    let deadline = match attr.policy {
        SCHED_DEADLINE => (attr.runtime, attr.deadline, attr.period),
        _ if attr.runtime == usual => (0, 0, 0),
        _ => (attr.runtime, 0, 0),
    };
    thread.sched = Sched {
        policy: attr.policy,
        flags: attr.flags,
        // sched_getattr(2) does not tell it of real-time threads, which have one for later.
        nice: task::nice(tid).unwrap_or(attr.nice),
        priority: attr.priority,
        deadline,
        affinity: task::affinity(tid).map_err(|e| failed("reading the CPUs", e))?,
        ioprio: task::ioprio(tid).unwrap_or(0),
        uclamp,
    };
    thread.robust_list = task::robust_list(tid).map_err(|e| failed("reading the robust futexes", e))?;
    Ok(())
}

/// Calls that ask a thread.
#[derive(Debug)]
pub struct Questions {
    altstack: (CallId, Arg),
    name: (CallId, Arg),
    clear_tid: (CallId, Arg),
    pdeathsig: (CallId, Arg),
    tsc: (CallId, Arg),
    securebits: CallId,
    timerslack: CallId,
    mce: CallId,
    io_flusher: CallId,
    speculation: Vec<CallId>,
}

impl Questions {
    /// Adds the calls to a batch.
    pub fn ask(batch: &mut Batch) -> Self {
        let stack = batch.space(24);
        let altstack = (batch.call(libc::SYS_sigaltstack, [Arg::NULL, stack]), stack);
        let mut into = |option: i32| {
            let place = batch.space(16);
            let args = [option.into(), place, Arg::NULL, Arg::NULL, Arg::NULL];
            (batch.call(libc::SYS_prctl, args), place)
        };
        let name = into(libc::PR_GET_NAME);
        let clear_tid = into(PR_GET_TID_ADDRESS);
        let pdeathsig = into(libc::PR_GET_PDEATHSIG);
        let tsc = into(libc::PR_GET_TSC);
        let mut get = |option: i32, arg: u64| {
            batch.call(libc::SYS_prctl, [option.into(), arg.into(), Arg::NULL, Arg::NULL, Arg::NULL])
        };
        Self {
            altstack,
            name,
            clear_tid,
            pdeathsig,
            tsc,
            securebits: get(libc::PR_GET_SECUREBITS, 0),
            timerslack: get(libc::PR_GET_TIMERSLACK, 0),
            mce: get(libc::PR_MCE_KILL_GET, 0),
            io_flusher: get(PR_GET_IO_FLUSHER, 0),
            speculation: SPECULATIONS.map(|which| get(PR_GET_SPECULATION_CTRL, which)).collect(),
        }
    }

    /// Fills in what they answered, and returns the secure bits.
    ///
    /// # Errors
    /// When a call failed that every kernel knows.
    pub fn answers(&self, ran: &Ran, thread: &mut ThreadState) -> Result<u32> {
        const PR_MCE_KILL_DEFAULT: u64 = 2;
        ran.get(self.altstack.0)?;
        let stack = self.altstack.1;
        let flags = ran.int(stack.at(8)) & (SS_AUTODISARM | SS_DISABLE);
        thread.altstack = (ran.word(stack), flags, ran.word(stack.at(16)));
        ran.get(self.name.0)?;
        let name = ran.output(self.name.1, 16);
        thread.comm = name.split(|b| *b == 0).next().unwrap_or_default().into();
        ran.get(self.clear_tid.0)?;
        thread.clear_tid = ran.word(self.clear_tid.1);
        ran.get(self.pdeathsig.0)?;
        thread.pdeathsig = ran.int(self.pdeathsig.1);
        thread.tsc = ran.result(self.tsc.0).map_or(0, |_| ran.int(self.tsc.1));
        thread.timerslack_ns = ran.get(self.timerslack)?;
        if let Ok(policy) = ran.result(self.mce)
            && policy != PR_MCE_KILL_DEFAULT
        {
            thread.prctls.push((libc::PR_MCE_KILL, policy));
        }
        if ran.result(self.io_flusher) == Ok(1) {
            thread.prctls.push((PR_SET_IO_FLUSHER, 1));
        }
        for (which, call) in SPECULATIONS.zip(&self.speculation) {
            // What the thread may not control is the machine's; what is enabled is as for every other thread.
            if let Ok(value) = ran.result(*call)
                && value & PR_SPEC_PRCTL != 0
                && value & !(PR_SPEC_PRCTL | PR_SPEC_ENABLE) != 0
            {
                thread.speculation.push((which, value & !PR_SPEC_PRCTL));
            }
        }
        Ok(ran.get(self.securebits)? as u32)
    }
}
