//! The life cycle as callers of an OCI runtime see it: pids that can be reaped, signals, descriptors, consoles, hooks,
//! pods, and what `delete` makes of every state.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::fds::FdSocket;
use airlock_tests::interop::{alive, finish, on_terminal, processes_with};
use airlock_tests::{Bundle, State, leaks, need, unique, wait};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// What the process in a pid file came to. We adopt orphans, as conmon and containerd's shim do.
fn reap(pid: i32) -> WaitStatus {
    waitpid(Pid::from_raw(pid), None).unwrap()
}

fn exited(pid: i32, code: i32) -> WaitStatus {
    WaitStatus::Exited(Pid::from_raw(pid), code)
}

fn killed(pid: i32, signal: Signal) -> WaitStatus {
    WaitStatus::Signaled(Pid::from_raw(pid), signal, false)
}

fn pid_in(path: &Path) -> i32 {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()), "{text:?}");
    text.parse().unwrap()
}

/// A private state directory and an id; orphans of its containers become our children.
fn set_up() -> (State, String) {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    (State::new(), unique("life"))
}

/// A detached container that sleeps.
fn sleeping(state: &State, id: &str) -> (Bundle, i32) {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let pid_file = bundle.path().join("pid");
    state.detached(&["run", "-d", "--pid-file", pid_file.to_str().unwrap(), "--bundle", bundle.text(), id]);
    let pid = pid_in(&pid_file);
    (bundle, pid)
}

fn exec_detached(state: &State, bundle: &Bundle, id: &str, command: &[&str]) -> i32 {
    let pid_file = bundle.path().join("exec-pid");
    let mut args = vec!["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), id];
    args.extend(command);
    state.detached(&args);
    pid_in(&pid_file)
}

#[test]
fn the_pid_file_names_a_child_that_ends_as_the_container() {
    need!("busybox");
    let (state, id) = set_up();
    let bundle = Bundle::new(&["sh", "-c", "exit 42"]);
    let pid_file = bundle.path().join("pid");
    let create = ["create", "--pid-file", pid_file.to_str().unwrap(), "--bundle", bundle.text(), &id];
    state.detached(&create);
    let pid = pid_in(&pid_file);
    assert_eq!(state.state(&id)["pid"], pid);
    assert_eq!(state.status(&id), "created");
    state.ok(["start", &id]);
    assert_eq!(reap(pid), exited(pid, 42));
    let stopped = state.state(&id);
    assert_eq!((&stopped["status"], &stopped["pid"]), (&json!("stopped"), &json!(0)));
    state.ok(["delete", &id]);
    assert!(leaks::cgroups(&id).is_empty());

    let (_bundle, pid) = sleeping(&state, &id);
    state.ok(["kill", &id, "KILL"]);
    assert_eq!(reap(pid), killed(pid, Signal::SIGKILL));
}

#[test]
fn a_detached_exec_has_a_proxy_that_ends_as_the_process() {
    need!("busybox");
    let (state, id) = set_up();
    let (bundle, container) = sleeping(&state, &id);
    let run = |command: &[&str]| exec_detached(&state, &bundle, &id, command);
    let pid = run(&["sh", "-c", "exit 3"]);
    assert_eq!(reap(pid), exited(pid, 3));
    for signal in [Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGTERM] {
        let pid = run(&["sh", "-c", &format!("kill -{} $$; sleep 1000", signal as i32)]);
        assert_eq!(reap(pid), killed(pid, signal));
    }
    // Signals to the proxy are the process' own.
    let ready = bundle.rootfs().join("tmp/ready");
    let pid = run(&["sh", "-c", "trap 'exit 9' USR1; : >/tmp/ready; while :; do usleep 10000; done"]);
    wait::until("the trap is set", || ready.exists().then_some(()));
    kill(Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
    assert_eq!(reap(pid), exited(pid, 9));
    // It cannot pass SIGKILL on, but its end ends the process.
    let pid = run(&["sleep", "777"]);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(reap(pid), killed(pid, Signal::SIGKILL));
    wait::until("the process is gone", || {
        let table = state.ok(["ps", &id]);
        (!table.contains("sleep 777")).then_some(())
    });
    let pid = run(&["sleep", "1000"]);
    state.ok(["kill", &id, "KILL"]);
    assert_eq!(reap(container), killed(container, Signal::SIGKILL));
    assert_eq!(reap(pid), killed(pid, Signal::SIGKILL));
}

#[test]
fn run_and_exec_pass_signals_on_and_exit_as_the_program() {
    need!("busybox");
    let (state, id) = set_up();
    let script = "trap 'echo got; exit 5' TERM; echo up; while :; do usleep 10000; done";
    let bundle = Bundle::new(&["sh", "-c", script]);
    let check = |command: &mut Command, code: i32| {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut word = [0; 3];
        out.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"up\n");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got\n", Some(code)));
    };
    check(&mut state.command(["run", "--bundle", bundle.text(), &id]), 5);
    let (_bundle, _) = sleeping(&state, &id);
    check(&mut state.command(["exec", &id, "sh", "-c", script]), 5);
    assert_eq!(finish(&mut state.command(["exec", &id, "sh", "-c", "kill -SEGV $$"])).code, 128 + 11);
    let missing = finish(&mut state.command(["exec", &id, "no-such-program"]));
    assert_eq!(missing.code, 255);
    assert!(missing.err.contains("executable file not found in $PATH"), "{}", missing.err);
    assert!(missing.err.lines().count() == 1 && missing.out.is_empty());
    state.ok(["delete", "--force", &id]);
    assert!(state.ok(["list", "-q"]).is_empty());
}

#[test]
fn the_container_gets_the_callers_descriptors_and_no_other() {
    need!("busybox");
    let (state, id) = set_up();
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "for f in /proc/self/fd/*; do [ -e $f ] && readlink $f | sed s,^,${f##*/}:,; done; env | grep LISTEN || true",
    ]);
    // A shell opens descriptors 3 and 5 for us, closes what else it has, and calls airlock.
    let run = |options: &[&str], env: &[(&str, &str)]| {
        let own = state.command(["run"]);
        let mut line =
            String::from("exec 3</etc/hostname 5</etc/passwd 4<&- 6<&- 7<&- 8<&- 9<&-; exec \"$0\" \"$@\"");
        line.insert_str(0, "export LISTEN_PID=$$; ");
        let mut command = Command::new("sh");
        command.arg("-c").arg(&line).arg(own.get_program()).args(own.get_args());
        command.args(options).args(["--bundle", bundle.text(), &id]).env_remove("LISTEN_FDS");
        command.envs(env.iter().copied());
        let mut seen: Vec<String> = finish(&mut command).ok().lines().map(str::to_owned).collect();
        // The shell in the container opens its script's directory, and standard descriptors are ours.
        seen.retain(|l| !matches!(l.split(':').next(), Some("0" | "1" | "2")) && !l.ends_with(":/proc/1/fd"));
        seen
    };
    assert_eq!(run(&[], &[]), [""; 0]);
    let both = ["3:/etc/hostname", "5:/etc/passwd"];
    assert_eq!(run(&["--preserve-fds", "7"], &[]), both);
    assert_eq!(run(&["--preserve-fds", "1"], &[]), both[..1]);
    assert_eq!(run(&["--pass-fd", "5:17"], &[]), ["17:/etc/passwd"]);
    let listen = ["3:/etc/hostname", "LISTEN_FDS=1", "LISTEN_PID=1"];
    assert_eq!(run(&[], &[("LISTEN_FDS", "1")]), listen);
    let bad = state.fails(["run", "--pass-fd", "1000:9", "--bundle", bundle.text(), &id]);
    assert!(bad.contains("descriptor 1000 is not open"), "{bad}");
    assert!(state.ok(["list", "-q"]).is_empty());
}

#[test]
fn console_sockets_get_the_terminal() {
    need!("busybox");
    let (state, id) = set_up();
    let bundle = Bundle::with(&["sh", "-c", "stty size; read line; echo got $line"], |config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    });
    let talk = |socket: &FdSocket| {
        let message = socket.receive();
        assert!(message.text.starts_with("/dev/pts/"), "{:?}", message.text);
        let [master] = <[_; 1]>::try_from(message.fds).unwrap();
        let mut master = std::fs::File::from(master);
        master.write_all(b"hello\n").unwrap();
        let mut seen = String::new();
        let mut bytes = [0; 256];
        // EIO: nobody has the other end any more.
        while let Ok(n) = master.read(&mut bytes) {
            seen.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
        seen
    };
    let socket = FdSocket::new();
    state.detached(&["create", "--console-socket", socket.text(), "--bundle", bundle.text(), &id]);
    state.ok(["start", &id]);
    let seen = talk(&socket);
    assert!(seen.contains("33 77\r\n") && seen.contains("got hello\r\n"), "{seen:?}");
    state.ok(["delete", "--force", &id]);

    let (_bundle, _) = sleeping(&state, &id);
    let socket = FdSocket::new();
    let command = ["sh", "-c", "read line; echo got $line"];
    let mut args = vec!["exec", "-d", "-t", "--console-socket", socket.text(), &id];
    args.extend(command);
    state.detached(&args);
    assert!(talk(&socket).contains("got hello\r\n"));

    for bad in [
        &["create", "--bundle", bundle.text(), "x1"] as &[&str],
        &["run", "-d", "--bundle", bundle.text(), "x1"],
        &["run", "--console-socket", socket.text(), "--bundle", bundle.text(), "x1"],
        &["exec", "-d", "-t", &id, "true"],
        &["exec", "--console-socket", socket.text(), &id, "true"],
    ] {
        let error = state.fails(bad.iter().copied());
        assert!(error.contains("--console-socket"), "{bad:?}: {error}");
    }
    let missing =
        state.fails(["create", "--console-socket", "/nonexistent", "--bundle", bundle.text(), "x1"]);
    assert!(missing.contains("/nonexistent"), "{missing}");
    assert_eq!(state.ok(["list", "-q"]), format!("{id}\n"));
}

#[test]
fn a_terminal_is_relayed() {
    need!("busybox", "script");
    let (state, id) = set_up();
    let bundle = Bundle::with(&["sh", "-c", "stty size; tty; exit 6"], |config| {
        config["process"]["terminal"] = json!(true);
    });
    let ended = finish(&mut on_terminal(&state.command(["run", "--bundle", bundle.text(), &id])));
    // script(1) types an end of file of its own.
    let output = ended.out.replace("^@", "");
    assert_eq!((ended.code, output.as_str()), (6, "40 132\r\n/dev/pts/0\r\n"), "{}", ended.err);
    let (_bundle, _) = sleeping(&state, &id);
    let ended =
        finish(&mut on_terminal(&state.command(["exec", "-t", &id, "sh", "-c", "stty size; exit 7"])));
    // script(1) types an end of file of its own.
    let output = ended.out.replace("^@", "");
    assert_eq!((ended.code, output.as_str()), (7, "40 132\r\n"), "{}", ended.err);
}

/// A hook that appends its kind and its state to a file of the bundle.
fn hooks(kinds: &[&str], script: &str) -> impl FnOnce(&mut Value) {
    let all: serde_json::Map<String, Value> = kinds
        .iter()
        .map(|kind| {
            let script = script.replace("KIND", kind);
            (
                (*kind).to_owned(),
                json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}]),
            )
        })
        .collect();
    move |config| config["hooks"] = Value::Object(all)
}

#[test]
fn hooks_run_in_order_with_their_state() {
    need!("busybox");
    let (state, id) = set_up();
    let kinds = ["prestart", "createRuntime", "poststart", "poststop"];
    let bundle = Bundle::with(&["sleep", "1000"], hooks(&kinds, "echo \"KIND $(cat)\" >>log"));
    let log = bundle.path().join("log");
    let seen = || -> Vec<(String, Value)> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(kind, state)| (kind.to_owned(), serde_json::from_str(state).unwrap()))
            .collect()
    };
    let names = || seen().into_iter().map(|(kind, _)| kind).collect::<Vec<_>>();
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    assert_eq!(names(), kinds[..2]);
    let pid = state.state(&id)["pid"].clone();
    state.ok(["start", &id]);
    assert_eq!(names(), kinds[..3]);
    state.ok(["delete", "--force", &id]);
    assert_eq!(names(), kinds);
    for ((_, hook), status) in seen().into_iter().zip(["creating", "creating", "running", "stopped"]) {
        let expected = if status == "stopped" { &Value::Null } else { &pid };
        assert_eq!((&hook["status"], &hook["pid"], &hook["id"]), (&json!(status), expected, &json!(id)));
        assert_eq!(hook["bundle"], bundle.text());
    }
}

#[test]
fn a_failing_hook_undoes_what_it_belongs_to() {
    need!("busybox");
    let (state, id) = set_up();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let bundle = Bundle::with(&["true"], hooks(&[kind], "echo broken >&2; exit 1"));
        let error = finish(&mut state.command(["create", "--bundle", bundle.text(), &id])).fails();
        assert!(error.contains(kind) && error.contains("broken"), "{error}");
        assert!(state.ok(["list", "-q"]).is_empty());
        assert!(leaks::cgroups(&id).is_empty());
    }
    let two = |config: &mut Value| {
        let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        config["hooks"] =
            json!({"poststart": [hook("exit 4"), hook(": >second")], "poststop": [hook("exit 5")]});
    };
    let bundle = Bundle::with(&["sleep", "1000"], two);
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let error = state.fails(["start", &id]);
    assert!(error.contains("poststart hook #0") && error.contains("exit status 4"), "{error}");
    assert!(!bundle.path().join("second").exists());
    wait::until("the container is killed", || (state.status(&id) == "stopped").then_some(()));
    // Poststop failures do not keep a container from going.
    state.ok(["delete", &id]);
    assert!(state.ok(["list", "-q"]).is_empty());
}

#[test]
fn delete_knows_every_state() {
    need!("busybox");
    let (state, id) = set_up();
    assert!(state.fails(["delete", &id]).contains("container does not exist"));
    state.ok(["delete", "--force", &id]);
    let (bundle, pid) = sleeping(&state, &id);
    assert!(state.fails(["delete", &id]).contains("that is not stopped: running"));
    state.ok(["pause", &id]);
    assert!(state.fails(["delete", &id]).contains("that is not stopped: paused"));
    assert!(state.fails(["exec", &id, "true"]).contains("paused"));
    state.ok(["delete", "--force", &id]);
    assert_eq!(reap(pid), killed(pid, Signal::SIGKILL));

    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let again = state.fails(["create", "--bundle", bundle.text(), &id]);
    assert!(again.contains("container with given ID already exists"), "{again}");
    state.ok(["delete", &id]);

    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let loader = state.state(&id)["pid"].as_i64().unwrap() as i32;
    std::fs::write(state.root().join(&id).join("state.json"), "garbage").unwrap();
    assert!(state.fails(["delete", &id]).contains("damaged"));
    state.ok(["delete", "--force", &id]);
    wait::until("the sandbox has ended", || (!alive(loader)).then_some(()));

    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let loader = state.state(&id)["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(loader), Signal::SIGKILL).unwrap();
    wait::until("the container has stopped", || (state.status(&id) == "stopped").then_some(()));
    assert!(state.fails(["exec", &id, "true"]).contains("not running"));
    assert!(state.fails(["start", &id]).contains("has stopped"));
    state.ok(["delete", &id]);
    assert!(leaks::cgroups(&id).is_empty());
    assert_eq!(std::fs::read_dir(state.root()).unwrap().count(), 0);
}

#[test]
fn a_create_that_hangs_can_be_deleted() {
    need!("busybox");
    let (state, id) = set_up();
    let bundle = Bundle::with(&["true"], hooks(&["prestart"], ": >running; exec sleep 999"));
    let mut create = state.command(["create", "--bundle", bundle.text(), &id]);
    let mut create = create.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait::until("the hook runs", || bundle.path().join("running").exists().then_some(()));
    assert_eq!(state.status(&id), "creating");
    create.kill().unwrap();
    create.wait().unwrap();
    assert_eq!(state.status(&id), "stopped");
    // The same id can be used at once: the remains are cleared away.
    let (_bundle, _) = sleeping(&state, &id);
    state.ok(["delete", "--force", &id]);
    assert!(leaks::cgroups(&id).is_empty());
    for pid in processes_with("sleep 999") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[test]
fn one_of_many_creates_of_an_id_wins() {
    need!("busybox");
    let (state, id) = set_up();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let ended: Vec<_> = std::thread::scope(|scope| {
        let create = || finish(&mut state.command(["create", "--bundle", bundle.text(), &id]));
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let (won, lost): (Vec<_>, Vec<_>) = ended.into_iter().partition(|e| e.code == 0);
    assert_eq!((won.len(), lost.len()), (1, 5));
    assert!(lost.iter().all(|e| e.err.contains("already exists")), "{lost:?}");
    assert_eq!(state.status(&id), "created");
    let deleted: Vec<_> = std::thread::scope(|scope| {
        let delete = || finish(&mut state.command(["delete", "--force", &id])).code;
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(delete)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(deleted, [0; 4]);
    assert_eq!(std::fs::read_dir(state.root()).unwrap().count(), 0);
}

#[test]
fn a_pod_has_containers_that_share_and_end_with_it() {
    need!("busybox");
    let (state, pod) = set_up();
    let place = |kind: &str| {
        let (kind, pod) = (kind.to_owned(), pod.clone());
        move |config: &mut Value| {
            config["annotations"] =
                json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": pod});
        }
    };
    let missing = Bundle::with(&["true"], place("container"));
    assert!(state.fails(["run", "--bundle", missing.text(), "x1"]).contains("does not exist"));

    let root = Bundle::with(&["sleep", "1000"], place("sandbox"));
    state.detached(&["run", "-d", "--bundle", root.text(), &pod]);
    let names = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; echo $$";
    let of_root: Vec<String> =
        state.ok(["exec", &pod, "sh", "-c", names]).lines().map(str::to_owned).collect();
    let one = Bundle::with(&["sh", "-c", &format!("{names}; exit 8")], place("container"));
    let id = format!("{pod}-a");
    let ran = finish(&mut state.command(["run", "--bundle", one.text(), &id]));
    let of_one: Vec<&str> = ran.out.lines().collect();
    assert_eq!(ran.code, 8, "{}", ran.err);
    assert_eq!(of_one[..3], of_root[..3]);
    assert_ne!(of_one[3], of_root[3]);
    assert_ne!(of_one[4], of_root[4]);
    assert_eq!(of_one[5], "1");
    assert_eq!(state.ok(["list", "-q"]), format!("{pod}\n"));

    // Detached: a proxy stands for it, and tells its end to whoever asks later.
    let exits = Bundle::with(&["sh", "-c", "exit 9"], place("container"));
    let pid_file = exits.path().join("pid");
    state.detached(&["create", "--pid-file", pid_file.to_str().unwrap(), "--bundle", exits.text(), &id]);
    let pid = pid_in(&pid_file);
    wait::until("it is named", || {
        (std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "airlock-proxy\n").then_some(())
    });
    // Of all that the command had open, it holds its connections and the place for the container's last words.
    let held = leaks::descriptors(pid);
    let known = |d: &String| ["socket:", "/dev/null", "signalfd", "/exit.json"].iter().any(|k| d.contains(k));
    assert!(held.iter().all(known), "{held:?}");
    state.ok(["start", &id]);
    assert_eq!(reap(pid), exited(pid, 9));
    assert_eq!(state.status(&id), "stopped");
    state.ok(["delete", &id]);

    let sleeps = Bundle::with(&["sleep", "1000"], place("container"));
    let pid_file = sleeps.path().join("pid");
    state.detached(&["run", "-d", "--pid-file", pid_file.to_str().unwrap(), "--bundle", sleeps.text(), &id]);
    let pid = pid_in(&pid_file);
    state.ok(["delete", "--force", &pod]);
    assert_eq!(reap(pid), killed(pid, Signal::SIGKILL));
    assert_eq!(state.status(&id), "stopped");
    state.ok(["delete", &id]);
    assert!(leaks::cgroups(&pod).is_empty(), "{:?}", leaks::cgroups(&pod));
}

#[test]
fn do_runs_a_command_over_the_hosts_files() {
    need!("busybox");
    let (state, _) = set_up();
    let marker = format!("/etc/{}", unique("airlock-do"));
    let script = format!("echo x >{marker} && cat {marker}; cat /proc/sys/kernel/ostype; exit 4");
    let ended = finish(&mut state.command(["do", "/bin/sh", "-c", &script]));
    assert_eq!((ended.code, ended.out.as_str()), (4, "x\nLinux\n"), "{}", ended.err);
    assert!(!Path::new(&marker).exists());
    // The caller's folder is there, also where the sandbox has none of the host's.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "here\n").unwrap();
    let ended = finish(state.command(["do", "cat", "file"]).current_dir(folder.path()));
    assert_eq!((ended.code, ended.out.as_str()), (0, "here\n"), "{}", ended.err);
    let guest = format!("{}:/mnt/x", folder.path().display());
    finish(&mut state.command(["do", "--volume", &guest, "sh", "-c", "echo new >/mnt/x/file"])).ok();
    assert_eq!(std::fs::read_to_string(folder.path().join("file")).unwrap(), "new\n");
    let read_only = format!("{guest}:ro");
    assert_ne!(finish(&mut state.command(["do", "--volume", &read_only, "touch", "/mnt/x/file"])).code, 0);
    let own = finish(&mut state.command(["do", "readlink", "/proc/self/ns/net"])).ok();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(Path::new(own.trim()), host);
    let shared =
        finish(&mut state.command(["do", "--network", "host", "readlink", "/proc/self/ns/net"])).ok();
    assert_eq!(Path::new(shared.trim()), host);
    assert_eq!(std::fs::read_dir(state.root()).unwrap().count(), 0);
}
