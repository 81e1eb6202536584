//! Names of the numbers that system calls take, from the C library's constants (man pages of the calls).
#![forbid(unsafe_code)]

use std::fmt::Write;

/// What a number may stand for: one of several values in the bits of `mask`, and flags in the others.
#[derive(Debug)]
pub struct Names {
    mask: u64,
    one: &'static [(&'static str, u64)],
    flags: &'static [(&'static str, u64)],
}

impl Names {
    /// As C would write it: names joined with `|`, what has none as a number.
    pub fn show(&self, value: u64) -> String {
        let mut text = String::new();
        let mut add = |part: &str| {
            if !text.is_empty() {
                text.push('|');
            }
            text.push_str(part);
        };
        let mut rest = value & !self.mask;
        match self.one.iter().find(|(_, v)| *v == value & self.mask) {
            Some((name, _)) if self.mask != 0 => add(name),
            _ => rest = value,
        }
        for (name, bits) in self.flags {
            if *bits != 0 && rest & bits == *bits {
                add(name);
                rest &= !bits;
            }
        }
        if rest != 0 {
            add(&format!("{rest:#x}"));
        }
        if text.is_empty() {
            // Nothing of it is set.
            let zero = self.flags.iter().find(|(_, v)| *v == 0).map_or("0", |(name, _)| name);
            let _ = text.write_str(zero);
        }
        text
    }
}

macro_rules! list {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name as u32 as u64)),*] };
}
macro_rules! names {
    ($($set:literal: $mask:expr, [$($one:ident)*], [$($flag:ident)*];)*) => {
        /// The sets, by the names that [`super::signatures`] has for them.
        pub fn set(name: &str) -> Option<&'static Names> {
            Some(match name {
                $($set => {
                    const SET: Names = Names { mask: $mask, one: list!($($one)*), flags: list!($($flag)*) };
                    &SET
                })*
                _ => return None,
            })
        }
    };
}

/// All bits of an argument that is an `int`.
const ALL: u64 = 0xffff_ffff;

#[rustfmt::skip]
names! {
    "open": 3, [O_RDONLY O_WRONLY O_RDWR], [O_TMPFILE O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_SYNC O_DSYNC
        O_ASYNC O_DIRECT O_DIRECTORY O_NOFOLLOW O_NOATIME O_CLOEXEC O_PATH];
    "descriptor": 0, [], [O_CLOEXEC O_NONBLOCK O_DIRECT];
    "eventfd": 0, [], [EFD_SEMAPHORE EFD_CLOEXEC EFD_NONBLOCK];
    "prot": 0, [], [PROT_NONE PROT_READ PROT_WRITE PROT_EXEC PROT_GROWSDOWN PROT_GROWSUP];
    "map": 3, [MAP_SHARED MAP_PRIVATE MAP_SHARED_VALIDATE], [MAP_FIXED MAP_ANONYMOUS MAP_GROWSDOWN MAP_DENYWRITE
        MAP_EXECUTABLE MAP_LOCKED MAP_NORESERVE MAP_POPULATE MAP_NONBLOCK MAP_STACK MAP_HUGETLB MAP_FIXED_NOREPLACE];
    "mremap": 0, [], [MREMAP_MAYMOVE MREMAP_FIXED MREMAP_DONTUNMAP];
    "madvise": ALL, [MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MADV_REMOVE MADV_DONTFORK
        MADV_DOFORK MADV_MERGEABLE MADV_UNMERGEABLE MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTDUMP MADV_DODUMP MADV_COLD
        MADV_PAGEOUT MADV_POPULATE_READ MADV_POPULATE_WRITE], [];
    "msync": 0, [], [MS_ASYNC MS_SYNC MS_INVALIDATE];
    "fcntl": ALL, [F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_GETLK F_SETLK F_SETLKW F_SETOWN F_GETOWN
        F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_SETLEASE F_GETLEASE F_NOTIFY F_DUPFD_CLOEXEC F_SETPIPE_SZ F_GETPIPE_SZ
        F_ADD_SEALS F_GET_SEALS], [];
    "whence": ALL, [SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE], [];
    "access": 0, [], [F_OK R_OK W_OK X_OK];
    "at": 0, [], [AT_SYMLINK_NOFOLLOW AT_REMOVEDIR AT_SYMLINK_FOLLOW AT_NO_AUTOMOUNT AT_EMPTY_PATH AT_STATX_FORCE_SYNC
        AT_STATX_DONT_SYNC];
    "faccessat": 0, [], [AT_SYMLINK_NOFOLLOW AT_EACCESS AT_EMPTY_PATH];
    "statx": 0, [], [STATX_ALL STATX_BASIC_STATS STATX_TYPE STATX_MODE STATX_NLINK STATX_UID STATX_GID STATX_ATIME STATX_MTIME
        STATX_CTIME STATX_INO STATX_SIZE STATX_BLOCKS STATX_BTIME STATX_MNT_ID];
    "rename": 0, [], [RENAME_NOREPLACE RENAME_EXCHANGE RENAME_WHITEOUT];
    "flock": 0, [], [LOCK_SH LOCK_EX LOCK_UN LOCK_NB];
    "fallocate": 0, [], [FALLOC_FL_KEEP_SIZE FALLOC_FL_PUNCH_HOLE FALLOC_FL_COLLAPSE_RANGE FALLOC_FL_ZERO_RANGE];
    "fadvise": ALL, [POSIX_FADV_NORMAL POSIX_FADV_RANDOM POSIX_FADV_SEQUENTIAL POSIX_FADV_WILLNEED POSIX_FADV_DONTNEED
        POSIX_FADV_NOREUSE], [];
    "memfd": 0, [], [MFD_CLOEXEC MFD_ALLOW_SEALING MFD_HUGETLB];
    "mount": 0, [], [MS_RDONLY MS_NOSUID MS_NODEV MS_NOEXEC MS_REMOUNT MS_NOATIME MS_BIND MS_MOVE MS_REC MS_PRIVATE MS_SLAVE
        MS_SHARED MS_RELATIME];
    "umount": 0, [], [MNT_FORCE MNT_DETACH MNT_EXPIRE UMOUNT_NOFOLLOW];
    "domain": ALL, [AF_UNSPEC AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_VSOCK AF_ALG], [];
    "socket": 15, [SOCK_STREAM SOCK_DGRAM SOCK_RAW SOCK_SEQPACKET], [SOCK_CLOEXEC SOCK_NONBLOCK];
    "accept": 0, [], [SOCK_CLOEXEC SOCK_NONBLOCK];
    "message": 0, [], [MSG_OOB MSG_PEEK MSG_DONTROUTE MSG_TRUNC MSG_DONTWAIT MSG_EOR MSG_WAITALL MSG_NOSIGNAL MSG_MORE
        MSG_CMSG_CLOEXEC MSG_FASTOPEN MSG_ERRQUEUE];
    "shutdown": ALL, [SHUT_RD SHUT_WR SHUT_RDWR], [];
    "level": ALL, [SOL_SOCKET IPPROTO_IP IPPROTO_TCP IPPROTO_UDP IPPROTO_IPV6], [];
    "epoll": ALL, [EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD], [];
    "clone": 0xff, [SIGCHLD], [CLONE_VM CLONE_FS CLONE_FILES CLONE_SIGHAND CLONE_PIDFD CLONE_PTRACE CLONE_VFORK
        CLONE_PARENT CLONE_THREAD CLONE_NEWNS CLONE_SYSVSEM CLONE_SETTLS CLONE_PARENT_SETTID CLONE_CHILD_CLEARTID CLONE_DETACHED
        CLONE_UNTRACED CLONE_CHILD_SETTID CLONE_NEWCGROUP CLONE_NEWUTS CLONE_NEWIPC CLONE_NEWUSER CLONE_NEWPID CLONE_NEWNET
        CLONE_IO];
    "futex": 0x7f, [FUTEX_WAIT FUTEX_WAKE FUTEX_REQUEUE FUTEX_CMP_REQUEUE FUTEX_WAKE_OP FUTEX_LOCK_PI FUTEX_UNLOCK_PI
        FUTEX_TRYLOCK_PI FUTEX_WAIT_BITSET FUTEX_WAKE_BITSET FUTEX_WAIT_REQUEUE_PI FUTEX_CMP_REQUEUE_PI],
        [FUTEX_PRIVATE_FLAG FUTEX_CLOCK_REALTIME];
    "signal": ALL, [SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM
        SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH
        SIGIO SIGPWR SIGSYS], [];
    "mask": ALL, [SIG_BLOCK SIG_UNBLOCK SIG_SETMASK], [];
    "wait": 0, [], [WNOHANG WUNTRACED WCONTINUED WEXITED WNOWAIT __WNOTHREAD __WALL __WCLONE];
    "idtype": ALL, [P_ALL P_PID P_PGID P_PIDFD], [];
    "clock": ALL, [CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID CLOCK_MONOTONIC_RAW
        CLOCK_REALTIME_COARSE CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM CLOCK_TAI], [];
    "timer": 0, [], [TIMER_ABSTIME];
    "itimer": ALL, [ITIMER_REAL ITIMER_VIRTUAL ITIMER_PROF], [];
    "resource": ALL, [RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC RLIMIT_NOFILE
        RLIMIT_MEMLOCK RLIMIT_AS RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME], [];
    "rusage": ALL, [RUSAGE_SELF RUSAGE_CHILDREN RUSAGE_THREAD], [];
    "random": 0, [], [GRND_NONBLOCK GRND_RANDOM GRND_INSECURE];
    "prctl": ALL, [PR_SET_PDEATHSIG PR_GET_PDEATHSIG PR_GET_DUMPABLE PR_SET_DUMPABLE PR_SET_KEEPCAPS PR_GET_KEEPCAPS PR_SET_NAME
        PR_GET_NAME PR_GET_SECCOMP PR_SET_SECCOMP PR_CAPBSET_READ PR_CAPBSET_DROP PR_GET_SECUREBITS PR_SET_SECUREBITS
        PR_SET_TIMERSLACK PR_SET_MM PR_SET_CHILD_SUBREAPER PR_GET_CHILD_SUBREAPER PR_SET_NO_NEW_PRIVS PR_GET_NO_NEW_PRIVS
        PR_SET_THP_DISABLE PR_CAP_AMBIENT PR_SET_VMA], [];
    "inotify": 0, [], [IN_ACCESS IN_MODIFY IN_ATTRIB IN_CLOSE_WRITE IN_CLOSE_NOWRITE IN_OPEN IN_MOVED_FROM IN_MOVED_TO IN_CREATE
        IN_DELETE IN_DELETE_SELF IN_MOVE_SELF IN_ONLYDIR IN_DONT_FOLLOW IN_EXCL_UNLINK IN_MASK_ADD IN_ONESHOT];
    "ioctl": ALL, [TCGETS TCSETS TCSETSW TCSETSF TIOCGPGRP TIOCSPGRP TIOCGWINSZ TIOCSWINSZ TIOCSCTTY TIOCNOTTY TIOCGSID TIOCGPTN
        TIOCSPTLCK FIONREAD FIONBIO FIOCLEX FIONCLEX SIOCGIFCONF SIOCGIFADDR SIOCGIFFLAGS SIOCGIFINDEX SIOCGIFNAME FICLONE
        FS_IOC_GETFLAGS FS_IOC_SETFLAGS], [];
    "ptrace": ALL, [PTRACE_TRACEME PTRACE_PEEKTEXT PTRACE_PEEKDATA PTRACE_PEEKUSER PTRACE_POKETEXT PTRACE_POKEDATA
        PTRACE_POKEUSER PTRACE_CONT PTRACE_KILL PTRACE_SINGLESTEP PTRACE_ATTACH PTRACE_DETACH
        PTRACE_SYSCALL PTRACE_SETOPTIONS PTRACE_GETEVENTMSG PTRACE_GETSIGINFO PTRACE_SETSIGINFO PTRACE_GETREGSET
        PTRACE_SETREGSET PTRACE_SEIZE PTRACE_INTERRUPT PTRACE_LISTEN], [];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn show(name: &str, value: i32) -> String {
        set(name).unwrap().show(value as u32 as u64)
    }

    #[test]
    fn numbers_become_names() {
        assert_eq!(show("open", libc::O_RDONLY), "O_RDONLY");
        assert_eq!(show("open", libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC), "O_RDWR|O_CREAT|O_CLOEXEC");
        assert_eq!(show("open", libc::O_WRONLY | libc::O_TMPFILE), "O_WRONLY|O_TMPFILE");
        assert_eq!(show("prot", 0), "PROT_NONE");
        assert_eq!(show("access", 0), "F_OK");
        assert_eq!(
            show("map", libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | 1 << 30),
            "MAP_PRIVATE|MAP_ANONYMOUS|0x40000000"
        );
        assert_eq!(show("map", libc::MAP_ANONYMOUS), "MAP_ANONYMOUS");
        assert_eq!(show("fcntl", libc::F_GETFL), "F_GETFL");
        assert_eq!(show("fcntl", 999), "0x3e7");
        assert_eq!(
            show("futex", libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG),
            "FUTEX_WAIT|FUTEX_PRIVATE_FLAG"
        );
        assert_eq!(show("rusage", -1), "RUSAGE_CHILDREN");
        assert_eq!(show("descriptor", 0), "0");
    }

    proptest! {
        /// Every bit is either named or told as a number.
        #[test]
        fn no_bit_is_lost(value in any::<u32>()) {
            for name in ["open", "map", "clone", "socket", "at", "message"] {
                let names = set(name).unwrap();
                let of = |part: &str| names.one.iter().chain(names.flags).find(|(n, _)| *n == part).map(|(_, v)| *v);
                let number = |part: &str| u64::from_str_radix(part.trim_start_matches("0x"), 16).unwrap();
                let shown = names.show(value.into());
                let all = shown.split('|').map(|part| of(part).unwrap_or_else(|| number(part))).fold(0, |a, b| a | b);
                prop_assert_eq!(all, u64::from(value), "{}: {}", name, shown);
            }
        }
    }
}
