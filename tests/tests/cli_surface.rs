//! What callers read from the command line: outputs, texts, logs, exit codes, spellings of options.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{Bundle, State, airlock, need, skip, unique, which};
use serde_json::Value;
use std::process::Command;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"))
}

#[test]
fn state_and_list_have_the_shapes_that_callers_parse() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("cli"));
    assert_eq!(state.ok(["list", "--format=json"]), "[]\n");
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let text = state.ok(["state", &id]);
    assert!(text.starts_with("{\n  \"ociVersion\""), "not indented: {text}");
    let shown = json(&text);
    assert_eq!(shown["status"], "created");
    assert_eq!(shown["bundle"], bundle.text());
    assert_eq!(shown["rootfs"], bundle.rootfs().to_str().unwrap());
    assert_eq!(shown["owner"], "root");
    assert!(shown["created"].as_str().unwrap().ends_with('Z'));
    assert!(shown.get("annotations").is_none(), "an empty map is left out");
    assert_eq!(json(&state.ok(["list", "-format", "json"])), Value::Array(vec![shown.clone()]));
    assert_eq!(state.ok(["list", "-q"]), format!("{id}\n"));
    let table = state.ok(["list"]);
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(row[..3], [id.as_str(), &shown["pid"].to_string(), "created"]);

    state.ok(["start", &id]);
    assert_eq!(state.status(&id), "running");
    let pids = json(&state.ok(["ps", "--format", "json", &id]));
    assert_eq!(pids.as_array().unwrap().len(), 1);
    let table = state.ok(["ps", &id]);
    let header: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    assert!(table.lines().nth(1).unwrap().ends_with("sleep 1000"), "{table}");
    let event = state.ok(["events", "--stats", &id]);
    assert_eq!(event.lines().count(), 1);
    let event = json(&event);
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some(id.as_str())));
    assert!(event["data"]["pids"]["current"].as_u64().unwrap() >= 1);
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);

    state.ok(["kill", "-all", &id, "SIGKILL"]);
    assert_eq!(json(&state.ok(["wait", &id])), serde_json::json!({ "id": id, "exitStatus": 137 }));
    assert_eq!((state.status(&id).as_str(), &state.state(&id)["pid"]), ("stopped", &Value::from(0)));
    state.ok(["delete", &id]);
    assert_eq!(state.ok(["list", "-q"]), "");
}

#[test]
fn limits_change_and_are_seen() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("cli"));
    state.detached(&["run", "-d", "-b", bundle.text(), &id]);
    let limit = || json(&state.ok(["events", "--stats", &id]))["data"]["pids"]["limit"].clone();
    state.ok(["update", "--pids-limit", "77", &id]);
    if limit() != 77 {
        skip!("needs the pids controller");
    }
    let file = bundle.path().join("resources.json");
    std::fs::write(&file, r#"{"pids":{"limit":78}}"#).unwrap();
    state.ok(["update", &id, "-r", file.to_str().unwrap()]);
    assert_eq!(limit(), 78);
    let mut stdin = state.command(["update", "--resources=-", &id]);
    stdin.stdin(std::fs::File::open(&file).unwrap());
    std::fs::write(&file, r#"{"pids":{"limit":79}}"#).unwrap();
    assert!(stdin.status().unwrap().success());
    assert_eq!(limit(), 79);
    assert!(state.fails(["update", &id]).contains("nothing to change"));
    std::fs::write(&file, r#"[{"pids":1}]"#).unwrap();
    assert!(
        state.fails(["update", &id, "-r", file.to_str().unwrap()]).contains("not an OCI resources object")
    );
    assert_eq!(limit(), 79);
}

#[test]
fn errors_are_one_line_with_the_texts_that_callers_match() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("cli"));
    let one = |args: &[&str], text: &str| {
        let error = state.fails(args);
        assert!(error.contains(text), "{args:?}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
    };
    for command in ["state", "start", "pause", "resume", "kill", "delete", "wait", "ps"] {
        one(&[command, "no-such"], "container does not exist");
    }
    one(&["kill", ""], "id is empty");
    one(&["state", "a/b"], "invalid container id");
    one(&["create", "--bundle", bundle.text(), ".."], "invalid container id");
    one(&["run", "--bundle", "/no/such/bundle", &id], "No such file or directory");
    one(&["--rootless=true", "list"], "running without root comes later");
    one(&["--platform=kvm", "list"], "unknown option '--platform'");
    one(&["--debg", "list"], "did you mean --debug");
    one(&["stat", &id], "unknown command 'stat': did you mean");
    for command in ["checkpoint", "restore", "fork"] {
        assert!(state.ok([command, "--help"]).contains("--"), "podman takes that as a yes");
    }
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    one(&["create", "--bundle", bundle.text(), &id], "container with given ID already exists");
    one(&["delete", "--no-such", &id], "unknown option");
    state.ok(["kill", &id, "KILL"]);
    state.ok(["wait", &id]);
    one(&["kill", &id, "KILL"], "container not running");
    one(&["pause", &id], "container not running");
    assert_eq!(state.run(["exec", &id, "true"]).status.code(), Some(255));
    assert_eq!(state.run(["exec", "no-such", "true"]).status.code(), Some(255));
    assert_eq!(state.run(["delete", "--force", "no-such"]).status.code(), Some(0));
}

#[test]
fn a_failed_command_leaves_one_object_in_a_json_log() {
    need!("busybox");
    let (state, id) = (State::new(), unique("cli"));
    let bundle = Bundle::with(&["true"], |c| c["ociVersion"] = "not.a.version".into());
    let log = bundle.path().join("log.json");
    let create = |format: &str| {
        Command::new(airlock())
            .args([
                "--root",
                state.root().to_str().unwrap(),
                "--log",
                log.to_str().unwrap(),
                "--log-format",
                format,
            ])
            .args(["create", "--bundle", bundle.text(), &id])
            .output()
            .unwrap()
    };
    let out = create("json");
    assert_eq!(out.status.code(), Some(1));
    let told = String::from_utf8(out.stderr).unwrap();
    let logged = std::fs::read_to_string(&log).unwrap();
    // podman reads the whole file as one object.
    let object = json(&logged);
    assert_eq!((object["level"].as_str(), object["msg"].as_str()), (Some("error"), Some(told.trim_end())));
    assert!(object["time"].as_str().unwrap().contains('T'));
    create("text");
    let second = std::fs::read_to_string(&log).unwrap();
    let line = second.strip_prefix(&logged).expect("the log is appended to");
    assert!(line.starts_with("time=\"") && line.contains("level=error msg=\""), "{line}");
    // Success is silent, in the log as well.
    let good = Bundle::new(&["true"]);
    let out = Command::new(airlock())
        .args(["--root", state.root().to_str().unwrap(), "--log", log.to_str().unwrap()])
        .args(["run", "--bundle", good.text(), &id])
        .output()
        .unwrap();
    assert!(out.status.success() && out.stdout.is_empty() && out.stderr.is_empty(), "{out:?}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), second);
}

#[test]
fn options_stand_where_callers_put_them() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("cli"));
    let pid_file = bundle.path().join("pid");
    state.detached(&["create", &id, "-bundle", bundle.text(), "-pid-file", pid_file.to_str().unwrap()]);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(pid.bytes().all(|b| b.is_ascii_digit()), "{pid:?}");
    assert_eq!(state.state(&id)["pid"].to_string(), pid);
    state.ok(["start", &id]);
    // Everything behind the command's first word is the command's own.
    assert_eq!(
        state.ok(["exec", "-user", "1000:5", "--env=A=b=c", &id, "sh", "-c", "id -u; id -g; echo $A"]),
        "1000\n5\nb=c\n"
    );
    assert_eq!(state.ok(["exec", &id, "-cwd", "/tmp", "--", "echo", "--detach", "-e"]), "--detach -e\n");
    for user in ["1:", "01", "+1", "-1", "root", "4294967295", "1:1:1"] {
        let out = state.run(["exec", "-u", user, &id, "id"]);
        assert_eq!(out.status.code(), Some(255), "user {user:?}: {out:?}");
    }
    state.ok(["delete", &id, "-force"]);
}

#[test]
fn version_help_completions_and_manual() {
    let run = |args: &[&str]| {
        let out = Command::new(airlock()).args(args).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let version = run(&["--version"]);
    let lines: Vec<&str> = version.lines().collect();
    assert!(lines[0].starts_with("airlock version ") && lines[1].starts_with("commit: "), "{version}");
    assert!(lines[2].starts_with("spec: 1.2"), "{version}");
    let commands = [
        "do",
        "run",
        "create",
        "start",
        "state",
        "list",
        "ps",
        "exec",
        "kill",
        "delete",
        "wait",
        "pause",
        "resume",
        "events",
        "update",
        "spec",
        "features",
        "usage",
        "read-control",
        "write-control",
        "export-metrics",
        "metric-metadata",
        "metric-server",
        "call",
        "completions",
        "man",
    ];
    let (help, manual, bash) = (run(&["--help"]), run(&["man"]), run(&["completions", "bash"]));
    for command in commands {
        assert!(help.contains(&format!("\n  {command} ")), "help lacks {command}");
        assert!(manual.contains(&format!("COMMAND: {}\"", command.to_uppercase())), "manual lacks {command}");
        assert!(bash.contains(command), "completions lack {command}");
        let own = run(&[command, "--help"]);
        assert!(own.contains(&format!("Usage: airlock {command}")), "{own}");
        assert_eq!(run(&["help", command]).lines().next(), own.lines().next());
    }
    for internal in ["boot", "proxy"] {
        assert!(!help.contains(&format!("\n  {internal} ")));
    }
}

#[test]
fn the_starter_configuration_runs() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["true"]), unique("cli"));
    let config = bundle.path().join("config.json");
    assert!(state.fails(["spec", "-b", bundle.text()]).contains("exists already"));
    std::fs::remove_file(&config).unwrap();
    state.ok(["spec", "--bundle", bundle.text(), "--", "echo", "from-spec"]);
    let mut spec = bundle.config();
    assert_eq!(spec["process"]["args"], serde_json::json!(["echo", "from-spec"]));
    spec["process"]["terminal"] = false.into();
    bundle.write_config(&spec);
    assert_eq!(state.ok(["run", "--bundle", bundle.text(), &id]), "from-spec\n");
}

#[test]
fn methods_are_listed_and_called_with_descriptors() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("cli"));
    let listed = json(&state.ok(["call", "--list"]));
    for method in listed.as_array().unwrap() {
        assert!(!method["doc"].as_str().unwrap().is_empty() && method.get("arg").is_some(), "{method}");
    }
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let live = json(&state.ok(["call", "--list", "--sandbox", &id]));
    for method in live.as_array().unwrap() {
        let known = |m: &Value| m["name"] == method["name"];
        assert!(listed.as_array().unwrap().iter().any(known), "{method} is not declared");
    }
    let name = format!("{id:?}");
    let processes = json(&state.ok(["call", "--sandbox", &id, "containerManager.Processes", &name]));
    assert_eq!(processes[0]["cmd"], "sleep");
    let socket = state.control_socket(&id);
    let status = state.ok([
        "call",
        "--socket",
        socket.to_str().unwrap(),
        "containerManager.ContainerRuntimeState",
        &name,
    ]);
    assert_eq!(status, "2\n");
    let arg = format!(
        r#"{{"argv":["/bin/echo","over-call"],"envv":["PATH=/bin"],"wd":"/","ContainerID":{name},"GuestFDs":[0,1,2]}}"#
    );
    // The shell opens the descriptors; the process writes to the third of them.
    let output = bundle.path().join("output");
    let script = format!(
        "exec '{}' --root '{}' call --sandbox {id} --fd 5 --fd 6 --fd 6 containerManager.ExecuteAsync '{arg}' 5</dev/null 6>'{}'",
        airlock().display(),
        state.root().display(),
        output.display()
    );
    let out = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let pid: i32 = String::from_utf8(out.stdout).unwrap().trim().parse().unwrap();
    let wait = format!(r#"{{"PID":{pid},"CID":{name}}}"#);
    assert_eq!(state.ok(["call", "--sandbox", &id, "containerManager.WaitPID", &wait]), "0\n");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "over-call\n");

    assert!(state.fails(["call", "--sandbox", &id, "no.Such"]).contains("unknown method"));
    assert!(state.fails(["call", "--sandbox", &id, "a.B", "not json"]).contains("not JSON"));
    assert!(
        state
            .fails(["call", "--sandbox", &id, "--fd", "99", "debug.Stacks"])
            .contains("descriptor 99 is not open")
    );
    assert!(state.fails(["call", "a.B"]).contains("--sandbox"));
    let error = state.fails(["call", "--timeout", "50ms", "--sandbox", &id, "containerManager.Wait", &name]);
    assert!(error.contains("containerManager.Wait"), "{error}");
}

#[test]
fn a_real_runsc_sandbox_is_called() {
    need!("busybox", "runsc");
    let (state, bundle, id) = (State::new(), Bundle::new(&["sleep", "1000"]), unique("runsc"));
    let root = tempfile_root(&bundle);
    let runsc = |args: &[&str]| {
        let mut command = Command::new(which("runsc").unwrap());
        command.args(["--root", &root, "--network=none", "--ignore-cgroups"]).args(args);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null()).status().unwrap()
    };
    if !runsc(&["run", "-detach", "-bundle", bundle.text(), &id]).success() {
        skip!("runsc cannot run a container here");
    }
    let socket = format!("@runsc-sandbox.{id}");
    let called = state.run(["call", "--socket", &socket, "containerManager.Processes", &format!("{id:?}")]);
    let listed = state.run(["call", "--socket", &socket, "--list"]);
    runsc(&["delete", "-force", &id]);
    assert!(called.status.success(), "{called:?}");
    assert_eq!(json(std::str::from_utf8(&called.stdout).unwrap())[0]["cmd"], "sleep");
    assert!(String::from_utf8_lossy(&listed.stderr).contains("cannot list its methods"));
}

fn tempfile_root(bundle: &Bundle) -> String {
    let root = bundle.path().join("runsc");
    std::fs::create_dir(&root).unwrap();
    root.to_str().unwrap().to_owned()
}

#[test]
fn checkpoint_and_restore_take_the_options_of_runc_and_criu() {
    need!("busybox");
    let (state, bundle, id) = (State::new(), Bundle::new(&["/bin/sleep", "1000"]), unique("cli"));
    let one = |args: &[&str], text: &str| {
        let error = state.fails(args);
        assert!(error.contains(text), "{args:?}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
    };
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    one(&["checkpoint", &id], "cannot be checkpointed");
    one(&["checkpoint", "no-such"], "container does not exist");
    one(&["fork", &id, "other"], "cannot be checkpointed");
    one(&["wait", "--checkpoint", "no-such"], "container does not exist");
    one(&["wait", "--restore", &id], "sandbox is not being restored");
    one(&["wait", "--restore", "--checkpoint", &id], "--restore");
    state.ok(["start", &id]);
    let images = tempfile::tempdir().unwrap();
    let dir = |name: &str| images.path().join(name).to_str().unwrap().to_owned();
    let image = dir("image");
    for (option, text) in [
        (&["--page-server", "1.2.3.4:5"][..], "--page-server: "),
        (&["--lazy-pages"], "--lazy-pages: "),
        (&["--status-fd=3"], "--status-fd: "),
        (&["--auto-dedup"], "--auto-dedup: "),
        (&["--manage-cgroups-mode", "strict"], "--manage-cgroups-mode strict: "),
        (&["--empty-ns=pid"], "--empty-ns pid: "),
        (&["--compression=rar"], "\"rar\" is not known"),
        (&["--key-file", "/no/such"], "--key-file /no/such: "),
        (&["--parent-path", "../none"], "--parent-path: "),
        (&["--no-such"], "unknown option '--no-such' of 'checkpoint'"),
    ] {
        let mut args = vec!["checkpoint", "--image-path", &image];
        args.extend(option);
        args.push(&id);
        one(&args, text);
    }
    assert_eq!(state.status(&id), "running");
    assert!(!images.path().join("image/checkpoint.img").exists());
    assert!(state.ok(["checkpoint", "--dry-run", &id]).ends_with("can be saved\n"));
    // All that callers pass, together.
    state.ok([
        "checkpoint",
        "--image-path",
        &image,
        "--work-path",
        &dir("work"),
        "--leave-running",
        "--tcp-established",
        "--tcp-skip-in-flight",
        "--ext-unix-sk",
        "--shell-job",
        "--file-locks",
        "--exclude-committed-zero-pages",
        "--manage-cgroups-mode=soft",
        "--empty-ns",
        "network",
        "--metadata=by=me",
        &id,
    ]);
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&image)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["checkpoint.img", "pages.img", "pages_meta.img"]);
    assert!(std::fs::read_to_string(images.path().join("work/dump.log")).unwrap().contains("1 processes"));
    assert_eq!(state.status(&id), "running");
    state.ok(["checkpoint", "--image-path", &image, &id]);
    assert_eq!(names(), ["checkpoint.img", "pages.img", "pages_meta.img"]);
    assert_eq!(
        (state.status(&id).as_str(), &state.state(&id)["reason"]),
        ("stopped", &"checkpointed".into())
    );

    let other = unique("cli");
    let restore = |option: &[&str], text: &str| {
        let mut args = vec!["restore", "--detach", "--bundle", bundle.text(), "--image-path", &image];
        args.extend(option);
        args.push(&other);
        one(&args, text);
        one(&["state", &other], "container does not exist");
    };
    restore(&["--lsm-profile", "apparmor:x"], "--lsm-profile apparmor:x: ");
    restore(&["--lsm-mount-context=x"], "--lsm-mount-context x: ");
    restore(&["--manage-cgroups-mode=full"], "--manage-cgroups-mode full: ");
    restore(&["--image-path", "/no/such/image"], "there is no image in /no/such/image");
    restore(&["--tcp-close", "--tcp-established"], "--tcp-established");
    std::fs::write(images.path().join("image/checkpoint.img"), "altered").unwrap();
    restore(&["--work-path", &dir("work")], "restore: ");
    assert!(std::fs::read_to_string(images.path().join("work/restore.log")).unwrap().starts_with("Error: "));
}
