//! Trace sessions: what is told, to whom, and what is refused.
use super::consumer::{Consumer, Told};
use super::*;
use airlock_tests::interop::RunscView;
use airlock_tests::oci::{BASE, chown_all, in_user_namespace};
use airlock_tests::urpc::Caller;
use airlock_tests::{need, skip, wait};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

const CREATE: &str = "containerManager.CreateTraceSession";
const DELETE: &str = "containerManager.DeleteTraceSession";
const LIST: &str = "containerManager.ListTraceSessions";

/// Ends the test where the kernel does not let anybody trace.
macro_rules! need_tracing {
    () => {
        if let Some(why) = super::untraceable() {
            skip!("{why}");
        }
    };
}

/// A session to a file of JSON lines.
struct Recorded {
    dir: tempfile::TempDir,
}

impl Recorded {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self, points: Value) -> String {
        let file = self.dir.path().join("events");
        let session = json!({"trace_session": {
            "name": "Default", "points": points, "sinks": [{"name": "file", "config": {"path": file}}],
        }});
        let path = self.dir.path().join("config.json");
        std::fs::write(&path, session.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("events")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }

    fn of(&self, point: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|l| l["point"] == point).collect()
    }
}

/// Runs `script` in a sandbox that is traced from the beginning, to its end; what was told.
fn traced(script: &str, points: Value) -> Recorded {
    let (state, id, bundle, recorded) =
        (State::new(), unique("trace"), Bundle::new(&["sh", "-c", script]), Recorded::new());
    let config = recorded.config(points);
    state.ok(["run", "--pod-init-config", &config, "--bundle", bundle.text(), &id]);
    recorded
}

fn find<'a>(lines: &'a [Value], what: &str, test: impl Fn(&Value) -> bool) -> &'a Value {
    lines.iter().find(|l| test(l)).unwrap_or_else(|| panic!("no {what} in {lines:#?}"))
}

#[test]
fn a_life_is_told_from_its_start_to_its_end() {
    need!("busybox");
    need_tracing!();
    let context = json!([
        "time",
        "thread_id",
        "task_start_time",
        "group_id",
        "thread_group_start_time",
        "container_id",
        "credentials",
        "cwd",
        "process_name",
        "parent_thread_group_id",
        "is_exec_session"
    ]);
    let without_cwd: Vec<_> = context
        .as_array()
        .unwrap()
        .iter()
        .filter(|f| !["cwd", "is_exec_session"].contains(&f.as_str().unwrap()))
        .collect();
    let recorded = traced(
        "cd /tmp; X=y sleep 0; (exit 3); true",
        json!([
            {"name": "container/start", "optional_fields": ["env"], "context_fields": context},
            {"name": "sentry/clone", "context_fields": context},
            {"name": "sentry/execve", "optional_fields": ["binary_info", "fd_info"], "context_fields": context},
            {"name": "sentry/task_exit", "context_fields": context},
            {"name": "sentry/exit_notify_parent", "context_fields": without_cwd},
        ]),
    );
    let lines = recorded.lines();
    assert_eq!(lines[0]["point"], "container/start", "{lines:#?}");
    assert_eq!(lines[0]["args"][0], "sh");
    assert!(lines[0]["env"].as_array().unwrap().iter().any(|e| e.as_str().unwrap().starts_with("PATH=")));
    let init = lines[0]["context_data"]["thread_id"].as_i64().unwrap();
    assert_eq!(lines[0]["context_data"]["is_exec_session"], false);

    let sleep = find(&lines, "execve of sleep", |l| l["point"] == "sentry/execve" && l["argv"][0] == "sleep");
    assert_eq!(sleep["argv"], json!(["sleep", "0"]));
    assert_eq!(sleep["binary_path"], "/bin/busybox");
    // busybox executes itself.
    assert_eq!(sleep["execfn"], "/proc/self/exe");
    assert!(sleep["env"].as_array().unwrap().contains(&json!("X=y")), "{sleep}");
    assert_eq!(sleep["binary_mode"].as_u64().unwrap() & 0o170_111, 0o100_111);
    assert!(sleep["binary_size"].as_u64().unwrap() > 100_000 && sleep["binary_ino"].as_u64().unwrap() > 0);
    assert!(sleep["binary_ctime"]["sec"].as_u64().unwrap() > 1_600_000_000, "{sleep}");
    assert!(sleep["binary_ctime"]["nsec"].as_u64().unwrap() < 1_000_000_000, "{sleep}");
    assert_eq!(sleep["stdin"]["path"], "/dev/null");
    let of = &sleep["context_data"];
    assert_eq!((&of["cwd"], &of["process_name"]), (&json!("/tmp"), &json!("exe")));
    assert_eq!(of["parent_thread_group_id"], init);
    assert_eq!(of["credentials"]["effective_uid"], 0);
    assert!(of["container_id"].as_str().unwrap().starts_with("trace-"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64;
    for field in ["time_ns", "thread_start_time_ns", "thread_group_start_time_ns"] {
        let age = now - of[field].as_i64().unwrap();
        assert!((-1_000_000_000..600_000_000_000).contains(&age), "{field}: {age}");
    }
    let pid = &of["thread_id"];
    let made =
        find(&lines, "clone of sleep", |l| l["point"] == "sentry/clone" && l["created_thread_id"] == *pid);
    assert_eq!(made["created_thread_group_id"], *pid);
    assert_eq!(made["created_thread_start_time_ns"], of["thread_start_time_ns"]);
    assert_ne!(made["flags"].as_u64().unwrap() & SIGCHLD, 0, "{made}");

    let failed = find(&lines, "end with 3", |l| l["point"] == "sentry/task_exit" && l["exit_status"] == 768);
    let told = find(&lines, "word to the parent", |l| {
        l["point"] == "sentry/exit_notify_parent" && l["exit_status"] == 768
    });
    assert_eq!(failed["context_data"]["thread_id"], told["context_data"]["thread_id"]);
    // The last end is that of the container itself, of which nobody is told.
    assert!(
        lines.iter().any(|l| l["point"] == "sentry/task_exit" && l["context_data"]["thread_id"] == init),
        "{lines:#?}"
    );
    assert!(
        !lines
            .iter()
            .any(|l| l["point"] == "sentry/exit_notify_parent" && l["context_data"]["thread_id"] == init)
    );
    // Nothing of airlock's own doing.
    assert!(
        !lines.iter().any(|l| l["context_data"]["process_name"].as_str().unwrap_or("").contains("airlock")),
        "{lines:#?}"
    );
}

const SIGCHLD: u64 = 17;

#[test]
fn calls_are_told_with_what_their_arguments_point_to() {
    need!("busybox");
    need_tracing!();
    let recorded = traced(
        "cd /tmp; echo hello > out; cat out; cat /nowhere; mkdir sub; sleep 0.01; nc 127.0.0.1 9; true",
        json!([
            {"name": "syscall/openat/enter", "context_fields": ["process_name", "cwd"]},
            {"name": "syscall/open/enter", "context_fields": ["process_name"]},
            {"name": "syscall/open/exit"}, {"name": "syscall/openat/exit"},
            {"name": "syscall/write/exit", "optional_fields": ["fd_path"]},
            {"name": "syscall/execve/enter", "optional_fields": ["envv"]},
            {"name": "syscall/socket/exit"},
            {"name": "syscall/connect/exit", "optional_fields": ["fd_path"]},
            {"name": "syscall/dup2/exit", "optional_fields": ["fd_path"]},
            {"name": "syscall/sysno/83/enter"}, {"name": "syscall/sysno/83/exit"},
            {"name": "sentry/mmap"},
        ]),
    );
    let lines = recorded.lines();
    let is = |l: &Value, names: [&str; 2]| names.iter().any(|n| l["point"] == *n);
    find(&lines, "opening of out", |l| {
        is(l, ["syscall/open/enter", "syscall/openat/enter"])
            && l["pathname"] == "out"
            && l["context_data"]["process_name"] == "sh"
    });
    let missing = find(&lines, "failed opening", |l| {
        is(l, ["syscall/open/exit", "syscall/openat/exit"]) && l["pathname"] == "/nowhere"
    });
    assert_eq!(missing["exit"], json!({"result": -2, "errorno": 2}));
    let hello = find(&lines, "writing of hello", |l| {
        l["point"] == "syscall/write/exit" && l["fd_path"] == "/tmp/out"
    });
    assert_eq!((&hello["exit"]["result"], &hello["count"], &hello["fd"]), (&json!(6), &json!(6), &json!(1)));
    let exec = find(&lines, "execve of cat", |l| {
        l["point"] == "syscall/execve/enter" && l["argv"] == json!(["cat", "out"])
    });
    assert!(
        exec["envv"].as_array().unwrap().iter().any(|e| e.as_str().unwrap().starts_with("PATH=")),
        "{exec}"
    );
    let connect = find(&lines, "connect", |l| l["point"] == "syscall/connect/exit");
    // sockaddr_in: AF_INET, port 9, 127.0.0.1.
    assert!(connect["address"].as_str().unwrap().starts_with("020000097f000001"), "{connect}");
    assert!(connect["fd_path"].as_str().unwrap().starts_with("socket:["), "{connect}");
    assert_eq!(find(&lines, "socket", |l| l["point"] == "syscall/socket/exit")["domain"], 2);
    if cfg!(target_arch = "x86_64") {
        // mkdir(2) by number.
        let raw = find(&lines, "mkdir", |l| l["point"] == "syscall/sysno/83/exit");
        assert_eq!(
            (&raw["sysno"], &raw["exit"]["result"], &raw["arg2"]),
            (&json!(83), &json!(0), &json!(0o777))
        );
        assert_eq!(recorded.of("syscall/sysno/83/enter").len(), 1);
    }
    let mapped = find(&lines, "mapping of a program", |l| l["point"] == "sentry/mmap");
    assert_eq!((&mapped["mapped_path"], &mapped["is_initial_mmap"]), (&json!("/bin/busybox"), &json!(true)));
}

#[test]
fn executed_files_are_hashed() {
    need!("busybox", "sha256sum", "sha1sum");
    need_tracing!();
    // The copy has ended and is gone when it is told, or not: in both cases no other file's hash is told for it.
    let script =
        "sleep 0; cp /bin/busybox /tmp/sleep; echo x >> /tmp/sleep; /tmp/sleep 0.2; /tmp/sleep 0; sleep 0";
    let fields = json!(["binary_info", "binary_sha256", "binary_sha1"]);
    let recorded = traced(script, json!([{"name": "sentry/execve", "optional_fields": fields}]));
    let sum = |tool: &str| {
        let busybox = airlock_tests::which("busybox").unwrap();
        let out = std::process::Command::new(tool).arg(busybox).output().unwrap().stdout;
        String::from_utf8(out).unwrap().split_ascii_whitespace().next().unwrap().to_owned()
    };
    let (sha256, sha1) = (sum("sha256sum"), sum("sha1sum"));
    let lines = recorded.of("sentry/execve");
    let of = |path: &str| lines.iter().filter(|l| l["binary_path"] == path).collect::<Vec<_>>();
    for line in of("/bin/busybox") {
        assert_eq!((&line["binary_sha256"], &line["binary_sha1"]), (&json!(sha256), &json!(sha1)), "{line}");
    }
    let copy = of("/tmp/sleep");
    assert_eq!(copy.len(), 2, "{lines:#?}");
    let hash = copy[0]["binary_sha256"].as_str().unwrap_or_else(|| panic!("{copy:#?}"));
    assert!(hash.len() == 64 && hash != sha256);
    assert_eq!(copy[1]["binary_sha256"], hash);
}

#[test]
fn who_is_at_the_other_end_of_a_pipe_is_told() {
    need!("busybox");
    need_tracing!();
    let context =
        json!(["thread_id", "process_name", "credentials", "container_id", "parent_thread_group_id", "cwd"]);
    let recorded = traced(
        "cd /tmp; (exec sleep 2) | (exec cat)",
        json!([{"name": "sentry/execve", "optional_fields": ["pipe_proc_info"], "context_fields": context}]),
    );
    let lines = recorded.of("sentry/execve");
    let of = |name: &str| find(&lines, name, |l| l["argv"][0] == name);
    let (sleep, cat) = (of("sleep"), of("cat"));
    let other = &cat["pipe_input_proc"]["context_data"];
    assert_eq!(other["thread_id"], sleep["context_data"]["thread_id"], "{cat:#}");
    for field in ["container_id", "credentials", "parent_thread_group_id", "cwd"] {
        assert_eq!(other[field], cat["context_data"][field], "{field} of {cat:#}");
    }
    // It may be told before there is a cat: then the shell has the end.
    let reader = &sleep["pipe_output_proc"]["context_data"]["thread_id"];
    let shell = &sleep["context_data"]["parent_thread_group_id"];
    assert!([&cat["context_data"]["thread_id"], shell].contains(&reader), "{sleep:#}");
    assert!(cat.get("pipe_output_proc").is_none() && sleep.get("pipe_input_proc").is_none());
}

#[test]
fn sockets_are_told_with_their_addresses() {
    need!("busybox", "python3");
    need_tracing!();
    let script = "import os, socket, subprocess
for family, address in (socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1'):
    server = socket.create_server((address, 4242), family=family)
    client = socket.create_connection((address, 4242))
    peer, _ = server.accept()
    subprocess.run(['/bin/true'], stdin=peer, stdout=server)
    server.close()
subprocess.run(['/bin/true'], stdin=socket.socketpair()[0])";
    let (state, id, recorded) = (State::new(), unique("trace"), Recorded::new());
    let bundle = airlock_tests::programs::host_bundle(&["python3", "-c", script], |_| {});
    let config = recorded.config(json!([{"name": "sentry/execve", "optional_fields": ["fd_info"]}]));
    state.ok(["run", "--pod-init-config", &config, "--bundle", bundle.text(), &id]);
    let lines = recorded.of("sentry/execve");
    let trues: Vec<_> = lines.iter().filter(|l| l["argv"] == json!(["/bin/true"])).collect();
    assert_eq!(trues.len(), 3, "{lines:#?}");
    for (line, family, ip) in [(trues[0], 2, "7f000001"), (trues[1], 10, "00000000000000000000000000000001")]
    {
        let (peer, server) = (&line["stdin"]["socket"], &line["stdout"]["socket"]);
        assert_eq!(peer["local"], json!({"family": family, "ip": ip, "port": 4242}), "{line:#}");
        assert_eq!((&peer["family"], &peer["remote"]["ip"]), (&json!(family), &json!(ip)));
        assert!(peer["remote"]["port"].as_u64().unwrap() > 1024);
        assert_eq!((&server["local"]["port"], &server["remote"]["port"]), (&json!(4242), &json!(0)));
        assert!(line["stderr"].get("socket").is_none());
    }
    assert_eq!(trues[2]["stdin"]["socket"], json!({"family": 1}));
}

#[test]
fn a_sandbox_in_a_user_namespace_refuses_sessions_by_name() {
    need!("busybox");
    let bundle = Bundle::with(&["sleep", "1000"], in_user_namespace);
    chown_all(&bundle.rootfs(), BASE);
    let sandbox = Sandbox::of(bundle);
    let session =
        json!({"name": "Default", "points": [{"name": "sentry/clone"}], "sinks": [{"name": "null"}]});
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, session.to_string()).unwrap();
    let error = sandbox.state.fails(["trace", "create", "--config", config.to_str().unwrap(), &sandbox.id]);
    assert!(error.contains("in the initial user namespace"), "{error}");
    assert_eq!(sandbox.state.ok(["trace", "list", &sandbox.id]), "SESSIONS (0)\n");
    assert_eq!(sandbox.state.ok(["exec", &sandbox.id, "echo", "on"]), "on\n");
}

#[test]
fn a_consumer_of_gvisors_is_served() {
    need!("busybox");
    need_tracing!();
    let sandbox = Sandbox::start(&["sleep", "1000"]);
    let consumer = Consumer::new();
    let config = consumer.config(
        json!([{"name": "sentry/execve", "context_fields": ["container_id", "is_exec_session", "thread_id"]},
               {"name": "sentry/task_exit"}]),
        json!({"retries": 3, "backoff": "25us"}),
    );
    let state = &sandbox.state;
    assert_eq!(
        state.ok(["trace", "create", "--config", &config, &sandbox.id]),
        "Trace session \"Default\" created.\n"
    );
    let mut peer = consumer.accept();
    assert_eq!(state.run(["exec", &sandbox.id, "sh", "-c", "echo é; exit 5"]).status.code(), Some(5));
    let told: Vec<Told> = (0..2).map(|_| peer.receive().unwrap()).collect();
    assert_eq!((told[0].kind, told[1].kind), (3, 5));
    assert_eq!(told[0].texts(3), ["sh", "-c", "echo é; exit 5"]);
    assert_eq!(told[0].text(2), "/bin/busybox");
    let context = told[0].message(1);
    assert_eq!((context.text(6), context.number(11)), (sandbox.id.clone(), Some(1)), "an exec session");
    assert!(context.number(2).unwrap() > 2);
    assert_eq!((told[1].number(2), told[1].dropped), (Some(5 << 8), 0));

    let already = state.fails(["trace", "create", "--config", &config, &sandbox.id]);
    assert!(
        already.contains("creating session: creating trace session: session \"Default\" already exists"),
        "{already}"
    );
    let listed = state.ok(["trace", "list", &sandbox.id]);
    assert_eq!(listed, "SESSIONS (1)\n\"Default\"\n\tSink: \"remote\", dropped: 0\n");
    // Another takes its place, and its peer hears the end.
    let other = Consumer::new();
    let config = other.config(json!([{"name": "sentry/clone"}]), json!({}));
    state.ok(["trace", "create", "--force", "--config", &config, &sandbox.id]);
    let mut second = other.accept();
    assert!(peer.receive().is_none());
    assert_eq!(
        state.ok(["trace", "delete", "--name", "Default", &sandbox.id]),
        "Trace session \"Default\" deleted.\n"
    );
    let gone = state.fails(["trace", "delete", "--name", "Default", &sandbox.id]);
    assert!(
        gone.contains("deleting session: deleting trace session: session \"Default\" not found"),
        "{gone}"
    );
    assert_eq!(state.ok(["trace", "list", &sandbox.id]), "SESSIONS (0)\n");
    assert!(second.receive().is_none());
}

#[test]
fn a_consumer_that_does_not_read_loses_events_and_nobody_else_does() {
    need!("busybox");
    need_tracing!();
    let sandbox = Sandbox::start(&["sleep", "1000"]);
    let consumer = Consumer::new();
    let config =
        consumer.config(json!([{"name": "syscall/sysno/39/enter"}, {"name": "sentry/clone"}]), json!({}));
    sandbox.state.ok(["trace", "create", "--config", &config, &sandbox.id]);
    let mut peer = consumer.accept();
    let dropped = || {
        let list = Caller::json(&sandbox.state.control_socket(&sandbox.id)).ok(LIST, &Value::Null, &[]);
        list[0]["sinks"][0]["status"]["DroppedCount"].as_u64().unwrap()
    };
    let many = || {
        sandbox.state.ok([
            "exec",
            &sandbox.id,
            "sh",
            "-c",
            "i=0; while [ $i -lt 400 ]; do i=$((i + 1)); (:); done; echo went on",
        ])
    };
    let lost = wait::until("a full socket", || {
        assert_eq!(many(), "went on\n");
        Some(dropped()).filter(|n| *n > 0)
    });
    // It reads again: what was lost is told with what comes.
    while peer.try_receive().is_some() {}
    let told = wait::until("an event", || {
        sandbox.state.ok(["exec", &sandbox.id, "sh", "-c", "(:); (:)"]);
        peer.try_receive()
    });
    assert!(u64::from(told.dropped) >= lost, "{} of {lost}", told.dropped);
    // It vanishes: the sandbox goes on, and counts.
    drop(peer);
    let before = dropped();
    assert_eq!(many(), "went on\n");
    assert!(dropped() >= before + 400);
    assert_eq!(sandbox.state.status(&sandbox.id), "running");
}

#[test]
fn subcontainers_are_told_apart() {
    need!("busybox");
    need_tracing!();
    let sandbox = Sandbox::start(&["sleep", "1000"]);
    let recorded = Recorded::new();
    let config = recorded.config(json!([
        {"name": "container/start", "context_fields": ["container_id"]},
        {"name": "sentry/execve", "context_fields": ["container_id"]},
    ]));
    sandbox.state.ok(["trace", "create", "--config", &config, &sandbox.id]);
    let sub = unique("sub");
    let bundle = Bundle::with(&["sh", "-c", "sleep 0; sleep 1000"], |c| {
        c["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox.id,
        });
    });
    sandbox.state.detached(&["run", "--detach", "--bundle", bundle.text(), &sub]);
    let lines = wait::until("the second sleep", || {
        let lines = recorded.of("sentry/execve");
        lines.iter().any(|l| l["argv"] == json!(["sleep", "1000"])).then_some(lines)
    });
    assert!(lines.iter().all(|l| l["context_data"]["container_id"] == sub.as_str()), "{lines:#?}");
    let start = &recorded.of("container/start")[0];
    assert_eq!((&start["id"], &start["context_data"]["container_id"]), (&json!(sub), &json!(sub)));
    sandbox.state.ok(["delete", "--force", &sub]);
}

#[test]
fn calls_are_refused_in_gvisors_words() {
    need!("busybox");
    let sandbox = Sandbox::start(&["sleep", "1000"]);
    let socket = sandbox.state.control_socket(&sandbox.id);
    let config = |points: Value, sinks: Value| json!({"Config": {"name": "Default", "points": points, "sinks": sinks}});
    let null: OwnedFd = File::open("/dev/null").unwrap().into();
    let (stream, _peer) = UnixStream::pair().unwrap();
    for mut caller in Caller::both(&socket) {
        let mut fails = |arg: &Value, fds: &[&dyn AsFd]| {
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            caller.fails(CREATE, arg, &fds)
        };
        assert_eq!(
            fails(&json!({"Config": {"name": "Other"}}), &[]),
            "only a single \"Default\" session is supported"
        );
        assert_eq!(fails(&Value::Null, &[]), "only a single \"Default\" session is supported");
        assert_eq!(
            fails(&config(json!([{"name": "sentry/nothing"}]), json!([])), &[]),
            "point \"sentry/nothing\" not found"
        );
        let field = json!([{"name": "sentry/clone", "context_fields": ["weather"]}]);
        assert_eq!(
            fails(&config(field, json!([])), &[]),
            "configuring point \"sentry/clone\": field \"weather\" not found"
        );
        assert_eq!(fails(&config(json!([]), json!([{"name": "pigeon"}])), &[]), "sink \"pigeon\" not found");
        let remote = config(json!([]), json!([{"name": "remote"}]));
        assert_eq!(fails(&remote, &[]), "creating event sink: remote sink requires an endpoint");
        assert!(fails(&remote, &[&null]).contains("SOCK_SEQPACKET"));
        assert!(fails(&remote, &[&stream]).contains("SOCK_SEQPACKET"));
        assert!(fails(&remote, &[&null, &null]).contains("2 descriptors came for 1 sinks"));
        assert!(fails(&config(json!([]), json!([{"name": "file"}])), &[&null]).contains("open for writing"));
        assert_eq!(caller.fails(DELETE, &json!("Default"), &[]), "session \"Default\" not found");
        assert_eq!(caller.ok(LIST, &Value::Null, &[]), Value::Null);
    }
    if let Some(why) = super::untraceable() {
        skip!("{why}");
    }
    // A session without points and sinks is one; a null sink takes no descriptor, or one that is not used.
    for mut caller in Caller::both(&socket) {
        caller.ok(CREATE, &config(json!([]), json!([])), &[]);
        assert_eq!(caller.ok(LIST, &Value::Null, &[]), json!([{"name": "Default"}]));
        caller.ok(DELETE, &json!("Default"), &[]);
        let null_sink = config(json!([{"name": "sentry/clone"}]), json!([{"name": "null"}]));
        for fds in [&[][..], &[null.as_fd()]] {
            caller.ok(CREATE, &null_sink, fds);
            let sinks = json!([{"name": "null", "status": {"DroppedCount": 0}}]);
            assert_eq!(caller.ok(LIST, &Value::Null, &[]), json!([{"name": "Default", "sinks": sinks}]));
            caller.ok(DELETE, &json!("Default"), &[]);
        }
    }
}

#[test]
fn the_command_line_says_what_is_wrong() {
    need!("busybox");
    let sandbox = Sandbox::start(&["sleep", "1000"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let text = path.to_str().unwrap();
    let fails = |session: Value| {
        std::fs::write(&path, session.to_string()).unwrap();
        sandbox.state.fails(["trace", "create", "--config", text, &sandbox.id])
    };
    let with = |sink: Value| json!({"name": "Default", "sinks": [sink]});
    assert!(fails(json!({"name": "Default", "pionts": []})).contains("unknown field"));
    assert!(fails(with(json!({"name": "remote"}))).contains("endpoint not present in configuration"));
    let nobody = dir.path().join("nobody");
    let nowhere = fails(with(json!({"name": "remote", "config": {"endpoint": nobody}})));
    assert!(nowhere.contains(&format!("connect({nobody:?})")), "{nowhere}");
    let consumer = Consumer::answering(&[]);
    let old = fails(with(json!({"name": "remote", "config": {"endpoint": consumer.path()}})));
    assert!(old.contains("remote version (0) is smaller than minimum supported (1)"), "{old}");
    let consumer = Consumer::answering(&[0x12; 20_000]);
    let big = fails(with(json!({"name": "remote", "config": {"endpoint": consumer.path()}})));
    assert!(big.contains("handshake message too big"), "{big}");
    assert!(sandbox.state.fails(["trace", "create", &sandbox.id]).contains("--config"));
    assert!(sandbox.state.fails(["trace", "delete", &sandbox.id]).contains("--name"));
    assert!(sandbox.state.fails(["trace", "list"]).contains("ID"));
    // A pod's init file that cannot be done: no container.
    std::fs::write(
        &path,
        json!({"trace_session": {"name": "Default", "points": [{"name": "no/point"}]}}).to_string(),
    )
    .unwrap();
    let id = unique("trace");
    let error =
        sandbox.state.fails(["create", "--pod-init-config", text, "--bundle", sandbox.bundle.text(), &id]);
    assert!(error.contains("point \"no/point\" not found"), "{error}");
    assert!(sandbox.state.fails(["state", &id]).contains("does not exist"));
    let metadata = sandbox.state.ok(["trace", "metadata"]);
    assert!(
        metadata.starts_with(
            "POINTS (998)\nName: container/start, optional fields: [env], context fields: [time|"
        )
    );
    assert!(metadata.ends_with("\nSINKS (3)\nName: remote\nName: null\nName: file\n"));
}

#[test]
fn gvisors_runsc_makes_sessions_in_our_sandbox() {
    need!("busybox", "runsc");
    need_tracing!();
    let sandbox = Sandbox::start(&["sleep", "1000"]);
    let view = RunscView::new(&sandbox.state, &sandbox.id);
    let consumer = Consumer::new();
    let points = json!([{"name": "container/start"}, {"name": "sentry/execve", "optional_fields": ["binary_info"]},
        {"name": "syscall/sysno/39/exit", "context_fields": ["thread_id"]}]);
    let config = consumer.config(points, json!({"retries": 3, "backoff": "25us", "backoff_max": "10ms"}));
    assert_eq!(
        view.ok(&["trace", "create", "-config", &config, &sandbox.id]),
        "Trace session \"Default\" created.\n"
    );
    let mut peer = consumer.accept();
    let again = view.call(&["trace", "create", "-config", &config, &sandbox.id]).fails();
    assert!(again.contains("session \"Default\" already exists"), "{again}");
    view.ok(&["exec", &sandbox.id, "sh", "-c", "true"]);
    let told = peer.receive().unwrap();
    assert_eq!((told.kind, told.texts(3)), (3, vec!["sh".to_owned(), "-c".to_owned(), "true".to_owned()]));
    assert_ne!(told.number(5).unwrap() & 0o111, 0, "its mode");
    let listed = view.ok(&["trace", "list", &sandbox.id]);
    assert_eq!(listed, sandbox.state.ok(["trace", "list", &sandbox.id]));
    assert_eq!(
        view.ok(&["trace", "delete", "-name", "Default", &sandbox.id]),
        "Trace session \"Default\" deleted.\n"
    );
    let gone = view.call(&["trace", "delete", "-name", "Default", &sandbox.id]).fails();
    assert!(gone.contains("session \"Default\" not found"), "{gone}");
}
