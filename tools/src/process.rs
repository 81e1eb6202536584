//! Naming, watching and killing a process without mistaking a later one of the same pid for it.

#![forbid(unsafe_code)]

use crate::sys;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A process: its pid and when it started, in clock ticks since boot (`/proc/<pid>/stat`, field 22). Pids are used
/// again, the pair is not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid, as this process sees it; 0 for none.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The living process `pid`. Fails when there is none, or only a zombie.
    pub fn of(pid: i32) -> Result<Self> {
        match stat(pid) {
            Some((state, start)) if !is_dead(state) => Ok(Self { pid, start }),
            _ => Err(Error::no_such_entity(format!("process {pid}: no such process"))),
        }
    }

    /// Process `pid`, alive or a zombie: for a child of this process that is not reaped yet.
    pub(crate) fn of_child(pid: i32) -> Result<Self> {
        let (_, start) =
            stat(pid).ok_or_else(|| Error::no_such_entity(format!("process {pid}: no such process")))?;
        Ok(Self { pid, start })
    }

    /// The calling process.
    pub fn current() -> Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(|_| Error::failure("own pid out of range"))?;
        let start = stat(pid).map(|(_, start)| start);
        Ok(Self {
            pid,
            start: start.ok_or_else(|| Error::failure("cannot read /proc/self/stat: is /proc mounted?"))?,
        })
    }

    /// True while the process runs; a zombie is dead.
    pub fn is_alive(&self) -> bool {
        self.pid > 0 && stat(self.pid).is_some_and(|(state, start)| start == self.start && !is_dead(state))
    }

    /// A descriptor of the process, `None` when it has ended.
    pub fn open(&self) -> Option<OwnedFd> {
        if self.pid <= 0 {
            return None;
        }
        let fd = sys::pidfd_open(self.pid).ok()?;
        // Only now is it certain that the descriptor is of the process that is meant, and not of a successor.
        self.is_alive().then_some(fd)
    }

    /// Sends `signal`. False when the process has ended.
    pub fn signal(&self, signal: i32) -> Result<bool> {
        let Some(fd) = self.open() else { return Ok(false) };
        match sys::pidfd_send_signal(fd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(e) => Err(Error::from(e).context(format!("signal process {}", self.pid))),
        }
    }

    /// Kills the process and waits at most `limit` until it has ended. True if it has.
    pub fn kill_and_wait(&self, limit: Duration) -> Result<bool> {
        let Some(fd) = self.open() else { return Ok(true) };
        match sys::pidfd_send_signal(fd.as_fd(), libc::SIGKILL) {
            Ok(()) => wait_ended(fd.as_fd(), Some(limit)),
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(true),
            Err(e) => Err(Error::from(e).context(format!("kill process {}", self.pid))),
        }
    }

    /// Waits until the process has ended, at most `limit` (without one: for ever). True if it has.
    pub fn wait(&self, limit: Option<Duration>) -> Result<bool> {
        match self.open() {
            Some(fd) => wait_ended(fd.as_fd(), limit),
            None => Ok(true),
        }
    }
}

/// Waits until the process behind `pidfd` has ended, at most `limit`. True if it has.
pub fn wait_ended(pidfd: BorrowedFd<'_>, limit: Option<Duration>) -> Result<bool> {
    let end = limit.map(|l| Instant::now() + l);
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
        match poll(&mut fds, timeout_until(end)) {
            Ok(0) if end.is_some_and(|end| Instant::now() >= end) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(Error::from(e).context("wait for a process")),
        }
    }
}

/// The time left until `end` as poll(2) takes it, rounded up to a millisecond; without an end, no limit.
pub(crate) fn timeout_until(end: Option<Instant>) -> PollTimeout {
    match end {
        None => PollTimeout::NONE,
        Some(end) => {
            let left = end.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left.as_millis().min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
        }
    }
}

fn is_dead(state: u8) -> bool {
    matches!(state, b'Z' | b'X' | b'x')
}

/// State letter and start time of process `pid`.
fn stat(pid: i32) -> Option<(u8, u64)> {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The command name is in parentheses and may itself hold any byte: the last parenthesis ends it.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let end = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&text[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_hostile_names() {
        let line = b"42 (a) Z 1 (b) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 2 3";
        assert_eq!(parse_stat(line), Some((b'S', 987654)));
        assert_eq!(parse_stat(b"42 (x"), None);
        assert_eq!(parse_stat(b"42 (x) S 1"), None);
    }

    #[test]
    fn lives_and_dies() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        assert!(id.is_alive());
        assert!(!ProcessId { start: id.start + 1, ..id }.is_alive());
        assert!(!id.wait(Some(Duration::from_millis(1))).unwrap());
        assert!(id.kill_and_wait(Duration::from_secs(10)).unwrap());
        // Still a zombie, but dead.
        assert!(!id.is_alive());
        assert!(ProcessId::of(id.pid).is_err());
        assert!(!id.signal(0).unwrap());
        child.wait().unwrap();
        assert!(ProcessId::current().unwrap().is_alive());
    }
}
