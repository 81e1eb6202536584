//! Wait and WaitPID: level-triggered, for any number of waiters, without threads left behind.
use super::*;
use airlock_tests::urpc::Urpc;
use airlock_tests::{leaks, need};

const WAIT: &str = "containerManager.Wait";
const WAIT_PID: &str = "containerManager.WaitPID";
const SIGNAL: &str = "containerManager.Signal";

#[test]
fn wait_stays_readable_for_many_waiters_before_and_after_the_exit() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let sub = sandbox.sub(&mut sandbox.json(), &["/bin/sleep", "1000"]);
    let loader = sandbox.loader();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..10)
            .map(|i| {
                let mut caller = if i % 2 == 0 { sandbox.json() } else { Caller::binary(&sandbox.socket()) };
                let sub = &sub;
                scope.spawn(move || caller.ok(WAIT, &json!(sub), &[]))
            })
            .collect();
        wait::until("ten waiters", || (leaks::threads_polling(loader) == 11).then_some(()));
        sandbox.json().ok(SIGNAL, &json!({"CID": sub, "Signo": 9, "PID": 0, "Mode": 0}), &[]);
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), json!(9));
        }
    });
    for mut caller in sandbox.both() {
        for _ in 0..3 {
            assert_eq!(caller.ok(WAIT, &json!(sub), &[]), json!(9));
        }
        assert_eq!(caller.ok("containerManager.ContainerRuntimeState", &json!(sub), &[]), json!(3));
    }
    let mut caller = sandbox.json();
    caller.ok("containerManager.DestroySubcontainer", &json!(sub), &[]);
    assert_eq!(caller.fails(WAIT, &json!(sub), &[]), format!("container {sub:?} not found"));
}

#[test]
fn wait_of_what_never_ran_is_an_error() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let cid = unique("reserved");
    sandbox.json().ok("containerManager.CreateSubcontainer", &json!({"CID": cid}), &[]);
    for mut caller in sandbox.both() {
        assert_eq!(caller.fails(WAIT, &json!(cid), &[]), format!("container {cid:?} not started"));
        assert_eq!(caller.fails(WAIT, &json!("nobody"), &[]), r#"container "nobody" not found"#);
    }
}

#[test]
fn wait_of_the_root_container_gets_its_answer_before_the_sandbox_ends() {
    need!("busybox");
    for i in 0..2 {
        let sandbox = Sandbox::sleeping();
        let mut caller = if i == 0 { sandbox.json() } else { Caller::binary(&sandbox.socket()) };
        let mut killer = sandbox.json();
        let (loader, id) = (sandbox.loader(), sandbox.id.clone());
        let waiter = std::thread::spawn(move || caller.ok(WAIT, &json!(id), &[]));
        wait::until("the waiter", || (leaks::threads_polling(loader) == 2).then_some(()));
        killer.ok("Lifecycle.Shutdown", &Value::Null, &[]);
        assert_eq!(waiter.join().unwrap(), json!(9));
        sandbox.until_stopped();
    }
}

#[test]
fn wait_pid_delivers_once_and_checks_its_arguments() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let sub = sandbox.sub(&mut sandbox.json(), &["/bin/sleep", "1000"]);
    for mut caller in sandbox.both() {
        let pid = sandbox.spawn(&mut caller, &["/bin/sh", "-c", "exit 5"]);
        let args = json!({"PID": pid, "CID": sandbox.id});
        assert_eq!(caller.ok(WAIT_PID, &args, &[]), json!(5 << 8));
        assert_eq!(caller.fails(WAIT_PID, &args, &[]), format!("waiting for PID {pid}: no such process"));
        for n in [0, -3] {
            let args = json!({"PID": n, "CID": sandbox.id});
            assert_eq!(caller.fails(WAIT_PID, &args, &[]), format!("PID ({n}) must be positive"));
        }
        assert_eq!(
            caller.fails(WAIT_PID, &json!({"PID": 3, "CID": "nobody"}), &[]),
            r#"waiting for PID 3: container "nobody" not found"#
        );
        assert_eq!(
            caller.fails(WAIT_PID, &json!({"PID": 4000, "CID": sub}), &[]),
            "waiting for PID 4000: no such process"
        );
        let pid = sandbox.spawn(&mut caller, &["/bin/sleep", "1000"]);
        caller.ok(SIGNAL, &json!({"CID": sandbox.id, "Signo": 15, "PID": pid, "Mode": 0}), &[]);
        assert_eq!(caller.ok(WAIT_PID, &json!({"PID": pid, "CID": sandbox.id}), &[]), json!(15));
    }
}

#[test]
fn wait_pid_of_a_process_that_nobody_executed() {
    need!("busybox");
    let sandbox = Sandbox::start(&["/bin/sh", "-c", "sleep 1000; exec sleep 2000"]);
    let mut killer = sandbox.json();
    for mut caller in sandbox.both().into_iter().take(1) {
        // The child of the init is process 2 of the container.
        let child = wait::until("the child", || {
            let all = killer.ok("containerManager.Processes", &json!(sandbox.id), &[]);
            all.as_array().unwrap().get(1).map(|p| p["pid"].clone())
        });
        let (loader, id) = (sandbox.loader(), sandbox.id.clone());
        let waiter = std::thread::spawn(move || caller.call(WAIT_PID, &json!({"PID": 2, "CID": id}), &[]));
        wait::until("the waiter", || (leaks::threads_polling(loader) == 2).then_some(()));
        killer.ok(SIGNAL, &json!({"CID": sandbox.id, "Signo": 9, "PID": child, "Mode": 0}), &[]);
        // Its parent reaps it; how it ended is told by kernels since 6.15.
        match waiter.join().unwrap() {
            Ok(status) => assert_eq!(status, json!(9)),
            Err(text) => assert!(text.contains("6.15"), "{text}"),
        }
    }
}

#[test]
fn a_client_that_hangs_up_leaves_no_thread_and_no_descriptor() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let loader = sandbox.loader();
    let pid = sandbox.spawn(&mut sandbox.json(), &["/bin/sleep", "1000"]);
    let counts = || (leaks::threads(loader), leaks::descriptors(loader).len());
    let idle = (leaks::IDLE_THREADS, leaks::idle(loader));
    for _ in 0..20 {
        let mut waiters: Vec<Urpc> = Vec::new();
        for i in 0..4 {
            let mut urpc = Urpc::connect(&sandbox.socket());
            match i % 2 {
                0 => urpc.send(WAIT, &json!(sandbox.id), &[]),
                _ => urpc.send(WAIT_PID, &json!({"PID": pid, "CID": sandbox.id}), &[]),
            }
            waiters.push(urpc);
        }
        wait::until("four waiters", || (leaks::threads_polling(loader) == 5).then_some(()));
        drop(waiters);
        wait::until("they are gone", || (counts() == idle).then_some(()));
    }
    // A wait is no supervision: the process lives.
    sandbox.json().ok(SIGNAL, &json!({"CID": sandbox.id, "Signo": 0, "PID": pid, "Mode": 0}), &[]);
}
