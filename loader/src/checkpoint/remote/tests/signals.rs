use super::super::*;
use super::*;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

/// Counts signals where they arrive: the handler in C writes their numbers to a pipe.
const COUNTER: &str = "import collections, os, signal, sys\n\
    r, w = os.pipe()\n\
    os.set_blocking(r, False); os.set_blocking(w, False)\n\
    signal.set_wakeup_fd(w)\n\
    n = collections.Counter()\n\
    def look():\n\
    \x20   try: n.update(os.read(r, 65536))\n\
    \x20   except BlockingIOError: pass\n\
    for s in [5, 10, 12, 23, 34, 40]: signal.signal(s, lambda s, f: look())\n\
    def end(s, f):\n\
    \x20   look(); del n[15]; print(sorted(n.items())); sys.exit()\n\
    signal.signal(15, end)\n\
    print('ready')\n\
    while True: signal.pause()";

fn real_time(pid: i32, signal: i32) {
    crate::sys::ptrace::signal_thread(pid, signal).unwrap();
}

fn busy(t: &mut Tracee, region: &Region) {
    let mut batch = Batch::new();
    for _ in 0..20 {
        batch.must(libc::SYS_getpid, []);
    }
    batch.run(t, region).unwrap().check().unwrap();
    t.syscall(libc::SYS_getpid, [0; 6]).unwrap().unwrap();
}

#[test]
fn pending_signals_stay_pending_and_arrive() {
    let Some(mut program) = Program::python(COUNTER) else { return };
    let pid = program.pid();
    until("it waits", || program.state() == 'S');
    let (mut t, region) = seized(&program);
    program.signal(libc::SIGUSR1);
    for _ in 0..3 {
        real_time(pid, 34);
    }
    // The one that ends a batch, for the process and for the thread.
    program.signal(libc::SIGURG);
    for _ in 0..5 {
        busy(&mut t, &region);
        let numbers = |shared| -> Vec<u8> { t.peek_siginfo(shared).unwrap().iter().map(|i| i[0]).collect() };
        let (mut shared, own) = (numbers(true), numbers(false));
        shared.sort_unstable();
        assert_eq!((shared, own), (vec![10, 23], vec![34, 34, 34]));
    }
    region.unmap(&mut t).unwrap();
    t.detach(0).unwrap();
    until("it has seen them", || status(pid, "ShdPnd") == "0000000000000000" && program.state() == 'S');
    program.signal(libc::SIGTERM);
    assert_eq!(program.line(), "[(10, 1), (23, 1), (34, 3)]");
    program.finish();
}

#[test]
fn a_signal_for_the_thread_stays_the_threads() {
    let Some(mut program) = Program::python(COUNTER) else { return };
    until("it waits", || program.state() == 'S');
    let (mut t, region) = seized(&program);
    real_time(program.pid(), libc::SIGURG);
    busy(&mut t, &region);
    let infos = t.peek_siginfo(false).unwrap();
    assert_eq!(infos.len(), 1);
    assert_eq!(i32::from_ne_bytes(infos[0][16..20].try_into().unwrap()), std::process::id() as i32);
    t.detach(0).unwrap();
    until("it has seen it", || {
        status(program.pid(), "SigPnd") == "0000000000000000" && program.state() == 'S'
    });
    program.signal(libc::SIGTERM);
    assert_eq!(program.line(), "[(23, 1)]");
}

#[test]
fn what_signals_do_does_not_change() {
    let code = "import signal\nfor s in [5, 23]: signal.signal(s, signal.SIG_IGN)\nprint('ready')\nwhile True: signal.pause()";
    let Some(program) = Program::python(code) else { return };
    let (mut t, region) = seized(&program);
    let ignored = || u64::from_str_radix(&status(program.pid(), "SigIgn"), 16).unwrap() & 0x40_0010;
    assert_eq!(ignored(), 0x40_0010);
    busy(&mut t, &region);
    let mut batch = Batch::new();
    batch.must(libc::SYS_close, [(-1).into()]);
    assert!(batch.run(&mut t, &region).unwrap().check().is_err());
    assert_eq!(ignored(), 0x40_0010);
    t.detach(0).unwrap();
    program.signal(libc::SIGURG);
    program.signal(libc::SIGTRAP);
    until("it ignores them", || {
        program.state() == 'S' && status(program.pid(), "ShdPnd") == "0000000000000000"
    });
}

/// None is lost when a signal is just being delivered at the moment of the stop.
#[test]
fn no_signal_is_lost_in_a_storm() {
    let Some(mut program) = Program::python(COUNTER) else { return };
    let pid = program.pid();
    let (sent, stop) = (AtomicI32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                real_time(pid, 34);
                sent.fetch_add(1, Relaxed);
                until("it is taken", || status(pid, "SigPnd") == "0000000000000000" || stop.load(Relaxed));
            }
        });
        let mut rounds = 0;
        until("a storm", || {
            let (mut t, region) = seized(&program);
            busy(&mut t, &region);
            region.unmap(&mut t).unwrap();
            t.detach(0).unwrap();
            rounds += 1;
            rounds > 200 && sent.load(Relaxed) > 100
        });
        stop.store(true, Relaxed);
    });
    let sent = sent.load(Relaxed);
    until("it has seen them", || status(pid, "SigPnd") == "0000000000000000" && program.state() == 'S');
    program.signal(libc::SIGTERM);
    let line = program.line();
    let counted: i32 = line.trim_start_matches("[(34, ").trim_end_matches(")]").parse().unwrap();
    assert_eq!(counted, sent);
}

/// A call that waits for a signal ends when there is one, though the task is let go with the signal pending.
#[test]
fn pause_sees_the_handler_that_ran() {
    let code = "import signal, ctypes\n\
        signal.signal(10, lambda s, f: None)\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        print('ready')\n\
        print(libc.pause(), ctypes.get_errno())";
    let Some(mut program) = Program::python(code) else { return };
    until("it waits", || program.state() == 'S');
    let (mut t, region) = seized(&program);
    let regs = t.regs().unwrap();
    assert!(regs.wants_restart());
    t.set_regs(&regs.for_image()).unwrap();
    program.signal(libc::SIGUSR1);
    busy(&mut t, &region);
    t.detach(0).unwrap();
    assert_eq!(program.line(), format!("-1 {}", libc::EINTR));
    program.finish();
}

/// A program that computes while signals arrive, and is stopped again and again, computes the right thing.
#[test]
fn a_computation_comes_out_right() {
    let Some(mut program) = Program::python(COMPUTATION) else { return };
    for _ in 0..100 {
        let (mut t, region) = seized(&program);
        busy(&mut t, &region);
        region.unmap(&mut t).unwrap();
        t.detach(0).unwrap();
    }
    program.signal(libc::SIGTERM);
    assert_eq!(program.line(), "right");
    program.finish();
}

/// A stop that arrives while calls are injected takes effect when the task is let go.
#[test]
fn stops_and_continuations_are_kept() {
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    program.signal(libc::SIGSTOP);
    for _ in 0..3 {
        busy(&mut t, &region);
    }
    t.detach(0).unwrap();
    until("it is stopped", || program.state() == 'T');
    let mut t = Tracee::seize(program.pid()).unwrap();
    busy(&mut t, &region);
    program.signal(libc::SIGCONT);
    busy(&mut t, &region);
    t.detach(0).unwrap();
    until("it goes on", || program.state() == 'S');
}

/// The end of a leader is reported when its threads are gone; nobody waits for that.
#[test]
fn a_killed_process_with_many_traced_threads_keeps_nobody_waiting() {
    let code = "import threading, time\n\
        for i in range(5): threading.Thread(target=time.sleep, args=(1000,)).start()\n\
        print('ready')\ntime.sleep(1000)";
    let Some(program) = Program::python(code) else { return };
    let proc = crate::procfs::ProcFs::new(std::fs::File::open("/proc").unwrap().into());
    let pid = program.pid();
    let long = Instant::now() + STOP_TIMEOUT;
    let mut threads =
        task_list::seize_all(&proc, || Ok(vec![pid]), Options::default(), long, || Ok(())).unwrap().threads;
    assert_eq!(threads.len(), 6);
    program.signal(libc::SIGKILL);
    for (_, t) in &mut threads {
        let e = t.syscall(libc::SYS_getpid, [0; 6]).unwrap_err();
        assert_eq!(e.kind, airlock_wire::error::Kind::NoSuchEntity, "{e}");
    }
    assert!(task_list::kill_all(threads.into_iter().map(|(_, t)| t), STOP_TIMEOUT).is_ok());
    until("it is gone", || dead(pid));
}
