//! Pods: containers that annotations place into an existing sandbox, as Kubernetes' runtimes make them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "pods/hints.rs"]
mod hints;
#[path = "pods/proxies.rs"]
mod proxies;

use airlock_tests::{Bundle, State, leaks, need, unique, wait};
use serde_json::{Value, json};

/// The names that containerd and CRI-O use.
const CRI: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"];
const CRIO: [&str; 2] = ["io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"];

/// A bundle of a container that belongs to `pod`.
fn member(pod: &str, names: [&str; 2], args: &[&str], edit: impl FnOnce(&mut Value)) -> Bundle {
    Bundle::with(args, |c| {
        c["annotations"] = json!({(names[0]): "container", (names[1]): pod});
        edit(c);
    })
}

/// A running sandbox with a root container that sleeps.
struct Pod {
    state: State,
    id: String,
    _bundle: Bundle,
}

impl Pod {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(edit: impl FnOnce(&mut Value)) -> Self {
        let (state, id) = (State::new(), unique("pod"));
        let bundle = Bundle::with(&["/bin/sleep", "1000"], |c| {
            c["annotations"] = json!({(CRI[0]): "sandbox"});
            edit(c);
        });
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Self { state, id, _bundle: bundle }
    }

    /// Starts a further container that sleeps.
    fn add(&self, edit: impl FnOnce(&mut Value)) -> Member {
        self.add_running(&["/bin/sleep", "1000"], edit)
    }

    fn add_running(&self, args: &[&str], edit: impl FnOnce(&mut Value)) -> Member {
        let (id, bundle) = (unique("member"), member(&self.id, CRI, args, edit));
        self.state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Member { id, bundle }
    }

    fn shell(&self, id: &str, script: &str) -> String {
        self.state.ok(["exec", id, "/bin/sh", "-c", script]).trim().to_owned()
    }

    fn namespace(&self, id: &str, kind: &str) -> String {
        self.shell(id, &format!("readlink /proc/self/ns/{kind}"))
    }

    fn pid(&self, id: &str) -> i32 {
        self.state.state(id)["pid"].as_i64().unwrap() as i32
    }

    fn until_stopped(&self, id: &str) {
        wait::until("the container stops", || (self.state.status(id) == "stopped").then_some(()));
    }
}

struct Member {
    id: String,
    bundle: Bundle,
}

fn without_pid_namespace(config: &mut Value) {
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
}

#[test]
fn members_share_network_ipc_and_uts_and_have_their_own_pids_mounts_and_cgroups() {
    need!("busybox");
    let pod = Pod::new();
    for names in [CRI, CRIO] {
        let (id, bundle) = (unique("member"), member(&pod.id, names, &["/bin/sleep", "1000"], |_| {}));
        pod.state.detached(&["create", "--bundle", bundle.text(), &id]);
        assert_eq!(pod.state.status(&id), "created");
        pod.state.ok(["start", &id]);
        assert_eq!(pod.state.status(&id), "running");
        for kind in ["net", "ipc", "uts"] {
            assert_eq!(pod.namespace(&id, kind), pod.namespace(&pod.id, kind), "{kind}");
        }
        for kind in ["pid", "mnt"] {
            assert_ne!(pod.namespace(&id, kind), pod.namespace(&pod.id, kind), "{kind}");
        }
        assert_eq!(pod.shell(&id, "hostname"), "airlock-test");
        // Its own processes and no other's.
        let list = |id: &str| -> Vec<i32> {
            serde_json::from_str(&pod.state.ok(["ps", "--format", "json", id])).unwrap()
        };
        let (root, own) = (list(&pod.id), list(&id));
        assert!(root.iter().all(|pid| !own.contains(pid)), "{root:?} {own:?}");
        assert_eq!((root.len(), own.len()), (1, 1));
        // Its own files: what the one writes the other does not see.
        pod.shell(&id, "touch /tmp/mine");
        assert_eq!(pod.shell(&pod.id, "ls /tmp"), "");
        assert!(!leaks::cgroups(&id).is_empty());
        // It does not live in the sandbox's own state, and no sandbox was made for it.
        assert!(!pod.state.control_socket(&id).exists());
        pod.state.ok(["kill", "--all", &id, "KILL"]);
        pod.until_stopped(&id);
        assert_eq!(pod.state.status(&pod.id), "running");
        pod.state.ok(["delete", &id]);
        leaks::nothing_left(&pod.state, &id);
    }
}

#[test]
fn the_sandbox_annotation_makes_a_sandbox_and_unknown_types_are_refused() {
    need!("busybox");
    let state = State::new();
    for names in [CRI, CRIO] {
        let refuse = |bundle: &Bundle| state.fails(["create", "--bundle", bundle.text(), &unique("member")]);
        let odd = Bundle::with(&["/bin/true"], |c| c["annotations"] = json!({(names[0]): "planet"}));
        assert!(refuse(&odd).contains("planet"));
        let alone = Bundle::with(&["/bin/true"], |c| c["annotations"] = json!({(names[0]): "container"}));
        assert!(refuse(&alone).contains(names[1]));
        let nowhere = member("no-such-pod", names, &["/bin/true"], |_| {});
        assert!(refuse(&nowhere).contains("no-such-pod"));
        let escape = member("../../etc", names, &["/bin/true"], |_| {});
        assert!(refuse(&escape).contains(names[1]));
        let id = unique("own");
        let own = member(&id, names, &["/bin/true"], |_| {});
        assert!(state.fails(["create", "--bundle", own.text(), &id]).contains("names the container itself"));
    }
    assert!(state.ok(["list", "-q"]).is_empty());
}

#[test]
fn a_member_is_no_sandbox() {
    need!("busybox");
    let pod = Pod::new();
    let first = pod.add(|_| {});
    let bundle = member(&first.id, CRI, &["/bin/true"], |_| {});
    let text = pod.state.fails(["create", "--bundle", bundle.text(), &unique("member")]);
    assert!(text.contains("itself a container"), "{text}");
}

#[test]
fn a_pid_namespace_is_shared_when_the_spec_has_none_or_a_path() {
    need!("busybox");
    let pod = Pod::new();
    let loader = pod.pid(&pod.id);
    let init: Vec<i32> = serde_json::from_str(&pod.state.ok(["ps", "--format", "json", &pod.id])).unwrap();
    for by_path in [None, Some(loader), Some(init[0])] {
        let member = pod.add(|c| {
            without_pid_namespace(c);
            if let Some(pid) = by_path {
                let entry = json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
                c["linux"]["namespaces"].as_array_mut().unwrap().push(entry);
            }
        });
        assert_eq!(pod.namespace(&member.id, "pid"), pod.namespace(&pod.id, "pid"), "by path: {by_path:?}");
        // It sees the root container's init, which is process 1.
        assert_eq!(pod.shell(&member.id, "cat /proc/1/comm"), "sleep");
        assert_ne!(pod.namespace(&member.id, "mnt"), pod.namespace(&pod.id, "mnt"));
        // It can be told apart all the same.
        let pids: Vec<i32> =
            serde_json::from_str(&pod.state.ok(["ps", "--format", "json", &member.id])).unwrap();
        assert_eq!(pids.len(), 1);
        // When its init ends, what it left behind ends too, though no namespace goes with it.
        pod.state.detached(&["exec", "--detach", &member.id, "/bin/sleep", "2000"]);
        pod.state.ok(["kill", &member.id, "KILL"]);
        pod.until_stopped(&member.id);
        assert_eq!(pod.state.status(&pod.id), "running");
        wait::until("its other process is gone", || {
            let all = pod.shell(&pod.id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
            (!all.contains("sleep 2000")).then_some(())
        });
        pod.state.ok(["delete", &member.id]);
        leaks::nothing_left(&pod.state, &member.id);
    }
}

#[test]
fn a_foreign_pid_namespace_is_refused() {
    need!("busybox");
    let (pod, other) = (Pod::new(), Pod::new());
    for pid in [other.pid(&other.id), std::process::id() as i32] {
        let bundle = member(&pod.id, CRI, &["/bin/true"], |c| {
            without_pid_namespace(c);
            let entry = json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")});
            c["linux"]["namespaces"].as_array_mut().unwrap().push(entry);
        });
        let text = pod.state.fails(["create", "--bundle", bundle.text(), &unique("member")]);
        assert!(text.contains("not the pod's"), "{text}");
    }
}

#[test]
fn namespaces_by_the_paths_of_the_sandbox_are_what_it_shares_anyway() {
    need!("busybox");
    let pod = Pod::new();
    let loader = pod.pid(&pod.id);
    // As containerd writes it.
    let member = pod.add(|c| {
        c["linux"]["namespaces"] = json!([
            {"type": "pid"}, {"type": "mount"},
            {"type": "ipc", "path": format!("/proc/{loader}/ns/ipc")},
            {"type": "uts", "path": format!("/proc/{loader}/ns/uts")},
            {"type": "network", "path": format!("/proc/{loader}/ns/net")}
        ]);
        c.as_object_mut().unwrap().remove("hostname");
    });
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(pod.namespace(&member.id, kind), pod.namespace(&pod.id, kind), "{kind}");
    }
}

#[test]
fn members_talk_over_loopback() {
    need!("busybox");
    let pod = Pod::new();
    let server =
        pod.add_running(&["/bin/nc", "-l", "-p", "8080", "-e", "/bin/echo", "over loopback"], |_| {});
    let client = pod.add(|_| {});
    let text = wait::until("the server listens", || {
        let out = pod.state.run(["exec", &client.id, "/bin/nc", "127.0.0.1", "8080"]);
        out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
    });
    assert_eq!(text.trim(), "over loopback");
    pod.until_stopped(&server.id);
}

#[test]
fn exec_in_a_member_runs_in_its_files_with_its_streams() {
    need!("busybox");
    let pod = Pod::new();
    let member = pod.add(|c| c["process"]["env"] = json!(["PATH=/bin", "WHO=member"]));
    std::fs::write(member.bundle.rootfs().join("etc/name"), "the member's").unwrap();
    assert_eq!(pod.shell(&member.id, "cat /etc/name"), "the member's");
    let out = pod.state.run(["exec", &member.id, "/bin/sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(out.status.code(), Some(5));
    assert_eq!((&out.stdout[..], &out.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let out = pod.state.run(["exec", &member.id, "/no/such"]);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("/no/such"));
}

#[test]
fn run_of_a_member_waits_passes_the_exit_code_and_cleans_up() {
    need!("busybox");
    let pod = Pod::new();
    let bundle = member(&pod.id, CRI, &["/bin/sh", "-c", "echo from the member; exit 9"], |_| {});
    let id = unique("member");
    let out = pod.state.run(["run", "--bundle", bundle.text(), &id]);
    assert_eq!(out.status.code(), Some(9), "{out:?}");
    assert_eq!(out.stdout, b"from the member\n");
    leaks::nothing_left(&pod.state, &id);
    assert_eq!(pod.state.status(&pod.id), "running");
}

#[test]
fn when_the_root_container_ends_all_end() {
    need!("busybox");
    let pod = Pod::new();
    let members = [pod.add(|_| {}), pod.add(without_pid_namespace)];
    pod.state.ok(["kill", &pod.id, "KILL"]);
    pod.until_stopped(&pod.id);
    for member in &members {
        pod.until_stopped(&member.id);
        assert_eq!(
            pod.state.ok(["wait", &member.id]).trim(),
            format!(r#"{{"id":"{}","exitStatus":137}}"#, member.id)
        );
        let text = pod.state.fails(["start", &member.id]);
        assert!(text.contains("stopped"), "{text}");
    }
    let late = member(&pod.id, CRI, &["/bin/true"], |_| {});
    let text = pod.state.fails(["create", "--bundle", late.text(), &unique("member")]);
    assert!(text.contains("not running"), "{text}");
    // In any order.
    pod.state.ok(["delete", &members[0].id]);
    pod.state.ok(["delete", &pod.id]);
    pod.state.ok(["delete", &members[1].id]);
    for id in [&pod.id, &members[0].id, &members[1].id] {
        leaks::nothing_left(&pod.state, id);
    }
}

#[test]
fn a_running_member_keeps_nobody_from_deleting_its_pod_by_force() {
    need!("busybox");
    let pod = Pod::new();
    let member = pod.add(|_| {});
    let text = pod.state.fails(["delete", &pod.id]);
    assert!(text.contains("not stopped"), "{text}");
    let text = pod.state.fails(["delete", &member.id]);
    assert!(text.contains("not stopped"), "{text}");
    pod.state.ok(["delete", "--force", &pod.id]);
    assert_eq!(pod.state.status(&member.id), "stopped");
    pod.state.ok(["delete", &member.id]);
    for id in [&pod.id, &member.id] {
        leaks::nothing_left(&pod.state, id);
    }
}

#[test]
fn a_failed_member_leaves_the_pod_as_it_was() {
    need!("busybox");
    let pod = Pod::new();
    let loader = pod.pid(&pod.id);
    pod.state.ok(["exec", &pod.id, "/bin/true"]);
    let idle = leaks::idle(loader);
    for edit in [
        (|c| c["process"]["args"] = json!(["/no/such"])) as fn(&mut Value),
        |c| c["root"]["path"] = json!("nowhere"),
        |c| {
            c["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}))
        },
        |c| c["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]}),
        |c| c["hooks"] = json!({"createContainer": [{"path": "/bin/no-such-hook"}]}),
        |c| c["linux"]["sysctl"] = json!({"net.no.such": "1"}),
    ] {
        let (id, bundle) = (unique("member"), member(&pod.id, CRI, &["/bin/sleep", "1000"], edit));
        let text = pod.state.fails(["create", "--bundle", bundle.text(), &id]);
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        leaks::nothing_left(&pod.state, &id);
    }
    leaks::idle_as_before(loader, idle);
    assert_eq!(pod.state.ok(["list", "-q"]).trim(), pod.id);
}
