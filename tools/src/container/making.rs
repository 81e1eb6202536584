//! What the making of every container has in common: its state from the first moment, and its undoing.

#![forbid(unsafe_code)]

use super::delete::purge;
use super::exec::pass_list;
use super::{CreateOptions, Stdio};
use crate::console::ConsoleSocket;
use crate::gofer::{self, PodMounts};
use crate::hooks::HookState;
use crate::podspec::Bundle;
use crate::process::ProcessId;
use crate::sandbox::FdList;
use crate::state::{Lock, Phase, State, StateDir, Status};
use airlock_wire::api::boot::{ContainerFds, Fd, Namespace};
use airlock_wire::api::types::GoferMountConf;
use airlock_wire::error::{Error, Kind, Result};
use oci_spec::runtime::{Hook, Hooks, Spec};
use serde_json::Value;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

/// A container that is being made. Dropped before [`Making::finish`], everything of it is undone.
#[derive(Debug)]
pub(super) struct Making<'a> {
    dir: &'a StateDir,
    /// What is, or will be, in the state directory.
    pub state: State,
    lock: Option<Lock>,
}

/// What a message says of the mounts in it.
#[derive(Debug)]
pub(super) struct DonatedMounts {
    /// How each was made.
    pub confs: Vec<GoferMountConf>,
    /// What the sandbox is to keep for later containers of its pod, by the name of the hint.
    pub shared: Vec<(String, Fd)>,
}

impl<'a> Making<'a> {
    /// Makes the state directory of a new container. The remains of a `create` that died under the same id are cleared
    /// away first.
    pub fn begin(dir: &'a StateDir, state: State) -> Result<Self> {
        let lock = match dir.create(&state) {
            Err(e) if e.kind == Kind::InvalidState && clear_remains(dir, &state.id) => dir.create(&state)?,
            other => other?,
        };
        Ok(Self { dir, state, lock: Some(lock) })
    }

    /// Opens what the configuration mounts, unless the caller has, and puts it into a message. `pod` is what the
    /// sandbox has kept, for a later container of it.
    pub fn donate_mounts(
        &mut self,
        bundle: &Bundle,
        options: &mut CreateOptions,
        fds: &mut FdList,
        donated: &mut ContainerFds,
        pod: Option<PodMounts>,
    ) -> Result<DonatedMounts> {
        let mounts = match options.mounts.take() {
            Some(opened) => opened.donate(fds),
            None => gofer::open(bundle, &options.overlay, pod, fds)?,
        };
        donated.gofer = mounts.gofer;
        donated.devices = mounts.devices;
        donated.filestores = mounts.filestores;
        if !mounts.cleanup.is_empty() {
            self.state.filestores = mounts.cleanup;
            self.save()?;
        }
        Ok(DonatedMounts { confs: mounts.confs, shared: mounts.shared })
    }

    /// Writes the state as it is now.
    pub fn save(&self) -> Result<()> {
        self.dir.save(&self.state)
    }

    /// The container is made: nothing is undone any more.
    pub fn finish(mut self) -> Result<(State, Lock)> {
        let lock = self.lock.take().ok_or_else(|| Error::failure("finished twice"))?;
        Ok((self.state.clone(), lock))
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(e) = purge(self.dir, &self.state, true)
        {
            log::warn!("undo the making of container {}: {e}", self.state.id);
        }
    }
}

/// Removes what a `create` that died left under this id. False when there is anything else.
fn clear_remains(dir: &StateDir, id: &str) -> bool {
    let Ok(state) = dir.load(id) else { return false };
    let Phase::Creating { by } = state.phase else { return false };
    if by.is_alive() {
        return false;
    }
    // Whoever else is at the same finds nothing then.
    let Ok(_lock) = dir.lock(id) else { return true };
    let still = dir.load(id).is_ok_and(|s| matches!(s.phase, Phase::Creating { by } if !by.is_alive()));
    still && purge(dir, &state, true).is_ok()
}

/// The state of a container of which nothing exists yet.
pub(super) fn first_state(
    id: &str,
    sandbox_id: &str,
    bundle: &Bundle,
    cgroup: crate::cgroups::Manager,
) -> Result<State> {
    let spec = &bundle.spec;
    let hooks = |pick: fn(&Hooks) -> &Option<Vec<Hook>>| {
        spec.hooks().as_ref().and_then(|h| pick(h).clone()).unwrap_or_default()
    };
    Ok(State {
        id: id.to_owned(),
        sandbox_id: sandbox_id.to_owned(),
        oci_version: spec.version().clone(),
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs.clone(),
        pid: 0,
        pid_start: 0,
        loader: ProcessId::default(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        owner: owner(),
        annotations: spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        terminal: bundle.terminal(),
        cgroup,
        filestores: Vec::new(),
        taken: None,
        overlay: None,
        restore: None,
        domains: Default::default(),
        poststart: hooks(Hooks::poststart),
        poststop: hooks(Hooks::poststop),
        phase: Phase::Creating { by: ProcessId::current()? },
    })
}

/// Name of the user that runs this.
fn owner() -> String {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return "root".to_owned();
    }
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// Hooks that run before the container exists: prestart (deprecated, but podman and NVIDIA use it), then createRuntime.
#[allow(deprecated)]
pub(super) fn early_hooks(spec: &Spec) -> [(&'static str, &[Hook]); 2] {
    let hooks = spec.hooks().as_ref();
    [
        ("prestart", hooks.and_then(|h| h.prestart().as_deref()).unwrap_or_default()),
        ("createRuntime", hooks.and_then(|h| h.create_runtime().as_deref()).unwrap_or_default()),
    ]
}

/// The sockets that a caller wants descriptors sent to, connected before anything is made.
#[derive(Debug)]
pub(super) struct Sockets {
    pub console: Option<ConsoleSocket>,
    pub pidfd: Option<ConsoleSocket>,
    agent: Option<SeccompAgent>,
}

impl Sockets {
    pub fn connect(options: &CreateOptions, spec: &Spec) -> Result<Self> {
        let connect = |path: Option<&std::path::Path>| path.map(ConsoleSocket::connect).transpose();
        Ok(Self {
            console: connect(options.console_socket.as_deref())?,
            pidfd: connect(options.pidfd_socket.as_deref())?,
            agent: SeccompAgent::connect(spec)?,
        })
    }

    /// Somebody decides on system calls of the container: its program can be started only when they have the listener.
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }
}

/// A connection to the program that decides on system calls (`linux.seccomp.listenerPath`).
#[derive(Debug)]
pub(super) struct SeccompAgent {
    socket: ConsoleSocket,
    metadata: String,
}

impl SeccompAgent {
    /// Connects to the agent that the configuration names, if it names one.
    pub fn connect(spec: &Spec) -> Result<Option<Self>> {
        let seccomp = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
        let path = seccomp.and_then(|s| s.listener_path().as_deref()).filter(|p| !p.as_os_str().is_empty());
        let Some(path) = path else { return Ok(None) };
        let socket = ConsoleSocket::connect(path).map_err(|e| e.context("linux.seccomp.listenerPath"))?;
        let metadata = seccomp.and_then(|s| s.listener_metadata().clone()).unwrap_or_default();
        Ok(Some(Self { socket, metadata }))
    }

    /// Sends the listener of process `pid` (OCI runtime config-linux.md, "The Container Process State").
    pub fn send(self, state: &State, status: Status, pid: i32, listener: BorrowedFd<'_>) -> Result<()> {
        let container_pid = if state.pid == 0 { pid } else { state.pid };
        let message = serde_json::json!({
            "ociVersion": state.oci_version,
            "fds": [oci_spec::runtime::SECCOMP_FD_NAME],
            "pid": pid,
            "metadata": self.metadata,
            "state": HookState::new(state, status, container_pid),
        });
        let message = serde_json::to_string(&message)
            .map_err(|e| Error::failure(format!("encode the seccomp state: {e}")))?;
        self.socket.send(&message, listener).map_err(|e| e.context("linux.seccomp.listenerPath"))
    }
}

/// What the sandbox answered about the new container, on its way to those who asked for it.
#[derive(Debug)]
pub(super) struct Answered {
    pub console: Option<OwnedFd>,
    pub seccomp_listener: Option<OwnedFd>,
}

impl Sockets {
    /// Sends the seccomp listener to its agent and the terminal's master to the caller. Returns the master if there is
    /// no console socket.
    pub fn deliver(&mut self, state: &State, pid: i32, answered: Answered) -> Result<Option<OwnedFd>> {
        if let Some(fd) = answered.seccomp_listener {
            let agent = self.agent.take().ok_or_else(|| {
                Error::invalid_argument("linux.seccomp uses SCMP_ACT_NOTIFY but names no listenerPath")
            })?;
            agent.send(state, Status::Creating, pid, fd.as_fd())?;
        }
        match (self.console.take(), answered.console) {
            (Some(socket), Some(master)) => socket.send_master(master.as_fd()).map(|()| None),
            (_, master) => Ok(master),
        }
    }
}

/// Puts what a container is made from into a message: everything but cgroups and mounts, which their modules open.
pub(super) fn donate_common(
    fds: &mut FdList,
    terminal: bool,
    options: &mut CreateOptions,
    join: Vec<(Namespace, OwnedFd)>,
) -> Result<ContainerFds> {
    let mut donated = ContainerFds::default();
    if !terminal {
        let stdio = options.stdio.take().map_or_else(Stdio::null, Ok)?;
        donated.stdio = stdio.fds.into_iter().map(|fd| fds.push(fd)).collect();
    }
    donated.pass = pass_list(std::mem::take(&mut options.pass), fds);
    donated.exec = options.exec.take().map(|fd| fds.push(fd));
    donated.join = join.into_iter().map(|(kind, fd)| (kind, fds.push(fd))).collect();
    Ok(donated)
}

/// The configuration's text with what only the caller knows: the environment that tells a program of passed systemd
/// sockets (sd_listen_fds(3)), and the size of the caller's terminal for a program that is attached to it.
pub(super) fn config_text(bundle: &Bundle, options: &CreateOptions) -> Result<String> {
    let size = if options.attached && bundle.terminal() { terminal_size() } else { None };
    let has_size = || bundle.spec.process().as_ref().is_some_and(|p| p.console_size().is_some());
    let size = size.filter(|_| !has_size());
    if options.listen_fds == 0 && size.is_none() {
        return Ok(bundle.text.clone());
    }
    let bad = |e: serde_json::Error| Error::failure(format!("encode the configuration: {e}"));
    // As a tree, so that nothing is lost that our types do not know.
    let mut config: Value = serde_json::from_str(&bundle.text).map_err(bad)?;
    if let Some(process) = config.get_mut("process").and_then(Value::as_object_mut) {
        if let Some(size) = size {
            process.insert("consoleSize".to_owned(), size);
        }
        let listen_fds = options.listen_fds;
        let env = process.entry("env").or_insert_with(|| serde_json::json!([]));
        if listen_fds > 0
            && let Some(env) = env.as_array_mut()
        {
            let old = ["LISTEN_FDS=", "LISTEN_PID="];
            env.retain(|e| !e.as_str().is_some_and(|e| old.iter().any(|name| e.starts_with(name))));
            env.push(format!("LISTEN_FDS={listen_fds}").into());
            env.push("LISTEN_PID=1".into());
        }
    }
    serde_json::to_string(&config).map_err(bad)
}

/// The size of the terminal on our standard input, as the OCI `consoleSize`: a new terminal has it from the start, before
/// its program looks.
pub(super) fn terminal_size() -> Option<Value> {
    let size = crate::sys::window_size(std::io::stdin().as_fd()).ok()?;
    (size.ws_row > 0).then(|| serde_json::json!({"height": size.ws_row, "width": size.ws_col}))
}
