//! The process tree: each waiting init makes its container's processes, which make each other.
//!
//! Afterwards every process is there, stopped, with its parent, session and process group; zombies have ended. All of
//! them have a copy of the waiting init's memory and, of descriptors, the channel alone.
#![forbid(unsafe_code)]

use super::context::{Context, Means, Proc, Stub};
use super::plan::{self, Node, Step};
use crate::checkpoint::dump::status::Status;
use crate::checkpoint::remote::fdpass::Link;
use crate::checkpoint::remote::{Arg, Batch, Clone3, Region, Tracee};
use crate::checkpoint::state::{Id, Life, ProcessState, ThreadState};
use crate::sys::{process, task};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};

const SS_DISABLE: i32 = 2;
const RSEQ_FLAG_UNREGISTER: u64 = 1;

/// Makes all processes of the containers in [`Context::stubs`], which it takes, and fills [`Context::procs`].
///
/// # Errors
/// An init does not have the pid that the image wants; a pid is taken; the limits of the container do not allow as many
/// processes; the image contradicts itself.
pub fn create(ctx: &mut Context) -> Result<()> {
    ctx.procs = std::iter::repeat_with(|| None).take(ctx.state.processes.len()).collect();
    for process in ctx.state.processes.iter_mut().filter(|p| p.leader_gone) {
        // A first thread that has ended has no descriptors and directories; until then it shares those of the next.
        if let [first, second, ..] = process.threads.as_mut_slice() {
            (first.fd_table, first.fs) = (second.fd_table, second.fs);
        }
    }
    // Containers by pid namespace: those without one of their own are in the root container's.
    let mut groups: BTreeMap<Option<Id>, Vec<Id>> = BTreeMap::new();
    for container in &ctx.order.containers {
        let key = container.own_pid_namespace.then_some(container.image);
        let root = container.image == 0;
        groups.entry(if root { None } else { key }).or_default().push(container.image);
    }
    for containers in groups.values() {
        let mut tree = Tree::begin(ctx, containers)?;
        let (nodes, taken) = tree.nodes(ctx, containers)?;
        for step in plan::plan(&nodes, &taken)? {
            tree.carry_out(ctx, &step)?;
        }
        tree.end_zombies(ctx)?;
        tree.hand_over(ctx);
    }
    Ok(())
}

/// A process while the tree is made.
struct Live {
    tracee: Tracee,
    region: Region,
    link: Link,
    container: Id,
}

/// The processes of one pid namespace, by pid in it.
struct Tree {
    live: BTreeMap<i32, Live>,
    /// Index in the state, by pid; helpers have none.
    index: BTreeMap<i32, usize>,
}

impl Tree {
    /// Takes the waiting inits.
    fn begin(ctx: &mut Context, containers: &[Id]) -> Result<Self> {
        let mut live = BTreeMap::new();
        for container in containers {
            let stub = ctx.stubs.get_mut(*container as usize).and_then(Option::take);
            let Some(Stub { mut tracee, region, link, .. }) = stub else {
                return Err(Error::failure(format!("the init of container {container} was not taken over")));
            };
            let failed = |e: Error| e.context(format!("preparing the init of container {container}"));
            prepare(&mut tracee, &region, ctx.order.in_userns).map_err(failed)?;
            let status = Status::parse(&ctx.procfs.read(tracee.tid(), "status")?)?;
            if ctx.means.cpus.is_empty() {
                ctx.means = means(&tracee, &status).map_err(failed)?;
            }
            live.insert(status.pid(), Live { tracee, region, link, container: *container });
        }
        Ok(Self { live, index: BTreeMap::new() })
    }

    /// What the plan is made for, and numbers that are in use besides.
    fn nodes(&mut self, ctx: &Context, containers: &[Id]) -> Result<(Vec<Node>, BTreeSet<i32>)> {
        let mut nodes = Vec::new();
        let mut taken = BTreeSet::new();
        let saved = ctx.state.processes.iter().enumerate().filter(|(_, p)| containers.contains(&p.container));
        for (index, process) in saved {
            if process.ppid == 0
                && self.live.get(&process.pid).is_none_or(|l| l.container != process.container)
            {
                let found = self.live.iter().find(|(_, l)| l.container == process.container);
                return Err(Error::failure(format!(
                    "the first process of container {} has pid {} here and {} in the image",
                    process.container,
                    found.map_or(0, |(pid, _)| *pid),
                    process.pid
                )));
            }
            let parent = self.index.get(&process.ppid).and_then(|i| ctx.state.processes.get(*i));
            nodes.push(Node {
                pid: process.pid,
                ppid: process.ppid,
                pgid: process.pgid,
                sid: process.sid,
                container: process.container,
                by_parent: parent.is_some_and(|p| sharing(process, p) != 0),
                exit_signal: process.exit_signal,
            });
            taken.extend(process.threads.iter().map(|t| t.tid));
            self.index.insert(process.pid, index);
        }
        match self.live.keys().find(|pid| !self.index.contains_key(pid)) {
            Some(pid) => Err(Error::invalid_argument(format!(
                "the image has no first process for a container whose init waits as pid {pid}"
            ))),
            None => Ok((nodes, taken)),
        }
    }

    fn saved<'a>(&self, ctx: &'a Context, pid: i32) -> Option<&'a ProcessState> {
        ctx.state.processes.get(*self.index.get(&pid)?)
    }

    fn live(&mut self, pid: i32) -> Result<&mut Live> {
        self.live.get_mut(&pid).ok_or_else(|| Error::failure(format!("process {pid} was not made")))
    }

    fn carry_out(&mut self, ctx: &Context, step: &Step) -> Result<()> {
        match *step {
            Step::Fork { by, pid, sibling, exit_signal } => self.fork(ctx, by, pid, sibling, exit_signal),
            Step::Setsid(pid) => self.call(pid, "setsid", libc::SYS_setsid, [0, 0]),
            Step::Setpgid { pid, pgid } => self.call(pid, "setpgid", libc::SYS_setpgid, [0, pgid as u64]),
            Step::Subreaper(pid, on) => {
                let args = [libc::PR_SET_CHILD_SUBREAPER as u64, u64::from(on)];
                self.call(pid, "PR_SET_CHILD_SUBREAPER", libc::SYS_prctl, args)
            }
            Step::End { pid, parent } => {
                let Some(helper) = self.live.remove(&pid) else { return Ok(()) };
                helper.tracee.end_as(&helper.region, 0)?;
                let args = [pid as u64, 0, (libc::WNOHANG | libc::__WALL) as u64, 0, 0, 0];
                match self.live(parent)?.tracee.syscall(libc::SYS_wait4, args)? {
                    Ok(reaped) if reaped == pid as u64 => Ok(()),
                    other => {
                        Err(Error::failure(format!("process {parent} cannot reap helper {pid}: {other:?}")))
                    }
                }
            }
        }
    }

    fn call(&mut self, pid: i32, name: &str, nr: i64, [a, b]: [u64; 2]) -> Result<()> {
        let result = self.live(pid)?.tracee.syscall(nr, [a, b, 0, 0, 0, 0])?;
        result.map(drop).map_err(|e| Error::from(e).context(format!("{name} in process {pid}")))
    }

    fn fork(&mut self, ctx: &Context, by: i32, pid: i32, sibling: bool, exit_signal: i32) -> Result<()> {
        let shared = match (self.saved(ctx, pid), self.saved(ctx, by)) {
            (Some(child), Some(parent)) if !sibling && child.ppid == by => sharing(child, parent),
            _ => 0,
        };
        let maker = self.live(by)?;
        let args = Clone3 {
            flags: shared | if sibling { libc::CLONE_PARENT as u64 } else { 0 },
            exit_signal: if sibling { 0 } else { exit_signal },
            set_tid: vec![pid],
            ..Clone3::default()
        };
        let tracee = maker.tracee.clone3(&maker.region, &args)?.map_err(|e| {
            let hint = match e {
                Errno::EEXIST => " (another process has that pid)",
                Errno::EAGAIN => " (is the pids limit reached?)",
                Errno::EINVAL => " (is it above the greatest pid?)",
                Errno::EPERM => " (choosing pids takes CAP_CHECKPOINT_RESTORE)",
                _ => "",
            };
            Error::from(e).context(format!("making process {pid}{hint}"))
        })?;
        let (region, link, container) = (maker.region, maker.link, maker.container);
        self.live.insert(pid, Live { tracee, region, link, container });
        Ok(())
    }

    /// Ends those whose end their parents have not asked about.
    fn end_zombies(&mut self, ctx: &Context) -> Result<()> {
        let pids: Vec<i32> = self.live.keys().copied().collect();
        for pid in pids {
            let Some((saved, status)) = self.saved(ctx, pid).and_then(|p| match p.life {
                Life::Zombie { status } if p.ppid != 0 => Some((p, status)),
                _ => None,
            }) else {
                continue;
            };
            let Some(mut zombie) = self.live.remove(&pid) else { continue };
            if let Some(thread) = saved.threads.first() {
                show_as(&mut zombie.tracee, &zombie.region, thread)?;
            }
            let failed = |e: Error| e.context(format!("making the zombie {pid}"));
            zombie.tracee.end_as(&zombie.region, status).map_err(failed)?;
        }
        Ok(())
    }

    fn hand_over(self, ctx: &mut Context) {
        for (pid, index) in self.index.iter().filter(|(pid, _)| !self.live.contains_key(pid)) {
            // A zombie has no thread any more.
            let (Some(saved), Some(slot)) = (ctx.state.processes.get(*index), ctx.procs.get_mut(*index))
            else {
                continue;
            };
            let region = Region { base: 0, len: 0 };
            let (index, container) = (*index, saved.container);
            *slot = Some(Proc {
                index,
                container,
                pid: 0,
                ns_pid: *pid,
                threads: Vec::new(),
                region,
                link: None,
            });
        }
        for (pid, live) in self.live {
            let Some(index) = self.index.get(&pid).copied() else { continue };
            let Some(slot) = ctx.procs.get_mut(index) else { continue };
            *slot = Some(Proc {
                index,
                container: live.container,
                pid: live.tracee.tid(),
                ns_pid: pid,
                threads: vec![live.tracee],
                region: live.region,
                link: Some(live.link),
            });
        }
    }
}

/// What a process shares with its parent, as clone flags.
fn sharing(process: &ProcessState, parent: &ProcessState) -> u64 {
    let (Some(own), Some(others)) = (process.threads.first(), parent.threads.first()) else { return 0 };
    if process.mm.is_none() || parent.mm.is_none() {
        return 0;
    }
    let mut flags = 0;
    if process.shares_mm_with_parent {
        flags |= libc::CLONE_VM;
        if process.shares_sighand_with_parent {
            flags |= libc::CLONE_SIGHAND;
        }
    }
    if own.fd_table == others.fd_table {
        flags |= libc::CLONE_FILES;
    }
    if own.fs == others.fs {
        flags |= libc::CLONE_FS;
    }
    flags as u64
}

/// Rids a waiting init of what its children would inherit, or stumble over when its memory is gone. Nobody shall look at
/// it, or write a core file of it, before it is what it was; `visible` if that would keep the agent out as well.
fn prepare(tracee: &mut Tracee, region: &Region, visible: bool) -> Result<()> {
    tracee.set_sigmask(u64::MAX)?;
    let mut batch = Batch::new();
    if let Some(rseq) = tracee.rseq_configuration()?.filter(|c| c.pointer != 0) {
        let args =
            [rseq.pointer.into(), rseq.size.into(), RSEQ_FLAG_UNREGISTER.into(), rseq.signature.into()];
        batch.must(libc::SYS_rseq, args);
    }
    let mut disabled = [0u8; 24];
    disabled[8..12].copy_from_slice(&SS_DISABLE.to_ne_bytes());
    let disabled = batch.data(&disabled);
    batch.must(libc::SYS_sigaltstack, [disabled, Arg::NULL]);
    batch.must(libc::SYS_set_robust_list, [Arg::NULL, 24u64.into()]);
    batch.must(libc::SYS_set_tid_address, [Arg::NULL]);
    for (option, value) in [
        (libc::PR_SET_PDEATHSIG, 0),
        (libc::PR_SET_CHILD_SUBREAPER, 0),
        (libc::PR_SET_DUMPABLE, visible.into()),
    ] {
        batch.must(libc::SYS_prctl, [option.into(), Arg::from(value), Arg::NULL, Arg::NULL, Arg::NULL]);
    }
    batch.run(tracee, region)?.check()
}

/// What there is to give to the processes.
fn means(tracee: &Tracee, status: &Status) -> Result<Means> {
    Ok(Means {
        cpus: task::affinity(tracee.tid())?,
        caps: process::cap_permitted()?,
        groups: status.groups.clone(),
        filters: status.filters.unwrap_or(0),
    })
}

/// What is seen of a zombie: its name and its user.
fn show_as(tracee: &mut Tracee, region: &Region, thread: &ThreadState) -> Result<()> {
    // In a user namespace it cannot be looked at any more when it has changed its user.
    tracee.mem().descriptor()?;
    let mut batch = Batch::new();
    let name = batch.text(thread.comm.get(..15).unwrap_or(&thread.comm));
    batch.call(libc::SYS_prctl, [libc::PR_SET_NAME.into(), name]);
    let [r, e, s, _] = thread.creds.gids;
    batch.call(libc::SYS_setresgid, [r.into(), e.into(), s.into()]);
    let [r, e, s, _] = thread.creds.uids;
    batch.call(libc::SYS_setresuid, [r.into(), e.into(), s.into()]);
    // Changing the user has made it dumpable again, if the system has it so.
    batch.call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), Arg::NULL, Arg::NULL, Arg::NULL, Arg::NULL]);
    batch.run(tracee, region).map(drop)
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
