//! Programs on a real kernel. A filter belongs to a thread, so each test uses one up.

use super::{errno, fixture, profile};
use crate::seccomp::{Options, Program, compile};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

/// Runs `work` on a new thread under `program`; `listener` gets the listener if there is one.
pub(crate) fn filtered<T: Send + 'static>(
    program: Program,
    listener: Option<mpsc::Sender<OwnedFd>>,
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(move || {
        nix::sys::prctl::set_no_new_privs().expect("no_new_privs");
        let fd = program.install().expect("the kernel takes the filter");
        assert_eq!(fd.is_some(), listener.is_some());
        if let (Some(fd), Some(listener)) = (fd, listener) {
            listener.send(fd).expect("the test waits for it");
        }
        work()
    })
}

pub(crate) fn raw(nr: i64, args: [u64; 6]) -> Result<i64, Errno> {
    sys::seccomp::raw_for_tests(nr, args)
}

#[test]
fn dockers_profile_denies_and_allows() {
    let program = compile(&fixture("seccomp-docker-default.json"), &Options::default()).expect("compiles");
    let work = || {
        [
            raw(libc::SYS_getppid, [0; 6]),
            raw(libc::SYS_umount2, [0; 6]),
            raw(libc::SYS_clone3, [0; 6]),
            raw(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]),
            raw(libc::SYS_personality, [0x0400_0000, 0, 0, 0, 0, 0]),
            raw(libc::SYS_socket, [38, 5, 0, 0, 0, 0]),
            raw(999, [0; 6]),
        ]
    };
    let [getppid, umount, clone3, query, change, alg, unknown] =
        filtered(program, None, work).join().expect("ran to its end");
    assert!(getppid.is_ok() && query.is_ok(), "{getppid:?} {query:?}");
    assert_eq!(umount, Err(Errno::EPERM));
    assert_eq!(clone3, Err(Errno::ENOSYS));
    assert_eq!(change, Err(Errno::EPERM));
    assert_eq!(alg, Err(Errno::EPERM));
    assert_eq!(unknown, Err(Errno::ENOSYS));
}

#[test]
fn a_listener_is_handed_out_and_used() {
    let notify = profile(json!({"defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_NOTIFY"}]}));
    let program = compile(&notify, &Options::default()).expect("compiles");
    let (send, receive) = mpsc::channel();
    let thread = filtered(program, Some(send), || raw(libc::SYS_getppid, [0; 6]));
    let listener = receive.recv().expect("a listener");
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)), Ok(1), "the call is reported");
    drop(listener);
    // Without anybody to answer, the kernel fails the call.
    assert_eq!(thread.join().expect("ran to its end"), Err(Errno::ENOSYS));
}

#[test]
fn what_was_encoded_can_be_installed() {
    let denied = profile(json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}));
    let bytes = compile(&denied, &Options::default()).expect("compiles").to_bytes();
    let program = Program::from_bytes(&bytes).expect("decodes");
    assert!(program.filter.iter().any(|i| i.k == errno(95)));
    let result = filtered(program, None, || raw(libc::SYS_getppid, [0; 6])).join().expect("ran to its end");
    assert_eq!(result, Err(Errno::EOPNOTSUPP));
}

#[test]
fn flags_that_no_kernel_has_are_not_supported() {
    assert!(sys::seccomp::flag_supported(libc::SECCOMP_FILTER_FLAG_LOG as u32));
    assert!(sys::seccomp::flag_supported(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32));
    assert!(!sys::seccomp::flag_supported(1 << 30));
}
