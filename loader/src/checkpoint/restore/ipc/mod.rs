//! Making System V IPC objects and POSIX message queues again, with the ids that programs keep.
#![forbid(unsafe_code)]

use super::context::Context;
use super::source::Source;
use crate::checkpoint::ipc::{LIMITS, redo};
use crate::checkpoint::pages::{self, Object as Content};
use crate::checkpoint::state::{Id, IpcPerm, IpcSegment, IpcState, PosixQueue, SandboxState, ShmemKind};
use crate::checkpoint::{inside, sysctl};
use crate::procfs::ProcFs;
use crate::sys::ipc::{self, Attached, Kind, Object, QueueAttributes};
use crate::sys::process;
use airlock_wire::error::{Error, Kind as ErrorKind, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// Makes all objects, and fills them. Answers how many pages were brought in.
///
/// # Errors
/// An id or a key is taken; a limit; damaged content.
pub fn create(ctx: &mut Context, source: &Source) -> Result<u64> {
    let owners: Vec<(Id, i32)> = ctx.order.containers.iter().map(|c| (c.image, c.init)).collect();
    let mut pages = 0;
    for (container, init) in owners {
        if !has_objects(&ctx.state.ipc, container) {
            continue;
        }
        let (procfs, state) = (&ctx.procfs, &ctx.state);
        let work = || make(procfs, &state.ipc, container, source, state);
        let made = if same_namespace(procfs, init) {
            work()?
        } else {
            let pidfd = process::pidfd_open(init)?;
            inside::run(pidfd.as_fd(), libc::CLONE_NEWIPC, work)?
        };
        pages += made.pages;
        ctx.segments.extend(made.segments);
        made.warnings.into_iter().for_each(|w| ctx.warn(w));
    }
    // Segments of a namespace that is not the sandbox's own are somebody else's: they are there, or they are not.
    for id in 0..ctx.state.shmems.len() as Id {
        let Some(ShmemKind::SysV { shmid }) = ctx.state.shmems.get(id as usize).map(|s| s.kind) else {
            continue;
        };
        if !ctx.segments.contains_key(&id) && Kind::Segment.stat(shmid).is_ok() {
            ctx.segments.insert(id, shmid);
        }
    }
    Ok(pages)
}

/// Has processes do again what their ends will undo. They exist, and have one thread each.
///
/// # Errors
/// When a process cannot.
pub fn undo(ctx: &mut Context) -> Result<()> {
    let sets = ctx.state.ipc.semaphores.clone();
    for set in sets.iter().filter(|s| !s.undo.is_empty()) {
        for (pid, change) in &set.undo {
            if change.len() != set.values.len() {
                return Err(Error::invalid_argument("the statefile is damaged: what to undo of semaphores"));
            }
            let failed =
                |e: Error| e.context(format!("SEM_UNDO of process {pid} on semaphore set {}", set.perm.id));
            let owner = |container: Id| ctx.state.containers.get(container as usize).map(|c| c.ipc_owner);
            let index = ctx.state.processes.iter().position(|p| {
                p.pid == *pid && owner(p.container) == Some(set.perm.container) && !p.threads.is_empty()
            });
            let init = ctx.order.containers.iter().find(|c| c.image == set.perm.container).map(|c| c.init);
            let (Some(index), Some(init)) = (index, init) else { continue };
            let (before, after): (Vec<i16>, Vec<i16>) =
                change.iter().zip(&set.values).map(|(c, value)| around_redo(*c, i32::from(*value))).unzip();
            change_values(ctx, init, set.perm.id, &before).map_err(failed)?;
            if let Some(proc) = ctx.procs.get_mut(index).and_then(Option::as_mut) {
                let (tracee, region) = proc.injector()?;
                redo::process(tracee, &region, set.perm.id, change).map_err(failed)?;
            }
            change_values(ctx, init, set.perm.id, &after).map_err(failed)?;
        }
    }
    Ok(())
}

/// Doing again what will be undone by adding `change` to a semaphore subtracts as much from it. What to add before and after
/// that, so that `value` remains and it is neither negative nor too great meanwhile.
fn around_redo(change: i16, value: i32) -> (i16, i16) {
    const SEMVMX: i32 = 32767;
    let first = value + i32::from(change);
    if (0..=SEMVMX).contains(&first) { (change, 0) } else { (0, change) }
}

fn change_values(ctx: &Context, init: i32, id: i32, changes: &[i16]) -> Result<()> {
    if changes.iter().all(|c| *c == 0) {
        return Ok(());
    }
    let work = || {
        for (number, change) in changes.iter().enumerate().filter(|(_, c)| **c != 0) {
            ipc::sem_change(id, number as u16, *change)?;
        }
        Ok(())
    };
    if same_namespace(&ctx.procfs, init) {
        return work();
    }
    let pidfd = process::pidfd_open(init)?;
    inside::run(pidfd.as_fd(), libc::CLONE_NEWIPC, work)
}

/// Marks segments again that go when nobody has them attached any more: everybody has by now.
///
/// # Errors
/// When a segment is gone.
pub fn finish(ctx: &Context) -> Result<()> {
    for segment in ctx.state.ipc.segments.iter().filter(|s| s.perm.mode & ipc::SHM_DEST != 0) {
        let container = ctx.order.containers.iter().find(|c| c.image == segment.perm.container);
        let Some(container) = container else { continue };
        let work = || {
            Kind::Segment
                .remove(segment.perm.id)
                .map_err(|e| Error::from(e).context(format!("marking segment {}", segment.perm.id)))
        };
        if same_namespace(&ctx.procfs, container.init) {
            work()?;
        } else {
            let pidfd = process::pidfd_open(container.init)?;
            inside::run(pidfd.as_fd(), libc::CLONE_NEWIPC, work)?;
        }
    }
    Ok(())
}

fn has_objects(ipc: &IpcState, container: Id) -> bool {
    ipc.segments.iter().any(|s| s.perm.container == container)
        || ipc.semaphores.iter().any(|s| s.perm.container == container)
        || ipc.queues.iter().any(|q| q.perm.container == container)
        || ipc.posix_queues.iter().any(|q| q.container == container)
        || ipc.limits.iter().any(|(c, ..)| *c == container)
}

fn same_namespace(procfs: &ProcFs, pid: i32) -> bool {
    let inode = |path: String| fstatat(procfs.root(), path.as_str(), AtFlags::empty()).map(|s| s.st_ino).ok();
    inode(format!("{pid}/ns/ipc")) == inode("thread-self/ns/ipc".to_owned())
}

#[derive(Default)]
struct Made {
    pages: u64,
    segments: Vec<(Id, i32)>,
    warnings: Vec<String>,
}

/// Makes the objects of one namespace, on a thread that is in it.
fn make(
    procfs: &ProcFs,
    ipc: &IpcState,
    container: Id,
    source: &Source,
    state: &SandboxState,
) -> Result<Made> {
    let mut made = Made::default();
    let limits: Vec<(String, String)> =
        ipc.limits.iter().filter(|(c, ..)| *c == container).map(|(_, n, v)| (n.clone(), v.clone())).collect();
    sysctl::restore(procfs, &limits, |name| LIMITS.contains(&name), &mut made.warnings);
    for segment in ipc.segments.iter().filter(|s| s.perm.container == container) {
        let huge = state.shmems.get(segment.shmem as usize).is_some_and(|s| s.huge_page_size != 0);
        made.pages += make_segment(procfs, segment, source, huge, &mut made.warnings)
            .map_err(|e| e.context(format!("shared memory segment {}", segment.perm.id)))?;
        made.segments.push((segment.shmem, segment.perm.id));
    }
    for set in ipc.semaphores.iter().filter(|s| s.perm.container == container) {
        let failed = |e: Error| e.context(format!("semaphore set {}", set.perm.id));
        let count = i32::try_from(set.values.len()).map_err(|_| failed(Error::from(Errno::EINVAL)))?;
        let flags = mode(&set.perm);
        with_id(procfs, Kind::Semaphores, &set.perm, || ipc::sem_make(set.perm.key, count, flags))
            .map_err(failed)?;
        ipc::sem_set_values(set.perm.id, &set.values).map_err(|e| failed(e.into()))?;
        own(Kind::Semaphores, &set.perm, 0, &mut made.warnings);
    }
    for queue in ipc.queues.iter().filter(|q| q.perm.container == container) {
        let failed = |e: Error| e.context(format!("message queue {}", queue.perm.id));
        let flags = mode(&queue.perm);
        with_id(procfs, Kind::Queue, &queue.perm, || ipc::msg_make(queue.perm.key, flags)).map_err(failed)?;
        own(Kind::Queue, &queue.perm, queue.max_bytes, &mut made.warnings);
        for (kind, data) in &queue.messages {
            ipc::msg_send(queue.perm.id, *kind, data).map_err(|e| failed(e.into()))?;
        }
    }
    if ipc.posix_queues.iter().any(|q| q.container == container) {
        // What they hold counts towards a limit of the user who makes them.
        let _ = process::set_rlimit(libc::RLIMIT_MSGQUEUE, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
    }
    for queue in ipc.posix_queues.iter().filter(|q| q.container == container) {
        posix_queue(queue)
            .map_err(|e| e.context(format!("message queue /{}", String::from_utf8_lossy(&queue.name))))?;
    }
    Ok(made)
}

fn mode(perm: &IpcPerm) -> i32 {
    (perm.mode & 0o777) as i32
}

/// Makes an object with the id that it had: the kernel takes the one that it is told for the next.
fn with_id(
    procfs: &ProcFs,
    kind: Kind,
    perm: &IpcPerm,
    make: impl FnOnce() -> nix::Result<i32>,
) -> Result<()> {
    let next = match kind {
        Kind::Segment => "kernel.shm_next_id",
        Kind::Semaphores => "kernel.sem_next_id",
        Kind::Queue => "kernel.msg_next_id",
    };
    sysctl::write(procfs, next, &perm.id.to_string())?;
    let id = ipc::as_user(perm.creator.0, perm.creator.1, make)?.map_err(|e| match e {
        Errno::EEXIST => Error::new(ErrorKind::InvalidState, format!("its key {:#x} is taken", perm.key)),
        e => e.into(),
    })?;
    if id != perm.id {
        let _ = kind.remove(id);
        return Err(Error::new(ErrorKind::InvalidState, format!("its id is taken (it got {id})")));
    }
    Ok(())
}

fn own(kind: Kind, perm: &IpcPerm, max_bytes: u64, warnings: &mut Vec<String>) {
    let object = Object { id: perm.id, owner: perm.owner, mode: perm.mode, max_bytes, ..Object::default() };
    if let Err(e) = kind.set(&object) {
        warnings.push(format!("{kind:?} object {}: owner, mode or limit: {e}", perm.id));
    }
}

fn make_segment(
    procfs: &ProcFs,
    segment: &IpcSegment,
    source: &Source,
    huge: bool,
    warnings: &mut Vec<String>,
) -> Result<u64> {
    let perm = &segment.perm;
    let flags = mode(perm) | if huge { ipc::SHM_HUGETLB } else { 0 };
    with_id(procfs, Kind::Segment, perm, || ipc::shm_make(perm.key, segment.size, flags))?;
    let file = open_segment(procfs, perm.id, segment.size)?;
    let pages =
        pages::fill_file(&source.chain, Content::Shared(segment.shmem), file.as_fd(), segment.size, 0, None)?
            .pages;
    own(Kind::Segment, perm, 0, warnings);
    if perm.mode & ipc::SHM_LOCKED != 0
        && let Err(e) = ipc::shm_lock(perm.id)
    {
        warnings.push(format!("segment {} is not locked into memory: {e}", perm.id));
    }
    Ok(pages)
}

/// A segment as a file.
fn open_segment(procfs: &ProcFs, id: i32, size: u64) -> Result<OwnedFd> {
    let attached = Attached::new(id, size)?;
    let (start, _) = attached.range();
    let prefix = format!("{start:x}-");
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = nix::dir::Dir::openat(procfs.root(), "self/map_files", flags, Mode::empty())?;
    let names = dir.iter().filter_map(|e| Some(e.ok()?.file_name().to_str().ok()?.to_owned()));
    let name = names.into_iter().find(|n| n.starts_with(&prefix));
    let name = name.ok_or_else(|| Error::failure("it is not found where it was attached"))?;
    let path = format!("self/map_files/{name}");
    Ok(openat(procfs.root(), path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn posix_queue(queue: &PosixQueue) -> Result<()> {
    let damaged = || Error::invalid_argument("the statefile is damaged: name of a message queue");
    if queue.name.is_empty() || queue.name.contains(&b'/') || queue.name.len() > 255 {
        return Err(damaged());
    }
    let name = CString::new(queue.name.0.clone()).map_err(|_| damaged())?;
    let attributes =
        QueueAttributes { max_messages: queue.max_messages, message_size: queue.message_size, messages: 0 };
    let fd = ipc::mq_make(&name, 0o600, attributes)?;
    let (uid, gid) = queue.owner;
    nix::unistd::fchown(&fd, Some(uid.into()), Some(gid.into()))?;
    nix::sys::stat::fchmod(&fd, Mode::from_bits_truncate(queue.mode))?;
    for (priority, data) in &queue.messages {
        ipc::mq_send(fd.as_fd(), *priority, data)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::around_redo;

    #[test]
    fn what_is_done_again_leaves_the_range_at_no_time() {
        // As a producer and a consumer have it, and at both ends.
        assert_eq!(around_redo(3, 7), (3, 0));
        assert_eq!(around_redo(-17200, 32700), (-17200, 0));
        assert_eq!(around_redo(-5, 2), (0, -5));
        assert_eq!(around_redo(5, 32767), (0, 5));
    }
}
