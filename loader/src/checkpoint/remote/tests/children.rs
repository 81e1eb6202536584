use super::super::*;
use super::*;

/// pids from this namespace inwards.
fn nspid(pid: i32) -> Vec<i32> {
    status(pid, "NSpid").split_whitespace().map(|n| n.parse().unwrap()).collect()
}

#[test]
fn children_get_their_pids_in_a_namespace_of_their_own() {
    let Some(mut program) = Program::start(&[
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]) else {
        return;
    };
    if program.line() != "ready" {
        eprintln!("skipped: making a pid namespace is not allowed");
        return;
    }
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", program.pid())).unwrap();
    let init: i32 = children.trim().parse().unwrap();
    until("it sleeps", || procfs::describe(init).contains("(sleep)") && procfs::state(init) == Some('S'));
    let mut t = Tracee::seize(init).unwrap();
    let region = Region::map(&mut t, None).unwrap();
    let fork = |pid| Clone3 { exit_signal: libc::SIGCHLD, set_tid: vec![pid], ..Clone3::default() };
    let mut child = t.clone3(&region, &fork(777)).unwrap().unwrap();
    assert_eq!(nspid(child.tid())[1], 777);
    assert_eq!(status(child.tid(), "PPid"), init.to_string());
    assert_eq!(t.clone3(&region, &fork(777)).unwrap().unwrap_err(), nix::errno::Errno::EEXIST);
    // It has its own copy of the region.
    assert_eq!(child.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(777));
    let mut grandchild = child.clone3(&region, &fork(55)).unwrap().unwrap();
    let mut batch = Batch::new();
    let (session, parent) = (batch.must(libc::SYS_setsid, []), batch.must(libc::SYS_getppid, []));
    let ran = batch.run(&mut grandchild, &region).unwrap();
    assert_eq!((ran.get(session).unwrap(), ran.get(parent).unwrap()), (55, 777));

    // A thread of the child: same process, own thread id, and it runs what it is given.
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let thread = Clone3 { flags: flags as u64, set_tid: vec![888], ..Clone3::default() };
    let mut thread = child.clone3(&region, &thread).unwrap().unwrap();
    assert_eq!((nspid(thread.tid())[1], status(thread.tid(), "Tgid")), (888, child.tid().to_string()));
    assert_eq!(thread.syscall(libc::SYS_gettid, [0; 6]).unwrap(), Ok(888));
    assert_eq!(thread.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(777));
    let regs = child.regs().unwrap();
    assert_eq!(regs.in_syscall(), Some(libc::SYS_clone3 as u64));
    assert_eq!((regs.returned(), regs.ip()), (0, region.gadget().at + 2));
    assert_eq!(thread.regs().unwrap().ip(), region.gadget().at + 2);

    // The init's sleep goes on in the children, as its registers say.
    let sleep = t.regs().unwrap().for_image();
    let mask = t.sigmask().unwrap();
    let tids = [child.tid(), grandchild.tid(), thread.tid(), t.tid()];
    for mut task in [child, grandchild, thread] {
        task.set_regs(&sleep).unwrap();
        task.set_sigmask(mask).unwrap();
        task.detach(0).unwrap();
    }
    region.unmap(&mut t).unwrap();
    t.detach(0).unwrap();
    for tid in tids {
        until("it sleeps", || procfs::state(tid) == Some('S'));
        let call = std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap();
        let nr: i64 = call.split(' ').next().unwrap().parse().unwrap();
        assert!([libc::SYS_clock_nanosleep, libc::SYS_restart_syscall].contains(&nr), "{tid}: {call}");
    }
}

#[test]
fn a_family_that_is_dropped_goes_down_together() {
    let program = Program::sleep("1000");
    let options = Options { kill: true };
    let deadline = Instant::now() + STOP_TIMEOUT;
    let mut t = Tracee::seize_begin(program.pid(), options).unwrap().wait(deadline).unwrap();
    let region = Region::map(&mut t, None).unwrap();
    let child =
        t.clone3(&region, &Clone3 { exit_signal: libc::SIGCHLD, ..Clone3::default() }).unwrap().unwrap();
    let pid = child.tid();
    drop(child);
    until("the child is dead", || dead(pid));
    // Its parent can wait for it.
    let mut batch = Batch::new();
    let info = batch.space(128);
    let wait = [libc::P_ALL.into(), Arg::NULL, info, libc::WEXITED.into(), Arg::NULL];
    batch.must(libc::SYS_waitid, wait);
    let ran = batch.run(&mut t, &region).unwrap();
    ran.check().unwrap();
    assert_eq!(ran.int(info.at(16)), pid);
    task_list::kill_all([t], Duration::from_secs(10)).unwrap();
    assert!(dead(program.pid()));
}

#[test]
fn zombies_have_the_status_they_are_given() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    for status in [0, 7 << 8, 255 << 8, libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV, libc::SIGTRAP, 64] {
        let fork = Clone3 { exit_signal: libc::SIGCHLD, ..Clone3::default() };
        let child = t.clone3(&region, &fork).unwrap().unwrap();
        let pid = child.tid();
        child.end_as(&region, status).unwrap();
        assert_eq!(procfs::state(pid), Some('Z'));
        let mut batch = Batch::new();
        let found = batch.space(4);
        batch.must(libc::SYS_wait4, [pid.into(), found, libc::WNOHANG.into(), Arg::NULL]);
        let ran = batch.run(&mut t, &region).unwrap();
        assert_eq!((ran.result(CallId::default()), ran.int(found)), (Ok(pid as u64), status));
    }
    let fork = Clone3 { exit_signal: libc::SIGCHLD, ..Clone3::default() };
    let child = t.clone3(&region, &fork).unwrap().unwrap();
    let pid = child.tid();
    assert!(child.end_as(&region, 0x137f).is_err());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn what_would_not_return_is_refused() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let vfork = Clone3 { flags: libc::CLONE_VFORK as u64, ..Clone3::default() };
    assert!(t.clone3(&region, &vfork).unwrap_err().message.contains("CLONE_VFORK"));
    let nonsense = Clone3 { flags: libc::CLONE_THREAD as u64, ..Clone3::default() };
    assert_eq!(t.clone3(&region, &nonsense).unwrap().unwrap_err(), nix::errno::Errno::EINVAL);
}
