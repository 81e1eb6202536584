use super::super::task_list::{below, kill_all, seize_all};
use super::super::*;
use super::*;
use crate::procfs::ProcFs;
use airlock_wire::error::Kind;

fn proc() -> ProcFs {
    ProcFs::new(File::open("/proc").unwrap().into())
}
use std::fs::File;

const FAMILY: &str = "import os, threading, time\n\
    for i in range(3):\n\
    \x20   if os.fork() == 0:\n\
    \x20       for j in range(10): threading.Thread(target=time.sleep, args=(1000,)).start()\n\
    \x20       if os.fork() == 0: time.sleep(1000)\n\
    \x20       time.sleep(1000)\n\
    if os.fork() == 0: os._exit(0)\n\
    time.sleep(0.3)\n\
    print('ready')\n\
    time.sleep(1000)";

fn long() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_family_is_found_stopped_let_go_and_killed() {
    let Some(program) = Program::python(FAMILY) else { return };
    let (proc, init) = (proc(), program.pid());
    let pids = below(&proc, &[init]).unwrap();
    assert_eq!(pids.len(), 8);
    let list = || below(&proc, &[init]);
    let stopped = seize_all(&proc, list, Options::default(), long(), || Ok(())).unwrap();
    assert_eq!((stopped.threads.len(), stopped.zombies.len(), stopped.failed.len()), (1 + 3 * 12, 1, 0));
    for (_, t) in &stopped.threads {
        assert_eq!(procfs::state(t.tid()), Some('t'));
    }
    drop(stopped);
    for pid in pids.iter().filter(|pid| procfs::state(**pid) != Some('Z')) {
        until("it goes on", || procfs::state(*pid) == Some('S'));
    }
    let stopped = seize_all(&proc, list, Options::default(), long(), || Ok(())).unwrap();
    kill_all(stopped.threads.into_iter().map(|(_, t)| t), Duration::from_secs(10)).unwrap();
    assert!(dead(init));
    assert!(below(&proc, &[init]).unwrap().iter().all(|pid| dead(*pid)));
}

/// Processes and threads that come and go all the time are caught.
#[test]
fn a_breeding_family_is_caught() {
    // The init reaps everything and makes nothing; the others end by themselves should the test fail to end them.
    let code = "import os, threading, time\n\
        def breed():\n\
        \x20   for i in range(2000):\n\
        \x20       t = threading.Thread(target=time.sleep, args=(0.002,)); t.start()\n\
        \x20       pid = os.fork()\n\
        \x20       if pid == 0:\n\
        \x20           if os.fork() == 0: time.sleep(0.005)\n\
        \x20           os._exit(0)\n\
        \x20       os.waitpid(pid, 0); t.join()\n\
        for i in range(3):\n\
        \x20   if os.fork() == 0: breed(); os._exit(0)\n\
        print('ready')\n\
        while True: os.wait()";
    // Orphans must stay below: their new parent is the init of the namespace.
    let command = ["unshare", "--pid", "--fork", "--kill-child", "python3", "-uc", code];
    let Some(mut program) = Program::start(&command) else { return };
    if program.line() != "ready" {
        eprintln!("skipped: no python3, or making a pid namespace is not allowed");
        return;
    }
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", program.pid())).unwrap();
    let init: i32 = children.trim().parse().unwrap();
    let proc = proc();
    for _ in 0..5 {
        let stopped =
            seize_all(&proc, || below(&proc, &[init]), Options::default(), long(), || Ok(())).unwrap();
        assert!(stopped.failed.is_empty(), "{:?}", stopped.failed);
        // Nothing moves any more.
        for pid in below(&proc, &[init]).unwrap() {
            for tid in proc.threads(pid).unwrap() {
                assert!(matches!(procfs::state(tid), Some('t' | 'Z')), "{tid} runs");
            }
        }
    }
}

#[test]
fn a_leader_that_has_ended_before_its_threads() {
    let code = "import ctypes, threading, time\n\
        def other():\n\
        \x20   time.sleep(0.1); print('ready'); time.sleep(1000)\n\
        threading.Thread(target=other).start()\n\
        ctypes.CDLL(None).syscall(60, 0)";
    let Some(program) = Program::python(code) else { return };
    let (proc, pid) = (proc(), program.pid());
    assert_eq!(program.state(), 'Z');
    assert_eq!(Tracee::seize(pid).unwrap_err().kind, Kind::InvalidState);
    let stopped = seize_all(&proc, || Ok(vec![pid]), Options::default(), long(), || Ok(())).unwrap();
    assert_eq!(stopped.zombies, [(pid, pid)]);
    let mut threads = stopped.threads;
    assert_eq!(threads.len(), 1);
    let t = &mut threads[0].1;
    assert_eq!(t.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(pid as u64));
    assert_ne!(t.tid(), pid);
}

/// A cgroup of the v1 freezer.
struct Freezer(std::path::PathBuf);

impl Freezer {
    fn new() -> Option<Self> {
        let name = format!("/sys/fs/cgroup/freezer/airlock-remote-{}", std::process::id());
        match std::fs::create_dir(&name) {
            Ok(()) => Some(Self(name.into())),
            Err(_) => {
                eprintln!("skipped: there is no v1 freezer that could be used");
                None
            }
        }
    }

    fn freeze(&self) {
        std::fs::write(self.0.join("freezer.state"), "FROZEN").unwrap();
        until("it is frozen", || std::fs::read(self.0.join("freezer.state")).unwrap() == b"FROZEN\n");
    }

    fn thaw(&self) {
        std::fs::write(self.0.join("freezer.state"), "THAWED").unwrap();
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        let mine = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in mine.lines() {
            let _ = std::fs::write("/sys/fs/cgroup/freezer/cgroup.procs", pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// v1: frozen threads stop when they are thawed, not before.
#[test]
fn frozen_threads_stop_when_they_thaw() {
    let program = Program::sleep("1000");
    let pid = program.pid();
    let Some(freezer) = Freezer::new() else { return };
    std::fs::write(freezer.0.join("cgroup.procs"), pid.to_string()).unwrap();
    freezer.freeze();
    let mut seizing = Tracee::seize_begin(pid, Options::default()).unwrap();
    let e = seizing.wait(Instant::now() + Duration::from_millis(50)).unwrap_err();
    assert!(e.kind == Kind::Timeout && e.message.contains("frozen"), "{e}");
    freezer.thaw();
    drop(seizing.wait(long()).unwrap());
    until("it sleeps", || program.state() == 'S');

    freezer.freeze();
    let thaw = || {
        freezer.thaw();
        Ok(())
    };
    let mut stopped = seize_all(&proc(), || Ok(vec![pid]), Options::default(), long(), thaw).unwrap();
    let t = &mut stopped.threads[0].1;
    assert_eq!(t.syscall(libc::SYS_getpid, [0; 6]).unwrap(), Ok(pid as u64));
}

/// A child that is made with CLONE_PTRACE has its parent's tracer from the beginning.
#[test]
fn children_that_are_born_traced_are_taken_over() {
    let code = "import ctypes, os, time\n\
        call = ctypes.CDLL(None).syscall\n\
        CLONE_PTRACE, SIGCHLD = 0x2000, 17\n\
        print('ready')\n\
        end = time.time() + 100\n\
        while time.time() < end:\n\
        \x20   pid = call(56, CLONE_PTRACE | SIGCHLD, 0, 0, 0, 0)\n\
        \x20   if pid == 0:\n\
        \x20       time.sleep(0.002)\n\
        \x20       os._exit(0)\n\
        \x20   os.waitpid(pid, 0)";
    let Some(program) = Program::python(code) else { return };
    let (proc, init) = (proc(), program.pid());
    let list = || below(&proc, &[init]);
    let mut children = 0;
    for _ in 0..100 {
        let stopped = seize_all(&proc, list, Options::default(), long(), || Ok(())).unwrap();
        assert!(stopped.failed.is_empty(), "{:?}", stopped.failed);
        children += stopped.threads.len() - 1;
    }
    assert!(children > 0, "no child was met");
}
