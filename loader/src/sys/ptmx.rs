//! The two ioctls that turn an open `ptmx` into a usable pair without looking up a name.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Unlocks the other end of the pseudo terminal `master` (`TIOCSPTLCK`).
///
/// # Errors
/// `ENOTTY`.
pub fn unlock(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let lock: libc::c_int = 0;
    // SAFETY: the ioctl reads one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const lock) }).map(drop)
}

/// Opens the other end of the pseudo terminal `master` (`TIOCGPTPEER`), for reading and writing, close-on-exec, and
/// without making it the controlling terminal.
///
/// # Errors
/// `EIO` while it is locked; `ENOTTY`.
pub fn peer(master: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the ioctl takes its flags by value.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the ioctl succeeded and returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
