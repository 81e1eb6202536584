//! The container API (lmctfy, seed 003) of `airlock machine serve` and of a sandbox, on real cgroups: every method, every
//! field of a specification, and what goes wrong.
//!
//! Every server of these tests has a root of its own; the machine's other cgroups are left alone.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "containers/events.rs"]
mod events;
#[path = "containers/faults.rs"]
mod faults;
#[path = "containers/fields.rs"]
mod fields;
#[path = "containers/hosts.rs"]
mod hosts;
#[path = "containers/places.rs"]
mod places;

use airlock_tests::machine::{Machine, number, numbers, output, run};
use airlock_tests::urpc::Caller;
use airlock_tests::{need, skip};
use serde_json::{Value, json};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

/// Whether v1's hierarchies are here, which the control files of these tests are of.
fn has_v1() -> bool {
    ["freezer", "memory", "cpu", "cpuset", "pids", "devices", "blkio"]
        .iter()
        .all(|h| Path::new("/sys/fs/cgroup").join(h).join("tasks").exists())
}

macro_rules! need_v1 {
    () => {
        need!("sleep", "sh");
        if !crate::has_v1() {
            skip!("needs v1 hierarchies of freezer, memory, cpu, cpuset, pids, devices and blkio");
        }
    };
}
use need_v1;

fn name(name: &str) -> Value {
    json!({ "name": name })
}

/// Makes a container.
#[track_caller]
fn create(caller: &mut Caller, name: &str, spec: Value) {
    let made = caller.ok("ContainerApi.Create", &json!({"name": name, "spec": spec}), &[]);
    assert_eq!(made["name"], name);
}

#[test]
fn every_method_of_both_receivers() {
    need_v1!();
    let machine = Machine::new();
    for mut caller in Caller::both(&machine.socket()) {
        let c = &mut caller;
        c.ok("ContainerApi.InitMachine", &json!({}), &[]);
        let mounts = json!({"cgroup_mount": [{"mount_path": "/sys/fs/cgroup/memory", "hierarchy": ["CGROUP_MEMORY"]}]});
        c.ok("ContainerApi.InitMachine", &mounts, &[]);
        create(c, "/a", json!({"memory": {"limit": 33_554_432}, "children_limit": 100}));
        create(c, "/a/b", json!({}));
        assert_eq!(c.ok("ContainerApi.Get", &name("/a/../a//b/."), &[])["name"], "/a/b");
        let all = |policy: &str| json!({"name": "/a", "policy": policy});
        assert_eq!(c.ok("Container.ListSubcontainers", &all("LIST_SELF"), &[]), json!(["/a/b"]));
        let list =
            c.ok("Container.ListSubcontainers", &json!({"name": "/", "policy": "LIST_RECURSIVE"}), &[]);
        assert_eq!(list, json!(["/a", "/a/b"]));

        let pid = run(c, "/a/b", &["/bin/sleep", "1000"]);
        assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": pid}), &[])["name"], "/a/b");
        assert_eq!(c.ok("Container.ListProcesses", &all("LIST_SELF"), &[]), json!([]));
        assert_eq!(numbers(&c.ok("Container.ListProcesses", &all("LIST_RECURSIVE"), &[])), [pid]);
        assert_eq!(numbers(&c.ok("Container.ListThreads", &all("LIST_RECURSIVE"), &[])), [pid]);
        c.ok("Container.Enter", &json!({"name": "/a", "tids": [pid]}), &[]);
        assert_eq!(numbers(&c.ok("Container.ListThreads", &all("LIST_SELF"), &[])), [pid]);

        c.ok("Container.Pause", &name("/a"), &[]);
        assert_eq!(machine.file("freezer", "/a", "freezer.state"), "FROZEN");
        c.ok("Container.Resume", &name("/a"), &[]);
        assert_eq!(machine.file("freezer", "/a", "freezer.state"), "THAWED");
        let spec = c.ok("Container.Spec", &name("/a"), &[]);
        assert_eq!(spec, json!({"children_limit": 100, "memory": {"limit": 33_554_432}}));
        let update = json!({"name": "/a", "spec": {"children_limit": 50}, "policy": "UPDATE_DIFF"});
        c.ok("Container.Update", &update, &[]);
        assert_eq!(machine.file("pids", "/a", "pids.max"), "50");
        let stats = c.ok("Container.Stats", &json!({"name": "/a", "type": "STATS_SUMMARY"}), &[]);
        assert_eq!(stats["memory"]["limit"], 33_554_432);
        assert!(stats["memory"]["usage"].as_i64().unwrap() > 0 && stats.get("cpu").is_none(), "{stats}");
        let (text, status) =
            output(c, "/a/b", &["/bin/sh", "-c", "cat /proc/self/cgroup; echo $0 $#; exit 3", "x", "y"]);
        assert_eq!(status, 3 << 8);
        assert!(
            text.contains(&format!(":memory:/{}/a\n", machine.root)) && text.ends_with("x 1\n"),
            "{text}"
        );
        assert_eq!(c.ok("Container.GetInitPid", &name("/a"), &[]), 1);

        let (_reader, writer) = std::io::pipe().unwrap();
        let register = json!({"name": "/a", "spec": {"oom": {}}});
        let id = c.ok("Container.RegisterNotification", &register, &[writer.as_fd()]);
        c.ok("Container.UnregisterNotification", &json!({"name": "/a", "notification_id": id}), &[]);
        let detached = json!({"name": "/a/b", "command": ["/bin/true"], "spec": {"fd_policy": "DETACHED"}});
        let ran = c.ok("Container.Run", &detached, &[]);
        assert_eq!(c.ok("Container.Wait", &ran, &[]), 0);
        c.ok("Container.KillAll", &name("/a"), &[]);
        assert_eq!(c.ok("Container.ListThreads", &all("LIST_RECURSIVE"), &[]), json!([]));
        assert_eq!(c.ok("Container.Wait", &json!({"pid": pid}), &[]), 9);
        c.ok("ContainerApi.Destroy", &name("/a"), &[]);
        assert_eq!(machine.left(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn every_method_fails_by_code() {
    need_v1!();
    let machine = Machine::new();
    for mut caller in Caller::both(&machine.socket()) {
        let c = &mut caller;
        create(c, "/there", json!({"cpu": {"limit": 500}}));
        let gone = name("/gone");
        let mut told = vec![
            (c.fails("ContainerApi.Get", &gone, &[]), "NOT_FOUND: container \"/gone\" does not exist"),
            (c.fails("ContainerApi.Destroy", &gone, &[]), "NOT_FOUND: "),
            (c.fails("ContainerApi.Destroy", &name("/"), &[]), "FAILED_PRECONDITION: the root container"),
            (c.fails("ContainerApi.Create", &json!({"name": "/there"}), &[]), "ALREADY_EXISTS: "),
            (c.fails("ContainerApi.Create", &json!({"name": "/"}), &[]), "ALREADY_EXISTS: "),
            (
                c.fails("ContainerApi.Create", &json!({"name": "/gone/x"}), &[]),
                "NOT_FOUND: container \"/gone\"",
            ),
            (c.fails("ContainerApi.Create", &json!({"name": "/tasks"}), &[]), "INVALID_ARGUMENT: "),
            (
                c.fails("ContainerApi.Detect", &json!({"tid": 999_999_999}), &[]),
                "NOT_FOUND: thread 999999999",
            ),
            (
                c.fails("ContainerApi.Detect", &json!({"tid": 1}), &[]),
                "NOT_FOUND: thread 1 is in no container",
            ),
            (c.fails("ContainerApi.Detect", &json!({"tid": -1}), &[]), "NOT_FOUND: "),
            (c.fails("Container.Update", &json!({"name": "/gone"}), &[]), "NOT_FOUND: "),
            (c.fails("Container.Update", &json!({"name": "/"}), &[]), "FAILED_PRECONDITION: "),
            (c.fails("Container.Enter", &json!({"name": "/gone", "tids": [0]}), &[]), "NOT_FOUND: "),
            (c.fails("Container.Enter", &json!({"name": "/there", "tids": [-5]}), &[]), "INVALID_ARGUMENT: "),
            (
                c.fails("Container.Enter", &json!({"name": "/there", "tids": [999_999_999]}), &[]),
                "NOT_FOUND: there is no thread",
            ),
            (
                c.fails("Container.Wait", &json!({"pid": 1}), &[]),
                "NOT_FOUND: process 1 was not started by Run",
            ),
            (c.fails("Container.Exec", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.Spec", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.ListSubcontainers", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.ListThreads", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.ListProcesses", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.Pause", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.Pause", &name("/"), &[]), "FAILED_PRECONDITION: "),
            (c.fails("Container.Resume", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.Stats", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.KillAll", &gone, &[]), "NOT_FOUND: "),
            (c.fails("Container.KillAll", &name("/"), &[]), "FAILED_PRECONDITION: "),
            (c.fails("Container.GetInitPid", &gone, &[]), "NOT_FOUND: "),
            (
                c.fails(
                    "Container.UnregisterNotification",
                    &json!({"name": "/there", "notification_id": 99}),
                    &[],
                ),
                "NOT_FOUND: ",
            ),
        ];
        let run = |command: Value, spec: Value| json!({"name": "/there", "command": command, "spec": spec});
        let detached = json!({"fd_policy": "DETACHED"});
        let (reader, writer) = std::io::pipe().unwrap();
        let fd = [writer.as_fd()];
        let oom = |name: &str| json!({"name": name, "spec": {"oom": {}}});
        told.extend([
            (
                c.fails(
                    "Container.Run",
                    &json!({"name": "/gone", "command": ["/bin/true"], "spec": detached}),
                    &[],
                ),
                "NOT_FOUND: ",
            ),
            (
                c.fails("Container.Run", &run(json!([]), detached.clone()), &[]),
                "INVALID_ARGUMENT: there is no command",
            ),
            (
                c.fails("Container.Run", &run(json!(["true"]), detached.clone()), &[]),
                "INVALID_ARGUMENT: command \"true\"",
            ),
            (
                c.fails("Container.Run", &run(json!(["/no/such"]), detached.clone()), &[]),
                "FAILED_PRECONDITION: executing /no/such",
            ),
            (
                c.fails("Container.Run", &run(json!(["/bin/true"]), json!({})), &fd),
                "INVALID_ARGUMENT: 1 descriptors came",
            ),
            (
                c.fails("Container.Run", &run(json!(["/bin/true"]), detached), &fd),
                "INVALID_ARGUMENT: 1 descriptors came: DETACHED",
            ),
            (
                c.fails("Container.Run", &run(json!(["/bin/true"]), json!({"fd_policy": "UNKNOWN"})), &[]),
                "INVALID_ARGUMENT: ",
            ),
            (
                c.fails(
                    "Container.Run",
                    &run(json!(["/bin/true"]), json!({"console": {"slave_pty": "1"}})),
                    &[],
                ),
                "UNIMPLEMENTED: console",
            ),
            (
                c.fails("Container.Run", &run(json!(["/bin/true"]), json!({"apparmor_profile": "x"})), &[]),
                "UNIMPLEMENTED: apparmor_profile",
            ),
            (c.fails("Container.RegisterNotification", &oom("/gone"), &fd), "NOT_FOUND: "),
            (
                c.fails("Container.RegisterNotification", &oom("/there"), &fd),
                "FAILED_PRECONDITION: the container does not isolate memory",
            ),
            (
                c.fails("Container.RegisterNotification", &oom("/there"), &[]),
                "INVALID_ARGUMENT: 0 descriptors",
            ),
            (
                c.fails("Container.RegisterNotification", &oom("/there"), &[reader.as_fd()]),
                "INVALID_ARGUMENT: the descriptor for notifications",
            ),
            (
                c.fails("Container.RegisterNotification", &json!({"name": "/there"}), &fd),
                "INVALID_ARGUMENT: a notification needs exactly one",
            ),
        ]);
        let mount = |path: &str, hierarchy: &str| json!({"cgroup_mount": [{"mount_path": path, "hierarchy": [hierarchy]}]});
        told.extend([
            (
                c.fails("ContainerApi.InitMachine", &mount("/nowhere", "CGROUP_CPU"), &[]),
                "FAILED_PRECONDITION: cgroup_mount: cpu is not mounted",
            ),
            (
                c.fails("ContainerApi.InitMachine", &mount("/nowhere", "CGROUP_RLIMIT"), &[]),
                "UNIMPLEMENTED: ",
            ),
            (c.fails("ContainerApi.InitMachine", &json!({"cgroup_mount": [{}]}), &[]), "INVALID_ARGUMENT: "),
        ]);
        for (text, expected) in told {
            assert!(text.starts_with(expected), "{text:?} does not begin with {expected:?}");
        }
        c.ok("ContainerApi.Destroy", &name("/there"), &[]);
    }
    assert_eq!(machine.left(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn names_are_relative_to_the_caller_and_stay_below_the_root() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({}));
    create(&mut c, "/a/b", json!({}));
    create(&mut c, "/a/c", json!({}));
    // Outside of the tree the root is where one is.
    assert_eq!(c.ok("ContainerApi.Get", &name("a/b"), &[])["name"], "/a/b");
    assert_eq!(c.ok("ContainerApi.Get", &name("../../.."), &[])["name"], "/");
    // A process of the tree is where it is.
    let root = machine.state.root().display().to_string();
    let airlock = airlock_tests::airlock().display().to_string();
    let inside = |words: &[&str]| {
        let command = [&["exec", "/a/b", &airlock, "--root", &root, "container"], words].concat();
        machine.cli(&command)
    };
    assert_eq!(inside(&["detect"]), "/a/b\n");
    assert_eq!(inside(&["list", "-a", "containers", ".."]), "/a/b\n/a/c\n");
    assert_eq!(inside(&["list", "containers", "../../../../.."]), "a\n");
    assert!(!inside(&["list", "pids"]).is_empty());
    inside(&["create", "d", "children_limit:7"]);
    assert_eq!(machine.file("pids", "/a/b/d", "pids.max"), "7");
    for bad in ["", "/a b", "/a/*", "/a\u{0}", "a;b", "../ü", "/a/b:c", "/a\nb"] {
        let text = c.fails("ContainerApi.Create", &json!({"name": bad}), &[]);
        assert!(text.starts_with("INVALID_ARGUMENT: container name"), "{bad:?}: {text}");
    }
    for (bad, long) in [("x".repeat(256), "part"), ("x/".repeat(5000), "bytes"), ("x/".repeat(40), "levels")]
    {
        let text = c.fails("ContainerApi.Get", &name(&bad), &[]);
        assert!(text.starts_with("INVALID_ARGUMENT: ") && text.contains(long), "{text}");
    }
    // What looks like a path out of the hierarchy is a name in it.
    c.ok("ContainerApi.Create", &json!({"name": "/../../etc"}), &[]);
    assert!(machine.dir("freezer", "/etc").is_dir());
}

#[test]
fn the_calling_process_enters_and_executes() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {}}));
    let root = machine.state.root().display().to_string();
    // A shell that enters with its whole self, and what it starts from then on.
    let script = format!(
        "{0} --root {root} container enter /a && {0} --root {root} container detect && cat /proc/$$/cgroup",
        airlock_tests::airlock().display()
    );
    let shell = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&shell.stdout).into_owned();
    assert!(
        text.starts_with("/a\n") && text.contains(&format!(":memory:/{}/a\n", machine.root)),
        "{text}{shell:?}"
    );
    // The library moves this process no more than it is asked: a thread that calls Exec moves its process.
    let out = machine.cli(&["exec", "/a", "sh", "-c", "cat /proc/self/cgroup"]);
    assert!(out.contains(&format!(":freezer:/{}/a\n", machine.root)), "{out}");
    let text = machine.state.fails(["container", "exec", "/a", "no-such-program"]);
    assert!(text.contains("FAILED_PRECONDITION: executing no-such-program"), "{text}");
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    // Exec over the wire moves the caller, which is asked for by a program that may go there.
    let script = "import json,os,socket,sys\ns=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n\
                  s.send(json.dumps({'method':'Container.Exec','arg':{'name':'/b'}}).encode())\n\
                  print(json.loads(s.recv(4096))['success'],flush=True)\nos.execvp('cat',['cat','/proc/self/cgroup'])";
    need!("python3");
    create(&mut c, "/b", json!({}));
    let socket = machine.socket();
    let out = std::process::Command::new("python3")
        .args(["-c", script, socket.to_str().unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        text.starts_with("True\n") && text.contains(&format!(":freezer:/{}/b\n", machine.root)),
        "{text}"
    );
}

/// The test's own process is the caller here, so it is one of its own.
#[test]
fn exec_moves_its_caller() {
    need_v1!();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "exec_moves_its_caller_alone"])
        .env("AIRLOCK_BINARY", airlock_tests::airlock())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by exec_moves_its_caller in a process of its own"]
fn exec_moves_its_caller_alone() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({}));
    let before = fs::read_to_string("/proc/self/cgroup").unwrap();
    c.ok("Container.Exec", &name("/a"), &[]);
    assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": 0}), &[])["name"], "/a");
    let own = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
    assert!(own.contains(&format!(":freezer:/{}/a\n", machine.root)), "all of its threads: {own}");
    // Back to where it was, before anything is destroyed.
    for line in before.lines().filter(|l| !l.starts_with("0::") && !l.contains("name=")) {
        let (_, rest) = line.split_once(':').unwrap();
        let (controllers, path) = rest.split_once(':').unwrap();
        let file = format!("/sys/fs/cgroup/{controllers}{path}/cgroup.procs");
        fs::write(&file, std::process::id().to_string()).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    assert_eq!(c.ok("Container.ListProcesses", &name("/a"), &[]), json!([]));
}

#[test]
fn the_command_line_does_it_all() {
    need_v1!();
    let machine = Machine::new();
    let cli = |words: &[&str]| machine.cli(words);
    cli(&["init"]);
    cli(&["init", "cgroup_mount { mount_path: '/sys/fs/cgroup/cpu' hierarchy: CGROUP_CPU }"]);
    cli(&["create", "/a", "memory:{limit:100000000}"]);
    let spec = machine.state.dir.path().join("spec");
    fs::write(&spec, r#"{"cpu": {"limit": 250}, "children_limit": 9}"#).unwrap();
    cli(&["create", "--config", spec.to_str().unwrap(), "/a/b"]);
    assert_eq!(cli(&["list", "-r", "containers", "/"]), "a\na/b\n");
    assert_eq!(cli(&["list", "-a", "containers", "/a"]), "/a/b\n");
    assert_eq!(cli(&["spec", "/a/b"]), "children_limit: 9\ncpu {\n  limit: 250\n}\n");
    let json: Value = serde_json::from_str(&cli(&["spec", "--json", "/a/b"])).unwrap();
    assert_eq!(json, json!({"children_limit": 9, "cpu": {"limit": 250}}));
    cli(&["update", "-u", "/a/b", "cpu { limit: 500 }"]);
    cli(&["update", "-r", "/a/b", "cpu { max_limit: 800 } children_limit: 10"]);
    assert_eq!(cli(&["spec", "/a/b"]), "children_limit: 10\ncpu {\n  max_limit: 800\n}\n");
    assert_eq!(cli(&["run", "/a/b", "/bin/echo", "-n", "hello"]), "hello");
    let failed = machine.state.run(["container", "run", "/a", "/bin/sh", "-c", "exit 5"]);
    assert_eq!(failed.status.code(), Some(5));
    let failed = machine.state.run(["container", "run", "/a", "/bin/sh", "-c", "kill -9 $$"]);
    assert_eq!(failed.status.code(), Some(137));
    let pid = cli(&["run", "-n", "/a/b", "/bin/sleep", "1000"]);
    assert_eq!(cli(&["list", "pids", "/a/b"]), pid);
    assert_eq!(cli(&["list", "-r", "threads", "/a"]), pid);
    assert_eq!(cli(&["detect", pid.trim()]), "/a/b\n");
    cli(&["enter", "/a", pid.trim()]);
    assert_eq!(cli(&["detect", pid.trim()]), "/a\n");
    cli(&["pause", "/a"]);
    assert_eq!(machine.file("freezer", "/a/b", "freezer.state"), "FROZEN");
    cli(&["resume", "/a"]);
    assert!(cli(&["stats", "/a"]).starts_with("memory {\n  limit: 99999744\n"));
    assert!(cli(&["stats", "full", "/a"]).contains("fail_count: 0"));
    let stats: Value = serde_json::from_str(&cli(&["stats", "summary", "--json", "/a"])).unwrap();
    assert!(stats["memory"]["working_set"].is_i64());
    assert_eq!(cli(&["init-pid", "/a"]), "1\n");
    cli(&["killall", "/a"]);
    cli(&["destroy", "/a"]);
    for (words, expected) in [
        (&["create", "/a", "memory {"][..], "'}' is missing"),
        (&["create", "/a", "{\"nosuch\": 1}"], "unknown field `nosuch`"),
        (&["update", "/a", "cpu {}"], "--update"),
        (&["update", "-u", "-r", "/a", "cpu {}"], "cannot be used with"),
        (&["stats", "some", "/a"], "give 'summary' or 'full'"),
        (&["notify", "memory", "oom"], "give 'memory oom NAME'"),
        (&["list", "things", "/"], "things"),
        (&["frobnicate"], "is none of its commands"),
        (&["destroy", "/a"], "NOT_FOUND: container \"/a\" does not exist"),
    ] {
        let text = machine.state.fails([&["container"], words].concat());
        assert!(text.contains(expected), "{words:?}: {text}");
    }
    for words in
        [&["container", "--help"][..], &["container", "create", "--help"], &["machine", "serve", "--help"]]
    {
        assert!(machine.state.ok(words).contains("Usage: airlock"), "{words:?}");
    }
    let second = machine.state.fails(["machine", "serve", "--cgroup", &format!("/{}", machine.root)]);
    assert!(second.contains("another server serves this tree"), "{second}");
    let nobody = airlock_tests::State::new();
    assert!(nobody.fails(["container", "list", "containers", "/"]).contains("airlock machine serve"));
    assert!(nobody.fails(["machine", "serve", "--cgroup", "a/../b"]).contains("plain names"));
}

#[test]
fn who_does_not_wait_leaves_no_zombie() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({}));
    let pid = run(&mut c, "/a", &["/bin/true"]);
    drop(c);
    airlock_tests::wait::until("the server reaps", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    // Its status is kept all the same.
    let mut c = machine.caller();
    assert_eq!(c.ok("Container.Wait", &json!({"pid": pid}), &[]), 0);
    c.fails("Container.Wait", &json!({"pid": pid}), &[]);
    // Who hangs up while it waits leaves the process.
    let pid = run(&mut c, "/a", &["/bin/sleep", "1000"]);
    if let Caller::Json(urpc) = &mut Caller::json(&machine.socket()) {
        urpc.send("Container.Wait", &json!({"pid": pid}), &[]);
    }
    assert_eq!(number(&c.ok("Container.ListProcesses", &name("/a"), &[])[0]), pid);
}
