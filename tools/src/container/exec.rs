//! `exec`: a further process in a container.

#![forbid(unsafe_code)]

use super::making::{SeccompAgent, terminal_size};
use super::{ProxyMode, Stdio};
use crate::console::{ConsoleSocket, Foreground, SignalBlock};
use crate::files::write_atomically;
use crate::podspec::Bundle;
use crate::process::ProcessId;
use crate::proxy::{self, Proxy, Supervised, Target};
use crate::sandbox::{FdList, SandboxOptions, protected_binary};
use crate::state::{State, StateDir, Status};
use crate::sys;
use airlock_wire::api::airlock as api;
use airlock_wire::api::boot::ContainerFds;
use airlock_wire::api::types::{FdMapping, SpecJson};
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Result};
use serde_json::Value;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What is executed, and how it is attached.
#[derive(Debug, Default)]
pub struct ExecOptions {
    /// An OCI `process` object as JSON text.
    pub process: String,
    /// The process has a terminal (the object's `terminal`).
    pub terminal: bool,
    /// stdin, stdout, stderr; not used with a terminal.
    pub stdio: Option<Stdio>,
    /// Sends the terminal's master there.
    pub console_socket: Option<PathBuf>,
    /// Sends a pidfd of the process that stands for the new one there.
    pub pidfd_socket: Option<PathBuf>,
    /// Descriptors for the process, by number there.
    pub pass: Vec<(i32, OwnedFd)>,
    /// The program, instead of the file that `args[0]` names.
    pub exec: Option<OwnedFd>,
    /// Writes the pid of the process that stands for the new one there (a proxy when detached, else this process).
    pub pid_file: Option<PathBuf>,
    /// Writes the pid in the container's pid namespace there.
    pub internal_pid_file: Option<PathBuf>,
    /// Executes even if the container is paused.
    pub ignore_paused: bool,
    /// Returns at once; a proxy stands for the process.
    pub detach: bool,
    /// How the proxy is made.
    pub proxy: ProxyMode,
    /// Where the proxy's binary is, for [`ProxyMode::Execute`].
    pub sandbox: SandboxOptions,
}

/// How an exec came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executed {
    /// The process has ended with this wait status.
    Ended(i32),
    /// The process runs; this child of the caller stands for it.
    Detached(ProcessId),
}

/// Executes a process in container `id`; waits for its end unless it is detached.
///
/// While it waits, signals that this process gets are passed on, and with a terminal keys and output are relayed.
/// Fails with the sandbox's text when the program cannot be executed (`executable file not found in $PATH`,
/// `no such file or directory`, `permission denied`).
pub fn exec(dir: &StateDir, id: &str, options: ExecOptions) -> Result<Executed> {
    super::check_terminal(options.terminal, options.detach, options.console_socket.is_some())?;
    let state = dir.load(id)?;
    let console_socket = options.console_socket.as_deref().map(ConsoleSocket::connect).transpose()?;
    let pidfd_socket = options.pidfd_socket.as_deref().map(ConsoleSocket::connect).transpose()?;
    // Signals wait from here on: none may end this process between the new one's birth and its supervision.
    let block = SignalBlock::forwardable()?;
    let mut client = connect_running(dir, &state, options.ignore_paused)?;
    let or_stopped = |e: Error| if dir.has_ended(&state, &e) { stopped(id) } else { e };
    let signals = dir.connect(&state).map_err(or_stopped)?;

    let mut fds = FdList::default();
    let mut donated = ContainerFds::default();
    if !options.terminal {
        let stdio = options.stdio.map_or_else(Stdio::null, Ok)?;
        donated.stdio = stdio.fds.into_iter().map(|fd| fds.push(fd)).collect();
    }
    donated.pass = pass_list(options.pass, &mut fds);
    donated.exec = options.exec.map(|fd| fds.push(fd));
    let size = if options.terminal && !options.detach { terminal_size() } else { None };
    let process = match size {
        Some(size) => with_size(&options.process, size)?,
        None => options.process,
    };
    let request = api::ExecRequest { cid: id.to_owned(), process: SpecJson(Some(process)), fds: donated };
    let reply = client.call::<api::Exec>(&request, &fds.as_fds()).map_err(or_stopped)?;
    drop(fds);
    let mut passed = reply.fds;
    let listener = if reply.value.has_seccomp_listener { passed.pop() } else { None };
    let master = if reply.value.has_console { passed.pop() } else { None };
    // From here on whatever ends this process ends the other one as well.
    let target = Target { cid: id.to_owned(), pid: reply.value.pid };
    let supervised = Supervised::start(target, client, signals)?;
    let tell = |process: ProcessId| {
        // First of all, because the process may wait for its agent.
        if let Some(listener) = &listener {
            send_listener(&dir.config(id)?, &state, process.pid, listener.as_fd())?;
        }
        if let Some(path) = &options.internal_pid_file {
            write_pid_file(path, reply.value.pid)?;
        }
        if let (Some(socket), Some(master)) = (console_socket, &master) {
            // A socket is only given when the process is detached.
            socket.send_master(master.as_fd())?;
        }
        send_pidfd(pidfd_socket, process)?;
        options.pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, process.pid))
    };
    if options.detach {
        let proxy = Proxy { supervised, exit_file: None };
        let process = launch(proxy, options.proxy, &options.sandbox)?;
        tell(process).inspect_err(|_| proxy::discard(process.pid))?;
        return Ok(Executed::Detached(process));
    }
    ProcessId::current().and_then(tell)?;
    drop(listener);
    let foreground = Foreground::new(block, master)?;
    supervised.wait(foreground).map(Executed::Ended)
}

/// The process object with the size of its terminal, unless it has one.
fn with_size(process: &str, size: Value) -> Result<String> {
    let bad = |e: serde_json::Error| Error::invalid_argument(format!("process object: {e}"));
    let mut process: Value = serde_json::from_str(process).map_err(bad)?;
    if let Some(fields) = process.as_object_mut()
        && fields.get("consoleSize").is_none_or(Value::is_null)
    {
        fields.insert("consoleSize".to_owned(), size);
    }
    serde_json::to_string(&process).map_err(bad)
}

fn stopped(id: &str) -> Error {
    Error::invalid_state(format!("cannot exec in a stopped container: container {id} not running"))
}

/// Connects to the container's sandbox after making sure that the container takes processes.
fn connect_running(dir: &StateDir, state: &State, ignore_paused: bool) -> Result<Client> {
    let id = &state.id;
    if !state.loader.is_alive() {
        return Err(stopped(id));
    }
    let or_stopped = |e: Error| if dir.has_ended(state, &e) { stopped(id) } else { e };
    let mut client = dir.connect(state).map_err(or_stopped)?;
    let info = client.call::<api::Info>(&api::ContainerId { cid: id.clone() }, &[]).map_err(or_stopped)?;
    match info.value.status.as_str() {
        "stopped" => Err(stopped(id)),
        "paused" if !ignore_paused => Err(Error::invalid_state(format!(
            "cannot exec in a paused container: resume {id} first, or give --ignore-paused"
        ))),
        _ => Ok(client),
    }
}

/// Sends the seccomp listener of a new process to the agent that the container's configuration names.
fn send_listener(config: &str, state: &State, pid: i32, listener: BorrowedFd<'_>) -> Result<()> {
    let bundle = Bundle::from_text(state.bundle.clone(), config.to_owned())?;
    SeccompAgent::connect(&bundle.spec)?
        .ok_or_else(|| Error::failure("the container's configuration names no listenerPath any more"))?
        .send(state, Status::Running, pid, listener)
}

/// Names the passed descriptors by their index in the message.
pub(super) fn pass_list(pass: Vec<(i32, OwnedFd)>, fds: &mut FdList) -> Vec<FdMapping> {
    pass.into_iter().map(|(guest, fd)| FdMapping { guest, host: i32::from(fds.push(fd).0) }).collect()
}

/// Starts a proxy in the way that `mode` says.
pub(super) fn launch(proxy: Proxy, mode: ProxyMode, sandbox: &SandboxOptions) -> Result<ProcessId> {
    let pid = match mode {
        ProxyMode::Fork => proxy.fork()?,
        ProxyMode::Execute => proxy.execute(protected_binary(sandbox)?.as_fd())?,
    };
    ProcessId::of_child(pid)
}

/// Sends a pidfd of `process` to a pidfd socket, if there is one.
pub(super) fn send_pidfd(socket: Option<ConsoleSocket>, process: ProcessId) -> Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    let pidfd = sys::pidfd_open(process.pid)
        .map_err(|e| Error::from(e).context(format!("open a pidfd of process {}", process.pid)))?;
    socket.send("standard", pidfd.as_fd())
}

/// Writes a pid file: digits only, no newline, under a temporary name first.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    write_atomically(path, pid.to_string().as_bytes(), 0o644).map_err(|e| e.context("pid file"))
}
