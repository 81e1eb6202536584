//! Starting a sandbox: the process, the boot message, and the conversation until the root container exists.
//!
//! The child is this same program's `boot` command, executed from a view of the binary that nobody can write
//! (CVE-2019-5736: a container must not reach its runtime's binary through `/proc/<pid>/exe`).

#![forbid(unsafe_code)]

use crate::process::{ProcessId, wait_ended};
use crate::sys;
use airlock_wire::api::boot::{BootArgs, BootReply, Fd};
use airlock_wire::api::{airlock, types::Empty};
use airlock_wire::binary::{self, FrameKind, Limits};
use airlock_wire::client::{Client, Dialect};
use airlock_wire::codec;
use airlock_wire::error::{Error, Kind, Result};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long a sandbox that has hung up may take to end.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// Collects the descriptors of a message and hands out their indices.
#[derive(Debug, Default)]
pub struct FdList(Vec<OwnedFd>);

impl FdList {
    /// Adds a descriptor; the message owns it from now on.
    pub fn push(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        self.0.push(fd.into());
        // A message takes far fewer than u16::MAX descriptors; the sender refuses the surplus by count.
        Fd(u16::try_from(self.0.len() - 1).unwrap_or(u16::MAX))
    }

    /// Index that the next descriptor gets.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when nothing was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The descriptors, in the order of their indices.
    pub fn as_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// Which program becomes the sandbox.
#[derive(Debug, Clone, Default)]
pub struct SandboxOptions {
    /// The `airlock` binary. Without one: `$AIRLOCK_BINARY`, `airlock` beside the running program, or in `$PATH`.
    pub airlock_binary: Option<PathBuf>,
}

/// The id maps of a new user namespace, in the form of `/proc/<pid>/uid_map` (user_namespaces(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// Lines `inside outside count` of user ids.
    pub uids: String,
    /// Likewise of group ids.
    pub gids: String,
}

/// A process that waits for its boot message: started early, so that its start-up overlaps the parent's own work.
/// Dropped before [`Stage::boot`], it is killed and reaped.
#[derive(Debug)]
pub struct Stage {
    child: Child,
    stream: UnixStream,
    reaped: bool,
}

/// What a sandbox is booted from.
#[derive(Debug)]
pub struct BootRequest {
    /// The boot message's body.
    pub args: BootArgs,
    /// Its descriptors.
    pub fds: FdList,
    /// Maps of the user namespace that the configuration asks for.
    pub id_maps: Option<IdMaps>,
}

/// What the parent does while a sandbox boots. An error ends the sandbox.
pub trait BootEvents {
    /// The message is sent: there is time for work of one's own while the sandbox unpacks it.
    fn sent(&mut self) -> Result<()> {
        Ok(())
    }
    /// The loader exists: whatever happens to this process, somebody must know of it.
    fn loader(&mut self, loader: ProcessId) -> Result<()>;
    /// The namespaces exist and the container does not yet (only with `args.hold`).
    fn held(&mut self, loader: ProcessId) -> Result<()>;
}

/// A reply with its descriptors.
type Received = (BootReply, Vec<OwnedFd>);

/// A sandbox whose root container exists.
#[derive(Debug)]
pub struct Booted {
    /// The sandbox process, a child of this one: reap it with [`Booted::wait`] or waitpid(2).
    pub loader: ProcessId,
    /// A descriptor of it.
    pub loader_pidfd: OwnedFd,
    /// The boot socket, now an ordinary control connection (binary dialect).
    pub client: Client,
    /// Pid of the container's init in the sandbox's pid namespace.
    pub init_pid: i32,
    /// The pty's master, when the configuration has a terminal.
    pub console: Option<OwnedFd>,
    /// The seccomp listener, when the profile has one.
    pub seccomp_listener: Option<OwnedFd>,
}

impl Booted {
    /// Waits until the sandbox has ended, reaps it, and returns its wait status.
    pub fn wait(&self) -> Result<i32> {
        reap(self.loader.pid)
    }
}

/// Waits for child `pid` and returns its wait status.
pub fn reap(pid: i32) -> Result<i32> {
    sys::wait_child(pid).map_err(|e| Error::from(e).context(format!("wait for process {pid}")))
}

/// Finds the `airlock` binary that library users mean.
fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("AIRLOCK_BINARY").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("airlock")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = own.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join("airlock")));
    candidates.into_iter().find(|p| nix::unistd::access(p, nix::unistd::AccessFlags::X_OK).is_ok()).ok_or_else(|| {
        Error::no_such_entity(
            "no airlock binary beside this program or in $PATH: name it in $AIRLOCK_BINARY or SandboxOptions",
        )
    })
}

/// A descriptor of the binary that can be executed but by no way opened for writing: a read-only view of its mount, or
/// a sealed copy in memory where the kernel or our rights do not allow that.
pub fn protected_binary(options: &SandboxOptions) -> Result<OwnedFd> {
    let path = match &options.airlock_binary {
        Some(path) => path.clone(),
        None => find_binary()?,
    };
    let text = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::invalid_argument(format!("{} has a NUL byte", path.display())))?;
    if let Ok(view) = sys::read_only_view(&text) {
        return Ok(view);
    }
    sealed_copy(&path)
        .map_err(|e| Error::from(e).context(format!("make a protected copy of {}", path.display())))
}

fn sealed_copy(path: &Path) -> std::io::Result<OwnedFd> {
    let other = |e: memfd::Error| std::io::Error::other(e.to_string());
    let mut source = File::open(path)?;
    let copy = memfd::MemfdOptions::new()
        .allow_sealing(true)
        .close_on_exec(true)
        .create("airlock")
        .map_err(other)?;
    std::io::copy(&mut source, &mut copy.as_file())?;
    copy.add_seals(&[
        memfd::FileSeal::SealWrite,
        memfd::FileSeal::SealGrow,
        memfd::FileSeal::SealShrink,
        memfd::FileSeal::SealSeal,
    ])
    .map_err(other)?;
    // A descriptor that is open for writing forbids execution (ETXTBSY).
    let read_only = File::open(format!("/proc/self/fd/{}", copy.as_file().as_raw_fd()))?;
    Ok(read_only.into())
}

impl Stage {
    /// Starts the process that will become sandbox `id` (the id is for people who read process lists).
    pub fn start(binary: BorrowedFd<'_>, id: &str) -> Result<Self> {
        let (stream, theirs) =
            UnixStream::pair().map_err(|e| Error::from(e).context("make the boot socket"))?;
        let program = format!("/proc/self/fd/{}", binary.as_raw_fd());
        let child = Command::new(program)
            .arg0("airlock")
            .args(["boot", id])
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Error::from(e).context("execute the sandbox's binary (is /proc mounted?)"))?;
        Ok(Self { child, stream, reaped: false })
    }

    /// Sends the boot message and talks to the new sandbox until its root container exists.
    ///
    /// Blocks; on error nothing of the sandbox is left (and nothing of the caller's: cgroup and state directory are
    /// the caller's to remove).
    pub fn boot(mut self, request: BootRequest, events: &mut dyn BootEvents) -> Result<Booted> {
        let mut loader = None;
        let error = match self.converse(request, events, &mut loader) {
            Ok(booted) => return Ok(booted),
            Err(error) => error,
        };
        let Some((id, pidfd)) = &loader else { return Err(error) };
        // One that hung up without a word is ending by itself: how tells more than the lost connection.
        let silent = error.kind == Kind::Disconnected
            && wait_ended(pidfd.as_fd(), Some(LAST_BREATH)).unwrap_or_default();
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        match reap(id.pid) {
            Ok(status) if silent => Err(error.context(ended_early(&ExitStatus::from_raw(status)))),
            _ => Err(error),
        }
    }

    fn converse(
        &mut self,
        request: BootRequest,
        events: &mut dyn BootEvents,
        loader: &mut Option<(ProcessId, OwnedFd)>,
    ) -> Result<Booted> {
        let BootRequest { args, fds, id_maps } = request;
        if let Err(e) = binary::send(&self.stream, &args, &fds.as_fds()) {
            return Err(self.explain(e));
        }
        drop(fds);
        events.sent()?;
        let mut early = None;
        loop {
            let (reply, mut fds) = self.next_reply(&mut early, loader.is_some())?;
            match reply {
                BootReply::MapIds { .. } => {
                    let maps = id_maps
                        .as_ref()
                        .ok_or_else(|| Error::invalid_argument("the user namespace has no id mappings"))?;
                    write_maps(self.child.id(), maps)?;
                    binary::send(&self.stream, &(), &[]).map_err(|e| e.context("answer the sandbox"))?;
                }
                BootReply::Stage { loader_pid } => {
                    if fds.is_empty() {
                        return Err(Error::new(Kind::Protocol, "the sandbox sent no pidfd of its loader"));
                    }
                    // Its child died or not: we have not reaped it, so the pid is its own.
                    let id = ProcessId::of_child(loader_pid)?;
                    *loader = Some((id, fds.swap_remove(0)));
                    self.reap();
                    events.loader(id)?;
                }
                BootReply::Held => {
                    let Some((id, _)) = loader else { return Err(out_of_order()) };
                    events.held(*id)?;
                    self.go_on()?;
                }
                BootReply::Ready { init_pid, has_console, has_seccomp_listener } => {
                    let Some((id, pidfd)) = loader.take() else { return Err(out_of_order()) };
                    let seccomp_listener = if has_seccomp_listener { fds.pop() } else { None };
                    let console = if has_console { fds.pop() } else { None };
                    let stream =
                        self.stream.try_clone().map_err(|e| Error::from(e).context("boot socket"))?;
                    return Ok(Booted {
                        loader: id,
                        loader_pidfd: pidfd,
                        client: Client::from_stream(stream, Dialect::Binary),
                        init_pid,
                        console,
                        seccomp_listener,
                    });
                }
                BootReply::Failed(error) => return Err(error),
            }
        }
    }

    /// Tells the sandbox that the hooks have run.
    fn go_on(&self) -> Result<()> {
        let stream = self.stream.try_clone().map_err(|e| Error::from(e).context("boot socket"))?;
        Client::from_stream(stream, Dialect::Binary).start::<airlock::Continue>(&Empty {}, &[])?;
        // Not left to the client: the next message may have arrived behind the reply, and is none of its business.
        let frame = binary::recv_frame(&self.stream, Limits::default())?;
        match frame.kind {
            FrameKind::Reply => Ok(()),
            FrameKind::Error => Err(codec::decode(&frame.body).unwrap_or_else(|e| e)),
            _ => Err(out_of_order()),
        }
    }

    /// The next reply. Stage and loader share the socket, and the loader may be faster with what it has to tell than the
    /// stage with telling that there is a loader: what comes before that is kept in `early` until `known`.
    fn next_reply(&mut self, early: &mut Option<Received>, known: bool) -> Result<Received> {
        loop {
            if known && let Some(kept) = early.take() {
                return Ok(kept);
            }
            match binary::recv(&self.stream) {
                Ok(message @ (BootReply::MapIds { .. } | BootReply::Stage { .. }, _)) => return Ok(message),
                Ok(message) if !known && early.is_none() => *early = Some(message),
                Ok(message) => return Ok(message),
                // The stage itself has failed: there is no loader.
                Err(e) => return early.take().ok_or_else(|| self.explain(e)),
            }
        }
    }

    /// The stage exits right after it has reported; its status is known to be good by then.
    fn reap(&mut self) {
        if !self.reaped {
            let _ = self.child.wait();
            self.reaped = true;
        }
    }

    /// A lost connection says little: how the other side ended says more.
    fn explain(&mut self, error: Error) -> Error {
        if error.kind != Kind::Disconnected || self.reaped {
            return error.context("talk to the sandbox that is being made");
        }
        let _ = self.child.kill();
        match self.child.wait() {
            Ok(status) => {
                self.reaped = true;
                error.context(ended_early(&status))
            }
            Err(_) => error,
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a process of the sandbox ended that said nothing. Only one that is killed says nothing.
fn ended_early(status: &ExitStatus) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(libc::SIGKILL)) => {
            "signal 9: killed by somebody, or by the kernel (is linux.resources.memory.limit too small?)"
                .to_owned()
        }
        (_, signal) => format!("signal {}", signal.unwrap_or(0)),
    };
    format!("the sandbox ended before it was made ({how})")
}

fn out_of_order() -> Error {
    Error::new(Kind::Protocol, "the sandbox answered out of order")
}

/// Writes the maps of a user namespace that process `pid` (a child that is not reaped yet) has just made.
fn write_maps(pid: u32, maps: &IdMaps) -> Result<()> {
    // Without privilege over the parent namespace a group map may be written only once setgroups is given up.
    if !nix::unistd::geteuid().is_root() {
        let path = format!("/proc/{pid}/setgroups");
        std::fs::write(&path, "deny").map_err(|e| Error::from(e).context(format!("write {path}")))?;
    }
    for (name, map) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        let path = format!("/proc/{pid}/{name}");
        // The kernel takes a map in one write only; std writes a short text at once.
        std::fs::write(&path, map).map_err(|e| {
            Error::from(e).context(format!("write {name} {:?}", map.trim_end().replace('\n', ", ")))
        })?;
    }
    Ok(())
}
