//! Processes made as an image says, let go, and described again: both descriptions must be the same. All of them are
//! copies of a sleep(1) that is PID 1 of a pid namespace, so that no memory has to be restored.

use super::super::context::{Context, Stub};
use super::super::task;
use crate::checkpoint::dump;
use crate::checkpoint::order::{DumpContainer, DumpOrder, RestoreContainer, RestoreOrder};
use crate::checkpoint::remote::fdpass::Link;
use crate::checkpoint::remote::{Options, Region, Tracee};
use crate::checkpoint::state::*;
use crate::init::identity::capability_name;
use crate::procfs::ProcFs;
use crate::sys::process::{cap_permitted, pidfd_open};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn procfs() -> ProcFs {
    let proc: OwnedFd = std::fs::File::open("/proc").unwrap().into();
    ProcFs::new(proc)
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

/// PID 1 of a namespace, asleep. All of the namespace is killed when dropped.
struct Sleeper {
    unshare: Child,
    pid: i32,
}

impl Sleeper {
    fn start() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: pid namespaces take root");
            return None;
        }
        let unshare = Command::new("unshare")
            .args(["--fork", "--pid", "--kill-child", "setsid", "sleep", "1000000"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let parent = unshare.id();
        let pid = until("sleep", || {
            let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
            let pid = children.split_whitespace().next()?.parse().ok()?;
            let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
            call.starts_with(&format!("{} ", libc::SYS_clock_nanosleep)).then_some(pid)
        });
        Some(Self { unshare, pid })
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = crate::sys::task::kill(self.pid, libc::SIGKILL);
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// A configuration that allows everything that this process may.
fn spec() -> String {
    let own = cap_permitted().unwrap();
    let caps: Vec<_> = (0..41).filter(|c| own & (1 << c) != 0).filter_map(capability_name).collect();
    serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["sleep"], "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": caps}},
    })
    .to_string()
}

/// Stops everything in the namespace and describes it.
fn describe(init: i32) -> dump::context::Context {
    let container =
        DumpContainer { cid: "c".into(), init, spec: spec(), own_pid_namespace: true, ..Default::default() };
    let order = DumpOrder { containers: vec![container], ..DumpOrder::default() };
    let mut tries = 0;
    let mut ctx = loop {
        let mut ctx = dump::context::Context::new(order.clone(), procfs(), Vec::new());
        match dump::tree::discover(&mut ctx, || Ok(())) {
            Ok(()) => break ctx,
            // This is the whole machine's procfs, where other tests breed processes.
            Err(e) if e.message.contains("come and go") && tries < 20 => tries += 1,
            Err(e) => panic!("{e}"),
        }
    };
    dump::task::collect(&mut ctx).unwrap();
    ctx
}

/// On a thread of its own, as an agent would: with its end, nothing is traced any more.
fn restore(init: i32, state: SandboxState, spec: String) -> airlock_wire::error::Result<Vec<String>> {
    std::thread::spawn(move || restore_here(init, state, spec)).join().unwrap()
}

fn restore_here(init: i32, state: SandboxState, spec: String) -> airlock_wire::error::Result<Vec<String>> {
    state.check().unwrap();
    let container =
        RestoreContainer { cid: "c".into(), init, spec, own_pid_namespace: true, ..Default::default() };
    let order = RestoreOrder { containers: vec![container], ..RestoreOrder::default() };
    let mut ctx = Context::new(order, procfs(), state);
    let mut seizing = Tracee::seize_begin(init, Options { kill: true }).unwrap();
    let mut tracee = seizing.wait(Instant::now() + Duration::from_secs(10)).unwrap();
    let _ = tracee.suspend_seccomp(true);
    let region = Region::map(&mut tracee, None).unwrap();
    let pidfd = pidfd_open(init).unwrap();
    ctx.stubs = vec![Some(Stub { tracee, pidfd, region, link: Link { number: 3 } })];
    super::create(&mut ctx)?;
    task::complete(&mut ctx)?;
    task::release(&mut ctx)?;
    Ok(ctx.warnings)
}

/// An image of processes made from `base`, which is PID 1.
fn image(base: &ProcessState, others: Vec<ProcessState>) -> SandboxState {
    let mut state = SandboxState {
        containers: vec![ContainerState::default()],
        mms: vec![MmState { coredump_filter: 0x33, ..MmState::default() }],
        ..SandboxState::default()
    };
    state.machine.cpus = crate::sys::task::affinity(0).unwrap().len() as u32;
    state.processes = vec![base.clone()];
    state.processes.extend(others);
    for (n, process) in state.processes.iter_mut().enumerate() {
        process.mm = (!matches!(process.life, Life::Zombie { .. })).then_some(0);
        for thread in &mut process.threads {
            (thread.fd_table, thread.fs) = (n as Id, n as Id);
        }
        state.fd_tables.push(FdTable::default());
        state.fs.push(FsState::default());
    }
    state
}

fn child(base: &ProcessState, pid: i32, ppid: i32, name: &str) -> ProcessState {
    let mut process = ProcessState { pid, ppid, pgid: 1, sid: 1, ..base.clone() };
    process.threads.truncate(1);
    process.threads[0].tid = pid;
    process.threads[0].comm = name.as_bytes().into();
    process
}

fn zombie(base: &ProcessState, pid: i32, ppid: i32, status: i32) -> ProcessState {
    let thread = ThreadState {
        tid: pid,
        comm: b"ended".as_slice().into(),
        creds: Creds { uids: [5; 4], gids: [6; 4], ..base.threads[0].creds.clone() },
        ..ThreadState::default()
    };
    let life = Life::Zombie { status };
    ProcessState {
        pid,
        ppid,
        pgid: 1,
        sid: 1,
        life,
        exit_signal: libc::SIGCHLD,
        threads: vec![thread],
        container: 0,
        ..ProcessState::default()
    }
}

fn info(signal: i32, code: i32, value: u64) -> Bytes {
    let mut bytes = vec![0u8; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    bytes[8..12].copy_from_slice(&code.to_ne_bytes());
    bytes[24..32].copy_from_slice(&value.to_ne_bytes());
    bytes.into()
}

/// What differs, in words; times that go on are left out.
fn differences(saved: &SandboxState, now: &SandboxState) -> Vec<String> {
    let plain = |p: &ProcessState| {
        let mut p = p.clone();
        p.cpu_ns = (0, 0);
        p.mm = None;
        for timer in &mut p.timers {
            timer.remaining_ns = u64::from(timer.remaining_ns != 0);
        }
        for timer in &mut p.itimers {
            timer.value_us = u64::from(timer.value_us != 0);
        }
        for thread in &mut p.threads {
            (thread.fd_table, thread.fs) = (0, 0);
            thread.creds.label = String::new();
            thread.wait_left_ns = thread.wait_left_ns.map(|_| 1);
            if matches!(p.life, Life::Zombie { .. }) {
                thread.creds.caps = [0; 5];
            }
        }
        serde_json::to_value(p).unwrap()
    };
    let mut found = Vec::new();
    for p in &saved.processes {
        match now.processes.iter().find(|n| n.pid == p.pid) {
            None => found.push(format!("process {} is missing", p.pid)),
            Some(n) => compare(&format!("process {}", p.pid), &plain(p), &plain(n), &mut found),
        }
    }
    let known = |pid: i32| saved.processes.iter().any(|p| p.pid == pid);
    found.extend(now.processes.iter().filter(|n| !known(n.pid)).map(|n| format!("process {} is new", n.pid)));
    found
}

fn compare(at: &str, a: &serde_json::Value, b: &serde_json::Value, found: &mut Vec<String>) {
    use serde_json::Value::{Array, Object};
    match (a, b) {
        (Object(x), Object(y)) => {
            for (key, value) in x {
                compare(&format!("{at} {key}"), value, &y[key], found);
            }
        }
        (Array(x), Array(y)) if x.len() == y.len() => {
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                compare(&format!("{at} {i}"), x, y, found);
            }
        }
        (a, b) if a != b => found.push(format!("{at}: saved {a}, now {b}")),
        _ => {}
    }
}

/// Makes `others` from a sleeper, and compares.
fn round_trip(
    others: impl FnOnce(&ProcessState) -> Vec<ProcessState>,
) -> Option<(Sleeper, SandboxState, Vec<String>)> {
    let sleeper = Sleeper::start()?;
    let mut ctx = describe(sleeper.pid);
    assert!(ctx.refusals.is_empty(), "{:?}", ctx.refusals);
    let base = ctx.state.processes[0].clone();
    dump::task::release(&mut ctx).unwrap();
    let state = image(&base, others(&base));
    let warnings = restore(sleeper.pid, state.clone(), spec()).unwrap();
    let mut ctx = describe(sleeper.pid);
    assert!(ctx.refusals.is_empty(), "{:?}", ctx.refusals);
    let found = differences(&state, &ctx.state);
    assert!(found.is_empty(), "{}", found.join("\n"));
    dump::task::release(&mut ctx).unwrap();
    Some((sleeper, state, warnings))
}

#[test]
fn a_tree_with_sessions_groups_and_zombies() {
    round_trip(|base| {
        let mut all = vec![
            child(base, 10, 1, "shell"),
            child(base, 11, 10, "pipe"),
            child(base, 12, 10, "pipe"),
            // Its session's leader, 19, is gone; its group's, 20, too.
            child(base, 21, 1, "daemon"),
            child(base, 22, 21, "worker"),
            // Forked before its parent founded a session.
            child(base, 31, 30, "early"),
            zombie(base, 40, 10, 3 << 8),
            zombie(base, 41, 21, libc::SIGSEGV),
            zombie(base, 42, 1, libc::SIGKILL),
        ];
        all.insert(5, child(base, 30, 1, "late"));
        let places = [
            (10, 10, 10),
            (11, 11, 10),
            (12, 11, 10),
            (21, 20, 19),
            (22, 20, 19),
            (30, 30, 30),
            (40, 10, 10),
            (41, 19, 19),
        ];
        for (pid, pgid, sid) in places {
            let process = all.iter_mut().find(|p| p.pid == pid).unwrap();
            (process.pgid, process.sid) = (pgid, sid);
        }
        all
    });
}

#[test]
fn signals_timers_and_limits() {
    round_trip(|base| {
        let mut p = child(base, 5, 1, "five");
        for (n, action) in p.sigactions.iter_mut().enumerate() {
            let signal = n as i32 + 1;
            if signal != libc::SIGKILL && signal != libc::SIGSTOP {
                *action = SigAction {
                    handler: 0x1000 + n as u64,
                    flags: (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64 | 0x0400_0000,
                    restorer: 0x2000,
                    mask: 1 << (n % 8),
                };
            }
        }
        p.sigactions[libc::SIGUSR2 as usize - 1] = SigAction { handler: 1, ..SigAction::default() };
        // All that is pending is blocked, also what is ignored.
        p.threads[0].sigmask = !(1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1));
        p.pending = vec![
            info(libc::SIGUSR2, -1, 7),
            info(libc::SIGCHLD, libc::CLD_EXITED, 0),
            info(40, -1, 1),
            info(40, -1, 2),
            info(libc::SIGTERM, 0, 0),
        ];
        p.threads[0].pending = vec![info(libc::SIGALRM, -6, 0), info(libc::SIGSEGV, 1, 0), info(41, -2, 5)];
        p.itimers = vec![
            Itimer { value_us: 90_000_000, interval_us: 1_500_000 },
            Itimer { value_us: 80_000_000, interval_us: 0 },
            Itimer { value_us: 70_000_000, interval_us: 70_000_001 },
        ];
        let timer = PosixTimer { id: 7, clock: 1, signal: 34, value: 0xdead_beef, ..PosixTimer::default() };
        p.timers = vec![
            PosixTimer { remaining_ns: 90_000_000_000, interval_ns: 1_000_000_001, ..timer.clone() },
            PosixTimer { id: 1000, notify: libc::SIGEV_THREAD_ID, tid: 5, ..timer.clone() },
            PosixTimer {
                id: 1001,
                clock: 0,
                notify: libc::SIGEV_NONE,
                signal: 34,
                remaining_ns: 5_000_000_000_000,
                ..timer.clone()
            },
            // The process' own CPU clock.
            PosixTimer { id: 2000, clock: -6, remaining_ns: 10_000_000_000, ..timer },
        ];
        p.rlimits[libc::RLIMIT_NOFILE as usize] = (100, 200);
        p.rlimits[libc::RLIMIT_CORE as usize] = (0, 0);
        p.oom_score_adj += 100;
        p.child_subreaper = true;
        p.dumpable = 0;
        p.thp_disabled = true;
        p.personality = 0x0040_0000;
        p.membarrier = (1 << 2) | (1 << 4);
        let mut heir = child(base, 6, 5, "heir");
        heir.exit_signal = libc::SIGUSR1;
        vec![p, heir]
    });
}

#[test]
fn threads_of_all_kinds() {
    round_trip(|base| {
        let mut p = child(base, 50, 1, "leader");
        for n in 1..5 {
            let mut t = base.threads[0].clone();
            t.tid = 50 + 3 * n;
            t.comm = format!("thread {n}").as_bytes().into();
            t.sigmask = 1 << (9 + n);
            t.altstack = (0x7000_0000 + 0x1_0000 * n as u64, 0, 0x8000);
            t.robust_list = (0x1000 * n as u64, 24);
            t.clear_tid = 0x3000 + 8 * n as u64;
            t.rseq = None;
            t.timerslack_ns = 60_000 + n as u64;
            t.pending = vec![info(10 + n, -6, 0)];
            t.sched.nice = n;
            t.sched.ioprio = 2 << 13 | n;
            t.pdeathsig = n;
            p.threads.push(t);
        }
        p.threads[2].sched = Sched { policy: 3, nice: 5, deadline: (0, 0, 0), ..p.threads[2].sched.clone() };
        p.threads[3].sched =
            Sched { policy: 1, priority: 7, nice: 0, deadline: (0, 0, 0), ..p.threads[3].sched.clone() };
        p.threads[3].timerslack_ns = 0;
        // One whose first thread has ended.
        let mut headless = child(base, 70, 1, "gone");
        let mut rest = base.threads[0].clone();
        (rest.tid, rest.comm) = (71, b"rest".as_slice().into());
        headless.leader_gone = true;
        headless.threads[0] = ThreadState {
            tid: 70,
            comm: b"gone".as_slice().into(),
            creds: base.threads[0].creds.clone(),
            ..ThreadState::default()
        };
        headless.threads.push(rest);
        // One that shares its parent's memory.
        let mut sharing = child(base, 80, 50, "sharing");
        sharing.shares_mm_with_parent = true;
        vec![p, headless, sharing]
    });
}

#[test]
fn users_capabilities_and_filters() {
    let filters = [
        // Everything is allowed, and everything but getcwd(2).
        vec![[0x06u16, 0, 0, 0x7fff]],
        vec![[0x20, 0, 0, 0], [0x15, 0, 1, libc::SYS_getcwd as u16], [0x06, 0, 0, 5], [0x06, 0, 0, 0x7fff]],
    ];
    let own = cap_permitted().unwrap();
    let (net_bind, setuid, chown) = (1u64 << 10, 1u64 << 7, 1u64);
    let mut expected = None;
    let sleeper = Sleeper::start();
    let Some(sleeper) = sleeper else { return };
    let mut ctx = describe(sleeper.pid);
    let base = ctx.state.processes[0].clone();
    dump::task::release(&mut ctx).unwrap();
    let mut user = child(&base, 5, 1, "user");
    user.threads[0].creds = Creds {
        uids: [1000, 1001, 1002, 1001],
        gids: [2000, 2001, 2002, 2001],
        groups: vec![3000, 3001],
        caps: [net_bind | chown, net_bind | setuid, net_bind, net_bind | setuid, net_bind],
        securebits: 0x2f & !0x10,
        no_new_privs: true,
        label: String::new(),
    };
    user.threads[0].creds.caps[0] = net_bind;
    let mut second = user.threads[0].clone();
    second.tid = 6;
    second.creds =
        Creds { uids: [7; 4], gids: [8; 4], groups: vec![], caps: [0, 0, 0, own, 0], ..Creds::default() };
    second.seccomp = vec![0];
    user.threads.push(second);
    user.threads[0].seccomp = vec![0, 1];
    user.threads[0].pdeathsig = libc::SIGTERM;
    user.dumpable = 1;
    let mut strict = child(&base, 9, 1, "strict");
    strict.threads[0].seccomp_strict = true;
    // The mode implies this one.
    strict.threads[0].tsc = libc::PR_TSC_SIGSEGV;
    // It must not run: its sleep is not allowed.
    strict.life = Life::Stopped { signal: libc::SIGSTOP };
    let mut state = image(&base, vec![user, strict]);
    for program in &filters {
        let bytes: Vec<u8> = program
            .iter()
            .flat_map(|[code, t, f, k]| {
                let k = if *code == 6 {
                    u32::from(*k) << 16 | if *k == 5 { 1 } else { 0 }
                } else {
                    u32::from(*k)
                };
                [&code.to_ne_bytes()[..], &[*t as u8, *f as u8], &k.to_ne_bytes()].concat()
            })
            .collect();
        state.seccomp_filters.push(SeccompFilter { program: bytes.into(), flags: 0, from_spec: false });
    }
    let warnings = restore(sleeper.pid, state.clone(), spec()).unwrap();
    assert_eq!(warnings, expected.take().unwrap_or(Vec::<String>::new()));
    let mut ctx = describe(sleeper.pid);
    assert!(ctx.refusals.is_empty(), "{:?}", ctx.refusals);
    // Their order there is that in which they were met.
    for process in &mut ctx.state.processes {
        for thread in &mut process.threads {
            for id in &mut thread.seccomp {
                let found = &ctx.state.seccomp_filters[*id as usize].program;
                *id = state.seccomp_filters.iter().position(|f| f.program == *found).unwrap() as Id;
            }
        }
    }
    let found = differences(&state, &ctx.state);
    assert!(found.is_empty(), "{}", found.join("\n"));
    dump::task::release(&mut ctx).unwrap();
}

#[test]
fn stopped_processes_stay_stopped() {
    let Some((sleeper, _, _)) = round_trip(|base| {
        let mut plain = child(base, 5, 1, "plain");
        plain.life = Life::Stopped { signal: libc::SIGSTOP };
        let mut threads = child(base, 7, 1, "threads");
        threads.life = Life::Stopped { signal: libc::SIGTSTP };
        threads.stop_unreported = true;
        // Its group must not be an orphan, or the signal would do nothing.
        let mut second = base.threads[0].clone();
        second.tid = 8;
        threads.threads.push(second);
        let mut shell = child(base, 20, 1, "shell");
        (shell.sid, shell.pgid) = (20, 20);
        let mut job = child(base, 21, 20, "job");
        (job.sid, job.pgid) = (20, 21);
        job.life = Life::Stopped { signal: libc::SIGTTIN };
        job.sigactions[libc::SIGTTIN as usize - 1] = SigAction { handler: 0x1000, ..SigAction::default() };
        threads.life = Life::Stopped { signal: libc::SIGSTOP };
        vec![plain, threads, shell, job]
    }) else {
        return;
    };
    // They go on when they are told to.
    let state = |pid: i32| procfs().stat(pid).unwrap().state;
    let pids: Vec<i32> = procfs().pids().unwrap().into_iter().filter(|p| descends(*p, sleeper.pid)).collect();
    let stopped: Vec<i32> = pids.iter().copied().filter(|p| state(*p) == 'T').collect();
    assert_eq!(stopped.len(), 3, "{pids:?}");
    for pid in stopped {
        crate::sys::task::kill(pid, libc::SIGCONT).unwrap();
        until("going on", || (state(pid) == 'S').then_some(()));
    }
}

#[test]
fn sleeps_go_on_for_what_was_left() {
    const SECOND: u64 = 1_000_000_000;
    let Some(sleeper) = Sleeper::start() else { return };
    std::thread::sleep(Duration::from_millis(300));
    let mut ctx = describe(sleeper.pid);
    let base = ctx.state.processes[0].clone();
    dump::task::release(&mut ctx).unwrap();
    // It does not ask the kernel for the rest.
    let left = base.threads[0].wait_left_ns.unwrap();
    assert!((1_000_000 * SECOND - 60 * SECOND..1_000_000 * SECOND - SECOND / 5).contains(&left), "{left}");

    let mut short = child(&base, 5, 1, "short");
    short.threads[0].wait_left_ns = Some(SECOND / 10);
    let state = image(&base, vec![short, child(&base, 6, 1, "long")]);
    restore(sleeper.pid, state, spec()).unwrap();
    let state_of = |name: &str| {
        let mut all = procfs().pids().unwrap().into_iter().filter(|p| descends(*p, sleeper.pid));
        let stat = all.find_map(|p| procfs().stat(p).ok().filter(|s| s.comm == name));
        stat.map(|s| s.state)
    };
    until("the end of the short sleep", || (state_of("short") == Some('Z')).then_some(()));
    assert_eq!(state_of("long"), Some('S'));
    let mut ctx = describe(sleeper.pid);
    let short = ctx.state.processes.iter().find(|p| p.pid == 5).unwrap();
    assert_eq!(short.life, Life::Zombie { status: 0 }, "it was not interrupted");
    let long = ctx.state.processes.iter().find(|p| p.pid == 6).unwrap();
    // The note that the first stop left is what goes on.
    assert!((left - 60 * SECOND..left).contains(&long.threads[0].wait_left_ns.unwrap()));
    dump::task::release(&mut ctx).unwrap();
}

fn descends(pid: i32, ancestor: i32) -> bool {
    let mut at = pid;
    while at > 1 {
        if at == ancestor {
            return true;
        }
        at = procfs().stat(at).map_or(0, |s| s.ppid);
    }
    false
}

#[test]
fn an_image_cannot_go_beyond_the_container() {
    let Some(sleeper) = Sleeper::start() else { return };
    let mut ctx = describe(sleeper.pid);
    let base = ctx.state.processes[0].clone();
    dump::task::release(&mut ctx).unwrap();
    // It had all capabilities; the container has but one.
    let narrow = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["sleep"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true,
                    "capabilities": {"bounding": ["CAP_KILL"]}},
        "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW",
                              "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}]}},
    })
    .to_string();
    let mut state = image(&base, vec![]);
    // Without the profile.
    let e = match restore(sleeper.pid, state.clone(), narrow.clone()) {
        Err(e) => e,
        Ok(w) => panic!("restored with {w:?}"),
    };
    assert!(e.message.contains("seccomp profile"), "{e}");
    drop(sleeper);

    let Some(sleeper) = Sleeper::start() else { return };
    state.seccomp_filters.push(SeccompFilter { from_spec: true, ..SeccompFilter::default() });
    state.processes[0].threads[0].seccomp = vec![0];
    state.processes[0].oom_score_adj = -500;
    state.processes[0].threads[0].sched.nice = -10;
    state.processes[0].threads[0].prctls = vec![(libc::PR_SET_DUMPABLE, 1), (libc::PR_SET_MM, 1)];
    // Registers of another sleep may have other addresses.
    let mut ctx = describe(sleeper.pid);
    let own = ctx.state.processes[0].threads[0].clone();
    dump::task::release(&mut ctx).unwrap();
    let thread = &mut state.processes[0].threads[0];
    (thread.regs, thread.rseq, thread.robust_list, thread.clear_tid) =
        (own.regs, own.rseq, own.robust_list, own.clear_tid);
    let warnings = restore(sleeper.pid, state, narrow).unwrap();
    assert_eq!(warnings.len(), 3, "{warnings:#?}");
    let mut ctx = describe(sleeper.pid);
    let now = &ctx.state.processes[0];
    let kill = 1u64 << 5;
    assert_eq!(now.threads[0].creds.caps, [0, kill, kill, kill, 0]);
    assert!(now.threads[0].creds.no_new_privs && now.oom_score_adj >= 0 && now.threads[0].sched.nice >= 0);
    assert_eq!(now.threads[0].seccomp.len(), 1);
    dump::task::release(&mut ctx).unwrap();
}
