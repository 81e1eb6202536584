//! Signal and its four modes.
use super::*;
use airlock_tests::need;

const SIGNAL: &str = "containerManager.Signal";
const WAIT_PID: &str = "containerManager.WaitPID";

fn signal(cid: &str, signo: i32, pid: i64, mode: i32) -> Value {
    json!({"CID": cid, "Signo": signo, "PID": pid, "Mode": mode})
}

#[test]
fn one_process_is_signalled_by_either_pid() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        // The pid that ExecuteAsync answered counts in the container.
        let pid = sandbox.spawn(&mut caller, &["/bin/sleep", "1000"]);
        caller.ok(SIGNAL, &signal(&sandbox.id, 0, pid, 0), &[]);
        caller.ok(SIGNAL, &signal(&sandbox.id, 15, pid, 0), &[]);
        assert_eq!(caller.ok(WAIT_PID, &json!({"PID": pid, "CID": sandbox.id}), &[]), json!(15));
        // The pid that Processes lists counts in the sandbox.
        let pid = sandbox.spawn(&mut caller, &["/bin/sleep", "1001"]);
        let processes = caller.ok("containerManager.Processes", &json!(sandbox.id), &[]);
        let last = processes.as_array().unwrap().last().unwrap()["pid"].as_i64().unwrap();
        assert_ne!(last, pid, "the test needs two different numbers");
        caller.ok(SIGNAL, &signal(&sandbox.id, 9, last, 0), &[]);
        assert_eq!(caller.ok(WAIT_PID, &json!({"PID": pid, "CID": sandbox.id}), &[]), json!(9));
    }
}

#[test]
fn errors_are_gvisors() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let id = &sandbox.id;
    let mut first = sandbox.json();
    let sub = sandbox.sub(&mut first, &["/bin/sleep", "1000"]);
    let foreign = first.ok("containerManager.Processes", &json!(sub), &[])[0]["pid"].as_i64().unwrap();
    let reserved = unique("reserved");
    first.ok("containerManager.CreateSubcontainer", &json!({"CID": reserved}), &[]);
    for mut caller in sandbox.both() {
        let mut refuse = |arg: Value| caller.fails(SIGNAL, &arg, &[]);
        assert_eq!(refuse(signal(id, 9, -1, 0)), "PID (-1) must be positive");
        assert_eq!(
            refuse(signal(id, 9, 30000, 0)),
            format!("signaling process in container {id:?} PID 30000: no such process with PID 30000")
        );
        assert_eq!(
            refuse(signal(id, 9, foreign, 0)),
            format!(
                "signaling process in container {id:?} PID {foreign}: process {foreign} belongs to a different \
                 container: {sub:?}"
            )
        );
        assert!(refuse(signal("nobody", 9, 0, 0)).ends_with(r#"container "nobody" not found"#));
        assert!(refuse(signal(&reserved, 9, 0, 0)).ends_with(&format!("container {reserved:?} not started")));
        assert_eq!(refuse(signal(id, 9, 1, 1)), "PID (1) cannot be set when signaling all processes");
        assert_eq!(refuse(signal("nobody", 9, 0, 1)), r#"container "nobody" not found"#);
        assert_eq!(refuse(signal(&reserved, 9, 0, 1)), format!("container {reserved:?} not started"));
        assert_eq!(
            refuse(signal(id, 2, 0, 2)),
            format!("signaling foreground process group in container {id:?} PID 0: no TTY attached")
        );
        assert!(refuse(signal(id, 2, 30000, 2)).contains("no thread group found: "));
        assert_eq!(refuse(signal(id, 9, 0, 3)), "PGID must be set when signaling a process group");
        assert_eq!(
            refuse(signal(id, 9, 30000, 3)),
            "signaling process group 30000: no such process group with PGID 30000"
        );
        assert_eq!(
            refuse(signal(id, 9, foreign, 3)),
            format!(
                "signaling process group {foreign}: process group {foreign} does not belong to container {id:?}"
            )
        );
        assert!(refuse(signal(id, 9, 0, 4)).contains("unknown signal delivery mode 4"));
        assert!(refuse(signal(id, 65, 0, 0)).contains("65 is no signal number"));
        assert!(refuse(signal(id, -1, 0, 0)).contains("-1 is no signal number"));
    }
    for cid in [id, &sub] {
        assert_eq!(first.ok("containerManager.ContainerRuntimeState", &json!(cid), &[]), json!(2));
    }
}

#[test]
fn all_processes_of_one_container_and_no_other() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let ready = sandbox.bundle.rootfs().join("tmp/ready");
    for mut caller in sandbox.both() {
        // The init handles the signal, so that it is the one that lives on.
        let script = "trap : USR1; touch /tmp/ready; while :; do sleep 1000; done";
        let sub = sandbox.sub(&mut caller, &["/bin/sh", "-c", script]);
        wait::until("the trap", || ready.exists().then_some(()));
        std::fs::remove_file(&ready).unwrap();
        let other = sandbox.spawn(&mut caller, &["/bin/sleep", "1000"]);
        let null = null();
        let fds = [null.as_fd(), null.as_fd(), null.as_fd()];
        let args = exec_args(&sub, &["/bin/sleep", "1000"]);
        let pids: Vec<_> = (0..3).map(|_| caller.ok("containerManager.ExecuteAsync", &args, &fds)).collect();
        caller.ok(SIGNAL, &signal(&sub, 10, 0, 1), &[]);
        for pid in pids {
            assert_eq!(caller.ok(WAIT_PID, &json!({"PID": pid, "CID": sub}), &[]), json!(10));
        }
        assert_eq!(caller.ok("containerManager.ContainerRuntimeState", &json!(sub), &[]), json!(2));
        caller.ok(SIGNAL, &signal(&sandbox.id, 0, other, 0), &[]);
        caller.ok(SIGNAL, &signal(&sub, 9, 0, 1), &[]);
        assert_eq!(caller.ok("containerManager.Wait", &json!(sub), &[]), json!(9));
        caller.ok("containerManager.DestroySubcontainer", &json!(sub), &[]);
        caller.ok(SIGNAL, &signal(&sandbox.id, 9, other, 0), &[]);
    }
}

#[test]
fn a_process_group_by_its_number() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        // Each executed process leads a group of its own; the shell's child belongs to it.
        let pid = sandbox.spawn(&mut caller, &["/bin/sh", "-c", "sleep 1000; :"]);
        let group = wait::until("the child", || {
            let all = caller.ok("containerManager.Processes", &json!(sandbox.id), &[]);
            let all = all.as_array().unwrap();
            let group = all.iter().find(|p| p["cmd"] == "sh")?["pid"].as_i64()?;
            let members = all.iter().filter(|p| p["pgid"].as_i64() == Some(group)).count();
            (members == 2).then_some(group)
        });
        caller.ok(SIGNAL, &signal(&sandbox.id, 9, group, 3), &[]);
        assert_eq!(caller.ok(WAIT_PID, &json!({"PID": pid, "CID": sandbox.id}), &[]), json!(9));
        wait::until("both are gone", || {
            let all = caller.ok("containerManager.Processes", &json!(sandbox.id), &[]);
            (all.as_array().unwrap().len() == 1).then_some(())
        });
    }
}

#[test]
fn the_foreground_group_of_a_terminal() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    // Short sleeps: the signal may come after the shell has looked for it and before it has forked.
    let script = "trap 'exit 3' INT; echo ready; while :; do sleep 0.1; done";
    for mut caller in sandbox.both() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut args = exec_args(&sandbox.id, &["/bin/sh", "-c", script]);
        args["StdioIsPty"] = json!(true);
        let slave = pty.slave.as_fd();
        let pid = caller.ok("containerManager.ExecuteAsync", &args, &[slave, slave, slave]);
        let mut master = File::from(pty.master);
        let mut seen = Vec::new();
        while !seen.ends_with(b"ready\r\n") {
            let mut byte = [0];
            master.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        // The shell and its sleep are in the foreground: the trap runs when sleep has ended.
        caller.ok(SIGNAL, &signal(&sandbox.id, 2, pid.as_i64().unwrap(), 2), &[]);
        assert_eq!(caller.ok(WAIT_PID, &json!({"PID": pid, "CID": sandbox.id}), &[]), json!(3 << 8));
    }
}
