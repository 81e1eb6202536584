//! Reviving a sandbox: the order of the steps.
//!
//! The containers were made as always, and their inits wait for the order to execute a program. Each of them is taken
//! over instead, and made to become what the image says: it forks the tree, and each process builds its own memory.
//! Nothing of a program runs before everything is in place; when something cannot be, all of it is killed.
#![forbid(unsafe_code)]

mod aio;
pub mod bounds;
pub mod context;
pub mod creds;
pub mod files;
pub mod fs;
pub mod ipc;
pub mod mm;
pub mod net;
pub mod plan;
pub mod sched;
mod segments;
pub mod shmems;
pub mod source;
pub mod spaces;
pub mod stopped;
pub mod stubs;
pub mod task;
pub mod thread;
pub mod timers;
pub mod tree;
pub mod waits;

use super::agent::Link;
use super::order::{Event, Report, RestoreOrder};
use super::pages::background::{self, Monitor};
use super::watch::Watch;
use super::{clocks, machine};
use crate::procfs::ProcFs;
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use context::{Context, Stub};
use files::Files;
use net::Sockets;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use source::Source;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Carries a [`RestoreOrder`] out.
///
/// # Errors
/// What went wrong; the containers are dead.
pub fn run(link: &Link, procfs: ProcFs, order: RestoreOrder, mut fds: Vec<OwnedFd>) -> Result<()> {
    let mut watch = Watch::new();
    link.progress("opening the image", 0, 0);
    let layers = fs::Layers::take(&order, &mut fds)?;
    let (mut source, state) = Source::open(&order, fds)?;
    let mut working_set = std::mem::take(&mut source.working_set);
    if state.containers.len() != order.containers.len() {
        return Err(Error::invalid_argument(format!(
            "the image has {} containers, and {} wait to be restored",
            state.containers.len(),
            order.containers.len()
        )));
    }
    let notes = machine::check(&state, &machine::describe(&procfs)?)?;
    let mut ctx = Context::new(order, procfs, state);
    notes.into_iter().for_each(|note| ctx.warn(note));
    watch.step("image");
    stubs::take_over(&mut ctx)?;
    clocks(&mut ctx)?;
    watch.step("take over");
    fs::restore(&mut ctx, &source.reader, layers)?;
    watch.step("filesystems");
    let mut pages = ipc::create(&mut ctx, &source)?;
    watch.step("ipc");
    let sockets = Sockets::make(&mut ctx)?;
    let mut files = Files::open(&mut ctx, &sockets)?;
    watch.step("files");
    pages += shmems::create(&mut ctx, &source)?;
    watch.step("shared memory");
    tree::create(&mut ctx)?;
    files.complete(&mut ctx)?;
    watch.step("processes");
    let (filled, waiting) = spaces::build(link, &mut ctx, &source)?;
    pages += filled;
    // Even setting a thread up touches memory.
    let on_demand = ctx.order.on_demand;
    let options = background::Options {
        share: Some(link.keeper()?),
        on_demand,
        first: working_set.first(),
        ..background::Options::default()
    };
    // From here on faults are answered.
    let monitor =
        if waiting.is_empty() { None } else { Some(Monitor::start(source.chain, waiting, options)?) };
    watch.step("memory");
    ipc::undo(&mut ctx)?;
    for index in 0..ctx.procs.len() {
        task::make_threads(&mut ctx, index)?;
    }
    files.install(&mut ctx)?;
    watch.step("descriptors");
    task::complete(&mut ctx)?;
    files.finish(&mut ctx)?;
    shmems::seal(&ctx)?;
    ipc::finish(&ctx)?;
    sockets.finish(&mut ctx)?;
    watch.step("threads");
    fs::announce(&ctx);
    let mut report = report(&ctx);
    task::release(&mut ctx)?;
    watch.step("release");
    report.pages = pages;
    report.bytes = pages * super::pages::PAGE;
    report.phases = watch.phases();
    // Nothing follows, even if it was asked to.
    let Some(monitor) = monitor else { return link.send(&Event::PagesIn(report)) };
    link.send(&Event::Restored(report.clone()))?;
    let outcome = if on_demand { wanted(link, &monitor) } else { Ok(()) };
    let outcome = outcome.and_then(|()| bring(link, &monitor));
    if outcome.is_err() {
        end(&ctx.order);
    }
    let outcome = outcome?;
    // Whoever hears of the last page may want to save these programs: no descriptor is registered with them any more.
    drop(monitor);
    if let Err(e) = working_set.note(&outcome.order) {
        link.log(log::Level::Info, e.to_string());
    }
    report.pages += outcome.pages;
    report.bytes = report.pages * super::pages::PAGE;
    report.phases.push(("background".to_owned(), watch.elapsed_us()));
    link.send(&Event::PagesIn(report))
}

/// Waits until somebody wants all pages, and begins with them.
fn wanted(link: &Link, monitor: &Monitor) -> Result<()> {
    if link.continued(monitor.ended())? { monitor.fetch() } else { Ok(()) }
}

/// Brings in all pages that the programs have not asked for.
fn bring(link: &Link, monitor: &Monitor) -> Result<background::Outcome> {
    loop {
        if let Some(outcome) = monitor.wait(Some(Duration::from_millis(100)))? {
            return Ok(outcome);
        }
        let (done, total) = monitor.progress();
        link.progress("reading memory", done, total);
    }
}

/// Kills the containers, whose memory cannot come any more, and waits for their end: nobody may see zeros instead.
fn end(order: &RestoreOrder) {
    for container in &order.containers {
        let Ok(pidfd) = process::pidfd_open(container.init) else { continue };
        let _ = process::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
    }
}

/// Puts the inits into time namespaces in which the clocks have not jumped, before there is anybody else.
fn clocks(ctx: &mut Context) -> Result<()> {
    let mut notes = Vec::new();
    for (stub, channel) in ctx.stubs.iter_mut().zip(&ctx.channels) {
        let (Some(Stub { tracee, region, link, .. }), Some(channel)) = (stub, channel) else { continue };
        notes.extend(clocks::enter(&ctx.procfs, tracee, region, channel, link, &ctx.state.clocks)?);
    }
    notes.into_iter().for_each(|note| ctx.warn(note));
    Ok(())
}

fn report(ctx: &Context) -> Report {
    let processes = &ctx.state.processes;
    Report {
        processes: processes.len() as u32,
        threads: processes.iter().map(|p| p.threads.len() as u32).sum(),
        warnings: ctx.warnings.clone(),
        saved_cpu_ns: processes
            .iter()
            .map(|p| p.cpu_ns.0.saturating_add(p.cpu_ns.1))
            .fold(0, u64::saturating_add),
        saved_wall_ns: ctx.state.containers.iter().map(|c| c.age_ns).max().unwrap_or(0),
        ..Report::default()
    }
}
