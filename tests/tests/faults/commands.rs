//! SIGKILL of the command line at every step that matters: before a system call that makes, changes or removes
//! something. strace(1) counts the calls and delivers the signal.
use super::*;
use airlock_tests::need;
use airlock_wire::api::airlock::{Exec, ExecRequest};
use airlock_wire::api::boot::{ContainerFds, Fd};
use airlock_wire::api::types::SpecJson;
use airlock_wire::{Client, Dialect};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

/// System calls that only look, or that concern the process alone.
const HARMLESS: &[&str] = &[
    "close",
    "fcntl",
    "read",
    "statx",
    "fstatfs",
    "statfs",
    "mmap",
    "munmap",
    "mprotect",
    "brk",
    "newfstatat",
    "fstat",
    "getpid",
    "gettid",
    "geteuid",
    "getuid",
    "readlink",
    "rt_sigaction",
    "sigaltstack",
    "prlimit64",
    "getdents64",
    "lseek",
    "access",
    "pread64",
    "getrandom",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
    "rseq",
    "sched_getaffinity",
    "execve",
    "exit_group",
    "rt_sigprocmask",
    "ioctl",
    "futex",
    "madvise",
];

/// Kill points that one command is tried at.
const POINTS: usize = 60;

fn strace(state: &State, options: &[&str], args: &[&str]) -> Command {
    let airlock = state.command(args);
    let mut command = Command::new("strace");
    command.arg("-qq").args(options).arg(airlock.get_program()).args(airlock.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The steps of a command as (system call, how often it was called before and with this one).
fn steps(state: &State, args: &[&str]) -> Vec<(String, usize)> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let status = strace(state, &["-o", log.path().to_str().unwrap()], args).status().unwrap();
    assert!(status.success(), "{args:?}: {status}");
    let text = std::fs::read_to_string(log.path()).unwrap();
    let root = state.root().display().to_string();
    let mut counts = HashMap::<&str, usize>::new();
    let mut steps = Vec::new();
    let mut begun = false;
    for (i, line) in text.lines().enumerate() {
        let Some((name, _)) = line.split_once('(') else { continue };
        let count = counts.entry(name).or_default();
        *count += 1;
        begun |= i > 0 && line.contains(&root);
        if begun && !HARMLESS.contains(&name) {
            steps.push((name.to_owned(), *count));
        }
    }
    assert!(steps.len() > 5, "{text}");
    let every = steps.len().div_ceil(POINTS);
    steps.into_iter().step_by(every).collect()
}

/// Runs a command that is killed before step `step`. True if it was (it may have taken another way this time).
fn killed_at(state: &State, step: &(String, usize), args: &[&str]) -> bool {
    let inject = format!("inject={}:signal=KILL:when={}", step.0, step.1);
    let status = strace(state, &["-o", "/dev/null", "-e", &inject], args).status().unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
    assert!(killed || status.code().is_some(), "{status}");
    killed
}

fn status(state: &State, id: &str) -> Option<String> {
    let out = state.run(["state", id]);
    if out.status.success() {
        let value: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        return Some(value["status"].as_str().unwrap().to_owned());
    }
    let text = one_line(&out);
    assert!(text.contains("does not exist"), "{text}");
    None
}

#[test]
fn create() {
    need!("busybox", "strace");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]));
    let id = unique("killed-create");
    let args = ["create", "--bundle", bundle.text(), &id];
    let steps = steps(&state, &args);
    state.ok(["delete", "--force", &id]);
    let mut kills = 0;
    for (i, step) in steps.iter().enumerate() {
        let id = unique("killed-create");
        let args = ["create", "--bundle", bundle.text(), &id];
        kills += usize::from(killed_at(&state, step, &args));
        let found = status(&state, &id);
        assert!(matches!(found.as_deref(), None | Some("stopped" | "created")), "{step:?}: {found:?}");
        assert!(state.ok(["list", "-q"]).lines().count() <= 1);
        // Either the same id is made anew, or what is there is removed.
        if i % 2 == 0 && found.as_deref() != Some("created") {
            state.detached(&args);
            state.ok(["start", &id]);
            assert_eq!(status(&state, &id).as_deref(), Some("running"), "{step:?}");
        }
        state.ok(["delete", "--force", &id]);
        leaks::nothing_left(&state, &id);
    }
    assert!(kills * 2 > steps.len(), "{kills} of {}", steps.len());
}

#[test]
fn create_in_a_pod() {
    need!("busybox", "strace");
    let (state, pod) = (State::new(), unique("pod"));
    let root = Bundle::new(&["/bin/sleep", "1000"]);
    state.detached(&["run", "--detach", "--bundle", root.text(), &pod]);
    let bundle = Bundle::with(&["/bin/sleep", "1000"], |c| {
        c["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod
        });
    });
    let id = unique("killed-sub");
    let steps = steps(&state, &["create", "--bundle", bundle.text(), &id]);
    state.ok(["delete", "--force", &id]);
    for (i, step) in steps.iter().enumerate() {
        let id = unique("killed-sub");
        let args = ["create", "--bundle", bundle.text(), &id];
        killed_at(&state, step, &args);
        let found = status(&state, &id);
        if i % 2 == 0 && found.as_deref() != Some("created") {
            state.detached(&args);
            state.ok(["start", &id]);
            assert_eq!(status(&state, &id).as_deref(), Some("running"), "{step:?}");
        }
        state.ok(["delete", "--force", &id]);
        leaks::nothing_left(&state, &id);
    }
    // The sandbox has forgotten them all.
    let socket = state.control_socket(&pod);
    let list = airlock_tests::urpc::Caller::json(&socket).ok("Airlock.List", &json!({}), &[]);
    assert_eq!(list.as_array().unwrap().len(), 1, "{list}");
}

#[test]
fn start() {
    need!("busybox", "strace");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]));
    let id = unique("killed-start");
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let steps = steps(&state, &["start", &id]);
    state.ok(["delete", "--force", &id]);
    for step in &steps {
        let id = unique("killed-start");
        state.detached(&["create", "--bundle", bundle.text(), &id]);
        killed_at(&state, step, &["start", &id]);
        if status(&state, &id).as_deref() == Some("created") {
            // The request may still be on its way; then the container starts without us.
            let out = attempt(&state, ["start", &id]);
            assert!(out.status.success() || one_line(&out).contains("start"), "{step:?}: {out:?}");
        }
        wait::until("it runs", || (status(&state, &id).as_deref() == Some("running")).then_some(()));
        state.ok(["delete", "--force", &id]);
        leaks::nothing_left(&state, &id);
    }
}

#[test]
fn exec() {
    need!("busybox", "strace");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]));
    let id = unique("killed-exec");
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    for args in [vec!["exec", &id, "/bin/true"], vec!["exec", "--detach", &id, "/bin/true"]] {
        for step in &steps(&state, &args) {
            killed_at(&state, step, &args);
            assert_eq!(state.ok(["exec", &id, "/bin/echo", "alive"]), "alive\n", "{step:?}");
        }
    }
    wait::until("only the init is left", || {
        let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
        (pids.len() == 1).then_some(())
    });
    state.ok(["delete", "--force", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn an_exec_that_is_killed_takes_its_process_along() {
    need!("busybox");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]));
    let id = unique("killed-exec");
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let pids = || -> usize {
        serde_json::from_str::<Vec<i32>>(&state.ok(["ps", "--format", "json", &id])).unwrap().len()
    };
    for _ in 0..20 {
        let mut exec = state
            .command(["exec", &id, "/bin/sleep", "1000"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It is seen before the command hears that it runs, and before it can say that it stands for it.
        wait::until("the process runs", || (pids() == 2).then_some(()));
        exec.kill().unwrap();
        exec.wait().unwrap();
        wait::until("the process is gone", || (pids() == 1).then_some(()));
    }
}

#[test]
fn delete() {
    need!("busybox", "strace");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]));
    let id = unique("killed-delete");
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let steps = steps(&state, &["delete", &id]);
    for (i, step) in steps.iter().enumerate() {
        let id = unique("killed-delete");
        state.detached(&["create", "--bundle", bundle.text(), &id]);
        killed_at(&state, step, &["delete", &id]);
        let found = status(&state, &id);
        if i % 2 == 0 && found.is_some() {
            // Whatever was removed already, an ordinary delete removes the rest.
            state.ok(["delete", &id]);
            state.ok(["list", "-q"]);
        } else {
            state.ok(["delete", "--force", &id]);
        }
        leaks::nothing_left(&state, &id);
    }
}

#[test]
fn run() {
    need!("busybox", "strace");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/true"]));
    let id = unique("killed-run");
    for step in &steps(&state, &["run", "--bundle", bundle.text(), &id]) {
        let id = unique("killed-run");
        killed_at(&state, step, &["run", "--bundle", bundle.text(), &id]);
        let found = status(&state, &id);
        assert_ne!(found.as_deref(), Some("creating"), "{step:?}");
        state.ok(["delete", "--force", &id]);
        leaks::nothing_left(&state, &id);
    }
}

#[test]
fn create_with_hooks() {
    need!("busybox", "strace");
    // While a hook runs, the sandbox is held and the command waits.
    let bundle = Bundle::with(&["/bin/sleep", "1000"], |c| {
        c["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.01"]}]});
    });
    let state = State::new();
    let id = unique("killed-hook");
    let steps = steps(&state, &["create", "--bundle", bundle.text(), &id]);
    state.ok(["delete", "--force", &id]);
    for step in steps.iter().rev().take(12) {
        let id = unique("killed-hook");
        killed_at(&state, step, &["create", "--bundle", bundle.text(), &id]);
        state.ok(["delete", "--force", &id]);
        leaks::nothing_left(&state, &id);
    }
}

#[test]
fn a_caller_of_exec_that_hangs_up_takes_its_process_along() {
    need!("busybox");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]));
    let id = unique("hung-up");
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let pids = || -> usize {
        serde_json::from_str::<Vec<i32>>(&state.ok(["ps", "--format", "json", &id])).unwrap().len()
    };
    let process = json!({"args": ["/bin/sleep", "1000"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
    let request = ExecRequest {
        cid: id.clone(),
        process: SpecJson(Some(process.to_string())),
        fds: ContainerFds { stdio: vec![Fd(0), Fd(1), Fd(2)], ..ContainerFds::default() },
    };
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let mut client = Client::connect(&state.control_socket(&id), Dialect::Binary).unwrap();
    for _ in 0..2 {
        client.call::<Exec>(&request, &[null.as_fd(), null.as_fd(), null.as_fd()]).unwrap();
    }
    assert_eq!(pids(), 3);
    drop(client);
    wait::until("the processes are gone", || (pids() == 1).then_some(()));
}
