//! Checkpoint and restore: `containerManager`'s and `State`'s methods for it, and airlock's own.

use crate::container_manager::{Verb, prepare_subcontainer};
use airlock_loader::checkpoint::order::{DumpOrder, Report as Done, RestoreOrder};
use airlock_loader::loader::Loader;
use airlock_loader::loader::checkpoint::{CheckpointRequest, Notice, RestoreRequest, Saved};
use airlock_wire::api::airlock::{
    Checkpoint as OwnCheckpoint, CheckpointProgress, Restore as OwnRestore, RestoreContainer,
};
use airlock_wire::api::checkpoint::{CheckpointArgs, Progress, Report, RestoreArgs, SaveOpts, Savings};
use airlock_wire::api::container_manager::{
    Checkpoint, GetSavings, Restore, RestoreSubcontainer, StartArgs, WaitCheckpoint, WaitRestore,
};
use airlock_wire::api::state::{Save, SaveWithOpts};
use airlock_wire::api::types::Empty;
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::{Call, Registry};
use nix::sys::socket::{MsgFlags, send};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// What `compression` may be.
const COMPRESSIONS: [&str; 4] = ["none", "lz4", "zstd", "flate-best-speed"];

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Checkpoint>(move |call, opts| save(&l, call, opts));
    let l = loader.clone();
    registry.on::<Save>(move |call, opts| save(&l, call, opts));
    registry.on::<SaveWithOpts>(|_, _| {
        Err(Error::unsupported(
            "SaveWithOpts is not supported: its argument is made of pointers into gVisor's kernel; use containerManager.Checkpoint",
        ))
    });
    let l = loader.clone();
    registry.on::<OwnCheckpoint>(move |call, args| checkpoint(&l, call, args));
    let l = loader.clone();
    registry.on::<Restore>(move |call, opts| {
        let args = RestoreArgs { restore: opts, ..RestoreArgs::default() };
        restore(&l, call, args).map(|_| Empty {})
    });
    let l = loader.clone();
    registry.on::<OwnRestore>(move |call, args| restore(&l, call, args));
    let l = loader.clone();
    registry.on::<RestoreSubcontainer>(move |call, args| restore_subcontainer(&l, call, args));
    let l = loader.clone();
    registry.on::<RestoreContainer>(move |_, args| {
        l.may_restore_container()?;
        let (report, missing) = l.restore_container(&l.container(&args.cid)?)?;
        Ok(restored(report, missing))
    });
    let l = loader.clone();
    registry.on::<WaitCheckpoint>(move |call, Empty {}| {
        let notice = l.next_checkpoint()?;
        wait_notice(call, &notice).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<WaitRestore>(move |call, Empty {}| wait_notice(call, &*l.restored()?).map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<GetSavings>(move |_, Empty {}| {
        let (cpu_time_saved, wall_time_saved) = l.savings();
        Ok(Savings { cpu_time_saved, wall_time_saved })
    });
    let l = loader.clone();
    registry.on::<CheckpointProgress>(move |_, Empty {}| {
        let (work, progress) = l.checkpoint_progress().unwrap_or_default();
        Ok(Progress {
            work: work.to_owned(),
            phase: progress.phase,
            pages: progress.pages,
            total: progress.total,
        })
    });
}

/// Blocks until what `notice` tells of has happened, or the client hangs up.
pub(crate) fn wait_notice(call: &Call<'_>, notice: &Notice) -> Result<()> {
    loop {
        if let Some(outcome) = notice.outcome() {
            return outcome;
        }
        call.wait_readable(notice.ready())?;
    }
}

fn save(loader: &Loader, call: &mut Call<'_>, save: SaveOpts) -> Result<Empty> {
    checkpoint(loader, call, CheckpointArgs { save, ..CheckpointArgs::default() }).map(|_| Empty {})
}

fn checkpoint(loader: &Loader, call: &mut Call<'_>, args: CheckpointArgs) -> Result<Report> {
    args.check(call.fd_count())?;
    let compression = args.save.compression();
    if !COMPRESSIONS.contains(&compression) {
        return Err(Error::invalid_argument(format!(
            "compression {compression:?} is not known: use {}",
            COMPRESSIONS.join(", ")
        )));
    }
    let mut files = call.take_fds();
    let commit = if args.commit { files.pop() } else { None };
    let request = CheckpointRequest { order: dump_order(args), files };
    let saved = loader.checkpoint(request, &mut || match &commit {
        Some(socket) => committed(call, socket),
        // Who is gone cannot make use of the image: it may not even have its name yet.
        None => !call.client_gone(),
    })?;
    Ok(report(saved))
}

fn dump_order(args: CheckpointArgs) -> DumpOrder {
    let compression = args.save.compression().to_owned();
    DumpOrder {
        have_pages_file: args.save.have_pages_file,
        resume: args.save.resume,
        dry_run: args.dry_run,
        key: args.save.key.map(|key| key.0),
        metadata: args.save.metadata.into_iter().flatten().collect(),
        compression,
        direct: args.direct,
        tcp_established: args.tcp_established,
        ext_unix_sk: args.ext_unix_sk,
        file_locks: args.file_locks,
        pre_dump: args.pre_dump,
        parent: args.parent,
        ancestors: args.ancestors,
        ..DumpOrder::default()
    }
}

/// Tells the caller that the image is complete, and waits for its word. False if it hangs up instead.
fn committed(call: &Call<'_>, socket: &OwnedFd) -> bool {
    let mut word = [0];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(socket.as_raw_fd(), b"s", flags) == Ok(1)
        && call.wait_readable(socket.as_fd()).is_ok()
        && nix::unistd::read(socket, &mut word) == Ok(1)
}

fn report(saved: Saved) -> Report {
    Report { refusals: saved.refusals, ..done(saved.report) }
}

fn done(done: Done) -> Report {
    Report {
        processes: done.processes,
        threads: done.threads,
        pages: done.pages,
        zero_pages: done.zero_pages,
        parent_pages: done.parent_pages,
        bytes: done.bytes,
        pause_us: done.pause_us,
        phases: done.phases,
        warnings: done.warnings,
        ..Report::default()
    }
}

fn restore(loader: &Arc<Loader>, call: &mut Call<'_>, args: RestoreArgs) -> Result<Report> {
    let RestoreArgs { restore, tcp_established, parents, on_demand, working_set } = args;
    // A state that forbids the call is told before what may be wrong with its arguments.
    loader.may_restore()?;
    let more = (parents as usize).saturating_mul(2).saturating_add(usize::from(working_set));
    let layout = restore.layout(call.fd_count(), more)?;
    if parents > 0 && !restore.have_pages_file {
        return Err(Error::invalid_argument(
            "an image with parents has its pages in files of their own: HavePagesFile and their descriptors are missing",
        ));
    }
    if (on_demand || working_set) && !restore.background {
        return Err(Error::invalid_argument(
            "on_demand, working_set: they are about memory that follows the programs, which takes Background",
        ));
    }
    let order = RestoreOrder {
        on_demand,
        working_set,
        have_pages_file: restore.have_pages_file,
        have_device_file: layout.device.is_some(),
        background: restore.background,
        key: restore.key.map(|key| key.0),
        tcp_established,
        parents,
        ..RestoreOrder::default()
    };
    let request = RestoreRequest { order, files: call.take_fds() };
    let (report, missing) = loader.restore(request)?;
    Ok(restored(report, missing))
}

fn restored(report: Option<Done>, missing: usize) -> Report {
    Report { missing: missing as u32, ..report.map(done).unwrap_or_default() }
}

/// A container of a sandbox that is being restored: set up as for a start, but left to the restore.
pub(crate) fn restore_subcontainer(
    loader: &Arc<Loader>,
    call: &mut Call<'_>,
    args: StartArgs,
) -> Result<Empty> {
    loader.may_restore_container()?;
    let container = prepare_subcontainer(loader, call, args, Verb::Restore)?;
    loader.restore_container(&container)?;
    Ok(Empty {})
}
