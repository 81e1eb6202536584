//! The same inside of a sandbox, and on cgroup v2.

use super::{create, name, need_v1};
use airlock_tests::machine::{Machine, number, numbers, output, run};
use airlock_tests::urpc::Caller;
use airlock_tests::{Bundle, State, airlock, need, skip, unique};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

/// A running sandbox whose cgroup is `place`.
fn sandbox(state: &State, place: &str, id: &str) -> Bundle {
    let bundle = Bundle::with(&["sleep", "1000"], |config| {
        config["linux"]["cgroupsPath"] = json!(format!("/{place}"));
    });
    state.detached(&["run", "--detach", "--bundle", bundle.text(), id]);
    bundle
}

#[test]
fn a_sandbox_has_a_tree_of_its_own() {
    need!("busybox");
    need_v1!();
    let (state, place, id) = (State::new(), unique("capi"), unique("c"));
    let _bundle = sandbox(&state, &place, &id);
    let leaf = format!("airlock-{id}");
    let file = |hierarchy: &str, below: &str, file: &str| {
        let below = if hierarchy == "freezer" { format!("{leaf}/{below}") } else { below.to_owned() };
        let path = Path::new("/sys/fs/cgroup").join(hierarchy).join(&place).join(below).join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
    };
    for mut caller in Caller::both(&state.control_socket(&id)) {
        let c = &mut caller;
        c.ok("ContainerApi.InitMachine", &json!({}), &[]);
        create(
            c,
            "/a",
            json!({"memory": {"limit": 33_554_432}, "cpu": {"limit": 500}, "children_limit": 50}),
        );
        assert_eq!(file("memory", "a", "memory.limit_in_bytes"), "33554432");
        assert_eq!(
            (file("cpu", "a", "cpu.shares"), file("pids", "a", "pids.max")),
            ("512".into(), "50".into())
        );
        // What the loader has no privileges for is done by a worker.
        let rules = json!([{"permission": "DENY", "type": "DEVICE_CHAR", "access": ["READ"], "major": 1, "minor": 5}]);
        create(c, "/a/b", json!({"device": {"restrictions_set": {"restrictions": rules}}}));
        let owned = json!({"name": "/a/c", "spec": {"owner": 12}});
        assert!(c.fails("ContainerApi.Create", &owned, &[]).starts_with("UNIMPLEMENTED: owner"));

        let pid = run(c, "/a", &["/bin/sleep", "1000"]);
        assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": pid}), &[])["name"], "/a");
        assert_eq!(numbers(&c.ok("Container.ListProcesses", &name("/a"), &[])), [pid]);
        let (text, status) =
            output(c, "/a/b", &["/bin/sh", "-c", "cat /proc/self/cgroup; head -c 1 /dev/zero; exit 4"]);
        assert_eq!(status, 4 << 8);
        assert!(text.contains("Operation not permitted"), "{text}");
        // The root is the root container, whose program is there.
        let root = numbers(&c.ok("Container.ListProcesses", &name("/"), &[]));
        assert_eq!(number(&c.ok("Container.GetInitPid", &name("/a"), &[])), root[0]);
        c.ok("Container.Enter", &json!({"name": "/a/b", "tids": [pid]}), &[]);
        c.ok("Container.Pause", &name("/a"), &[]);
        assert_eq!(file("freezer", "a", "freezer.state"), "FROZEN");
        c.ok("Container.Resume", &name("/a"), &[]);
        assert!(c.ok("Container.Stats", &name("/a"), &[])["memory"]["usage"].as_i64().unwrap() > 0);

        let (reader, writer) = std::io::pipe().unwrap();
        let register = json!({"name": "/a", "spec": {"container_empty": {}}});
        c.ok("Container.RegisterNotification", &register, &[writer.as_fd()]);
        drop(writer);
        c.ok("Container.KillAll", &name("/a"), &[]);
        assert_eq!(c.ok("Container.Wait", &json!({"pid": pid}), &[]), 9);
        let mut lines = BufReader::new(reader).lines();
        assert!(lines.next().unwrap().unwrap().contains("\"status\":\"OK\""));
        let run = json!({"name": "/a", "command": ["/no/such"], "spec": {"fd_policy": "DETACHED"}});
        assert!(c.fails("Container.Run", &run, &[]).starts_with("FAILED_PRECONDITION: "));
        // Outside of its cgroups a sandbox sees nothing.
        assert!(c.fails("ContainerApi.Detect", &json!({"tid": 1}), &[]).starts_with("NOT_FOUND: "));
        assert!(c.fails("Container.Exec", &name("/a"), &[]).contains("outside of its pid namespace"));
        let mount =
            json!({"cgroup_mount": [{"mount_path": "/sys/fs/cgroup/cpu", "hierarchy": ["CGROUP_CPU"]}]});
        assert!(c.fails("ContainerApi.InitMachine", &mount, &[]).starts_with("FAILED_PRECONDITION: "));
        let host = json!({"name": "/h", "spec": {"virtual_host": {}}});
        assert!(c.fails("ContainerApi.Create", &host, &[]).starts_with("UNIMPLEMENTED: virtual_host"));
        c.ok("ContainerApi.Destroy", &name("/a"), &[]);
        assert!(lines.next().unwrap().unwrap().contains("\"status\":\"NOT_FOUND\""));
        assert_eq!(c.ok("Container.ListSubcontainers", &name("/"), &[]), json!([]));
    }
    state.ok(["container", "create", "--sandbox", &id, "/x", "children_limit: 5"]);
    assert_eq!(state.ok(["container", "run", "--sandbox", &id, "/x", "/bin/echo", "hello"]), "hello\n");
    assert_eq!(state.ok(["container", "list", "containers", "--sandbox", &id]), "x\n");
    // What is left in the tree goes with the sandbox.
    state.ok(["delete", "--force", &id]);
    airlock_tests::leaks::nothing_left(&state, &id);
    assert!(!Path::new("/sys/fs/cgroup/pids").join(&place).exists());
}

#[test]
fn a_container_of_airlock_is_in_the_tree_of_its_cgroups() {
    need!("busybox");
    need_v1!();
    let machine = Machine::new();
    let (state, id) = (State::new(), unique("c"));
    let mut c = machine.caller();
    create(&mut c, "/web", json!({"memory": {"limit": 134_217_728}}));
    let _bundle = sandbox(&state, &format!("{}/web/host", machine.root), &id);
    let inner = format!("/web/host/airlock-{id}");
    let list = c.ok("Container.ListSubcontainers", &json!({"name": "/web", "policy": "LIST_RECURSIVE"}), &[]);
    assert_eq!(list, json!(["/web/host", inner]));
    assert_eq!(numbers(&c.ok("Container.ListProcesses", &name(&inner), &[])).len(), 1);
    assert!(c.ok("Container.Stats", &name("/web"), &[])["memory"]["usage"].as_i64().unwrap() > 0);
    c.ok("Container.Pause", &name(&inner), &[]);
    assert_eq!(state.status(&id), "paused");
    c.ok("Container.Resume", &name(&inner), &[]);
    state.ok(["delete", "--force", &id]);
    c.ok("ContainerApi.Destroy", &name("/web"), &[]);
    assert!(machine.left().is_empty());
}

#[test]
fn containers_of_v2() {
    need!("busybox", "unshare");
    let prepare = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup";
    let possible = Command::new("unshare").args(["-m", "sh", "-c", prepare]).output().unwrap();
    if !possible.status.success() {
        skip!("needs a v2 mount in a namespace: {}", String::from_utf8_lossy(&possible.stderr).trim());
    }
    let output = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            &format!(
                "{prepare} && exec \"$0\" --ignored --exact --nocapture places::containers_of_v2_inside"
            ),
        ])
        .arg(std::env::current_exe().unwrap())
        .env("AIRLOCK_BINARY", airlock())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by containers_of_v2 in a mount namespace of its own"]
fn containers_of_v2_inside() {
    let root = Path::new("/sys/fs/cgroup");
    let Ok(controllers) = std::fs::read_to_string(root.join("cgroup.controllers")) else {
        skip!("needs v2 cgroups")
    };
    let mut machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({}));
    create(
        &mut c,
        "/a/b",
        json!({"device": {"restrictions_set": {"restrictions": [
        {"permission": "DENY", "type": "DEVICE_CHAR", "access": ["READ"], "major": 1, "minor": 5}]}}}),
    );
    let (text, status) =
        output(&mut c, "/a/b", &["/bin/sh", "-c", "cat /proc/self/cgroup; head -c 1 /dev/zero; exit 2"]);
    assert_eq!(status, 2 << 8);
    assert!(
        text.contains(&format!("0::/{}/a/b\n", machine.root)) && text.contains("Operation not permitted"),
        "{text}"
    );
    let pid = run(&mut c, "/a/b", &["/bin/sleep", "1000"]);
    assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": pid}), &[])["name"], "/a/b");
    let (reader, writer) = std::io::pipe().unwrap();
    let register = json!({"name": "/a", "spec": {"container_empty": {}}});
    c.ok("Container.RegisterNotification", &register, &[writer.as_fd()]);
    drop(writer);
    c.ok("Container.Pause", &name("/a"), &[]);
    assert_eq!(machine.file("", "/a", "cgroup.freeze"), "1");
    // A server that is killed and started again finds it all.
    c.ok("Container.Enter", &json!({"name": "/a", "tids": [pid]}), &[]);
    c.ok("Container.KillAll", &name("/a"), &[]);
    assert!(BufReader::new(reader).lines().next().unwrap().unwrap().contains("container_empty"));
    machine.kill();
    machine.start();
    let mut c = machine.caller();
    assert!(c.ok("Container.Spec", &name("/a/b"), &[])["device"].is_object());
    // What v2 cannot do here is refused by name.
    for (controller, spec) in [
        ("memory", json!({"memory": {}})),
        ("cpu", json!({"cpu": {}})),
        ("io", json!({"blockio": {}})),
        ("pids", json!({"children_limit": 5})),
    ] {
        if controllers.split_whitespace().any(|c| c == controller) {
            create(&mut c, &format!("/with-{controller}"), spec);
        } else {
            let text = c.fails("ContainerApi.Create", &json!({"name": "/none", "spec": spec}), &[]);
            assert!(text.starts_with(&format!("UNIMPLEMENTED: the {controller} controller")), "{text}");
        }
    }
    create(&mut c, "/host", json!({"virtual_host": {}}));
    let (text, status) =
        output(&mut c, "/host", &["/bin/sh", "-c", "tr '\\0' '\\n' </proc/1/cmdline; exit 6"]);
    assert_eq!((text.as_str(), status), ("airlock-init\n", 6 << 8));
    c.ok("ContainerApi.Destroy", &name("/host"), &[]);
    let fd = std::io::pipe().unwrap().1;
    let threshold = json!({"name": "/a", "spec": {"memory_threshold": {"usage": 4096}}});
    assert!(
        c.fails("Container.RegisterNotification", &threshold, &[fd.as_fd()])
            .starts_with("UNIMPLEMENTED: memory_threshold")
    );
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    drop(c);
    assert_eq!(machine.left().iter().filter(|p| !p.to_string_lossy().contains("/with-")).count(), 0);
}
