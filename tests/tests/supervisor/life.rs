//! Define, Start, Freeze, Thaw, Stop, Exit, Ping: states and what a cycle used.
use super::*;
use airlock_tests::leaks;
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::Kind;

#[test]
fn a_domain_goes_from_state_to_state() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        caller.ok("Supervisor.Ping", &Value::Null, &[]);
        let domain = host.configured(&mut caller, json!({}));
        let by = json!({"domain": domain});
        let stop = json!({"domain": domain, "deadline": soon()});
        assert_eq!(info(&mut caller, &domain)["state"], "configured");
        let wrong = |text: String, verb: &str, state: &str| {
            refused(&text, "invalid_state", &format!("domain {domain:?} cannot be {verb}: it is {state}"));
        };
        wrong(caller.fails("Supervisor.Freeze", &by, &[]), "frozen", "configured");
        wrong(caller.fails("Supervisor.Thaw", &by, &[]), "thawed", "configured");
        wrong(caller.fails("Supervisor.Stop", &stop, &[]), "stopped", "configured");
        wrong(
            caller.fails("Supervisor.Exec", &exec(&domain, "p", &["/bin/true"]), &[]),
            "used",
            "configured",
        );

        caller.ok("Supervisor.Start", &by, &[]);
        assert_eq!(info(&mut caller, &domain)["state"], "started");
        assert_eq!(info(&mut caller, &domain)["cid"], domain);
        wrong(caller.fails("Supervisor.Start", &by, &[]), "started", "started");
        wrong(caller.fails("Supervisor.Thaw", &by, &[]), "thawed", "started");
        let again = caller.fails("Supervisor.Configure", &by, &[]);
        wrong(again, "configured", "started");

        let frozen = caller.ok("Supervisor.Freeze", &by, &[]);
        assert!(frozen["cycle_delta_metrics"]["domain_run_ns"].as_u64().unwrap() > 0);
        assert_eq!(info(&mut caller, &domain)["state"], "frozen");
        wrong(caller.fails("Supervisor.Freeze", &by, &[]), "frozen", "frozen");
        wrong(caller.fails("Supervisor.Exec", &exec(&domain, "p", &["/bin/true"]), &[]), "used", "frozen");

        caller.ok("Supervisor.Thaw", &by, &[]);
        assert_eq!(info(&mut caller, &domain)["state"], "thawed");
        caller.ok("Supervisor.Exec", &exec(&domain, "p", &["/bin/true"]), &[]);

        caller.ok("Supervisor.Stop", &stop, &[]);
        assert_eq!(info(&mut caller, &domain)["state"], "stopped");
        wrong(caller.fails("Supervisor.Stop", &stop, &[]), "stopped", "stopped");
        wrong(caller.fails("Supervisor.Start", &by, &[]), "started", "stopped");
        assert_eq!(leaks::cgroups(&domain), Vec::<String>::new());

        // The name can be used again.
        let rootfs = host.rootfs();
        caller.ok("Supervisor.Configure", &root(&domain, json!({})), &[rootfs.as_fd()]);
        caller.ok("Supervisor.Start", &by, &[]);
        caller.ok("Supervisor.Exec", &exec(&domain, "p", &["/bin/true"]), &[]);
    }
}

#[test]
fn kinds_of_errors_are_the_same_in_both_dialects() {
    airlock_tests::need!("busybox");
    use airlock_wire::api::supervisor::{Kill, KillRequest, Start, StartRequest, Stop, StopRequest};
    let host = Host::new();
    let domain = host.started(&mut host.json());
    for dialect in [Dialect::Json, Dialect::Binary] {
        let mut client = Client::connect(&host.socket(), dialect).unwrap();
        let nobody = StartRequest { domain: "nobody".to_owned() };
        let e = client.call::<Start>(&nobody, &[]).unwrap_err();
        assert_eq!((e.kind, e.message.as_str()), (Kind::NoSuchEntity, "domain \"nobody\" does not exist"));
        let e = client.call::<Start>(&StartRequest { domain: domain.clone() }, &[]).unwrap_err();
        assert_eq!(e.kind, Kind::InvalidState);
        let stop = StopRequest { domain: domain.clone(), ..StopRequest::default() };
        let e = client.call::<Stop>(&stop, &[]).unwrap_err();
        assert!(!matches!(e.kind, Kind::NoSuchEntity | Kind::InvalidState | Kind::Serde), "{e:?}");
        assert!(e.message.contains("the deadline 0001-01-01T00:00:00Z is not in the future"), "{e}");
        let kill =
            KillRequest { domain: domain.clone(), name: "nobody".to_owned(), deadline: Deadline::default() };
        assert_eq!(client.call::<Kill>(&kill, &[]).unwrap_err().kind, Kind::NoSuchEntity);
    }
    let mut caller = host.json();
    let text = caller.fails("Supervisor.Stop", &json!({"domain": domain, "deadline": "tomorrow"}), &[]);
    refused(&text, "serde", "is no RFC 3339 time");
    let text = caller.fails("Supervisor.Start", &json!({"domain": 5}), &[]);
    refused(
        &text,
        "serde",
        "cannot unmarshal number into Go struct field StartRequest.domain of type string",
    );
    // The domain is as it was.
    assert_eq!(shell(&mut caller, &domain, "echo here"), "here\n");
}

#[test]
fn what_does_not_exist_is_told_so() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let by = json!({"domain": "nobody"});
        let process = json!({"domain": "nobody", "name": "p", "deadline": soon()});
        let missing = |text: String| refused(&text, "no_such_entity", "domain \"nobody\" does not exist");
        missing(caller.fails("Supervisor.Start", &by, &[]));
        missing(caller.fails("Supervisor.Stop", &process, &[]));
        missing(caller.fails("Supervisor.Freeze", &by, &[]));
        missing(caller.fails("Supervisor.Thaw", &by, &[]));
        missing(caller.fails("Supervisor.Exec", &exec("nobody", "p", &["/bin/true"]), &[]));
        missing(caller.fails("Supervisor.Terminate", &process, &[]));
        missing(caller.fails("Supervisor.Kill", &process, &[]));
        missing(caller.fails("Supervisor.Events", &by, &[]));
    }
}

#[test]
fn a_cycle_tells_what_was_used_in_it() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = host.started(&mut caller);
    let by = json!({"domain": domain});
    let number = |m: &Value, name: &str| m[name].as_u64().unwrap_or_else(|| panic!("{name} in {m}"));
    // 64 MiB in memory and half a second or so of work.
    let work = "head -c 67108864 /dev/zero > /dev/shm/big; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done";
    assert_eq!(shell(&mut caller, &domain, work), "done\n");
    let first = caller.ok("Supervisor.Freeze", &by, &[])["cycle_delta_metrics"].clone();
    assert!(number(&first, "domain_cpu_run_ns") > 50_000_000, "{first}");
    assert!(number(&first, "domain_run_ns") > number(&first, "domain_cpu_run_ns") / 8, "{first}");
    assert!(number(&first, "service_cpu_run_ns") > 0, "{first}");
    assert!(number(&first, "domain_max_memory_usage_bytes") > 60 << 20, "{first}");
    assert!(number(&first, "microvm_cpu_run_ns") >= 50_000_000, "{first}");
    assert!(first["idle_cpu_run_ns"].is_u64(), "{first}");
    let lo = &first["microvm_network_interfaces"]["lo"];
    assert_eq!(
        (lo["received_bytes"].as_u64(), lo["transmitted_bytes"].as_u64()),
        (Some(0), Some(0)),
        "{first}"
    );

    // The next cycle counts anew, and its memory too. Something goes over the loopback interface.
    caller.ok("Supervisor.Thaw", &by, &[]);
    let ping =
        "nc -l -p 5000 > /dev/null & until echo hello | nc 127.0.0.1 5000; do usleep 10000; done; wait";
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let null = null.as_fd();
    let pid = caller.ok(
        "containerManager.ExecuteAsync",
        &host_exec(&host.id, &["/bin/sh", "-c", ping]),
        &[null, null, null],
    );
    caller.ok("containerManager.WaitPID", &json!({"CID": host.id, "PID": pid}), &[]);
    shell(&mut caller, &domain, "rm /dev/shm/big");
    let second = caller.ok("Supervisor.Freeze", &by, &[])["cycle_delta_metrics"].clone();
    let lo = &second["microvm_network_interfaces"]["lo"];
    assert!(lo["received_bytes"].as_u64().unwrap() > 100, "{second}");
    assert_eq!(lo["received_bytes"], lo["transmitted_bytes"]);
    assert!(number(&second, "domain_cpu_run_ns") < number(&first, "domain_cpu_run_ns"), "{second}");
    caller.ok("Supervisor.Thaw", &by, &[]);
    let stopped = caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    let third = &stopped["cycle_delta_metrics"];
    assert!(number(third, "domain_max_memory_usage_bytes") < 60 << 20, "{third}");
    assert!(number(third, "domain_run_ns") > 0, "{third}");
}

fn host_exec(cid: &str, argv: &[&str]) -> Value {
    json!({
        "argv": argv, "envv": ["PATH=/bin"], "wd": "/", "KUID": 0, "KGID": 0, "ContainerID": cid, "GuestFDs": [0, 1, 2],
    })
}

#[test]
fn stop_ends_a_fork_bomb_by_its_deadline() {
    airlock_tests::need!("busybox");
    let host = Host::with(|config| config["linux"]["resources"]["pids"] = json!({"limit": 400}));
    for mut caller in host.both() {
        let domain = host.started(&mut caller);
        spawn(&mut caller, &domain, &["/bin/sh", "-c", "bomb() { while true; do bomb & done; }; bomb"]);
        wait::until("the bomb goes off", || {
            let freezer = host.cgroup_file("freezer", &domain, "cgroup.procs")?;
            (freezer.lines().count() > 50).then_some(())
        });
        let used = caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
        assert!(used["cycle_delta_metrics"]["domain_cpu_run_ns"].as_u64().unwrap() > 0);
        assert_eq!(leaks::cgroups(&domain), Vec::<String>::new());
        assert_eq!(info(&mut caller, &domain)["state"], "stopped");
    }
    assert_eq!(host.state.status(&host.id), "running");
}

#[test]
fn stop_ends_a_frozen_domain_and_refuses_a_deadline_in_the_past() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let domain = host.started(&mut caller);
        let mut events = listen(&mut caller, &domain);
        let name = spawn(&mut caller, &domain, &["/bin/sleep", "1000"]);
        caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
        let text = caller.fails("Supervisor.Stop", &json!({"domain": domain, "deadline": past()}), &[]);
        refused(&text, "failure", "the deadline 2001-02-03T04:05:06.5+01:00 is not in the future");
        caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
        let event = next(&mut events);
        assert_eq!((&event["name"], &event["signo"]), (&json!(name), &json!(9)));
        let processes = info(&mut caller, &domain)["processes"].clone();
        assert_eq!(processes[0]["status"], 9);
    }
}

#[test]
fn a_domain_that_ended_by_other_means_is_seen_and_cleared_away() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = host.started(&mut caller);
    caller.ok("containerManager.DestroySubcontainer", &json!(domain), &[]);
    assert_eq!(info(&mut caller, &domain)["state"], "stopped");
    let text = caller.fails("Supervisor.Freeze", &json!({"domain": domain}), &[]);
    refused(&text, "invalid_state", "it is stopped");
    let rootfs = host.rootfs();
    let text = caller.fails("Supervisor.Configure", &root(&domain, json!({})), &[rootfs.as_fd()]);
    refused(&text, "invalid_state", "has to be cleared away with Supervisor.Stop");
    caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    assert_eq!(leaks::cgroups(&domain), Vec::<String>::new());
    caller.ok("Supervisor.Configure", &root(&domain, json!({})), &[rootfs.as_fd()]);
}

#[test]
fn exit_ends_the_sandbox_and_leaves_nothing() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let mut caller = host.json();
    let domain = host.started(&mut caller);
    spawn(&mut caller, &domain, &["/bin/sleep", "1000"]);
    caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
    caller.ok("Supervisor.Exit", &Value::Null, &[]);
    wait::until("the sandbox ends", || (host.state.status(&host.id) == "stopped").then_some(()));
    host.state.ok(["delete", &host.id]);
    leaks::nothing_left(&host.state, &host.id);
    assert_eq!(leaks::cgroups(&domain), Vec::<String>::new());
}

#[test]
fn callers_that_come_at_once_are_told_apart() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let domain = host.configured(&mut host.json(), json!({}));
    let by = json!({"domain": domain});
    let at_once = |call: &(dyn Fn(&mut Caller) -> bool + Sync)| -> usize {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| call(&mut host.json()))).collect();
            threads.into_iter().filter(|_| true).map(|t| usize::from(t.join().unwrap())).sum()
        })
    };
    assert_eq!(at_once(&|c| c.call("Supervisor.Start", &by, &[]).is_ok()), 1);
    assert_eq!(
        at_once(&|c| c.call("Supervisor.Exec", &exec(&domain, "same", &["/bin/true"]), &[]).is_ok()),
        1
    );
    assert_eq!(at_once(&|c| c.call("Supervisor.Freeze", &by, &[]).is_ok()), 1);
    assert_eq!(at_once(&|c| c.call("Supervisor.Thaw", &by, &[]).is_ok()), 1);
    let stop = json!({"domain": domain, "deadline": soon()});
    assert_eq!(at_once(&|c| c.call("Supervisor.Stop", &stop, &[]).is_ok()), 1);
}
