//! What a trace session costs, against none and against strace(1), on a workload that forks and executes and on one that
//! does nothing but system calls: `cargo bench -p airlock-tests --bench trace` (as root; needs strace).
//!
//! Each line is a whole `airlock exec`. Its wall time depends on what else the machine does; the processor time of the
//! workload itself (without that of whoever is told) hardly does.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::bench::{self, Times};
use airlock_tests::programs::host_bundle;
use airlock_tests::{State, unique, which};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// A thousand programs, and a million reads and writes.
const WORKLOADS: [(&str, &str); 2] = [
    ("fork and exec", "i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done"),
    ("system calls", "dd if=/dev/zero of=/dev/null bs=1 count=500000 2>/dev/null"),
];

/// Calls of a process that is in no sandbox, timed as one.
const CALLS: u32 = 2_000_000;

/// What a workload is run with.
struct Way<'a> {
    name: &'a str,
    /// Points, and the sink.
    session: Option<(&'a Value, &'a Value)>,
    /// What is written before the command.
    before: &'a str,
}

fn main() {
    bench::run(&[("trace", trace)]);
}

/// A sandbox with the host's programs.
struct Sandbox {
    state: State,
    id: String,
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn session(&self, points: &Value, sink: &Value) {
        let path = self.dir.path().join("config.json");
        let session = json!({"name": "Default", "points": points, "sinks": [sink]});
        std::fs::write(&path, session.to_string()).unwrap();
        self.state.ok(["trace", "create", "--config", path.to_str().unwrap(), &self.id]);
    }

    /// Runs a script: wall time, and processor time of it and its children.
    fn run(&self, before: &str, script: &str) -> (Duration, Duration) {
        let whole = format!("{before} sh -c '{script}'; times");
        let start = Instant::now();
        let out = self.state.ok(["exec", &self.id, "sh", "-c", &whole]);
        let wall = start.elapsed();
        // The shell's own time, then its children's: two lines of minutes and seconds.
        let seconds = |text: &str| {
            let (minutes, seconds) = text.split_once('m').unwrap();
            60.0 * minutes.parse::<f64>().unwrap() + seconds.trim_end_matches('s').parse::<f64>().unwrap()
        };
        let cpu = out.split_ascii_whitespace().map(seconds).sum();
        (wall, Duration::from_secs_f64(cpu))
    }

    fn dropped(&self) -> String {
        let list = self.state.ok(["trace", "list", &self.id]);
        list.lines().filter_map(|l| l.split("dropped: ").nth(1)).collect()
    }
}

fn trace() {
    if which("strace").is_none() {
        println!("skipped: needs strace");
        return;
    }
    let (state, id) = (State::new(), unique("bench"));
    let bundle = host_bundle(&["sleep", "1000000"], |_| {});
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let sandbox = Sandbox { state, id, dir: tempfile::tempdir().unwrap() };
    let life = json!([
        {"name": "container/start"}, {"name": "sentry/clone", "context_fields": ["time", "thread_id", "container_id"]},
        {"name": "sentry/execve", "context_fields": ["time", "thread_id", "container_id", "process_name"]},
        {"name": "sentry/task_exit", "context_fields": ["time", "thread_id"]},
        {"name": "sentry/exit_notify_parent", "context_fields": ["time", "thread_id"]},
    ]);
    let context = json!(["time", "thread_id", "container_id"]);
    let calls: Vec<Value> = ["read", "write", "execve", "openat", "close", "mmap", "fork", "clone", "vfork"]
        .iter()
        .flat_map(|name| ["enter", "exit"].map(|side| format!("syscall/{name}/{side}")))
        .map(|name| json!({"name": name, "context_fields": context}))
        .collect();
    let one = json!([{"name": "syscall/chroot/enter"}]);
    let (null, file) = (json!({"name": "null"}), json!({"name": "file", "config": {"path": "/dev/null"}}));
    let calls = json!(calls);
    let way = |name, session| Way { name, session, before: "" };
    let strace = "strace -f -o /dev/null -e trace=read,write,execve,openat,close,mmap,fork,clone,vfork";
    let ways = [
        way("no session", None),
        way("life cycle, null sink", Some((&life, &null))),
        way("life cycle, file sink", Some((&life, &file))),
        way("a system call that is not made", Some((&one, &null))),
        way("nine system calls, null sink", Some((&calls, &null))),
        way("nine system calls, file sink", Some((&calls, &file))),
        Way { before: strace, ..way("strace -f of the same nine", None) },
    ];
    println!("load {}", bench::load());
    for (title, script) in WORKLOADS {
        let mut times: Vec<(Vec<Duration>, Vec<Duration>)> =
            ways.iter().map(|_| Default::default()).collect();
        let mut dropped = vec![String::new(); ways.len()];
        for round in 0..=ROUNDS {
            for ((way, times), dropped) in ways.iter().zip(&mut times).zip(&mut dropped) {
                if let Some((points, sink)) = way.session {
                    sandbox.session(points, sink);
                }
                let (wall, cpu) = sandbox.run(way.before, script);
                if way.session.is_some() {
                    *dropped = sandbox.dropped();
                    sandbox.state.ok(["trace", "delete", "--name", "Default", &sandbox.id]);
                }
                if round > 0 {
                    times.0.push(wall);
                    times.1.push(cpu);
                }
            }
        }
        println!(
            "\n## {title}\n\n| what | wall | × | processor | × | dropped |\n| --- | --- | --- | --- | --- | --- |"
        );
        let medians: Vec<_> = times
            .into_iter()
            .map(|(wall, cpu)| (Times::new("", wall).median(), Times::new("", cpu).median()))
            .collect();
        for ((Way { name, .. }, (wall, cpu)), dropped) in ways.iter().zip(&medians).zip(&dropped) {
            let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
            println!(
                "| {name} | {} | {:.2} | {} | {:.2} | {dropped} |",
                bench::show(*wall),
                ratio(*wall, medians[0].0),
                bench::show(*cpu),
                ratio(*cpu, medians[0].1)
            );
        }
    }
    outside(&sandbox, &one, &null);
    println!("\nload {}", bench::load());
    sandbox.state.ok(["delete", "--force", &sandbox.id]);
}

/// What a session with points of system calls costs whoever is not in the sandbox, for each call.
fn outside(sandbox: &Sandbox, points: &Value, sink: &Value) {
    let call = || {
        let start = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(nix::unistd::getppid());
        }
        start.elapsed() / CALLS
    };
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(call());
        sandbox.session(points, sink);
        with.push(call());
        sandbox.state.ok(["trace", "delete", "--name", "Default", &sandbox.id]);
    }
    let (without, with) = (Times::new("", without).median(), Times::new("", with).median());
    println!(
        "\na call outside of the sandbox: {without:?}, while a session has points of system calls: {with:?}"
    );
}
