//! containerd 1.6 drives airlock through its runc.v2 shim: ctr run, exec, kill, pause, metrics, events; pods by
//! annotations.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::interop::{Containerd, alive, finish, processes_with};
use airlock_tests::{need, skip, unique, wait, which};
use std::path::Path;

const SANDBOX: &str = "io.kubernetes.cri.container-type=sandbox";
const CONTAINER: &str = "io.kubernetes.cri.container-type=container";

#[test]
fn run_relays_output_and_exit_codes() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let ended = containerd.run(&[], &unique("run"), &["sh", "-c", "echo to-out; echo to-err >&2; exit 6"]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (6, "to-out\n", "to-err\n"));
    assert_eq!(containerd.run(&[], &unique("run"), &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).code, 137);
    let options = ["--env", "DEPTH=9", "--cwd", "/tmp", "--read-only", "--seccomp"];
    let script = "echo $DEPTH; pwd; touch /no 2>&-; echo $?; grep ^Seccomp: /proc/self/status";
    let out = containerd.run(&options, &unique("run"), &["sh", "-c", script]).ok();
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["9", "/tmp", "1", "Seccomp:", "2"]);
    let error = containerd.run(&[], &unique("run"), &["/nonexistent"]).fails();
    assert!(error.contains("/nonexistent") && error.contains("no such file or directory"), "{error}");
}

#[test]
fn run_on_a_terminal() {
    need!("busybox", "containerd", "ctr", "script");
    let containerd = Containerd::shared();
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && exit 7";
    let command = containerd.run_command(&["--rm", "--tty"], &unique("tty"), &["sh", "-c", script]);
    let ended = containerd.terminal(&command, "");
    assert_eq!(ended.code, 7, "{ended:?}");
    assert!(ended.out.contains("/dev/pts/0"), "{ended:?}");

    let command = containerd.run_command(&["--rm", "--tty"], &unique("tty"), &["sh"]);
    let ended = containerd.terminal(&command, "echo answer=$((6 * 7))\nexit 3\n");
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.out.contains("answer=42"), "{ended:?}");

    let id = unique("tty");
    containerd.start_container(&[], &id, &["sleep", "1000"]);
    let command = containerd.command(&["tasks", "exec", "--tty", "--exec-id", "talk", &id, "sh"]);
    let ended = containerd.terminal(&command, "tty; echo $((40 + 2))\nexit 4\n");
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(ended.out.contains("/dev/pts/") && ended.out.contains("42"), "{ended:?}");
    containerd.remove(&id);
}

#[test]
fn the_life_of_a_task() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let (events, id) = (containerd.events(), unique("task"));
    containerd.start_container(
        &["--pid-file", containerd.path("pid").to_str().unwrap()],
        &id,
        &["sleep", "1000"],
    );
    let (pid, status) = containerd.task(&id).unwrap();
    assert_eq!(status, "RUNNING");
    assert_eq!(std::fs::read_to_string(containerd.path("pid")).unwrap(), pid.to_string());
    assert_eq!(events.of("/tasks/start", &id, 1)[0]["pid"], pid);

    let ended = containerd.exec(&id, "first", &["sh", "-c", "echo in; echo err >&2; exit 5"]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (5, "in\n", "err\n"));
    let exit = &events.of("/tasks/exit", &id, 1)[0];
    assert_eq!((exit["id"].as_str(), exit["exit_status"].as_u64()), (Some("first"), Some(5)));
    let user = containerd.call(&[
        "tasks",
        "exec",
        "--exec-id",
        "user",
        "--user",
        "1000",
        "--cwd",
        "/tmp",
        &id,
        "sh",
        "-c",
        "id -u; pwd",
    ]);
    assert_eq!(user.ok(), "1000\n/tmp\n");

    let listed = containerd.ok(&["tasks", "ps", &id]);
    assert_eq!(listed.lines().count(), 2, "the header and one process: {listed}");
    let metrics = containerd.ok(&["tasks", "metrics", &id]);
    if Path::new("/sys/fs/cgroup/memory").is_dir() {
        let value = |name: &str| -> u64 {
            let line = metrics.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let memory = value("memory.usage_in_bytes");
        assert!((1..256 << 20).contains(&memory), "the container's, not the host's: {metrics}");
        assert!((1..64).contains(&value("pids.current")), "{metrics}");
    }

    containerd.ok(&["tasks", "pause", &id]);
    assert_eq!(containerd.task(&id).unwrap().1, "PAUSED");
    assert_eq!(events.of("/tasks/paused", &id, 1).len(), 1);
    containerd.exec(&id, "paused", &["true"]).fails();
    containerd.ok(&["tasks", "resume", &id]);
    assert_eq!(containerd.task(&id).unwrap().1, "RUNNING");
    assert_eq!(events.of("/tasks/resumed", &id, 1).len(), 1);

    containerd.ok(&["tasks", "kill", "--signal", "KILL", &id]);
    containerd.wait_for_status(&id, "STOPPED");
    let exits = events.of("/tasks/exit", &id, 3);
    let exit = exits.iter().find(|e| e["id"] == id.as_str()).unwrap();
    assert_eq!((exit["pid"].as_i64(), exit["exit_status"].as_u64()), (Some(i64::from(pid)), Some(137)));
    assert_eq!(containerd.remove(&id), 137);
    assert_eq!(events.of("/tasks/delete", &id, 1)[0]["exit_status"], 137);
    assert!(!containerd.airlock_root().join(&id).exists());
}

#[test]
fn signals_reach_the_program() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let (id, log) = (unique("signals"), unique("log"));
    let signals = ["HUP", "USR1", "USR2", "WINCH"];
    let traps: String = signals.iter().map(|s| format!("trap 'echo {s} >> /tmp/{log}' {s}; ")).collect();
    let script =
        format!("{traps} trap 'exit 42' TERM; echo ready > /tmp/{log}; while :; do sleep 0.05; done");
    containerd.start_container(&[], &id, &["sh", "-c", &script]);
    let file = containerd.rootfs().join("tmp").join(&log);
    let heard = |word: &str| std::fs::read_to_string(&file).is_ok_and(|t| t.lines().any(|l| l == word));
    wait::until("the traps", || heard("ready").then_some(()));
    for signal in signals {
        containerd.ok(&["tasks", "kill", "--signal", signal, &id]);
        wait::until(signal, || heard(signal).then_some(()));
    }
    containerd.ok(&["tasks", "kill", &id]);
    containerd.wait_for_status(&id, "STOPPED");
    assert_eq!(containerd.remove(&id), 42);
}

#[test]
fn a_killed_exec_is_gone_and_nothing_else() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let (events, id) = (containerd.events(), unique("exec"));
    containerd.start_container(&[], &id, &["sleep", "1000"]);
    // It ends by itself …
    assert_eq!(containerd.exec(&id, "self", &["sh", "-c", "kill -9 $$"]).code, 137);
    // … and the shim kills the pid from the pid file, which is a proxy's.
    let marker = format!("sleep {}077", std::process::id());
    let words: Vec<&str> = marker.split(' ').collect();
    containerd.ok(&["tasks", "exec", "--detach", "--exec-id", "victim", &id, words[0], words[1]]);
    let pids = wait::until("the process", || Some(processes_with(&marker)).filter(|p| p.len() == 1));
    containerd.ok(&["tasks", "kill", "--signal", "KILL", "--exec-id", "victim", &id]);
    wait::until("the process to end", || (!alive(pids[0])).then_some(()));
    let exits = events.of("/tasks/exit", &id, 2);
    let exit = exits.iter().find(|e| e["id"] == "victim").unwrap();
    assert_eq!(exit["exit_status"], 137);
    assert_eq!(containerd.ok(&["tasks", "ps", &id]).lines().count(), 2);
    assert_eq!(containerd.task(&id).unwrap().1, "RUNNING");
    // A signal that can be handled, to one of several.
    let file = containerd.rootfs().join("tmp").join(&id);
    let script =
        format!("trap 'echo heard > /tmp/{id}; exit 9' USR1; touch /tmp/{id}; while :; do sleep 0.05; done");
    containerd.ok(&["tasks", "exec", "--detach", "--exec-id", "ears", &id, "sh", "-c", &script]);
    wait::until("the trap", || file.exists().then_some(()));
    containerd.ok(&["tasks", "kill", "--signal", "USR1", "--exec-id", "ears", &id]);
    let exits = events.of("/tasks/exit", &id, 3);
    assert_eq!(exits.iter().find(|e| e["id"] == "ears").unwrap()["exit_status"], 9);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "heard\n");
    containerd.remove(&id);
}

#[test]
fn limits_are_counted_for_the_container() {
    need!("busybox", "containerd", "ctr");
    if !Path::new("/sys/fs/cgroup/memory").is_dir() {
        skip!("needs the v1 memory hierarchy");
    }
    let containerd = Containerd::shared();
    let (events, id) = (containerd.events(), unique("limits"));
    let greedy = "(x=0123456789; while :; do x=$x$x; done); sleep 1000";
    containerd.start_container(&["--memory-limit", "33554432", "--cpus", "0.5"], &id, &["sh", "-c", greedy]);
    let metrics = containerd.ok(&["tasks", "metrics", &id]);
    let limit = metrics.lines().find(|l| l.starts_with("memory.limit_in_bytes")).unwrap();
    assert_eq!(limit.split_whitespace().nth(1), Some("33554432"), "{metrics}");
    assert!(!events.of("/tasks/oom", &id, 1).is_empty());
    assert_eq!(containerd.task(&id).unwrap().1, "RUNNING");
    containerd.remove(&id);
}

#[test]
fn other_ways_to_configure_the_runtime() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    // The shim looks "runc" up in PATH, where this containerd has a link to airlock. Its state folder is airlock's only
    // if airlock ran.
    let script = "echo from $0; exit 4";
    let mut command = containerd.run_as(
        &["--rm", "--runtime", "io.containerd.runc.v2"],
        &unique("path"),
        &["sh", "-c", script, "path"],
    );
    let ended = finish(&mut command);
    assert_eq!((ended.code, ended.out.as_str()), (4, "from path\n"), "{}", ended.err);
    let id = unique("path");
    finish(&mut containerd.run_as(
        &["--detach", "--null-io", "--runtime", "io.containerd.runc.v2"],
        &id,
        &["sleep", "1000"],
    ))
    .ok();
    assert!(containerd.airlock_root().join(&id).join("control.sock").exists());
    containerd.remove(&id);
    // `[plugins."io.containerd.runtime.v1.linux"] runtime = "…/airlock"`, with the first generation of shims.
    if which("containerd-shim").is_some() {
        let runtime = ["--rm", "--runtime", "io.containerd.runtime.v1.linux"];
        let ended = finish(&mut containerd.run_as(&runtime, &unique("v1"), &["sh", "-c", script, "v1"]));
        assert_eq!((ended.code, ended.out.as_str()), (4, "from v1\n"), "{}", ended.err);
    }
    // The generation between the two.
    if let Some(shim) = which("containerd-shim-runc-v1") {
        let runtime = ["--rm", "--runtime", "io.containerd.runc.v1"];
        let ended = finish(&mut containerd.run_as(&runtime, &unique("old"), &["sh", "-c", script, "old"]));
        assert_eq!((ended.code, ended.out.as_str()), (4, "from old\n"), "{shim:?}: {}", ended.err);
    }
}

/// A sandbox and one container in it.
fn pod(containerd: &Containerd, options: &[&str]) -> (String, String) {
    let (sandbox, member) = (unique("sandbox"), unique("member"));
    containerd.start_container(&["--annotation", SANDBOX], &sandbox, &["sleep", "1000"]);
    let place = format!("io.kubernetes.cri.sandbox-id={sandbox}");
    let all: Vec<&str> =
        ["--annotation", CONTAINER, "--annotation", &place].iter().chain(options).copied().collect();
    containerd.start_container(&all, &member, &["sleep", "1000"]);
    (sandbox, member)
}

#[test]
fn a_pod_is_one_sandbox() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let (sandbox, member) = pod(&containerd, &[]);
    let link = |id: &str, kind: &str| {
        let path = format!("/proc/self/ns/{kind}");
        containerd.exec(id, &unique("link"), &["readlink", &path]).ok()
    };
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(link(&sandbox, kind), link(&member, kind), "{kind}");
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(link(&member, kind).trim(), own.to_str().unwrap(), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(link(&sandbox, kind), link(&member, kind), "{kind}");
    }
    let ps = containerd.exec(&member, "ps", &["ps"]).ok();
    assert_eq!(ps.matches("sleep 1000").count(), 1, "only its own: {ps}");
    let root = containerd.airlock_root();
    assert!(root.join(&sandbox).join("control.sock").exists());
    assert!(!root.join(&member).join("control.sock").exists(), "a sandbox of its own");
    for id in [&sandbox, &member] {
        let listed = containerd.ok(&["tasks", "ps", id]);
        assert_eq!(listed.lines().count(), 2, "{listed}");
    }

    // The member goes first; the sandbox stays.
    assert_eq!(containerd.exec(&member, "dies", &["sh", "-c", "kill -9 $$"]).code, 137);
    assert_eq!(containerd.remove(&member), 137);
    assert_eq!(containerd.exec(&sandbox, "still", &["echo", "here"]).ok(), "here\n");
    // Its place can be taken again.
    let place = format!("io.kubernetes.cri.sandbox-id={sandbox}");
    let annotations = ["--annotation", CONTAINER, "--annotation", &place];
    containerd.start_container(&annotations, &member, &["sh", "-c", "exit 12"]);
    containerd.wait_for_status(&member, "STOPPED");
    assert_eq!(containerd.remove(&member), 12);
    containerd.remove(&sandbox);
}

#[test]
fn the_metrics_of_a_member_are_its_own() {
    need!("busybox", "containerd", "ctr");
    if !Path::new("/sys/fs/cgroup/memory").is_dir() {
        skip!("needs the v1 memory hierarchy");
    }
    let containerd = Containerd::shared();
    let (sandbox, member) = pod(&containerd, &["--memory-limit", "33554432"]);
    let metrics = containerd.ok(&["tasks", "metrics", &member]);
    let limit = metrics.lines().find(|l| l.starts_with("memory.limit_in_bytes")).unwrap();
    assert_eq!(limit.split_whitespace().nth(1), Some("33554432"), "{metrics}");
    containerd.remove(&member);
    containerd.remove(&sandbox);
}

#[test]
fn the_end_of_a_sandbox_ends_its_members() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let events = containerd.events();
    let (sandbox, member) = pod(&containerd, &[]);
    let (sandbox_pid, _) = containerd.task(&sandbox).unwrap();
    let (member_pid, _) = containerd.task(&member).unwrap();
    containerd.ok(&["tasks", "kill", "--signal", "KILL", &sandbox]);
    containerd.wait_for_status(&sandbox, "STOPPED");
    containerd.wait_for_status(&member, "STOPPED");
    for id in [&sandbox, &member] {
        assert_eq!(events.of("/tasks/exit", id, 1)[0]["exit_status"], 137, "{id}");
    }
    assert!(!alive(sandbox_pid) && !alive(member_pid));
    // The sandbox is removed before its member.
    assert_eq!(containerd.remove(&sandbox), 137);
    assert_eq!(containerd.remove(&member), 137);
    assert!(!containerd.airlock_root().join(&member).exists());
}

#[test]
fn a_sandbox_whose_process_is_killed() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let (sandbox, member) = pod(&containerd, &[]);
    let (pid, _) = containerd.task(&sandbox).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    containerd.wait_for_status(&sandbox, "STOPPED");
    containerd.wait_for_status(&member, "STOPPED");
    assert_eq!(containerd.remove(&member), 137);
    assert_eq!(containerd.remove(&sandbox), 137);
}

#[test]
fn a_task_is_saved() {
    need!("busybox", "containerd", "ctr");
    let containerd = Containerd::shared();
    let id = unique("saved");
    containerd.start_container(&[], &id, &["sleep", "1000"]);
    let (image, work) = (containerd.path(&format!("{id}-image")), containerd.path(&format!("{id}-work")));
    let save = |options: &[&str]| {
        let mut args = vec!["tasks", "checkpoint"];
        args.extend(options);
        args.extend(["--image-path", image.to_str().unwrap(), "--work-path", work.to_str().unwrap(), &id]);
        containerd.ok(&args);
        for name in ["checkpoint.img", "pages_meta.img", "pages.img"] {
            assert!(image.join(name).metadata().unwrap().len() > 0, "{name}");
        }
    };
    save(&[]);
    assert_eq!(containerd.task(&id).unwrap().1, "RUNNING");
    assert!(std::fs::read_to_string(work.join("dump.log")).unwrap().contains("1 processes"));
    save(&["--exit"]);
    wait::until("the task to end", || (containerd.task(&id)?.1 == "STOPPED").then_some(()));
    containerd.remove(&id);
}
