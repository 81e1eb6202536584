//! Saving a sandbox: the order of the steps.
//!
//! Stop everything, find out everything, refuse whatever cannot be saved — all of it at once, with nothing disturbed —,
//! then write. What a program may see of all this is the time that went by.
#![forbid(unsafe_code)]

pub mod aio;
pub mod context;
pub mod creds;
pub mod early;
pub mod files;
pub mod fs;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod ipc;
pub mod mm;
pub mod namespaces;
pub mod net;
pub mod seccomp;
pub mod signals;
pub mod smaps;
pub mod status;
pub mod task;
pub mod thread;
pub mod timers;
pub mod tree;
pub mod waits;
mod write;

use super::agent::{Link, next_fd};
use super::order::{DumpOrder, Event, Report};
use super::remote::{Arg, Batch};
use super::state::{ContainerState, VmaKind};
use super::watch::Watch;
use super::{clocks, machine};
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use context::Context;
use early::Early;
use fs::Filesystems;
use ipc::Ipc;
use net::Sockets;
use std::os::fd::OwnedFd;
use write::{Image, Output};

/// Carries a [`DumpOrder`] out.
///
/// # Errors
/// What went wrong; the containers go on.
pub fn run(link: &Link, procfs: ProcFs, order: DumpOrder, fds: Vec<OwnedFd>) -> Result<()> {
    let mut fds = fds.into_iter();
    let output = if order.dry_run { None } else { Some(Output::take(&order, &mut fds)?) };
    let mut uppers = Vec::with_capacity(order.containers.len());
    for container in &order.containers {
        let of_container = container.upper.iter().map(|_| next_fd(&mut fds, "upper layer"));
        uppers.push(of_container.collect::<Result<Vec<_>>>()?);
    }
    let mut watch = Watch::new();
    let mut ctx = Context::new(order, procfs, uppers);
    let mut sockets = None;
    let outcome = save(link, &mut ctx, &mut sockets, output, &mut watch);
    let kill = matches!(outcome, Ok(true));
    if let Some(sockets) = sockets {
        sockets.release(kill);
    }
    if kill { end(&mut ctx) } else { let_go(link, &mut ctx) }?;
    outcome.map(drop)
}

/// Answers whether the containers are to end.
fn save(
    link: &Link,
    ctx: &mut Context,
    kept: &mut Option<Sockets>,
    output: Option<Output>,
    watch: &mut Watch,
) -> Result<bool> {
    let sockets = kept.insert(inspect(link, ctx, watch)?);
    sockets.link(ctx);
    watch.step("connections");
    let filesystems = Filesystems::collect(ctx)?;
    watch.step("mounts");
    let ipc = Ipc::collect(ctx)?;
    watch.step("ipc");
    if !ctx.refusals.is_empty() {
        link.send(&Event::Refused(std::mem::take(&mut ctx.refusals)))?;
        return Ok(false);
    }
    let Some(output) = output else {
        let report = Report {
            processes: ctx.state.processes.len() as u32,
            threads: ctx.state.processes.iter().map(|p| p.threads.len() as u32).sum(),
            warnings: ctx.state.warnings.clone(),
            pause_us: watch.elapsed_us(),
            phases: watch.phases(),
            ..Report::default()
        };
        link.send(&Event::DryRun(report))?;
        return Ok(false);
    };
    sockets.settle(ctx);
    files::drain(ctx)?;
    ipc.settle(ctx)?;
    let image = Image::begin(link, ctx, output, &filesystems, watch)?;
    let mut pause_us = None;
    if ctx.order.resume && image.may_resume() {
        if let Some(sockets) = kept.take() {
            sockets.release(false);
        }
        let_go(link, ctx)?;
        let us = watch.elapsed_us();
        pause_us = Some(us);
        link.send(&Event::Resumed { pause_us: us })?;
        watch.step("resume");
    }
    let (mut report, trackers) = image.finish(link, ctx, watch)?;
    report.pause_us = pause_us.unwrap_or_else(|| watch.elapsed_us());
    report.phases = watch.phases();
    link.saved(&Event::Saved(report), &trackers)
}

/// Stops everything and describes it in [`Context::state`].
fn inspect(link: &Link, ctx: &mut Context, watch: &mut Watch) -> Result<Sockets> {
    let mut early = Early::look(ctx);
    watch.step("early look");
    watch.begin_again();
    link.progress("stopping", 0, 0);
    let paused = ctx.order.paused;
    tree::discover(ctx, || if paused { link.ask(&Event::Interrupted).map(drop) } else { Ok(()) })?;
    link.ask(&Event::Stopped)?;
    watch.step("stop");
    containers(ctx);
    // Before anything is mapped into them.
    let mappings = ctx
        .procs
        .iter()
        .map(|p| {
            if p.is_zombie() || p.shares_mm_with.is_some() {
                return Ok(None);
            }
            if let Some(vmas) = early.take(&ctx.procfs, p.task())? {
                return Ok(Some((vmas, true)));
            }
            let text = ctx.procfs.read_whole(p.task(), "smaps")?;
            Ok(Some((smaps::parse(&String::from_utf8_lossy(&text))?, false)))
        })
        .collect::<Result<Vec<_>>>()?;
    watch.step("mappings");
    task::collect(ctx)?;
    watch.step("tasks");
    for (index, vmas) in mappings.into_iter().enumerate() {
        let Some((vmas, early)) = vmas else { continue };
        let brk = program_break(ctx, index)?;
        let id = mm::collect(ctx, index, &vmas, brk)?;
        if let Some(space) = ctx.spaces.last_mut().filter(|_| early) {
            space.early = Some(vmas);
        }
        let facts = ctx.procs.get(index).map(|p| p.memory).unwrap_or_default();
        if let Some(mm) = ctx.state.mms.get_mut(id as usize) {
            mm.mdwe = facts.mdwe;
            mm.ksm = facts.ksm;
        }
        for (process, proc) in ctx.state.processes.iter_mut().zip(&ctx.procs).skip(index) {
            if proc.shares_mm_with == Some(index) {
                process.mm = Some(id);
            }
        }
        if let Some(process) = ctx.state.processes.get_mut(index) {
            process.mm = Some(id);
        }
    }
    watch.step("memory");
    let mut sockets = Sockets::new(ctx)?;
    files::collect(ctx, &mut sockets)?;
    watch.step("files");
    surroundings(ctx)?;
    watch.step("surroundings");
    Ok(sockets)
}

/// Clocks and machine.
fn surroundings(ctx: &mut Context) -> Result<()> {
    let root = ctx.order.containers.first().map_or(0, |c| c.init);
    ctx.state.clocks = clocks::read(&ctx.procfs, root)?;
    ctx.state.machine = machine::describe(&ctx.procfs)?;
    let xstate = ctx.state.processes.iter().flat_map(|p| &p.threads).find(|t| !t.xstate.is_empty());
    (ctx.state.machine.xcr0, ctx.state.machine.xstate_size) =
        xstate.map(|t| machine::xstate_facts(&t.xstate)).unwrap_or_default();
    // All programs have the same.
    let vdso = ctx.spaces.iter().find_map(|space| {
        let vmas = &ctx.state.mms.get(space.mm as usize)?.vmas;
        let vdso = vmas.iter().find(|v| v.kind == VmaKind::Vdso)?;
        let leader = ctx.procs.get(space.proc)?.threads.first()?;
        leader.mem().bytes(vdso.start, (vdso.end - vdso.start) as usize).ok()
    });
    ctx.state.machine.vdso_digest = vdso.map(|image| machine::vdso_digest(&image)).unwrap_or_default();
    Ok(())
}

fn containers(ctx: &mut Context) {
    let order = &ctx.order;
    ctx.state.containers = order
        .containers
        .iter()
        .enumerate()
        .map(|(i, c)| ContainerState {
            cid: c.cid.clone(),
            name: c.name.clone(),
            spec: c.spec.clone(),
            init: ctx.procs.iter().find(|p| p.pid == c.init).map_or(0, |p| p.ns_pid),
            age_ns: clocks::age(&ctx.procfs, c.init).unwrap_or(0),
            pid_namespace: if c.own_pid_namespace { i as u32 } else { 0 },
            ..ContainerState::default()
        })
        .collect();
}

fn program_break(ctx: &mut Context, index: usize) -> Result<u64> {
    let Some((tracee, region)) = ctx.procs.get_mut(index).and_then(context::Proc::injector) else {
        return Err(Error::failure("a process has no thread to ask"));
    };
    let mut batch = Batch::new();
    let call = batch.must(libc::SYS_brk, [Arg::NULL]);
    batch.run(tracee, &region)?.get(call)
}

/// Lets everything go on as if nobody had looked at it.
fn let_go(link: &Link, ctx: &mut Context) -> Result<()> {
    if std::mem::replace(&mut ctx.released, true) {
        return Ok(());
    }
    let cleaned = task::clean(ctx);
    if ctx.order.paused {
        link.ask(&Event::Detaching)?;
    }
    cleaned.and(task::release(ctx))
}

/// Ends all containers.
fn end(ctx: &mut Context) -> Result<()> {
    for proc in &mut ctx.procs {
        for tracee in std::mem::take(&mut proc.threads) {
            // Its namespace's init may have taken it along already.
            let _ = tracee.kill();
        }
    }
    Ok(())
}
