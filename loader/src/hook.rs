//! Running one OCI hook, in whatever namespaces the caller is in.
//!
//! Source: OCI runtime spec, config.md "POSIX-platform Hooks".

#![forbid(unsafe_code)]

use crate::sys::process;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Hook;
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of a failed hook's output goes into the error, in bytes: its end.
const TAIL: usize = 2048;

/// Runs one hook with `state` (JSON) on its standard input, in the directory `cwd` if that is one, with exactly the
/// environment that it names. Blocks until it has ended; it is killed when its timeout is over.
///
/// # Errors
/// It cannot be started, ends with another status than 0, or takes too long; with the end of what it printed.
pub fn run(hook: &Hook, state: &[u8], cwd: Option<&Path>) -> Result<()> {
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
    if let Some(cwd) = cwd.filter(|cwd| cwd.is_dir()) {
        command.current_dir(cwd);
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
    let pidfd = process::pidfd_open(pid).map_err(|e| Error::from(e).context("watch it"))?;
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

/// The time left until `end` as poll(2) takes it, rounded up to a millisecond; without an end, no limit.
fn timeout_until(end: Option<Instant>) -> PollTimeout {
    let Some(end) = end else { return PollTimeout::NONE };
    let left = end.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left.as_millis().min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}
