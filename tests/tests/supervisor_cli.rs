//! `airlock supervisor` from a shell: each action, its result and its errors.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{Bundle, State, has_limits, leaks, need, skip, unique, wait};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Output, Stdio};

/// A sandbox whose root container is the parent domain.
struct Host {
    state: State,
    sandbox: String,
    bundle: Bundle,
}

impl Host {
    fn new() -> Self {
        let host =
            Self { state: State::new(), sandbox: unique("sup"), bundle: Bundle::new(&["sleep", "100000"]) };
        host.state.detached(&["run", "--detach", "--bundle", host.bundle.text(), &host.sandbox]);
        host
    }

    /// With a domain that was defined and started.
    fn with_domain() -> Self {
        let host = Self::new();
        host.define("d");
        host.ok("start", &["d"]);
        host
    }

    fn define(&self, domain: &str) {
        self.ok("define", &["--bundle", self.bundle.text(), domain]);
    }

    fn words<'a>(&'a self, action: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        [&["supervisor", action, &self.sandbox], rest].concat()
    }

    #[track_caller]
    fn ok(&self, action: &str, rest: &[&str]) -> String {
        self.state.ok(self.words(action, rest))
    }

    #[track_caller]
    fn json(&self, action: &str, rest: &[&str]) -> Value {
        serde_json::from_str(&self.ok(action, rest)).unwrap()
    }

    /// The error of a command that must fail.
    #[track_caller]
    fn fails(&self, action: &str, rest: &[&str]) -> String {
        self.state.fails(self.words(action, rest))
    }

    fn run(&self, action: &str, rest: &[&str]) -> Output {
        self.state.run(self.words(action, rest))
    }

    /// `exec` of a shell script.
    fn sh(&self, name: &str, script: &str) -> Output {
        self.run("exec", &["-e", "PATH=/bin", "d", name, "/bin/sh", "-c", script])
    }

    /// A process that sleeps for long.
    #[track_caller]
    fn sleep(&self, name: &str) {
        self.state.detached(&self.words("exec", &["--detach", "d", name, "/bin/sleep", "1000"]));
    }

    /// Configures `d` by what is given on standard input.
    #[track_caller]
    fn configure(&self, config: &Value, more: &[&str]) -> Output {
        let words = self.words("configure", &[&["--config", "-"], more, &["d"]].concat());
        let mut command = self.state.command(words);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn spawn(&self, action: &str, rest: &[&str]) -> Child {
        self.state
            .command(self.words(action, rest))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn domain(&self, name: &str) -> Value {
        let all = self.json("domains", &[]);
        all.as_array().unwrap().iter().find(|d| d["domain"] == name).cloned().unwrap_or_default()
    }
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn stdout(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The CycleDeltaMetrics of a line, complete and not those of another time.
#[track_caller]
fn metrics(line: &Value) -> &Value {
    let metrics = &line["cycle_delta_metrics"];
    let names = [
        "domain_cpu_run_ns",
        "domain_run_ns",
        "service_cpu_run_ns",
        "domain_max_memory_usage_bytes",
        "microvm_cpu_run_ns",
        "idle_cpu_run_ns",
    ];
    assert!(names.iter().all(|name| metrics[name].is_u64()), "{line}");
    assert!(metrics["microvm_network_interfaces"]["lo"]["received_bytes"].is_u64(), "{line}");
    assert!(metrics["domain_run_ns"].as_u64().unwrap() > 0, "{line}");
    metrics
}

#[test]
fn a_domain_lives_from_a_shell() {
    need!("busybox");
    let host = Host::new();
    assert_eq!(host.ok("ping", &[]), "");
    assert_eq!(host.json("domains", &[]), json!([]));
    host.define("d");
    assert_eq!(host.domain("d")["state"], "configured");
    host.ok("start", &["d"]);
    assert_eq!(host.domain("d")["state"], "started");

    let out = host.sh("one", "echo out; echo err >&2; pwd; exit 7");
    assert_eq!((out.status.code(), stdout(&out), stderr(&out)), (Some(7), "out\n/\n".into(), "err\n".into()));
    let out = host.run("exec", &["--cwd", "/tmp", "-e", "A=b c", "d", "two", "/bin/env"]);
    assert_eq!(out.status.code(), Some(0));
    let mut variables: Vec<_> = stdout(&out).lines().map(str::to_owned).collect();
    variables.retain(|line| !line.starts_with("HOME="));
    assert_eq!(variables, ["A=b c"]);
    assert_eq!(host.sh("three", "kill -9 $$").status.code(), Some(137));

    host.sleep("long");
    let frozen = host.json("freeze", &["d"]);
    assert!(metrics(&frozen)["domain_cpu_run_ns"].as_u64().unwrap() > 0);
    assert_eq!(host.domain("d")["state"], "frozen");
    host.ok("thaw", &["d"]);
    assert_eq!(host.domain("d")["state"], "thawed");
    host.ok("terminate", &["d", "long"]);
    let status = wait::until("it has ended", || {
        let info = host.domain("d");
        let long = info["processes"].as_array().unwrap().iter().find(|p| p["name"] == "long").cloned();
        long.filter(|p| !p["status"].is_null())
    });
    assert_eq!(status["status"], 15);
    // It has ended already, which is what is wanted.
    host.ok("kill", &["--deadline", "60s", "d", "long"]);
    host.sleep("other");
    host.ok("kill", &["--deadline", "60s", "d", "other"]);
    host.sleep("last");
    metrics(&host.json("stop", &["--deadline", "60s", "d"]));
    assert_eq!(host.domain("d")["state"], "stopped");

    // It can begin anew.
    host.define("d");
    host.ok("start", &["d"]);
    assert_eq!(host.sh("one", "echo again").status.code(), Some(0));
    host.ok("exit", &[]);
    wait::until("the sandbox has ended", || (host.state.status(&host.sandbox) == "stopped").then_some(()));
    host.state.ok(["delete", &host.sandbox]);
    assert!(leaks::cgroups(&host.sandbox).is_empty());
}

#[test]
fn a_sandbox_is_forked_without_its_domains_or_not() {
    need!("busybox");
    let host = Host::with_domain();
    let copy = unique("copy");
    says(&host.state.fails(["fork", &host.sandbox, &copy]), &["domain that runs (\"d\")", "stop the domain"]);
    host.ok("stop", &["d"]);
    host.state.detached(&["fork", &host.sandbox, &copy]);
    assert_eq!(host.state.status(&copy), "running");
    let words = ["supervisor", "domains", copy.as_str()];
    assert!(!host.state.ok(words).contains("started"));
}

#[test]
fn domains_are_saved_and_restored() {
    need!("busybox");
    let host = Host::with_domain();
    // What leads out of the domain could not be saved.
    let words = host.words("exec", &["--detach", "d", "p", "/bin/sleep", "1000"]);
    let mut exec = host.state.command(words);
    assert!(exec.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let image = tempfile::tempdir().unwrap();
    let path = image.path().to_str().unwrap();
    host.state.ok(["checkpoint", "--image-path", path, &host.sandbox]);
    host.state.ok(["delete", "--force", &host.sandbox]);
    host.state.detached(&[
        "restore",
        "--detach",
        "--bundle",
        host.bundle.text(),
        "--image-path",
        path,
        &host.sandbox,
    ]);
    host.define("d");
    host.ok("start", &["d"]);
    let info = host.domain("d");
    assert_eq!((&info["state"], &info["processes"][0]["name"]), (&"started".into(), &"p".into()), "{info}");
    assert_eq!(info["processes"][0]["status"], Value::Null);
    host.ok("freeze", &["d"]);
    host.ok("thaw", &["d"]);
    host.ok("kill", &["--deadline", "60s", "d", "p"]);
    host.ok("stop", &["d"]);
}

#[test]
fn deleting_a_sandbox_leaves_nothing_of_its_domains() {
    need!("busybox");
    let host = Host::with_domain();
    host.define("never-started");
    host.sleep("p");
    assert!(!leaks::cgroups(&format!("{}.d", host.sandbox)).is_empty());
    host.state.ok(["delete", "--force", &host.sandbox]);
    assert!(leaks::cgroups(&host.sandbox).is_empty());
}

#[test]
fn events_are_lines_until_the_sandbox_ends() {
    need!("busybox");
    let host = Host::with_domain();
    let readers = [host.spawn("events", &[]), host.spawn("events", &["d"])].map(|mut child| {
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (teller, heard) = std::sync::mpsc::channel::<Value>();
        std::thread::spawn(move || {
            for line in lines {
                teller.send(serde_json::from_str(&line.unwrap()).unwrap()).unwrap();
            }
        });
        (child, heard)
    });
    // They hear of what happens after they have come.
    let mut made = 0;
    let first = wait::until("both readers hear", || {
        made += 1;
        assert_eq!(host.sh(&format!("p{made}"), "exit 3").status.code(), Some(3));
        let both = readers.each_ref().map(|(_, heard)| heard.try_recv().ok());
        both[1].as_ref()?;
        both[0].clone()
    });
    host.ok("exit", &[]);
    let event = &first["event"];
    assert!(first["timestamp_millis"].as_u64().unwrap() > 1_700_000_000_000);
    assert_eq!((&event["type"], &event["domain"]), (&"process_termination".into(), &"d".into()));
    assert_eq!((&event["cause"], &event["exit_status"]), (&"exited".into(), &3.into()));
    assert_eq!((&event["signo"], &event["size"]), (&Value::Null, &Value::Null));
    for (mut child, heard) in readers {
        // Until its output ends.
        let of = |event: &Value| event["event"]["domain"] == "d";
        assert!(heard.iter().all(|event| of(&event)));
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_configuration_is_taken_from_a_file() {
    need!("busybox");
    if !has_limits() {
        skip!("needs the cgroup controllers cpu and memory");
    }
    let host = Host::new();
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("file"), "from the host\n").unwrap();
    let log = data.path().join("log");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A reader that is there before the log is opened.
    let mut reader = std::fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
    host.define("d");
    let config = json!({
        "mounts": [
            {"type": "bind", "source": data.path(), "destination": "/data", "options": ["ro"]},
            {"type": "drive", "fs_type": "tmpfs", "destination": "/tmp", "options": ["size=1m"], "chowner": [1000, 1000]},
        ],
        "exec_user": {"uid": 1000, "gid": 1000},
        "cgroup_profiles": {
            "throttled": {"cpu_limit": 0.5, "memory_limit_bytes": 64 << 20},
            "unthrottled": {"cpu_limit": 0, "memory_limit_bytes": 128 << 20},
        },
        "start_profile": "unthrottled",
        "additional_start_hooks": [
            {"name": "hook", "path": "/bin/sh", "args": ["-c", "echo $WHAT > /root/hook"], "envs": {"WHAT": "hooked"}},
        ],
    });
    let out = host.configure(&config, &["--log-to", &format!("runtime={}", log.display())]);
    assert!(out.status.success(), "{}", stderr(&out));
    host.ok("start", &["d"]);
    assert_eq!(std::fs::read_to_string(host.bundle.rootfs().join("root/hook")).unwrap(), "hooked\n");
    let out = host.sh("p", "cat /data/file; id -u; touch /tmp/own; (echo > /data/file) 2>/dev/null || echo read-only; stat -f -c %T /tmp");
    assert_eq!(stdout(&out), "from the host\n1000\nread-only\ntmpfs\n", "{}", stderr(&out));

    let words =
        ["-e", "PATH=/bin", "--log-config", "runtime:line", "d", "logged", "/bin/echo", "into the log"];
    let out = host.run("exec", &words);
    assert_eq!((out.status.code(), stdout(&out)), (Some(0), String::new()));
    let mut line = [0; 13];
    reader.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"into the log\n");
}

#[test]
fn signals_to_the_command_terminate_the_process() {
    need!("busybox");
    let host = Host::with_domain();
    let mut child =
        host.spawn("exec", &["-e", "PATH=/bin", "d", "p", "/bin/sh", "-c", "echo up; exec sleep 1000"]);
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn descriptors_are_handed_on() {
    need!("busybox");
    let host = Host::with_domain();
    let (mut reader, writer) = std::io::pipe().unwrap();
    // The shell gives the pipe, which is its standard output, as number 9.
    let script = format!(
        "exec 9>&1; exec {} --root {} supervisor exec -e PATH=/bin --extra-fd 9 {} d p /bin/sh -c 'echo through >&3'",
        airlock_tests::airlock().display(),
        host.state.root().display(),
        host.sandbox
    );
    let status = std::process::Command::new("sh").args(["-c", &script]).stdout(writer).status().unwrap();
    assert!(status.success());
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through\n");
}

#[track_caller]
fn says(error: &str, words: &[&str]) {
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error}");
}

#[test]
fn what_is_not_there_is_named() {
    need!("busybox");
    let host = Host::with_domain();
    let missing = |action: &str, rest: &[&str]| {
        let words = [&["supervisor", action, "no-such-sandbox"], rest].concat();
        says(&host.state.fails(words), &["no-such-sandbox", "does not exist"]);
    };
    for action in ["start", "stop", "freeze", "thaw"] {
        says(&host.fails(action, &["nowhere"]), &["nowhere", "does not exist"]);
        missing(action, &["d"]);
    }
    for action in ["terminate", "kill"] {
        says(&host.fails(action, &["nowhere", "p"]), &["nowhere", "does not exist"]);
        says(&host.fails(action, &["d", "nobody"]), &["nobody"]);
        missing(action, &["d", "p"]);
    }
    for action in ["exit", "ping", "domains", "events"] {
        missing(action, &[]);
    }
    says(&host.fails("events", &["nowhere"]), &["nowhere", "does not exist"]);
    missing("define", &["--bundle", host.bundle.text(), "e"]);
    missing("configure", &["--config", "/dev/null", "e"]);
    says(&host.fails("define", &["--bundle", "/no/such/bundle", "e"]), &["/no/such/bundle"]);
    says(&host.fails("configure", &["--config", "/no/such/file", "e"]), &["/no/such/file"]);

    // `exec` ends with a status that no process ends with by itself.
    for (rest, words) in [
        (&["nowhere", "p", "/bin/true"][..], &["nowhere", "does not exist"][..]),
        (&["d", "p", "/no/such/program"], &["/no/such/program"]),
    ] {
        let out = host.run("exec", rest);
        assert_eq!(out.status.code(), Some(255), "{}", stderr(&out));
        says(&stderr(&out), words);
    }
}

#[test]
fn wrong_states_and_words_are_refused() {
    need!("busybox");
    let host = Host::new();
    host.define("d");
    says(&host.fails("freeze", &["d"]), &["domain \"d\"", "configured"]);
    says(&host.fails("thaw", &["d"]), &["configured"]);
    says(&host.fails("stop", &["d"]), &["configured"]);
    assert_eq!(host.sh("p", "true").status.code(), Some(255));
    host.ok("start", &["d"]);
    says(&host.fails("start", &["d"]), &["started"]);
    says(&host.fails("thaw", &["d"]), &["started"]);
    says(&host.fails("define", &["--bundle", host.bundle.text(), "d"]), &["\"d\"", "exists already"]);
    let out = host.configure(&json!({}), &[]);
    assert!(!out.status.success());
    host.ok("freeze", &["d"]);
    says(&host.fails("freeze", &["d"]), &["frozen"]);
    says(&stderr(&host.sh("p", "true")), &["frozen"]);
    host.ok("thaw", &["d"]);

    host.sleep("p");
    says(&stderr(&host.sh("p", "true")), &["\"p\""]);
    says(&host.fails("kill", &["--deadline", "2001-01-01T00:00:00Z", "d", "p"]), &["not in the future"]);
    says(&host.fails("stop", &["--deadline", "2001-01-01T00:00:00Z", "d"]), &["not in the future"]);
    says(&host.fails("kill", &["--deadline", "soon", "d", "p"]), &["'soon' is not a time"]);

    says(&host.fails("ping", &["d"]), &["'d' is one word too many"]);
    says(&host.fails("start", &["d", "p"]), &["'p' is one word too many"]);
    says(&host.fails("kill", &["d", "p", "9"]), &["'9' is one word too many"]);
    says(&host.fails("start", &[]), &["DOMAIN"]);
    says(&host.fails("exec", &["d", "p"]), &["COMMAND"]);
    says(&host.fails("define", &["d"]), &["--bundle"]);
    says(&host.fails("configure", &["d"]), &["--config"]);
    says(&host.fails("define", &["--bundle", host.bundle.text(), "a/b"]), &["\"a/b\""]);
}

#[test]
fn bad_configurations_are_refused() {
    need!("busybox");
    let host = Host::new();
    host.define("d");
    let refused = |config: &Value, words: &[&str]| {
        let out = host.configure(config, &[]);
        assert!(!out.status.success(), "{config}");
        says(&stderr(&out), words);
    };
    refused(&json!({"domain": "other"}), &["other"]);
    refused(&json!([]), &["--config -", "object"]);
    refused(&json!({"mounts": [{"type": "x"}]}), &["drive or bind"]);
    let bind = |source: &str| json!({"mounts": [{"type": "bind", "source": source, "destination": "/x"}]});
    refused(&bind("/no/such/source"), &["/x", "/no/such/source"]);
    refused(&bind("relative"), &["relative", "absolute"]);
    refused(&json!({"start_profile": "fast"}), &["fast"]);
    let out = host.configure(&json!({}), &["--log-to", "runtime=/no/such/folder/log"]);
    says(&stderr(&out), &["--log-to", "/no/such/folder/log"]);
    says(&host.fails("configure", &["--config", "-", "--log-to", "x=y", "d"]), &["'x' is no topic"]);
    // None of that has harmed it.
    host.ok("start", &["d"]);
    assert!(Path::new(&host.bundle.rootfs()).exists());
}
