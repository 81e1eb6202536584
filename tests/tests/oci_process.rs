//! `process` and `root` of the OCI runtime spec, as programs in real containers see them.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::oci::{Ran, all_capabilities, field, output, refused, run, run_in};
use airlock_tests::{Bundle, State, need, skip, unique};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// A capability of this test itself: what it lacks no container can get.
fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    u64::from_str_radix(field(&status, "CapEff"), 16).unwrap() & (1 << number) != 0
}

const CAP_SYS_RESOURCE: u32 = 24;

#[test]
fn args_arrive_as_they_are() {
    need!("busybox");
    let bundle = Bundle::new(&["printf", "[%s]", "a b", "", "$HOME", "é\n"]);
    assert_eq!(run_in(&State::new(), &bundle).stdout, "[a b][][$HOME][é\n]");
    assert!(refused(|c| c["process"]["args"] = json!([])).contains("process.args: args must not be empty"));
    assert!(refused(|c| c["process"]["args"] = Value::Null).contains("process.args"));
}

#[test]
fn a_missing_program_is_told_in_the_words_that_callers_match() {
    need!("busybox");
    let told = |args: &[&str]| {
        let ran = run_in(&State::new(), &Bundle::new(args));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{}", ran.stderr);
        ran.stderr
    };
    assert!(told(&["no-such-program"]).contains("executable file not found in $PATH"));
    assert!(told(&["/no/such/program"]).contains("no such file or directory"));
    assert!(told(&["/etc/passwd"]).contains("permission denied"));
    assert!(told(&["/etc"]).contains("is a directory"));
}

#[test]
fn env_is_exactly_what_was_given_and_a_home() {
    need!("busybox");
    let env = output("env", |c| c["process"]["env"] = json!(["PATH=/bin", "A=1", "B=x=y z", "EMPTY="]));
    let mut lines: Vec<&str> =
        env.lines().filter(|l| !["SHLVL", "PWD", "OLDPWD"].contains(&l.split('=').next().unwrap())).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=1", "B=x=y z", "EMPTY=", "HOME=/root", "PATH=/bin"]);
    let home = |uid: u32| {
        output("echo $HOME", |c| {
            c["process"]["user"] = json!({"uid": uid, "gid": 0});
            c["process"]["env"] = json!(["PATH=/bin"]);
        })
    };
    // From the container's own /etc/passwd; / for those who are not in it.
    assert_eq!((home(1000).trim(), home(77).trim()), ("/tmp", "/"));
}

#[test]
fn a_missing_cwd_is_made_and_a_wrong_one_told() {
    need!("busybox");
    let bundle = Bundle::with(&["pwd"], |c| {
        c["process"]["cwd"] = json!("/srv/deep/er");
        c["root"]["readonly"] = json!(true);
    });
    let ran = run_in(&State::new(), &bundle);
    assert_eq!((ran.stdout.as_str(), ran.code), ("/srv/deep/er\n", Some(0)), "{}", ran.stderr);
    let made = std::fs::metadata(bundle.rootfs().join("srv/deep/er")).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid()), (0o755, 0));

    assert!(refused(|c| c["process"]["cwd"] = json!("tmp")).contains("process.cwd"));
    let file = refused(|c| c["process"]["cwd"] = json!("/etc/passwd"));
    assert!(file.contains("cwd") && file.to_lowercase().contains("not a directory"), "{file}");
    assert!(refused(|c| c["process"]["cwd"] = json!("/proc/self/fd/3")).contains("cwd"));
}

#[test]
fn a_cwd_that_only_root_may_enter_can_be_the_start_of_a_user() {
    need!("busybox");
    let bundle = Bundle::with(&["sh", "-c", "readlink /proc/self/cwd; cd /root"], |c| {
        c["process"]["cwd"] = json!("/root");
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c["process"]["capabilities"] = json!({});
    });
    std::fs::set_permissions(bundle.rootfs().join("root"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let ran = run_in(&State::new(), &bundle);
    assert_eq!(ran.stdout, "/root\n", "{}", ran.stderr);
    assert_ne!(ran.code, Some(0), "the user itself may not enter it");
}

#[test]
fn user_and_groups() {
    need!("busybox");
    let status = output("cat /proc/self/status", |c| {
        c["process"]["user"] = json!({"uid": 1234, "gid": 5678, "additionalGids": [10, 10, 20, 10, 0]});
    });
    assert_eq!(field(&status, "Uid"), "1234\t1234\t1234\t1234");
    assert_eq!(field(&status, "Gid"), "5678\t5678\t5678\t5678");
    // Sorted by the kernel; duplicates stay, as in runc.
    assert_eq!(field(&status, "Groups"), "0 10 10 10 20");
    assert_eq!(field(&output("cat /proc/self/status", |_| {}), "Groups"), "");
    assert!(refused(|c| c["process"]["user"]["uid"] = json!(u32::MAX)).contains("process.user.uid"));
}

#[test]
fn umask() {
    need!("busybox");
    let mask = |given: Value| {
        output("umask; touch /tmp/f; stat -c %a /tmp/f", |c| c["process"]["user"]["umask"] = given)
    };
    assert_eq!(mask(json!(0o077)), "0077\n600\n");
    assert_eq!(mask(json!(0)), "0000\n666\n");
    assert_eq!(mask(Value::Null), "0022\n644\n");
    assert!(refused(|c| c["process"]["user"]["umask"] = json!(0o1000)).contains("process.user.umask"));
}

fn capabilities(status: &str) -> [u64; 5] {
    ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"]
        .map(|set| u64::from_str_radix(field(status, set), 16).unwrap())
}

#[test]
fn all_five_capability_sets() {
    need!("busybox");
    const CHOWN: u64 = 1;
    const KILL: u64 = 1 << 5;
    const NET_RAW: u64 = 1 << 13;
    let given = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL", "CAP_NET_RAW"],
        "ambient": ["CAP_KILL"]
    });
    // Root gets all of its bounding set at exec (capabilities(7)); ambient sets survive for others.
    let status = output("cat /proc/self/status", |c| {
        c["process"]["capabilities"] = given.clone();
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    assert_eq!(capabilities(&status), [CHOWN | KILL | NET_RAW, KILL, KILL, KILL | NET_RAW, KILL]);
    let status = output("cat /proc/self/status", |c| c["process"]["capabilities"] = given.clone());
    assert_eq!(
        capabilities(&status),
        [CHOWN | KILL | NET_RAW, CHOWN | KILL | NET_RAW, CHOWN | KILL | NET_RAW, KILL | NET_RAW, KILL]
    );

    for none in [json!({}), Value::Null] {
        let status = output("cat /proc/self/status", |c| c["process"]["capabilities"] = none);
        assert_eq!(capabilities(&status), [0; 5]);
    }
    // Ambient ones need inheritable ones: left out, as in runc.
    let status = output("cat /proc/self/status", |c| {
        c["process"]["capabilities"] =
            json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
        c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    assert_eq!(capabilities(&status), [KILL, 0, 0, 0, 0]);
}

#[test]
fn unknown_capabilities_and_those_that_the_runtime_lacks_are_left_out() {
    need!("busybox");
    let status = output("cat /proc/self/status", |c| {
        c["process"]["capabilities"] =
            json!({"bounding": ["CAP_KILL", "CAP_FROM_THE_FUTURE"], "effective": ["CAP_LAKE"]});
    });
    assert_eq!(capabilities(&status)[0], 1 << 5);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let status = output("cat /proc/self/status", all_capabilities);
    assert_eq!(field(&status, "CapBnd"), field(&own, "CapBnd"));
    assert_eq!(field(&status, "CapEff"), field(&own, "CapEff"));

    // The same in exec's process object.
    let state = State::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let file = bundle.path().join("process.json");
    let mut process = bundle.config()["process"].clone();
    process["args"] = json!(["cat", "/proc/self/status"]);
    process["capabilities"] = json!({"bounding": ["CAP_CHOWN", "CAP_UNHEARD_OF"]});
    std::fs::write(&file, process.to_string()).unwrap();
    let status = state.ok(["exec", "--process", file.to_str().unwrap(), &id]);
    assert_eq!(capabilities(&status)[0], 1);
}

#[test]
fn rlimits() {
    need!("busybox");
    let limits = output("cat /proc/self/limits", |c| {
        c["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_CPU", "soft": 7, "hard": 8}, {"type": "RLIMIT_FSIZE", "soft": 4096, "hard": 8192},
            {"type": "RLIMIT_NPROC", "soft": 50, "hard": 60}, {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 21},
            {"type": "RLIMIT_AS", "soft": 1u64 << 30, "hard": 1u64 << 31}, {"type": "RLIMIT_LOCKS", "soft": 3, "hard": 4},
            {"type": "RLIMIT_SIGPENDING", "soft": 11, "hard": 12}, {"type": "RLIMIT_MSGQUEUE", "soft": 13, "hard": 14},
            {"type": "RLIMIT_DATA", "soft": 1 << 24, "hard": 1 << 25}, {"type": "RLIMIT_RSS", "soft": 17, "hard": 18},
            {"type": "RLIMIT_MEMLOCK", "soft": 19, "hard": 20}, {"type": "RLIMIT_RTTIME", "soft": 21, "hard": 22}
        ]);
    });
    let limit = |name: &str| {
        let line = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().take(2).map(|n| n.parse().unwrap()).collect::<Vec<u64>>()
    };
    let expected = [
        ("Max open files", [100, 200]),
        ("Max core file size", [0, 0]),
        ("Max cpu time", [7, 8]),
        ("Max file size", [4096, 8192]),
        ("Max processes", [50, 60]),
        ("Max stack size", [1 << 20, 1 << 21]),
        ("Max address space", [1 << 30, 1 << 31]),
        ("Max file locks", [3, 4]),
        ("Max pending signals", [11, 12]),
        ("Max msgqueue size", [13, 14]),
        ("Max data size", [1 << 24, 1 << 25]),
        ("Max resident set", [17, 18]),
        ("Max locked memory", [19, 20]),
        ("Max realtime timeout", [21, 22]),
    ];
    for (name, values) in expected {
        assert_eq!(limit(name), values, "{name}");
    }
    let twice =
        json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    assert!(refused(|c| c["process"]["rlimits"] = twice).contains("process.rlimits[1]"));
}

#[test]
fn a_hard_limit_is_raised_only_by_those_who_may() {
    need!("busybox");
    let own = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = own.lines().find_map(|l| l.strip_prefix("Max open files")).unwrap();
    let hard: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    let with = |soft: u64, hard: u64| {
        run("ulimit -Hn", |c| {
            c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}])
        })
    };
    // What is there already can be asked for by anybody.
    let same = with(hard, hard);
    assert_eq!((same.code, same.stdout.trim()), (Some(0), hard.to_string().as_str()), "{}", same.stderr);
    let more = with(10, hard + 1);
    if has_capability(CAP_SYS_RESOURCE) {
        assert_eq!(
            (more.code, more.stdout.trim()),
            (Some(0), (hard + 1).to_string().as_str()),
            "{}",
            more.stderr
        );
    } else {
        assert_eq!((more.code, more.stdout.as_str()), (Some(1), ""));
        assert!(
            more.stderr.contains("error setting rlimit")
                && more.stderr.to_lowercase().contains("not permitted"),
            "{}",
            more.stderr
        );
    }
}

#[test]
fn no_new_privileges() {
    need!("busybox");
    let set = |on: bool| output("cat /proc/self/status", |c| c["process"]["noNewPrivileges"] = json!(on));
    assert_eq!(field(&set(true), "NoNewPrivs"), "1");
    assert_eq!(field(&set(false), "NoNewPrivs"), "0");
    // What it is for: a set-user-id program gives nothing. (busybox gives the right up itself, which the saved id does
    // not follow.)
    let saved = |on: bool| {
        let bundle = Bundle::with(&["/bin/suid/cat", "/proc/self/status"], |c| {
            c["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            c["process"]["noNewPrivileges"] = json!(on);
        });
        let dir = bundle.rootfs().join("bin/suid");
        std::fs::create_dir(&dir).unwrap();
        airlock_tests::copy_program(&bundle.rootfs().join("bin/busybox"), &dir.join("cat"));
        std::fs::set_permissions(dir.join("cat"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        let ran = run_in(&State::new(), &bundle);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        field(&ran.stdout, "Uid").split_ascii_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!(saved(true), "1000");
    assert_eq!(saved(false), "0");
}

#[test]
fn oom_score() {
    need!("busybox");
    let score =
        |value: i32| run("cat /proc/self/oom_score_adj", |c| c["process"]["oomScoreAdj"] = json!(value));
    assert_eq!(score(500).stdout, "500\n");
    assert_eq!(score(1000).stdout, "1000\n");
    let lower = score(-1000);
    if has_capability(CAP_SYS_RESOURCE) {
        assert_eq!(lower.stdout, "-1000\n", "{}", lower.stderr);
    } else {
        assert!(
            lower.code == Some(1) && lower.stderr.contains("process.oomScoreAdj -1000"),
            "{}",
            lower.stderr
        );
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(output("cat /proc/self/oom_score_adj", |_| {}), own);
    assert!(refused(|c| c["process"]["oomScoreAdj"] = json!(1001)).contains("process.oomScoreAdj"));
}

/// Fields of `/proc/self/stat` from the third on, of the shell itself: 0 is the state.
fn stat_fields(edit: impl FnOnce(&mut Value)) -> Vec<String> {
    let text = output("read line </proc/self/stat; echo \"$line\"", edit);
    let rest = &text[text.rfind(')').unwrap() + 2..];
    rest.split_ascii_whitespace().map(str::to_owned).collect()
}

// proc_pid_stat(5): (18) priority, (19) nice, (40) rt_priority, (41) policy.
const NICE: usize = 19 - 3;
const RT_PRIORITY: usize = 40 - 3;
const POLICY: usize = 41 - 3;

#[test]
fn scheduler() {
    need!("busybox");
    let with = |scheduler: Value| stat_fields(move |c| c["process"]["scheduler"] = scheduler);
    let batch = with(json!({"policy": "SCHED_BATCH", "nice": 7}));
    assert_eq!((batch[POLICY].as_str(), batch[NICE].as_str()), ("3", "7"));
    let idle = with(json!({"policy": "SCHED_IDLE"}));
    assert_eq!(idle[POLICY], "5");
    let other = with(json!({"policy": "SCHED_OTHER", "nice": -5}));
    assert_eq!((other[POLICY].as_str(), other[NICE].as_str()), ("0", "-5"));

    let ran = run("read line </proc/self/stat; echo \"$line\"", |c| {
        c["process"]["scheduler"] =
            json!({"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    });
    if ran.code == Some(0) {
        let rest = &ran.stdout[ran.stdout.rfind(')').unwrap() + 2..];
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        assert_eq!((fields[POLICY], fields[RT_PRIORITY]), ("1", "5"));
    } else {
        // Real-time runs need room in the cgroup (CONFIG_RT_GROUP_SCHED).
        assert!(ran.stderr.contains("process.scheduler"), "{}", ran.stderr);
    }
    for (wrong, path) in [
        (json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice"),
        (json!({"policy": "SCHED_OTHER", "priority": 1}), "process.scheduler.priority"),
        (json!({"policy": "SCHED_ISO"}), "process.scheduler.policy"),
        (json!({"policy": "SCHED_DEADLINE", "runtime": 5, "deadline": 1}), "process.scheduler"),
    ] {
        assert!(refused(|c| c["process"]["scheduler"] = wrong).contains(path), "{path}");
    }
}

#[test]
fn io_priority() {
    need!("busybox", "python3");
    // There is no file that shows it, so that ioprio_get(2) is asked from the host, by pid.
    let state = State::new();
    for (class, priority, expected) in [
        ("IOPRIO_CLASS_BE", 3, 2 << 13 | 3),
        ("IOPRIO_CLASS_IDLE", 0, 3 << 13),
        ("IOPRIO_CLASS_RT", 1, 1 << 13 | 1),
    ] {
        let bundle = Bundle::with(&["sleep", "1000"], |c| {
            c["process"]["ioPriority"] = json!({"class": class, "priority": priority});
        });
        let id = unique("oci");
        state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
        let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
        let got = std::process::Command::new("python3")
            .args([
                "-c",
                "import ctypes,sys; print(ctypes.CDLL(None).syscall(252, 1, int(sys.argv[1])))",
                &pids[0].to_string(),
            ])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&got.stdout).trim(), expected.to_string(), "{class} {priority}");
    }
    let wrong = json!({"class": "IOPRIO_CLASS_BE", "priority": 8});
    assert!(refused(|c| c["process"]["ioPriority"] = wrong).contains("process.ioPriority.priority"));
}

#[test]
fn cpu_affinity_of_exec() {
    need!("busybox");
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    if !field(&own, "Cpus_allowed_list").contains(['-', ',']) {
        skip!("needs two CPUs");
    }
    let state = State::new();
    let bundle = Bundle::with(&["sleep", "1000"], |c| {
        c["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    });
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let cpus = |args: &[&str]| {
        let status = state.ok([&["exec"], args, &[id.as_str(), "cat", "/proc/self/status"]].concat());
        field(&status, "Cpus_allowed_list").to_owned()
    };
    assert_eq!(cpus(&[]), "1");
    // The container's own process is not concerned.
    let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
    let init = std::fs::read_to_string(format!("/proc/{}/status", pids[0])).unwrap();
    assert_eq!(field(&init, "Cpus_allowed_list"), field(&own, "Cpus_allowed_list"));
    let file = bundle.path().join("process.json");
    let mut process = bundle.config()["process"].clone();
    process["args"] = json!(["cat", "/proc/self/status"]);
    process["execCPUAffinity"] = json!({"initial": "0"});
    std::fs::write(&file, process.to_string()).unwrap();
    let status = state.ok(["exec", "--process", file.to_str().unwrap(), &id]);
    assert_eq!(field(&status, "Cpus_allowed_list"), "0");
}

#[test]
fn labels_are_refused_by_name() {
    need!("busybox");
    assert!(
        refused(|c| c["process"]["apparmorProfile"] = json!("docker-default"))
            .contains("process.apparmorProfile")
    );
    assert!(refused(|c| c["process"]["selinuxLabel"] = json!("a:b:c:d")).contains("process.selinuxLabel"));
    assert!(refused(|c| c["linux"]["mountLabel"] = json!("a:b:c:d")).contains("linux.mountLabel"));
    output("true", |c| c["process"]["apparmorProfile"] = json!("unconfined"));
}

#[test]
fn exec_is_validated_like_create() {
    need!("busybox");
    let state = State::new();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let file = bundle.path().join("process.json");
    let told = |edit: fn(&mut Value)| {
        let mut process = bundle.config()["process"].clone();
        edit(&mut process);
        std::fs::write(&file, process.to_string()).unwrap();
        let ran: Ran = state.run(["exec", "--process", file.to_str().unwrap(), &id]).into();
        assert_eq!(ran.code, Some(255), "{}", ran.stderr);
        ran.stderr
    };
    assert!(told(|p| p["oomScoreAdj"] = json!(2000)).contains("process.oomScoreAdj"));
    assert!(told(|p| p["cwd"] = json!("x")).contains("process.cwd"));
    assert!(told(|p| p["selinuxLabel"] = json!("a:b")).contains("process.selinuxLabel"));
    assert!(told(|p| p["cwd"] = json!("/not/there")).contains("cwd"));
    assert!(!bundle.rootfs().join("not").exists());
}

#[test]
fn readonly_root() {
    need!("busybox");
    let write = |readonly: Value| {
        run("touch /file && rm /file; touch /dev/file && touch /dev/shm/file", |c| {
            c["root"]["readonly"] = readonly
        })
    };
    for no in [json!(false), Value::Null] {
        let ran = write(no);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    }
    let ran = write(json!(true));
    assert_eq!(ran.code, Some(0));
    assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);
    assert!(refused(|c| c["root"]["path"] = json!("missing")).contains("missing"));
    assert!(refused(|c| c["root"] = Value::Null).contains("root: is missing"));
}
