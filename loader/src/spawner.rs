//! The spawner: PID 1 of the sandbox. It forks container processes and reaps them; nothing else.
//!
//! It is single-threaded, so that the processes it forks may run ordinary Rust before they execute a program. It
//! knows nothing about containers: a new process gets its orders from the loader over a channel of its own.
//! When the loader is gone, its request socket closes and the spawner exits, and with it — it is PID 1 —
//! everything in the sandbox.
#![forbid(unsafe_code)]

use crate::checkpoint;
use crate::init;
use crate::sys::process::{self, ForkOptions, Forked, Reaped};
use crate::worker;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// Asks for a new process. Descriptors: its channel; then, as the flags say, the init's pidfd whose pid namespace
/// it joins, and the v2 cgroup directory it starts in.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct ForkRequest {
    new_pid_namespace: bool,
    join_pid_namespace: bool,
    into_cgroup: bool,
    role: Role,
}

/// What becomes of a process that the spawner forks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A container's process ([`crate::init`]).
    #[default]
    Container,
    /// An agent for a checkpoint or restore ([`crate::checkpoint::agent`]), in the spawner's namespaces.
    Agent,
    /// Does one job ([`crate::worker`]), in the spawner's namespaces.
    Worker,
}

/// The new process' pid in the sandbox's namespace (with its pidfd), or an errno.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum ForkReply {
    Forked { pid: i32 },
    Failed { errno: i32 },
}

/// The end of a process that the spawner had forked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Pid in the sandbox's namespace.
    pub pid: i32,
    /// Raw wait status.
    pub status: i32,
}

/// The spawner's ends of its two sockets, and what new processes need from it.
#[derive(Debug)]
pub struct SpawnerEnds {
    /// Requests and replies.
    pub requests: UnixStream,
    /// Exits, spawner to loader.
    pub exits: UnixStream,
    /// The sandbox's mount namespace (that of the root container).
    pub mount_namespace: OwnedFd,
    /// The spawner shares somebody else's pid namespace: its death kills nothing by itself.
    pub shared_pid_namespace: bool,
}

/// Runs the spawner; returns only by ending the process.
pub fn main(ends: SpawnerEnds) -> ! {
    process::set_name(c"airlock-spawner");
    // Neither here nor in a process that is forked may a panic reach the frames of what this process was forked from.
    let code = match catch_unwind(AssertUnwindSafe(|| serve(&ends))) {
        Ok(Ok(())) => 0,
        Ok(Err(_)) => 1,
        Err(_) => 101,
    };
    process::exit_now(code)
}

fn serve(ends: &SpawnerEnds) -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let own = process::pidfd_open(nix::unistd::getpid().as_raw())?;
    loop {
        let mut fds = [
            PollFd::new(ends.requests.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = |fd: &PollFd| fd.revents().is_some_and(|r| !r.is_empty());
        let (request, child) = (ready(&fds[0]), ready(&fds[1]));
        if child {
            while let Ok(Some(_)) = children.read_signal() {}
            while let Ok(Some(Reaped { pid, status })) = process::reap() {
                binary::send(&ends.exits, &Exited { pid, status }, &[])?;
            }
        }
        if request {
            let (request, fds): (ForkRequest, _) = binary::recv(&ends.requests)?;
            match fork_one(ends, &own, request, fds) {
                Ok((pid, pidfd)) => {
                    binary::send(&ends.requests, &ForkReply::Forked { pid }, &[pidfd.as_fd()])?;
                }
                Err(errno) => {
                    binary::send(&ends.requests, &ForkReply::Failed { errno: errno as i32 }, &[])?;
                }
            }
        }
    }
}

fn fork_one(
    ends: &SpawnerEnds,
    own: &OwnedFd,
    request: ForkRequest,
    fds: Vec<OwnedFd>,
) -> std::result::Result<(i32, OwnedFd), nix::errno::Errno> {
    let mut fds = fds.into_iter();
    let missing = nix::errno::Errno::EBADF;
    let channel = fds.next().ok_or(missing)?;
    let pid_namespace = if request.join_pid_namespace { Some(fds.next().ok_or(missing)?) } else { None };
    let cgroup = if request.into_cgroup { Some(fds.next().ok_or(missing)?) } else { None };
    if let Some(target) = &pid_namespace {
        process::setns(target.as_fd(), libc::CLONE_NEWPID)?;
    }
    let forked = process::fork(ForkOptions {
        new_pid_namespace: request.new_pid_namespace,
        into_cgroup: cgroup.as_ref().map(AsFd::as_fd),
        ..ForkOptions::default()
    });
    if let Ok(Forked::Child) = forked {
        child(ends, channel, request.role);
    }
    if pid_namespace.is_some() {
        process::setns(own.as_fd(), libc::CLONE_NEWPID)?;
    }
    match forked? {
        Forked::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Forked::Child => Err(nix::errno::Errno::EINVAL),
    }
}

fn child(ends: &SpawnerEnds, channel: OwnedFd, role: Role) -> ! {
    if ends.shared_pid_namespace {
        let _ = process::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0, 0, 0);
    }
    let keep = [channel.as_raw_fd(), ends.mount_namespace.as_raw_fd()];
    // The spawner's other descriptors are closed by number: their owners live in frames that never return.
    let _ = process::close_all_except(3, &keep);
    let channel = UnixStream::from(channel);
    let Err(_) = catch_unwind(AssertUnwindSafe(|| match role {
        Role::Container => init::main(channel, ends.mount_namespace.as_fd()),
        Role::Agent => checkpoint::agent::main(channel),
        Role::Worker => worker::main(channel),
    }));
    process::exit_now(101)
}

/// How a new process is placed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Placement<'a> {
    /// First process of a new pid namespace.
    pub new_pid_namespace: bool,
    /// Process (pidfd) whose pid namespace is joined.
    pub pid_namespace_of: Option<BorrowedFd<'a>>,
    /// v2 cgroup directory to start in.
    pub into_cgroup: Option<BorrowedFd<'a>>,
    /// What it becomes.
    pub role: Role,
}

/// A process that the spawner has just forked; it waits for orders on `channel`.
#[derive(Debug)]
pub struct Spawned {
    /// Pid in the sandbox's namespace.
    pub pid: i32,
    /// Its process descriptor.
    pub pidfd: OwnedFd,
    /// The loader's end of its channel.
    pub channel: UnixStream,
}

/// The loader's side of the spawner.
#[derive(Debug)]
pub struct Spawner {
    requests: Mutex<UnixStream>,
}

impl Spawner {
    /// Wraps the loader's end of the request socket.
    pub fn new(requests: UnixStream) -> Self {
        Self { requests: Mutex::new(requests) }
    }

    /// Has a process forked and calls `register` with it before any exit can be read for it.
    ///
    /// # Errors
    /// The kernel's refusal (`EAGAIN`: pids limit), or [`airlock_wire::error::Kind::Disconnected`] when the
    /// spawner is gone.
    pub fn spawn<T>(&self, placement: Placement<'_>, register: impl FnOnce(Spawned) -> T) -> Result<T> {
        let (ours, theirs) = UnixStream::pair()?;
        let request = ForkRequest {
            new_pid_namespace: placement.new_pid_namespace,
            join_pid_namespace: placement.pid_namespace_of.is_some(),
            into_cgroup: placement.into_cgroup.is_some(),
            role: placement.role,
        };
        let mut fds = vec![theirs.as_fd()];
        fds.extend(placement.pid_namespace_of);
        fds.extend(placement.into_cgroup);
        let requests = self.requests.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        binary::send(&requests, &request, &fds)?;
        let (reply, fds): (ForkReply, Vec<OwnedFd>) = binary::recv(&requests)?;
        match (reply, fds.into_iter().next()) {
            (ForkReply::Forked { pid }, Some(pidfd)) => Ok(register(Spawned { pid, pidfd, channel: ours })),
            (ForkReply::Forked { .. }, None) => Err(Error::failure("the spawner sent no pidfd")),
            (ForkReply::Failed { errno }, _) => Err(Error::from(nix::errno::Errno::from_raw(errno))
                .context("forking a container process (is the pids limit reached?)")),
        }
    }
}
