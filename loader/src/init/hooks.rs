//! `createContainer` and `startContainer` hooks: run by the container's init, inside its namespaces.
#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::Hook;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Runs `hooks` one after the other with the container's `state` (JSON) on standard input.
///
/// Each hook gets exactly its own environment and is killed when its timeout (seconds) is over.
///
/// # Errors
/// The first hook that cannot be started, fails or times out, with the end of its standard error.
pub fn run(kind: &str, hooks: Option<&Vec<Hook>>, state: &str) -> Result<()> {
    for (i, hook) in hooks.into_iter().flatten().enumerate() {
        run_one(hook, state).map_err(|e| e.context(format!("error running {kind} hook #{i}")))?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str) -> Result<()> {
    let path = hook.path();
    let mut command = Command::new(path);
    if let Some((first, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        use std::os::unix::process::CommandExt;
        command.arg0(first).args(rest);
    }
    command.env_clear();
    for entry in hook.env().iter().flatten() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        command.env(name, value);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| Error::from(e).context(path.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not read its input is no error.
        let _ = stdin.write_all(state.as_bytes());
    }
    let pidfd = crate::sys::process::pidfd_open(child.id() as i32)?;
    let timeout = match hook.timeout() {
        Some(seconds) if seconds > 0 => {
            PollTimeout::try_from(Duration::from_secs(seconds as u64)).unwrap_or(PollTimeout::MAX)
        }
        _ => PollTimeout::NONE,
    };
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout)? == 0 {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::failure(format!("{}: timed out", path.display())));
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    let mut tail = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_string(&mut tail);
    }
    Err(Error::failure(format!("{}: {status}, stderr: {}", path.display(), tail.trim_end())))
}
