//! airlock against crun, runc and runsc, whole commands and calls: `cargo bench -p airlock-tests --bench runtime`
//! (as root; programs that are not installed are left out by name). `-- run exec` picks groups by name.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::bench::{self, Alternative, interleave, quiet, report, show};
use airlock_tests::{Bundle, State, leaks, which};
use airlock_wire::api::airlock as own;
use airlock_wire::api::container_manager::{
    CreateArgs, CreateSubcontainer, DestroySubcontainer, StartArgs, StartSubcontainer,
};
use airlock_wire::api::types::SpecJson;
use airlock_wire::{Client, Dialect};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(100);

fn main() {
    let groups: [(&str, fn()); 7] = [
        ("run", run_true),
        ("seccomp", run_with_seccomp),
        ("exec", exec_true),
        ("subcontainer", subcontainer),
        ("rpc", rpc),
        ("memory", memory),
        ("scale", scale),
    ];
    bench::run(&groups);
}

/// The other runtimes that are installed, with the options they need before a command.
fn others() -> Vec<(&'static str, PathBuf, Vec<&'static str>)> {
    let mut found = Vec::new();
    for (name, options) in
        [("crun", vec![]), ("runc", vec![]), ("runsc", vec!["--platform=ptrace", "--network=none"])]
    {
        match which(name) {
            Some(path) => found.push((name, path, options)),
            None => println!("(not installed: {name})"),
        }
    }
    found
}

fn compare_run(title: &str, bundle: &Bundle, rounds: usize) {
    let state = State::new();
    let mut all = vec![Alternative::new("airlock", || {
        quiet(&mut state.command(["run", "--bundle", bundle.text(), "b1"]))
    })];
    for (name, path, options) in others() {
        all.push(Alternative::new(name, move || {
            let mut command = Command::new(&path);
            command.args(&options).arg("run");
            if name == "runsc" {
                command.args(["-bundle", bundle.text()]);
            } else {
                command.args(["--bundle", bundle.text()]);
            }
            quiet(command.arg(format!("bench-{name}")))
        }));
    }
    report(title, &interleave(&mut all, rounds, PAUSE));
}

fn run_true() {
    compare_run("`run` of true, whole process, machine idle between runs", &Bundle::new(&["true"]), 30);
}

fn seccomp_profile() -> serde_json::Value {
    let path = airlock_tests::workspace().join("tests/data/seccomp-docker-default.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn run_with_seccomp() {
    let plain = Bundle::new(&["true"]);
    let filtered = Bundle::with(&["true"], |c| c["linux"]["seccomp"] = seccomp_profile());
    let state = State::new();
    let crun = which("crun");
    let mut all = vec![
        Alternative::new("airlock with seccomp", || {
            quiet(&mut state.command(["run", "--bundle", filtered.text(), "b1"]))
        }),
        Alternative::new("airlock without", || {
            quiet(&mut state.command(["run", "--bundle", plain.text(), "b2"]))
        }),
    ];
    if let Some(crun) = crun {
        let filtered = &filtered;
        all.push(Alternative::new("crun with seccomp", move || {
            quiet(Command::new(&crun).args(["run", "--bundle", filtered.text(), "bench-crun-s"]))
        }));
    }
    report("`run` of true with Docker's default seccomp profile", &interleave(&mut all, 30, PAUSE));
}

fn exec_true() {
    let bundle = Bundle::new(&["sleep", "100000"]);
    let state = State::new();
    state.detached(&["run", "--detach", "--bundle", bundle.text(), "b1"]);
    let mut all = vec![Alternative::new("airlock", || quiet(&mut state.command(["exec", "b1", "true"])))];
    let mut started = Vec::new();
    for (name, path, options) in others() {
        let id = format!("bench-exec-{name}");
        let bundle_option = if name == "runsc" { "-bundle" } else { "--bundle" };
        let ok = quiet(Command::new(&path).args(&options).args([
            "run",
            "--detach",
            bundle_option,
            bundle.text(),
            &id,
        ]));
        assert!(ok, "{name} run --detach");
        started.push((path.clone(), options.clone(), id.clone()));
        all.push(Alternative::new(name, move || {
            let program = if name == "runsc" { "/bin/true" } else { "true" };
            quiet(Command::new(&path).args(&options).args(["exec", &id, program]))
        }));
    }
    report("`exec` of true in a running container", &interleave(&mut all, 30, PAUSE));
    for (path, options, id) in started {
        quiet(Command::new(&path).args(&options).args(["kill", &id, "KILL"]));
        quiet(Command::new(&path).args(&options).args(["delete", "-force", &id]));
        quiet(Command::new(&path).args(&options).args(["delete", "--force", &id]));
    }
}

/// Starts subcontainers by RPC, as a parent runtime does: opened mounts and stdio go with the call.
struct Pod {
    client: Client,
    bundle: Bundle,
    spec_text: String,
    spec: oci_spec::runtime::Spec,
    null: OwnedFd,
}

impl Pod {
    fn new(state: &State, sandbox: &str) -> Self {
        let bundle = Bundle::new(&["sleep", "100000"]);
        let spec_text = std::fs::read_to_string(bundle.path().join("config.json")).unwrap();
        Self {
            client: Client::connect(&state.control_socket(sandbox), Dialect::Binary).unwrap(),
            spec: serde_json::from_str(&spec_text).unwrap(),
            spec_text,
            bundle,
            null: std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into(),
        }
    }

    /// Returns how long both calls took, without opening the rootfs.
    fn start(&mut self, cid: &str) -> Duration {
        let opened = airlock::gofer::open_all(self.bundle.path(), &self.spec, &Default::default()).unwrap();
        let args = StartArgs {
            spec: SpecJson(Some(self.spec_text.clone())),
            conf: SpecJson(Some("{}".into())),
            cid: cid.to_owned(),
            ..StartArgs::default()
        };
        let mut fds = vec![self.null.as_fd(), self.null.as_fd(), self.null.as_fd(), opened.rootfs.as_fd()];
        fds.extend(opened.mounts.iter().map(AsFd::as_fd));
        let start = Instant::now();
        self.client.call::<CreateSubcontainer>(&CreateArgs { cid: cid.to_owned() }, &[]).unwrap();
        self.client.call::<StartSubcontainer>(&args, &fds).unwrap();
        start.elapsed()
    }

    fn destroy(&mut self, cid: &str) {
        self.client.call::<DestroySubcontainer>(&cid.to_owned(), &[]).unwrap();
    }
}

fn subcontainer() {
    let root = Bundle::new(&["sleep", "100000"]);
    let state = State::new();
    state.detached(&["run", "--detach", "--bundle", root.text(), "pod"]);
    let mut pod = Pod::new(&state, "pod");
    let mut times: Vec<Duration> = (0..52)
        .map(|i| {
            std::thread::sleep(PAUSE);
            let cid = format!("s{i}");
            let took = pod.start(&cid);
            pod.destroy(&cid);
            took
        })
        .skip(2)
        .collect();
    times.sort_unstable();
    println!("\n## Subcontainer by RPC: CreateSubcontainer + StartSubcontainer, to exec of the program\n");
    println!("airlock: median {}, lower quartile {}", show(times[25]), show(times[12]));
    if let Some(runsc) = which("runsc") {
        runsc_subcontainer(&runsc, times[25]);
    }
}

fn runsc_subcontainer(runsc: &Path, ours: Duration) {
    let annotate = |kind: &str| {
        let kind = kind.to_owned();
        move |c: &mut serde_json::Value| {
            c["annotations"] = serde_json::json!({
                "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "bench-pod",
            });
        }
    };
    let root = Bundle::with(&["/bin/sleep", "100000"], annotate("sandbox"));
    let sub = Bundle::with(&["/bin/sleep", "100000"], annotate("container"));
    let dir = tempfile::tempdir().unwrap();
    let runsc = |args: &[&str]| {
        let mut command = Command::new(runsc);
        command.arg("--root").arg(dir.path()).args(["--platform=ptrace", "--network=none"]).args(args);
        quiet(&mut command)
    };
    if !runsc(&["run", "-detach", "-bundle", root.text(), "bench-pod"]) {
        println!("(runsc could not start a pod)");
        return;
    }
    let mut times = Vec::new();
    for i in 0..12 {
        std::thread::sleep(PAUSE);
        let id = format!("bench-sub-{i}");
        let start = Instant::now();
        let ok = runsc(&["create", "-bundle", sub.text(), &id]) && runsc(&["start", &id]);
        times.push(start.elapsed());
        assert!(ok, "runsc create + start");
        runsc(&["delete", "-force", &id]);
    }
    runsc(&["delete", "-force", "bench-pod"]);
    times.sort_unstable();
    println!(
        "runsc create + start commands: median {}; airlock / runsc = {:.3}",
        show(times[6]),
        ours.as_secs_f64() / times[6].as_secs_f64()
    );
}

/// One JSON client against our sandbox and a real runsc sandbox, calls in turn.
fn rpc() {
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    let state = State::new();
    state.detached(&["run", "--detach", "--bundle", bundle.text(), "rpc"]);
    let mut ours = Client::connect(&state.control_socket("rpc"), Dialect::Json).unwrap();
    let Some(runsc) = which("runsc") else { return println!("(not installed: runsc)") };
    let dir = tempfile::tempdir().unwrap();
    let id = airlock_tests::unique("bench-rpc");
    let runsc = |args: &[&str]| {
        let mut command = Command::new(&runsc);
        command.arg("--root").arg(dir.path()).args(["--platform=ptrace", "--network=none"]).args(args);
        quiet(&mut command)
    };
    assert!(runsc(&["run", "-detach", "-bundle", bundle.text(), &id]));
    let mut theirs = Client::connect(Path::new(&format!("@runsc-sandbox.{id}")), Dialect::Json).unwrap();
    for (title, method, cids) in [
        ("unknown method", "no.Such", ["rpc", id.as_str()]),
        ("containerManager.Processes", "containerManager.Processes", ["rpc", id.as_str()]),
    ] {
        let mut all = [
            Alternative::new("airlock, JSON", || {
                let _ = ours.call_raw(method, &serde_json::json!(cids[0]), &[]);
                true
            }),
            Alternative::new("runsc 20221219", || {
                let _ = theirs.call_raw(method, &serde_json::json!(cids[1]), &[]);
                true
            }),
        ];
        report(&format!("Round trip of {title}, JSON"), &interleave(&mut all, 3000, Duration::ZERO));
    }
    runsc(&["delete", "-force", &id]);
}

fn memory() {
    let root = Bundle::new(&["sleep", "100000"]);
    let state = State::new();
    state.detached(&["run", "--detach", "--bundle", root.text(), "mem"]);
    let pid = state.state("mem")["pid"].as_i64().unwrap() as i32;
    let one = leaks::rss(pid);
    let spawner = leaks::processes_named("airlock-spawner").into_iter().map(leaks::rss).max().unwrap_or(0);
    let mut pod = Pod::new(&state, "mem");
    for i in 0..50 {
        pod.start(&format!("m{i}"));
    }
    let fifty = leaks::rss(pid);
    println!("\n## Memory\n");
    println!(
        "sandbox process with one container: {one} KiB RSS (its spawner: {spawner} KiB, mostly shared with it)"
    );
    println!("each further container: {:.1} KiB RSS (mean of 50)", (fifty - one.min(fifty)) as f64 / 50.0);
}

fn scale() {
    let root = Bundle::new(&["sleep", "100000"]);
    let state = State::new();
    state.detached(&["run", "--detach", "--bundle", root.text(), "big"]);
    let mut pod = Pod::new(&state, "big");
    let times: Vec<Duration> = (0..500).map(|i| pod.start(&format!("n{i}"))).collect();
    let mean = |t: &[Duration]| t.iter().sum::<Duration>() / t.len() as u32;
    let (first, last) = (mean(&times[..20]), mean(&times[480..]));
    println!("\n## Scale\n");
    println!(
        "500 subcontainers: first 20 {} each, last 20 {} each: {:.2} x",
        show(first),
        show(last),
        last.as_secs_f64() / first.as_secs_f64()
    );
    let listed = pod.client.call::<own::List>(&airlock_wire::api::types::Empty {}, &[]).unwrap().value;
    assert_eq!(listed.iter().filter(|c| c.status == "running").count(), 501);

    let start_one = |i: usize| {
        let start = Instant::now();
        state.detached(&["run", "--detach", "--bundle", root.text(), &format!("box{i}")]);
        start.elapsed()
    };
    drop(pod);
    state.ok(["delete", "--force", "big"]);
    let times: Vec<Duration> = (0..100).map(start_one).collect();
    let (first, last) = (mean(&times[..10]), mean(&times[90..]));
    println!(
        "100 sandboxes: first 10 {} each, last 10 {} each: {:.2} x",
        show(first),
        show(last),
        last.as_secs_f64() / first.as_secs_f64()
    );
    for i in 0..100 {
        assert_eq!(state.status(&format!("box{i}")), "running");
    }
}
