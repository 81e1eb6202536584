//! Descriptors: everything that was open is opened again, once, in this process; then each process gets its own.
//!
//! | step | when | does |
//! | --- | --- | --- |
//! | [`Files::open`] | inits are taken over, filesystems have their contents | opens what needs no process; memory objects are made, empty |
//! | [`Files::complete`] | all processes exist, with their sessions and groups | terminals get their sessions; pidfds and the like; what waits in sockets |
//! | [`Files::install`] | all threads exist, address spaces are built | puts descriptors into each table; directories, umask |
//! | [`Files::finish`] | privileges are as they were, nothing runs yet | locks, owners, timers |
//!
//! Paths are opened as their container sees them, on a thread that is in its mount namespace, so that neither a link in
//! the container nor a forged image leads anywhere else.
#![forbid(unsafe_code)]

mod events;
mod external;
mod install;
mod late;
mod objects;
mod path;
mod pipe;
mod tty;
mod unix;
mod watch;

pub(crate) use tty::fill as fill_terminal;

use super::context::Context;
use super::net::Sockets;
use crate::checkpoint::inside;
use crate::checkpoint::state::{FileKind, FileState, Id, SandboxState};
use airlock_wire::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// File status flags that fcntl(2) can change (O_ASYNC is set by who wants the signals).
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;
/// Flags that open(2) is told.
const OPENABLE: i32 = libc::O_ACCMODE
    | SETTABLE
    | libc::O_PATH
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_SYNC
    | libc::O_LARGEFILE;

/// What is open, besides [`Context::files`], until the programs go on.
#[derive(Debug, Default)]
pub struct Files {
    /// Masters and slaves of ptys, by container and index: kept until all is done, so that none hangs up before.
    ptys: BTreeMap<(Id, u32), tty::Pair>,
    unix: unix::Unix,
}

/// Which descriptions belong to containers that are restored, by container.
fn by_container(ctx: &Context) -> BTreeMap<Id, Vec<Id>> {
    let mut all: BTreeMap<Id, Vec<Id>> = BTreeMap::new();
    for container in &ctx.order.containers {
        all.insert(container.image, Vec::new());
    }
    for (file, id) in ctx.state.files.iter().zip(0..) {
        if let Some(files) = all.get_mut(&file.container) {
            files.push(id);
        }
    }
    all
}

/// The descriptor that a description is known by, for messages: "descriptor 5 of process 12".
fn name_of(state: &SandboxState, id: Id) -> String {
    for process in &state.processes {
        for thread in &process.threads {
            let table = state.fd_tables.get(thread.fd_table as usize).filter(|_| process.mm.is_some());
            if let Some(entry) = table.and_then(|t| t.fds.iter().find(|e| e.file == id)) {
                return format!("descriptor {} of process {}", entry.fd, process.pid);
            }
        }
    }
    for process in &state.processes {
        let mm = process.mm.and_then(|mm| state.mms.get(mm as usize));
        let mapped =
            |v: &crate::checkpoint::state::Vma| v.kind == crate::checkpoint::state::VmaKind::File(id);
        if mm.is_some_and(|mm| mm.exe == Some(id) || mm.vmas.iter().any(mapped)) {
            return format!("a file that process {} has mapped", process.pid);
        }
    }
    format!("open file {id}")
}

fn file(state: &SandboxState, id: Id) -> Result<&FileState> {
    state.files.get(id as usize).ok_or_else(|| Error::failure(format!("the image has no open file {id}")))
}

/// The descriptor of a description that has been opened.
fn opened(ctx: &Context, id: Id) -> Option<BorrowedFd<'_>> {
    ctx.files.get(id as usize)?.as_ref().map(AsFd::as_fd)
}

/// Runs `work` in namespaces of a container, whose init waits or has become the container's.
fn in_container<T: Send>(
    ctx: &Context,
    container: Id,
    namespaces: i32,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let order = ctx.order.containers.iter().find(|c| c.image == container);
    let order =
        order.ok_or_else(|| Error::failure(format!("container {container} is not being restored")))?;
    let init = crate::sys::process::pidfd_open(order.init)?;
    inside::run(init.as_fd(), namespaces, work)
}

/// Opens the file behind a descriptor anew, as another description.
pub(super) fn reopen(procfs: BorrowedFd<'_>, fd: BorrowedFd<'_>, flags: i32) -> nix::Result<OwnedFd> {
    use nix::fcntl::{OFlag, openat};
    use std::os::fd::AsRawFd;
    let link = format!("self/fd/{}", fd.as_raw_fd());
    let flags = OFlag::from_bits_retain(flags & !libc::O_NOFOLLOW) | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    openat(procfs, link.as_str(), flags, nix::sys::stat::Mode::empty())
}

/// Gives a description the status flags that it had.
fn set_flags(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    use crate::sys::files as call;
    if flags & libc::O_PATH != 0 {
        return Ok(());
    }
    let now = call::fcntl(fd, libc::F_GETFL, 0)?;
    if now & SETTABLE != flags & SETTABLE {
        call::fcntl(fd, libc::F_SETFL, flags & SETTABLE)?;
    }
    Ok(())
}

impl Files {
    /// Opens whatever needs no process: fills [`Context::files`] and [`Context::shmems`]. `sockets` are those of other
    /// families than AF_UNIX.
    ///
    /// # Errors
    /// What could not be opened, and which process had it.
    pub fn open(ctx: &mut Context, sockets: &Sockets) -> Result<Self> {
        check_limit(ctx.state.files.len(), inside::many_descriptors())?;
        let mut files = Self::default();
        for (container, ids) in by_container(ctx) {
            let named = |ctx: &Context, id: Id, e: Error| e.context(name_of(&ctx.state, id));
            for id in &ids {
                let made = external::open(ctx, *id)
                    .and_then(|fd| fd.map_or_else(|| events::open(ctx, *id), |fd| Ok(Some(fd))))
                    .map_err(|e| named(ctx, *id, e))?;
                let made = match made {
                    Some(fd) => Some(fd),
                    None => sockets.get(*id).map(|fd| fd.try_clone_to_owned()).transpose()?,
                };
                if let Some(fd) = made {
                    put(ctx, *id, fd)?;
                }
            }
            pipe::open(ctx, &ids)?;
            path::open(ctx, container, &ids)?;
            events::open_queues(ctx, container, &ids)?;
            files.open_ptys(ctx, container, &ids)?;
            files.unix.open(ctx, container, &ids)?;
            external::let_go_of_terminal(ctx, container)?;
        }
        Ok(files)
    }

    /// Opens what needs processes, connects and fills what is open.
    ///
    /// # Errors
    /// As [`Files::open`].
    pub fn complete(&mut self, ctx: &mut Context) -> Result<()> {
        self.sessions(ctx)?;
        for (container, ids) in by_container(ctx) {
            path::open_of_processes(ctx, container, &ids)?;
            for id in &ids {
                let made = watch::open(ctx, *id).map_err(|e| e.context(name_of(&ctx.state, *id)))?;
                if let Some(fd) = made {
                    put(ctx, *id, fd)?;
                }
            }
        }
        self.fill_ptys(ctx)?;
        self.unix.fill(ctx)?;
        watch::epolls(ctx)
    }

    /// Gives each process its descriptors, directories and umask. Processes keep nothing else open.
    ///
    /// # Errors
    /// When a number is beyond a limit, or a directory does not exist.
    pub fn install(&mut self, ctx: &mut Context) -> Result<()> {
        install::tables(ctx)?;
        install::directories(ctx)
    }

    /// What only counts from now on: watches, locks, owners, timers. Drops what nobody holds.
    ///
    /// # Errors
    /// When a lock is not to be had any more.
    pub fn finish(self, ctx: &mut Context) -> Result<()> {
        late::locks(ctx)?;
        late::owners(ctx)?;
        late::listeners(ctx)?;
        watch::inotify(ctx)?;
        late::terminals(ctx, &self.ptys);
        events::arm(ctx)?;
        drop(self);
        // What no process has is closed by this, and its other end hears of it.
        ctx.files.iter_mut().for_each(|f| drop(f.take()));
        Ok(())
    }
}

/// All open files are held at once before processes get them.
fn check_limit(files: usize, limit: u64) -> Result<()> {
    /// For what else is open.
    const OTHERS: usize = 64;
    if (files + OTHERS) as u64 <= limit {
        return Ok(());
    }
    Err(Error::new(
        Kind::Failure,
        format!(
            "the image has {files} open files, and the limit here is {limit}: call airlock with a higher hard limit of open \
             files (ulimit -Hn, RLIMIT_NOFILE)"
        ),
    ))
}

/// Takes note of what was opened for a description.
fn put(ctx: &mut Context, id: Id, fd: OwnedFd) -> Result<()> {
    let flags = file(&ctx.state, id)?.flags;
    let external = matches!(file(&ctx.state, id)?.kind, FileKind::External { .. });
    if !external {
        set_flags(fd.as_fd(), flags)
            .map_err(|e| e.context(format!("setting the status flags of {}", name_of(&ctx.state, id))))?;
    }
    if let Some(slot) = ctx.files.get_mut(id as usize) {
        *slot = Some(fd);
    }
    Ok(())
}
