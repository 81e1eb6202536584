//! What looks at other things: pidfds, namespace files, epoll targets, inotify watches.
#![forbid(unsafe_code)]

use super::{Context, file, in_container, name_of};
use crate::checkpoint::inside;
use crate::checkpoint::state::{EpollTarget, FileKind, Id};
use crate::sys::{files as call, process};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Event bits of an epoll target that say what is waited for; without any, a one-shot target is disarmed.
const WAITED_FOR: u32 = 0x27ff & !(ERR_HUP);
const ERR_HUP: u32 = libc::EPOLLERR as u32 | libc::EPOLLHUP as u32;
/// How often a watch is made and removed again to come to its number where the kernel cannot be told.
const MOST_TRIES: i32 = 1 << 16;

/// Opens what refers to processes; none for other kinds.
pub(super) fn open(ctx: &Context, id: Id) -> Result<Option<OwnedFd>> {
    let state = file(&ctx.state, id)?;
    match &state.kind {
        // One of its own pid namespace: what may be done with others differs.
        FileKind::Pidfd { pid: 0, .. } => {
            in_container(ctx, state.container, libc::CLONE_NEWPID, || Ok(Some(call::ended_process()?)))
        }
        FileKind::Pidfd { pid, thread } => {
            let tid = outer_tid(ctx, state.container, *pid).ok_or_else(|| {
                Error::no_such_entity(format!("process {pid} of its pidfd is not in the image"))
            })?;
            let opened = if *thread { call::pidfd_open_thread(tid) } else { process::pidfd_open(tid) };
            Ok(Some(opened.map_err(|e| Error::from(e).context(format!("opening process {pid}")))?))
        }
        FileKind::Namespace { kind, pid } => {
            let known = matches!(
                kind.trim_end_matches("_for_children"),
                "net" | "mnt" | "pid" | "uts" | "ipc" | "user" | "cgroup" | "time"
            );
            let tid = outer_tid(ctx, state.container, *pid).filter(|_| known).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "the statefile is damaged: namespace {kind:?} of process {pid}"
                ))
            })?;
            let path = format!("{tid}/ns/{kind}");
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let fd = openat(ctx.procfs.root(), path.as_str(), flags, Mode::empty())
                .map_err(|e| Error::from(e).context(format!("opening namespace {kind} of process {pid}")))?;
            Ok(Some(fd))
        }
        _ => Ok(None),
    }
}

/// A task's id in the sandbox's pid namespace, by the number that its container knows.
pub(super) fn outer_tid(ctx: &Context, container: Id, number: i32) -> Option<i32> {
    for proc in ctx.procs.iter().flatten().filter(|p| p.container == container) {
        if proc.ns_pid == number {
            return if proc.pid != 0 { Some(proc.pid) } else { zombie(ctx, container, number) };
        }
        let state = ctx.state.processes.get(proc.index)?;
        let thread = state.threads.iter().position(|t| t.tid == number);
        if let Some(tracee) = thread.and_then(|t| proc.threads.get(t)) {
            return Some(tracee.tid());
        }
    }
    None
}

/// Nobody keeps track of a process that has ended but its parent.
fn zombie(ctx: &Context, container: Id, number: i32) -> Option<i32> {
    let ours = |pid: i32| ctx.procs.iter().flatten().any(|p| p.pid == pid && p.container == container);
    ctx.procfs.pids().ok()?.into_iter().find(|pid| {
        let child = ctx.procfs.stat(*pid).is_ok_and(|s| s.state == 'Z' && ours(s.ppid));
        let numbers = || ctx.procfs.status_field(*pid, "NSpid").ok().flatten();
        child && numbers().is_some_and(|n| crate::procfs::parse_nspid(&n).last() == Some(&number))
    })
}

/// One target with the descriptors at hand.
#[derive(Debug, Clone, Copy)]
struct Add {
    epoll: RawFd,
    target: RawFd,
    wanted: EpollTarget,
}

/// Signals are looked for in the process that adds a signalfd, so that one has to do it itself.
pub(super) fn is_signalfd(ctx: &Context, id: Id) -> bool {
    file(&ctx.state, id).is_ok_and(|f| matches!(f.kind, FileKind::Signalfd { .. }))
}

/// Has epoll instances watch what they watched; signalfds are left for later.
pub(super) fn epolls(ctx: &Context) -> Result<()> {
    let mut adds = Vec::new();
    for (state, id) in ctx.state.files.iter().zip(0..) {
        let FileKind::Epoll { targets } = &state.kind else { continue };
        let Some(epoll) = super::opened(ctx, id) else { continue };
        for target in targets.iter().filter(|t| !is_signalfd(ctx, t.file)) {
            let Some(fd) = super::opened(ctx, target.file) else {
                return Err(Error::failure(format!(
                    "{} watches something that was not opened",
                    name_of(&ctx.state, id)
                )));
            };
            adds.push(Add { epoll: epoll.as_raw_fd(), target: fd.as_raw_fd(), wanted: *target });
        }
    }
    if adds.is_empty() {
        return Ok(());
    }
    let highest = adds.iter().map(|a| a.wanted.fd).max().unwrap_or(0);
    if adds.iter().any(|a| a.wanted.fd < 0) {
        return Err(Error::invalid_argument("the statefile is damaged: number of an epoll target"));
    }
    inside::with_own_table(|| {
        let adds = out_of_the_way(adds, highest)?;
        let (disarmed, armed): (Vec<Add>, Vec<Add>) =
            adds.into_iter().partition(|a| a.wanted.events & WAITED_FOR == 0);
        let instances: BTreeSet<RawFd> = disarmed.iter().map(|a| a.epoll).collect();
        disarmed.iter().try_for_each(add)?;
        // The kernel has them wait for errors all the same: those that are there are taken, which disarms them.
        for epoll in instances {
            while call::epoll_drain(borrow(epoll))? > 0 {}
        }
        armed.iter().try_for_each(add)
    })
}

/// Moves what is needed to numbers above all that targets were added under. In a table of its own.
fn out_of_the_way(adds: Vec<Add>, highest: RawFd) -> Result<Vec<Add>> {
    let mut moved: BTreeMap<RawFd, RawFd> = BTreeMap::new();
    let mut place = |fd: RawFd| -> Result<RawFd> {
        if fd > highest {
            return Ok(fd);
        }
        if let Some(to) = moved.get(&fd) {
            return Ok(*to);
        }
        let to = call::fcntl(borrow(fd), libc::F_DUPFD_CLOEXEC, highest.saturating_add(1)).map_err(|e| {
            Error::from(e)
                .context(format!("descriptor numbers up to {highest} (is the limit of open files lower?)"))
        })?;
        moved.insert(fd, to);
        Ok(to)
    };
    adds.into_iter().map(|a| Ok(Add { epoll: place(a.epoll)?, target: place(a.target)?, ..a })).collect()
}

fn add(add: &Add) -> Result<()> {
    let (number, wanted) = (add.wanted.fd, add.wanted);
    let failed =
        |e: Errno| Error::from(e).context(format!("adding descriptor {number} to an epoll instance"));
    call::dup_to(borrow(add.target), number).map_err(failed)?;
    let result = call::epoll_add(borrow(add.epoll), number, wanted.events, wanted.data);
    call::close_number(number);
    result.map_err(failed)
}

/// A descriptor of the calling thread's table, by number.
fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    call::borrow_number(fd)
}

/// A watch to be made.
struct Watch {
    wd: i32,
    path: CString,
    mask: u32,
}

/// Has inotify instances watch what they watched.
pub(super) fn inotify(ctx: &Context) -> Result<()> {
    for (state, id) in ctx.state.files.iter().zip(0..) {
        let FileKind::Inotify { watches, .. } = &state.kind else { continue };
        let Some(fd) = super::opened(ctx, id) else { continue };
        let mut wanted = Vec::with_capacity(watches.len());
        for (wd, path, mask) in watches {
            // A file that has no name: by its descriptor here, from the procfs' root.
            let path = match path.strip_prefix('#').map(|n| n.parse::<Id>()) {
                None => path.clone(),
                Some(file) => {
                    let fd = file.ok().and_then(|f| super::opened(ctx, f)).ok_or_else(|| {
                        Error::invalid_argument(format!("the statefile is damaged: watch of {path}"))
                    })?;
                    format!("self/fd/{}", fd.as_raw_fd())
                }
            };
            let path = CString::new(path)
                .map_err(|_| Error::invalid_argument("the statefile is damaged: path of a watch"))?;
            wanted.push(Watch {
                wd: *wd,
                path,
                mask: *mask & (libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT),
            });
        }
        if wanted.is_empty() {
            continue;
        }
        wanted.sort_unstable_by_key(|w| w.wd);
        let procfs = ctx.procfs.root();
        in_container(ctx, state.container, libc::CLONE_NEWNS, || {
            nix::unistd::fchdir(procfs)?;
            wanted.iter().try_for_each(|w| watch(fd, w))
        })
        .map_err(|e| e.context(format!("{}: watching with inotify", name_of(&ctx.state, id))))?;
    }
    Ok(())
}

fn watch(fd: BorrowedFd<'_>, wanted: &Watch) -> Result<()> {
    let failed = |e: Errno| Error::from(e).context(wanted.path.to_string_lossy());
    let told = call::ioctl_value(fd, call::INOTIFY_IOC_SETNEXTWD, wanted.wd as u64).is_ok();
    for _ in 0..if told { 1 } else { MOST_TRIES } {
        let wd = call::inotify_add(fd, &wanted.path, wanted.mask).map_err(failed)?;
        if wd == wanted.wd {
            return Ok(());
        }
        call::inotify_remove(fd, wd).map_err(failed)?;
        if wd > wanted.wd {
            break;
        }
    }
    Err(Error::failure(format!(
        "{}: cannot be watched as number {}",
        wanted.path.to_string_lossy(),
        wanted.wd
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn watches_get_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let fd = call::inotify().unwrap();
        for (wd, name) in [(3, "a"), (4, "b"), (100_000, "c")] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            let path = CString::new(path.to_str().unwrap()).unwrap();
            watch(fd.as_fd(), &Watch { wd, path, mask: libc::IN_MODIFY }).unwrap();
        }
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        let mut wds: Vec<i32> = crate::checkpoint::dump::files::fdinfo::FdInfo::parse(&info)
            .watches()
            .iter()
            .map(|w| w.wd)
            .collect();
        wds.sort_unstable();
        assert_eq!(wds, [3, 4, 100_000]);
        let gone = Watch { wd: 7, path: CString::new("/no/such/file").unwrap(), mask: 1 };
        assert!(watch(fd.as_fd(), &gone).unwrap_err().message.contains("/no/such/file"));
    }

    #[test]
    fn targets_keep_numbers_that_mean_something_else_here() {
        let epoll = call::epoll().unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        let target = |fd, events, data| EpollTarget { fd, file: 0, events, data };
        let adds = vec![
            // Numbers of the very descriptors that are needed.
            Add { epoll: epoll.as_raw_fd(), target: r.as_raw_fd(), wanted: target(epoll.as_raw_fd(), 1, 11) },
            Add { epoll: epoll.as_raw_fd(), target: w.as_raw_fd(), wanted: target(r.as_raw_fd(), 4, 22) },
        ];
        let highest = adds.iter().map(|a| a.wanted.fd).max().unwrap();
        inside::with_own_table(|| out_of_the_way(adds, highest)?.iter().try_for_each(add)).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd())).unwrap();
        let mut found: Vec<(i32, u64)> = crate::checkpoint::dump::files::fdinfo::FdInfo::parse(&info)
            .targets()
            .iter()
            .map(|t| (t.fd, t.data))
            .collect();
        found.sort_unstable();
        let mut wanted = vec![(epoll.as_raw_fd(), 11), (r.as_raw_fd(), 22)];
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }
}
