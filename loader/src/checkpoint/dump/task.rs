//! Everything that is saved of processes and threads but memory, files and namespaces.
#![forbid(unsafe_code)]

use super::context::{Context, MemoryFacts, Proc};
use super::seccomp::Filters;
use super::signals::{self, Actions};
use super::status::{Ending, Status};
use super::timers::{self, Times};
use super::{creds, thread};
use crate::checkpoint::remote::{Arg, Batch, CallId, Ran, Region};
use crate::checkpoint::state::{Id, Life, PosixTimer, ProcessState, ThreadState};
use crate::procfs::{ProcFs, Stat};
use crate::sys::task;
use airlock_wire::error::{Error, Kind, Result};

/// Resource limits by number, up to RLIMIT_RTTIME.
const LIMITS: u32 = 16;

const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;

/// Describes all processes of [`Context::procs`] in `state.processes`, at the same indexes. Address spaces, descriptor
/// tables and directories are left to be filled in; [`Proc::region`] is mapped and [`Proc::memory`] known afterwards.
/// `/proc/<pid>/maps` shows the region from then on.
///
/// # Errors
/// When a process cannot be asked. What cannot be saved is a refusal, not an error.
pub fn collect(ctx: &mut Context) -> Result<()> {
    let filters = Filters::new(&ctx.order);
    for i in 0..ctx.procs.len() {
        let state = collect_one(ctx, i, &filters).map_err(|e| {
            let (pid, comm) = ctx.procs.get(i).map_or((0, ""), |p| (p.ns_pid, p.comm.as_str()));
            e.context(format!("asking process {pid} ({comm}) for its state"))
        })?;
        ctx.state.processes.push(state);
    }
    Ok(())
}

fn collect_one(ctx: &mut Context, i: usize, filters: &Filters) -> Result<ProcessState> {
    let region = ctx.procs.get(i).and_then(|p| p.shares_mm_with).and_then(|o| ctx.procs.get(o)?.region);
    let Some(proc) = ctx.procs.get_mut(i) else { return Err(Error::failure("no such process")) };
    // Taken out, so that the context can be written to meanwhile.
    let mut threads = std::mem::take(&mut proc.threads);
    let statuses = std::mem::take(&mut proc.statuses);
    let result = describe(ctx, i, &mut threads, &statuses, region, filters);
    if let Some(proc) = ctx.procs.get_mut(i) {
        proc.threads = threads;
        proc.statuses = statuses;
    }
    result
}

fn describe(
    ctx: &mut Context,
    i: usize,
    threads: &mut [crate::checkpoint::remote::Tracee],
    statuses: &[Status],
    region: Option<Region>,
    filters: &Filters,
) -> Result<ProcessState> {
    let mut state = outside(ctx, i, threads.first().map(|t| t.tid()), statuses)?;
    let Some(first) = threads.first() else { return Ok(state) };
    let leader_status = statuses.first().cloned().unwrap_or_default();
    let task = first.tid();

    // What the stop itself left in sight comes first: it must not be disturbed by injected calls.
    state.pending = signals::pending(first, true, leader_status.pending.1)?;
    for (tracee, status) in threads.iter().zip(statuses) {
        state.threads.push(thread::registers(&ctx.procfs, &ctx.sleepers, tracee, status)?);
    }
    let gone = usize::from(state.leader_gone);
    for (n, tracee) in threads.iter_mut().enumerate() {
        let Some(status) = statuses.get(n) else { continue };
        let container = state.container;
        let found = filters.collect(tracee, status, container, &mut ctx.state.seccomp_filters)?;
        if let Some(thread) = state.threads.get_mut(n + gone) {
            thread.seccomp_strict = found.strict;
            thread.seccomp = found.filters;
        }
        if let Some((kind, what)) = found.refusal {
            ctx.refuse(i, None, kind, what);
            // Asking on would kill the thread.
            return Ok(state);
        }
    }
    let mut timers = read_timers(ctx, i, task)?;
    let (region, mapped) = match region {
        Some(region) => (region, false),
        None => {
            let Some(first) = threads.first_mut() else { return Ok(state) };
            (Region::map(first, None)?, true)
        }
    };
    if let Some(proc) = ctx.procs.get_mut(i) {
        proc.region = Some(region);
        if !mapped {
            proc.memory = MemoryFacts::default();
        }
    }
    for (n, tracee) in threads.iter_mut().enumerate() {
        let mut batch = Batch::new();
        let questions = thread::Questions::ask(&mut batch);
        let process = (n == 0).then(|| Questions::ask(&mut batch, &timers));
        let ran = batch.run(tracee, &region)?;
        let (Some(status), Some(thread)) = (statuses.get(n), state.threads.get_mut(n + gone)) else {
            continue;
        };
        let securebits = questions.answers(&ran, thread)?;
        thread.creds = creds::collect(&ctx.procfs, tracee.tid(), status, securebits);
        thread::outside(tracee.tid(), thread)?;
        if let Some(process) = process {
            process.answers(ctx, i, &ran, &mut state, &mut timers)?;
        }
    }
    state.timers = timers;
    Ok(state)
}

/// What `/proc` and calls from outside tell of a process; of a zombie, that is all there is.
fn outside(ctx: &mut Context, i: usize, task: Option<i32>, statuses: &[Status]) -> Result<ProcessState> {
    let Some(proc) = ctx.procs.get(i) else { return Err(Error::failure("no such process")) };
    let status = statuses.first().cloned().unwrap_or_default();
    let (pid, procfs) = (proc.pid, &ctx.procfs);
    let text = procfs.read(pid, "stat")?;
    let (stat, ending) = Stat::parse(&text).zip(Ending::parse(&text)).unwrap_or_default();
    let parent = proc.parent.and_then(|p| ctx.procs.get(p));
    let mut state = ProcessState {
        container: proc.container,
        pid: proc.ns_pid,
        ppid: parent.map_or(0, |p| p.ns_pid),
        pgid: status.pgid(),
        sid: status.sid(),
        life: proc.life,
        exit_signal: ending.exit_signal,
        shares_mm_with_parent: proc.shares_mm_with.is_some(),
        shares_sighand_with_parent: proc.shares_sighand,
        leader_gone: proc.leader_gone,
        stop_unreported: matches!(proc.life, Life::Stopped { .. }) && ending.exit_code & 0x7f != 0,
        cpu_ns: (ticks(stat.utime), ticks(stat.stime)),
        ..ProcessState::default()
    };
    if task.is_none() || proc.leader_gone {
        state.threads.push(ThreadState {
            tid: proc.ns_pid,
            comm: name(procfs, pid).into(),
            creds: creds::collect(procfs, pid, &status, 0),
            ..ThreadState::default()
        });
    }
    let Some(task) = task else { return Ok(state) };
    state.rlimits = limits(procfs, task)?;
    state.oom_score_adj = number(procfs, task, "oom_score_adj")?;
    let personality = procfs.read(task, "personality")?;
    state.personality = u64::from_str_radix(personality.trim(), 16).unwrap_or(0);
    state.cgroup = cgroup(procfs, task);
    let warning = (!state.cgroup.is_empty()).then(|| {
        format!(
            "process {} ({}) is in the cgroup {:?} of its container; it will be restored in the container's own",
            state.pid, proc.comm, state.cgroup
        )
    });
    warning.into_iter().for_each(|text| ctx.warn(text));
    Ok(state)
}

/// Clock ticks as nanoseconds; there are 100 a second on every architecture airlock runs on.
fn ticks(n: u64) -> u64 {
    n.saturating_mul(10_000_000)
}

/// A task's name, as it set it.
fn name(procfs: &ProcFs, task: i32) -> Vec<u8> {
    let mut name = procfs.read_whole(task, "comm").unwrap_or_default();
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    name
}

fn number(procfs: &ProcFs, task: i32, file: &str) -> Result<i32> {
    let text = procfs.read(task, file)?;
    text.trim().parse().map_err(|_| Error::failure(format!("/proc/{task}/{file} is no number: {text:?}")))
}

fn limits(procfs: &ProcFs, task: i32) -> Result<Vec<(u64, u64)>> {
    let asked: std::result::Result<Vec<_>, _> = (0..LIMITS).map(|n| task::rlimit(task, n)).collect();
    match asked {
        Ok(limits) => Ok(limits),
        // Of another user's process, only who has CAP_SYS_RESOURCE may ask so.
        Err(nix::errno::Errno::EPERM) => parse_limits(&procfs.read(task, "limits")?),
        Err(e) => Err(Error::from(e).context(format!("reading the limits of process {task}"))),
    }
}

/// `/proc/<pid>/limits`: a heading, and a line for each limit in the order of their numbers.
pub(super) fn parse_limits(text: &str) -> Result<Vec<(u64, u64)>> {
    let value = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    let line = |line: &str| {
        // The name has spaces, and is 25 characters wide.
        let mut words = line.get(25..)?.split_ascii_whitespace();
        Some((value(words.next()?)?, value(words.next()?)?))
    };
    let limits: Option<Vec<_>> = text.lines().skip(1).take(LIMITS as usize).map(line).collect();
    limits
        .filter(|l| l.len() == LIMITS as usize)
        .ok_or_else(|| Error::failure("/proc limits cannot be parsed"))
}

/// The cgroup of a task below its container's, whose name begins with `airlock-`: in the unified hierarchy or, with
/// v1, that of the freezer.
fn cgroup(procfs: &ProcFs, task: i32) -> String {
    let text = procfs.read(task, "cgroup").unwrap_or_default();
    let below = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        if !(controllers.is_empty() || controllers.split(',').any(|c| c == "freezer")) {
            return None;
        }
        let (_, leaf) = path.split_once("/airlock-")?;
        Some(leaf.split_once('/')?.1.to_owned())
    };
    text.lines().find_map(below).unwrap_or_default()
}

fn read_timers(ctx: &Context, i: usize, task: i32) -> Result<Vec<PosixTimer>> {
    let Some(proc) = ctx.procs.get(i) else { return Ok(Vec::new()) };
    match ctx.procfs.read_whole(task, "timers") {
        Ok(text) => {
            let inner = |tid: i32| {
                let status = ctx.procfs.read_path(&format!("{}/task/{tid}/status", proc.pid)).ok()?;
                Some(Status::parse(&status).ok()?.tid())
            };
            timers::parse(&String::from_utf8_lossy(&text), inner)
        }
        // A kernel without CONFIG_CHECKPOINT_RESTORE, where much else would have failed before.
        Err(e) if e.kind == Kind::NoSuchEntity => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Calls that ask a process, through any of its threads.
#[derive(Debug)]
struct Questions {
    actions: Actions,
    times: Times,
    dumpable: CallId,
    subreaper: (CallId, Arg),
    thp: CallId,
    mdwe: CallId,
    ksm: CallId,
    membarrier: CallId,
    expedited: [CallId; 3],
    ldt: CallId,
    cpuid: CallId,
}

const MEMBARRIER_GET_REGISTRATIONS: u64 = 1 << 9;
/// Expedited barriers and the commands that register for them.
const MEMBARRIERS: [(u64, u64); 3] = [(1 << 3, 1 << 4), (1 << 5, 1 << 6), (1 << 7, 1 << 8)];

impl Questions {
    fn ask(batch: &mut Batch, timers: &[PosixTimer]) -> Self {
        const ARCH_GET_CPUID: u64 = 0x1011;
        let actions = Actions::ask(batch);
        let times = Times::ask(batch, timers);
        let mut prctl = |option: u64, arg: Arg| {
            batch.call(libc::SYS_prctl, [option.into(), arg, Arg::NULL, Arg::NULL, Arg::NULL])
        };
        let dumpable = prctl(libc::PR_GET_DUMPABLE as u64, Arg::NULL);
        let thp = prctl(libc::PR_GET_THP_DISABLE as u64, Arg::NULL);
        let mdwe = prctl(PR_GET_MDWE, Arg::NULL);
        let ksm = prctl(PR_GET_MEMORY_MERGE, Arg::NULL);
        let flag = batch.space(8);
        let subreaper = batch.call(libc::SYS_prctl, [(libc::PR_GET_CHILD_SUBREAPER as u64).into(), flag]);
        let membarrier = batch.call(libc::SYS_membarrier, [MEMBARRIER_GET_REGISTRATIONS.into(), Arg::NULL]);
        // A barrier harms nobody, and without a registration it is refused: that tells on kernels before 6.3.
        let expedited =
            MEMBARRIERS.map(|(barrier, _)| batch.call(libc::SYS_membarrier, [barrier.into(), Arg::NULL]));
        let entry = batch.space(16);
        let ldt = batch.call(libc::SYS_modify_ldt, [Arg::NULL, entry, 16u64.into()]);
        let cpuid = batch.call(libc::SYS_arch_prctl, [ARCH_GET_CPUID.into(), Arg::NULL]);
        let subreaper = (subreaper, flag);
        Self { actions, times, dumpable, subreaper, thp, mdwe, ksm, membarrier, expedited, ldt, cpuid }
    }

    fn answers(
        &self,
        ctx: &mut Context,
        i: usize,
        ran: &Ran,
        state: &mut ProcessState,
        timers: &mut [PosixTimer],
    ) -> Result<()> {
        state.sigactions = self.actions.answers(ran)?;
        state.itimers = self.times.itimers(ran)?;
        self.times.timers(ran, timers)?;
        state.dumpable = ran.get(self.dumpable)? as i32;
        ran.get(self.subreaper.0)?;
        state.child_subreaper = ran.int(self.subreaper.1) != 0;
        let thp = ran.result(self.thp).unwrap_or(0);
        state.thp_disabled = thp & 1 != 0;
        if thp > 1
            && let Some(leader) = state.threads.first_mut()
        {
            // The other bits are flags that the setter takes (Linux 6.18).
            leader.prctls.push((libc::PR_SET_THP_DISABLE, thp & !1));
        }
        let registered = MEMBARRIERS.iter().zip(self.expedited).filter(|(_, call)| ran.result(*call).is_ok());
        state.membarrier = ran
            .result(self.membarrier)
            .unwrap_or_else(|_| registered.map(|((_, register), _)| register).fold(0, |a, b| a | b));
        if ran.result(self.ldt).is_ok_and(|n| n > 0) {
            ctx.refuse(
                i,
                None,
                "local descriptor table",
                "it uses modify_ldt(2), as emulators of old programs do",
            );
        }
        if ran.result(self.cpuid) == Ok(0) {
            ctx.warn(format!("process {} has the cpuid instruction turned off; it will be on", state.pid));
        }
        if let Some(proc) = ctx.procs.get_mut(i) {
            proc.memory = MemoryFacts {
                mdwe: ran.result(self.mdwe).unwrap_or(0),
                ksm: ran.result(self.ksm).unwrap_or(0) != 0,
            };
        }
        Ok(())
    }
}

/// Takes away what was mapped into the processes. Before [`release`], and before anybody is frozen again: frozen
/// processes make no calls.
///
/// # Errors
/// The first of those that happened; all processes have been tried.
pub fn clean(ctx: &mut Context) -> Result<()> {
    let mut outcome = Ok(());
    for proc in ctx.procs.iter_mut().rev() {
        let outcome_of_one = release_one(proc);
        outcome = outcome.and(outcome_of_one);
    }
    outcome
}

/// Lets all processes go on, as if nobody had looked at them.
///
/// # Errors
/// The first of those that happened; all processes that live have been let go nevertheless.
pub fn release(ctx: &mut Context) -> Result<()> {
    let mut outcome = clean(ctx);
    // All regions are gone before anybody runs.
    for proc in &mut ctx.procs {
        for tracee in std::mem::take(&mut proc.threads) {
            match tracee.detach(0) {
                Err(e) if e.kind != Kind::NoSuchEntity => outcome = outcome.and(Err(e)),
                _ => {}
            }
        }
    }
    outcome
}

fn release_one(proc: &mut Proc) -> Result<()> {
    if let Some(region) = proc.region.take().filter(|_| proc.shares_mm_with.is_none())
        && let Some(first) = proc.threads.first_mut()
    {
        region.unmap(first)?;
    }
    Ok(())
}

/// Index of the container of process `i`; the first one when there is no such process.
pub fn container_of(ctx: &Context, i: usize) -> Id {
    ctx.procs.get(i).map_or(0, |p| p.container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_same_from_both_sources() {
        let me = std::process::id() as i32;
        let proc: std::os::fd::OwnedFd = std::fs::File::open("/proc").unwrap().into();
        let asked = limits(&ProcFs::new(proc), me).unwrap();
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(parse_limits(&text).unwrap(), asked);
        assert!(parse_limits("").is_err());
        assert!(parse_limits(&text.replace("Max open files", "Max")).is_err());
    }
}
