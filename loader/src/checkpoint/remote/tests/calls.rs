use super::super::*;
use super::*;
use airlock_wire::error::Kind;
use std::time::Instant;

#[test]
fn a_call_runs_in_the_task_and_leaves_no_trace() {
    let program = Program::sleep("1000");
    let mut t = Tracee::seize(program.pid()).unwrap();
    let before = (t.regs().unwrap(), t.sigmask().unwrap(), t.xstate().unwrap());
    for _ in 0..50 {
        assert_eq!(t.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(program.pid() as u64));
    }
    assert_eq!(t.syscall(libc::SYS_close, [999, 0, 0, 0, 0, 0]).unwrap(), Err(nix::errno::Errno::EBADF));
    assert_eq!(t.syscall(100_000, [0; 6]).unwrap(), Err(nix::errno::Errno::ENOSYS));
    assert_eq!(before, (t.regs().unwrap(), t.sigmask().unwrap(), t.xstate().unwrap()));
    assert!(!t.has_shadow_stack().unwrap());
    t.detach(0).unwrap();
    until("it sleeps again", || program.state() == 'S');
    assert_eq!(status(program.pid(), "TracerPid"), "0");
}

/// The instruction comes from where the thread is, from the vdso, from the region, or from nowhere.
#[test]
fn an_instruction_is_found_wherever_the_thread_is() {
    let Some(program) = Program::python("print('ready')\nwhile True: pass") else { return };
    let mut t = Tracee::seize(program.pid()).unwrap();
    while t.regs().unwrap().in_syscall().is_some() {
        t.detach(0).unwrap();
        t = Tracee::seize(program.pid()).unwrap();
    }
    let call =
        |t: &mut Tracee| assert_eq!(t.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(program.pid() as u64));
    call(&mut t);
    let in_vdso = t.gadget.unwrap().at;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    let vdso = maps.lines().find(|l| l.ends_with("[vdso]")).unwrap();
    let (from, to) = vdso.split_once(' ').unwrap().0.split_once('-').unwrap();
    let range = u64::from_str_radix(from, 16).unwrap()..u64::from_str_radix(to, 16).unwrap();
    assert!(range.contains(&in_vdso));
    let region = Region::map(&mut t, None).unwrap();
    call(&mut t);
    assert_eq!(t.gadget, Some(region.gadget()));
    region.unmap(&mut t).unwrap();
    // Without a vdso it has to be written somewhere.
    let len = range.end - range.start;
    t.syscall(libc::SYS_munmap, [range.start, len, 0, 0, 0, 0]).unwrap().unwrap();
    let code = t.mem().word(t.regs().unwrap().ip()).unwrap();
    call(&mut t);
    assert_eq!(t.gadget, None);
    assert_eq!(t.mem().word(t.regs().unwrap().ip()).unwrap(), code);
    t.detach(0).unwrap();
    until("it goes on", || program.state() == 'R');
}

#[test]
fn a_sleep_ends_when_it_would_have() {
    for rounds in [1, 30] {
        let start = Instant::now();
        let program = Program::sleep("1");
        until("the middle of the sleep", || start.elapsed().as_millis() > 600);
        for _ in 0..rounds {
            let (mut t, region) = seized(&program);
            assert!(t.regs().unwrap().in_restart_block());
            t.syscall(libc::SYS_getpid, [0; 6]).unwrap().unwrap();
            region.unmap(&mut t).unwrap();
            t.detach(0).unwrap();
        }
        program.finish();
        let took = start.elapsed().as_millis();
        // Begun again it would have taken 1.6 s.
        assert!((1000..1550).contains(&took), "{rounds} stops: {took} ms");
    }
}

/// What an image keeps of an interrupted sleep is enough to go on with the time that was left. The new process is a copy
/// made by fork, so only the registers come from the "image".
#[test]
fn a_sleep_goes_on_in_another_process() {
    let start = Instant::now();
    let program = Program::sleep("2");
    until("a part of the sleep", || start.elapsed().as_millis() > 1000);
    let elapsed = start.elapsed().as_millis();
    let (mut t, region) = seized(&program);
    let regs = t.regs().unwrap();
    let fork = Clone3 { exit_signal: libc::SIGCHLD, ..Clone3::default() };
    let mut other = t.clone3(&region, &fork).unwrap().unwrap();
    let pid = other.tid();
    other.set_regs(&Regs::from_bytes(&regs.for_image().to_bytes()).unwrap()).unwrap();
    other.set_sigmask(t.sigmask().unwrap()).unwrap();
    region.unmap(&mut other).unwrap();
    assert_eq!(other.regs().unwrap(), regs.for_image());
    let let_go = Instant::now();
    other.detach(0).unwrap();
    t.kill().unwrap();
    until("the copy ends", || matches!(procfs::state(pid), None | Some('Z')));
    let slept = let_go.elapsed().as_millis();
    // It had the time that remained as its argument, and had not to begin again.
    let left = 2000 - elapsed;
    assert!((left - 100..left + 700).contains(&slept), "{slept} ms instead of {left}");
}

#[test]
fn an_endless_wait_is_not_interrupted_and_a_limited_one_is() {
    let code = "import select, ctypes, os\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        r, w = os.pipe()\n\
        e = select.epoll(); e.register(r, select.EPOLLIN)\n\
        room = ctypes.create_string_buffer(12)\n\
        print('ready')\n\
        n = libc.epoll_wait(e.fileno(), room, 1, LIMIT)\n\
        print(n, ctypes.get_errno())";
    let Some(mut program) = Program::python(&code.replace("LIMIT", "1000000")) else { return };
    until("it waits", || program.state() == 'S');
    seized(&program).0.detach(0).unwrap();
    assert_eq!(program.line(), format!("-1 {}", libc::EINTR));
    let program = Program::python(&code.replace("LIMIT", "-1")).unwrap();
    until("it waits", || program.state() == 'S');
    for _ in 0..20 {
        seized(&program).0.detach(0).unwrap();
    }
    until("it waits again", || program.state() == 'S');
}

#[test]
fn a_stopped_task_stays_stopped() {
    let program = Program::sleep("1000");
    program.signal(libc::SIGSTOP);
    until("it is stopped", || program.state() == 'T');
    let (mut t, region) = seized(&program);
    assert_eq!(t.group_stop(), Some(libc::SIGSTOP));
    assert_eq!(t.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(program.pid() as u64));
    let mut batch = Batch::new();
    let pid = batch.must(libc::SYS_getpid, []);
    assert_eq!(batch.run(&mut t, &region).unwrap().result(pid), Ok(program.pid() as u64));
    region.unmap(&mut t).unwrap();
    t.detach(0).unwrap();
    until("it is stopped again", || program.state() == 'T');
    program.signal(libc::SIGCONT);
    until("it goes on", || program.state() == 'S');
}

#[test]
fn a_running_task_can_be_made_to_stop() {
    let program = Program::sleep("1000");
    let t = Tracee::seize(program.pid()).unwrap();
    assert_eq!(t.group_stop(), None);
    t.detach(libc::SIGSTOP).unwrap();
    until("it is stopped", || program.state() == 'T');
}

#[test]
fn dropping_lets_go_or_kills() {
    let program = Program::sleep("1000");
    drop(Tracee::seize(program.pid()).unwrap());
    until("it sleeps again", || program.state() == 'S');
    drop(Tracee::seize_begin(program.pid(), Options::default()).unwrap());
    until("it sleeps again", || program.state() == 'S');
    assert_eq!(status(program.pid(), "TracerPid"), "0");
    let deadline = Instant::now() + STOP_TIMEOUT;
    drop(Tracee::seize_begin(program.pid(), Options { kill: true }).unwrap().wait(deadline).unwrap());
    until("it is dead", || dead(program.pid()));
}

#[test]
fn a_task_that_is_killed_in_the_middle_is_told_so() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    program.signal(libc::SIGKILL);
    until("it is dead", || program.state() == 'Z');
    let gone = |e: airlock_wire::error::Error| assert_eq!(e.kind, Kind::NoSuchEntity, "{e}");
    gone(t.syscall(libc::SYS_getpid, [0; 6]).unwrap_err());
    let mut batch = Batch::new();
    batch.must(libc::SYS_getpid, []);
    gone(batch.run(&mut t, &region).unwrap_err());
    gone(t.detach(0).unwrap_err());
    gone(Tracee::seize(i32::MAX).unwrap_err());

    let program = Program::sleep("1000");
    let (mut t, _) = seized(&program);
    let e = t.syscall(libc::SYS_exit_group, [3, 0, 0, 0, 0, 0]).unwrap_err();
    assert!(e.kind == Kind::NoSuchEntity && e.message.contains("exited with status 3"), "{e}");
}

#[test]
fn who_else_traces_it_is_named() {
    let Some(mut strace) =
        Program::start(&["strace", "-o", "/dev/null", "-f", "sh", "-c", "echo $$; exec sleep 1000"])
    else {
        return;
    };
    let pid: i32 = strace.line().parse().unwrap();
    let e = Tracee::seize(pid).unwrap_err();
    assert!(e.kind == Kind::InvalidState && e.message.contains("(strace)"), "{e}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_parent_that_waits_in_vfork_is_named() {
    let code = "import ctypes, time\n\
        print('ready')\n\
        CLONE_VFORK, SIGCHLD = 0x4000, 17\n\
        if ctypes.CDLL(None).syscall(56, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0) == 0:\n\
        \x20   time.sleep(1000)";
    let Some(program) = Program::python(code) else { return };
    until("it waits for its child", || program.state() == 'D');
    let mut seizing = Tracee::seize_begin(program.pid(), Options::default()).unwrap();
    let e = seizing.wait(Instant::now() + std::time::Duration::from_millis(50)).unwrap_err();
    assert!(e.kind == Kind::Timeout && e.message.contains("vfork"), "{e}");
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", program.pid())).unwrap();
    let child: i32 = children.trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// A restartable sequence is aborted, as by the kernel when it preempts a thread in one.
#[test]
fn a_restartable_sequence_is_aborted() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let Some(rseq) = t.rseq_configuration().unwrap().filter(|c| c.pointer != 0) else {
        eprintln!("skipped: the C library does not register rseq");
        return;
    };
    let regs = t.regs().unwrap();
    let section = [0u64, regs.ip() - 4, 8, 0x1234_5678];
    let bytes: Vec<u8> = section.iter().flat_map(|w| w.to_ne_bytes()).collect();
    t.mem().write(region.data(), &bytes).unwrap();
    t.mem().write(rseq.pointer + 8, &region.data().to_ne_bytes()).unwrap();
    t.settle().unwrap();
    assert_eq!(t.regs().unwrap().ip(), 0x1234_5678);
    let mut outside = regs;
    outside.set_ip(regs.ip() + 4);
    t.set_regs(&outside).unwrap();
    t.settle().unwrap();
    assert_eq!(t.regs().unwrap(), outside);
    t.kill().unwrap();
}

#[test]
fn seccomp_filters_are_read_and_suspended() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    assert!(t.seccomp_filters().unwrap().is_empty());
    // getppid: ENOTTY; the rest is allowed.
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([jt, jf]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    let filter: Vec<u8> = [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, libc::SYS_getppid as u32),
        instruction(0x06, 0, 0, 0x0005_0000 | libc::ENOTTY as u32),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat();
    let mut batch = Batch::new();
    let code = batch.data(&filter);
    let fprog = batch.data(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    batch.pointer(fprog.at(8), code);
    batch.must(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS.into(), 1.into()]);
    batch.must(libc::SYS_seccomp, [1.into(), 2.into(), fprog]); // with SECCOMP_FILTER_FLAG_LOG
    batch.run(&mut t, &region).unwrap().check().unwrap();
    let filters = t.seccomp_filters().unwrap();
    assert_eq!(filters.len(), 1);
    assert_eq!((filters[0].program.concat(), filters[0].flags), (filter, 2));
    assert_eq!(t.syscall(libc::SYS_getppid, [0; 6]).unwrap(), Err(nix::errno::Errno::ENOTTY));
    t.suspend_seccomp(true).unwrap();
    assert_eq!(t.syscall(libc::SYS_getppid, [0; 6]).unwrap(), Ok(std::process::id().into()));
    t.suspend_seccomp(false).unwrap();
    assert_eq!(t.syscall(libc::SYS_getppid, [0; 6]).unwrap(), Err(nix::errno::Errno::ENOTTY));
}

#[test]
fn memory_is_read_and_written() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let text = region.base;
    assert!(t.mem().write(text, b"x").is_err());
    let mut code = vec![0; arch::BLOB.len()];
    t.mem().read(text, &mut code).unwrap();
    assert_eq!(code, arch::BLOB);
    t.mem().write_forced(text + 4000, b"forced").unwrap();
    assert_eq!(t.mem().bytes(text + 4000, 6).unwrap(), b"forced");
    let page = region.header() + 4096;
    t.syscall(libc::SYS_mprotect, [page, 4096, 0, 0, 0, 0]).unwrap().unwrap();
    assert!(t.mem().word(page).is_err());
    t.mem().write_forced(page, b"12345678").unwrap();
    let mut word = [0; 8];
    t.mem().read_forced(page, &mut word).unwrap();
    assert_eq!(&word, b"12345678");
    assert_eq!(t.mem().read_some(0, &mut word).unwrap(), 0);
    let end = region.base + region.len;
    t.syscall(libc::SYS_munmap, [end - 4096, 4096, 0, 0, 0, 0]).unwrap().unwrap();
    assert_eq!(t.mem().read_some(end - 4100, &mut word).unwrap(), 4);
    let e = t.mem().read(end - 4100, &mut word).unwrap_err();
    assert!(e.message.contains(&format!("{:#x}", end - 4096)), "{e}");
    let e = Region::map(&mut t, Some(region.base)).unwrap_err();
    assert!(e.message.contains("exists"), "{e}");
    let at = region.base - (1 << 30);
    assert_eq!(Region::map(&mut t, Some(at)).unwrap().base, at);
}

/// A program may have its system calls sent back to it; ours are not its.
#[test]
fn syscall_user_dispatch_is_passed() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    assert_eq!(t.user_dispatch().unwrap(), None);
    // The selector byte says "block", and no range is let through.
    let selector = region.data() + region.data_len() - 1;
    t.mem().write(selector, &[1]).unwrap();
    let dispatch = crate::sys::ptrace::UserDispatch { mode: 1, selector, offset: 0, len: 0 };
    if let Err(e) = t.set_user_dispatch(Some(dispatch)) {
        eprintln!("skipped: {e}");
        return;
    }
    assert_eq!(t.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(program.pid() as u64));
    assert_eq!(t.user_dispatch().unwrap(), Some(dispatch));
    drop(t);
    // Its own call comes back as SIGSYS.
    until("it dies of it", || dead(program.pid()));
}
