//! Many containers in one sandbox, and many sandboxes: all of them can be controlled. No timing is asserted.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_loader::sys::mount;
use airlock_tests::urpc::Caller;
use airlock_tests::{Bundle, State, leaks, need, unique};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::AsFd;

const CONTAINERS: usize = 500;
const SANDBOXES: usize = 100;

/// What a container of a pod is made from; it needs no host mounts besides its rootfs.
fn member_spec() -> Value {
    let mut spec = airlock_tests::bundle::default_config(&["/bin/sleep", "100000"]);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    spec["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "cgroup");
    spec.as_object_mut().unwrap().remove("hostname");
    spec
}

fn exec_args(cid: &str, argv: &[&str]) -> Value {
    json!({"argv": argv, "envv": ["PATH=/bin"], "wd": "/", "GuestFDs": [0, 1, 2], "ContainerID": cid})
}

#[test]
fn five_hundred_containers_in_one_sandbox_answer_to_everything() {
    need!("busybox");
    let (state, id) = (State::new(), unique("scale"));
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let mut caller = Caller::binary(&state.control_socket(&id));
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let n = null.as_fd();
    let cid = |i: usize| format!("{id}-c{i}");
    for i in 0..CONTAINERS {
        let rootfs =
            mount::open_tree(nix::fcntl::AT_FDCWD, &bundle.rootfs(), mount::OPEN_TREE_CLONE).unwrap();
        caller.ok("containerManager.CreateSubcontainer", &json!({"CID": cid(i)}), &[]);
        let arg = json!({"Spec": member_spec(), "Conf": {}, "CID": cid(i)});
        caller.ok("containerManager.StartSubcontainer", &arg, &[n, n, n, rootfs.as_fd()]);
    }
    assert_eq!(caller.ok("Airlock.List", &json!({}), &[]).as_array().unwrap().len(), CONTAINERS + 1);
    assert_eq!(
        caller.ok("containerManager.Processes", &json!(""), &[]).as_array().unwrap().len(),
        CONTAINERS + 1
    );
    for i in 0..CONTAINERS {
        let cid = cid(i);
        let pid = caller.ok(
            "containerManager.ExecuteAsync",
            &exec_args(&cid, &["/bin/sh", "-c", "exit 3"]),
            &[n, n, n],
        );
        let wait = json!({"PID": pid, "CID": cid});
        assert_eq!(caller.ok("containerManager.WaitPID", &wait, &[]), json!(3 << 8), "{cid}");
    }
    // Every other one is killed; the rest does not notice.
    for i in (0..CONTAINERS).step_by(2) {
        let kill = json!({"CID": cid(i), "Signo": 9, "PID": 0, "Mode": 1});
        caller.ok("containerManager.Signal", &kill, &[]);
    }
    for i in 0..CONTAINERS {
        let expected = if i % 2 == 0 {
            assert_eq!(caller.ok("containerManager.Wait", &json!(cid(i)), &[]), json!(9));
            3
        } else {
            2
        };
        assert_eq!(caller.ok("containerManager.ContainerRuntimeState", &json!(cid(i)), &[]), json!(expected));
    }
    caller.ok("containerManager.Pause", &Value::Null, &[]);
    assert_eq!(caller.ok("Airlock.Info", &json!({"cid": cid(1)}), &[])["status"], "paused");
    caller.ok("containerManager.Resume", &Value::Null, &[]);
    for i in 0..CONTAINERS / 2 {
        caller.ok("containerManager.DestroySubcontainer", &json!(cid(i)), &[]);
    }
    // The others end with their sandbox.
    drop(caller);
    state.ok(["delete", "--force", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn a_hundred_sandboxes_answer_to_everything() {
    need!("busybox");
    let state = State::new();
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    let ids: Vec<String> = (0..SANDBOXES).map(|_| unique("sandbox")).collect();
    // From several commands at once, as a busy machine has them.
    std::thread::scope(|scope| {
        for part in ids.chunks(SANDBOXES / 4) {
            let (state, bundle) = (&state, &bundle);
            scope.spawn(move || {
                for id in part {
                    state.detached(&["run", "--detach", "--bundle", bundle.text(), id]);
                }
            });
        }
    });
    let listed: Value = serde_json::from_str(&state.ok(["list", "--format", "json"])).unwrap();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), SANDBOXES);
    assert!(listed.iter().all(|c| c["status"] == "running"), "{listed:?}");
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(state.ok(["exec", id, "/bin/echo", "-n", id]), *id);
        if i % 2 == 0 {
            state.ok(["pause", id]);
            assert_eq!(state.status(id), "paused");
            state.ok(["resume", id]);
        } else {
            state.ok(["kill", id, "KILL"]);
            assert_eq!(state.ok(["wait", id]).trim(), format!(r#"{{"id":"{id}","exitStatus":137}}"#));
        }
    }
    for (i, id) in ids.iter().enumerate() {
        if i % 2 == 0 {
            assert_eq!(state.status(id), "running");
            state.ok(["delete", "--force", id]);
        } else {
            state.ok(["delete", id]);
        }
    }
    assert_eq!(state.ok(["list", "-q"]), "");
    for id in &ids {
        assert_eq!(leaks::cgroups(id), Vec::<String>::new());
    }
}
