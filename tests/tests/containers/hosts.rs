//! Virtual hosts: containers with processes, IPC and mounts of their own.

use super::{create, name, need_v1};
use airlock_tests::machine::{Machine, number, numbers, output, run};
use airlock_tests::urpc::Caller;
use airlock_tests::{Bundle, need, skip};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The ids of the sandboxes in the machine's state directory.
fn sandboxes(machine: &Machine) -> Vec<String> {
    let entries = fs::read_dir(machine.state.root()).unwrap().flatten();
    entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().into_string().unwrap()).collect()
}

/// Nothing is left of a tree, nor of the sandboxes in it.
#[track_caller]
fn nothing_left(machine: &Machine) {
    assert_eq!(machine.left(), Vec::<PathBuf>::new());
    assert_eq!(sandboxes(machine), Vec::<String>::new());
}

fn namespace(pid: i32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_string_lossy().into_owned()
}

/// The `NSpid` of a process.
fn pids(pid: i32) -> Vec<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap();
    ids.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

fn init_of(c: &mut Caller, container: &str) -> i32 {
    number(&c.ok("Container.GetInitPid", &name(container), &[]))
}

#[test]
fn a_virtual_host_isolates_processes_ipc_and_mounts() {
    need_v1!();
    let machine = Machine::new();
    for mut caller in Caller::both(&machine.socket()) {
        let c = &mut caller;
        let spec = json!({"virtual_host": {}, "memory": {"limit": 134_217_728}, "children_limit": 200});
        create(c, "/web", spec.clone());
        assert_eq!(c.ok("Container.Spec", &name("/web"), &[]), spec);
        let init = init_of(c, "/web");
        assert_eq!(pids(init).last(), Some(&1));
        for kind in ["pid", "ipc", "mnt", "uts"] {
            assert_ne!(namespace(init, kind), namespace(std::process::id().cast_signed(), kind), "{kind}");
        }
        assert_eq!(namespace(init, "net"), namespace(std::process::id().cast_signed(), "net"));
        // The rest of the specification is the cgroup's as always.
        assert_eq!(machine.file("memory", "/web", "memory.limit_in_bytes"), "134217728");
        assert_eq!(machine.file("pids", "/web", "pids.max"), "200");
        // The machine's own files, and the virtual host's own processes.
        let script = "tr '\\0' '\\n' </proc/1/cmdline; ls -d /proc/[0-9]* | wc -l; cat /proc/self/cgroup; test -e \"$0\" && exit 3";
        let exe = airlock_tests::airlock().to_str().unwrap();
        let (text, status) = output(c, "/web", &["/bin/sh", "-c", script, exe]);
        assert_eq!(status, 3 << 8, "{text}");
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("airlock-init"));
        assert!(lines.next().unwrap().trim().parse::<u32>().unwrap() < 8, "{text}");
        assert!(text.contains(&format!(":memory:/{}/web\n", machine.root)), "{text}");

        let pid = run(c, "/web", &["/bin/sleep", "1000"]);
        assert_eq!(namespace(pid, "pid"), namespace(init, "pid"));
        assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": pid}), &[])["name"], "/web");
        let listed = numbers(&c.ok("Container.ListProcesses", &name("/web"), &[]));
        assert!(listed.contains(&pid) && listed.contains(&init), "{listed:?}");
        assert_eq!(
            c.ok("Container.ListSubcontainers", &json!({"name": "/", "policy": "LIST_RECURSIVE"}), &[]),
            json!(["/web"])
        );
        assert!(c.ok("Container.Stats", &name("/web"), &[])["memory"]["usage"].as_i64().unwrap() > 0);
        let update = json!({"name": "/web", "spec": {"children_limit": 100}, "policy": "UPDATE_DIFF"});
        c.ok("Container.Update", &update, &[]);
        assert_eq!(machine.file("pids", "/web", "pids.max"), "100");

        let short = json!({"name": "/web", "command": ["/bin/true"], "spec": {"fd_policy": "DETACHED"}});
        for _ in 0..5 {
            let ran = c.ok("Container.Run", &short, &[]);
            assert_eq!(c.ok("Container.Wait", &ran, &[]), 0);
        }
        c.ok("Container.Pause", &name("/web"), &[]);
        assert!(
            c.fails("Container.Run", &short, &[])
                .starts_with("FAILED_PRECONDITION: virtual host \"/web\" is paused")
        );
        c.ok("Container.Resume", &name("/web"), &[]);
        c.ok("Container.KillAll", &name("/web"), &[]);
        assert_eq!(c.ok("Container.Wait", &json!({"pid": pid}), &[]), 9);
        assert_eq!(c.ok("Container.ListThreads", &name("/web"), &[]), json!([]));
        for (method, arg) in [("Container.Run", &short), ("Container.GetInitPid", &name("/web"))] {
            let text = c.fails(method, arg, &[]);
            assert!(text.starts_with("FAILED_PRECONDITION: the init of virtual host"), "{method}: {text}");
        }
        c.ok("ContainerApi.Destroy", &name("/web"), &[]);
        nothing_left(&machine);
    }
}

#[test]
fn a_virtual_host_has_a_root_and_an_init_of_its_own() {
    need!("busybox");
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    let bundle = Bundle::new(&["true"]);
    let rules =
        json!([{"permission": "DENY", "type": "DEVICE_CHAR", "access": ["READ"], "major": 1, "minor": 5}]);
    let spec = json!({
        "filesystem": {"rootfs": bundle.rootfs()},
        "virtual_host": {"init": {"init_argv": ["/bin/sleep", "1000"], "run_spec": {"fd_policy": "DETACHED"}}},
        "device": {"restrictions_set": {"restrictions": rules}},
    });
    create(&mut c, "/a", json!({"cpu": {"limit": 500}}));
    create(&mut c, "/a/host", spec.clone());
    assert_eq!(c.ok("Container.Spec", &name("/a/host"), &[]), spec);
    let init = init_of(&mut c, "/a/host");
    assert_eq!(fs::read(format!("/proc/{init}/cmdline")).unwrap(), b"/bin/sleep\x001000\0");
    let (text, status) =
        output(&mut c, "/a/host", &["/bin/sh", "-c", "cat /etc/passwd; head -c 1 /dev/zero; exit 5"]);
    assert_eq!(status, 5 << 8, "{text}");
    assert!(text.contains("user:x:1000") && text.contains("Operation not permitted"), "{text}");
    // Out of a container that has it below, everything goes.
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    nothing_left(&machine);
    assert!(!Path::new(&format!("/proc/{init}")).exists());

    let text = format!("virtual_host {{}} filesystem {{ rootfs: {:?} }}", bundle.rootfs());
    machine.cli(&["create", "/cli", &text]);
    assert_eq!(machine.cli(&["run", "/cli", "/bin/busybox", "echo", "hello"]), "hello\n");
    assert_eq!(machine.cli(&["list", "containers", "-r", "/"]), "cli\n");
    machine.cli(&["destroy", "/cli"]);
    nothing_left(&machine);

    // An init that ends is the end of the virtual host, and not of the container.
    create(&mut c, "/b", json!({"virtual_host": {"init": {"init_argv": ["/bin/true"]}}}));
    while !c.ok("Container.ListProcesses", &name("/b"), &[]).as_array().unwrap().is_empty() {
        std::thread::yield_now();
    }
    assert!(c.fails("Container.GetInitPid", &name("/b"), &[]).starts_with("FAILED_PRECONDITION: "));
    c.ok("ContainerApi.Destroy", &name("/b"), &[]);
    nothing_left(&machine);
}

#[test]
fn virtual_hosts_outlive_a_server_that_is_killed() {
    need_v1!();
    let mut machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/kept", json!({"virtual_host": {}}));
    create(&mut c, "/gone", json!({"virtual_host": {}}));
    let (init, pid) = (init_of(&mut c, "/kept"), run(&mut c, "/kept", &["/bin/sleep", "1000"]));
    machine.kill();
    // One that a server was making when it was killed looks like this.
    fs::set_permissions(machine.dir("freezer", "/gone"), fs::Permissions::from_mode(0o1755)).unwrap();
    machine.start();
    let mut c = machine.caller();
    assert_eq!(sandboxes(&machine).len(), 1);
    assert!(c.fails("ContainerApi.Get", &name("/gone"), &[]).starts_with("NOT_FOUND: "));
    assert_eq!(init_of(&mut c, "/kept"), init);
    let listed = numbers(&c.ok("Container.ListProcesses", &name("/kept"), &[]));
    assert!(listed.contains(&pid), "{listed:?}");
    let (text, status) = output(&mut c, "/kept", &["/bin/sh", "-c", "tr '\\0' '\\n' </proc/1/cmdline"]);
    assert_eq!((text.as_str(), status), ("airlock-init\n", 0));
    c.ok("ContainerApi.Destroy", &name("/kept"), &[]);
    create(&mut c, "/gone", json!({"virtual_host": {}}));
    c.ok("ContainerApi.Destroy", &name("/gone"), &[]);
    nothing_left(&machine);
}

#[test]
fn what_a_virtual_host_does_not_do() {
    need_v1!();
    let machine = Machine::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    for mut caller in Caller::both(&machine.socket()) {
        let c = &mut caller;
        let init = |argv: Value| json!({"virtual_host": {"init": {"init_argv": argv}}});
        let root = |rootfs: &str| json!({"virtual_host": {}, "filesystem": {"rootfs": rootfs}});
        for (spec, expected) in [
            (root("a/b"), "INVALID_ARGUMENT: filesystem.rootfs \"a/b\" is no absolute path"),
            (root("/no/such"), "FAILED_PRECONDITION: filesystem.rootfs: /no/such is no directory"),
            (root(file.path().to_str().unwrap()), "FAILED_PRECONDITION: filesystem.rootfs: "),
            (
                json!({"filesystem": {"rootfs": "/"}}),
                "INVALID_ARGUMENT: filesystem.rootfs needs a virtual_host",
            ),
            (init(json!(["/no/such/init"])), "FAILED_PRECONDITION: "),
            (init(json!(["init"])), "INVALID_ARGUMENT: virtual_host.init.init_argv: \"init\""),
            (init(json!(["/bin/sh", "a\u{0}"])), "INVALID_ARGUMENT: virtual_host.init.init_argv: "),
            (
                json!({"virtual_host": {"init": {"run_spec": {"fd_policy": "INHERIT"}}}}),
                "INVALID_ARGUMENT: virtual_host.init.run_spec.fd_policy",
            ),
            // It is made before its limits are, and goes with them.
            (
                json!({"virtual_host": {}, "cpu": {"mask": {"data": [0, 0, 0, 1]}}}),
                "INVALID_ARGUMENT: cgroup: ",
            ),
        ] {
            let text = c.fails("ContainerApi.Create", &json!({"name": "/no", "spec": spec}), &[]);
            assert!(text.starts_with(expected), "{spec}: {text:?} does not begin with {expected:?}");
            nothing_left(&machine);
        }
        create(c, "/h", json!({"virtual_host": {}}));
        let below = c.fails("ContainerApi.Create", &json!({"name": "/h/x", "spec": {}}), &[]);
        assert!(below.starts_with("UNIMPLEMENTED: creating: what is below the virtual host /h"), "{below}");
        for (method, arg) in [
            ("Container.Enter", json!({"name": "/h", "tids": [std::process::id()]})),
            ("Container.Enter", json!({"name": "/h", "tids": [0]})),
            ("Container.Exec", name("/h")),
        ] {
            let text = c.fails(method, &arg, &[]);
            assert!(text.starts_with("UNIMPLEMENTED: entering: "), "{method}: {text}");
        }
        let run = json!({"name": "/h", "command": ["/no/such"], "spec": {"fd_policy": "DETACHED"}});
        assert!(c.fails("Container.Run", &run, &[]).starts_with("FAILED_PRECONDITION: "));
        let update = json!({"name": "/h", "spec": init(json!(["/bin/sh"])), "policy": "UPDATE_REPLACE"});
        let text = c.fails("Container.Update", &update, &[]);
        assert_eq!(text, "INVALID_ARGUMENT: virtual_host and filesystem cannot be updated");
        let init = init_of(c, "/h");
        assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": init}), &[])["name"], "/h");
        c.ok("ContainerApi.Destroy", &name("/h"), &[]);
        nothing_left(&machine);
    }
}
