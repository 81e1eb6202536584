//! Many clients at once, servers that are killed, processes that resist.

use super::{create, name, need_v1};
use airlock_tests::machine::{Machine, numbers, run};
use airlock_tests::urpc::Caller;
use airlock_tests::{need, skip};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn many_clients_at_once() {
    need_v1!();
    let machine = Machine::new();
    // None of them knows what the others do; each call ends in one of these ways.
    const POSSIBLE: [&str; 4] = ["NOT_FOUND: ", "ALREADY_EXISTS: ", "FAILED_PRECONDITION: ", "UNAVAILABLE: "];
    std::thread::scope(|scope| {
        for client in 0..6_u32 {
            let machine = &machine;
            scope.spawn(move || {
                let mut c = if client % 2 == 0 { machine.caller() } else { Caller::json(&machine.socket()) };
                let mut random = client.wrapping_mul(2_654_435_761).wrapping_add(1);
                for round in 0..60 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let at = format!("/c{}", random >> 8 & 1);
                    let inner = format!("{at}/d{}", random >> 9 & 1);
                    let place = if random >> 10 & 1 == 0 { &at } else { &inner };
                    let spec = json!({"memory": {"limit": 16_777_216}, "children_limit": 20 + round});
                    let sleep = json!({"name": place, "command": ["/bin/sleep", "1000"], "spec": {"fd_policy": "DETACHED"}});
                    let (method, arg) = match random >> 16 & 7 {
                        0 => ("ContainerApi.Destroy", name(place)),
                        1 | 2 => ("ContainerApi.Create", json!({"name": place, "spec": spec})),
                        3 => ("Container.Run", sleep),
                        4 => ("Container.Update", json!({"name": place, "spec": {"children_limit": 30}})),
                        5 => ("Container.KillAll", name(place)),
                        6 => ("Container.Stats", name(place)),
                        _ => ("Container.ListProcesses", json!({"name": place, "policy": "LIST_RECURSIVE"})),
                    };
                    if let Err(text) = c.call(method, &arg, &[]) {
                        assert!(POSSIBLE.iter().any(|code| text.starts_with(code)), "{method} {arg}: {text}");
                    }
                }
            });
        }
    });
    let mut c = machine.caller();
    for top in ["/c0", "/c1"] {
        let _ = c.call("ContainerApi.Destroy", &name(top), &[]);
    }
    assert_eq!(machine.left(), Vec::<PathBuf>::new());
    // One of many who make the same container makes it.
    let made: Vec<Result<Value, String>> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| machine.caller().call("ContainerApi.Create", &name("/one"), &[])))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|m| m.is_ok()).count(), 1);
    assert!(
        made.iter().flat_map(|m| m.as_ref().err()).all(|e| e.starts_with("ALREADY_EXISTS: ")),
        "{made:?}"
    );
}

#[test]
fn fork_bombs_and_frozen_containers_end() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"children_limit": 150}));
    create(&mut c, "/a/b", json!({}));
    let bomb = "f() { while :; do sleep 0.02 & f & wait; done; }; f";
    for end in ["Container.KillAll", "ContainerApi.Destroy"] {
        run(&mut c, "/a/b", &["/bin/sh", "-c", bomb]);
        let recursive = json!({"name": "/a", "policy": "LIST_RECURSIVE"});
        airlock_tests::wait::until("it has forked", || {
            let pids = numbers(&c.ok("Container.ListProcesses", &recursive, &[]));
            (pids.len() > 20).then_some(())
        });
        if end == "Container.KillAll" {
            c.ok("Container.KillAll", &name("/a"), &[]);
            assert_eq!(c.ok("Container.ListThreads", &recursive, &[]), json!([]));
        } else {
            c.ok("Container.Pause", &name("/a/b"), &[]);
            c.ok("Container.Pause", &name("/a"), &[]);
            c.ok("ContainerApi.Destroy", &name("/a"), &[]);
        }
    }
    assert_eq!(machine.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_server_that_is_killed_is_followed_by_one_that_knows_all() {
    need_v1!();
    let mut machine = Machine::new();
    let mut c = machine.caller();
    let spec =
        json!({"memory": {"limit": 33_554_432}, "cpu": {"scheduling_latency": "NORMAL", "limit": 300}});
    create(&mut c, "/a", spec.clone());
    create(&mut c, "/a/b", json!({"device": {}}));
    let pid = run(&mut c, "/a/b", &["/bin/sleep", "1000"]);
    c.ok("Container.Pause", &name("/a"), &[]);
    machine.kill();
    // What it was making at that moment: not complete, which the sticky bit says.
    let remains = machine.dir("freezer", "/half");
    std::fs::create_dir(&remains).unwrap();
    std::fs::set_permissions(&remains, std::fs::Permissions::from_mode(0o1755)).unwrap();
    std::fs::create_dir(machine.dir("memory", "/half")).unwrap();
    std::fs::write(machine.dir("memory", "/half").join("memory.limit_in_bytes"), "4096").unwrap();
    machine.start();
    let mut c = machine.caller();
    assert_eq!(
        c.ok("Container.ListSubcontainers", &json!({"name": "/", "policy": "LIST_RECURSIVE"}), &[]),
        json!(["/a", "/a/b"])
    );
    assert!(!remains.exists() && !machine.dir("memory", "/half").exists());
    assert_eq!(c.ok("Container.Spec", &name("/a"), &[]), spec);
    assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": pid}), &[])["name"], "/a/b");
    assert_eq!(machine.file("freezer", "/a", "freezer.state"), "FROZEN");
    let wrong = json!({"name": "/a", "spec": {"children_limit": 5}, "policy": "UPDATE_DIFF"});
    assert!(c.fails("Container.Update", &wrong, &[]).contains("cannot begin to isolate"));
    assert!(
        c.fails("Container.Wait", &json!({"pid": pid}), &[]).starts_with("NOT_FOUND: "),
        "it is another's child"
    );
    c.ok("Container.Resume", &name("/a"), &[]);
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    assert_eq!(machine.left(), Vec::<PathBuf>::new());

    // Killed whenever it is: the next one has every container complete, or not at all.
    for round in 0..6_u32 {
        let socket = machine.socket();
        let client = std::thread::spawn(move || {
            let mut client = airlock::client::connect(&socket, airlock_wire::client::Dialect::Json).unwrap();
            for n in 0.. {
                let arg = json!({"name": format!("/n{n}"), "spec": {"memory": {"limit": 16_777_216}, "children_limit": 7}});
                if client.call_raw("ContainerApi.Create", &arg, &[]).is_err() {
                    return n;
                }
            }
            0
        });
        let enough = 3 + round as usize;
        airlock_tests::wait::until("some are made", || (machine.left().len() > enough * 3).then_some(()));
        machine.kill();
        let answered = client.join().unwrap();
        machine.start();
        let mut c = machine.caller();
        let there = c.ok("Container.ListSubcontainers", &name("/"), &[]);
        let there = there.as_array().unwrap();
        assert!(there.len() >= answered && there.len() <= answered + 1, "{} of {answered}", there.len());
        for container in there {
            let container = container.as_str().unwrap();
            assert_eq!(machine.file("memory", container, "memory.limit_in_bytes"), "16777216");
            assert_eq!(c.ok("Container.Spec", &name(container), &[])["children_limit"], 7);
            c.ok("ContainerApi.Destroy", &name(container), &[]);
        }
        // One that was not completed leaves no more than directories which nobody finds, and which the next of that name
        // takes away.
        let half = format!("/n{answered}");
        create(&mut c, &half, json!({"memory": {}, "children_limit": 5}));
        assert_eq!(machine.file("memory", &half, "memory.limit_in_bytes"), "9223372036854771712");
        c.ok("ContainerApi.Destroy", &name(&half), &[]);
        assert_eq!(machine.left(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_container_that_is_deleted_under_a_client_is_not_found() {
    need_v1!();
    let machine = Machine::new();
    let (mut one, mut other) = (machine.caller(), machine.caller());
    create(&mut one, "/a", json!({"memory": {}}));
    other.ok("ContainerApi.Get", &name("/a"), &[]);
    one.ok("ContainerApi.Destroy", &name("/a"), &[]);
    for method in
        ["Container.Stats", "Container.Spec", "Container.Pause", "Container.KillAll", "ContainerApi.Destroy"]
    {
        assert!(
            other.fails(method, &name("/a"), &[]).starts_with("NOT_FOUND: container \"/a\" does not exist"),
            "{method}"
        );
    }
    let run = json!({"name": "/a", "command": ["/bin/true"], "spec": {"fd_policy": "DETACHED"}});
    assert!(other.fails("Container.Run", &run, &[]).starts_with("NOT_FOUND: "));
}

/// A process with a second thread; the process, and the thread's id.
fn with_thread() -> (std::process::Child, i32) {
    let script = "import threading,time\nt=threading.Thread(target=time.sleep,args=(1000,),daemon=True)\nt.start()\n\
                  print(t.native_id,flush=True)\ntime.sleep(1000)";
    let mut host = Command::new("python3").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(host.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (host, line.trim().parse().unwrap())
}

#[test]
fn visitor_threads() {
    need_v1!();
    need!("python3");
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {}}));
    let (mut host, tid) = with_thread();
    let resident = run(&mut c, "/a", &["/bin/sleep", "1000"]);
    c.ok("Container.Enter", &json!({"name": "/a", "tids": [tid]}), &[]);
    let mut expected = vec![tid, resident];
    expected.sort_unstable();
    assert_eq!(numbers(&c.ok("Container.ListThreads", &name("/a"), &[])), expected);
    assert_eq!(c.ok("ContainerApi.Detect", &json!({"tid": tid}), &[])["name"], "/a");
    assert!(c.fails("ContainerApi.Detect", &json!({"tid": host.id()}), &[]).starts_with("NOT_FOUND: "));
    // All threads stop, whoever their leader is.
    c.ok("Container.Pause", &name("/a"), &[]);
    let state = std::fs::read_to_string(format!("/proc/{}/task/{tid}/status", host.id())).unwrap();
    assert!(state.contains("State:\tD") || state.contains("State:\tS"), "{state}");
    c.ok("Container.Resume", &name("/a"), &[]);
    c.ok("Container.KillAll", &name("/a"), &[]);
    assert_eq!(c.ok("Container.ListThreads", &name("/a"), &[]), json!([]));
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(host.wait().unwrap().signal(), Some(9));

    // One that goes away again takes its process with it alive.
    let (mut host, tid) = with_thread();
    c.ok("Container.Enter", &json!({"name": "/a", "tids": [tid]}), &[]);
    c.ok("Container.Enter", &json!({"name": "/", "tids": [tid]}), &[]);
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    assert!(host.try_wait().unwrap().is_none());
    host.kill().unwrap();
    host.wait().unwrap();
}

#[test]
fn enter_says_what_it_could_not_move() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({}));
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let tids = json!({"name": "/a", "tids": [child.id(), 999_999_999]});
    assert!(c.fails("Container.Enter", &tids, &[]).starts_with("NOT_FOUND: there is no thread 999999999"));
    // The first was moved: lmctfy's Enter may leave it so.
    assert_eq!(c.ok("Container.ListProcesses", &name("/a"), &[]), json!([child.id()]));
    let many: Vec<i32> = vec![1; 70_000];
    assert!(
        c.fails("Container.Enter", &json!({"name": "/a", "tids": many}), &[])
            .starts_with("INVALID_ARGUMENT: 70000 threads")
    );
    // A thread that is moved into a paused container stops, and goes on when it is moved out.
    create(&mut c, "/still", json!({}));
    c.ok("Container.Pause", &name("/still"), &[]);
    c.ok("Container.Enter", &json!({"name": "/still", "tids": [child.id()]}), &[]);
    assert_eq!(machine.file("freezer", "/still", "freezer.state"), "FROZEN");
    c.ok("Container.Resume", &name("/still"), &[]);
    c.ok("ContainerApi.Destroy", &name("/a"), &[]);
    assert!(child.try_wait().unwrap().is_none(), "what left a container does not end with it");
    c.ok("ContainerApi.Destroy", &name("/still"), &[]);
    child.wait().unwrap();
}

#[test]
fn cgroups_of_others_are_containers_too() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    for hierarchy in ["freezer", "memory", "pids"] {
        std::fs::create_dir(machine.dir(hierarchy, "/foreign")).unwrap();
    }
    std::fs::write(machine.dir("memory", "/foreign").join("memory.limit_in_bytes"), "8388608").unwrap();
    std::fs::create_dir(machine.dir("freezer", "/user@1000.service")).unwrap();
    assert_eq!(
        c.ok("Container.ListSubcontainers", &name("/"), &[]),
        json!(["/foreign"]),
        "others cannot be named"
    );
    let spec = c.ok("Container.Spec", &name("/foreign"), &[]);
    assert_eq!(spec, json!({"children_limit": -1, "memory": {"limit": 8_388_608}}));
    c.ok("Container.Update", &json!({"name": "/foreign", "spec": {"children_limit": 4}}), &[]);
    assert_eq!(machine.file("pids", "/foreign", "pids.max"), "4");
    // What somebody writes there is not believed when it makes no sense.
    let set = |value: &str| {
        let dir = machine.dir("freezer", "/foreign");
        Command::new("python3")
            .args([
                "-c",
                "import os,sys;os.setxattr(sys.argv[1],'user.airlock.container',sys.argv[2].encode())",
            ])
            .args([dir.to_str().unwrap(), value])
            .status()
            .is_ok_and(|s| s.success())
    };
    if set("{\"cpu\": 5}") {
        assert!(c.fails("Container.Spec", &name("/foreign"), &[]).starts_with("INTERNAL: "));
    }
    c.ok("ContainerApi.Destroy", &name("/foreign"), &[]);
    assert!(Path::new(&machine.dir("freezer", "/user@1000.service")).exists());
}
