//! The smaller receivers: Lifecycle, Logging, Usage, debug; and what is no method at all.
use super::*;
use airlock_tests::need;

#[test]
fn lifecycle_signals_reaps_and_shuts_down() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let sub = sandbox.sub(&mut caller, &["/bin/sleep", "1000"]);
        let named = json!({"container_id": sub});
        let kill = |all: bool| json!({"container_id": sub, "signo": 9, "signalAll": all});
        assert_eq!(
            caller.fails("Lifecycle.Reap", &named, &[]),
            format!("container {sub:?} hasn't exited yet")
        );
        caller.ok("Lifecycle.SignalContainer", &kill(false), &[]);
        caller.ok("containerManager.Wait", &json!(sub), &[]);
        assert_eq!(caller.ok("Lifecycle.GetExitStatus", &named, &[]), json!(9));
        assert_eq!(caller.ok("Lifecycle.IsContainerRunning", &named, &[]), json!(false));
        let text = caller.fails("Lifecycle.SignalContainer", &kill(true), &[]);
        assert_eq!(text, format!("{sub} container not running"));
        caller.ok("Lifecycle.Reap", &named, &[]);
        assert_eq!(caller.fails("Lifecycle.Reap", &named, &[]), format!("no container with id {sub:?}"));
        let text = caller.fails("Lifecycle.SignalContainer", &kill(true), &[]);
        assert_eq!(text, format!("container {sub} not started"));
        let nobody = json!({"container_id": "nobody"});
        assert_eq!(caller.ok("Lifecycle.IsContainerRunning", &nobody, &[]), json!(false));
    }
    sandbox.json().ok("Lifecycle.Shutdown", &Value::Null, &[]);
    sandbox.until_stopped();
}

#[test]
fn logging_changes_levels_and_refuses_what_it_cannot() {
    need!("busybox");
    let (state, id, bundle) = (State::new(), unique("log"), Bundle::new(&["/bin/sleep", "1000"]));
    let log = bundle.path().join("debug.log");
    let debug_log = format!("--debug-log={}", log.display());
    state.detached(&[&debug_log, "run", "--detach", "--bundle", bundle.text(), &id]);
    let null = null();
    let n = null.as_fd();
    for mut caller in Caller::both(&state.control_socket(&id)) {
        let mut logs_ends = |level: Value| {
            let change = json!({"SetLevel": true, "Level": level});
            assert_eq!(caller.ok("Logging.Change", &change, &[]), json!(0));
            let before = std::fs::read_to_string(&log).unwrap().len();
            let args = exec_args(&id, &["/bin/true"]);
            let pid = caller.ok("containerManager.ExecuteAsync", &args, &[n, n, n]);
            caller.ok("containerManager.WaitPID", &json!({"PID": pid, "CID": id}), &[]);
            // What the loader's main thread logs after it has woken the waiter comes with the next event at the latest.
            caller.ok("containerManager.Processes", &json!(id), &[]);
            std::fs::read_to_string(&log).unwrap()[before..].contains("ended with status")
        };
        assert!(logs_ends(json!("debug")));
        assert!(!logs_ends(json!("warning")));
        assert!(logs_ends(json!(2)));
        assert!(!logs_ends(json!("info")));
        let strace = json!({"SetStrace": true, "EnableStrace": true, "StraceAllowlist": ["reed"]});
        let error = caller.fails("Logging.Change", &strace, &[]);
        assert!(error.starts_with("error configuring strace: syscall \"reed\" not found"), "{error}");
        let events = json!({"SetEventStrace": true, "StraceEventAllowlist": ["open"]});
        let error = caller.fails("Logging.Change", &events, &[]);
        assert!(error.starts_with("error configuring event strace: "), "{error}");
        caller.ok("Logging.Change", &json!({"SetStrace": true, "EnableStrace": false}), &[]);
    }
    // The older spelling of the list.
    let strace = json!({"SetStrace": true, "EnableStrace": true, "StraceWhitelist": ["reed"]});
    let text = Caller::json(&state.control_socket(&id)).fails("Logging.Change", &strace, &[]);
    assert!(text.contains("syscall \"reed\" not found"), "{text}");
    let wrong = json!({"SetLevel": true, "Level": "loud"});
    let text = Caller::json(&state.control_socket(&id)).fails("Logging.Change", &wrong, &[]);
    assert!(text.contains(r#"unknown level "loud""#), "{text}");
}

#[test]
fn usage_adds_up() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        for full in [false, true] {
            let usage = caller.ok("Usage.Collect", &json!({"Full": full}), &[]);
            let number = |key: &str| usage[key].as_u64().unwrap_or_else(|| panic!("{key} in {usage}"));
            let parts = ["Unknown", "System", "Anonymous", "PageCache", "Mapped", "Tmpfs", "Ramdiskfs"];
            assert_eq!(parts.iter().map(|key| number(key)).sum::<u64>(), number("Total"));
            assert!(number("Total") > 0);
            assert_eq!(number("Unknown") == 0, full);
        }
    }
}

#[test]
fn stacks_name_the_loaders_threads_and_functions_and_the_containers_processes() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let stacks = caller.ok("debug.Stacks", &Value::Null, &[]);
        let text = stacks.as_str().unwrap();
        for part in [
            "[airlock-loader]:",
            "[rpc]:",
            "airlock_loader::boot::run::watch",
            "airlock_controller::debug::stacks",
            "airlock_wire::server",
            &format!("container {:?} process", sandbox.id),
            "[sleep]:",
            "state S",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("_ZN") && !text.contains("_RNv"), "mangled names in {text}");
    }
}

#[test]
fn stacks_do_not_signal_the_container() {
    need!("busybox");
    // Ends at any signal that is passed on to it.
    let script = "for s in 1 2 3 10 12 15 21 22 34 35 36 37 38 39 40 50 64; do trap 'exit 9' $s; done; \
                  touch /tmp/ready; while :; do sleep 1000 & wait; done";
    let sandbox = Sandbox::start(&["/bin/sh", "-c", script]);
    wait::until("the traps", || sandbox.bundle.rootfs().join("tmp/ready").exists().then_some(()));
    let mut caller = sandbox.json();
    for _ in 0..5 {
        caller.ok("debug.Stacks", &Value::Null, &[]);
    }
    assert_eq!(sandbox.shell("echo alive"), "alive\n");
    assert_eq!(sandbox.state.status(&sandbox.id), "running");
}

#[test]
fn unknown_names_and_wrong_types() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let mut caller = sandbox.json();
    for name in ["no.Such", "containerManager.Nothing", "Processes", "", "containermanager.Processes"] {
        assert_eq!(caller.fails(name, &Value::Null, &[]), "unknown method", "{name:?}");
    }
    assert_eq!(
        caller.fails("containerManager.Processes", &json!(5), &[]),
        "json: cannot unmarshal number into Go value of type string"
    );
    // null is the zero value, and field names are matched without case.
    assert_eq!(caller.ok("containerManager.Processes", &Value::Null, &[]).as_array().unwrap().len(), 1);
    let signal = json!({"cid": sandbox.id, "SIGNO": 0, "pid": 0, "mode": 0});
    caller.ok("containerManager.Signal", &signal, &[]);
    let methods = caller.ok("Airlock.Methods", &json!({}), &[]);
    assert!(methods.as_array().unwrap().iter().any(|m| m["name"] == "containerManager.Wait"));
}
