//! What system calls without a message of their own take, and what the numbers of those that have one mean.
#![forbid(unsafe_code)]

use super::names::{Names, set};
use crate::trace::bpf::{Capture, SyscallEntry};
use std::collections::HashMap;
use std::sync::OnceLock;

/// What an argument is.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `int`
    Int,
    /// `long`
    Long,
    /// `unsigned long`
    Unsigned,
    /// An address or bits without names.
    Hex,
    /// A mode.
    Octal,
    /// A descriptor.
    Descriptor,
    /// An address of a text.
    Text,
    /// An address of what is written; the next argument is its length.
    Written,
    /// An address of what is read; the result is its length.
    Read,
    /// A socket address; the next argument is its length.
    Address,
    /// A number with names.
    Named(&'static Names),
}

/// An argument: its name, and what it is.
pub type Parameter = (&'static str, Kind);

/// What a call takes, if that is known here.
pub fn parameters(call: &str) -> Option<&'static [Parameter]> {
    static ALL: OnceLock<HashMap<&'static str, Vec<Parameter>>> = OnceLock::new();
    let all = ALL.get_or_init(|| CALLS.iter().map(|(name, text)| (*name, parse(text))).collect());
    all.get(call).map(Vec::as_slice)
}

/// The names that the field of a call's message has for its numbers.
pub fn names(call: &str, field: &str) -> Option<&'static Names> {
    let found = FIELDS.iter().find(|(calls, f, _)| *f == field && calls.split(' ').any(|c| c == call))?;
    set(found.2)
}

/// What the kernel's programs have to take for a call, beyond what its message needs.
pub fn extra(call: &str) -> SyscallEntry {
    let mut entry = SyscallEntry::default();
    match call {
        "read" | "pread64" => entry.leaving[0] = Capture::Address(1),
        "write" | "pwrite64" => entry.entering[0] = Capture::Address(1),
        _ => {}
    }
    let mut taken = 0;
    for (at, (_, kind)) in (0..).zip(parameters(call).unwrap_or_default()) {
        let (side, capture) = match kind {
            Kind::Text => {
                // In memory that was never touched it can be read only once the kernel has done so.
                if let Some(slot) = entry.leaving.get_mut(taken) {
                    *slot = Capture::Text(at);
                }
                (&mut entry.entering, Capture::Text(at))
            }
            Kind::Written | Kind::Address => (&mut entry.entering, Capture::Address(at)),
            Kind::Read => (&mut entry.leaving, Capture::Address(at)),
            Kind::Descriptor if entry.fd.is_none() => {
                entry.fd = Some(at);
                continue;
            }
            _ => continue,
        };
        if let Some(slot) = side.get_mut(taken) {
            *slot = capture;
            taken += 1;
        }
    }
    entry
}

fn parse(text: &'static str) -> Vec<Parameter> {
    let parameter = |word: &'static str| {
        let (name, kind) = word.split_once(':').unwrap_or((word, "x"));
        let kind = match kind {
            "d" => Kind::Int,
            "l" => Kind::Long,
            "u" => Kind::Unsigned,
            "o" => Kind::Octal,
            "fd" => Kind::Descriptor,
            "text" => Kind::Text,
            "written" => Kind::Written,
            "read" => Kind::Read,
            "address" => Kind::Address,
            other => set(other).map_or(Kind::Hex, Kind::Named),
        };
        (name, kind)
    };
    text.split_ascii_whitespace().map(parameter).collect()
}

/// Calls with a message of their own: field, and the set of its names.
const FIELDS: [(&str, &str, &str); 18] = [
    ("open openat creat", "flags", "open"),
    ("mmap", "prot", "prot"),
    ("mmap", "flags", "map"),
    ("fcntl", "cmd", "fcntl"),
    ("socket socketpair", "domain", "domain"),
    ("socket socketpair", "type", "socket"),
    ("accept4", "flags", "accept"),
    ("pipe2 dup3 signalfd4 inotify_init1", "flags", "descriptor"),
    ("timerfd_create", "flags", "descriptor"),
    ("timerfd_create", "clock_id", "clock"),
    ("timerfd_settime", "flags", "timer"),
    ("eventfd2", "flags", "eventfd"),
    ("clone", "flags", "clone"),
    ("execveat", "flags", "at"),
    ("prlimit64", "resource", "resource"),
    ("inotify_add_watch", "mask", "inotify"),
    ("ptrace", "request", "ptrace"),
    ("accept", "flags", "accept"),
];

/// Calls without one, in the order of their names (Linux' `include/linux/syscalls.h`, man pages). An argument without a
/// kind is an address or a number without names.
#[rustfmt::skip]
const CALLS: &[(&str, &str)] = &[
    ("access", "pathname:text mode:access"),
    ("alarm", "seconds:u"),
    ("arch_prctl", "code addr"),
    ("brk", "addr"),
    ("cachestat", "fd:fd range stat flags"),
    ("capget", "header data"),
    ("capset", "header data"),
    ("chmod", "pathname:text mode:o"),
    ("chown", "pathname:text owner:d group:d"),
    ("clock_getres", "clock:clock res"),
    ("clock_gettime", "clock:clock time"),
    ("clock_nanosleep", "clock:clock flags:timer request remain"),
    ("clock_settime", "clock:clock time"),
    ("clone3", "args size:u"),
    ("close_range", "first:u last:u flags"),
    ("copy_file_range", "fd_in:fd off_in fd_out:fd off_out len:u flags"),
    ("epoll_create", "size:d"),
    ("epoll_create1", "flags:descriptor"),
    ("epoll_ctl", "epfd:d op:epoll fd:fd event"),
    ("epoll_pwait", "epfd:fd events maxevents:d timeout:d sigmask sigsetsize:u"),
    ("epoll_pwait2", "epfd:fd events maxevents:d timeout sigmask sigsetsize:u"),
    ("epoll_wait", "epfd:fd events maxevents:d timeout:d"),
    ("exit", "status:d"),
    ("exit_group", "status:d"),
    ("faccessat", "fd:fd pathname:text mode:access"),
    ("faccessat2", "fd:fd pathname:text mode:access flags:faccessat"),
    ("fadvise64", "fd:fd offset:l len:l advice:fadvise"),
    ("fallocate", "fd:fd mode:fallocate offset:l len:l"),
    ("fchmod", "fd:fd mode:o"),
    ("fchmodat", "fd:fd pathname:text mode:o"),
    ("fchmodat2", "fd:fd pathname:text mode:o flags:at"),
    ("fchown", "fd:fd owner:d group:d"),
    ("fchownat", "fd:fd pathname:text owner:d group:d flags:at"),
    ("fdatasync", "fd:fd"),
    ("fgetxattr", "fd:fd name:text value size:u"),
    ("finit_module", "fd:fd params:text flags"),
    ("flistxattr", "fd:fd list size:u"),
    ("flock", "fd:fd operation:flock"),
    ("fremovexattr", "fd:fd name:text"),
    ("fsetxattr", "fd:fd name:text value:written size:u flags"),
    ("fsmount", "fd:fd flags attr_flags"),
    ("fsopen", "name:text flags"),
    ("fstat", "fd:fd stat"),
    ("fstatfs", "fd:fd stat"),
    ("fsync", "fd:fd"),
    ("ftruncate", "fd:fd length:l"),
    ("futex", "uaddr op:futex val:d timeout uaddr2 val3"),
    ("futimesat", "fd:fd pathname:text times"),
    ("getcpu", "cpu node"),
    ("getcwd", "buf:read size:u"),
    ("getdents", "fd:fd buf count:u"),
    ("getdents64", "fd:fd buf count:u"),
    ("getegid", ""),
    ("geteuid", ""),
    ("getgid", ""),
    ("getgroups", "size:d list"),
    ("getitimer", "which:itimer value"),
    ("getpeername", "fd:fd addr addrlen"),
    ("getpgid", "pid:d"),
    ("getpgrp", ""),
    ("getpid", ""),
    ("getppid", ""),
    ("getpriority", "which:d who:d"),
    ("getrandom", "buf buflen:u flags:random"),
    ("getresgid", "rgid egid sgid"),
    ("getresuid", "ruid euid suid"),
    ("getrlimit", "resource:resource limit"),
    ("getrusage", "who:rusage usage"),
    ("getsid", "pid:d"),
    ("getsockname", "fd:fd addr addrlen"),
    ("getsockopt", "fd:fd level:level name:d value len"),
    ("gettid", ""),
    ("gettimeofday", "time zone"),
    ("getuid", ""),
    ("getxattr", "pathname:text name:text value size:u"),
    ("io_cancel", "ctx iocb result"),
    ("io_destroy", "ctx"),
    ("io_getevents", "ctx min:l nr:l events timeout"),
    ("io_setup", "events:u ctxp"),
    ("io_submit", "ctx nr:l iocbs"),
    ("io_uring_enter", "fd:fd to_submit:u min_complete:u flags"),
    ("io_uring_register", "fd:fd opcode:u arg nr:u"),
    ("io_uring_setup", "entries:u params"),
    ("ioctl", "fd:fd request:ioctl arg"),
    ("kcmp", "pid1:d pid2:d type:d idx1 idx2"),
    ("kill", "pid:d sig:signal"),
    ("lchown", "pathname:text owner:d group:d"),
    ("lgetxattr", "pathname:text name:text value size:u"),
    ("link", "oldpath:text newpath:text"),
    ("linkat", "olddirfd:fd oldpath:text newdirfd:fd newpath:text flags:at"),
    ("listxattr", "pathname:text list size:u"),
    ("llistxattr", "pathname:text list size:u"),
    ("lremovexattr", "pathname:text name:text"),
    ("lseek", "fd:fd offset:l whence:whence"),
    ("lsetxattr", "pathname:text name:text value:written size:u flags"),
    ("lstat", "pathname:text stat"),
    ("madvise", "addr length:u advice:madvise"),
    ("membarrier", "cmd flags cpu:d"),
    ("memfd_create", "name:text flags:memfd"),
    ("memfd_secret", "flags"),
    ("mincore", "addr length:u vec"),
    ("mkdir", "pathname:text mode:o"),
    ("mkdirat", "fd:fd pathname:text mode:o"),
    ("mknod", "pathname:text mode:o dev"),
    ("mknodat", "fd:fd pathname:text mode:o dev"),
    ("mlock", "addr length:u"),
    ("mlock2", "addr length:u flags"),
    ("mlockall", "flags"),
    ("mount", "source:text target:text filesystemtype:text flags:mount data"),
    ("move_mount", "from_fd:fd from:text to_fd:fd to:text flags"),
    ("mprotect", "addr length:u prot:prot"),
    ("mq_open", "name:text flags:open mode:o attr"),
    ("mq_timedreceive", "mqdes:fd message length:u priority timeout"),
    ("mq_timedsend", "mqdes:fd message:written length:u priority:u timeout"),
    ("mq_unlink", "name:text"),
    ("mremap", "addr old_size:u new_size:u flags:mremap new_address"),
    ("msgctl", "msqid:d cmd:d buf"),
    ("msgget", "key flags"),
    ("msgrcv", "msqid:d message size:u type:l flags"),
    ("msgsnd", "msqid:d message size:u flags"),
    ("msync", "addr length:u flags:msync"),
    ("munlock", "addr length:u"),
    ("munlockall", ""),
    ("munmap", "addr length:u"),
    ("name_to_handle_at", "fd:fd pathname:text handle mount_id flags"),
    ("nanosleep", "request remain"),
    ("newfstatat", "fd:fd pathname:text stat flags:at"),
    ("open_tree", "fd:fd pathname:text flags"),
    ("openat2", "fd:fd pathname:text how size:u"),
    ("pause", ""),
    ("perf_event_open", "attr pid:d cpu:d group_fd:d flags"),
    ("personality", "persona"),
    ("pidfd_getfd", "pidfd:fd targetfd:d flags"),
    ("pidfd_open", "pid:d flags"),
    ("pidfd_send_signal", "pidfd:fd sig:signal info flags"),
    ("pivot_root", "new_root:text put_old:text"),
    ("pkey_alloc", "flags rights"),
    ("pkey_free", "pkey:d"),
    ("pkey_mprotect", "addr length:u prot:prot pkey:d"),
    ("poll", "fds nfds:u timeout:d"),
    ("ppoll", "fds nfds:u timeout sigmask sigsetsize:u"),
    ("prctl", "option:prctl arg2 arg3 arg4 arg5"),
    ("process_madvise", "pidfd:fd iov count:u advice:madvise flags"),
    ("process_vm_readv", "pid:d local local_count:u remote remote_count:u flags"),
    ("process_vm_writev", "pid:d local local_count:u remote remote_count:u flags"),
    ("pselect6", "nfds:d readfds writefds exceptfds timeout sigmask"),
    ("readahead", "fd:fd offset:l count:u"),
    ("readlink", "pathname:text buf:read size:u"),
    ("readlinkat", "fd:fd pathname:text buf:read size:u"),
    ("recvfrom", "fd:fd buf:read len:u flags:message addr addrlen"),
    ("recvmmsg", "fd:fd messages count:u flags:message timeout"),
    ("recvmsg", "fd:fd message flags:message"),
    ("removexattr", "pathname:text name:text"),
    ("rename", "oldpath:text newpath:text"),
    ("renameat", "olddirfd:fd oldpath:text newdirfd:fd newpath:text"),
    ("renameat2", "olddirfd:fd oldpath:text newdirfd:fd newpath:text flags:rename"),
    ("restart_syscall", ""),
    ("rmdir", "pathname:text"),
    ("rseq", "rseq length:u flags signature"),
    ("rt_sigaction", "signum:signal act oldact sigsetsize:u"),
    ("rt_sigpending", "set sigsetsize:u"),
    ("rt_sigprocmask", "how:mask set oldset sigsetsize:u"),
    ("rt_sigqueueinfo", "pid:d sig:signal info"),
    ("rt_sigreturn", ""),
    ("rt_sigsuspend", "mask sigsetsize:u"),
    ("rt_sigtimedwait", "set info timeout sigsetsize:u"),
    ("sched_get_priority_max", "policy:d"),
    ("sched_get_priority_min", "policy:d"),
    ("sched_getaffinity", "pid:d size:u mask"),
    ("sched_getattr", "pid:d attr size:u flags"),
    ("sched_getparam", "pid:d param"),
    ("sched_getscheduler", "pid:d"),
    ("sched_setaffinity", "pid:d size:u mask"),
    ("sched_setattr", "pid:d attr flags"),
    ("sched_setparam", "pid:d param"),
    ("sched_setscheduler", "pid:d policy:d param"),
    ("sched_yield", ""),
    ("seccomp", "operation:u flags args"),
    ("select", "nfds:d readfds writefds exceptfds timeout"),
    ("semctl", "semid:d semnum:d cmd:d arg"),
    ("semget", "key count:d flags"),
    ("semop", "semid:d ops count:u"),
    ("semtimedop", "semid:d ops count:u timeout"),
    ("sendfile", "out_fd:fd in_fd:fd offset count:u"),
    ("sendmmsg", "fd:fd messages count:u flags:message"),
    ("sendmsg", "fd:fd message flags:message"),
    ("sendto", "fd:fd buf:written len:u flags:message addr:address addrlen:u"),
    ("set_robust_list", "head length:u"),
    ("set_tid_address", "tidptr"),
    ("setfsgid", "gid:d"),
    ("setfsuid", "uid:d"),
    ("setgroups", "size:d list"),
    ("sethostname", "name:written len:u"),
    ("setitimer", "which:itimer new_value old_value"),
    ("setns", "fd:fd flags:clone"),
    ("setpgid", "pid:d pgid:d"),
    ("setpriority", "which:d who:d priority:d"),
    ("setregid", "rgid:d egid:d"),
    ("setreuid", "ruid:d euid:d"),
    ("setrlimit", "resource:resource limit"),
    ("setsockopt", "fd:fd level:level name:d value len:u"),
    ("settimeofday", "time zone"),
    ("setxattr", "pathname:text name:text value:written size:u flags"),
    ("shmat", "shmid:d addr flags"),
    ("shmctl", "shmid:d cmd:d buf"),
    ("shmdt", "addr"),
    ("shmget", "key size:u flags"),
    ("shutdown", "fd:fd how:shutdown"),
    ("sigaltstack", "new old"),
    ("splice", "fd_in:fd off_in fd_out:fd off_out len:u flags"),
    ("stat", "pathname:text stat"),
    ("statfs", "pathname:text stat"),
    ("statx", "fd:fd pathname:text flags:at mask:statx stat"),
    ("symlink", "target:text linkpath:text"),
    ("symlinkat", "target:text fd:fd linkpath:text"),
    ("sync", ""),
    ("sync_file_range", "fd:fd offset:l count:l flags"),
    ("syncfs", "fd:fd"),
    ("sysinfo", "info"),
    ("tee", "fd_in:fd fd_out:fd len:u flags"),
    ("tgkill", "tgid:d tid:d sig:signal"),
    ("time", "time"),
    ("timer_create", "clock:clock event timerid"),
    ("timer_delete", "timerid:d"),
    ("timer_getoverrun", "timerid:d"),
    ("timer_gettime", "timerid:d value"),
    ("timer_settime", "timerid:d flags:timer new_value old_value"),
    ("times", "buf"),
    ("tkill", "tid:d sig:signal"),
    ("truncate", "pathname:text length:l"),
    ("umask", "mask:o"),
    ("umount2", "target:text flags:umount"),
    ("uname", "buf"),
    ("unlink", "pathname:text"),
    ("unlinkat", "fd:fd pathname:text flags:at"),
    ("unshare", "flags:clone"),
    ("userfaultfd", "flags:descriptor"),
    ("utime", "pathname:text times"),
    ("utimensat", "fd:fd pathname:text times flags:at"),
    ("utimes", "pathname:text times"),
    ("vmsplice", "fd:fd iov count:u flags"),
    ("wait4", "pid:d status options:wait usage"),
    ("waitid", "idtype:idtype id:d info options:wait usage"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::calls;

    #[test]
    fn all_are_calls_of_linux_without_a_message() {
        for (name, text) in CALLS {
            assert!(crate::seccomp::syscalls::names().any(|n| n == *name), "{name}");
            assert!(!calls::CALLS.iter().any(|call| call.name == *name), "{name} has a message");
            assert!(parse(text).len() <= 6, "{name}");
            // Every kind is one.
            for word in text.split_ascii_whitespace().filter_map(|w| w.split_once(':')) {
                assert!(
                    !matches!(parse(text).iter().find(|p| p.0 == word.0), Some((_, Kind::Hex))),
                    "{name}: {word:?}"
                );
            }
        }
        assert!(CALLS.is_sorted());
    }

    #[test]
    fn fields_are_those_of_the_messages() {
        for (names, field, of) in FIELDS {
            assert!(set(of).is_some(), "{of}");
            for name in names.split(' ') {
                let call = calls::CALLS.iter().find(|call| call.name == name).unwrap();
                let seen = calls::Seen {
                    args: [0; 6],
                    result: None,
                    fd_path: None,
                    captured: Vec::new(),
                    envv: false,
                };
                assert!((call.tell)(&seen).iter().any(|f| f.name == field), "{name} {field}");
            }
        }
    }

    #[test]
    fn what_messages_need_is_not_overwritten() {
        for call in calls::CALLS {
            let (own, extra) = (call.entry(true), extra(call.name));
            let none = SyscallEntry::default();
            assert!(own.entering == none.entering || extra.entering == none.entering, "{}", call.name);
            assert!(own.leaving == none.leaving || extra.leaving == none.leaving, "{}", call.name);
        }
        let renamed = extra("renameat2");
        assert_eq!((renamed.fd, renamed.entering[1]), (Some(0), Capture::Text(3)));
    }
}
