//! seccomp(2).

use libc::{c_ulong, sock_filter};
use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

/// Puts `filter` on the calling thread. Returns the listener, close-on-exec, if `flags` has
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
///
/// # Errors
/// `EACCES` without `no_new_privs` and CAP_SYS_ADMIN, `EINVAL` for a bad filter, flag or length, `EBUSY` for a
/// second listener.
pub fn set_filter(filter: &[sock_filter], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    let len = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` and the `len` instructions behind it outlive the call; the kernel only reads them.
    let result = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as c_ulong,
            c_ulong::from(flags),
            &raw const program,
        )
    })?;
    if c_ulong::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as c_ulong == 0 {
        return Ok(None);
    }
    let fd = i32::try_from(result).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether this kernel knows `flag` (one `SECCOMP_FILTER_FLAG_*` bit, with the others that it requires). Installs
/// nothing.
pub fn flag_supported(flag: u32) -> bool {
    // SAFETY: the null program makes the kernel fail with EFAULT once it has accepted the flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as c_ulong,
            c_ulong::from(flag),
            ptr::null::<libc::sock_fprog>(),
        )
    };
    result == -1 && Errno::last() == Errno::EFAULT
}

/// Any system call, for tests of filters: with arguments that do no harm where the filter is wrong.
#[cfg(test)]
pub(crate) fn raw_for_tests(nr: i64, args: [u64; 6]) -> Result<i64, Errno> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the tests that call this pass numbers and null pointers only, which the kernel checks.
    Errno::result(unsafe { libc::syscall(nr, a, b, c, d, e, f) })
}
