//! ExecuteAsync, Processes, and the receiver Proc.
use super::*;
use airlock_tests::{need, wait};

const EXECUTE: &str = "containerManager.ExecuteAsync";

#[test]
fn execute_passes_descriptors_and_answers_a_pid_of_the_container() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let extra = File::open(sandbox.bundle.path().join("config.json")).unwrap();
        let script = "echo $$; head -c 1 <&7; pwd; id -u; id -g; id -G";
        let mut args = exec_args(&sandbox.id, &["sh", "-c", script]);
        args["GuestFDs"] = json!([0, 1, 2, 7]);
        args["wd"] = json!("/tmp");
        args["KUID"] = json!(1000);
        args["KGID"] = json!(1000);
        args["ExtraKGIDs"] = json!([7, 9]);
        let (pid, text) = output(&mut caller, &args, Some(&extra));
        assert_eq!(text, format!("{pid}\n{{/tmp\n1000\n1000\n1000 7 9\n"));
        let wait = json!({"PID": pid, "CID": sandbox.id});
        assert_eq!(caller.ok("containerManager.WaitPID", &wait, &[]), json!(0));
    }
}

#[test]
fn execute_of_2022_has_no_numbers_and_null_lists_are_fine() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let mut caller = sandbox.json();
    let args = json!({
        "filename": "/bin/echo", "argv": ["whatever", "x"], "envv": null, "MountNamespace": null, "wd": "",
        "KUID": 0, "KGID": 0, "ExtraKGIDs": null, "Capabilities": null, "StdioIsPty": false,
        "ContainerID": sandbox.id, "PIDNamespace": null
    });
    let (pid, text) = output(&mut caller, &args, None);
    assert_eq!(text, "x\n");
    caller.ok("containerManager.WaitPID", &json!({"PID": pid, "CID": sandbox.id}), &[]);
}

#[test]
fn execute_takes_a_program_as_the_last_descriptor() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let program = File::open(sandbox.bundle.rootfs().join("bin/busybox")).unwrap();
        let args = exec_args(&sandbox.id, &["echo", "from a descriptor"]);
        assert_eq!(output(&mut caller, &args, Some(&program)).1, "from a descriptor\n");
    }
}

#[test]
fn execute_refuses_in_gvisors_words() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    let n = null.as_fd();
    for mut caller in sandbox.both() {
        let mut refuse = |edit: &dyn Fn(&mut Value), fds: usize| {
            let mut args = exec_args(&sandbox.id, &["/bin/true"]);
            edit(&mut args);
            caller.fails(EXECUTE, &args, &vec![n; fds])
        };
        assert_eq!(
            refuse(&|a| a["argv"] = json!(["/no/such"]), 3),
            "failed to load /no/such: no such file or directory"
        );
        assert_eq!(refuse(&|a| a["ContainerID"] = json!("nobody"), 3), r#"container "nobody" not found"#);
        assert_eq!(
            refuse(&|_| {}, 2),
            "creating fd map: length of payload files does not match length of file descriptor array"
        );
        assert_eq!(
            refuse(&|a| a["GuestFDs"] = json!([0, 1, -2]), 3),
            "guest file descriptors must be 0 or greater"
        );
        assert_eq!(
            refuse(&|a| a["filename"] = json!("/bin/true"), 4),
            "process must either be started from a file or a filename, not both"
        );
        assert!(refuse(&|a| a["argv"] = json!([]), 3).contains("args"));
        let twice = refuse(&|a| a["GuestFDs"] = json!([0, 1, 1]), 3);
        assert!(twice.contains("twice"), "{twice}");
        let large = refuse(&|a| a["GuestFDs"] = json!([0, 1, i32::MAX]), 3);
        assert!(large.contains("placing descriptors"), "{large}");
    }
    // Nothing of all that is left, once those that answered last have exited.
    wait::until("one process is left", || {
        let processes = sandbox.json().ok("containerManager.Processes", &json!(sandbox.id), &[]);
        (processes.as_array().unwrap().len() == 1).then_some(())
    });
}

#[test]
fn capabilities_are_masks_and_null_means_none() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status";
    for mut caller in sandbox.both() {
        let mut caps = |capabilities: Value| {
            let mut args = exec_args(&sandbox.id, &["/bin/sh", "-c", script]);
            args["Capabilities"] = capabilities;
            let text = output(&mut caller, &args, None).1;
            text.split_ascii_whitespace().map(str::to_owned).skip(1).step_by(2).collect::<Vec<_>>()
        };
        let none = "0000000000000000";
        assert_eq!(caps(Value::Null), [none; 5]);
        let mask = 1 << 5 | 1 << 10;
        let set = caps(json!({"PermittedCaps": mask, "InheritableCaps": 0, "EffectiveCaps": mask,
            "BoundingCaps": mask, "AmbientCaps": 0}));
        assert_eq!(set, [none, "0000000000000420", "0000000000000420", "0000000000000420", none]);
    }
}

#[test]
fn processes_have_gvisors_fields_and_are_sorted() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let pid = sandbox.spawn(&mut caller, &["/bin/sleep", "1000"]);
        let processes = caller.ok("containerManager.Processes", &json!(sandbox.id), &[]);
        let processes = processes.as_array().unwrap();
        assert_eq!(processes.len(), 2);
        let first = &processes[0];
        let keys: Vec<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
        for key in ["uid", "pid", "ppid", "pgid", "threads", "c", "tty", "stime", "time", "cmd"] {
            assert!(keys.contains(&key), "{key} is missing in {keys:?}");
        }
        assert_eq!((first["cmd"].as_str(), first["tty"].as_str()), (Some("sleep"), Some("?")));
        assert_eq!(first["threads"], json!([first["pid"]]));
        assert!(processes[0]["pid"].as_i64() < processes[1]["pid"].as_i64());
        assert_eq!(caller.ok("containerManager.Processes", &json!("nobody"), &[]), Value::Null);
        let all = caller.ok("containerManager.Processes", &json!(""), &[]);
        assert_eq!(all.as_array().unwrap().len(), 2);
        let kill = json!({"CID": sandbox.id, "Signo": 9, "PID": pid, "Mode": 0});
        caller.ok("containerManager.Signal", &kill, &[]);
        caller.ok("containerManager.WaitPID", &json!({"PID": pid, "CID": sandbox.id}), &[]);
    }
}

#[test]
fn proc_exec_blocks_and_answers_the_status() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    let fds = [null.as_fd(), null.as_fd(), null.as_fd()];
    for mut caller in sandbox.both() {
        let args = exec_args("", &["/bin/sh", "-c", "exit 7"]);
        assert_eq!(caller.ok("Proc.Exec", &args, &fds), json!(7 << 8));
        let args = exec_args("", &["/bin/sh", "-c", "kill -9 $$"]);
        assert_eq!(caller.ok("Proc.Exec", &args, &fds), json!(9));
    }
}

#[test]
fn proc_ps_is_a_table_or_json_of_all_containers() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let sub = sandbox.sub(&mut sandbox.json(), &["/bin/sleep", "2000"]);
    for mut caller in sandbox.both() {
        let table = caller.ok("Proc.Ps", &json!({"JSON": false}), &[]);
        let lines: Vec<_> = table.as_str().unwrap().lines().collect();
        let heads: Vec<_> = lines[0].split_ascii_whitespace().collect();
        assert_eq!(heads, ["UID", "PID", "PPID", "PGID", "C", "TTY", "STIME", "TIME", "CMD"]);
        assert_eq!(lines.len(), 3, "{table}");
        let text = caller.ok("Proc.Ps", &json!({"JSON": true}), &[]);
        let list: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 2);
        let pid = list[1]["pid"].as_i64().unwrap();
        caller.ok("Proc.SignalProcess", &json!({"signo": 0, "pid": pid}), &[]);
        assert_eq!(
            caller.fails("Proc.SignalProcess", &json!({"signo": 9, "pid": 30000}), &[]),
            "no such process with PID 30000"
        );
    }
    let mut caller = sandbox.json();
    let processes = caller.ok("containerManager.Processes", &json!(sub), &[]);
    caller.ok("Proc.SignalProcess", &json!({"signo": 9, "pid": processes[0]["pid"]}), &[]);
    assert_eq!(caller.ok("containerManager.Wait", &json!(sub), &[]), json!(9));
}
