//! The library's client, as a program with threads embeds it: every operation of gVisor's `Runsc` type.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock::client::{Airlock, Event, KillTarget, WaitTarget};
use airlock::container::{CreateOptions, DeleteOptions, ExecOptions, Executed, Stdio};
use airlock::podspec;
use airlock::sandbox::SandboxOptions;
use airlock::state::{Status, exit_code};
use airlock_tests::{Bundle, State, leaks, need, unique, wait};
use airlock_wire::error::Kind;
use std::io::Read;
use std::time::Duration;

const FORCE: DeleteOptions = DeleteOptions { force: true };

fn sandbox() -> SandboxOptions {
    SandboxOptions { airlock_binary: Some(airlock_tests::airlock().to_owned()) }
}

fn options() -> CreateOptions {
    CreateOptions { sandbox: sandbox(), ..CreateOptions::default() }
}

/// Stdio whose output comes back through the reader.
fn piped() -> (std::io::PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().unwrap();
    let [stdin, ..] = Stdio::null().unwrap().fds;
    (reader, Stdio { fds: [stdin, writer.try_clone().unwrap().into(), writer.into()] })
}

fn text(mut reader: std::io::PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

fn process(args: &[&str]) -> ExecOptions {
    let process = serde_json::json!({
        "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 }
    });
    ExecOptions { process: process.to_string(), sandbox: sandbox(), ..ExecOptions::default() }
}

#[test]
fn a_container_lives_and_is_watched() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("lib"));
    let airlock = Airlock::open(&state.root()).unwrap();
    assert!(airlock.list().unwrap().is_empty());
    airlock.create(&id, &podspec::Bundle::load(bundle.path()).unwrap(), options()).unwrap();
    let created = airlock.state(&id).unwrap();
    assert_eq!((created.status, created.bundle.as_path()), (Status::Created, bundle.path()));
    assert!(created.pid > 0);
    airlock.start(&id).unwrap();
    assert_eq!(airlock.list().unwrap(), [airlock.state(&id).unwrap()]);
    assert_eq!(airlock.state(&id).unwrap().status, Status::Running);

    let pids = airlock.ps(&id).unwrap();
    let top = airlock.top(&id).unwrap();
    assert_eq!((pids.len(), top.processes.len()), (1, 1));
    assert_eq!(top.processes[0][1], pids[0].to_string());
    assert_eq!(top.processes[0].last().unwrap(), "sleep 1000");

    let (reader, stdio) = piped();
    let echoed =
        airlock.exec(&id, ExecOptions { stdio: Some(stdio), ..process(&["echo", "from-exec"]) }).unwrap();
    assert!(matches!(echoed, Executed::Ended(0)), "{echoed:?}");
    assert_eq!(text(reader), "from-exec\n");
    let Executed::Ended(status) = airlock.exec(&id, process(&["sh", "-c", "exit 7"])).unwrap() else {
        panic!()
    };
    assert_eq!(exit_code(status), 7);
    let error = airlock.exec(&id, process(&["no-such-program"])).unwrap_err();
    assert!(error.message.contains("executable file not found in"), "{error}");

    let stats = airlock.stats(&id).unwrap();
    assert!(stats.cgroup.pids.current >= 1);
    assert!(stats.network_interfaces.iter().any(|i| i.name == "lo"));
    let mut events = airlock.events(&id, Duration::from_millis(20)).unwrap();
    for _ in 0..3 {
        assert!(matches!(events.next().unwrap().unwrap(), Event::Stats(_)));
    }

    airlock.pause(&id).unwrap();
    assert_eq!(airlock.state(&id).unwrap().status, Status::Paused);
    assert_eq!(airlock.pause(&id).unwrap_err().kind, Kind::InvalidState);
    airlock.resume(&id).unwrap();
    assert!(airlock.resume(&id).unwrap_err().message.contains("not paused"));

    airlock.kill(&id, 0, KillTarget::Init).unwrap();
    assert!(airlock.kill(&id, 15, KillTarget::Pid(9999)).is_err());
    let error = airlock.delete(&id, DeleteOptions::default()).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidState, "{error}");
    airlock.kill(&id, 9, KillTarget::All).unwrap();
    for _ in 0..2 {
        assert_eq!(airlock.wait(&id, WaitTarget::Init).unwrap(), 137);
    }
    let rest: Vec<Event> = events.map(Result::unwrap).collect();
    let (last, before) = rest.split_last().unwrap();
    assert!(before.iter().all(|e| matches!(e, Event::Stats(_))), "{before:?}");
    let Event::Exit(Some(record)) = last else { panic!("the stream ends with the container: {last:?}") };
    assert_eq!((record.id.as_str(), record.status), (id.as_str(), 9));
    assert_eq!(airlock.state(&id).unwrap().pid, 0);
    assert!(airlock.kill(&id, 9, KillTarget::Init).unwrap_err().message.contains("container not running"));
    assert!(airlock.ps(&id).unwrap().is_empty());
    airlock.delete(&id, DeleteOptions::default()).unwrap();
    let error = airlock.state(&id).unwrap_err();
    assert!(error.message.contains("container does not exist"), "{error}");
    airlock.delete(&id, FORCE).unwrap();
    assert!(leaks::cgroups(&id).is_empty());
    // It was our child, and is no zombie.
    assert!(!std::path::Path::new(&format!("/proc/{}", created.pid)).exists());
}

#[test]
fn run_gives_the_exit_code_and_leaves_nothing() {
    need!("busybox");
    let (state, id) = (State::new(), unique("lib"));
    let airlock = Airlock::open(&state.root()).unwrap();
    for (script, code) in [("exit 3", 3), ("exit 255", 255), ("true", 0)] {
        let bundle = Bundle::new(&["sh", "-c", script]);
        let loaded = podspec::Bundle::load(bundle.path()).unwrap();
        assert_eq!(airlock.run(&id, &loaded, options()).unwrap(), code, "{script}");
        assert!(airlock.ids().unwrap().is_empty());
        assert!(leaks::cgroups(&id).is_empty());
    }
    let bundle = Bundle::new(&["no-such-program"]);
    let error = airlock.run(&id, &podspec::Bundle::load(bundle.path()).unwrap(), options()).unwrap_err();
    assert!(error.message.contains("executable file not found in"), "{error}");
    assert!(airlock.ids().unwrap().is_empty());
}

#[test]
fn a_pod_is_made_waited_for_and_removed() {
    need!("busybox");
    let (state, pod, task) = (State::new(), unique("pod"), unique("task"));
    let airlock = Airlock::open(&state.root()).unwrap();
    let kind = "io.kubernetes.cri.container-type";
    let outer =
        Bundle::with(&["sleep", "1000"], |c| c["annotations"] = serde_json::json!({ kind: "sandbox" }));
    let inner = Bundle::with(&["sh", "-c", "echo in-pod; exit 4"], |c| {
        c["annotations"] = serde_json::json!({ kind: "container", "io.kubernetes.cri.sandbox-id": pod });
    });
    airlock.create(&pod, &podspec::Bundle::load(outer.path()).unwrap(), options()).unwrap();
    airlock.start(&pod).unwrap();
    let (reader, stdio) = piped();
    let with_stdio = CreateOptions { stdio: Some(stdio), ..options() };
    airlock.create(&task, &podspec::Bundle::load(inner.path()).unwrap(), with_stdio).unwrap();
    let proxy = airlock.state(&task).unwrap().pid;
    assert_ne!(proxy, airlock.state(&pod).unwrap().pid);
    airlock.start(&task).unwrap();
    assert_eq!(airlock.wait(&task, WaitTarget::Init).unwrap(), 4);
    assert_eq!(airlock.wait(&task, WaitTarget::Init).unwrap(), 4);
    assert_eq!(text(reader), "in-pod\n");
    airlock.delete(&task, DeleteOptions::default()).unwrap();
    assert_eq!(airlock.state(&pod).unwrap().status, Status::Running);
    airlock.delete(&pod, FORCE).unwrap();
    assert!(airlock.ids().unwrap().is_empty());
    assert!(leaks::cgroups(&pod).is_empty() && leaks::cgroups(&task).is_empty());
}

#[test]
fn out_of_memory_is_an_event() {
    need!("busybox");
    let (state, id) = (State::new(), unique("oom"));
    let airlock = Airlock::open(&state.root()).unwrap();
    // The reader of the FIFO decides when memory runs out: not before somebody watches.
    let bundle =
        Bundle::with(&["sh", "-c", "cat /tmp/go; exec dd if=/dev/zero of=/dev/null bs=300M count=10"], |c| {
            c["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 64 << 20 });
        });
    let go = bundle.rootfs().join("tmp/go");
    nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    airlock.create(&id, &podspec::Bundle::load(bundle.path()).unwrap(), options()).unwrap();
    airlock.start(&id).unwrap();
    if airlock.stats(&id).unwrap().cgroup.memory.usage.limit != 64 << 20 {
        airlock_tests::skip!("needs the memory controller");
    }
    let mut events = airlock.events(&id, Duration::from_secs(1000)).unwrap();
    assert!(matches!(events.next().unwrap().unwrap(), Event::Stats(_)));
    wait::until("the container opens the FIFO", || {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&go).ok()
    });
    let rest: Vec<Event> = events.map(Result::unwrap).collect();
    // The kernel may have had to kill more than once.
    let Some((Event::Exit(Some(record)), [Event::Oom, ..])) = rest.split_last() else { panic!("{rest:?}") };
    assert!(record.reason == "oom", "{record:?}");
    assert_eq!(airlock.wait(&id, WaitTarget::Init).unwrap(), 137);
    airlock.delete(&id, FORCE).unwrap();
}

#[test]
fn a_killed_sandbox_is_a_stopped_container() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("lib"));
    let airlock = Airlock::open(&state.root()).unwrap();
    airlock.create(&id, &podspec::Bundle::load(bundle.path()).unwrap(), options()).unwrap();
    airlock.start(&id).unwrap();
    let loader = airlock.state(&id).unwrap().pid;
    let waited = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| airlock.wait(&id, WaitTarget::Init));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(loader), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        waiter.join().unwrap()
    });
    assert_eq!(waited.unwrap(), 137);
    assert_eq!(airlock.state(&id).unwrap().status, Status::Stopped);
    assert!(airlock.stats(&id).unwrap_err().message.contains("container not running"));
    airlock.delete(&id, DeleteOptions::default()).unwrap();
}

#[test]
fn damaged_states_are_listed_and_deleted() {
    need!("busybox");
    let (state, id) = (State::new(), unique("damaged"));
    let airlock = Airlock::open(&state.root()).unwrap();
    std::fs::create_dir(state.root().join(&id)).unwrap();
    for text in ["", "{}", "[1,2", "\u{0}"] {
        std::fs::write(state.root().join(&id).join("state.json"), text).unwrap();
        let listed = airlock.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].id.as_str(), listed[0].status, listed[0].pid),
            (id.as_str(), Status::Stopped, 0)
        );
        let error = airlock.state(&id).unwrap_err();
        assert!(error.message.contains("delete --force"), "{error}");
    }
    airlock.delete(&id, FORCE).unwrap();
    assert!(airlock.list().unwrap().is_empty());
}
