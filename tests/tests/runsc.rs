//! gVisor's own runsc (of 2022) drives a sandbox of ours over its control socket, and our client a sandbox of gVisor's.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::interop::{RunscView, alive, finish};
use airlock_tests::{Bundle, State, leaks, need, skip, unique, wait};
use serde_json::{Value, json};
use std::io::Read;
use std::process::{Command, Stdio};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A sandbox of ours that sleeps, as runsc sees it.
struct Ours {
    state: State,
    view: RunscView,
    id: String,
    _bundle: Bundle,
}

impl Ours {
    fn new(args: &[&str]) -> Self {
        Self::with(&[], args)
    }

    /// With global options.
    fn with(globals: &[&str], args: &[&str]) -> Self {
        let (state, id, bundle) = (State::new(), unique("ours"), Bundle::new(args));
        state.detached(&[globals, &["run", "--detach", "--bundle", bundle.text(), &id]].concat());
        let view = RunscView::new(&state, &id);
        Self { state, view, id, _bundle: bundle }
    }

    /// The pids that `runsc ps` tells.
    fn pids(&self) -> Vec<i64> {
        let list = parsed(&self.view.ok(&["ps", "-format", "json", &self.id]));
        list.as_array().unwrap().iter().map(|pid| pid.as_i64().unwrap()).collect()
    }

    /// Waits until the file `name` in the container's /tmp has `text` in it.
    fn wait_for_file(&self, name: &str, text: &str) {
        let path = self._bundle.rootfs().join("tmp").join(name);
        wait::until(&format!("{text:?} in {name}"), || {
            std::fs::read_to_string(&path).ok().filter(|content| content.contains(text))
        });
    }
}

#[test]
fn runsc_sees_the_container() {
    need!("busybox", "runsc");
    let ours = Ours::new(&["sleep", "1000"]);
    let (view, id) = (&ours.view, ours.id.as_str());
    let table = view.ok(&["ps", id]);
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["UID", "PID", "PPID", "C", "TTY", "STIME", "TIME", "CMD"]);
    assert_eq!((rows.len(), rows[1][0], rows[1][4], rows[1][7]), (2, "0", "?", "sleep"), "{table}");
    assert_eq!(ours.pids(), [rows[1][1].parse::<i64>().unwrap()]);

    let loader = ours.state.state(id)["pid"].clone();
    let state = parsed(&view.ok(&["state", id]));
    assert_eq!((&state["id"], &state["status"], &state["pid"]), (&json!(id), &json!("running"), &loader));
    assert!(view.ok(&["list"]).lines().nth(1).unwrap().starts_with(id));
    assert_eq!(view.ok(&["list", "-quiet"]).trim(), id);

    let stats = parsed(&view.ok(&["events", "-stats", id]));
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(id)));
    let data = &stats["data"];
    assert!(data["pids"]["current"].as_u64().unwrap() >= 1, "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{data}");
}

#[test]
fn runsc_executes_processes() {
    need!("busybox", "runsc");
    let ours = Ours::new(&["sleep", "1000"]);
    let (view, id) = (&ours.view, ours.id.as_str());
    let ended = view.call(&["exec", id, "sh", "-c", "echo to-out; echo to-err >&2; exit 9"]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (9, "to-out\n", "to-err\n"));
    let ended = airlock_tests::interop::finish_with_input(&mut view.command(&["exec", id, "cat"]), "typed\n");
    assert_eq!(ended.ok(), "typed\n");
    assert_eq!(view.call(&["exec", id, "sh", "-c", "kill -9 $$"]).code, 137);
    for program in ["/nonexistent", "nonexistent"] {
        let error = view.call(&["exec", id, program]).fails();
        assert!(error.contains(&format!("failed to load {program}: no such file or directory")), "{error}");
    }
    let options = ["exec", "-user", "1000:7", "-cwd", "/tmp", "-env", "DEPTH=9", "-additional-gids", "55"];
    let script = [id, "sh", "-c", "id -u; id -G; pwd; echo $DEPTH"];
    let out = view.ok(&[options.as_slice(), script.as_slice()].concat());
    assert_eq!(out, "1000\n7 55\n/tmp\n9\n");
    // No capabilities unless they are asked for.
    let caps = |options: &[&str]| {
        let out =
            view.ok(&[["exec"].as_slice(), options, [id, "grep", "CapEff", "/proc/self/status"].as_slice()]
                .concat());
        u64::from_str_radix(out.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    assert_eq!(caps(&["-cap", "CAP_KILL"]), 1 << 5);

    let (pid_file, internal) = (view.root().join("pid"), view.root().join("internal"));
    let files = ["-pid-file", pid_file.to_str().unwrap(), "-internal-pid-file", internal.to_str().unwrap()];
    let detached =
        [["exec", "-detach"].as_slice(), &files, &[id, "sh", "-c", "echo $$ > /tmp/pid; exec sleep 1001"]]
            .concat();
    view.ok(&detached);
    let internal = std::fs::read_to_string(internal).unwrap();
    ours.wait_for_file("pid", &format!("{internal}\n"));
    assert_eq!(ours.pids().len(), 2);
    // By its pid in the container, as ExecuteAsync told it, and once.
    let mut waiting = view.command(&["wait", "-pid", &internal, id]);
    let waiting = waiting.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // That runsc keeps a process of its own which waits as well; whoever comes late finds nothing.
    let loader = i32::try_from(ours.state.state(id)["pid"].as_i64().unwrap()).unwrap();
    wait::until("both to wait", || (leaks::threads_polling(loader) == 3).then_some(()));
    view.ok(&["kill", "-pid", &internal, id, "TERM"]);
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(parsed(&String::from_utf8_lossy(&waited.stdout))["exitStatus"], 143);
    assert!(view.call(&["wait", "-pid", &internal, id]).fails().contains("no such process"));
}

#[test]
fn runsc_signals() {
    need!("busybox", "runsc");
    let script = "trap 'echo urg >> /tmp/log' URG; trap 'exit 42' TERM; \
        sh -c \"trap 'echo child >> /tmp/log' USR1; touch /tmp/child; while :; do sleep 0.05; done\" & \
        touch /tmp/log; while :; do sleep 0.05; done";
    let ours = Ours::new(&["sh", "-c", script]);
    let (view, id) = (&ours.view, ours.id.as_str());
    ours.wait_for_file("log", "");
    ours.wait_for_file("child", "");
    view.ok(&["kill", id, "URG"]);
    ours.wait_for_file("log", "urg");
    // All of them: those that do not handle it (the sleeps) die, and the loops go on.
    let ended = view.call(&["kill", "-all", id, "USR1"]);
    // The script's own shell does not handle it either, but it is PID 1.
    ended.ok();
    ours.wait_for_file("log", "child");
    let missing = view.call(&["kill", "-pid", "30000", id, "URG"]).fails();
    assert!(missing.contains("no such process with PID 30000"), "{missing}");
    // The sandbox's own processes and threads are not the container's to signal. (1 is the container's init.)
    let own = ours.pids();
    for foreign in (2..8).filter(|pid| !own.contains(pid)) {
        view.call(&["kill", "-pid", &foreign.to_string(), id, "KILL"]).fails();
    }
    assert_eq!(ours.state.status(id), "running");
    view.ok(&["kill", id, "TERM"]);
    assert_eq!(parsed(&ours.state.ok(["wait", id]))["exitStatus"], 42);
    // What runsc thinks of a sandbox that is gone.
    assert_eq!(parsed(&view.ok(&["state", id]))["status"], "stopped");
}

#[test]
fn runsc_pauses_and_waits() {
    need!("busybox", "runsc");
    let ours = Ours::new(&[
        "sh",
        "-c",
        "trap 'exit 7' TERM; i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 0.02; done",
    ]);
    let (view, id) = (&ours.view, ours.id.as_str());
    ours.wait_for_file("count", "\n");
    view.ok(&["pause", id]);
    assert_eq!(ours.state.status(id), "paused");
    assert_eq!(parsed(&view.ok(&["state", id]))["status"], "paused");
    view.ok(&["resume", id]);
    assert_eq!(ours.state.status(id), "running");
    let waiting = view.command(&["wait", id]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let loader = i32::try_from(ours.state.state(id)["pid"].as_i64().unwrap()).unwrap();
    wait::until("the call to block", || (leaks::threads_polling(loader) == 2).then_some(()));
    view.ok(&["kill", id, "TERM"]);
    let waited = parsed(&String::from_utf8_lossy(&waiting.wait_with_output().unwrap().stdout));
    assert_eq!((&waited["id"], &waited["exitStatus"]), (&json!(id), &json!(7)));
}

#[test]
fn runsc_saves_the_sandbox() {
    need!("busybox", "runsc");
    let ours = Ours::new(&["sleep", "1000"]);
    let (id, images) = (ours.id.as_str(), tempfile::tempdir().unwrap());
    let image = images.path().join("image");
    let image = image.to_str().unwrap();
    assert_eq!(ours.view.ok(&["checkpoint", "-image-path", image, id]), "");
    wait::until("the sandbox ends", || (ours.state.status(id) == "stopped").then_some(()));
    assert_eq!(ours.state.state(id)["reason"], "checkpointed");
    assert_eq!(parsed(&ours.view.ok(&["state", id]))["status"], "stopped");
    let other = unique("ours");
    ours.state.detached(&[
        "restore",
        "--detach",
        "--bundle",
        ours._bundle.text(),
        "--image-path",
        image,
        &other,
    ]);
    assert_eq!(ours.state.status(&other), "running");
}

#[test]
fn runsc_looks_into_the_sandbox() {
    need!("busybox", "runsc");
    let ours = Ours::new(&["sleep", "1000"]);
    let (view, id) = (&ours.view, ours.id.as_str());
    let stacks = view.ok(&["debug", "-stacks", id]);
    for expected in ["airlock-loader", "airlock_controller::debug::stacks", "[sleep]", "state S"] {
        assert!(stacks.contains(expected), "{expected:?} is missing in {stacks}");
    }
    assert!(view.ok(&["debug", "-ps", id]).contains("\"cmd\": \"sleep\""));
    for level in ["warning", "info", "debug", "0", "1", "2"] {
        assert!(view.ok(&["debug", "-log-level", level, id]).contains("Logging options changed"), "{level}");
    }
    for usage in [["usage", id].as_slice(), &["usage", "-full", id]] {
        let usage = parsed(&view.ok(usage));
        assert!(usage["Total"].as_u64().unwrap() > 0, "{usage}");
        assert!(usage["Tmpfs"].is_u64() && usage["Ramdiskfs"].is_u64(), "{usage}");
    }
    // What this sandbox does not have, as it has no log, is refused in words, and nothing comes of it.
    let strace = view.call(&["debug", "-strace", "all", id]).fails();
    assert!(strace.contains("--debug-log"), "{strace}");
    view.ok(&["debug", "-strace", "off", id]);
    assert_eq!(ours.state.status(id), "running");
}

#[test]
fn runsc_has_system_calls_written_into_the_log() {
    need!("busybox", "runsc");
    if let Err(e) = airlock_loader::sys::tracing::kernel_types() {
        skip!("needs BPF with the kernel's types: {e}");
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let ours = Ours::with(&["--debug-log", log.to_str().unwrap()], &["sleep", "1000"]);
    let (view, id) = (&ours.view, ours.id.as_str());
    let ran = |calls: &str, file: &str| {
        view.ok(&["debug", "-strace", calls, id]);
        ours.state.fails(["exec", id, "cat", file]);
    };
    ran("open,openat", "/no/some");
    ran("all", "/no/all");
    ran("off", "/no/off");
    let text = std::fs::read_to_string(&log).unwrap();
    let has = |what: &str| text.lines().any(|l| l.contains("] strace: [") && l.contains(what));
    assert!(has("pathname: \"/no/some\"") && has("pathname: \"/no/all\"") && has(": exit_group("), "{text}");
    assert!(!text.contains("/no/off"), "{text}");
    assert!(view.call(&["debug", "-strace", "reed", id]).fails().contains("syscall \"reed\" not found"));
}

#[test]
fn runsc_reads_usage_and_control_files() {
    need!("busybox", "runsc");
    let ours = Ours::new(&["sleep", "1000"]);
    let (view, id) = (&ours.view, ours.id.as_str());
    let usage = parsed(&view.ok(&["usage", "-full", id]));
    assert!(usage["Total"].as_u64().unwrap() > 0 && usage["Unknown"] == 0, "{usage}");
    // It maps the page, and takes the second descriptor's blocks for the rest.
    let page = view.ok(&["usage", "-fd", id]);
    assert!(page.contains("Mapped") && page.contains("Total"), "{page}");
    view.ok(&["write-control", id, "pids", "/", "pids.max", "321"]);
    assert_eq!(view.ok(&["read-control", id, "pids", "/", "pids.max"]).trim(), "321");
    let refused = view.call(&["read-control", id, "pids", "/../..", "pids.max"]);
    let told = refused.out.clone() + &refused.err;
    assert!(told.contains("leads out"), "{told}");
}

#[test]
fn runsc_knows_the_containers_of_a_pod() {
    need!("busybox", "runsc");
    let ours = Ours::new(&["sleep", "1000"]);
    let (state, view, id) = (&ours.state, &ours.view, ours.id.as_str());
    let member = unique("member");
    let bundle = Bundle::with(&["sh", "-c", "sleep 1001; true"], |config| {
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": id,
        });
    });
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &member]);
    view.add(state, &member);
    let ps = wait::until("the member's processes", || {
        Some(view.ok(&["ps", &member])).filter(|text| text.lines().count() == 3)
    });
    assert!(ps.contains("sh") && ps.contains("sleep"), "{ps}");
    assert_eq!(view.ok(&["exec", &member, "echo", "from member"]), "from member\n");
    assert_eq!(ours.pids().len(), 1, "the root container has its own only");
    let foreign = ours.pids()[0].to_string();
    let error = view.call(&["kill", "-pid", &foreign, &member, "KILL"]).fails();
    assert!(error.contains("different container"), "{error}");
    view.ok(&["kill", &member, "KILL"]);
    assert_eq!(parsed(&view.ok(&["wait", &member]))["exitStatus"], 137);
    assert_eq!(state.status(id), "running");
}

/// A sandbox of gVisor's; dropped, it is deleted.
struct Theirs {
    root: tempfile::TempDir,
    id: String,
    _bundle: Bundle,
}

impl Theirs {
    /// `None` where gVisor cannot run.
    fn new() -> Option<Self> {
        let bundle = Bundle::new(&["sleep", "1000"]);
        let new = Self { root: tempfile::tempdir().unwrap(), id: unique("theirs"), _bundle: bundle };
        let ended = finish(&mut new.command(&["run", "-detach", "-bundle", new._bundle.text(), &new.id]));
        if ended.code != 0 {
            eprintln!("runsc run: {ended:?}");
            return None;
        }
        Some(new)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut runsc = Command::new("runsc");
        runsc.args(["--platform=ptrace", "--network=none", "--ignore-cgroups", "--root"]);
        runsc.current_dir(self.root.path()).arg(self.root.path()).args(args);
        runsc
    }

    fn socket(&self) -> String {
        format!("@runsc-sandbox.{}", self.id)
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = finish(&mut self.command(&["delete", "-force", &self.id]));
    }
}

#[test]
fn our_client_calls_a_sandbox_of_gvisor() {
    need!("busybox", "runsc");
    let Some(theirs) = Theirs::new() else { skip!("runsc cannot run a container here") };
    let (state, id, socket) = (State::new(), theirs.id.as_str(), theirs.socket());
    let call = |method: &str, argument: Value| {
        state.command(["call", "--timeout", "30s", "--socket", &socket, method, &argument.to_string()])
    };
    let processes = parsed(&finish(&mut call("containerManager.Processes", json!(id))).ok());
    assert_eq!((&processes[0]["pid"], &processes[0]["cmd"]), (&json!(1), &json!("sleep")));
    let stacks = parsed(&finish(&mut call("debug.Stacks", Value::Null)).ok());
    assert!(stacks.as_str().unwrap().contains("goroutine"), "{stacks}");
    let usage = parsed(&finish(&mut call("Usage.Collect", json!({"Full": true}))).ok());
    assert!(usage["Total"].as_u64().unwrap() > 0, "{usage}");

    let ended = finish(&mut call("containerManager.Nonsense", Value::Null));
    assert_eq!((ended.code, ended.err.trim()), (1, "containerManager.Nonsense: unknown method"));
    let error = finish(&mut call("containerManager.Wait", json!("no-such"))).fails();
    assert!(error.contains("no-such"), "{error}");
    let error = finish(&mut state.command(["call", "--socket", &socket, "--list"])).fails();
    assert!(error.contains("cannot list its methods"), "{error}");

    // Its output on a pipe that we send along. It is waited for by another call.
    let script = "read line; echo got $line; exit 4";
    let arguments = json!({
        "filename": "/bin/sh", "argv": ["sh", "-c", script], "envv": ["PATH=/bin"], "wd": "/", "ContainerID": id,
    });
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (input, mut typing) = std::io::pipe().unwrap();
    let mut exec = call("containerManager.ExecuteAsync", arguments);
    exec.args(["--fd", "0", "--fd", "2", "--fd", "2"]).stdin(input).stdout(Stdio::piped()).stderr(writer);
    let child = exec.spawn().unwrap();
    // The command has ends of both pipes.
    drop(exec);
    let pid = child.wait_with_output().unwrap();
    assert!(pid.status.success());
    let pid: i32 = String::from_utf8(pid.stdout).unwrap().trim().parse().unwrap();
    // A call that blocks until there is something to tell.
    let mut wait = call("containerManager.WaitPID", json!({"PID": pid, "CID": id}));
    let waiting = wait.stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut typing, b"this\n").unwrap();
    let status = String::from_utf8(waiting.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(status.trim().parse::<u32>().unwrap(), 4 << 8);
    drop(typing);
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    assert_eq!(out, "got this\n");

    finish(&mut call("containerManager.Signal", json!({"CID": id, "Signo": 9, "PID": 0, "Mode": 0}))).ok();
}

#[test]
fn our_client_calls_our_sandbox() {
    need!("busybox");
    let ours = Ours::new(&["sleep", "1000"]);
    let (state, id) = (&ours.state, ours.id.as_str());
    let all = parsed(&state.ok(["call", "--list"]));
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    };
    let known = names(&all);
    let wanted = [
        "containerManager.StartRoot",
        "containerManager.ExecuteAsync",
        "containerManager.Signal",
        "containerManager.Wait",
        "Lifecycle.Shutdown",
        "Proc.Ps",
        "Logging.Change",
        "Usage.Collect",
        "debug.Stacks",
    ];
    for method in wanted {
        assert!(known.iter().any(|name| name == method), "{method} is not in {known:?}");
    }
    let by_sandbox = parsed(&state.ok(["call", "--sandbox", id, "--list"]));
    assert_eq!(names(&by_sandbox), known);
    let socket = state.control_socket(id);
    assert_eq!(parsed(&state.ok(["call", "--socket", socket.to_str().unwrap(), "--list"])), by_sandbox);
    for method in by_sandbox.as_array().unwrap() {
        assert!(!method["doc"].as_str().unwrap().is_empty(), "no documentation: {method}");
    }

    let processes =
        parsed(&state.ok(["call", "--sandbox", id, "containerManager.Processes", &json!(id).to_string()]));
    assert_eq!(processes[0]["cmd"], "sleep");
    let error = state.fails(["call", "--sandbox", id, "containerManager.Nonsense", "null"]);
    assert_eq!(error.trim(), "containerManager.Nonsense: unknown method");
    let error = state.fails(["call", "--sandbox", id, "containerManager.Wait", "unquoted"]);
    assert!(error.contains("a string needs its quotes"), "{error}");
    assert!(state.fails(["call", "--sandbox", "no-such", "debug.Stacks"]).contains("does not exist"));

    // With descriptors.
    let arguments =
        json!({"argv": ["sh", "-c", "echo hello; exit 4"], "envv": ["PATH=/bin"], "ContainerID": id});
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut exec =
        state.command(["call", "--sandbox", id, "containerManager.ExecuteAsync", &arguments.to_string()]);
    exec.args(["--fd", "0", "--fd", "2", "--fd", "2"]).stdout(Stdio::piped()).stderr(writer);
    let child = exec.spawn().unwrap();
    drop(exec);
    let pid = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    assert_eq!(out, "hello\n");
    let target = json!({"PID": pid.trim().parse::<i32>().unwrap(), "CID": id}).to_string();
    assert_eq!(state.ok(["call", "--sandbox", id, "containerManager.WaitPID", &target]).trim(), "1024");

    // The sandbox ends, and a call that waits for it is answered.
    let loader = i32::try_from(state.state(id)["pid"].as_i64().unwrap()).unwrap();
    let waiting = state
        .command(["call", "--sandbox", id, "containerManager.Wait", &json!(id).to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait::until("the call to block", || (leaks::threads_polling(loader) == 2).then_some(()));
    state.ok(["kill", id, "KILL"]);
    let status = String::from_utf8(waiting.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(status.trim(), "9");
    wait::until("the sandbox to end", || (!alive(loader)).then_some(()));
}
