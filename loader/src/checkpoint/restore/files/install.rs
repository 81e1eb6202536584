//! Descriptors into the processes' tables; directories and umask.
#![forbid(unsafe_code)]

use super::{Context, in_container, name_of, objects};
use crate::checkpoint::remote::fdpass::{Link, Pass};
use crate::checkpoint::remote::{Arg, Batch};
use crate::checkpoint::state::{FsState, Id, PathFile};
use crate::sys::files::{self as call, Compare};
use crate::sys::task;
use airlock_wire::error::{Error, Result};
use nix::sys::stat::SFlag;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// A thread: index of its process, index in it.
type Who = (usize, usize);

/// Threads by something that they share, as far as the tasks that were made really do.
fn sharers(
    ctx: &Context,
    what: Compare,
    id: impl Fn(&crate::checkpoint::state::ThreadState) -> Id,
) -> Result<Vec<(Id, Vec<Who>)>> {
    let mut groups: BTreeMap<Id, Vec<Vec<Who>>> = BTreeMap::new();
    let tid = |(p, t): Who| ctx.procs.get(p)?.as_ref()?.threads.get(t).map(|t| t.tid());
    for (index, proc) in ctx.procs.iter().enumerate() {
        let (Some(proc), Some(state)) = (proc, ctx.state.processes.get(index)) else { continue };
        for (thread, saved) in state.threads.iter().enumerate().take(proc.threads.len()) {
            let who = (index, thread);
            let shared = groups.entry(id(saved)).or_default();
            let mut home = None;
            for (at, group) in shared.iter().enumerate() {
                let first = group.first().copied().and_then(tid);
                if let (Some(a), Some(b)) = (first, tid(who))
                    && call::kcmp(a, b, what).map_err(|e| Error::from(e).context("comparing tasks (kcmp)"))?
                        == Ordering::Equal
                {
                    home = Some(at);
                    break;
                }
            }
            match home {
                Some(at) => shared[at].push(who),
                None => shared.push(vec![who]),
            }
        }
    }
    Ok(groups.into_iter().flat_map(|(id, all)| all.into_iter().map(move |who| (id, who))).collect())
}

/// Puts all descriptors into all tables, and closes the channels.
pub(super) fn tables(ctx: &mut Context) -> Result<()> {
    for (id, who) in sharers(ctx, Compare::Files, |t| t.fd_table)? {
        let Some((process, thread)) = who.first().copied() else { continue };
        fill(ctx, id, process, thread)?;
    }
    ctx.procs.iter_mut().flatten().for_each(|p| p.link = None);
    Ok(())
}

fn fill(ctx: &mut Context, table: Id, process: usize, thread: usize) -> Result<()> {
    let table =
        ctx.state.fd_tables.get(table as usize).ok_or_else(|| {
            Error::invalid_argument("the statefile is damaged: a descriptor table is missing")
        })?;
    let mut passes = Vec::with_capacity(table.fds.len());
    for entry in &table.fds {
        let Some(fd) = ctx.files.get(entry.file as usize).and_then(Option::as_ref) else {
            return Err(Error::failure(format!("{} was not opened", name_of(&ctx.state, entry.file))));
        };
        passes.push(Pass { fd: fd.as_fd(), number: entry.fd, cloexec: entry.cloexec });
    }
    let Some(proc) = ctx.procs.get_mut(process).and_then(Option::as_mut) else { return Ok(()) };
    let (pid, region) = (proc.ns_pid, proc.region);
    let channel = ctx.channels.get(proc.container as usize).and_then(Option::as_ref);
    let (Some(channel), Some(mut link)) = (channel, proc.link) else {
        return Err(Error::failure(format!("process {pid} has no channel for descriptors")));
    };
    let Some(tracee) = proc.threads.get_mut(thread) else { return Ok(()) };
    let failed = |e: Error| e.context(format!("giving process {pid} its descriptors"));
    // Its own limit comes later, and may be what allows these numbers.
    if let Ok((_, hard)) = task::rlimit(tracee.tid(), libc::RLIMIT_NOFILE) {
        let _ = task::set_rlimit(tracee.tid(), libc::RLIMIT_NOFILE, (hard, hard));
    }
    channel.send(tracee, &region, &mut link, &passes).map_err(failed)?;
    Link::close(link, tracee).map_err(failed)
}

/// Root and current directories and umasks.
pub(super) fn directories(ctx: &mut Context) -> Result<()> {
    for (id, who) in sharers(ctx, Compare::Fs, |t| t.fs)? {
        let Some((process, thread)) = who.first().copied() else { continue };
        let Some(fs) = ctx.state.fs.get(id as usize).cloned() else { continue };
        change(ctx, &fs, process, thread)?;
    }
    Ok(())
}

fn change(ctx: &mut Context, fs: &FsState, process: usize, thread: usize) -> Result<()> {
    let Some(proc) = ctx.procs.get(process).and_then(Option::as_ref) else { return Ok(()) };
    let (pid, container) = (proc.ns_pid, proc.container);
    // A directory that is no more: one that is removed as soon as the process is in it.
    let removed = if fs.cwd_deleted { Some(removed_directory(ctx, container, &fs.cwd)?) } else { None };
    let cwd = removed.as_ref().map_or(fs.cwd.as_str(), |(path, _)| path.as_str());
    let Some(proc) = ctx.procs.get_mut(process).and_then(Option::as_mut) else { return Ok(()) };
    let region = proc.region;
    let Some(tracee) = proc.threads.get_mut(thread) else { return Ok(()) };
    let mut batch = Batch::new();
    let path = batch.text(cwd);
    let chdir = batch.call(libc::SYS_chdir, [path]);
    let chroot = (fs.root != "/").then(|| {
        let path = batch.text(&fs.root);
        batch.call(libc::SYS_chroot, [path])
    });
    batch.call(libc::SYS_umask, [Arg::from(fs.umask)]);
    let ran = batch.run(tracee, &region)?;
    let failed = |e: nix::errno::Errno, what: &str, path: &str| {
        Error::from(e).context(format!("{what} {path:?} of process {pid}"))
    };
    ran.result(chdir).map_err(|e| failed(e, "current directory", cwd))?;
    if let Some(chroot) = chroot {
        ran.result(chroot).map_err(|e| failed(e, "root directory", &fs.root))?;
    }
    if let Some((_, remove)) = removed {
        remove()?;
    }
    Ok(())
}

type Remove<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

/// Makes a directory near where one was that a process is still in. Answers its path, and what removes it.
fn removed_directory(ctx: &Context, container: Id, path: &str) -> Result<(String, Remove<'static>)> {
    let file = PathFile { path: path.to_owned(), mode: SFlag::S_IFDIR.bits() | 0o700, ..PathFile::default() };
    let (path, dir, name): (String, OwnedFd, String) =
        in_container(ctx, container, libc::CLONE_NEWNS, || objects::make_visible_directory(&file))?;
    let remove = move || {
        nix::unistd::unlinkat(&dir, name.as_str(), nix::unistd::UnlinkatFlags::RemoveDir)?;
        Ok(())
    };
    Ok((path, Box::new(remove)))
}
