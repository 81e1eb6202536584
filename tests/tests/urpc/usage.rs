//! Usage, Metrics, Cgroups, and the methods that are refused by name.
use super::*;
use airlock_tests::{need, skip};
use airlock_wire::api::usage::UsagePage;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

fn page(file: &File) -> UsagePage {
    wait::until("the page is at rest", || {
        let mut bytes = [0; 128];
        file.read_exact_at(&mut bytes, 0).unwrap();
        UsagePage::from_bytes(&bytes)
    })
}

/// Whether the loader has the thread that keeps the page.
fn keeps_page(sandbox: &Sandbox) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sandbox.loader())).unwrap();
    tasks
        .flatten()
        .any(|t| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|name| name.trim() == "usage-page"))
}

#[test]
fn the_usage_page_lives_while_somebody_has_it() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        assert!(!keeps_page(&sandbox));
        let (result, fds) = caller.call_for_fds("Usage.UsageFD", &json!({"Version": 1}), &[]).unwrap();
        assert_eq!(result, json!({}));
        let [first, usage]: [File; 2] =
            fds.into_iter().map(File::from).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(first.metadata().unwrap().len(), UsagePage::SIZE);
        let seals = SealFlag::from_bits_truncate(fcntl(&first, FcntlArg::F_GET_SEALS).unwrap());
        assert!(seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL));
        assert!(first.write_at(&[1], 0).is_err(), "a client can write to the page");
        let begin = page(&first);
        assert!(begin.total > 0 && begin.pids > 0 && begin.cpu > 0 && begin.time > 0, "{begin:?}");
        assert!(begin.mapped + begin.anonymous + begin.tmpfs + begin.page_cache <= begin.total);
        assert!(std::io::read_to_string(&usage).unwrap().trim().parse::<u64>().unwrap() > 0);
        // Two clients share it, and it follows what the container does.
        let second = caller.call_for_fds("Usage.UsageFD", &json!({"Version": 1}), &[]).unwrap().1;
        sandbox.shell("dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null");
        wait::until("the page shows 8 MiB of tmpfs", || {
            (page(&first).tmpfs >= begin.tmpfs + (8 << 20)).then_some(())
        });
        sandbox.shell("rm /dev/shm/x");
        drop(first);
        assert!(keeps_page(&sandbox), "the other client still has it");
        drop(second);
        wait::until("nobody keeps the page", || (!keeps_page(&sandbox)).then_some(()));
        for version in [0, 2, u64::MAX] {
            let text = caller.fails("Usage.UsageFD", &json!({"Version": version}), &[]);
            assert_eq!(text, format!("unsupported version requested: {version}"));
        }
    }
}

#[test]
fn memory_is_given_back() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        sandbox.shell("dd if=/dev/zero of=/tmp/cached bs=1M count=32 2>/dev/null; sync");
        let cached = |caller: &mut Caller| {
            caller.ok("Usage.Collect", &json!({"Full": true}), &[])["PageCache"].as_u64().unwrap()
        };
        let before = cached(&mut caller);
        if before < 16 << 20 {
            skip!("the page cache of the root filesystem is not charged to the container");
        }
        caller.ok("Usage.Reduce", &json!({"wait": true}), &[]);
        let after = cached(&mut caller);
        assert!(after < before / 2, "{before} before, {after} after");
        caller.ok("Usage.Reduce", &json!({"wait": false, "do_not_gc": true}), &[]);
        let text = caller.ok("Usage.GetFileIoStats", &Value::Null, &[]);
        let stats: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        assert!(stats["ReadWait"]["/"].is_u64() && stats["ReadWait9P"]["/"].is_u64(), "{stats}");
    }
}

/// One file each: controller, path, name.
fn files(files: &[(&str, &str, &str)]) -> Vec<Value> {
    files.iter().map(|(c, p, n)| json!({"file": {"controller": c, "path": p, "name": n}})).collect()
}

#[test]
fn control_files_are_read_and_written_and_no_others() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let usage = if v2 { "memory.current" } else { "memory.usage_in_bytes" };
    for mut caller in sandbox.both() {
        let sub = sandbox.sub(&mut caller, &["/bin/sleep", "1000"]);
        let own = format!("/{}", sandbox.id);
        let other = format!("/{sub}/");
        let args = files(&[
            ("memory", "/", usage),
            ("memory", &own, usage),
            ("memory", &other, usage),
            ("pids", "", "pids.max"),
            ("pids", "/", "pids.none"),
            ("nothing", "/", "nothing.x"),
        ]);
        let read = caller.ok("Cgroups.ReadControlFiles", &json!({"args": args}), &[]);
        let results = read["results"].as_array().unwrap();
        for result in &results[..3] {
            assert!(result["value"].as_str().unwrap().parse::<u64>().unwrap() > 0, "{read}");
        }
        assert_eq!(results[3], json!({"value": "max", "is_error": false}));
        assert_eq!(results[4]["is_error"], true);
        assert!(results[4]["value"].as_str().unwrap().starts_with("no such control file"), "{read}");
        assert_eq!(results[5]["is_error"], true);
        let hostile = files(&[
            ("memory", "/../..", usage),
            ("memory", "/x/../../y", usage),
            ("memory", "/missing", usage),
            ("memory", "/", "../memory.stat"),
            ("memory", "/", "/etc/passwd"),
            ("memory", "/", ""),
            ("memory", "/\0", usage),
        ]);
        let refused = caller.ok("Cgroups.ReadControlFiles", &json!({"args": hostile}), &[]);
        assert!(refused["results"].as_array().unwrap().iter().all(|r| r["is_error"] == true), "{refused}");
        let write = |controller: &str, name: &str, value: &str| json!({"file": {"controller": controller, "path": "/", "name": name}, "value": value});
        let args = [
            write("pids", "pids.max", "500"),
            write("pids", "pids.max", "many"),
            write("pids", "cgroup.procs", "1"),
            write("freezer", "freezer.state", "FROZEN"),
            write("pids", "pids.max", &"9".repeat(5000)),
        ];
        let written = caller.ok("Cgroups.WriteControlFiles", &json!({"args": args}), &[]);
        let errors: Vec<&Value> =
            written["results"].as_array().unwrap().iter().map(|r| &r["is_error"]).collect();
        assert_eq!(
            errors,
            [&json!(false), &json!(true), &json!(true), &json!(true), &json!(true)],
            "{written}"
        );
        assert_eq!(written["results"][0]["value"], "");
        let read =
            caller.ok("Cgroups.ReadControlFiles", &json!({"args": files(&[("pids", "/", "pids.max")])}), &[]);
        assert_eq!(read["results"][0]["value"], "500");
        caller.ok("Cgroups.WriteControlFiles", &json!({"args": [write("pids", "pids.max", "max")]}), &[]);
        let many = vec![json!({"file": {}}); 1025];
        let text = caller.fails("Cgroups.ReadControlFiles", &json!({"args": many}), &[]);
        assert!(text.contains("at most 1024"), "{text}");
        let text = caller.fails("Cgroups.WriteControlFiles", &json!({"args": many}), &[]);
        assert!(text.contains("at most 1024"), "{text}");
        caller.ok("containerManager.DestroySubcontainer", &json!(sub), &[]);
    }
}

#[test]
fn metrics_count_what_happens() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for (round, mut caller) in sandbox.both().into_iter().enumerate() {
        let registered = caller.ok("Metrics.GetRegisteredMetrics", &json!({}), &[]);
        let known: BTreeSet<String> = registered["RegisteredMetrics"]["metrics"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["prometheus_name"].as_str().unwrap().to_owned())
            .collect();
        caller.fails("containerManager.WaitPID", &json!({"PID": -1, "CID": "x"}), &[]);
        sandbox.shell("true");
        let exported = caller.ok("Metrics.Export", &json!({"only_metrics": ""}), &[]);
        let data = exported["snapshot"]["data"].as_array().unwrap();
        let find = |name: &str, labels: Value| {
            let fits = |d: &&Value| d["metric"]["name"] == name && d["labels"] == labels;
            data.iter().find(fits).unwrap_or_else(|| panic!("{name} {labels} in {exported}"))
        };
        let int = |name: &str, labels: Value| find(name, labels)["val"]["int"].as_u64().unwrap_or(0);
        let failed = json!({"method": "containerManager.WaitPID", "result": "error"});
        assert_eq!(int("airlock_rpc_calls", failed), round as u64 + 1);
        let started = json!({"container": sandbox.id, "kind": "exec"});
        assert_eq!(int("airlock_container_processes_started", started), round as u64 + 1);
        assert!(int("airlock_container_pids", json!({"container": sandbox.id})) > 0);
        let state = json!({"container": sandbox.id, "state": "running"});
        assert_eq!(int("airlock_container_state", state), 1);
        let histogram =
            &find("airlock_rpc_duration_seconds", json!({"method": "containerManager.WaitPID"}))["histogram"];
        let samples: u64 =
            histogram["buckets"].as_array().unwrap().iter().map(|b| b["n"].as_u64().unwrap_or(0)).sum();
        assert_eq!(samples, round as u64 + 1, "{histogram}");
        assert_eq!(histogram["buckets"].as_array().unwrap().last().unwrap()["le"], json!({"int": i64::MAX}));
        for value in data {
            let name = value["metric"]["name"].as_str().unwrap();
            assert!(known.contains(name), "{name} is not registered");
        }
        let some =
            caller.ok("Metrics.Export", &json!({"only_metrics": "^airlock_container_(cpu|pids)"}), &[]);
        let names: BTreeSet<&str> = some["snapshot"]["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["metric"]["name"].as_str().unwrap())
            .collect();
        assert!(
            names.len() > 3 && names.iter().all(|n| n.contains("_cpu") || n.contains("_pids")),
            "{names:?}"
        );
        let text = caller.fails("Metrics.Export", &json!({"only_metrics": "("}), &[]);
        assert!(text.starts_with("cannot compile regexp \"(\": "), "{text}");
        let huge = "((a{100}){100}){100}";
        assert!(caller.fails("Metrics.Export", &json!({"only_metrics": huge}), &[]).contains("regexp"));
    }
}

#[test]
fn what_gvisor_has_and_airlock_cannot_have_is_refused_by_name() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    let null = null();
    for mut caller in sandbox.both() {
        let text = caller.fails("State.SaveWithOpts", &json!({"Key": null}), &[]);
        assert!(text.starts_with("SaveWithOpts is not supported") && text.contains("Checkpoint"), "{text}");
        let text = caller.fails("Events.AttachDebugEmitter", &Value::Null, &[null.as_fd()]);
        assert!(text.starts_with("AttachDebugEmitter is not supported"), "{text}");
        let mut start = |arg: Value, fds: &[_]| caller.fails("Lifecycle.StartContainer", &arg, fds);
        assert_eq!(
            start(json!({"container_id": "x", "donated_fds": [0]}), &[]),
            "FilePayload.Files and DonatedFDs must have same number of elements (0 != 1)"
        );
        let limits = json!({"container_id": "x", "limits": {"RLIMIT_FOO": {"cur": 1, "max": 1}}});
        assert_eq!(start(limits, &[]), "unknown limit \"RLIMIT_FOO\"");
        assert_eq!(
            start(json!({"container_id": sandbox.id}), &[]),
            format!("container id: {} already exists", sandbox.id)
        );
        let last = start(json!({"container_id": "x", "donated_fds": [0]}), &[null.as_fd()]);
        assert!(last.starts_with("mount namespace is nil for x"), "{last}");
    }
}

#[test]
fn who_had_a_container_killed_is_known() {
    need!("busybox");
    let sandbox = Sandbox::sleeping();
    for mut caller in sandbox.both() {
        let sub = sandbox.sub(&mut caller, &["/bin/sleep", "1000"]);
        let signal = json!({"CID": sub, "Signo": 15, "PID": 0, "Mode": 0});
        caller.ok("containerManager.Signal", &signal, &[]);
        let kill = json!({"container_id": sub, "signo": 9, "signalAll": false});
        caller.ok("Lifecycle.SignalContainer", &kill, &[]);
        assert_eq!(caller.ok("containerManager.Wait", &json!(sub), &[]), json!(9));
        let info = caller.ok("Airlock.Info", &json!({"cid": sub}), &[]);
        assert_eq!(info["reason"], "signal 9", "{info}");
        let killer = json!({"uid": 0, "pid": 0, "by": "Lifecycle.SignalContainer", "signal": 9});
        assert_eq!(info["killed_by"], killer);
        caller.ok("containerManager.DestroySubcontainer", &json!(sub), &[]);
        // By itself: nobody.
        let sub = sandbox.sub(&mut caller, &["/bin/sh", "-c", "kill -9 $$; exit 3"]);
        caller.ok("containerManager.Wait", &json!(sub), &[]);
        let info = caller.ok("Airlock.Info", &json!({"cid": sub}), &[]);
        assert_eq!((&info["reason"], &info["killed_by"]), (&json!("exited"), &Value::Null));
        caller.ok("containerManager.DestroySubcontainer", &json!(sub), &[]);
    }
}
