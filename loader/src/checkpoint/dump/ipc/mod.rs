//! System V IPC and POSIX message queues of the containers' IPC namespaces.
//!
//! [`Ipc::collect`] looks: objects, values, messages of System V queues (which can be copied). [`Ipc::settle`] is for
//! what can only be had by taking it and putting it back, which is done when nothing will be refused any more: the
//! messages of POSIX queues, and what processes have to undo at their end (SEM_UNDO).
#![forbid(unsafe_code)]

mod posix;
mod undo;

use super::context::Context;
use super::net::{makes_namespace, namespace_inode};
use crate::checkpoint::ipc::LIMITS;
use crate::checkpoint::state::{
    Id, IpcPerm, IpcQueue, IpcSegment, IpcSemaphores, IpcState, ShmemKind, ShmemState,
};
use crate::checkpoint::{inside, sysctl};
use crate::procfs::ProcFs;
use crate::sys::ipc::{self, Attached, Kind, Object};
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat};
use oci_spec::runtime::LinuxNamespaceType;
use std::os::fd::{AsFd, OwnedFd};

/// What a dump keeps of IPC until it writes.
#[derive(Debug, Default)]
pub struct Ipc {
    spaces: Vec<Space>,
    posix: Vec<posix::Queue>,
}

/// An IPC namespace of the sandbox's own.
#[derive(Debug)]
struct Space {
    /// The first container that is in it.
    container: Id,
    /// A process in it.
    pid: i32,
    /// The agent is in it.
    ours: bool,
}

/// What was found in one.
#[derive(Default)]
struct Found {
    state: IpcState,
    /// Segments that nobody has attached, or whose mapping was not met: (shmid, descriptor, its huge page size).
    contents: Vec<(i32, OwnedFd, u64)>,
    posix: Vec<posix::Queue>,
    problems: Vec<(Option<i32>, String)>,
}

impl Space {
    /// Runs `work` on a thread in it.
    fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.ours {
            return work();
        }
        let pidfd = process::pidfd_open(self.pid)?;
        inside::run(pidfd.as_fd(), libc::CLONE_NEWIPC, work)
    }
}

impl Ipc {
    /// Describes the objects of all IPC namespaces that the sandbox made, in `state.ipc`. Address spaces have been
    /// described: segments that are attached are among `state.shmems` already.
    ///
    /// # Errors
    /// When a namespace cannot be looked at. What cannot be saved is refused.
    pub fn collect(ctx: &mut Context) -> Result<Self> {
        let mut all = Self { spaces: spaces(ctx)?, posix: Vec::new() };
        for space in &all.spaces {
            // What is attached has been seen through a mapping, which gives its content, too.
            let known: Vec<i32> = ctx
                .state
                .shmems
                .iter()
                .filter_map(|s| if let ShmemKind::SysV { shmid } = s.kind { Some(shmid) } else { None })
                .collect();
            let procfs = &ctx.procfs;
            let found = space.enter(|| look(procfs, space.container, &known))?;
            for (shmid, fd, huge_page_size) in found.contents {
                let stat = fstat(&fd)?;
                let object = ShmemState {
                    kind: ShmemKind::SysV { shmid },
                    size: stat.st_size.max(0) as u64,
                    huge_page_size,
                    identity: (stat.st_dev, stat.st_ino),
                    ..ShmemState::default()
                };
                ctx.add_shmem(object, fd);
            }
            let shmem = |shmid: i32| {
                ctx.state.shmems.iter().position(|s| s.kind == ShmemKind::SysV { shmid }).map(|i| i as Id)
            };
            let mut state = found.state;
            for segment in &mut state.segments {
                segment.shmem = shmem(segment.perm.id)
                    .ok_or_else(|| Error::failure(format!("segment {} is gone", segment.perm.id)))?;
            }
            let ipc = &mut ctx.state.ipc;
            ipc.segments.extend(state.segments);
            ipc.semaphores.extend(state.semaphores);
            ipc.queues.extend(state.queues);
            ipc.limits.extend(state.limits);
            all.posix.extend(found.posix);
            for (pid, problem) in found.problems {
                let index = pid.and_then(|pid| ctx.procs.iter().position(|p| p.pid == pid));
                ctx.refuse(index.unwrap_or(0), None, "IPC object", problem);
            }
        }
        Ok(all)
    }

    /// Takes what can only be taken, and puts it back. The containers stand still and do not notice.
    ///
    /// # Errors
    /// When something cannot be put back as it was.
    pub fn settle(&self, ctx: &mut Context) -> Result<()> {
        for queue in &self.posix {
            let queue = queue.read()?;
            ctx.state.ipc.posix_queues.push(queue);
        }
        for space in &self.spaces {
            undo::find(ctx, space)?;
        }
        Ok(())
    }
}

/// The IPC namespaces that the sandbox made. Sets the containers' `ipc_owner`.
fn spaces(ctx: &mut Context) -> Result<Vec<Space>> {
    let ours = fstatat(ctx.procfs.root(), "thread-self/ns/ipc", AtFlags::empty()).map(|s| s.st_ino).ok();
    let mut inodes: Vec<(u64, Id)> = Vec::new();
    let mut all: Vec<Space> = Vec::new();
    for index in 0..ctx.order.containers.len() {
        let Some(container) = ctx.order.containers.get(index) else { continue };
        let inode = namespace_inode(&ctx.procfs, container.init, "ipc")?;
        let owner = match inodes.iter().find(|(i, _)| *i == inode) {
            Some((_, owner)) => *owner,
            None => {
                inodes.push((inode, index as Id));
                index as Id
            }
        };
        let makes = makes_namespace(&container.spec, LinuxNamespaceType::Ipc);
        if makes && !all.iter().any(|s| s.container == owner) {
            all.push(Space { container: owner, pid: container.init, ours: Some(inode) == ours });
        }
        if let Some(state) = ctx.state.containers.get_mut(index) {
            state.ipc_owner = owner;
        }
    }
    Ok(all)
}

fn perm(object: &Object, container: Id) -> IpcPerm {
    IpcPerm {
        id: object.id,
        key: object.key,
        owner: object.owner,
        creator: object.creator,
        mode: object.mode,
        container,
    }
}

/// Lists a kind; kernels without System V IPC have none.
fn list(kind: Kind) -> Result<Vec<Object>> {
    match kind.list() {
        Err(Errno::ENOSYS) => Ok(Vec::new()),
        result => result.map_err(|e| Error::from(e).context(format!("listing {kind:?} objects of IPC"))),
    }
}

fn look(procfs: &ProcFs, container: Id, known: &[i32]) -> Result<Found> {
    let mut found = Found::default();
    for object in list(Kind::Segment)? {
        let failed = |e: Error| e.context(format!("shared memory segment {}", object.id));
        if !known.contains(&object.id) {
            let (fd, huge) = open_segment(procfs, &object).map_err(failed)?;
            found.contents.push((object.id, fd, huge));
        }
        found.state.segments.push(IpcSegment { perm: perm(&object, container), size: object.size, shmem: 0 });
    }
    for object in list(Kind::Semaphores)? {
        let values = ipc::sem_values(object.id, object.size as usize)
            .map_err(|e| Error::from(e).context(format!("semaphore set {}", object.id)))?;
        found.state.semaphores.push(IpcSemaphores {
            perm: perm(&object, container),
            values,
            undo: Vec::new(),
        });
    }
    for object in list(Kind::Queue)? {
        match messages(&object) {
            Ok(messages) => found.state.queues.push(IpcQueue {
                perm: perm(&object, container),
                max_bytes: object.max_bytes,
                messages,
            }),
            Err(e) => {
                found.problems.push((None, format!("messages of queue {} cannot be copied: {e}", object.id)));
            }
        }
    }
    for name in LIMITS {
        // Kernels differ in what they have.
        if let Ok(value) = sysctl::read(procfs, name) {
            found.state.limits.push((container, (*name).to_owned(), value));
        }
    }
    posix::look(container, &mut found)?;
    Ok(found)
}

/// A segment as a file, and the size of its huge pages, if it is made of them.
fn open_segment(procfs: &ProcFs, object: &Object) -> Result<(OwnedFd, u64)> {
    let attached = Attached::new(object.id, object.size)?;
    let (start, end) = attached.range();
    // What is mapped there is the file behind the segment, which goes on when it is detached.
    let prefix = format!("{start:x}-");
    let path = |range: &str| format!("self/map_files/{range}");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let open = |range: &str| openat(procfs.root(), path(range).as_str(), flags, Mode::empty());
    let fd = open(&format!("{start:x}-{end:x}")).or_else(|e| match e {
        // Huge pages are mapped further.
        Errno::ENOENT => {
            let range = ranges(procfs).into_iter().find(|r| r.starts_with(&prefix)).ok_or(e)?;
            open(&range)
        }
        e => Err(e),
    })?;
    drop(attached);
    let block = fstat(&fd)?.st_blksize.max(0) as u64;
    Ok((fd, if block > 1 << 16 { block } else { 0 }))
}

/// The names in `/proc/self/map_files`.
fn ranges(procfs: &ProcFs) -> Vec<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(mut dir) = nix::dir::Dir::openat(procfs.root(), "self/map_files", flags, Mode::empty()) else {
        return Vec::new();
    };
    dir.iter().filter_map(|e| Some(e.ok()?.file_name().to_str().ok()?.to_owned())).collect()
}

fn messages(object: &Object) -> nix::Result<Vec<(i64, crate::checkpoint::state::Bytes)>> {
    (0..object.size as i64)
        .map(|i| ipc::msg_peek(object.id, i, object.bytes as usize).map(|(kind, data)| (kind, data.into())))
        .collect()
}
