//! Cycles that must leave descriptors, threads, processes and memory of a sandbox as they were.
//! `AIRLOCK_SHORT=1` runs a twentieth of the cycles.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::{Bundle, State, leaks, need, unique, wait};
use airlock_wire::api::container_manager::{
    CreateArgs, CreateSubcontainer, DestroySubcontainer, ExecArgs, ExecuteAsync, StartArgs,
    StartSubcontainer, WaitPID, WaitPidArgs,
};
use airlock_wire::api::types::SpecJson;
use airlock_wire::{Client, Dialect};
use std::os::fd::{AsFd, OwnedFd};

fn rounds(full: usize) -> usize {
    if std::env::var_os("AIRLOCK_SHORT").is_some() { full / 20 } else { full }
}

struct Sandbox {
    state: State,
    id: String,
    client: Client,
    null: OwnedFd,
    loader: i32,
    _bundle: Bundle,
}

impl Sandbox {
    fn new() -> Self {
        let (state, id) = (State::new(), unique("leak"));
        let bundle = Bundle::new(&["/bin/sleep", "100000"]);
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Self {
            client: Client::connect(&state.control_socket(&id), Dialect::Binary).unwrap(),
            null: std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into(),
            loader: state.state(&id)["pid"].as_i64().unwrap() as i32,
            state,
            id,
            _bundle: bundle,
        }
    }

    fn exec(&mut self) {
        let args = ExecArgs {
            argv: vec!["/bin/true".into()],
            container_id: self.id.clone(),
            guest_fds: Some(vec![0, 1, 2]),
            ..ExecArgs::default()
        };
        let null = self.null.as_fd();
        let pid = self.client.call::<ExecuteAsync>(&args, &[null, null, null]).unwrap().value;
        let wait = WaitPidArgs { pid, cid: self.id.clone() };
        assert_eq!(self.client.call::<WaitPID>(&wait, &[]).unwrap().value, 0);
    }

    /// Descriptors and threads of the loader, when it has nothing to do but for our connection.
    fn counts(&self) -> (usize, usize) {
        (leaks::descriptors(self.loader).len(), leaks::threads(self.loader))
    }

    fn settled(&self, what: &str, expected: (usize, usize)) {
        // Not equal: when the first count was taken, the last cycle may still have been on its way out.
        wait::until(what, || {
            let now = self.counts();
            (now.0 <= expected.0 && now.1 <= expected.1).then_some(())
        });
    }
}

/// Counts after some cycles: pools and caches are filled by then.
fn warm(sandbox: &mut Sandbox, mut cycle: impl FnMut(&mut Sandbox, usize)) -> ((usize, usize), u64) {
    for i in 0..20 {
        cycle(sandbox, i);
    }
    let counts = wait::until("the counts are steady", || {
        let before = sandbox.counts();
        std::thread::yield_now();
        (sandbox.counts() == before && before.1 == leaks::IDLE_THREADS + 1).then_some(before)
    });
    (counts, leaks::rss(sandbox.loader))
}

#[test]
fn exec_cycles_leave_nothing() {
    need!("busybox");
    let mut sandbox = Sandbox::new();
    let (counts, rss) = warm(&mut sandbox, |s, _| s.exec());
    for _ in 0..rounds(10_000) {
        sandbox.exec();
    }
    sandbox.settled("descriptors and threads are as before", counts);
    let after = leaks::rss(sandbox.loader);
    assert!(after < rss + 1024, "resident memory went from {rss} to {after} KiB");
    assert_eq!(
        sandbox.state.ok(["ps", "--format", "json", &sandbox.id]).matches(',').count(),
        0,
        "one process"
    );
}

#[test]
fn container_cycles_leave_nothing() {
    need!("busybox");
    let mut sandbox = Sandbox::new();
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    let text = std::fs::read_to_string(bundle.path().join("config.json")).unwrap();
    let spec = serde_json::from_str(&text).unwrap();
    // Other runs of these tests may be going on.
    let prefix = unique("cycle");
    let cycle = |s: &mut Sandbox, i: usize| {
        let opened = airlock::gofer::open_all(bundle.path(), &spec, &Default::default()).unwrap();
        let cid = format!("{prefix}-{i}");
        let args = StartArgs {
            spec: SpecJson(Some(text.clone())),
            conf: SpecJson(Some("{}".into())),
            cid: cid.clone(),
            ..StartArgs::default()
        };
        let null = s.null.as_fd();
        let mut fds = vec![null, null, null, opened.rootfs.as_fd()];
        fds.extend(opened.mounts.iter().map(AsFd::as_fd));
        s.client.call::<CreateSubcontainer>(&CreateArgs { cid: cid.clone() }, &[]).unwrap();
        s.client.call::<StartSubcontainer>(&args, &fds).unwrap();
        s.client.call::<DestroySubcontainer>(&cid, &[]).unwrap();
    };
    let (counts, rss) = warm(&mut sandbox, cycle);
    for i in 0..rounds(1000) {
        cycle(&mut sandbox, i);
    }
    sandbox.settled("descriptors and threads are as before", counts);
    let after = leaks::rss(sandbox.loader);
    assert!(after < rss + 1024, "resident memory went from {rss} to {after} KiB");
    assert_eq!(leaks::cgroups(&prefix), Vec::<String>::new());
}

#[test]
fn whole_runs_leave_nothing() {
    need!("busybox");
    let state = State::new();
    let bundle = Bundle::new(&["/bin/true"]);
    let id = unique("whole");
    for _ in 0..rounds(1000) {
        state.ok(["run", "--bundle", bundle.text(), &id]);
    }
    assert_eq!(leaks::cgroups(&id), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(state.root()).unwrap().count(), 0);
}

#[test]
fn many_containers_in_one_sandbox_are_all_controllable() {
    need!("busybox");
    let mut sandbox = Sandbox::new();
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    let text = std::fs::read_to_string(bundle.path().join("config.json")).unwrap();
    let spec = serde_json::from_str(&text).unwrap();
    let count = rounds(500);
    for i in 0..count {
        let opened = airlock::gofer::open_all(bundle.path(), &spec, &Default::default()).unwrap();
        let cid = format!("n{i}");
        let args = StartArgs {
            spec: SpecJson(Some(text.clone())),
            conf: SpecJson(Some("{}".into())),
            cid: cid.clone(),
            ..StartArgs::default()
        };
        let null = sandbox.null.as_fd();
        let mut fds = vec![null, null, null, opened.rootfs.as_fd()];
        fds.extend(opened.mounts.iter().map(AsFd::as_fd));
        sandbox.client.call::<CreateSubcontainer>(&CreateArgs { cid: cid.clone() }, &[]).unwrap();
        sandbox.client.call::<StartSubcontainer>(&args, &fds).unwrap();
    }
    for i in 0..count {
        let mut args = ExecArgs { argv: vec!["/bin/true".into()], ..ExecArgs::default() };
        args.container_id = format!("n{i}");
        args.guest_fds = Some(vec![0, 1, 2]);
        let null = sandbox.null.as_fd();
        let pid = sandbox.client.call::<ExecuteAsync>(&args, &[null, null, null]).unwrap().value;
        let wait = WaitPidArgs { pid, cid: args.container_id };
        assert_eq!(sandbox.client.call::<WaitPID>(&wait, &[]).unwrap().value, 0);
    }
}
