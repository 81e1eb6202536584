//! Looking into a live sandbox: user-space stacks, profiles of the sandbox process and of its programs, `airlock debug`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::urpc::Caller;
use airlock_tests::{Bundle, State, need, skip, unique, wait, which};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A sandbox whose root container, over the host's root filesystem, runs `argv`.
struct Sandbox {
    state: State,
    id: String,
    _bundle: Bundle,
}

impl Sandbox {
    fn run(globals: &[&str], argv: &[&str]) -> Self {
        let bundle = Bundle::with(argv, |config| {
            config["root"] = json!({"path": "/", "readonly": true});
        });
        let (state, id) = (State::new(), unique("debug"));
        let mut words = globals.to_vec();
        words.extend(["run", "--detach", "--bundle", bundle.text(), &id]);
        state.detached(&words);
        Self { state, id, _bundle: bundle }
    }

    fn both(&self) -> [Caller; 2] {
        Caller::both(&self.state.control_socket(&self.id))
    }

    fn file(&self, name: &str) -> String {
        self.state.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// That of the sandbox process, and its workers.
    fn pid_namespace(&self) -> PathBuf {
        let loader = self.state.state(&self.id)["pid"].as_i64().unwrap();
        std::fs::read_link(format!("/proc/{loader}/ns/pid")).unwrap()
    }
}

/// How many workers there are in a pid namespace.
fn workers(namespace: &Path) -> usize {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
    pids.filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim_end() == "airlock-worker")
            && std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|n| n == namespace)
    })
    .count()
}

/// A program that works in functions with names.
const BUSY: [&str; 3] = ["/usr/bin/perl", "-e", "while (1) { $x++; $y = sprintf('%d-%s', $x, 'a') }"];
const SLEEPING: [&str; 2] = ["/bin/sleep", "1000"];

/// What `go tool pprof` says of a profile.
fn pprof(args: &[&str], file: &str) -> String {
    let home = tempfile::tempdir().unwrap();
    let mut go = Command::new("go");
    go.args(["tool", "pprof"]).args(args).arg(file).env("HOME", home.path()).env("PPROF_TMPDIR", home.path());
    let out = go.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "pprof: {}", String::from_utf8_lossy(&out.stderr));
    text
}

#[test]
fn user_stacks_have_symbols_and_disturb_nobody() {
    need!("perl");
    let busy = Sandbox::run(&[], &BUSY);
    for mut caller in busy.both() {
        // Perl's interpreter takes a moment to get there.
        wait::until("a stack within the interpreter", || {
            let text = caller.ok("debug.Stacks", &json!({"All": true, "CID": busy.id}), &[]);
            let text = text.as_str().unwrap().to_owned();
            assert!(!text.contains("loader thread"), "only the container: {text}");
            (text.contains("Perl_runops_standard") && text.contains("main +")).then_some(())
        });
        let plain = caller.ok("debug.Stacks", &Value::Null, &[]);
        assert!(!plain.as_str().unwrap().contains("Perl_"), "user stacks only when asked for: {plain}");
        let missing = caller.fails("debug.Stacks", &json!({"CID": "no-such"}), &[]);
        assert_eq!(missing, "container \"no-such\" not found");
    }
    let sleeping = Sandbox::run(&[], &SLEEPING);
    let text = sleeping.state.ok(["debug", "--stacks=all", &sleeping.id]);
    assert!(text.contains("clock_nanosleep +"), "{text}");
    // Neither a stopped nor a paused program is woken or waited for.
    sleeping.state.ok(["kill", &sleeping.id, "STOP"]);
    let pid = sleeping.state.ok(["ps", "--format", "json", &sleeping.id]);
    let pid: i32 = pid.trim().trim_matches(['[', ']']).parse().unwrap();
    let is = |state: char| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim().starts_with(state)
    };
    wait::until("the program stops", || is('T').then_some(()));
    let text = sleeping.state.ok(["debug", "--stacks=all", &sleeping.id]);
    assert!(text.contains("clock_nanosleep +"), "{text}");
    wait::until("the program is stopped again", || is('T').then_some(()));
    sleeping.state.ok(["kill", &sleeping.id, "CONT"]);
    wait::until("the program sleeps on", || is('S').then_some(()));
    for container in [&sleeping, &busy] {
        container.state.ok(["pause", &container.id]);
        let text = container.state.ok(["debug", "--stacks=all", &container.id]);
        assert!(text.contains("clock_nanosleep +") || text.contains("Perl_"), "{text}");
        assert_eq!(container.state.status(&container.id), "paused");
        container.state.ok(["resume", &container.id]);
    }
}

#[test]
fn a_traced_program_is_reported() {
    need!("perl", "strace");
    let busy = Sandbox::run(&[], &BUSY);
    let pids = busy.state.ok(["ps", "--format", "json", &busy.id]);
    let pid = pids.trim().trim_matches(['[', ']']).to_owned();
    let mut strace = Command::new("strace").args(["-q", "-o", "/dev/null", "-p", &pid]).spawn().unwrap();
    wait::until("strace has attached", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().any(|l| l == format!("TracerPid:\t{}", strace.id())).then_some(())
    });
    let text = busy.state.ok(["debug", "--stacks=all", &busy.id]);
    assert!(text.contains("traces it already"), "{text}");
    strace.kill().unwrap();
    strace.wait().unwrap();
    assert_eq!(busy.state.status(&busy.id), "running");
}

#[test]
fn a_containers_profile_names_its_functions() {
    need!("perl");
    let busy = Sandbox::run(&[], &BUSY);
    let (profile, flame) = (busy.file("cpu.pb"), busy.file("cpu.svg"));
    let debug =
        ["debug", "--container", "--duration", "1s", "--profile-cpu", &profile, "--flamegraph", &flame];
    let out = busy.state.run(debug.iter().chain([&busy.id.as_str()]));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if said.contains("perf_event_open") {
        skip!("the kernel takes no samples: {said}");
    }
    assert!(out.status.success(), "{said}");
    let svg = std::fs::read_to_string(&flame).unwrap();
    assert!(
        svg.contains("<svg") && svg.contains("Perl_runops_standard") && svg.trim_end().ends_with("</svg>")
    );
    if which("go").is_none() {
        skip!("needs the program go, to read the profile");
    }
    let top = pprof(&["-top"], &profile);
    assert!(top.contains("Type: cpu") && top.contains("Perl_runops_standard"), "{top}");
    let tags = pprof(&["-tags"], &profile);
    assert!(tags.contains("perl"), "{tags}");
}

#[test]
fn a_containers_profile_that_cannot_be() {
    need!("perl");
    let sandbox = Sandbox::run(&[], &BUSY);
    const METHOD: &str = "Airlock.ProfileContainer";
    let arg = json!({"cid": sandbox.id, "duration": 0});
    let (full, null) =
        (File::options().write(true).open("/dev/full").unwrap(), File::open("/dev/null").unwrap());
    for mut caller in sandbox.both() {
        let fails = |caller: &mut Caller, arg: &Value, fds: &[BorrowedFd<'_>], text: &str| {
            let error = caller.fails(METHOD, arg, fds);
            assert!(error.contains(text), "{error:?} lacks {text:?}");
        };
        fails(&mut caller, &json!({"cid": "x"}), &[full.as_fd()], "container \"x\" not found");
        fails(&mut caller, &arg, &[], "no file came");
        fails(&mut caller, &arg, &[full.as_fd(), full.as_fd(), full.as_fd()], "3 files came, at most 2");
        fails(&mut caller, &arg, &[null.as_fd()], "not open for writing");
        fails(
            &mut caller,
            &json!({"cid": sandbox.id, "frequency": 1_000_000}),
            &[full.as_fd()],
            "1 to 10000",
        );
        let error = caller.fails(METHOD, &arg, &[full.as_fd()]);
        if error.contains("perf_event_open") {
            skip!("the kernel takes no samples: {error}");
        }
        assert!(error.contains("No space left on device"), "{error}");
        // A reader that is gone.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        fails(&mut caller, &arg, &[writer.as_fd()], "Broken pipe");
    }
    assert_eq!(sandbox.state.status(&sandbox.id), "running");
    // A client that goes away ends the profile, and its worker with it.
    let mut client = Caller::json(&sandbox.state.control_socket(&sandbox.id));
    let file = tempfile::tempfile().unwrap();
    let Caller::Json(urpc) = &mut client else { unreachable!() };
    urpc.send(METHOD, &json!({"cid": sandbox.id, "duration": 3_600_000_000_000u64}), &[file.as_fd()]);
    let ns = sandbox.pid_namespace();
    wait::until("a worker is there", || (workers(&ns) == 1).then_some(()));
    drop(client);
    wait::until("the worker ends", || (workers(&ns) == 0).then_some(()));
}

#[test]
fn the_sandbox_process_is_profiled_only_when_it_was_booted_for_it() {
    need!("perl");
    let plain = Sandbox::run(&[], &SLEEPING);
    let kinds = ["CPU", "Heap", "Block", "Mutex", "Trace", "Goroutine"].map(|kind| format!("Profile.{kind}"));
    for mut caller in plain.both() {
        let told = [
            caller.fails("Profile.CPU", &json!({}), &[]),
            caller.fails("Profile.Heap", &json!({}), &[]),
            caller.fails("Profile.Block", &json!({}), &[]),
            caller.fails("Profile.Mutex", &json!({}), &[]),
            caller.fails("Profile.Trace", &json!({}), &[]),
            caller.fails("Profile.Goroutine", &json!({}), &[]),
        ];
        assert!(told.iter().all(|t| t == "unknown method"), "{told:?}");
    }
    let error = plain.state.fails(["debug", "--profile-heap", &plain.file("heap"), &plain.id]);
    assert!(error.contains("--profile"), "{error}");
    let sandbox = Sandbox::run(&["--profile"], &SLEEPING);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for mut caller in sandbox.both() {
        // Without a file they do nothing.
        let short = json!({"duration": 20_000_000});
        let done = [
            caller.ok("Profile.CPU", &short, &[]),
            caller.ok("Profile.Heap", &json!({"delay": 0}), &[]),
            caller.ok("Profile.Block", &short, &[]),
            caller.ok("Profile.Mutex", &short, &[]),
            caller.ok("Profile.Trace", &short, &[]),
            caller.ok("Profile.Goroutine", &json!({}), &[]),
        ];
        assert!(done.iter().all(|d| *d == json!({})), "{done:?}");
        for kind in &kinds {
            let arg = match kind.as_str() {
                "Profile.Goroutine" => json!({}),
                "Profile.Heap" => json!({"delay": 0}),
                _ => json!({"duration": 20_000_000}),
            };
            let error = caller.fails(kind, &arg, &[full.as_fd()]);
            assert!(error.contains("No space left on device"), "{kind}: {error}");
            let many = vec![full.as_fd(); 3];
            assert!(caller.fails(kind, &arg, &many).contains("3 files came"), "{kind}");
            let mut file = tempfile::tempfile().unwrap();
            assert_eq!(caller.ok(kind, &arg, &[file.as_fd()]), json!({}), "{kind}");
            file.rewind().unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            match kind.as_str() {
                "Profile.Goroutine" => assert!(String::from_utf8(bytes).unwrap().contains("loader thread")),
                "Profile.Trace" => {
                    let trace: Value = serde_json::from_slice(&bytes).unwrap();
                    assert!(trace["traceEvents"].is_array());
                }
                _ => assert_eq!(bytes[..2], [0x1f, 0x8b], "{kind} is gzipped"),
            }
        }
    }
}

#[test]
fn profiles_of_the_sandbox_process_are_read_by_pprof() {
    need!("perl", "go");
    let sandbox = Sandbox::run(&["--profile"], &SLEEPING);
    let files = ["cpu", "heap", "block", "mutex"].map(|kind| (kind, sandbox.file(kind)));
    let mut words = vec!["debug".to_owned(), "--duration=1s".to_owned(), "--delay=900ms".to_owned()];
    words.extend(files.iter().map(|(kind, file)| format!("--profile-{kind}={file}")));
    words.push(sandbox.id.clone());
    let mut debug = sandbox.state.command(&words).spawn().unwrap();
    // Something to be seen.
    while debug.try_wait().unwrap().is_none() {
        sandbox.state.ok(["debug", "--stacks", &sandbox.id]);
    }
    assert!(debug.wait().unwrap().success());
    let [cpu, heap, block, mutex] = files.map(|(_, file)| file);
    assert!(pprof(&["-top"], &cpu).contains("airlock_"), "{}", pprof(&["-top"], &cpu));
    let space = pprof(&["-top", "-cum", "-sample_index=alloc_space"], &heap);
    assert!(space.contains("airlock_controller"), "{space}");
    let waits = pprof(&["-top", "-cum"], &block);
    assert!(waits.contains("Type: delay") && waits.contains("poll"), "{waits}");
    assert!(pprof(&["-top"], &mutex).contains("Type: delay"));
}

/// What strace writes into a log, without what the loader does.
fn strace_lines(log: &str) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    text.lines().filter_map(|l| Some(l.split_once("] strace: ")?.1.to_owned())).collect()
}

#[test]
fn system_calls_are_in_the_log_while_that_is_asked_for() {
    need!("busybox");
    if let Err(e) = airlock_loader::sys::tracing::kernel_types() {
        skip!("needs BPF with the kernel's types: {e}");
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log").to_str().unwrap().to_owned();
    // The level of the log does not matter.
    let sandbox = Sandbox::run(&["--debug-log", &log], &SLEEPING);
    let (state, id) = (&sandbox.state, sandbox.id.as_str());
    state.ok(["debug", "--log-level", "warning", id]);
    let change = |caller: &mut Caller, on: bool, names: Value| {
        caller.ok(
            "Logging.Change",
            &json!({"SetStrace": true, "EnableStrace": on, "StraceAllowlist": names}),
            &[],
        );
    };
    let cat = |name: &str| state.fails(["exec", id, "/bin/sh", "-c", &format!("/bin/cat {name}; exit 1")]);
    let count = |text: &str| strace_lines(&log).iter().filter(|l| l.contains(text)).count();
    for (n, mut caller) in sandbox.both().into_iter().enumerate() {
        cat("/no/before");
        change(&mut caller, true, json!(["openat", "execve", "exit_group"]));
        let file = format!("/no/such-{n}");
        cat(&file);
        // Unknown names change nothing, and a session of a user's own is another matter.
        let wrong = json!({"SetStrace": true, "EnableStrace": true, "StraceAllowlist": ["openat", "reed"]});
        let error = caller.fails("Logging.Change", &wrong, &[]);
        assert!(error.starts_with("error configuring strace: syscall \"reed\" not found"), "{error}");
        let session = json!({"Config": {"name": "Default", "points": [{"name": "sentry/execve"}],
            "sinks": [{"name": "file"}]}});
        let mut events = tempfile::tempfile().unwrap();
        caller.ok("containerManager.CreateTraceSession", &session, &[events.as_fd()]);
        cat("/no/both");
        change(&mut caller, false, Value::Null);
        let lines = strace_lines(&log);
        let opened = format!(
            "cat: openat(fd: AT_FDCWD, pathname: \"{file}\", flags: O_RDONLY, mode: 0o0) = -1 ENOENT (No such file or directory)"
        );
        assert_eq!(count(&opened), 1, "{lines:#?}");
        assert!(
            count(&format!("pathname: \"/bin/cat\", argv: [\"/bin/cat\", \"{file}\"]")) > 0,
            "{lines:#?}"
        );
        assert!(lines.iter().any(|l| l.contains(": exit_group(status: 1) <unfinished ...>")), "{lines:#?}");
        assert_eq!((count("/no/before"), count(" read("), count("close(")), (0, 0, 0), "{lines:#?}");
        assert!(count("\"/no/both\"") > 0, "{lines:#?}");
        cat("/no/after");
        caller.ok("containerManager.DeleteTraceSession", &json!("Default"), &[]);
        let mut told = String::new();
        events.rewind().unwrap();
        events.read_to_string(&mut told).unwrap();
        assert!(told.contains("/no/both") && told.contains("/no/after"), "{told}");
        assert_eq!(strace_lines(&log), lines, "nothing more once it is off");
    }
    // Every call, replaced by some, by the command line.
    state.ok(["debug", "--strace=all", id]);
    cat("/no/all");
    state.ok(["debug", "--strace", "read,statx", id]);
    let all = strace_lines(&log);
    for name in [": mmap(", ": brk(", ": execve(", ": close(", ": write("] {
        assert!(all.iter().any(|l| l.contains(name)), "{name}: {all:#?}");
    }
    let shown = |parts: &[&str]| all.iter().any(|l| parts.iter().all(|part| l.contains(part)));
    assert!(shown(&[": open", "\"/no/all\"", "O_RDONLY", "ENOENT"]), "{all:#?}");
    assert!(shown(&[": write(fd: 2", "data: \"/no/all\""]), "{all:#?}");
    assert!(shown(&[": exit_group(status: 1)"]), "{all:#?}");
    cat("/no/some");
    state.ok(["debug", "-strace", "none", id]);
    let some = strace_lines(&log).split_off(all.len());
    assert!(some.iter().any(|l| l.contains(": read(fd: ")), "{some:#?}");
    assert!(some.iter().all(|l| l.contains(": read(") || l.contains(": statx(")), "{some:#?}");
    let error = state.fails(["debug", "--strace", "read,reed", id]);
    assert!(error.contains("syscall \"reed\" not found"), "{error}");
    // It ends with the sandbox.
    let ns = sandbox.pid_namespace();
    wait::until("nobody works while it is off", || (workers(&ns) == 0).then_some(()));
    state.ok(["debug", "--strace", "all", id]);
    assert_eq!(workers(&ns), 1);
    state.ok(["delete", "--force", id]);
    wait::until("the worker ends", || (workers(&ns) == 0).then_some(()));
}

#[test]
fn without_a_log_there_is_no_place_for_system_calls() {
    let sandbox = Sandbox::run(&[], &SLEEPING);
    for mut caller in sandbox.both() {
        let on = json!({"SetStrace": true, "EnableStrace": true});
        let error = caller.fails("Logging.Change", &on, &[]);
        assert!(error.starts_with("error configuring strace: this sandbox has no log"), "{error}");
        caller.ok("Logging.Change", &json!({"SetStrace": true}), &[]);
    }
    assert!(sandbox.state.fails(["debug", "--strace=all", &sandbox.id]).contains("--debug-log"));
}

#[test]
fn the_command_does_what_its_options_say() {
    need!("perl");
    let sandbox = Sandbox::run(&[], &SLEEPING);
    let (state, id) = (&sandbox.state, sandbox.id.as_str());
    let processes: Value = serde_json::from_str(&state.ok(["debug", "--ps", id])).unwrap();
    assert_eq!(processes[0]["cmd"], "sleep");
    let pid = state.state(id)["pid"].to_string();
    assert!(state.ok(["debug", "--pid", &pid, "-stacks"]).contains("loader thread"));
    assert_eq!(state.ok(["debug", "-stacks=false", "-log-level", "debug", "-log-packets=false", id]), "");
    assert_eq!(state.ok(["debug", "--log-packets=true", id]), "");
    for (words, says) in [
        (&["--log-level", "loud"][..], "none of warning"),
        (&["--container"], "--profile-cpu"),
        (&["--mount", "image"], "IMAGE:PATH"),
        (&["--mount", "/no/such/image:/mnt"], "/no/such/image"),
        (&["--profile-cpu", "/no/such/dir/file", "--container"], "/no/such/dir/file"),
    ] {
        let mut all = vec!["debug"];
        all.extend(words);
        all.push(id);
        let error = state.fails(&all);
        assert!(error.contains(says), "{words:?}: {error}");
    }
    assert!(state.fails(["debug", "--ps", "no-such"]).contains("does not exist"));
    assert!(state.fails(["debug", "--pid", "1", "--ps"]).contains("no sandbox below --root"));
    // TERM would be ignored by a PID 1 that has no handler for it.
    state.ok(["debug", "--signal", "KILL", id]);
    wait::until("the container ends", || (state.status(id) == "stopped").then_some(()));
    assert!(state.fails(["debug", "--stacks", id]).contains("not running"));
    assert!(state.fails(["debug", "--signal", "TERM", id]).contains("not running"));
}
