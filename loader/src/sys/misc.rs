//! Small system calls that stand alone: scheduling, personality, keyrings, terminals, the loopback interface.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

type Result<T> = std::result::Result<T, Errno>;

/// ioprio_set(2) for the calling thread; `value` is `class << 13 | priority`.
///
/// # Errors
/// `EPERM`, `EINVAL`.
pub fn ioprio_set(value: i32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// Arguments of sched_setattr(2), with the kernel's layout.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct SchedAttr {
    /// Size of this structure in bytes.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// Static priority for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// Deadline scheduling, nanoseconds.
    pub runtime: u64,
    /// Deadline scheduling, nanoseconds.
    pub deadline: u64,
    /// Deadline scheduling, nanoseconds.
    pub period: u64,
}

/// sched_setattr(2) for the calling thread.
///
/// # Errors
/// `EPERM`, `EINVAL`.
pub fn sched_setattr(mut attr: SchedAttr) -> Result<()> {
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: `attr` has the kernel's layout, carries its size and outlives the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// sched_setaffinity(2) for the calling thread; numbers of 1024 and above are refused.
///
/// # Errors
/// `EINVAL` when no listed CPU exists.
pub fn set_affinity(cpus: &[usize]) -> Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        if *cpu >= libc::CPU_SETSIZE as usize {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the number was checked against the set's size.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: `set` outlives the call and its size is passed.
    Errno::result(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) })
        .map(drop)
}

/// personality(2).
///
/// # Errors
/// The errno of personality(2).
pub fn personality(value: u64) -> Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::personality(value as libc::c_ulong) }).map(drop)
}

/// Gives the process a new, unnamed session keyring (keyctl(2) `KEYCTL_JOIN_SESSION_KEYRING`).
///
/// # Errors
/// `ENOSYS` where the kernel has no keys, `EDQUOT`.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    })
    .map(drop)
}

/// Makes the terminal `tty` the controlling terminal of the calling session leader (TIOCSCTTY).
///
/// # Errors
/// `EPERM` when the caller is no session leader or has a terminal.
pub fn set_controlling_terminal(tty: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets a terminal's size in characters (TIOCSWINSZ).
///
/// # Errors
/// `ENOTTY`.
pub fn set_window_size(tty: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// The foreground process group of terminal `tty` (TIOCGPGRP), in the caller's pid namespace.
///
/// # Errors
/// `ENOTTY` when the terminal is not the caller's controlling one (a pty master works always).
pub fn foreground_group(tty: BorrowedFd<'_>) -> Result<i32> {
    let mut group: libc::pid_t = 0;
    // SAFETY: `group` outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGPGRP, &raw mut group) })?;
    Ok(group)
}

/// Brings the interface `lo` of the calling thread's network namespace up.
///
/// # Errors
/// `EPERM`; `ENODEV` where there is none.
pub fn loopback_up() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` has the kernel's layout and outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
        .map(drop)
}

/// sethostname(2) or, with `domain`, setdomainname(2), in the calling thread's UTS namespace.
///
/// # Errors
/// `EINVAL` when longer than 64 bytes.
pub fn set_uts_name(name: &str, domain: bool) -> Result<()> {
    // SAFETY: pointer and length describe `name`.
    let r = unsafe {
        if domain {
            libc::setdomainname(name.as_ptr().cast(), name.len())
        } else {
            libc::sethostname(name.as_ptr().cast(), name.len())
        }
    };
    Errno::result(r).map(drop)
}

/// True when the kernel's thread id of the caller equals its process id (main thread).
pub fn gettid() -> i32 {
    // SAFETY: gettid(2) cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}
