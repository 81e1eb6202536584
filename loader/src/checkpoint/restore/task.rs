//! Processes, once they have their memory and descriptors: threads, signals, timers, limits, privileges; and letting all
//! of them go at once.
#![forbid(unsafe_code)]

use super::context::Context;
use super::thread::{self, Setup};
use crate::checkpoint::remote::{Arg, Batch, Clone3, Region, Tracee};
use crate::checkpoint::state::{Life, PosixTimer, ProcessState};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;

/// Makes the threads of process `index` besides its leader.
///
/// # Errors
/// A thread id is taken, or the limits of the container allow no more.
pub fn make_threads(ctx: &mut Context, index: usize) -> Result<()> {
    let Some(state) = ctx.state.processes.get(index).cloned() else { return Ok(()) };
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut).filter(|p| !p.threads.is_empty())
    else {
        return Ok(());
    };
    let (leader, region) = proc.injector()?;
    let mut made = Vec::with_capacity(state.threads.len());
    let first = state.threads.first().cloned().unwrap_or_default();
    for saved in state.threads.iter().skip(1) {
        let mut flags = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
        let alone = state.leader_gone;
        if alone || saved.fd_table == first.fd_table {
            flags |= libc::CLONE_FILES;
        }
        if alone || saved.fs == first.fs {
            flags |= libc::CLONE_FS;
        }
        let args = Clone3 { flags: flags as u64, set_tid: vec![saved.tid], ..Clone3::default() };
        let mut thread = leader.clone3(&region, &args)?.map_err(|e| {
            Error::from(e).context(format!("making thread {} of process {}", saved.tid, state.pid))
        })?;
        let _ = thread.suspend_seccomp(true);
        made.push(thread);
    }
    proc.threads.extend(made);
    Ok(())
}

/// Sets up everything of process `index` that does not let anything happen yet. Its threads are there.
///
/// # Errors
/// What cannot be as it was. What does little harm becomes a warning.
pub fn finish(ctx: &mut Context, index: usize) -> Result<()> {
    let Some(state) = ctx.state.processes.get(index).cloned() else { return Ok(()) };
    let last_cap = last_capability(ctx);
    let mut warnings = Vec::new();
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut).filter(|p| !p.threads.is_empty())
    else {
        return Ok(());
    };
    let region = proc.region;
    let Some(leader) = proc.threads.first_mut() else { return Ok(()) };
    warnings.extend(process_wide(leader, &region, &state)?);
    let pid = leader.tid();
    for (n, saved) in state.threads.iter().enumerate() {
        let Some(tracee) = proc.threads.get_mut(n) else { continue };
        if n == 0 && state.leader_gone {
            continue;
        }
        // An init with a seccomp listener had its first filter before it was taken over.
        let there = tracee.seccomp_filters().map_or(0, |f| f.len());
        let (mut batch, mut setup) = (Batch::new(), Setup::default());
        setup.ordinary(&mut batch, saved);
        setup.filters(&mut batch, saved, &ctx.state, there);
        setup.creds(&mut batch, &saved.creds, last_cap);
        if n == 0 && (state.dumpable == 0 || state.dumpable == 1) {
            batch.call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), state.dumpable.into()]);
        }
        setup.after_creds(&mut batch, saved);
        let ran = batch.run(tracee, &region)?;
        let failed = |e: Error| e.context(format!("restoring thread {} of process {}", saved.tid, state.pid));
        warnings.extend(setup.check(&ran).map_err(failed)?);
    }
    write(ctx, pid, "oom_score_adj", &state.oom_score_adj.to_string(), &mut warnings);
    if let Some(mm) = state.mm.and_then(|mm| ctx.state.mms.get(mm as usize)) {
        let filter = format!("{:#x}", mm.coredump_filter);
        write(ctx, pid, "coredump_filter", &filter, &mut warnings);
    }
    let name =
        state.threads.first().map(|t| String::from_utf8_lossy(&t.comm).into_owned()).unwrap_or_default();
    warnings.into_iter().for_each(|w| ctx.warn(format!("process {} ({name}): {w}", state.pid)));
    Ok(())
}

/// The highest capability that this kernel knows.
fn last_capability(ctx: &Context) -> u64 {
    const OLDEST: u64 = 37;
    let text = ctx.procfs.read_path("sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(OLDEST)
}

fn write(ctx: &Context, pid: i32, name: &str, value: &str, warnings: &mut Vec<String>) {
    let path = format!("{pid}/{name}");
    if ctx.procfs.read(pid, name).is_ok_and(|now| now.trim() == value) {
        return;
    }
    let written = openat(ctx.procfs.root(), path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| nix::unistd::write(&file, value.as_bytes()));
    if let Err(e) = written {
        warnings.push(format!("{name} cannot be set to {value}: {e}"));
    }
}

/// What all threads of a process share.
fn process_wide(leader: &mut Tracee, region: &Region, state: &ProcessState) -> Result<Vec<String>> {
    let mut batch = Batch::new();
    let (mut needed, mut wished) = (Vec::new(), Vec::new());
    for (n, action) in state.sigactions.iter().enumerate() {
        let signal = n as i32 + 1;
        if signal == libc::SIGKILL || signal == libc::SIGSTOP || signal > 64 {
            continue;
        }
        let bytes: Vec<u8> = [action.handler, action.flags, action.restorer, action.mask]
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        let action = batch.data(&bytes);
        needed.push(batch.call(libc::SYS_rt_sigaction, [signal.into(), action, Arg::NULL, 8u64.into()]));
    }
    let prctl = |batch: &mut Batch, option: i32, value: u64| {
        batch.call(libc::SYS_prctl, [option.into(), value.into(), Arg::NULL, Arg::NULL, Arg::NULL])
    };
    needed.push(prctl(&mut batch, libc::PR_SET_CHILD_SUBREAPER, state.child_subreaper.into()));
    if state.thp_disabled {
        wished.push((prctl(&mut batch, libc::PR_SET_THP_DISABLE, 1), "turning off huge pages".to_owned()));
    }
    needed.push(batch.call(libc::SYS_personality, [state.personality.into()]));
    for bit in (0..32).filter(|b| state.membarrier & (1 << b) != 0) {
        let call = batch.call(libc::SYS_membarrier, [(1u64 << bit).into(), Arg::NULL, Arg::NULL]);
        wished.push((call, "registering for memory barriers".to_owned()));
    }
    for (resource, (soft, hard)) in state.rlimits.iter().enumerate() {
        let bytes: Vec<u8> = [soft, hard].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let limit = batch.data(&bytes);
        let call = batch.call(libc::SYS_prlimit64, [Arg::NULL, resource.into(), limit, Arg::NULL]);
        wished.push((call, format!("limit {resource} of {soft}, at most {hard},")));
    }
    let ran = batch.run(leader, region)?;
    for call in needed {
        ran.get(call)?;
    }
    let failed = wished.into_iter().filter_map(|(call, what)| {
        let e = ran.result(call).err()?;
        Some(format!("{what} cannot be set again: {e}"))
    });
    let mut warnings: Vec<String> = failed.collect();
    warnings.extend(make_timers(leader, region, &state.timers)?);
    Ok(warnings)
}

/// Makes POSIX timers with the ids that the program keeps, not armed yet.
fn make_timers(leader: &mut Tracee, region: &Region, timers: &[PosixTimer]) -> Result<Vec<String>> {
    if timers.is_empty() {
        return Ok(Vec::new());
    }
    let mut batch = Batch::new();
    let on = batch.call(
        libc::SYS_prctl,
        [PR_TIMER_CREATE_RESTORE_IDS.into(), 1u64.into(), Arg::NULL, Arg::NULL, Arg::NULL],
    );
    let by_id = batch.run(leader, region)?.result(on).is_ok();
    let mut sorted: Vec<&PosixTimer> = timers.iter().collect();
    sorted.sort_unstable_by_key(|t| t.id);
    for timer in sorted {
        // Kernels before 6.15 count ids up for each process; one that was given back is not given again at once.
        const TRIES: u32 = 100_000;
        for attempt in 0.. {
            let mut batch = Batch::new();
            let id = batch.data(&timer.id.to_ne_bytes());
            // struct sigevent: value, signal, how, thread.
            let mut event = timer.value.to_ne_bytes().to_vec();
            event.extend_from_slice(&timer.signal.to_ne_bytes());
            event.extend_from_slice(&timer.notify.to_ne_bytes());
            event.extend_from_slice(&timer.tid.to_ne_bytes());
            event.resize(64, 0);
            let event = batch.data(&event);
            let call = batch.must(libc::SYS_timer_create, [timer.clock.into(), event, id]);
            let ran = batch.run(leader, region)?;
            ran.get(call).map_err(|e| e.context(format!("making timer {}", timer.id)))?;
            let made = ran.int(id);
            if made == timer.id {
                break;
            }
            leader.syscall(libc::SYS_timer_delete, [made as u64, 0, 0, 0, 0, 0])??;
            if by_id || made > timer.id || attempt > TRIES {
                return Err(Error::failure(format!(
                    "timer {} cannot be made: the kernel made it {made}",
                    timer.id
                )));
            }
        }
    }
    if by_id {
        leader.syscall(libc::SYS_prctl, [PR_TIMER_CREATE_RESTORE_IDS as u64, 0, 0, 0, 0, 0])??;
    }
    Ok(Vec::new())
}

/// Signals that wait, and registers: after this, the process must make no more calls but for [`arm`].
///
/// # Errors
/// A queue is full (RLIMIT_SIGPENDING), or registers are not taken.
pub fn signals(ctx: &mut Context, index: usize) -> Result<()> {
    let Some(state) = ctx.state.processes.get(index).cloned() else { return Ok(()) };
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut) else { return Ok(()) };
    let region = proc.region;
    for (n, (tracee, saved)) in proc.threads.iter_mut().zip(&state.threads).enumerate() {
        let mut batch = Batch::new();
        let mut calls = Vec::new();
        if n == 0 {
            forget_children(&mut batch);
            calls.extend(thread::queue(&mut batch, state.pid, None, &state.pending));
        }
        calls.extend(thread::queue(&mut batch, state.pid, Some(saved.tid), &saved.pending));
        let ran = batch.run(tracee, &region)?;
        for call in calls {
            ran.get(call).map_err(|e| e.context(format!("queueing a signal of process {}", state.pid)))?;
        }
    }
    Ok(())
}

/// Takes the SIGCHLD away that the making of children and the end of helpers has left.
fn forget_children(batch: &mut Batch) {
    let set = batch.data(&(1u64 << (libc::SIGCHLD - 1)).to_ne_bytes());
    let now = batch.space(16);
    for _ in 0..2 {
        batch.call(libc::SYS_rt_sigtimedwait, [set, Arg::NULL, now, 8u64.into()]);
    }
}

/// Arms timers, takes the region away, sets registers. Nothing else may be asked of the process afterwards.
fn last(ctx: &mut Context, index: usize) -> Result<()> {
    let Some(state) = ctx.state.processes.get(index).cloned() else { return Ok(()) };
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut).filter(|p| !p.threads.is_empty())
    else {
        return Ok(());
    };
    let (leader, region) = proc.injector()?;
    let mut batch = Batch::new();
    for (which, timer) in state.itimers.iter().enumerate().filter(|(_, t)| t.value_us != 0) {
        let words = [
            timer.interval_us / 1_000_000,
            timer.interval_us % 1_000_000,
            timer.value_us / 1_000_000,
            timer.value_us % 1_000_000,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let value = batch.data(&bytes);
        batch.call(libc::SYS_setitimer, [which.into(), value, Arg::NULL]);
    }
    for timer in state.timers.iter().filter(|t| t.remaining_ns != 0) {
        const NANOS: u64 = 1_000_000_000;
        let words = [
            timer.interval_ns / NANOS,
            timer.interval_ns % NANOS,
            timer.remaining_ns / NANOS,
            timer.remaining_ns % NANOS,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let value = batch.data(&bytes);
        batch.call(libc::SYS_timer_settime, [timer.id.into(), Arg::NULL, value, Arg::NULL]);
    }
    batch
        .run(leader, &region)?
        .check()
        .map_err(|e| e.context(format!("arming timers of process {}", state.pid)))?;
    let shared = state.shares_mm_with_parent;
    if state.leader_gone {
        // The first thread ends as it had ended; the process goes on without it.
        let mut leader = proc.threads.remove(0);
        match leader.syscall(libc::SYS_exit, [0; 6]) {
            Err(e) if e.kind != Kind::NoSuchEntity => return Err(e),
            _ => {}
        }
    }
    let region = proc.region;
    if let (false, Some(first)) = (shared, proc.threads.first_mut()) {
        region.unmap(first)?;
    }
    let skip = usize::from(state.leader_gone);
    for (tracee, saved) in proc.threads.iter_mut().zip(state.threads.iter().skip(skip)) {
        thread::registers(tracee, saved)?;
    }
    Ok(())
}

/// Lets everything go. Children are ready before their parents, so that no parent waits for one that is not there.
///
/// # Errors
/// A process has died meanwhile, or the kernel does not take its registers.
pub fn release(ctx: &mut Context) -> Result<()> {
    let count = ctx.procs.len();
    // Those that share their parent's memory must not lose the region before they are done with it.
    for index in (0..count).rev() {
        last(ctx, index)?;
    }
    for index in (0..count).rev() {
        let life = ctx.state.processes.get(index).map(|p| p.life);
        let Some(proc) = ctx.procs.get_mut(index).and_then(Option::take) else { continue };
        if let Some(Life::Stopped { signal }) = life {
            // It waits for whoever detaches: no instruction of the program is run before the stop.
            let pid = nix::unistd::Pid::from_raw(proc.pid);
            let signal =
                nix::sys::signal::Signal::try_from(signal).unwrap_or(nix::sys::signal::Signal::SIGSTOP);
            match nix::sys::signal::kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(Error::from(e).context(format!("stopping process {}", proc.ns_pid))),
            }
        }
        for tracee in proc.threads {
            tracee.detach(0)?;
        }
    }
    Ok(())
}
