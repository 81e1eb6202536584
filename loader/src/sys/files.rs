//! What a descriptor refers to: asking for it, and setting it up again. See `checkpoint::dump::files`.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// What kcmp(2) compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Open file descriptions behind two descriptor numbers.
    File(i32, i32),
    /// Descriptor tables.
    Files,
    /// Root, current directory and umask.
    Fs,
    /// The description behind a number of the first task, and what an epoll instance of the second one watches.
    EpollTarget {
        /// Number in the first task.
        fd: i32,
        /// Number of the epoll instance in the second task.
        epoll: i32,
        /// Number under which the target was added.
        target: u32,
        /// Which of those that were added under this number.
        nth: u32,
    },
}

/// Compares kernel objects of two tasks (thread ids in the caller's pid namespace): an order that lasts until reboot.
///
/// # Errors
/// `EPERM` without the right to trace them, `ESRCH`, `EBADF`; `ENOENT` when an epoll instance has no such target;
/// `ENOSYS` on kernels without CONFIG_KCMP.
pub fn kcmp(first: i32, second: i32, what: Compare) -> Result<std::cmp::Ordering> {
    #[repr(C)]
    struct Slot {
        epoll: u32,
        target: u32,
        nth: u32,
    }
    let slot = match what {
        Compare::EpollTarget { epoll, target, nth, .. } => Slot { epoll: epoll as u32, target, nth },
        _ => Slot { epoll: 0, target: 0, nth: 0 },
    };
    let (kind, a, b) = match what {
        Compare::File(a, b) => (0, a as usize, b as usize),
        Compare::Files => (2, 0, 0),
        Compare::Fs => (3, 0, 0),
        Compare::EpollTarget { fd, .. } => (7, fd as usize, &raw const slot as usize),
    };
    // SAFETY: the arguments are integers but for KCMP_EPOLL_TFD, whose slot outlives the call.
    let order = Errno::result(unsafe { libc::syscall(libc::SYS_kcmp, first, second, kind, a, b) })?;
    Ok(match order {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    })
}

/// pidfd_open(2) of a single thread (`PIDFD_THREAD`, Linux 6.9).
///
/// # Errors
/// `EINVAL` on older kernels, `ESRCH`.
pub fn pidfd_open_thread(tid: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, libc::O_EXCL) })
}

/// An ioctl(2) that stores one int.
///
/// # Errors
/// `ENOTTY` for the wrong kind of file, and the request's own.
pub fn ioctl_get(fd: BorrowedFd<'_>, request: u64) -> Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: only used with requests that store an int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut value) })?;
    Ok(value)
}

/// An ioctl(2) that reads one int.
///
/// # Errors
/// As [`ioctl_get`].
pub fn ioctl_set(fd: BorrowedFd<'_>, request: u64, value: i32) -> Result<()> {
    // SAFETY: only used with requests that read an int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw const value) }).map(drop)
}

/// An ioctl(2) that reads one byte.
///
/// # Errors
/// As [`ioctl_get`].
pub fn ioctl_set_byte(fd: BorrowedFd<'_>, request: u64, value: u8) -> Result<()> {
    // SAFETY: only used with requests that read a char.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw const value) }).map(drop)
}

/// An ioctl(2) whose argument is a plain number (or none).
///
/// # Errors
/// As [`ioctl_get`].
pub fn ioctl_value(fd: BorrowedFd<'_>, request: u64, value: u64) -> Result<i32> {
    // SAFETY: only used with requests that take their argument by value.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, value) })
}

/// An ioctl(2) that returns a new descriptor: `SIOCUNIXFILE` (the file a unix socket is bound to, as `O_PATH`),
/// `SIOCGSKNS` (the network namespace of a socket).
///
/// # Errors
/// `ENOENT` where there is none, `EPERM`, `ENOTTY`.
pub fn ioctl_open(fd: BorrowedFd<'_>, request: u64) -> Result<OwnedFd> {
    // SAFETY: these requests take no argument.
    let new = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0) })?;
    // Neither request sets it.
    // SAFETY: no pointers; the descriptor was just made.
    unsafe { libc::fcntl(new, libc::F_SETFD, libc::FD_CLOEXEC) };
    owned(new.into())
}

/// An ioctl(2) that stores `N` bytes.
///
/// # Errors
/// As [`ioctl_get`].
pub fn ioctl_bytes<const N: usize>(fd: BorrowedFd<'_>, request: Block<N>) -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: `Block` binds the request to the size that it stores.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request.0 as _, bytes.as_mut_ptr()) })?;
    Ok(bytes)
}

/// An ioctl(2) that reads `N` bytes.
///
/// # Errors
/// As [`ioctl_get`].
pub fn ioctl_set_bytes<const N: usize>(fd: BorrowedFd<'_>, request: Block<N>, bytes: &[u8; N]) -> Result<()> {
    // SAFETY: `Block` binds the request to the size that it reads.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request.0 as _, bytes.as_ptr()) }).map(drop)
}

/// An ioctl request together with the size of the structure that it moves.
#[derive(Debug, Clone, Copy)]
pub struct Block<const N: usize>(u64);

/// `TCGETS2`: `struct termios2` of a terminal (of the other end, for a pty master).
pub const TERMIOS: Block<44> = Block(0x802c_542a);
/// `TCSETS2`.
pub const SET_TERMIOS: Block<44> = Block(0x402c_542b);
/// `TIOCGLCKTRMIOS`: which bits of the settings are locked, as `struct termios`.
pub const LOCKED_TERMIOS: Block<36> = Block(0x5456);
/// `TIOCSLCKTRMIOS` (CAP_SYS_ADMIN).
pub const SET_LOCKED_TERMIOS: Block<36> = Block(0x5457);
/// `TIOCGWINSZ`.
pub const WINSIZE: Block<8> = Block(0x5413);
/// `TIOCSWINSZ`.
pub const SET_WINSIZE: Block<8> = Block(0x5414);

/// `TIOCGPTN`: index of a pty, asked of its master.
pub const TIOCGPTN: u64 = 0x8004_5430;
/// `TIOCSPTLCK`.
pub const TIOCSPTLCK: u64 = 0x4004_5431;
/// `TIOCGPTLCK`.
pub const TIOCGPTLCK: u64 = 0x8004_5439;
/// `TIOCGPKT`: packet mode.
pub const TIOCGPKT: u64 = 0x8004_5438;
/// `TIOCPKT`.
pub const TIOCPKT: u64 = 0x5420;
/// `TIOCGEXCL`.
pub const TIOCGEXCL: u64 = 0x8004_5440;
/// `TIOCEXCL`.
pub const TIOCEXCL: u64 = 0x540c;
/// `TIOCSTI`: input, byte by byte.
pub const TIOCSTI: u64 = 0x5412;
/// `TIOCGSID`: session of a terminal.
pub const TIOCGSID: u64 = 0x5429;
/// `TIOCGPGRP`: foreground process group.
pub const TIOCGPGRP: u64 = 0x540f;
/// `TIOCGDEV`: the terminal's real device number, also behind `/dev/tty`.
pub const TIOCGDEV: u64 = 0x8004_5432;
/// `FIONREAD`, also `SIOCINQ`: bytes that can be read.
pub const FIONREAD: u64 = 0x541b;
/// `SIOCOUTQ`: bytes that the peer has not read.
pub const SIOCOUTQ: u64 = 0x5411;
/// `SIOCUNIXFILE` (CAP_NET_ADMIN).
pub const SIOCUNIXFILE: u64 = 0x89e0;
/// `SIOCGSKNS` (CAP_NET_ADMIN, Linux 4.10).
pub const SIOCGSKNS: u64 = 0x894c;
/// `INOTIFY_IOC_SETNEXTWD` (Linux 4.18, CONFIG_CHECKPOINT_RESTORE).
pub const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;

/// A timer's setting, nanoseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    /// Time to the next expiry; 0: disarmed.
    pub value: u64,
    /// Interval; 0: expires once.
    pub interval: u64,
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 }
}

fn nanoseconds(t: libc::timespec) -> u64 {
    (t.tv_sec.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec.max(0) as u64)
}

/// timerfd_create(2), close-on-exec, not blocking.
///
/// # Errors
/// `EINVAL` for an unknown clock, `EPERM` for an alarm clock without CAP_WAKE_ALARM.
pub fn timerfd_create(clock: i32) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) }.into())
}

/// timerfd_gettime(2). Expirations of a periodic timer that nobody has asked for are counted by this.
///
/// # Errors
/// `EINVAL` when it is no timerfd.
pub fn timerfd_gettime(fd: BorrowedFd<'_>) -> Result<Timer> {
    // SAFETY: an all-zero itimerspec is valid.
    let mut now: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: `now` outlives the call.
    Errno::result(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &raw mut now) })?;
    Ok(Timer { value: nanoseconds(now.it_value), interval: nanoseconds(now.it_interval) })
}

/// timerfd_settime(2); `flags` are `TFD_TIMER_*`.
///
/// # Errors
/// `EINVAL`.
pub fn timerfd_settime(fd: BorrowedFd<'_>, flags: i32, timer: Timer) -> Result<()> {
    let new = libc::itimerspec { it_interval: timespec(timer.interval), it_value: timespec(timer.value) };
    // SAFETY: `new` outlives the call; a null pointer asks for no answer.
    Errno::result(unsafe {
        libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const new, std::ptr::null_mut())
    })
    .map(drop)
}

/// Gives a timerfd expirations that were not read (`TFD_IOC_SET_TICKS`, CONFIG_CHECKPOINT_RESTORE).
///
/// # Errors
/// `EINVAL` for 0, `ENOTTY`.
pub fn timerfd_set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> Result<()> {
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    // SAFETY: the request reads 8 bytes, which outlive the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS as _, &raw const ticks) }).map(drop)
}

/// signalfd4(2) for the signals of `mask` (bit N-1 is signal N), close-on-exec, not blocking.
///
/// # Errors
/// The errno of signalfd4(2).
pub fn signalfd(mask: u64) -> Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the kernel reads the 8 bytes that the size argument names.
    owned(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8usize, flags) })
}

/// eventfd2(2), close-on-exec, not blocking.
///
/// # Errors
/// The errno of eventfd2(2).
pub fn eventfd(initial: u32, semaphore: bool) -> Result<OwnedFd> {
    let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | if semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::eventfd(initial, flags) }.into())
}

/// inotify_init1(2), close-on-exec, not blocking.
///
/// # Errors
/// `EMFILE` when the user has too many.
pub fn inotify() -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) }.into())
}

/// inotify_add_watch(2). Returns the watch's number.
///
/// # Errors
/// `ENOENT`, `EACCES`, `ENOSPC` when the user has too many.
pub fn inotify_add(fd: BorrowedFd<'_>, path: &std::ffi::CStr, mask: u32) -> Result<i32> {
    // SAFETY: the path is NUL-terminated.
    Errno::result(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })
}

/// inotify_rm_watch(2).
///
/// # Errors
/// `EINVAL` for an unknown number.
pub fn inotify_remove(fd: BorrowedFd<'_>, watch: i32) -> Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::inotify_rm_watch(fd.as_raw_fd(), watch) }).map(drop)
}

/// epoll_create1(2), close-on-exec.
///
/// # Errors
/// `EMFILE`.
pub fn epoll() -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into())
}

/// `EPOLL_CTL_ADD` of whatever is at number `target` in the calling thread's descriptor table.
///
/// # Errors
/// `EEXIST`, `EPERM` for files that cannot be watched, `ELOOP`, `EBADF`.
pub fn epoll_add(epoll: BorrowedFd<'_>, target: RawFd, events: u32, data: u64) -> Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: `event` outlives the call; `target` is only looked up.
    Errno::result(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, target, &raw mut event) })
        .map(drop)
}

/// Takes events that are there already, without waiting; returns how many (at most 64).
///
/// # Errors
/// The errno of epoll_wait(2).
pub fn epoll_drain(epoll: BorrowedFd<'_>) -> Result<usize> {
    // SAFETY: an all-zero epoll_event is valid.
    let mut events: [libc::epoll_event; 64] = unsafe { std::mem::zeroed() };
    // SAFETY: `events` has room for 64.
    let n = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 64, 0) };
    Errno::result(n).map(|n| n as usize)
}

/// Duplicates `from` to the number `to` of the calling thread's descriptor table, closing what is there, and says who
/// closes it later: nobody but [`close_number`] or the end of the table.
///
/// # Errors
/// `EBADF` above the limit.
pub fn dup_to(from: BorrowedFd<'_>, to: RawFd) -> Result<()> {
    // SAFETY: only used in threads that have a descriptor table of their own, where no owner of `to` lives.
    Errno::result(unsafe { libc::dup3(from.as_raw_fd(), to, libc::O_CLOEXEC) }).map(drop)
}

/// Names a descriptor of the calling thread's own table by number. A number that is not open makes calls fail with
/// `EBADF`; it is never closed through this.
pub fn borrow_number(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: used on threads whose table nobody else changes, for numbers that stay open until the thread ends. -1 is
    // no valid value of the type.
    unsafe { BorrowedFd::borrow_raw(fd.max(0)) }
}

/// Closes number `fd` of the calling thread's descriptor table.
pub fn close_number(fd: RawFd) {
    // SAFETY: as in `dup_to`.
    unsafe { libc::close(fd) };
}

/// `F_GETOWN_EX`: type (`F_OWNER_*`) and id in the caller's pid namespace.
///
/// # Errors
/// `EBADF` for `O_PATH` descriptors.
pub fn owner(fd: BorrowedFd<'_>) -> Result<(i32, i32)> {
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: `struct f_owner_ex` is two ints, which outlive the call.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) })?;
    Ok((owner[0], owner[1]))
}

/// `F_SETOWN_EX`.
///
/// # Errors
/// `ESRCH`, `EINVAL`.
pub fn set_owner(fd: BorrowedFd<'_>, kind: i32, id: i32) -> Result<()> {
    const F_SETOWN_EX: i32 = 15;
    let owner = [kind, id];
    // SAFETY: `struct f_owner_ex` is two ints, which outlive the call.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, owner.as_ptr()) }).map(drop)
}

/// fcntl(2) with a plain number.
///
/// # Errors
/// The command's.
pub fn fcntl(fd: BorrowedFd<'_>, command: i32, value: i32) -> Result<i32> {
    // SAFETY: only used with commands whose argument is an int.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command, value) })
}

/// Takes (or, with `F_UNLCK`, gives back) a lock of an open file description (`F_OFD_SETLK`); never waits.
///
/// # Errors
/// `EAGAIN` when somebody else has it.
pub fn lock_description(fd: BorrowedFd<'_>, kind: i32, start: i64, len: i64) -> Result<()> {
    // SAFETY: an all-zero flock is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start;
    lock.l_len = len;
    // SAFETY: `lock` outlives the call.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }).map(drop)
}

/// flock(2), without waiting.
///
/// # Errors
/// `EWOULDBLOCK` when somebody else has it.
pub fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> Result<()> {
    let how = libc::LOCK_NB | if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), how) }).map(drop)
}

/// Opens a POSIX message queue of the calling thread's IPC namespace (mq_open(3); the name without its slash).
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn mqueue_open(name: &std::ffi::CStr, flags: i32) -> Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated; without O_CREAT there are no further arguments.
    owned(unsafe {
        libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags | libc::O_CLOEXEC, 0, std::ptr::null::<u8>())
    })
}

/// Opens a file by its handle (open_by_handle_at(2), CAP_DAC_READ_SEARCH in the initial user namespace); `mount` is
/// any descriptor on the same mount, and the answer's path is one in that mount.
///
/// # Errors
/// `ESTALE` when it no longer exists or cannot be decoded, `EPERM`.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> Result<OwnedFd> {
    const MAX_HANDLE_SZ: usize = 128;
    if handle.len() > MAX_HANDLE_SZ {
        return Err(Errno::EINVAL);
    }
    let mut bytes = Vec::with_capacity(8 + handle.len());
    bytes.extend_from_slice(&(handle.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(handle);
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `bytes` is a `struct file_handle` whose length field matches what follows. The kernel copies it.
    owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), bytes.as_mut_ptr(), flags) })
}

/// Changes the effective user and group of the calling thread alone (libc would change those of all threads).
///
/// # Errors
/// `EPERM`; `EINVAL` for numbers that are not mapped in the user namespace.
pub fn act_as(uid: u32, gid: u32) -> Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, -1, gid, -1) })?;
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) }).map(drop)
}

/// Asks for a process that ends at once, is reaped, and leaves a pidfd behind.
///
/// # Errors
/// `EAGAIN` when there can be no more processes.
pub fn ended_process() -> Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is valid: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    // No exit signal, so that nobody who waits for children of the ordinary kind is told.
    // SAFETY: as for fork(2); the child calls nothing but _exit, which needs no lock that another thread may hold.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    Errno::result(pid)?;
    let fd = owned(pidfd.into())?;
    loop {
        // SAFETY: a null status is allowed.
        match Errno::result(unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WALL) }) {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| fd),
        }
    }
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: a fresh descriptor from the kernel, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
