//! Processes, once they have their memory and descriptors: threads, signals, timers, limits, privileges; and letting all
//! of them go at once.
#![forbid(unsafe_code)]

use super::bounds::{Bounds, CAP_SYS_RESOURCE};
use super::context::{Context, Means};
use super::thread::{self, Setup};
use super::{creds, sched, stopped, timers, waits};
use crate::checkpoint::remote::{Arg, Batch, Clone3, Tracee};
use crate::checkpoint::state::{Id, ProcessState, SandboxState, ThreadState};
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;

/// Makes everything of all processes that does not let anything happen yet. Their memory and descriptors are there.
///
/// # Errors
/// What cannot be as it was, or must not be. What does little harm becomes a warning.
pub fn complete(ctx: &mut Context) -> Result<()> {
    for index in 0..ctx.procs.len() {
        make_threads(ctx, index)?;
    }
    stopped::stop(ctx)?;
    let mut bounds = BTreeMap::new();
    for container in &ctx.order.containers {
        let failed = |e: Error| e.context(format!("container {:?}", container.cid));
        bounds.insert(container.image, Bounds::of(&container.spec).map_err(failed)?);
    }
    for index in 0..ctx.procs.len() {
        finish(ctx, index, &bounds)?;
    }
    Ok(())
}

/// Makes the threads of process `index` besides its leader.
///
/// # Errors
/// A thread id is taken, or the limits of the container allow no more.
pub fn make_threads(ctx: &mut Context, index: usize) -> Result<()> {
    let Some(state) = ctx.state.processes.get(index) else { return Ok(()) };
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut) else { return Ok(()) };
    let region = proc.region;
    let mut unlike = false;
    for (n, saved) in state.threads.iter().enumerate().skip(proc.threads.len().max(1)) {
        let others = || state.threads.iter().enumerate().take(n);
        let files = |t: &ThreadState| t.fd_table == saved.fd_table;
        let fs = |t: &ThreadState| t.fs == saved.fs;
        let twin =
            others().find(|(_, t)| files(t) && fs(t)).or_else(|| others().find(|(_, t)| files(t) || fs(t)));
        let (maker, shares_files, shares_fs) = twin.map_or((0, false, false), |(n, t)| (n, files(t), fs(t)));
        // Nobody can share one with one thread and another with another, unless it was unshared in that order.
        unlike |= others().any(|(_, t)| (files(t) && !shares_files) || (fs(t) && !shares_fs));
        let mut flags = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
        flags |= if shares_files { libc::CLONE_FILES } else { 0 };
        flags |= if shares_fs { libc::CLONE_FS } else { 0 };
        let args = Clone3 { flags: flags as u64, set_tid: vec![saved.tid], ..Clone3::default() };
        let Some(maker) = proc.threads.get_mut(maker) else { return Ok(()) };
        let thread = maker.clone3(&region, &args)?.map_err(|e| {
            let hint = match e {
                Errno::EEXIST => " (another thread has that id)",
                Errno::EAGAIN => " (is the pids limit reached?)",
                _ => "",
            };
            Error::from(e).context(format!("making thread {} of process {}{hint}", saved.tid, state.pid))
        })?;
        proc.threads.push(thread);
    }
    let pid = state.pid;
    if unlike {
        ctx.warn(format!(
            "threads of process {pid} shared descriptors or directories in a way that is not kept"
        ));
    }
    Ok(())
}

fn finish(ctx: &mut Context, index: usize, bounds: &BTreeMap<Id, Bounds>) -> Result<()> {
    let Some(saved) = ctx.state.processes.get(index) else { return Ok(()) };
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut).filter(|p| !p.threads.is_empty())
    else {
        return Ok(());
    };
    let none = Bounds::default();
    let finishing = Finishing {
        saved,
        state: &ctx.state,
        bounds: bounds.get(&proc.container).unwrap_or(&none),
        means: &ctx.means,
        procfs: &ctx.procfs,
        last_cap: last_capability(&ctx.procfs),
    };
    let failed = |e: Error| e.context(format!("restoring process {}", saved.pid));
    if ctx.order.in_userns {
        // Once it has changed its user, it cannot be looked at any more.
        for tracee in &proc.threads {
            tracee.mem().descriptor().map_err(failed)?;
        }
    }
    let mut warnings = finishing.outside(&proc.threads);
    warnings.extend(finishing.inside(proc).map_err(failed)?);
    let name =
        saved.threads.first().map(|t| String::from_utf8_lossy(&t.comm).into_owned()).unwrap_or_default();
    let pid = saved.pid;
    warnings.into_iter().for_each(|w| ctx.warn(format!("process {pid} ({name:?}): {w}")));
    Ok(())
}

/// The highest capability that this kernel knows.
fn last_capability(procfs: &ProcFs) -> u64 {
    const OLDEST: u64 = 40;
    let text = procfs.read_path("sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(OLDEST).min(63)
}

/// A process to be finished, and what with.
struct Finishing<'a> {
    saved: &'a ProcessState,
    state: &'a SandboxState,
    bounds: &'a Bounds,
    means: &'a Means,
    procfs: &'a ProcFs,
    last_cap: u64,
}

impl Finishing<'_> {
    /// What is set from outside.
    fn outside(&self, threads: &[Tracee]) -> Vec<String> {
        let Some(pid) = threads.first().map(Tracee::tid) else { return Vec::new() };
        let mut warnings = sched::limits(pid, &self.saved.rlimits, self.bounds);
        for (tracee, saved) in
            threads.iter().zip(&self.saved.threads).skip(usize::from(self.saved.leader_gone))
        {
            let cpus = self.state.machine.cpus;
            warnings.extend(sched::restore(tracee.tid(), &saved.sched, &self.means.cpus, cpus, self.bounds));
        }
        warnings.extend(self.oom_score(pid));
        if let Some(mm) = self.saved.mm.and_then(|mm| self.state.mms.get(mm as usize)) {
            let filter = format!("{:#x}", mm.coredump_filter);
            warnings.extend(self.write(pid, "coredump_filter", &filter));
        }
        warnings
    }

    fn oom_score(&self, pid: i32) -> Option<String> {
        let now: i32 = self.procfs.read(pid, "oom_score_adj").ok()?.trim().parse().ok()?;
        let wanted = self.saved.oom_score_adj;
        if wanted < now && !self.bounds.has(CAP_SYS_RESOURCE) {
            return Some(format!("its oom_score_adj stays {now}; {wanted} would take CAP_SYS_RESOURCE"));
        }
        if wanted == now { None } else { self.write(pid, "oom_score_adj", &wanted.to_string()) }
    }

    fn write(&self, pid: i32, name: &str, value: &str) -> Option<String> {
        let path = format!("{pid}/{name}");
        openat(self.procfs.root(), path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .and_then(|file| nix::unistd::write(&file, value.as_bytes()))
            .err()
            .map(|e| format!("{name} cannot be set to {value}: {e}"))
    }

    /// What the threads set up themselves. Those of the process come first, since setting an action drops signals;
    /// the leader's privileges go last, because changing any thread's makes the process undumpable.
    fn inside(&self, proc: &mut super::context::Proc) -> Result<Vec<String>> {
        let region = proc.region;
        let mut warnings = Vec::new();
        let Some((leader, others)) = proc.threads.split_first_mut() else { return Ok(warnings) };
        let (mut batch, mut setup) = (Batch::new(), Setup::default());
        self.process(&mut batch, &mut setup);
        if !others.is_empty() || !self.saved.timers.is_empty() {
            let ran = std::mem::take(&mut batch).run(leader, &region)?;
            warnings.extend(std::mem::take(&mut setup).check(&ran)?);
            warnings.extend(timers::make(leader, &region, &self.saved.timers, self.bounds)?);
        }
        for (tracee, saved) in others.iter_mut().zip(self.saved.threads.iter().skip(1)) {
            let (mut batch, mut setup) = (Batch::new(), Setup::default());
            warnings.extend(self.thread(&mut batch, &mut setup, saved)?);
            setup.last(&mut batch, saved);
            warnings.extend(setup.check(&batch.run(tracee, &region)?)?);
        }
        let Some(saved) = self.saved.threads.first() else { return Ok(warnings) };
        setup.pending(&mut batch, self.saved.pid, None, &self.saved.pending);
        if self.saved.leader_gone {
            let name = batch.text(saved.comm.get(..15).unwrap_or(&saved.comm));
            setup.must(batch.call(libc::SYS_prctl, [libc::PR_SET_NAME.into(), name]));
            let (creds, _) = creds::allowed(&saved.creds, self.bounds)?;
            setup.creds(&mut batch, &creds, self.means, self.last_cap);
        } else {
            warnings.extend(self.thread(&mut batch, &mut setup, saved)?);
        }
        // 2 is what the kernel makes of programs that have changed their user; nobody can ask for it.
        let dumpable = u64::from(self.saved.dumpable == 1);
        let args = [libc::PR_SET_DUMPABLE.into(), dumpable.into(), Arg::NULL, Arg::NULL, Arg::NULL];
        setup.must(batch.call(libc::SYS_prctl, args));
        setup.last(&mut batch, saved);
        warnings.extend(setup.check(&batch.run(leader, &region)?)?);
        Ok(warnings)
    }

    /// Everything of one thread up to its privileges.
    fn thread(&self, batch: &mut Batch, setup: &mut Setup, saved: &ThreadState) -> Result<Vec<String>> {
        let (creds, warning) = creds::allowed(&saved.creds, self.bounds)?;
        setup.ordinary(batch, saved, self.bounds);
        setup.pending(batch, self.saved.pid, Some(saved.tid), &saved.pending);
        // Without no_new_privs a filter takes privileges. Where it cannot be suspended, what follows has to pass it:
        // calls that every profile allows which was installed this way before.
        setup.filters(batch, saved, self.state, self.bounds, self.means.filters)?;
        setup.creds(batch, &creds, self.means, self.last_cap);
        Ok(warning.into_iter().collect())
    }

    /// What all threads share.
    fn process(&self, batch: &mut Batch, setup: &mut Setup) {
        const SIG_IGN: u64 = 1;
        let saved = self.saved;
        let mut action = |batch: &mut Batch, signal: i32, words: [u64; 4]| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            let action = batch.data(&bytes);
            let args = [signal.into(), action, Arg::NULL, 8u64.into()];
            setup.must(batch.call(libc::SYS_rt_sigaction, args));
        };
        // Ends of helpers and zombies, and stops, were told to the parents once more: being ignored takes that away.
        action(batch, libc::SIGCHLD, [SIG_IGN, 0, 0, 0]);
        for (signal, a) in (1..=64).zip(&saved.sigactions) {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                action(batch, signal, [a.handler, a.flags, a.restorer, a.mask]);
            }
        }
        let prctl = |batch: &mut Batch, option: i32, a: u64, b: u64| {
            batch.call(libc::SYS_prctl, [option.into(), a.into(), b.into(), Arg::NULL, Arg::NULL])
        };
        setup.must(prctl(batch, libc::PR_SET_CHILD_SUBREAPER, saved.child_subreaper.into(), 0));
        if saved.thp_disabled {
            const THP_FLAGS: u64 = 2;
            let option = libc::PR_SET_THP_DISABLE;
            let flags = saved.threads.iter().flat_map(|t| &t.prctls).find(|(o, _)| *o == option);
            let flags = flags.map_or(0, |(_, value)| value & THP_FLAGS);
            setup.wish(prctl(batch, option, 1, flags), "doing without huge pages");
        }
        setup.must(batch.call(libc::SYS_personality, [saved.personality.into()]));
        const REGISTRATIONS: [u64; 4] = [1 << 2, 1 << 4, 1 << 6, 1 << 8];
        for command in REGISTRATIONS.into_iter().filter(|bit| saved.membarrier & bit != 0) {
            let call = batch.call(libc::SYS_membarrier, [command.into(), Arg::NULL, Arg::NULL]);
            setup.wish(call, "being registered for memory barriers");
        }
    }
}

/// Lets everything go. Afterwards there are no processes in the context any more.
///
/// # Errors
/// A process has died meanwhile, or the kernel does not take its registers. Everything is dead then.
pub fn release(ctx: &mut Context) -> Result<()> {
    for index in 0..ctx.procs.len() {
        arm(ctx, index)?;
    }
    let mut procs: Vec<_> = std::mem::take(&mut ctx.procs).into_iter().flatten().collect();
    let mut returned = Vec::new();
    for proc in &mut procs {
        let Some(saved) = ctx.state.processes.get(proc.index) else { continue };
        let region = proc.region;
        let threads = saved.threads.iter().skip(usize::from(saved.leader_gone));
        for (tracee, thread) in proc.threads.iter_mut().zip(threads) {
            returned.push(waits::begin(tracee, &region, thread)?);
        }
    }
    let mut returned = returned.into_iter();
    for proc in procs.iter_mut().filter(|p| !p.threads.is_empty()) {
        let Some(saved) = ctx.state.processes.get(proc.index) else { continue };
        if !saved.shares_mm_with_parent {
            let (tracee, region) = proc.injector()?;
            region.unmap(tracee)?;
        }
    }
    for proc in &mut procs {
        let Some(saved) = ctx.state.processes.get(proc.index) else { continue };
        let threads = saved.threads.iter().skip(usize::from(saved.leader_gone));
        for (tracee, thread) in proc.threads.iter_mut().zip(threads) {
            thread::registers(tracee, thread, returned.next().flatten())?;
        }
    }
    // From here on nothing can fail but by a kill from outside, which the loader hears of by itself.
    for tracee in procs.into_iter().flat_map(|p| p.threads) {
        match tracee.detach(0) {
            Err(e) if e.kind != Kind::NoSuchEntity => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Starts the timers, and ends the first thread if it had ended.
fn arm(ctx: &mut Context, index: usize) -> Result<()> {
    let Some(saved) = ctx.state.processes.get(index) else { return Ok(()) };
    let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut).filter(|p| !p.threads.is_empty())
    else {
        return Ok(());
    };
    let (leader, region) = proc.injector()?;
    let mut batch = Batch::new();
    timers::arm(&mut batch, saved);
    if !batch.is_empty() {
        let failed = |e: Error| e.context(format!("starting timers of process {}", saved.pid));
        batch.run(leader, &region)?.check().map_err(failed)?;
    }
    if saved.leader_gone && proc.threads.len() > 1 {
        let mut leader = proc.threads.remove(0);
        match leader.syscall(libc::SYS_exit, [0; 6]) {
            Err(e) if e.kind == Kind::NoSuchEntity => {}
            Err(e) => return Err(e),
            Ok(_) => {
                return Err(Error::failure(format!("the first thread of process {} goes on", saved.pid)));
            }
        }
    }
    Ok(())
}
