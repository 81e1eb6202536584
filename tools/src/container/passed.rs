//! Descriptors of the caller that go to a container: `--preserve-fds`, `--pass-fd`, systemd's sockets.

#![forbid(unsafe_code)]

use crate::inherited;
use airlock_wire::error::{Error, Result};
use std::os::fd::OwnedFd;

/// First descriptor after the standard ones.
const FIRST: i32 = 3;

/// How many sockets systemd (or somebody who speaks like it) passes us, from descriptor 3 on (sd_listen_fds(3)).
/// `LISTEN_PID` must name us where it is set.
pub fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    let ours = match std::env::var_os("LISTEN_PID") {
        None => true,
        Some(_) => number("LISTEN_PID") == Some(std::process::id()),
    };
    if ours { number("LISTEN_FDS").unwrap_or(0) } else { 0 }
}

/// Duplicates the descriptors for the container: `listen` sockets and `preserve` more, from 3 on, under their own
/// numbers, as far as the caller really left them open (never a descriptor of ours: runc#5474); then each of `pass`,
/// from host number to container number.
///
/// [`inherited::snapshot`] must have been taken when the program started.
pub fn collect(listen: u32, preserve: u32, pass: &[(i32, i32)]) -> Result<Vec<(i32, OwnedFd)>> {
    let end = u64::from(listen) + u64::from(preserve);
    let mut passed = Vec::new();
    for fd in inherited::snapshot().iter().copied() {
        let offset = u64::try_from(i64::from(fd) - i64::from(FIRST));
        if offset.is_ok_and(|offset| offset < end) {
            passed.push((fd, inherited::duplicate(fd)?));
        }
    }
    for (host, guest) in pass {
        if *guest < FIRST {
            return Err(Error::invalid_argument(format!(
                "--pass-fd {host}:{guest}: numbers 0 to 2 of the container are its stdio; use {FIRST} or more"
            )));
        }
        if passed.iter().any(|(number, _)| number == guest) {
            return Err(Error::invalid_argument(format!(
                "--pass-fd {host}:{guest}: the container gets another descriptor {guest} already"
            )));
        }
        passed.push((*guest, inherited::duplicate(*host)?));
    }
    Ok(passed)
}

/// Duplicates the caller's descriptor `fd`, which is the program to execute.
pub fn program(fd: Option<i32>) -> Result<Option<OwnedFd>> {
    fd.map(|fd| inherited::duplicate(fd).map_err(|e| e.context("--exec-fd"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_what_the_caller_left_open_is_passed() {
        let open = std::fs::File::open("/dev/null").unwrap();
        // Whoever comes first in this process takes the snapshot; what is opened later does not count.
        inherited::snapshot();
        let later = std::fs::File::open("/dev/null").unwrap();
        let all = collect(0, 100_000, &[]).unwrap();
        assert_eq!(all.len(), inherited::snapshot().len());
        assert!(all.iter().all(|(n, _)| inherited::contains(*n)));
        assert!(collect(0, 0, &[]).unwrap().is_empty());
        if inherited::contains(open.as_raw_fd()) {
            let fd = open.as_raw_fd();
            let passed = collect(0, 0, &[(fd, 9)]).unwrap();
            assert_eq!(passed[0].0, 9);
            assert!(collect(0, 0, &[(fd, 9), (fd, 9)]).unwrap_err().message.contains("already"));
        }
        if !inherited::contains(later.as_raw_fd()) {
            assert!(collect(0, 0, &[(later.as_raw_fd(), 9)]).is_err());
        }
        assert!(collect(0, 0, &[(0, 2)]).unwrap_err().message.contains("stdio"));
        assert!(collect(u32::MAX, u32::MAX, &[]).is_ok());
    }
}
