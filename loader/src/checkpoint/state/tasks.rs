//! Processes and threads.
#![forbid(unsafe_code)]

use super::{Bytes, Id};
use serde::{Deserialize, Serialize};

/// A process (thread group).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessState {
    /// Container it belongs to.
    pub container: Id,
    /// Pid in its own (innermost) pid namespace; so are all pids below.
    pub pid: i32,
    /// Parent; 0 for a container's init.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Whether it runs, is stopped or has ended unreaped.
    pub life: Life,
    /// Signal the parent gets at its end (17 but for special clones).
    pub exit_signal: i32,
    /// It was made with CLONE_PARENT_SETTID & co. irrelevant; true when it shares its parent's address space (vfork, CLONE_VM).
    pub shares_mm_with_parent: bool,
    /// Shares its signal actions with its parent too (CLONE_SIGHAND).
    pub shares_sighand_with_parent: bool,
    /// Address space; none for a zombie.
    pub mm: Option<Id>,
    /// The leader has ended while other threads live on; of it, `threads` has nothing but its name.
    pub leader_gone: bool,
    /// The parent has not heard of the stop yet (a wait with WUNTRACED would tell), if it is stopped.
    pub stop_unreported: bool,
    /// Threads, the leader first; a zombie has the leader alone, with nothing but its name and user.
    pub threads: Vec<ThreadState>,
    /// Actions of signals 1 to 64, in order.
    pub sigactions: Vec<SigAction>,
    /// Process-wide pending signals: `siginfo_t` of 128 bytes each, oldest first.
    pub pending: Vec<Bytes>,
    /// ITIMER_REAL, _VIRTUAL, _PROF.
    pub itimers: Vec<Itimer>,
    /// POSIX timers.
    pub timers: Vec<PosixTimer>,
    /// Resource limits by number: (soft, hard); `u64::MAX` is unlimited.
    pub rlimits: Vec<(u64, u64)>,
    /// `/proc/pid/oom_score_adj`.
    pub oom_score_adj: i32,
    /// PR_SET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// PR_SET_DUMPABLE as it was (0, 1 or 2).
    pub dumpable: i32,
    /// PR_SET_THP_DISABLE.
    pub thp_disabled: bool,
    /// personality(2).
    pub personality: u64,
    /// membarrier registrations (MEMBARRIER_CMD_GET_REGISTRATIONS).
    pub membarrier: u64,
    /// CPU time used so far, user and system, nanoseconds (for reports; the kernel counts anew).
    pub cpu_ns: (u64, u64),
    /// cgroup below the container's own, as a path relative to it; empty when it is the container's own.
    pub cgroup: String,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// It runs, or sleeps.
    #[default]
    Alive,
    /// Stopped by this signal.
    Stopped {
        /// SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
        signal: i32,
    },
    /// Ended; its parent has not asked yet. Raw wait status.
    Zombie {
        /// As wait(2) gives it.
        status: i32,
    },
}

/// A thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThreadState {
    /// Thread ID in the innermost pid namespace.
    pub tid: i32,
    /// Name, at most 15 bytes.
    pub comm: Bytes,
    /// General registers as PTRACE_GETREGSET NT_PRSTATUS gives them, ready to be continued (restarts fixed up).
    pub regs: Bytes,
    /// NT_X86_XSTATE.
    pub xstate: Bytes,
    /// Blocked signals.
    pub sigmask: u64,
    /// A mask that a call like sigsuspend or ppoll would put back (0: none).
    pub saved_sigmask: Option<u64>,
    /// Pending signals of the thread alone: `siginfo_t` of 128 bytes each.
    pub pending: Vec<Bytes>,
    /// Alternate signal stack: address, flags, size.
    pub altstack: (u64, i32, u64),
    /// Robust futex list: head, length.
    pub robust_list: (u64, u64),
    /// set_tid_address(2).
    pub clear_tid: u64,
    /// Restartable sequences, if registered.
    pub rseq: Option<Rseq>,
    /// Credentials.
    pub creds: Creds,
    /// Scheduling.
    pub sched: Sched,
    /// Seccomp filters, the one that was installed first first.
    pub seccomp: Vec<Id>,
    /// Strict seccomp mode (1).
    pub seccomp_strict: bool,
    /// PR_SET_PDEATHSIG.
    pub pdeathsig: i32,
    /// PR_SET_TIMERSLACK, nanoseconds.
    pub timerslack_ns: u64,
    /// Descriptor table.
    pub fd_table: Id,
    /// Directories and umask.
    pub fs: Id,
    /// PR_GET_TSC: 1 enabled, 2 SIGSEGV. 0: unknown.
    pub tsc: i32,
    /// MCE kill policy, I/O flusher and other prctl values that have a getter, by option number of the setter.
    pub prctls: Vec<(i32, u64)>,
    /// Speculation controls that the thread has changed: (PR_SPEC_*, value as PR_SET_SPECULATION_CTRL takes it).
    pub speculation: Vec<(u64, u64)>,
    /// Syscall User Dispatch, if on: selector's address, start and length of the range that it lets through.
    pub user_dispatch: Option<(u64, u64, u64)>,
    /// It was in a call that waits for a time, and this much of it was left, nanoseconds.
    pub wait_left_ns: Option<u64>,
}

/// rseq(2) registration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rseq {
    /// Address of `struct rseq`.
    pub address: u64,
    /// Its registered size.
    pub size: u32,
    /// Its signature.
    pub signature: u32,
    /// `rseq_cs` field at the dump.
    pub critical_section: u64,
}

/// One signal's action (`struct kernel_sigaction`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SigAction {
    /// Handler, or 0 (default) or 1 (ignore).
    pub handler: u64,
    /// SA_*.
    pub flags: u64,
    /// SA_RESTORER's function.
    pub restorer: u64,
    /// Signals blocked while it runs.
    pub mask: u64,
}

/// An interval timer, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Itimer {
    /// Time to the next expiry; 0: disarmed.
    pub value_us: u64,
    /// Interval.
    pub interval_us: u64,
}

/// timer_create(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PosixTimer {
    /// The kernel's timer ID, which the program keeps.
    pub id: i32,
    /// Clock ID (CLOCK_*, or a CPU clock).
    pub clock: i32,
    /// SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD_ID 4.
    pub notify: i32,
    /// Signal number.
    pub signal: i32,
    /// Thread that gets the signal (SIGEV_THREAD_ID).
    pub tid: i32,
    /// sigev_value.
    pub value: u64,
    /// Time to the next expiry, nanoseconds; 0: disarmed.
    pub remaining_ns: u64,
    /// Interval, nanoseconds.
    pub interval_ns: u64,
    /// Overrun count.
    pub overrun: i32,
}

/// Credentials of a thread, ids as they are in the container's user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Creds {
    /// Real, effective, saved, filesystem user.
    pub uids: [u32; 4],
    /// Real, effective, saved, filesystem group.
    pub gids: [u32; 4],
    /// Additional groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient.
    pub caps: [u64; 5],
    /// SECBIT_*.
    pub securebits: u32,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// LSM label (`/proc/pid/attr/current`), empty if none.
    pub label: String,
}

/// Scheduling of a thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sched {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// SCHED_DEADLINE: runtime, deadline, period, nanoseconds.
    pub deadline: (u64, u64, u64),
    /// CPUs it may run on, as a list of numbers.
    pub affinity: Vec<u32>,
    /// ioprio_get(2).
    pub ioprio: i32,
    /// Core-scheduling, utilisation clamps: minimum and maximum (SCHED_FLAG_UTIL_CLAMP_*), -1: none.
    pub uclamp: (i32, i32),
}

/// A seccomp filter: classic BPF instructions of 8 bytes, as the kernel gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeccompFilter {
    /// The program.
    pub program: Bytes,
    /// SECCOMP_FILTER_FLAG_* that can be set again (LOG).
    pub flags: u64,
    /// It is the container's profile from its spec, which the restorer has too.
    pub from_spec: bool,
}
