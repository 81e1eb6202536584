//! System calls that neither std nor nix offers: the only unsafe code of this crate.
//!
//! Everything here takes and returns owned or borrowed descriptors and plain values; nothing keeps state.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Turns the -1 of a system call into the error that errno holds.
fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Makes an owned descriptor of a system call's result.
fn owned(ret: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(ret)?).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made `fd` for this call and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor for process `pid` (pidfd_open(2), close-on-exec). Fails with `ESRCH` when there is none.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends `signal` (0 only probes) to the process behind `pidfd` (pidfd_send_signal(2)).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed and means "as kill(2) does"; the rest are integers.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// Waits for the end of child `pid` and returns its wait status (waitpid(2)); nix knows no real-time signals. Fails with
/// `ECHILD` when it is none of ours.
pub fn wait_child(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into()) {
            Ok(_) => return Ok(status),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// A detached, read-only, no-setuid view of the file `path` (open_tree(2) and mount_setattr(2)): whoever executes it
/// can never open the file for writing through `/proc/<pid>/exe`. Needs `CAP_SYS_ADMIN` over the mount namespace.
pub fn read_only_view(path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_ulong = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_ulong;
    // SAFETY: `path` is a valid C string that outlives the call.
    let tree = owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })?;
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the empty path and `attr` outlive the call, and the size given is that of `attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(tree)
}

/// The kind of a namespace descriptor as its `CLONE_NEW*` flag (ioctl_nsfs(2), `NS_GET_NSTYPE`). Fails with `ENOTTY`
/// when `fd` is no namespace.
pub fn namespace_type(fd: BorrowedFd<'_>) -> io::Result<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: NS_GET_NSTYPE takes no argument.
    let kind = check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) }))?;
    i32::try_from(kind).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// The size of the terminal behind `fd` (`TIOCGWINSZ`).
pub fn window_size(fd: BorrowedFd<'_>) -> io::Result<libc::winsize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is valid for that.
    check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) }))?;
    Ok(size)
}

/// Sets the size of the terminal behind `fd` (`TIOCSWINSZ`).
pub fn set_window_size(fd: BorrowedFd<'_>, size: &libc::winsize) -> io::Result<()> {
    // SAFETY: TIOCSWINSZ reads one winsize from the pointer, which is valid for that.
    check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const *size) }))
        .map(drop)
}

/// What fork gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// In the new process.
    Child,
    /// In the caller: the pid of the new process.
    Parent(i32),
}

/// Forks. Only for single-threaded programs: refuses (with `EBUSY`) when this process has more than one thread, since
/// the child of a multi-threaded process may touch no lock and no heap.
pub fn fork_single_threaded() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: there is one thread only, so that no lock can be held by a thread that the child lacks.
    match check(libc::c_long::from(unsafe { libc::fork() }))? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Closes every descriptor from `first` up except `keep`. For a process that is about to become something else: the
/// descriptors' owners must never run again (see `proxy`).
pub fn close_all_but(keep: &[RawFd], first: RawFd) {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    keep.sort_unstable();
    let mut from = first;
    for fd in keep {
        if fd > from {
            close_range(from as libc::c_uint, (fd - 1) as libc::c_uint);
        }
        from = from.max(fd + 1);
    }
    close_range(from as libc::c_uint, libc::c_uint::MAX);
}

fn close_range(first: libc::c_uint, last: libc::c_uint) {
    // SAFETY: closing descriptors touches no memory; the caller has promised that their owners do not run again.
    // An error (an old kernel) leaves them open, which is no more than what was before.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Names this process, as `ps` and `/proc/self/comm` show it (at most 15 bytes count).
pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: PR_SET_NAME copies up to 16 bytes from a valid C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Ends this process at once without running destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives `signal` its default action and unblocks it, then sends it to this process. Returns only when the signal does
/// not kill.
pub fn die_of(signal: i32) {
    // SAFETY: SIG_DFL is a valid disposition; the set is initialised by sigemptyset before any use; all pointers are
    // to live locals.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
}

/// The number of the pty whose master is `fd`: its other end is `/dev/pts/<number>` (ioctl_tty(2), `TIOCGPTN`).
pub fn pty_number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int to the pointer, which is valid for that.
    check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGPTN, &raw mut number) }))?;
    Ok(number)
}

/// Puts `/dev/null` on descriptors 0 to 2, whatever they were. For a process that outlives its caller's descriptors;
/// errors leave a descriptor closed or as it was.
pub fn null_stdio() {
    // SAFETY: the path is a valid C string; dup2 and close take integers, and descriptors 0 to 2 have no owner in Rust.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null < 0 {
            return;
        }
        for fd in 0..=2 {
            if fd != null {
                libc::dup2(null, fd);
            }
        }
        if null > 2 {
            libc::close(null);
        }
    }
}

/// A close-on-exec duplicate of descriptor number `fd`, which need not have an owner in Rust: a standard descriptor, or
/// one that this process was started with (see `inherited`).
pub fn duplicate_number(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes integers; a number that is not open gives EBADF.
    owned(libc::c_long::from(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }))
}
