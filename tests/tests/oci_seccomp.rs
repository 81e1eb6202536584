//! `linux.seccomp` of the OCI runtime spec in real containers, and the agents that decide on calls.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::fds::{FdSocket, Message};
use airlock_tests::oci::{Ran, field, output, refused, run, run_in};
use airlock_tests::{Bundle, State, need, unique, wait};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

/// A profile that allows everything but `rules`.
fn profile(rules: Value) -> impl FnOnce(&mut Value) {
    move |c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
}

/// What becomes of mkdir(2), with and without new privileges forbidden: that is when the filter is loaded early.
fn mkdir_under(rule: Value, mut look: impl FnMut(Ran)) {
    for forbidden in [true, false] {
        let rule = rule.clone();
        look(run("mkdir /tmp/d; echo status $?; grep Seccomp: /proc/self/status", move |c| {
            c["process"]["noNewPrivileges"] = json!(forbidden);
            profile(json!([rule]))(c);
        }));
    }
}

#[test]
fn errno_with_its_number() {
    need!("busybox");
    mkdir_under(json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}), |ran| {
        assert!(
            ran.stderr.contains("Disk quota exceeded") || ran.stderr.contains("Quota exceeded"),
            "{}",
            ran.stderr
        );
        assert_eq!(ran.stdout, "status 1\nSeccomp:\t2\n");
    });
    mkdir_under(json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}), |ran| {
        assert!(ran.stderr.contains("Operation not permitted"), "{}", ran.stderr);
    });
}

#[test]
fn kill_trap_log_and_allow() {
    need!("busybox");
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        mkdir_under(json!({"names": ["mkdir", "mkdirat"], "action": action}), |ran| {
            // SIGSYS.
            assert_eq!(ran.stdout, "status 159\nSeccomp:\t2\n", "{action}: {}", ran.stderr);
        });
    }
    for action in ["SCMP_ACT_LOG", "SCMP_ACT_ALLOW"] {
        mkdir_under(json!({"names": ["mkdir", "mkdirat"], "action": action}), |ran| {
            assert!(ran.stdout.starts_with("status 0\n"), "{action}: {}", ran.stderr);
        });
    }
    // Nobody traces it.
    mkdir_under(json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_TRACE", "errnoRet": 7}), |ran| {
        assert!(ran.stderr.contains("Function not implemented"), "{}", ran.stderr);
    });
    // A container whose own program is killed so ends of SIGSYS.
    let ran = run_in(
        &State::new(),
        &Bundle::with(
            &["mkdir", "/tmp/d"],
            profile(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}])),
        ),
    );
    assert_eq!(ran.code, Some(128 + 31));
}

#[test]
fn arguments_decide() {
    need!("busybox");
    // nanosleep is not what busybox' sleep may call; kill(2)'s second argument is what is looked at.
    let script = "for s in 0 10 12; do kill -$s $$ 2>/dev/null && echo $s yes || echo $s no; done";
    let with = |args: Value| {
        let rule = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": args}]);
        output(&format!("trap '' USR1 USR2; {script}"), profile(rule))
    };
    assert_eq!(with(json!([{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}])), "0 yes\n10 no\n12 yes\n");
    assert_eq!(with(json!([{"index": 1, "value": 10, "op": "SCMP_CMP_GE"}])), "0 yes\n10 no\n12 no\n");
    assert_eq!(
        with(json!([{"index": 1, "value": 8, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"}])),
        "0 yes\n10 no\n12 no\n"
    );
    assert_eq!(
        with(
            json!([{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 99, "op": "SCMP_CMP_EQ"}])
        ),
        "0 yes\n10 yes\n12 yes\n"
    );
}

#[test]
fn dockers_default_profile() {
    need!("busybox");
    let text = include_str!("../data/seccomp-docker-default.json");
    let docker: Value = serde_json::from_str(text).unwrap();
    let script = "id -u; touch /tmp/f; ls /tmp; sleep 0; echo a | cat; grep Seccomp: /proc/self/status
        unshare -U true 2>&1; mount -t tmpfs t /tmp 2>&1; date -s 2020-01-01 >/dev/null 2>&1 || echo no clock";
    for forbidden in [true, false] {
        let docker = docker.clone();
        let seen = output(script, |c| {
            c["linux"]["seccomp"] = docker;
            c["process"]["noNewPrivileges"] = json!(forbidden);
            airlock_tests::oci::all_capabilities(c);
        });
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!(lines[..4], ["0", "f", "a", "Seccomp:\t2"], "{seen}");
        assert!(lines[4].contains("unshare") && lines[4].contains("not permitted"), "{seen}");
        assert!(lines[5].contains("mount") && lines[5].to_lowercase().contains("permi"), "{seen}");
    }
}

#[test]
fn exec_gets_the_containers_filter() {
    need!("busybox");
    let bundle = Bundle::with(
        &["sleep", "1000"],
        profile(json!([{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}])),
    );
    let state = State::new();
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let ran: Ran = state.run(["exec", &id, "mkdir", "/tmp/x"]).into();
    assert!(ran.code == Some(1) && ran.stderr.contains("No space left"), "{}", ran.stderr);
    assert_eq!(field(&state.ok(["exec", &id, "cat", "/proc/self/status"]), "Seccomp"), "2");
}

/// Reads one notification on standard input, answers it (`continue`, or an error number), and prints the call's number
/// and the pid; until the listener is over.
const AGENT: &str = r"
import fcntl, struct, sys
while True:
    request = bytearray(80)
    try:
        fcntl.ioctl(0, 0xc0502100, request)
    except OSError:
        break
    id, pid, flags, nr = struct.unpack_from('QIIi', request)
    print(nr, pid, flush=True)
    answer = sys.argv[1]
    if answer == 'continue':
        response = struct.pack('QqiI', id, 0, 0, 1)
    else:
        response = struct.pack('QqiI', id, 0, -int(answer), 0)
    try:
        fcntl.ioctl(0, 0xc0182101, response)
    except OSError:
        pass
";

/// An agent: receives `count` listeners, serves each in a process of its own, and gives back the messages and what the
/// processes printed.
fn agent(
    socket: FdSocket,
    count: usize,
    answer: &'static str,
) -> JoinHandle<Vec<(Message, std::process::Child)>> {
    std::thread::spawn(move || {
        (0..count)
            .map(|_| {
                let mut message = socket.receive();
                let listener = message.fds.pop().unwrap();
                let served = Command::new("python3")
                    .args(["-c", AGENT, answer])
                    .stdin(Stdio::from(listener))
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                (message, served)
            })
            .collect()
    })
}

fn notifying(c: &mut Value, names: &[&str], socket: &FdSocket, forbidden: bool) {
    c["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket.text(), "listenerMetadata": "for the agent",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]
    });
    c["process"]["noNewPrivileges"] = json!(forbidden);
}

/// Calls that were asked about.
fn calls(served: std::process::Child) -> Vec<String> {
    let out = served.wait_with_output().unwrap();
    String::from_utf8(out.stdout).unwrap().lines().map(|l| l.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn an_agent_decides_for_create_run_and_exec() {
    need!("busybox", "python3");
    for forbidden in [true, false] {
        let socket = FdSocket::new();
        let bundle = Bundle::with(&["sh", "-c", "mkdir /tmp/one 2>/tmp/said; sleep 1000"], |c| {
            notifying(c, &["mkdir", "mkdirat"], &socket, forbidden);
            c["annotations"] = json!({"who": "me"});
        });
        let agent = agent(socket, 2, "122");
        let state = State::new();
        let id = unique("oci");
        state.detached(&["create", "--bundle", bundle.text(), &id]);
        let pid = state.state(&id)["pid"].clone();
        state.ok(["start", &id]);
        let said = bundle.rootfs().join("tmp/said");
        wait::until("the call's end", || std::fs::read_to_string(&said).ok().filter(|s| s.contains('\n')));
        assert!(std::fs::read_to_string(&said).unwrap().to_lowercase().contains("quota exceeded"));

        let ran: Ran = state.run(["exec", &id, "mkdir", "/tmp/two"]).into();
        assert!(
            ran.code == Some(1) && ran.stderr.to_lowercase().contains("quota exceeded"),
            "{}",
            ran.stderr
        );
        assert!(!bundle.rootfs().join("tmp/one").exists() && !bundle.rootfs().join("tmp/two").exists());

        state.ok(["delete", "--force", &id]);
        let mut served = agent.join().unwrap();
        let (second, first) = (served.pop().unwrap(), served.pop().unwrap());
        let message: Value = serde_json::from_str(&first.0.text).unwrap();
        assert_eq!((&message["fds"], &message["metadata"]), (&json!(["seccompFd"]), &json!("for the agent")));
        assert_eq!((&message["pid"], &message["ociVersion"]), (&pid, &json!("1.0.2")));
        let about = &message["state"];
        assert_eq!((&about["id"], &about["status"], &about["pid"]), (&json!(id), &json!("creating"), &pid));
        assert_eq!((&about["bundle"], &about["annotations"]["who"]), (&json!(bundle.path()), &json!("me")));
        let message: Value = serde_json::from_str(&second.0.text).unwrap();
        assert_eq!((&message["state"]["status"], &message["state"]["pid"]), (&json!("running"), &pid));
        assert_ne!(message["pid"], pid, "of exec's own stand-in");
        for (_, process) in [first, second] {
            assert_eq!(calls(process), ["83"], "one mkdir(2)");
        }
    }
}

#[test]
fn calls_that_come_before_the_program_wait_for_the_agent() {
    need!("busybox", "python3");
    for forbidden in [true, false] {
        let socket = FdSocket::new();
        let bundle = Bundle::with(&["echo", "ran"], |c| {
            notifying(c, &["execve", "setgid", "capset"], &socket, forbidden)
        });
        let agent = agent(socket, 1, "continue");
        let ran = run_in(&State::new(), &bundle);
        assert_eq!((ran.stdout.as_str(), ran.code), ("ran\n", Some(0)), "{}", ran.stderr);
        let (_, process) = agent.join().unwrap().pop().unwrap();
        assert!(calls(process).contains(&"59".to_owned()));
    }
}

#[test]
fn an_exec_waits_for_the_agent_too() {
    need!("busybox", "python3");
    let socket = FdSocket::new();
    let bundle = Bundle::with(&["sleep", "1000"], |c| notifying(c, &["execve"], &socket, true));
    let agent = agent(socket, 3, "continue");
    let state = State::new();
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    assert_eq!(state.ok(["exec", &id, "echo", "ran"]), "ran\n");
    let pid_file = bundle.path().join("pid");
    state.detached(&["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), &id, "touch", "/tmp/detached"]);
    wait::until("the detached program", || bundle.rootfs().join("tmp/detached").exists().then_some(()));
    state.ok(["delete", "--force", &id]);
    for (_, process) in agent.join().unwrap() {
        assert_eq!(calls(process), ["59"]);
    }
}

#[test]
fn without_an_agent_nothing_is_made() {
    need!("busybox");
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let missing = dir.path().join("nobody");
    let rules = json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]);
    let told = refused(|c| {
        c["linux"]["seccomp"] =
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules.clone(), "listenerPath": missing});
    });
    assert!(told.contains("linux.seccomp.listenerPath") && told.contains("nobody"), "{told}");
    let told =
        refused(|c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
    assert!(told.contains("linux.seccomp.listenerPath"), "{told}");
}

#[test]
fn wrong_profiles_are_refused_by_name() {
    need!("busybox");
    for (seccomp, said) in [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_ERRNO"}]}),
            "linux.seccomp.syscalls[0].names",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_KILL", "errnoRet": 1}]}),
            "linux.seccomp.syscalls[0]",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}),
            "linux.seccomp.syscalls[0].args[0]",
        ),
    ] {
        let told = refused(|c| c["linux"]["seccomp"] = seccomp);
        assert!(told.contains(said) && told.matches("linux.seccomp").count() == 1, "{said}: {told}");
    }
    // Unknown names mean nothing, as in runc.
    output("true", profile(json!([{"names": ["no_such_call"], "action": "SCMP_ACT_KILL"}])));
}

#[test]
fn flags() {
    need!("busybox");
    output("true", |c| {
        c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_RISCV64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
    });
    assert!(
        refused(|c| c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}))
            .contains("config.json")
    );
}
