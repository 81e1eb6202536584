#![forbid(unsafe_code)]
//! The filter of the loader itself.
//!
//! A deny-list: the loader serves calls of many kinds (it traces and inspects processes, too), but once it has
//! booted it never executes a program, makes a process (the spawner does), mounts, enters a namespace, changes
//! who it is, or reaches the network. What takes a path is mostly pointless in its empty root; what would still
//! do harm there is denied as well.

use super::arch::{Abi, NATIVE};
use super::policy::{Compare, Condition, Policy};
use super::{Program, assemble, syscalls};

const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// Calls that fail with EPERM whatever their arguments, by what they would be good for.
const DENIED: &[&[&str]] = &[
    // Executing programs, and making processes; see also `clone` below.
    &["execve", "execveat", "uselib", "fork", "vfork"],
    // The mount tree.
    &["mount", "umount", "umount2", "pivot_root", "move_mount", "open_tree", "open_tree_attr"],
    &["fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr", "swapon", "swapoff"],
    &["quotactl", "quotactl_fd", "fanotify_init"],
    // Namespaces and roots.
    &["setns", "unshare", "chroot", "sethostname", "setdomainname"],
    // File handles look files up from the top of a file system, past every root.
    &["open_by_handle_at", "name_to_handle_at"],
    // Moving, linking and making nodes.
    &["rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat"],
    // The loader's capabilities are chosen at boot; so are its ids.
    &["setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid"],
    &["setfsuid", "setfsgid", "setgroups"],
    // The kernel and the machine.
    &["bpf", "perf_event_open", "lookup_dcookie", "kexec_load", "kexec_file_load", "reboot", "syslog"],
    &["init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms"],
    &["iopl", "ioperm", "modify_ldt", "acct", "vhangup", "nfsservctl", "_sysctl", "personality"],
    // Clocks.
    &["settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "stime"],
    // Keyrings.
    &["add_key", "request_key", "keyctl"],
    // Rings perform system calls that no filter sees.
    &["io_uring_setup", "io_uring_enter", "io_uring_register"],
];

/// The filter that the loader installs on its first thread before it makes others and serves its first call; calls
/// of other ABIs than the native one kill the thread. Denied calls fail with EPERM; the lists are in this file.
///
/// Threads can be made, processes cannot: `clone3`, whose flags a filter cannot see, fails with ENOSYS, whereupon
/// C libraries use `clone`, which must have `CLONE_THREAD`. Sockets can only be of the family `AF_UNIX`.
pub fn loader_filter() -> Program {
    let mut policy = Policy::new(libc::SECCOMP_RET_ALLOW, [NATIVE]);
    let mut deny = |name: &str, conditions: &[Condition], action| {
        // Names that only some architectures have are no mistake.
        if let Some(call) = syscalls::lookup(name) {
            policy.add(&call, conditions, action);
        }
    };
    for name in DENIED.iter().copied().flatten() {
        deny(name, &[], DENY);
    }
    deny("clone", &[Condition::masked(0, libc::CLONE_THREAD as u64, 0)], DENY);
    deny("clone3", &[], libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    for name in ["socket", "socketpair"] {
        deny(name, &[Condition::plain(0, Compare::Ne, libc::AF_UNIX as u64)], DENY);
    }
    debug_assert!(matches!(NATIVE, Abi::X86_64 | Abi::Aarch64));
    assemble(&mut policy, None)
}

#[cfg(test)]
mod tests {
    use super::super::tests::kernel::{filtered, raw};
    use super::super::tests::naive::{Call, run};
    use super::*;
    use nix::errno::Errno;
    use std::process::Command;

    /// Calls whose outcome depends on their first argument: name, argument, what the filter answers.
    const PARTLY: &[(&str, u64, Option<Errno>)] = &[
        ("clone", libc::SIGCHLD as u64, Some(Errno::EPERM)),
        ("clone", libc::CLONE_VM as u64 | libc::CLONE_VFORK as u64, Some(Errno::EPERM)),
        ("clone", libc::CLONE_THREAD as u64, None),
        ("clone3", 0, Some(Errno::ENOSYS)),
        ("socket", libc::AF_UNIX as u64, None),
        ("socket", libc::AF_INET as u64, Some(Errno::EPERM)),
        ("socket", libc::AF_NETLINK as u64, Some(Errno::EPERM)),
        ("socket", libc::AF_UNIX as u64 | 1 << 32, Some(Errno::EPERM)),
        ("socketpair", libc::AF_UNIX as u64, None),
        ("socketpair", libc::AF_TIPC as u64, Some(Errno::EPERM)),
    ];

    /// Calls that the loader lives on.
    const NEEDED: &[&str] = &[
        "read",
        "write",
        "recvmsg",
        "sendmsg",
        "accept4",
        "openat",
        "close",
        "close_range",
        "futex",
        "mmap",
        "munmap",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "userfaultfd",
        "pidfd_open",
        "pidfd_getfd",
        "pidfd_send_signal",
        "kill",
        "wait4",
        "waitid",
        "prctl",
        "seccomp",
        "memfd_create",
        "epoll_wait",
        "exit_group",
        "getdents64",
        "ftruncate",
        "rt_sigaction",
        "clock_gettime",
        "timerfd_create",
    ];

    /// What a compromised loader would reach for first, written down a second time: an entry lost from the table
    /// above must not go unnoticed.
    #[rustfmt::skip]
    const NEVER: &[&str] = &[
        "execve", "execveat", "fork", "vfork", "mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen",
        "fsmount", "fsconfig", "fspick", "mount_setattr", "setns", "unshare", "chroot", "bpf", "kexec_load",
        "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff", "iopl",
        "ioperm", "keyctl", "add_key", "request_key", "open_by_handle_at", "name_to_handle_at", "settimeofday",
        "clock_settime", "adjtimex", "clock_adjtime", "acct", "quotactl", "quotactl_fd", "setuid", "setgid",
        "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "rename", "renameat",
        "renameat2", "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "perf_event_open", "personality",
        "io_uring_setup",
    ];

    fn native(name: &str) -> Option<u32> {
        syscalls::lookup(name)?.number(NATIVE.column()).map(u32::from)
    }

    fn answer(program: &Program, name: &str, first: u64) -> u32 {
        let nr = native(name).unwrap_or_else(|| panic!("{name} is not a call of this architecture"));
        run(&program.filter, &Call { arch: NATIVE.audit(), nr, args: [first, 0, 0, 0, 0, 0] })
    }

    #[test]
    fn it_answers_as_the_tables_say() {
        let program = loader_filter();
        assert!(program.filter.len() < 150, "{} instructions", program.filter.len());
        for name in DENIED.iter().copied().flatten() {
            assert!(syscalls::lookup(name).is_some(), "{name} is no call of any architecture");
            if native(name).is_some() {
                assert_eq!(answer(&program, name, 0), DENY, "{name}");
            }
        }
        for (name, first, errno) in PARTLY {
            let expected = match errno {
                Some(errno) => libc::SECCOMP_RET_ERRNO | *errno as u32,
                None => libc::SECCOMP_RET_ALLOW,
            };
            assert_eq!(answer(&program, name, *first), expected, "{name} {first:#x}");
        }
        for name in NEVER.iter().filter(|name| native(name).is_some()) {
            assert_eq!(answer(&program, name, 0), DENY, "{name}");
        }
        for name in NEEDED {
            assert_eq!(answer(&program, name, 0), libc::SECCOMP_RET_ALLOW, "{name}");
        }
    }

    const CHILD: &str = "AIRLOCK_TEST_LOADER_FILTER_CHILD";

    /// A process of its own makes the calls: a filter that is not there must not harm the other tests.
    #[test]
    fn the_kernel_denies_each_call() {
        if std::env::var_os(CHILD).is_some() {
            return make_every_denied_call();
        }
        let output = Command::new("/proc/self/exe")
            .args(["--exact", "seccomp::loader_filter::tests::the_kernel_denies_each_call", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("the test binary runs again");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("denied calls:"), "the child did nothing: {text}");
    }

    fn make_every_denied_call() {
        let work = || {
            let mut denied = 0;
            let always = DENIED.iter().copied().flatten().map(|name| (*name, 0, Some(Errno::EPERM)));
            for (name, first, errno) in always.chain(PARTLY.iter().copied()) {
                let (Some(nr), Some(errno)) = (native(name), errno) else { continue };
                // Null pointers and descriptor 0: without the filter these fail otherwise or do nothing.
                let result = raw(nr.into(), [first, 0, 0, 0, 0, 0]);
                if result == Ok(0) && name.contains("fork") | name.contains("clone") {
                    // This is the child that should not be.
                    std::process::abort();
                }
                assert_eq!(result, Err(errno), "{name} {first:#x}");
                denied += 1;
            }
            // Threads still work, and inherit the filter.
            let inherited = std::thread::spawn(|| raw(libc::SYS_unshare, [0; 6])).join().expect("a thread");
            assert_eq!(inherited, Err(Errno::EPERM));
            let unix = std::os::unix::net::UnixStream::pair();
            assert!(unix.is_ok(), "{unix:?}");
            denied
        };
        let denied = filtered(loader_filter(), None, work).join().expect("every call was denied");
        assert!(denied > 70, "only {denied} calls were tried");
        println!("denied calls: {denied}");
    }
}
