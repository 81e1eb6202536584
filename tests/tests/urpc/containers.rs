//! The life of containers: StartRoot, CreateSubcontainer, StartSubcontainer, DestroySubcontainer, state, pause, events.
use super::*;
use airlock_tests::{leaks, need};

const CREATE: &str = "containerManager.CreateSubcontainer";
const START: &str = "containerManager.StartSubcontainer";
const DESTROY: &str = "containerManager.DestroySubcontainer";
const STATE: &str = "containerManager.ContainerRuntimeState";

#[test]
fn start_root_once() {
    need!("busybox");
    for i in 0..2 {
        let (state, id, bundle) = (State::new(), unique("urpc"), Bundle::new(&["/bin/sleep", "1000"]));
        state.detached(&["create", "--bundle", bundle.text(), &id]);
        let mut caller = Caller::both(&state.control_socket(&id)).into_iter().nth(i).unwrap();
        assert_eq!(caller.ok(STATE, &json!(id), &[]), json!(1));
        assert_eq!(
            caller.ok("Lifecycle.IsContainerRunning", &json!({"container_id": id}), &[]),
            json!(false)
        );
        assert_eq!(caller.ok("containerManager.StartRoot", &json!(id), &[]), json!({}));
        assert_eq!(caller.ok(STATE, &json!(id), &[]), json!(2));
        assert_eq!(
            caller.fails("containerManager.StartRoot", &json!(id), &[]),
            "sandbox is not in created state, cannot start root container: state=started"
        );
        assert_eq!(state.status(&id), "running");
    }
}

#[test]
fn a_root_that_cannot_start_says_why() {
    need!("busybox");
    let (state, id, bundle) = (State::new(), unique("urpc"), Bundle::new(&["/bin/sleep", "1000"]));
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    // What was there at create is no program any more at start.
    std::fs::write(bundle.rootfs().join("bin/busybox"), "no program").unwrap();
    let text = Caller::json(&state.control_socket(&id)).fails("containerManager.StartRoot", &json!(id), &[]);
    assert!(text.starts_with("starting sandbox: ") && text.contains("/bin/sleep"), "{text}");
    wait::until("the sandbox ends", || (state.status(&id) == "stopped").then_some(()));
    state.ok(["delete", &id]);
}

#[test]
fn the_life_of_a_subcontainer() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    let n = null.as_fd();
    for mut caller in sandbox.both() {
        let cid = unique("sub");
        assert_eq!(caller.ok(STATE, &json!(cid), &[]), json!(3), "unknown counts as stopped");
        caller.ok(CREATE, &json!({"CID": cid}), &[]);
        assert_eq!(caller.ok(STATE, &json!(cid), &[]), json!(1));
        assert_eq!(
            caller.fails(CREATE, &json!({"CID": cid}), &[]),
            format!("container {cid:?} already exists")
        );
        let args = exec_args(&cid, &["/bin/true"]);
        assert_eq!(
            caller.fails("containerManager.ExecuteAsync", &args, &[n, n, n]),
            format!("container {cid:?} not started")
        );
        sandbox.start_sub(&mut caller, &cid, &["/bin/sh", "-c", "sleep 1000; exit 3"]).unwrap();
        assert_eq!(caller.ok(STATE, &json!(cid), &[]), json!(2));
        let lifecycle = json!({"container_id": cid});
        assert_eq!(caller.ok("Lifecycle.IsContainerRunning", &lifecycle, &[]), json!(true));
        assert_eq!(
            caller.fails("Lifecycle.GetExitStatus", &lifecycle, &[]),
            format!("container {cid:?} hasn't exited yet")
        );
        caller.ok(DESTROY, &json!(cid), &[]);
        assert_eq!(caller.fails(DESTROY, &json!(cid), &[]), format!("container {cid:?} not found"));
        assert_eq!(
            caller.fails("Lifecycle.GetExitStatus", &lifecycle, &[]),
            format!("container {cid:?} doesn't exist, or has not been started")
        );
        // The id is free again.
        caller.ok(CREATE, &json!({"CID": cid}), &[]);
        caller.ok(DESTROY, &json!(cid), &[]);
        assert!(leaks::cgroups(&cid).is_empty());
        let text = caller.fails(DESTROY, &json!(sandbox.id), &[]);
        assert!(text.contains("root container"), "{text}");
    }
}

#[test]
fn a_subcontainer_shares_network_ipc_and_uts_and_nothing_else() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let mut caller = sandbox.json();
    let cid = sandbox.sub(&mut caller, &["/bin/sleep", "1000"]);
    let script = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; echo $$; hostname";
    let mut look = |cid: &str| {
        let text = output(&mut caller, &exec_args(cid, &["/bin/sh", "-c", script]), None).1;
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (root, sub) = (look(&sandbox.id), look(&cid));
    assert_eq!(root[..3], sub[..3]);
    assert_ne!(root[3], sub[3]);
    assert_ne!(root[4], sub[4]);
    assert_eq!(sub[5], "2", "the second process of its pid namespace");
    assert_eq!(root[6], sub[6]);
}

#[test]
fn start_checks_its_arguments_in_gvisors_order_and_words() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    let n = null.as_fd();
    for mut caller in sandbox.both() {
        let cid = unique("sub");
        caller.ok(CREATE, &json!({"CID": cid}), &[]);
        let full = start_args(&cid, &["/bin/true"]);
        let mut refuse = |edit: &dyn Fn(&mut Value), fds: usize| {
            let mut arg = full.clone();
            edit(&mut arg);
            caller.fails(START, &arg, &vec![n; fds])
        };
        // Each call has this error and those that are checked later.
        let no_spec = |a: &mut Value| a["Spec"] = Value::Null;
        let no_conf = |a: &mut Value| a["Conf"] = Value::Null;
        let no_cid = |a: &mut Value| a["CID"] = json!("");
        assert_eq!(refuse(&|a| [no_spec(a), no_conf(a), no_cid(a)][0], 0), "start arguments missing spec");
        assert_eq!(refuse(&|a| [no_conf(a), no_cid(a)][0], 0), "start arguments missing config");
        assert_eq!(refuse(&no_cid, 0), "start argument missing container ID");
        let few = |least: usize, got: usize| {
            format!("start arguments must contain at least {least} FDs, but only got {got}")
        };
        assert_eq!(refuse(&|_| (), 0), few(4, 0));
        assert_eq!(refuse(&|_| (), 3), few(4, 3));
        assert_eq!(refuse(&|a| a["Spec"]["process"]["terminal"] = json!(true), 0), few(1, 0));
        assert_eq!(refuse(&|a| a["NumGoferFilestoreFDs"] = json!(2), 5), few(6, 5));
        assert_eq!(refuse(&|a| a["IsDevIoFilePresent"] = json!(true), 4), few(5, 4));
        assert_eq!(
            refuse(&|a| a["CID"] = json!("nobody"), 4),
            r#"trying to start a deleted container "nobody""#
        );
        assert_eq!(
            refuse(&|a| a["Spec"]["process"]["terminal"] = json!(true), 1),
            "terminal enabled but no TTY provided. Did you set --console-socket on create?"
        );
        // None of them used the reservation up.
        assert_eq!(caller.ok(STATE, &json!(cid), &[]), json!(1));
        sandbox.start_sub(&mut caller, &cid, &["/bin/sleep", "1000"]).unwrap();
        let again = sandbox.start_sub(&mut caller, &cid, &["/bin/sleep", "1000"]).unwrap_err();
        assert!(again.contains("started"), "{again}");
        assert_eq!(
            caller.fails(CREATE, &json!({"CID": unique("x")}), &[n, n]),
            "start arguments must have at most 1 files for TTY"
        );
    }
}

#[test]
fn start_before_the_root_container_is_refused() {
    need!("busybox");
    let (state, id, bundle) = (State::new(), unique("urpc"), Bundle::new(&["/bin/sleep", "1000"]));
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    let null = null();
    let n = null.as_fd();
    for mut caller in Caller::both(&state.control_socket(&id)) {
        let cid = unique("sub");
        caller.ok(CREATE, &json!({"CID": cid}), &[]);
        assert_eq!(
            caller.fails(START, &start_args(&cid, &["/bin/true"]), &[n, n, n, n]),
            "sandbox is not in started state, cannot start subcontainer: state=created"
        );
    }
}

#[test]
fn every_historical_spelling_starts_a_container() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    let n = null.as_fd();
    let spellings = [
        json!({}),
        json!({"NumOverlayFilestoreFDs": 0, "OverlayMediums": [0]}),
        json!({"NumGoferFilestoreFDs": 0, "IsDevIoFilePresent": false,
            "GoferMountConfs": [{"lower": 1, "upper": 0}]}),
        json!({"NumGoferFilestoreFDs": 0, "IsDevIoFilePresent": false, "IsRootfsUpperTarFilePresent": false,
            "GoferMountConfs": [{"lower": 1, "upper": 0, "size": "1m"}], "SomethingNew": {"x": [1]}}),
        json!({"gofermountconfs": [{"lower": 1, "upper": 0}]}),
    ];
    let mut caller = sandbox.json();
    let mut start = |extra: &Value, before: usize| {
        let cid = unique("sub");
        caller.ok(CREATE, &json!({"CID": cid}), &[]);
        let mut arg = start_args(&cid, &["/bin/sleep", "1000"]);
        arg.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let rootfs = sandbox.rootfs();
        let mut fds = vec![n; 3 + before];
        fds.push(rootfs.as_fd());
        caller.ok(START, &arg, &fds);
        assert_eq!(caller.ok(STATE, &json!(cid), &[]), json!(2), "{extra}");
        caller.ok(DESTROY, &json!(cid), &[]);
    };
    for spelling in spellings {
        start(&spelling, 0);
    }
    // A filestore and /dev come before the rootfs.
    start(&json!({"NumGoferFilestoreFDs": 1, "IsDevIoFilePresent": true}), 2);
    start(&json!({"NumOverlayFilestoreFDs": 1}), 1);
}

#[test]
fn a_donated_terminal_becomes_the_console() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let cid = unique("tty");
        let pty = nix::pty::openpty(None, None).unwrap();
        caller.ok(CREATE, &json!({"CID": cid}), &[pty.slave.as_fd()]);
        drop(pty.slave);
        let mut arg = start_args(&cid, &["/bin/sh", "-c", "test -t 0 && echo terminal; sleep 1000"]);
        arg["Spec"]["process"]["terminal"] = json!(true);
        let rootfs = sandbox.rootfs();
        caller.ok(START, &arg, &[rootfs.as_fd()]);
        let mut text = [0; 8];
        File::from(pty.master).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"terminal");
        caller.ok(DESTROY, &json!(cid), &[]);
    }
}

#[test]
fn a_start_that_fails_leaves_a_stopped_container() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let cid = unique("sub");
        caller.ok(CREATE, &json!({"CID": cid}), &[]);
        let text = sandbox.start_sub(&mut caller, &cid, &["/no/such/program"]).unwrap_err();
        assert!(text.contains("/no/such/program") && text.contains("no such file"), "{text}");
        assert_eq!(caller.ok(STATE, &json!(cid), &[]), json!(3));
        caller.ok(DESTROY, &json!(cid), &[]);
        assert!(leaks::cgroups(&cid).is_empty());
    }
}

#[test]
fn pauses_nest_and_stop_every_container() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let sub = sandbox.sub(&mut sandbox.json(), &["/bin/sleep", "1000"]);
    for (mut caller, receiver) in sandbox.both().into_iter().zip(["containerManager", "Lifecycle"]) {
        let (pause, resume) = (format!("{receiver}.Pause"), format!("{receiver}.Resume"));
        caller.ok(&pause, &Value::Null, &[]);
        caller.ok(&pause, &Value::Null, &[]);
        for id in [&sandbox.id, &sub] {
            assert_eq!(caller.ok("Airlock.Info", &json!({"cid": id}), &[])["status"], "paused");
            assert_eq!(caller.ok(STATE, &json!(id), &[]), json!(2));
        }
        assert_eq!(sandbox.state.status(&sandbox.id), "paused");
        caller.ok(&resume, &Value::Null, &[]);
        assert_eq!(sandbox.state.status(&sandbox.id), "paused", "one resume of two");
        caller.ok(&resume, &Value::Null, &[]);
        assert_eq!(sandbox.state.status(&sandbox.id), "running");
        assert!(caller.fails(&resume, &Value::Null, &[]).contains("not paused"));
    }
    // A paused container can be destroyed.
    let mut caller = sandbox.json();
    caller.ok("containerManager.Pause", &Value::Null, &[]);
    caller.ok(DESTROY, &json!(sub), &[]);
    caller.ok("containerManager.Resume", &Value::Null, &[]);
}

#[test]
fn events_have_gvisors_form() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let sub = sandbox.sub(&mut sandbox.json(), &["/bin/sleep", "1000"]);
    for mut caller in sandbox.both() {
        for id in [&sandbox.id, &sub] {
            let event = caller.ok("containerManager.Event", &json!(id), &[]);
            assert_eq!(event["event"]["type"], "stats");
            assert_eq!(event["event"]["id"], json!(id));
            let data = &event["event"]["data"];
            assert!(data["cpu"]["usage"].is_object());
            assert!(data["memory"]["usage"].is_object());
            assert!(data["pids"]["current"].as_u64().is_some_and(|n| n >= 1), "{id}: {data}");
            assert!(
                data["network_interfaces"].as_array().unwrap().iter().any(|i| i["Name"] == "lo"),
                "{data}"
            );
            let usage = event["containerUsage"].as_object().unwrap();
            assert!(usage.contains_key(&sandbox.id) && usage.contains_key(&sub));
        }
        // runsc of 2022 sends null.
        caller.ok("containerManager.Event", &Value::Null, &[]);
        assert_eq!(
            caller.fails("containerManager.Event", &json!("nobody"), &[]),
            r#"container "nobody" not found"#
        );
    }
}
