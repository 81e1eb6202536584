//! Exec, Terminate, Kill.
use super::*;
use std::fs::File;
use std::io::{Read, Write};

#[test]
fn a_process_gets_what_the_request_says() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let domain = host.started(&mut caller);
        let ([out_reader, err_reader, mut extra_reader], out, err) = {
            let (a, out) = std::io::pipe().unwrap();
            let (b, err) = std::io::pipe().unwrap();
            let (c, _) = std::io::pipe().unwrap();
            ([a, b, c], out, err)
        };
        let (reader, extra) = std::io::pipe().unwrap();
        extra_reader.by_ref().read_to_end(&mut Vec::new()).unwrap();
        let script = "echo \"$0 $1 $K\"; pwd; echo to-stderr >&2; echo to-extra >&3; read x || echo no-input; ls /proc/self/fd | wc -l";
        let mut request = exec(&domain, "p", &["bin/sh", "-c", script, "zero", "one"]);
        request["stdout"] = json!(true);
        request["stderr"] = json!(true);
        request["env"] = json!({"K": "a=b", "PATH": "/bin"});
        request["cwd"] = json!("/tmp");
        caller.ok("Supervisor.Exec", &request, &[out.as_fd(), err.as_fd(), extra.as_fd()]);
        drop((out, err, extra));
        let text = |pipe: PipeReader| read_all(File::from(OwnedFd::from(pipe)));
        // ls has its own directory open besides 0 to 3.
        assert_eq!(text(out_reader), "zero one a=b\n/tmp\nno-input\n5\n");
        assert_eq!(text(err_reader), "to-stderr\n");
        assert_eq!(text(reader), "to-extra\n");

        // Nothing but what is needed: the root is the working directory, there is no environment, nobody reads.
        let bare = json!({"name": "bare", "domain": domain, "path": "/bin/sh", "args": ["-c", "pwd > /tmp/bare; env >> /tmp/bare; readlink /proc/self/fd/1 > /tmp/out; echo gone; echo $? >> /tmp/out"]});
        caller.ok("Supervisor.Exec", &bare, &[]);
        let said = |file: &str| std::fs::read_to_string(host.bundle.rootfs().join(file)).unwrap_or_default();
        wait::until("it has written", || said("tmp/out").ends_with("0\n").then_some(()));
        assert!(said("tmp/bare").starts_with("/\n"), "{}", said("tmp/bare"));
        assert!(!said("tmp/bare").contains("PATH=/bin\n"), "{}", said("tmp/bare"));
        assert_eq!(said("tmp/out"), "/tmp/out\n0\n");
    }
}

#[test]
fn domains_have_pids_and_sessions_of_their_own() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = host.started(&mut caller);
    // PID 1 does nothing; the process leads its session and group.
    let text = shell(
        &mut caller,
        &domain,
        "cut -d' ' -f1,5,6 /proc/$$/stat; grep -E 'State|SigIgn|Seccomp:|CapEff' /proc/1/status",
    );
    let (ids, init) = text.split_once('\n').unwrap();
    let ids: Vec<&str> = ids.split(' ').collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[0] != "1", "{text}");
    assert!(init.contains("S (sleeping)"), "{text}");
    let ignored = init.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    assert!(u64::from_str_radix(ignored, 16).unwrap() & 1 << 16 != 0, "SIGCHLD is not ignored: {text}");
    assert!(init.contains("CapEff:\t0000000000000000"), "{text}");
    // Orphans are reaped: nobody is left as a zombie.
    shell(&mut caller, &domain, "(sleep 0.01 &) ; (true &) ; sleep 0.1");
    let left = shell(&mut caller, &domain, "ps -o stat= | grep -c Z");
    assert_eq!(left, "0\n");
}

#[test]
fn names_are_used_once() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let (domain, other) = (host.started(&mut caller), host.started(&mut caller));
        let mut events = listen(&mut caller, &domain);
        let request = exec(&domain, "name", &["/bin/sh", "-c", "exit 7"]);
        caller.ok("Supervisor.Exec", &request, &[]);
        refused(
            &caller.fails("Supervisor.Exec", &request, &[]),
            "invalid_state",
            "has a process \"name\" already",
        );
        assert_eq!(next(&mut events)["exit_status"], 7);
        refused(
            &caller.fails("Supervisor.Exec", &request, &[]),
            "invalid_state",
            "has a process \"name\" already",
        );
        caller.ok("Supervisor.Exec", &exec(&other, "name", &["/bin/true"]), &[]);
        // What could not be executed has no name.
        for (path, part) in [("/bin/nothing", "no such file"), ("/etc/passwd", "permission denied")] {
            for _ in 0..2 {
                let text = caller.fails("Supervisor.Exec", &exec(&domain, "bad", &[path]), &[]);
                refused(&text, "failure", part);
            }
        }
        caller.ok("Supervisor.Exec", &exec(&domain, "bad", &["/bin/true"]), &[]);
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let domain = host.started(&mut caller);
        let base = exec(&domain, "p", &["/bin/true"]);
        let with = |member: &str, value: Value| {
            let mut request = base.clone();
            request[member] = value;
            request
        };
        let topic = json!({"managed": {"topic": "runtime", "formats": ["line"]}});
        for (request, part) in [
            (with("name", json!("")), "a name has 1 to 255 bytes"),
            (with("name", json!("a\nb")), "none of them a control character"),
            (with("path", json!("")), "its path is empty"),
            (with("env", json!({"a=b": "c"})), "environment"),
            (with("env", json!({"a": "b\u{0}c"})), "environment"),
            (with("args", json!(["a\u{0}b"])), "NUL"),
            (with("cwd", json!("/nowhere")), "chdir"),
            (with("stdout", json!(true)), "0 descriptors came, too few"),
            (with("log_config", topic), "no descriptor was given for the topic"),
        ] {
            refused(&caller.fails("Supervisor.Exec", &request, &[]), "failure", part);
        }
        // None of that has left a name or a process.
        assert_eq!(info(&mut caller, &domain)["processes"], json!([]));
    }
    let mut caller = host.json();
    for (member, value) in
        [("log_config", json!({"managed": {"topic": "kernel"}})), ("args", json!("x")), ("env", json!(5))]
    {
        let mut request = exec("d", "p", &["/bin/true"]);
        request[member] = value;
        refused(&caller.fails("Supervisor.Exec", &request, &[]), "serde", "json: ");
    }
}

#[test]
fn terminate_asks_the_group_and_kill_ends_it() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let domain = host.started(&mut caller);
        let mut events = listen(&mut caller, &domain);
        let process = |name: &str| json!({"domain": domain, "name": name, "deadline": soon()});
        refused(
            &caller.fails("Supervisor.Terminate", &process("x"), &[]),
            "no_such_entity",
            "no process \"x\"",
        );
        refused(&caller.fails("Supervisor.Kill", &process("x"), &[]), "no_such_entity", "no process \"x\"");

        // Two of one group: the trap of the first tells that it heard, and the second dies of it.
        // It is ready when it is another program: before, it has the first one's trap.
        let other = "/bin/sh -c 'echo ready; exec sleep 1000' & wait";
        let script = &format!("trap 'echo asked; wait; exit 3' TERM; {other}");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut request = exec(&domain, "asked", &["/bin/sh", "-c", script]);
        request["stdout"] = json!(true);
        caller.ok("Supervisor.Exec", &request, &[writer.as_fd()]);
        drop(writer);
        let mut lines = BufReader::new(reader).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        caller.ok("Supervisor.Terminate", &process("asked"), &[]);
        assert_eq!(lines.next().unwrap().unwrap(), "asked");
        assert_eq!(next(&mut events)["exit_status"], 3);
        assert!(lines.next().is_none(), "the group's other process has ended");
        caller.ok("Supervisor.Terminate", &process("asked"), &[]);

        let script = &format!("trap '' TERM; {other}");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut request = exec(&domain, "stubborn", &["/bin/sh", "-c", script]);
        request["stdout"] = json!(true);
        caller.ok("Supervisor.Exec", &request, &[writer.as_fd()]);
        drop(writer);
        let mut lines = BufReader::new(reader).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        caller.ok("Supervisor.Terminate", &process("stubborn"), &[]);
        let late = json!({"domain": domain, "name": "stubborn", "deadline": past()});
        refused(&caller.fails("Supervisor.Kill", &late, &[]), "failure", "is not in the future");
        caller.ok("Supervisor.Kill", &process("stubborn"), &[]);
        let event = next(&mut events);
        assert_eq!(
            (&event["cause"], &event["signo"], &event["exit_status"]),
            (&json!("signaled"), &json!(9), &json!(null))
        );
        assert!(lines.next().is_none(), "the group's other process has ended");
        // It had ended already.
        caller.ok("Supervisor.Kill", &process("stubborn"), &[]);
        refused(&caller.fails("Supervisor.Kill", &late, &[]), "failure", "is not in the future");
    }
}

#[test]
fn kill_works_in_a_frozen_domain() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let domain = host.started(&mut caller);
        let (a, b) = (
            spawn(&mut caller, &domain, &["/bin/sleep", "1000"]),
            spawn(&mut caller, &domain, &["/bin/sleep", "1000"]),
        );
        caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
        caller.ok("Supervisor.Kill", &json!({"domain": domain, "name": a, "deadline": soon()}), &[]);
        assert_eq!(info(&mut caller, &domain)["state"], "frozen");
        let status = |caller: &mut Caller, name: &str| {
            let info = info(caller, &domain);
            let all = info["processes"].as_array().unwrap();
            all.iter().find(|p| p["name"] == name).unwrap()["status"].clone()
        };
        wait::until("its end is known", || (status(&mut caller, &a) == 9).then_some(()));
        assert_eq!(status(&mut caller, &b), json!(null));
        caller.ok("Supervisor.Thaw", &json!({"domain": domain}), &[]);
        caller.ok("Supervisor.Kill", &json!({"domain": domain, "name": b, "deadline": soon()}), &[]);
    }
}

#[test]
fn many_exec_and_kill_at_once() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let domain = host.started(&mut host.json());
    let mut events = listen(&mut host.json(), &domain);
    const EACH: usize = 12;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (host, domain) = (&host, &domain);
            scope.spawn(move || {
                let mut caller = if thread % 2 == 0 { host.json() } else { Caller::binary(&host.socket()) };
                for n in 0..EACH {
                    let name = format!("{thread}-{n}");
                    let args: &[&str] = if n % 3 == 0 { &["/bin/true"] } else { &["/bin/sleep", "1000"] };
                    caller.ok("Supervisor.Exec", &exec(domain, &name, args), &[]);
                    caller.ok(
                        "Supervisor.Kill",
                        &json!({"domain": domain, "name": name, "deadline": soon()}),
                        &[],
                    );
                }
            });
        }
    });
    let mut ended: Vec<String> =
        (0..4 * EACH).map(|_| next(&mut events)["name"].as_str().unwrap().to_owned()).collect();
    ended.sort();
    let mut all: Vec<String> = (0..4).flat_map(|t| (0..EACH).map(move |n| format!("{t}-{n}"))).collect();
    all.sort();
    assert_eq!(ended, all);
}

#[test]
fn descriptors_that_are_not_wanted_are_closed() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = host.started(&mut caller);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    caller.fails("Supervisor.Exec", &exec(&domain, "", &["/bin/true"]), &[writer.as_fd()]);
    writer.write_all(b"x").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}
