//! What only counts once everything else is there: locks, who is told of events, the windows of terminals.
#![forbid(unsafe_code)]

use super::tty::Pair;
use super::{Context, name_of, opened, watch};
use crate::checkpoint::remote::{Arg, Batch, CallId};
use crate::checkpoint::state::{EpollTarget, FileKind, FileLock, Id};
use crate::sys::files as call;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::AsFd;

const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_SETLEASE: i32 = 1024;

fn lock_type(lock: &FileLock) -> i32 {
    if lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK }
}

/// Start and length as the kernel takes them; its "to the end" is a length of 0.
fn range(lock: &FileLock) -> Result<(i64, i64)> {
    let number = |n: u64| {
        i64::try_from(n)
            .map_err(|_| Error::invalid_argument("the statefile is damaged: range of a file lock"))
    };
    Ok((number(lock.start)?, if lock.len > i64::MAX as u64 { 0 } else { number(lock.len)? }))
}

fn lost(ctx: &Context, id: Id, lock: &FileLock, e: Errno) -> Error {
    let why = if matches!(e, Errno::EAGAIN | Errno::EACCES) {
        " (somebody outside the image holds it)"
    } else {
        ""
    };
    Error::from(e).context(format!("taking the {} lock of {} again{why}", lock.kind, name_of(&ctx.state, id)))
}

/// Takes all locks on files. Those of fcntl(2) are taken by the processes that had them.
pub(super) fn locks(ctx: &mut Context) -> Result<()> {
    let mut posix: BTreeMap<usize, Vec<(Id, i32, FileLock)>> = BTreeMap::new();
    for (state, id) in ctx.state.files.iter().zip(0..) {
        for lock in &state.locks {
            let Some(fd) = opened(ctx, id) else { continue };
            let (start, len) = range(lock)?;
            let taken = match lock.kind.as_str() {
                "flock" => call::flock(fd, lock.exclusive),
                "ofd" => call::lock_description(fd, lock_type(lock), start, len),
                "posix" => {
                    let holder = holder(ctx, id, Some(lock.pid)).ok_or_else(|| {
                        Error::invalid_argument(format!(
                            "the statefile is damaged: process {} holds a lock on a file that it has not open",
                            lock.pid
                        ))
                    })?;
                    posix.entry(holder.0).or_default().push((id, holder.1, lock.clone()));
                    Ok(())
                }
                // With its owner, below.
                _ => Ok(()),
            };
            taken.map_err(|e| lost(ctx, id, lock, e))?;
        }
    }
    for (process, locks) in posix {
        let mut batch = Batch::new();
        let mut calls = Vec::with_capacity(locks.len());
        for (_, number, lock) in &locks {
            let (start, len) = range(lock)?;
            // struct flock: type, whence (16 bits each), start, length (64 bits each), pid
            let mut words = [0u64; 4];
            words[0] = lock_type(lock) as u64;
            (words[1], words[2]) = (start as u64, len as u64);
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            let flock = batch.data(&bytes);
            calls.push(batch.call(libc::SYS_fcntl, [(*number).into(), libc::F_SETLK.into(), flock]));
        }
        let ran = inject(ctx, process, batch)?;
        for ((id, _, lock), call) in locks.iter().zip(calls) {
            ran.result(call).map_err(|e| lost(ctx, *id, lock, e))?;
        }
    }
    Ok(())
}

/// A living process that has a description, and the number: the one with that pid, or any.
fn holder(ctx: &Context, id: Id, pid: Option<i32>) -> Option<(usize, i32)> {
    let container = ctx.state.files.get(id as usize)?.container;
    let has = |index: usize| {
        let leader = ctx.state.processes.get(index)?.threads.first()?;
        let table = ctx.state.fd_tables.get(leader.fd_table as usize)?;
        Some((index, table.fds.iter().find(|e| e.file == id)?.fd))
    };
    let alive = ctx.procs.iter().enumerate().filter_map(|(i, p)| Some((i, p.as_ref()?)));
    alive
        .filter(|(_, p)| !p.threads.is_empty())
        .filter(|(_, p)| pid.is_none_or(|pid| p.ns_pid == pid && p.container == container))
        .find_map(|(i, _)| has(i))
}

fn inject(ctx: &mut Context, process: usize, batch: Batch) -> Result<crate::checkpoint::remote::Ran> {
    let proc = ctx.procs.get_mut(process).and_then(Option::as_mut);
    let (tracee, region) = proc.ok_or_else(|| Error::failure("a process is missing"))?.injector()?;
    batch.run(tracee, &region)
}

/// Calls by process, with what each is for.
type Batches = BTreeMap<usize, (Batch, Vec<(CallId, String)>)>;

/// Who is told of events, leases, and signal descriptors in epoll instances: calls whose caller counts.
pub(super) fn owners(ctx: &mut Context) -> Result<()> {
    let mut batches = Batches::new();
    for (state, id) in ctx.state.files.iter().zip(0..) {
        let lease = state.locks.iter().find(|l| l.kind == "lease");
        let asynchronous = state.flags & libc::O_ASYNC != 0 && state.flags & libc::O_PATH == 0;
        if state.owner.is_none() && lease.is_none() && !asynchronous || opened(ctx, id).is_none() {
            continue;
        }
        let wanted = state.owner.map(|(_, pid, _)| pid).filter(|p| *p != 0);
        let Some((process, number)) = holder(ctx, id, wanted).or_else(|| holder(ctx, id, None)) else {
            continue;
        };
        let (batch, calls) = batches.entry(process).or_default();
        let mut add = |batch: &mut Batch, command: i32, value: Arg, what: &str| {
            let call = batch.call(libc::SYS_fcntl, [number.into(), command.into(), value]);
            calls.push((call, format!("{what} of {}", name_of(&ctx.state, id))));
        };
        if let Some((kind, pid, signal)) = state.owner {
            if pid != 0 {
                let owner: Vec<u8> = [kind, pid].iter().flat_map(|w| w.to_ne_bytes()).collect();
                let owner = batch.data(&owner);
                add(batch, F_SETOWN_EX, owner, "the receiver of signals");
            }
            if signal != 0 {
                add(batch, F_SETSIG, signal.into(), "the signal");
            }
        }
        if asynchronous {
            let flags = state.flags & (super::SETTABLE | libc::O_ASYNC);
            add(batch, libc::F_SETFL, flags.into(), "O_ASYNC");
        }
        if let Some(lease) = lease {
            add(batch, F_SETLEASE, lock_type(lease).into(), "the lease");
        }
    }
    signalfds(ctx, &mut batches);
    for (process, (batch, calls)) in batches {
        let ran = inject(ctx, process, batch)?;
        for (call, what) in calls {
            if let Err(e) = ran.result(call) {
                ctx.warn(format!("{what} could not be set again: {e}"));
            }
        }
    }
    Ok(())
}

/// Adds signal descriptors to epoll instances, in a process that has both.
fn signalfds(ctx: &Context, batches: &mut Batches) {
    for (state, id) in ctx.state.files.iter().zip(0..) {
        let FileKind::Epoll { targets } = &state.kind else { continue };
        for target in targets.iter().filter(|t| watch::is_signalfd(ctx, t.file)) {
            let Some((process, epoll)) = holder(ctx, id, None) else { continue };
            let (batch, calls) = batches.entry(process).or_default();
            let call = add_signalfd(ctx, batch, process, epoll, target);
            calls.push((call, format!("watching signals with {}", name_of(&ctx.state, id))));
        }
    }
}

fn add_signalfd(
    ctx: &Context,
    batch: &mut Batch,
    process: usize,
    epoll: i32,
    target: &EpollTarget,
) -> CallId {
    let entries = ctx
        .state
        .processes
        .get(process)
        .and_then(|p| p.threads.first())
        .and_then(|t| ctx.state.fd_tables.get(t.fd_table as usize))
        .map_or(&[][..], |t| t.fds.as_slice());
    let now = entries.iter().find(|e| e.fd == target.fd);
    let source = entries.iter().find(|e| e.file == target.file).map_or(-1, |e| e.fd);
    let cloexec = |on: bool| Arg::from(if on { libc::O_CLOEXEC } else { 0 });
    // Under the number that it was added as, whatever has that now.
    let aside = now.filter(|e| e.file != target.file).map(|e| {
        (batch.call(libc::SYS_fcntl, [target.fd.into(), libc::F_DUPFD_CLOEXEC.into(), Arg::NULL]), e.cloexec)
    });
    let moved = now.is_none_or(|e| e.file != target.file);
    if moved {
        batch.call(libc::SYS_dup3, [source.into(), target.fd.into(), cloexec(true)]);
    }
    let mut event = target.events.to_ne_bytes().to_vec();
    event.extend_from_slice(&target.data.to_ne_bytes());
    let event = batch.data(&event);
    let call =
        batch.call(libc::SYS_epoll_ctl, [epoll.into(), libc::EPOLL_CTL_ADD.into(), target.fd.into(), event]);
    match aside {
        Some((aside, close)) => {
            batch.call(libc::SYS_dup3, [aside.into(), target.fd.into(), cloexec(close)]);
            batch.call(libc::SYS_close, [aside.into()]);
        }
        None if moved => {
            batch.call(libc::SYS_close, [target.fd.into()]);
        }
        None => {}
    }
    call
}

/// Has listeners listen once more, by those who had them do so: that is whom clients see as their peer.
pub(super) fn listeners(ctx: &mut Context) -> Result<()> {
    let mut batches: BTreeMap<usize, Batch> = BTreeMap::new();
    for (state, id) in ctx.state.files.iter().zip(0..) {
        let FileKind::Socket(socket) = &state.kind else { continue };
        let (Some(backlog), Some(unix)) = (socket.listen, &socket.unix) else { continue };
        if opened(ctx, id).is_none() {
            continue;
        }
        let Some((process, number)) =
            holder(ctx, id, Some(unix.peer_creds.0)).or_else(|| holder(ctx, id, None))
        else {
            continue;
        };
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        batches.entry(process).or_default().call(libc::SYS_listen, [number.into(), backlog.into()]);
    }
    for (process, batch) in batches {
        inject(ctx, process, batch)?;
    }
    Ok(())
}

/// Exclusive and locked terminals; windows that have another size than they had, which their programs hear of.
pub(super) fn terminals(ctx: &Context, ptys: &BTreeMap<(Id, u32), Pair>) {
    for pair in ptys.values() {
        if let Some(slave) = pair.slave.as_ref().filter(|_| pair.exclusive) {
            let _ = call::ioctl_value(slave.as_fd(), call::TIOCEXCL, 0);
        }
        if pair.locked {
            let _ = call::ioctl_set(pair.master.as_fd(), call::TIOCSPTLCK, 1);
        }
    }
    for (state, id) in ctx.state.files.iter().zip(0..) {
        let FileKind::External { tty: Some(tty), .. } = &state.kind else { continue };
        let Some(fd) = opened(ctx, id) else { continue };
        let Ok(now) = call::ioctl_bytes(fd, call::WINSIZE) else { continue };
        let mut before = [0u8; 8];
        let (rows, columns, x, y) = tty.winsize;
        for (to, from) in before.chunks_exact_mut(2).zip([rows, columns, x, y]) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        // One that has no size yet gets the old one; to change from the old to the new one sends SIGWINCH.
        let _ = call::ioctl_set_bytes(fd, call::SET_WINSIZE, &before);
        if now != [0; 8] && now != before {
            let _ = call::ioctl_set_bytes(fd, call::SET_WINSIZE, &now);
        }
    }
}
