//! Which processes there are: all of them found and stopped, with their places in the tree.
#![forbid(unsafe_code)]

use super::context::{Context, MemoryFacts, Proc};
use super::namespaces;
use super::status::{Ending, Status};
use crate::checkpoint::remote::task_list::{self, Stopped};
use crate::checkpoint::remote::{Options, Tracee};
use crate::checkpoint::state::{Life, Refusal};
use crate::procfs::{ProcFs, Stat};
use crate::sys::task;
use airlock_wire::error::{Error, Kind, Result};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a thread may take to stop; what waits for a slow disk is not interrupted earlier.
const STOP: Duration = Duration::from_secs(10);

/// How often stopping is tried again because a program was just being started: vfork(2) keeps its caller from stopping
/// until the child executes the program or exits, and the child must not be stopped before that.
const VFORK_TRIES: u32 = 50;
const VFORK_PATIENCE: Duration = Duration::from_millis(100);

/// Finds and stops all processes of the containers and fills [`Context::procs`]. `begun` is called (again, if stopping
/// has to start over) when all threads have been told to stop: the moment to thaw paused containers.
///
/// Processes of exec sessions are left alone, with a warning, unless their container's init adopts them. Afterwards [`Context::refusals`] may name what is in the
/// way; processes that could not be stopped are not in `procs` then.
///
/// # Errors
/// When processes cannot be listed, or one does not stop within 10 s. What was stopped is let go.
pub fn discover(ctx: &mut Context, mut begun: impl FnMut() -> Result<()>) -> Result<()> {
    let stopped = stop_all(ctx, &mut begun)?;
    let mut found = describe(ctx, stopped)?;
    let order = parents_first(ctx, &found);
    let index: HashMap<i32, usize> = order.iter().enumerate().map(|(i, pid)| (*pid, i)).collect();
    for pid in order {
        if let Some((mut proc, ppid)) = found.remove(&pid) {
            let is_init = ctx.order.containers.iter().any(|c| c.init == pid);
            proc.parent = if is_init { None } else { index.get(&ppid).copied() };
            ctx.procs.push(proc);
        }
    }
    namespaces::check(ctx)?;
    sharing(ctx)?;
    exec_sessions(ctx);
    Ok(())
}

fn stop_all(ctx: &mut Context, begun: &mut impl FnMut() -> Result<()>) -> Result<Stopped> {
    let roots: Vec<i32> = ctx
        .order
        .containers
        .iter()
        .flat_map(|c| std::iter::once(c.init).chain(c.adopted.iter().copied()))
        .collect();
    let deadline = Instant::now() + STOP;
    let (mut patience, mut vforks) = (VFORK_PATIENCE, 0);
    loop {
        let pids = || task_list::below(&ctx.procfs, &roots);
        ctx.sleepers.look(&ctx.procfs, &pids()?);
        let until = Instant::now() + patience;
        let attempt = task_list::seize_all(&ctx.procfs, pids, Options::default(), until, &mut *begun);
        let mut stopped = match attempt {
            // New ones were made all the time, or a busy machine took its time.
            Err(e) if e.kind == Kind::Timeout && Instant::now() < deadline => {
                patience *= 2;
                continue;
            }
            other => other?,
        };
        let (late, refused): (Vec<_>, Vec<_>) =
            std::mem::take(&mut stopped.failed).into_iter().partition(|(_, _, e)| e.kind == Kind::Timeout);
        let Some((_, _, first)) = late.first() else {
            for (pid, _, error) in refused {
                refuse(ctx, pid, "traced process", error.to_string());
            }
            return Ok(stopped);
        };
        match late.iter().find(|(pid, _, _)| has_memory_of_a_child(&ctx.procfs, *pid)) {
            Some((pid, _, error)) if vforks >= VFORK_TRIES => {
                refuse(ctx, *pid, "vfork", error.to_string());
                return Ok(stopped);
            }
            Some(_) => vforks += 1,
            None if Instant::now() >= deadline => return Err(first.clone()),
            None => patience = deadline.saturating_duration_since(Instant::now()).max(VFORK_PATIENCE),
        }
        // Everything goes on for a moment, and is stopped anew.
        drop(stopped);
        std::thread::yield_now();
    }
}

/// True when a child of the process uses its memory, as between vfork(2) and execve(2).
fn has_memory_of_a_child(procfs: &ProcFs, pid: i32) -> bool {
    let children = |pid: i32| {
        let of_thread =
            |tid: i32| procfs.read_path(&format!("{pid}/task/{tid}/children")).unwrap_or_default();
        let all: String = procfs.threads(pid).unwrap_or_default().into_iter().map(of_thread).collect();
        all.split_ascii_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<i32>>()
    };
    children(pid).into_iter().any(|child| task::compare_memory(pid, child) == Ok(Ordering::Equal))
}

/// A refusal about a process that is not (yet) in the list.
fn refuse(ctx: &mut Context, pid: i32, kind: &str, what: String) {
    let status = ctx.procfs.read(pid, "status").ok().and_then(|t| Status::parse(&t).ok());
    ctx.refusals.push(Refusal {
        cid: String::new(),
        pid: status.map_or(pid, |s| s.pid()),
        comm: ctx.procfs.stat(pid).map(|s| s.comm).unwrap_or_default(),
        fd: None,
        kind: kind.to_owned(),
        what,
    });
}

/// Processes by pid, each with its parent's pid.
type Found = BTreeMap<i32, (Proc, i32)>;

fn describe(ctx: &mut Context, stopped: Stopped) -> Result<Found> {
    let mut threads: BTreeMap<i32, Vec<Tracee>> = BTreeMap::new();
    for (pid, tracee) in stopped.threads {
        threads.entry(pid).or_default().push(tracee);
    }
    for (pid, tid) in stopped.zombies {
        // A leader that has ended while other threads live on, or a zombie. Other threads leave nothing behind.
        if pid == tid {
            threads.entry(pid).or_default();
        }
    }
    let mut found = Found::new();
    for (pid, mut tracees) in threads {
        tracees.sort_by_key(|t| (t.tid() != pid, t.tid()));
        let stat = ctx.procfs.read(pid, "stat")?;
        let unreadable = || Error::failure(format!("/proc/{pid}/stat cannot be parsed"));
        let (stat, ending) = Stat::parse(&stat).zip(Ending::parse(&stat)).ok_or_else(unreadable)?;
        let mut statuses = Vec::with_capacity(tracees.len().max(1));
        for tracee in &tracees {
            statuses.push(Status::parse(&ctx.procfs.read(tracee.tid(), "status")?)?);
        }
        let life = match tracees.iter().find_map(Tracee::group_stop) {
            _ if tracees.is_empty() => {
                statuses.push(Status::parse(&ctx.procfs.read(pid, "status")?)?);
                Life::Zombie { status: ending.exit_code }
            }
            Some(signal) => Life::Stopped { signal },
            None => Life::Alive,
        };
        let proc = Proc {
            pid,
            ns_pid: statuses.first().map_or(0, Status::pid),
            container: 0,
            comm: stat.comm,
            parent: None,
            life,
            shares_mm_with: None,
            shares_sighand: false,
            leader_gone: tracees.first().is_some_and(|t| t.tid() != pid),
            ns_tids: statuses.iter().map(Status::tid).collect(),
            threads: tracees,
            statuses,
            region: None,
            memory: MemoryFacts::default(),
        };
        let adopting = ctx.order.containers.iter().find(|c| c.adopted.contains(&pid));
        found.insert(pid, (proc, adopting.map_or(stat.ppid, |c| c.init)));
    }
    Ok(found)
}

/// The pids in an order in which parents are before their children: first the inits, in the order of the containers.
fn parents_first(ctx: &Context, found: &Found) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, (_, ppid)) in found {
        children.entry(*ppid).or_default().push(*pid);
    }
    let inits: Vec<i32> = ctx.order.containers.iter().map(|c| c.init).collect();
    let mut order: Vec<i32> = inits.iter().copied().filter(|pid| found.contains_key(pid)).collect();
    let mut queue: VecDeque<i32> = order.iter().copied().collect();
    while let Some(pid) = queue.pop_front() {
        for child in children.get(&pid).into_iter().flatten().filter(|c| !inits.contains(c)) {
            order.push(*child);
            queue.push_back(*child);
        }
    }
    // What hangs below a process that could not be stopped.
    let known: std::collections::BTreeSet<i32> = order.iter().copied().collect();
    order.extend(found.keys().filter(|pid| !known.contains(pid)));
    order
}

/// Finds out which processes share an address space with another.
fn sharing(ctx: &mut Context) -> Result<()> {
    let mut spaces: Vec<usize> = Vec::new();
    for i in 0..ctx.procs.len() {
        let Some(task) = ctx.procs.get(i).filter(|p| !p.is_zombie()).map(Proc::task) else { continue };
        let mut failure = None;
        let place = spaces.binary_search_by(|other| {
            let other = ctx.procs.get(*other).map_or(0, Proc::task);
            task::compare_memory(other, task).unwrap_or_else(|e| {
                failure = Some(e);
                Ordering::Less
            })
        });
        match failure {
            // Without kcmp(2) nobody can tell; sharing without threads is rare.
            Some(nix::errno::Errno::ENOSYS) => return Ok(()),
            Some(e) => return Err(Error::from(e).context(format!("comparing the memory of process {task}"))),
            None => {}
        }
        match place {
            Err(place) => spaces.insert(place, i),
            Ok(place) => {
                let first = spaces.get(place).copied().unwrap_or(i);
                share(ctx, first, i);
            }
        }
    }
    Ok(())
}

fn share(ctx: &mut Context, first: usize, i: usize) {
    let (Some(one), Some(other)) = (ctx.procs.get(first), ctx.procs.get(i)) else { return };
    let (task, first_pid) = (other.task(), one.ns_pid);
    let parent = other.parent.and_then(|p| ctx.procs.get(p)).filter(|p| !p.is_zombie()).map(Proc::task);
    // Made by one clone(2) each, all of them have the same memory as their parents, up to the first.
    let with_parent = parent.filter(|p| task::compare_memory(*p, task) == Ok(Ordering::Equal));
    let sighand = with_parent.is_some_and(|p| task::compare_sighand(p, task) == Ok(Ordering::Equal));
    if with_parent.is_none() {
        let what = format!("it uses the memory of process {first_pid}, which is not its parent");
        ctx.refuse(i, None, "shared address space", what);
    }
    if let Some(proc) = ctx.procs.get_mut(i) {
        proc.shares_mm_with = Some(first);
        proc.shares_sighand = sighand;
    }
}

fn exec_sessions(ctx: &mut Context) {
    let mut sessions = Vec::new();
    for container in &ctx.order.containers {
        for root in &container.execs {
            let Ok(stat) = ctx.procfs.stat(*root) else { continue };
            sessions.push(format!(
                "the exec session of {:?} (pid {root} in the sandbox) in container {:?} is not saved; it ends with the container, \
                 and will not be there after a restore",
                stat.comm, container.cid
            ));
        }
    }
    sessions.into_iter().for_each(|text| ctx.warn(text));
}
