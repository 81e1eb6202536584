//! Processes: creation, identity, privileges, exit.

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// Which side of a fork the caller is on.
#[derive(Debug)]
pub enum Forked {
    /// In the new process.
    Child,
    /// In the old one: the child's pid in the caller's pid namespace and a pidfd.
    Parent {
        /// Pid as the caller sees it.
        pid: i32,
        /// Process descriptor (close-on-exec).
        pidfd: OwnedFd,
    },
}

/// What [`fork`] may be asked for besides a plain child.
#[derive(Debug, Default, Clone, Copy)]
pub struct ForkOptions<'a> {
    /// The child is the first process of a new pid namespace.
    pub new_pid_namespace: bool,
    /// The child's parent is the caller's parent (`CLONE_PARENT`; not allowed to PID 1 of a namespace).
    pub sibling: bool,
    /// A v2 cgroup directory that the child starts in (`CLONE_INTO_CGROUP`, Linux 5.7).
    pub into_cgroup: Option<BorrowedFd<'a>>,
}

/// Forks the calling process with clone3(2).
///
/// Only for single-threaded processes: the child goes on running ordinary Rust code, which is sound because no
/// other thread could have held a lock at the moment of the fork.
///
/// # Errors
/// The errno of clone3(2); `EDEADLK` when the process has more than one thread.
pub fn fork(options: ForkOptions<'_>) -> Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PIDFD as u64;
    if options.new_pid_namespace {
        flags |= libc::CLONE_NEWPID as u64;
    }
    if options.sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    // SAFETY: an all-zero clone_args is valid: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // clone3 wants no exit signal with CLONE_PARENT: the child then gets the caller's own.
    args.exit_signal = if options.sibling { 0 } else { libc::SIGCHLD as u64 };
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if let Some(dir) = options.into_cgroup {
        flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = dir.as_raw_fd() as u64;
    }
    args.flags = flags;
    // SAFETY: without CLONE_VM the child has its own copy of the address space, as with fork(2); `args` and
    // `pidfd` outlive the call. glibc's caches (tid) are refreshed lazily and not used by this process.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(Errno::last()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel stored a fresh descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Ends the process at once, without running destructors or exit handlers of the parent's image.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// Opens a pidfd (pidfd_open(2), Linux 5.3).
///
/// # Errors
/// `ESRCH` when no such process exists.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signo` (0: existence check) to the process of `pidfd` (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` when it is gone, `EINVAL` for a bad signal number, `EPERM`.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signo: i32) -> Result<()> {
    pidfd_signal(pidfd, signo, 0)
}

/// Sends `signo` to the process group whose id is that of the process of `pidfd` (`PIDFD_SIGNAL_PROCESS_GROUP`, Linux 6.9).
///
/// # Errors
/// As [`pidfd_send_signal`]; `EINVAL` on older kernels, too.
pub fn pidfd_send_signal_group(pidfd: BorrowedFd<'_>, signo: i32) -> Result<()> {
    const PROCESS_GROUP: u32 = 1 << 2;
    pidfd_signal(pidfd, signo, PROCESS_GROUP)
}

fn pidfd_signal(pidfd: BorrowedFd<'_>, signo: i32, flags: u32) -> Result<()> {
    // SAFETY: a null siginfo is allowed and means kill(2) semantics.
    let r = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signo,
            std::ptr::null::<libc::siginfo_t>(),
            flags,
        )
    };
    Errno::result(r).map(drop)
}

/// Moves the calling thread into namespaces (setns(2)): `fd` is a namespace or (Linux 5.8) a pidfd.
///
/// # Errors
/// The errno of setns(2).
pub fn setns(fd: BorrowedFd<'_>, flags: i32) -> Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::setns(fd.as_raw_fd(), flags) }).map(drop)
}

/// unshare(2).
///
/// # Errors
/// The errno of unshare(2).
pub fn unshare(flags: i32) -> Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::unshare(flags) }).map(drop)
}

/// One ended child: pid and raw wait status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Pid in the caller's pid namespace.
    pub pid: i32,
    /// Raw wait status as wait(2) gives it.
    pub status: i32,
}

/// Reaps one ended child if there is one; never blocks.
///
/// # Errors
/// `ECHILD` when there are no children at all.
pub fn reap() -> Result<Option<Reaped>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(Some(Reaped { pid, status })),
    }
}

/// Raw wait status of the ended process behind `pidfd`, also of one that is not a child (`PIDFD_GET_INFO` with
/// `PIDFD_INFO_EXIT`, Linux 6.15).
///
/// # Errors
/// `ENOTTY`/`EINVAL` on older kernels, `ENODATA` when it has not been reaped yet or the status is unknown.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Result<u32> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
        more: [u32; 16],
    }
    const SIZE: usize = 64; // PIDFD_INFO_SIZE_VER0: up to and including exit_code
    const PIDFD_GET_INFO: libc::c_ulong = 0xc000_ff0b | (SIZE as libc::c_ulong) << 16;
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // SAFETY: the request says that 64 bytes are exchanged and `info` is larger.
    Errno::result(unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) })?;
    if info.mask & PIDFD_INFO_EXIT == 0 {
        return Err(Errno::ENODATA);
    }
    Ok(info.exit_code as u32)
}

/// Closes every descriptor from `first` on, except those in `keep`.
///
/// The caller must not use (or drop) any `OwnedFd` of a closed descriptor afterwards; meant for a freshly forked
/// child that forgets what it inherited.
///
/// # Errors
/// The errno of close_range(2).
pub fn close_all_except(first: RawFd, keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd >= first).collect();
    keep.sort_unstable();
    let mut start = first as u32;
    for fd in keep {
        let fd = fd as u32;
        if fd > start {
            close_range(start, fd - 1, 0)?;
        }
        start = fd + 1;
    }
    close_range(start, u32::MAX, 0)
}

/// Sets close-on-exec on every descriptor from `first` on.
///
/// # Errors
/// The errno of close_range(2) (`EINVAL` before Linux 5.11).
pub fn cloexec_from(first: RawFd) -> Result<()> {
    close_range(first as u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: u32) -> Result<()> {
    // SAFETY: no pointers; which descriptors may be closed is the caller's promise (see close_all_except).
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Duplicates `from` onto the number `to` (dup2(2)); `to` is then inherited over exec.
///
/// # Errors
/// The errno of dup2(2).
pub fn dup_onto(from: BorrowedFd<'_>, to: RawFd) -> Result<()> {
    if from.as_raw_fd() == to {
        // SAFETY: no pointers; clears FD_CLOEXEC.
        return Errno::result(unsafe { libc::fcntl(to, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: no pointers; `to` is a number that the caller is about to give away on exec.
    Errno::result(unsafe { libc::dup2(from.as_raw_fd(), to) }).map(drop)
}

/// Sets close-on-exec on descriptor number `fd`, if it is open.
pub fn set_cloexec(fd: RawFd) {
    // SAFETY: no pointers; nothing is closed before exec.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Duplicates `fd` to a number of at least `min`, close-on-exec.
///
/// # Errors
/// The errno of fcntl(2).
pub fn dup_above(fd: BorrowedFd<'_>, min: RawFd) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, min) })?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes ownership of descriptor 0, on which a new stage finds its boot socket.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn take_stdin() -> Result<OwnedFd> {
    // SAFETY: descriptor 0 is only borrowed for the duration of the call.
    dup_above(unsafe { BorrowedFd::borrow_raw(0) }, 3)
}

/// prctl(2) with plain integers.
///
/// # Errors
/// The errno of prctl(2).
pub fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> Result<i32> {
    // SAFETY: only used with options whose arguments are integers.
    Errno::result(unsafe { libc::prctl(option, a, b, c, d) })
}

/// Names the process (at most 15 bytes are kept).
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of the NUL-terminated text.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Sets the calling thread's capability sets (capset(2), version 3; bit N is capability N).
///
/// # Errors
/// `EPERM` when a set grows.
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let part = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [part(0), part(32)];
    // SAFETY: both structures have the kernel's layout and outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Reads the calling thread's permitted capabilities (capget(2)).
///
/// # Errors
/// The errno of capget(2).
pub fn cap_permitted() -> Result<u64> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [0u32; 6];
    // SAFETY: the header and the two data records have the kernel's layout.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

/// Sets real, effective and saved ids without glibc's broadcast to other threads.
///
/// # Errors
/// `EPERM`, `EINVAL` when an id is not mapped.
pub fn set_uid_gid(uid: u32, gid: u32) -> Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// setgroups(2), duplicates kept.
///
/// # Errors
/// `EPERM` where the user namespace denies it, `EINVAL` for too many groups.
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: the slice outlives the call and its length is passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// setrlimit(2) for the calling process; `resource` is an `RLIMIT_*` number.
///
/// # Errors
/// `EPERM` when the hard limit is raised without CAP_SYS_RESOURCE.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call.
    Errno::result(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// execve(2). Returns only on failure.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: all strings are NUL-terminated and the arrays end with a null pointer.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// Executes the file behind `fd` (execveat(2) with `AT_EMPTY_PATH`). Returns only on failure.
pub fn execveat(fd: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Errno {
    let argv = pointers(args);
    let envp = pointers(env);
    // SAFETY: as in execve; the empty path is NUL-terminated.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Ends the calling process by `signo`'s default action (no core file); falls back to `128 + signo` as exit code
/// if the kernel will not let it die that way.
pub fn die_by_signal(signo: i32) -> ! {
    let _ = set_rlimit(libc::RLIMIT_CORE, 0, 0);
    // SAFETY: SIG_DFL is always a valid disposition; the set is initialised by sigemptyset before use.
    unsafe {
        libc::signal(signo, libc::SIG_DFL);
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signo);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signo);
    }
    exit_now(128 + signo)
}

/// Blocks every signal for the calling thread (threads made later inherit it).
pub fn block_signals() {
    // SAFETY: the set is filled before it is used.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Puts signal dispositions and mask back to what a fresh program expects.
pub fn reset_signals() {
    for signo in 1..=64 {
        if signo != libc::SIGKILL && signo != libc::SIGSTOP {
            // SAFETY: SIG_DFL is always valid; numbers that libc reserves fail with EINVAL, which is fine.
            unsafe { libc::signal(signo, libc::SIG_DFL) };
        }
    }
    // SAFETY: the set is emptied before it is used.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Gives memory that the allocator holds and nobody uses back to the kernel (malloc_trim(3)).
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers are passed; the allocator locks what it works on.
    unsafe {
        libc::malloc_trim(0)
    };
}
