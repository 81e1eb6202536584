//! `hooks` of the OCI runtime spec: all six kinds, where and when they run, what they get, and what their failure does.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::oci::{Ran, refused, run_in};
use airlock_tests::{Bundle, State, need, unique, wait};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// A hook that runs `script`. Its environment is the path alone.
fn hook(shell: &str, script: &str) -> Value {
    json!({"path": shell, "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
}

const EARLY: [&str; 3] = ["prestart", "createRuntime", "createContainer"];
const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Runs in the container's root; the others find the host's.
fn shell_of(kind: &str) -> &'static str {
    if kind == "startContainer" { "/bin/busybox" } else { "/bin/sh" }
}

/// A bundle whose hooks of every kind write what they read to `<out>/<kind>`, and their kind to `<out>/order`.
fn watched(out: &Path, program: &str) -> Bundle {
    Bundle::with(&["sh", "-c", program], |c| {
        let dir = out.display();
        for kind in KINDS {
            let script = format!(
                "cat >{dir}/{kind}; echo {kind} >>{dir}/order; readlink /proc/self/ns/net >{dir}/{kind}.net"
            );
            c["hooks"][kind] = json!([hook(shell_of(kind), &script)]);
        }
        c["annotations"] = json!({"org.example": "x y"});
        // The container's hook and program write to the same place.
        airlock_tests::oci::mount(c, out.to_str().unwrap(), "bind", out.to_str().unwrap(), &["bind"]);
    })
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn all_six_in_order_with_the_state_on_standard_input() {
    need!("busybox");
    let out = tempfile::tempdir().unwrap();
    let order =
        || read(out.path().join("order")).split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let bundle = watched(out.path(), &format!("echo program >>{}/order; sleep 1000", out.path().display()));
    let state = State::new();
    let id = unique("oci");
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    assert_eq!(order(), EARLY);
    let pid = state.state(&id)["pid"].as_i64().unwrap();
    state.ok(["start", &id]);
    let mut begun = wait::until("the program", || Some(order()).filter(|o| o.len() >= 6));
    // The program runs while poststart hooks do.
    begin_sorted(&mut begun);
    assert_eq!(
        begun,
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "program"]
    );
    assert!(!out.path().join("poststop").exists());
    state.ok(["kill", &id, "KILL"]);
    wait::until("stopped", || (state.status(&id) == "stopped").then_some(()));
    assert!(!out.path().join("poststop").exists(), "only delete runs it");
    state.ok(["delete", &id]);
    assert_eq!(order().last().unwrap(), "poststop");

    let net = |kind: &str| read(out.path().join(format!("{kind}.net"))).trim().to_owned();
    let host = std::fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap().to_owned();
    for kind in KINDS {
        let got: Value = serde_json::from_str(&read(out.path().join(kind))).unwrap();
        assert_eq!((&got["ociVersion"], &got["id"]), (&json!("1.0.2"), &json!(id)), "{kind}");
        assert_eq!(
            (&got["bundle"], &got["annotations"]["org.example"]),
            (&json!(bundle.path()), &json!("x y"))
        );
        let (status, in_container) = match kind {
            "prestart" | "createRuntime" => ("creating", false),
            "createContainer" => ("creating", true),
            "startContainer" => ("created", true),
            "poststart" => ("running", false),
            _ => ("stopped", false),
        };
        assert_eq!(got["status"], status, "{kind}");
        match kind {
            "poststop" => assert!(got.get("pid").is_none_or(|p| p == 0), "{got}"),
            // As the container sees it.
            _ if in_container => assert_eq!(got["pid"], 1, "{kind}"),
            _ => assert_eq!(got["pid"], pid, "{kind}"),
        }
        // (The container has its own network, and procfs of the host shows that of a hook in the container.)
        if kind == "startContainer" || !in_container {
            assert_eq!(net(kind) == host, !in_container, "{kind}: {}", net(kind));
        }
    }
}

fn begin_sorted(order: &mut [String]) {
    order[4..].sort();
}

#[test]
fn the_environment_and_arguments_are_exactly_those_given() {
    need!("busybox");
    let out = tempfile::tempdir().unwrap();
    let state = State::new();
    let bundle = Bundle::with(&["true"], |c| {
        airlock_tests::oci::mount(
            c,
            out.path().to_str().unwrap(),
            "bind",
            out.path().to_str().unwrap(),
            &["bind"],
        );
        for kind in KINDS {
            // The program's name too; and no variable of ours.
            let script = format!(
                "{{ echo \"$0|$1|$2\"; cat /proc/self/environ | tr '\\0' '\\n' | grep -v '^_='; }} >{}/{kind}",
                out.path().display()
            );
            c["hooks"][kind] = json!([{"path": shell_of(kind), "args": ["sh", "-c", script, "name", "a b", ""],
                "env": ["PATH=/bin:/usr/bin", "B=2 3", "EMPTY="]}]);
        }
    });
    let mut command = state.command(["run", "--bundle", bundle.text(), &unique("oci")]);
    let ran: Ran = command.env("SECRET_OF_THE_CALLER", "1").output().unwrap().into();
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    for kind in KINDS {
        let text = read(out.path().join(kind));
        let mut lines: Vec<&str> = text
            .lines()
            .filter(|l| !l.starts_with("PWD=") && !l.starts_with("SHLVL=") && !l.starts_with("OLDPWD="))
            .collect();
        lines[1..].sort_unstable();
        assert_eq!(lines, ["name|a b|", "B=2 3", "EMPTY=", "PATH=/bin:/usr/bin"], "{kind}");
    }
}

#[test]
fn create_container_hooks_see_the_hosts_files_and_the_containers_mounts() {
    need!("busybox");
    let out = tempfile::tempdir().unwrap();
    let host_file = out.path().join("host-file");
    std::fs::write(&host_file, "").unwrap();
    let state = State::new();
    let bundle = Bundle::with(&["cat", "/from-hook"], |c| {
        let script = format!(
            "test -e {} && root=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')/rootfs && test -d $root/proc/1 && echo content >$root/from-hook",
            host_file.display()
        );
        c["hooks"]["createContainer"] = json!([hook("/bin/sh", &script)]);
    });
    let rootfs = bundle.rootfs();
    let mut config = bundle.config();
    // Such hooks find the container's tree where root.path says, if that is absolute (containerd's is).
    config["root"]["path"] = json!(rootfs);
    bundle.write_config(&config);
    let ran = run_in(&state, &bundle);
    assert_eq!((ran.stdout.as_str(), ran.code), ("content\n", Some(0)), "{}", ran.stderr);
    assert!(!rootfs.join("proc/1").exists(), "the host did not see the mounts");
}

/// Runs a container one of whose hooks fails; returns what `run` said and which hooks ran.
fn failing(kind: &str) -> (Ran, Vec<String>, String) {
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().display();
    let state = State::new();
    // Not the beginning of another test's.
    let id = unique("oci") + "-failing";
    let bundle = Bundle::with(&["sh", "-c", &format!("echo program >>{dir}/order; sleep 1000")], |c| {
        airlock_tests::oci::mount(
            c,
            out.path().to_str().unwrap(),
            "bind",
            out.path().to_str().unwrap(),
            &["bind"],
        );
        for other in KINDS {
            let say = format!("cat >/dev/null; echo {other} >>{dir}/order");
            c["hooks"][other] = json!([hook(shell_of(other), &say)]);
        }
        let shell = shell_of(kind);
        c["hooks"][kind] = json!([
            hook(shell, "echo broken thing >&2; exit 3"),
            hook(shell, &format!("echo second >>{dir}/order"))
        ]);
    });
    let ran: Ran = state.run(["run", "--bundle", bundle.text(), &id]).into();
    let left = state.ok(["list", "-q"]);
    assert_eq!(airlock_tests::leaks::cgroups(&id), Vec::<String>::new());
    (ran, read(out.path().join("order")).split_ascii_whitespace().map(str::to_owned).collect(), left)
}

#[test]
fn a_hook_that_fails_undoes_what_was_made() {
    need!("busybox");
    for (kind, before) in [
        ("prestart", vec![]),
        ("createRuntime", vec!["prestart"]),
        ("createContainer", vec!["prestart", "createRuntime"]),
        ("startContainer", vec!["prestart", "createRuntime", "createContainer"]),
    ] {
        let (ran, order, left) = failing(kind);
        assert_eq!((ran.code, left.as_str()), (Some(1), ""), "{kind}: {}", ran.stderr);
        assert!(
            ran.stderr.contains(&format!("{kind} hook #0")) && ran.stderr.contains("exit status 3"),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("broken thing") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
        let ran: Vec<&String> = order.iter().filter(|o| *o != "poststop").collect();
        assert_eq!(ran, before, "{kind}");
    }
}

#[test]
fn a_poststart_hook_that_fails_ends_the_container() {
    need!("busybox");
    let (ran, order, left) = failing("poststart");
    assert_eq!((ran.code, left.as_str()), (Some(1), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("poststart hook #0"), "{}", ran.stderr);
    assert!(!order.contains(&"second".to_owned()), "{order:?}");

    // Likewise with start; the container is stopped then.
    let state = State::new();
    let bundle =
        Bundle::with(&["sleep", "1000"], |c| c["hooks"]["poststart"] = json!([{"path": "/bin/false"}]));
    let id = unique("oci");
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    assert!(state.fails(["start", &id]).contains("poststart hook #0 (/bin/false)"));
    wait::until("stopped", || (state.status(&id) == "stopped").then_some(()));
}

#[test]
fn a_poststop_hook_that_fails_stops_nothing() {
    need!("busybox");
    let out = tempfile::tempdir().unwrap();
    let state = State::new();
    let bundle = Bundle::with(&["true"], |c| {
        c["hooks"]["poststop"] = json!([{"path": "/bin/false"}]);
    });
    let ran = run_in(&state, &bundle);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(state.ok(["list", "-q"]), "");
    drop(out);
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    need!("busybox");
    for kind in ["createRuntime", "createContainer", "startContainer"] {
        let state = State::new();
        let bundle = Bundle::with(&["true"], |c| {
            let mut slow = hook(shell_of(kind), "exec sleep 1000");
            slow["timeout"] = json!(1);
            c["hooks"][kind] = json!([slow]);
        });
        let begun = Instant::now();
        let ran = run_in(&state, &bundle);
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.stderr.contains(&format!("{kind} hook #0")) && ran.stderr.contains("timeout of 1 s"),
            "{}",
            ran.stderr
        );
        assert!(begun.elapsed().as_secs() < 100, "it did not wait for the hook");
    }
}

#[test]
fn hooks_may_be_noisy_and_deaf() {
    need!("busybox");
    let state = State::new();
    let bundle = Bundle::with(&["echo", "ran"], |c| {
        // A state larger than a pipe, which nobody reads; more output than a pipe takes; a descendant that stays.
        c["annotations"] = json!({"big": "x".repeat(200_000)});
        for kind in KINDS {
            c["hooks"][kind] =
                json!([hook(shell_of(kind), "head -c 300000 /dev/zero >&2; sleep 3 & exit 0")]);
        }
    });
    let ran = run_in(&state, &bundle);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "ran\n", ""));
}

#[test]
fn wrong_hooks_are_refused_by_name() {
    need!("busybox");
    for kind in KINDS {
        let path = format!("hooks.{kind}[0]");
        assert!(refused(|c| c["hooks"][kind] = json!([{"path": "relative"}])).contains(&path));
        assert!(refused(|c| c["hooks"][kind] = json!([{"path": "/bin/true", "timeout": 0}])).contains(&path));
    }
    for kind in EARLY {
        let told = refused(|c| c["hooks"][kind] = json!([{"path": "/no/such/hook"}]));
        assert!(told.contains("/no/such/hook") && told.contains(kind), "{told}");
    }
}
