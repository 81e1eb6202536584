//! Runs the OCI hooks that belong in the runtime's namespaces: prestart, createRuntime, poststart, poststop.
//!
//! (`createContainer` and `startContainer` run in the container's namespaces; the sandbox does that.)
//! Source: OCI runtime spec, config.md "POSIX-platform Hooks" and runtime.md "State".

#![forbid(unsafe_code)]

use crate::process::timeout_until;
use crate::state::{State, Status};
use crate::sys;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use oci_spec::runtime::Hook;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of a failed hook's output goes into the error, in bytes: its end.
const TAIL: usize = 2048;

/// The state that a hook reads from its standard input (OCI runtime.md, "State").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState<'a> {
    /// The configuration's `ociVersion`.
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: Status,
    /// The OCI pid; left out when the container has none.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    /// The bundle directory.
    pub bundle: &'a Path,
    /// The configuration's annotations.
    pub annotations: &'a BTreeMap<String, String>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

impl<'a> HookState<'a> {
    /// What hooks of this container read when its status is `status` and its pid is `pid`.
    pub fn new(state: &'a State, status: Status, pid: i32) -> Self {
        Self {
            oci_version: &state.oci_version,
            id: &state.id,
            status,
            pid,
            bundle: &state.bundle,
            annotations: &state.annotations,
        }
    }
}

/// Runs `hooks` one after the other and stops at the first that fails. `kind` is the list's name in the spec, for errors.
/// Blocks until the last has ended; a hook that exceeds its timeout is killed and has failed.
pub fn run(kind: &str, hooks: &[Hook], state: &HookState<'_>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let json =
        serde_json::to_vec(state).map_err(|e| Error::failure(format!("encode state for hooks: {e}")))?;
    for (number, hook) in hooks.iter().enumerate() {
        run_one(hook, &json, state.bundle)
            .map_err(|e| e.context(format!("{kind} hook #{number} ({})", hook.path().display())))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &[u8], bundle: &Path) -> Result<()> {
    if !hook.path().is_absolute() {
        return Err(Error::invalid_argument("its path must be absolute"));
    }
    let limit = match hook.timeout() {
        None => None,
        Some(seconds) => {
            let seconds = u64::try_from(seconds).ok().filter(|s| *s > 0);
            let seconds =
                seconds.ok_or_else(|| Error::invalid_argument("its timeout must be 1 second or more"))?;
            Some(Duration::from_secs(seconds))
        }
    };
    let (output, writer) = std::io::pipe().map_err(|e| Error::from(e).context("make a pipe"))?;
    let mut command = Command::new(hook.path());
    let args = hook.args().as_deref().unwrap_or_default();
    if let Some(first) = args.first() {
        command.arg0(first).args(&args[1..]);
    }
    command.env_clear();
    for entry in hook.env().iter().flatten() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if name.is_empty() || entry.contains('\0') {
            return Err(Error::invalid_argument(format!(
                "its environment entry {entry:?} is not NAME=VALUE"
            )));
        }
        command.env(name, value);
    }
    if bundle.is_dir() {
        command.current_dir(bundle);
    }
    let both = writer.try_clone().map_err(|e| Error::from(e).context("make a pipe"))?;
    command.stdin(Stdio::piped()).stdout(both).stderr(writer);
    let mut child = command.spawn().map_err(|e| Error::from(e).context("cannot start it"))?;
    drop(command);
    let watched = watch(&mut child, output, state, limit.map(|l| (l, Instant::now() + l)));
    if watched.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| Error::from(e).context("wait for it"))?;
    let tail = watched?;
    if status.success() {
        return Ok(());
    }
    let mut text = describe(status);
    if !tail.is_empty() {
        text = format!("{text}; it said: {tail}");
    }
    Err(Error::failure(text))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// Feeds the hook its state and collects the end of its output until it ends. Its descendants may hold the pipes open
/// for longer: that does not matter.
fn watch(
    child: &mut Child,
    mut output: PipeReader,
    mut state: &[u8],
    limit: Option<(Duration, Instant)>,
) -> Result<String> {
    let pid = i32::try_from(child.id()).map_err(|_| Error::failure("pid out of range"))?;
    let pidfd = sys::pidfd_open(pid).map_err(|e| Error::from(e).context("watch it"))?;
    let mut stdin = child.stdin.take();
    nonblocking(&output)?;
    if let Some(stdin) = &stdin {
        nonblocking(stdin)?;
    }
    let mut tail = Vec::new();
    let mut open = true;
    loop {
        feed(&mut stdin, &mut state);
        open = open && collect(&mut output, &mut tail);
        let mut fds = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        if let Some(stdin) = &stdin {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        match poll(&mut fds, timeout_until(limit.map(|(_, end)| end))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::from(e).context("watch it")),
        }
        if fds[0].any().unwrap_or(false) {
            collect(&mut output, &mut tail);
            return Ok(text_of(&tail));
        }
        if let Some((limit, _)) = limit.filter(|(_, end)| Instant::now() >= *end) {
            return Err(Error::failure(format!(
                "killed: it took more than its timeout of {} s",
                limit.as_secs()
            )));
        }
    }
}

fn nonblocking(fd: &impl AsFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|e| Error::from(e).context("set up a pipe"))
}

/// Writes as much of the state as the pipe takes; closes it after the last byte, or when the hook has closed its end
/// (a hook need not read).
fn feed(stdin: &mut Option<ChildStdin>, state: &mut &[u8]) {
    while let Some(pipe) = stdin {
        if state.is_empty() {
            *stdin = None;
            return;
        }
        match pipe.write(state) {
            Ok(n) => *state = &state[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(_) => *stdin = None,
        }
    }
}

/// Reads what there is and keeps its end. False once nobody can write any more.
fn collect(output: &mut PipeReader, tail: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => {
                tail.extend_from_slice(&buffer[..n]);
                let surplus = tail.len().saturating_sub(TAIL);
                tail.drain(..surplus);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// One line: errors are single lines.
fn text_of(tail: &[u8]) -> String {
    String::from_utf8_lossy(tail).split_whitespace().collect::<Vec<_>>().join(" ")
}
