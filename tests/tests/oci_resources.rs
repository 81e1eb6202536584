//! `linux.resources` of the OCI runtime spec on cgroup v1 (or hybrid): in the control files, and as programs feel them.
//! (`cgroup_v2.rs` has the tests of pure v2.)
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::oci::{Ran, all_capabilities, output, refused, run, run_in};
use airlock_tests::{Bundle, State, leaks, need, skip, unique, wait};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Ends the test as skipped unless these v1 controllers are mounted.
macro_rules! need_v1 {
    ($($controller:literal),*) => {
        need!("busybox");
        for controller in [$($controller),*] {
            if !Path::new("/sys/fs/cgroup").join(controller).join("cgroup.procs").exists() {
                skip!("needs the v1 controller {controller}");
            }
        }
    };
}

/// A container that sleeps, in a cgroup of its own.
struct Limited {
    state: State,
    _bundle: Bundle,
    id: String,
}

impl Limited {
    #[track_caller]
    fn new(resources: Value) -> Self {
        let state = State::new();
        let id = unique("airlock-resources") + "-end";
        let bundle = Bundle::with(&["sleep", "1000"], |c| {
            c["linux"]["cgroupsPath"] = json!(format!("/{id}"));
            c["linux"]["resources"] = resources;
        });
        state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
        Self { state, _bundle: bundle, id }
    }

    fn dir(&self, controller: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(controller).join(&self.id)
    }

    /// A control file, trimmed.
    #[track_caller]
    fn file(&self, controller: &str, name: &str) -> String {
        std::fs::read_to_string(self.dir(controller).join(name))
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .trim()
            .to_owned()
    }

    fn exec(&self, script: &str) -> Ran {
        self.state.run(["exec", &self.id, "sh", "-c", script]).into()
    }
}

#[test]
fn cpu() {
    need_v1!("cpu");
    let limited =
        Limited::new(json!({"cpu": {"shares": 333, "quota": 40_000, "period": 80_000, "burst": 1000}}));
    let file = |name: &str| limited.file("cpu", name);
    assert_eq!(file("cpu.shares"), "333");
    assert_eq!(
        (file("cpu.cfs_quota_us"), file("cpu.cfs_period_us")),
        ("40000".to_owned(), "80000".to_owned())
    );
    if limited.dir("cpu").join("cpu.cfs_burst_us").exists() {
        assert_eq!(file("cpu.cfs_burst_us"), "1000");
    }
    // New limits in either order of the two, and none.
    let id = &limited.id;
    limited.state.ok(["update", "--cpu-quota", "200000", "--cpu-period", "200000", "--cpu-share", "512", id]);
    let file = |name: &str| limited.file("cpu", name);
    assert_eq!(
        (file("cpu.cfs_quota_us"), file("cpu.cfs_period_us"), file("cpu.shares")),
        ("200000".into(), "200000".into(), "512".into())
    );
    limited.state.ok(["update", "--cpu-quota", "-1", id]);
    assert_eq!(limited.file("cpu", "cpu.cfs_quota_us"), "-1");
    if limited.dir("cpu").join("cpu.idle").exists() {
        let idle = Limited::new(json!({"cpu": {"idle": 1}}));
        assert_eq!(idle.file("cpu", "cpu.idle"), "1");
    }
    assert!(
        refused(|c| c["linux"]["resources"]["cpu"] = json!({"idle": 2})).contains("linux.resources.cpu.idle")
    );
    let wrong = refused(|c| c["linux"]["resources"]["cpu"] = json!({"quota": 1, "period": 100_000}));
    assert!(wrong.contains("cpu.cfs_quota_us"), "{wrong}");
}

#[test]
fn cpuset() {
    need_v1!("cpuset");
    let limited = Limited::new(json!({"cpu": {"cpus": "0", "mems": "0"}}));
    assert_eq!(
        (limited.file("cpuset", "cpuset.cpus"), limited.file("cpuset", "cpuset.mems")),
        ("0".into(), "0".into())
    );
    let status = limited.exec("grep Cpus_allowed_list: /proc/self/status");
    assert_eq!(status.stdout.split_ascii_whitespace().last(), Some("0"), "{}", status.stderr);
    assert!(
        refused(|c| c["linux"]["resources"]["cpu"] = json!({"cpus": "zero"}))
            .contains("linux.resources.cpu.cpus")
    );
    let missing = refused(|c| c["linux"]["resources"]["cpu"] = json!({"cpus": "4095"}));
    assert!(missing.contains("cpuset.cpus"), "{missing}");
    // Without limits the parent's CPUs are there for use.
    let free = Limited::new(json!({}));
    assert!(!free.file("cpuset", "cpuset.cpus").is_empty() && !free.file("cpuset", "cpuset.mems").is_empty());
}

#[test]
fn memory() {
    need_v1!("memory");
    const MIB: i64 = 1 << 20;
    let limited = Limited::new(
        json!({"memory": {"limit": 64 * MIB, "reservation": 32 * MIB, "swap": 96 * MIB, "swappiness": 7}}),
    );
    let file = |name: &str| limited.file("memory", name);
    assert_eq!(file("memory.limit_in_bytes"), (64 * MIB).to_string());
    assert_eq!(file("memory.soft_limit_in_bytes"), (32 * MIB).to_string());
    assert_eq!(file("memory.memsw.limit_in_bytes"), (96 * MIB).to_string());
    assert_eq!(file("memory.swappiness"), "7");
    // Up and down, beyond the other limit each time; and none at all.
    let id = &limited.id;
    limited.state.ok(["update", "--memory", "256m", "--memory-swap", "300m", id]);
    assert_eq!(limited.file("memory", "memory.limit_in_bytes"), (256 * MIB).to_string());
    limited.state.ok(["update", "--memory", "48m", "--memory-swap", "48m", id]);
    assert_eq!(limited.file("memory", "memory.memsw.limit_in_bytes"), (48 * MIB).to_string());
    limited.state.ok(["update", "--memory", "-1", id]);
    assert!(limited.file("memory", "memory.limit_in_bytes").parse::<u64>().unwrap() > 1 << 60);

    let told = refused(|c| c["linux"]["resources"]["memory"] = json!({"limit": 64 * MIB, "swap": 32 * MIB}));
    assert!(told.contains("swap"), "{told}");
    assert!(
        refused(|c| c["linux"]["resources"]["memory"] = json!({"swappiness": 101}))
            .contains("linux.resources.memory.swappiness")
    );
}

#[test]
fn a_program_that_takes_too_much_memory_is_killed() {
    need_v1!("memory");
    let ran = run("head -c 60000000 /dev/zero | tail -c 50000000 >/dev/null; echo status $?", |c| {
        c["linux"]["resources"]["memory"] = json!({"limit": 20 << 20, "swap": 20 << 20});
    });
    assert!(
        ran.stdout == "status 137\n" || ran.code == Some(137),
        "{:?} {} {}",
        ran.code,
        ran.stdout,
        ran.stderr
    );
    let small = refused(|c| c["linux"]["resources"]["memory"] = json!({"limit": 4096, "swap": 4096}));
    assert!(!small.trim().is_empty(), "a limit below what the sandbox needs is told");
}

#[test]
fn disabled_oom_killer_and_check_before_update() {
    need_v1!("memory");
    let limited = Limited::new(json!({"memory": {"limit": 64 << 20, "disableOOMKiller": true}}));
    assert!(limited.file("memory", "memory.oom_control").contains("oom_kill_disable 1"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}).to_string())
        .unwrap();
    let told = limited.state.fails(["update", "-r", file.path().to_str().unwrap(), &limited.id]);
    assert!(told.contains("checkBeforeUpdate"), "{told}");
    assert_eq!(limited.file("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
}

#[test]
fn pids() {
    need_v1!("pids");
    let limited = Limited::new(json!({"pids": {"limit": 44}}));
    assert_eq!(limited.file("pids", "pids.max"), "44");
    let many = limited.exec("i=0; while [ $i -lt 60 ]; do sleep 2 & i=$((i+1)); done; wait");
    assert!(many.stderr.contains("can't fork") || many.code != Some(0), "{}", many.stderr);
    limited.state.ok(["update", "--pids-limit", "-1", &limited.id]);
    assert_eq!(limited.file("pids", "pids.max"), "max");
    for none in [0, -1] {
        assert_eq!(Limited::new(json!({"pids": {"limit": none}})).file("pids", "pids.max"), "max");
    }
}

/// A whole disk of this machine that can be throttled.
fn disk() -> Option<(i64, i64)> {
    let text = std::fs::read_to_string("/proc/partitions").ok()?;
    text.lines().skip(2).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [major, minor, _, name] = fields[..] else { return None };
        Path::new("/sys/block").join(name).exists().then(|| (major.parse().unwrap(), minor.parse().unwrap()))
    })
}

#[test]
fn block_io() {
    need_v1!("blkio");
    let Some((major, minor)) = disk() else { skip!("needs a block device") };
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let limited = Limited::new(json!({"blockIO": {
        "throttleReadBpsDevice": rate(1 << 20), "throttleWriteBpsDevice": rate(2 << 20),
        "throttleReadIOPSDevice": rate(100), "throttleWriteIOPSDevice": rate(200)
    }}));
    for (name, rate) in
        [("read_bps", 1 << 20), ("write_bps", 2 << 20), ("read_iops", 100), ("write_iops", 200)]
    {
        assert_eq!(
            limited.file("blkio", &format!("blkio.throttle.{name}_device")),
            format!("{major}:{minor} {rate}")
        );
    }
    let weights =
        ["blkio.weight", "blkio.bfq.weight"].into_iter().find(|f| limited.dir("blkio").join(f).exists());
    let weight = json!({"weight": 321});
    match weights {
        Some(file) => assert_eq!(Limited::new(json!({"blockIO": weight})).file("blkio", file), "321"),
        None => assert!(
            refused(|c| c["linux"]["resources"]["blockIO"] = weight)
                .contains("linux.resources.blockIO.weight")
        ),
    }
    assert!(
        refused(|c| c["linux"]["resources"]["blockIO"] = json!({"weight": 5}))
            .contains("linux.resources.blockIO.weight")
    );
}

#[test]
fn controllers_that_are_not_there_are_named() {
    need_v1!("pids");
    let there = |controller: &str| Path::new("/sys/fs/cgroup").join(controller).exists();
    let cases = [
        ("hugetlb", "hugepageLimits", json!([{"pageSize": "2MB", "limit": 4_194_304}])),
        ("net_cls", "network", json!({"classID": 0x10001})),
        ("net_prio", "network", json!({"priorities": [{"name": "lo", "priority": 3}]})),
        ("rdma", "rdma", json!({"mlx5_1": {"hcaHandles": 3}})),
    ];
    for (controller, item, value) in cases {
        if there(controller) {
            if controller == "hugetlb" {
                let limited = Limited::new(json!({item: value}));
                assert_eq!(limited.file(controller, "hugetlb.2MB.limit_in_bytes"), "4194304");
            }
            continue;
        }
        let told = refused(|c| c["linux"]["resources"][item] = value);
        assert!(told.contains(&format!("the {controller} controller, which is not mounted")), "{told}");
    }
    let twice = json!([{"pageSize": "2MB", "limit": 0}, {"pageSize": "2MB", "limit": 0}]);
    assert!(
        refused(|c| c["linux"]["resources"]["hugepageLimits"] = twice)
            .contains("linux.resources.hugepageLimits[1]")
    );
    let unified = refused(|c| c["linux"]["resources"]["unified"] = json!({"memory.high": "1000000"}));
    assert!(unified.contains("linux.resources.unified") && unified.contains("needs cgroup v2"), "{unified}");
}

#[test]
fn devices_are_really_allowed_and_denied() {
    need_v1!("devices");
    // CAP_MKNOD, so that only the cgroup decides.
    let script = "mknod /tmp/full c 1 7 && cat /tmp/full 2>&1 | head -c 1 | wc -c; mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg; mknod /tmp/loop b 7 0
        echo >/dev/null && head -c 1 /dev/zero | wc -c; head -c 1 /dev/urandom | wc -c";
    let with = |devices: Value| {
        run(script, |c| {
            all_capabilities(c);
            c["linux"]["resources"]["devices"] = devices;
        })
    };
    let denied = with(json!([{"allow": false, "access": "rwm"}]));
    // The default ones work whatever the list says, and nodes can be made, as in runc; not opened.
    assert!(denied.stdout.ends_with("1\n1\n"), "{} {}", denied.stdout, denied.stderr);
    assert!(
        !denied.stderr.contains("mknod") && denied.stderr.contains("kmsg: Operation not permitted"),
        "{}",
        denied.stderr
    );
    let one = with(json!([
        {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"}
    ]));
    assert!(!one.stderr.contains("Operation not permitted"), "{}", one.stderr);
    let later = with(json!([
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"}, {"allow": false, "access": "rwm"}
    ]));
    assert!(later.stderr.contains("kmsg: Operation not permitted"), "{}", later.stderr);

    let limited = Limited::new(
        json!({"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 7, "access": "r"}]}),
    );
    let list = limited.file("devices", "devices.list");
    assert!(list.lines().any(|l| l == "b 7:* rm") && list.lines().any(|l| l == "c 1:3 rwm"), "{list}");
    assert!(!list.contains("a *:*"), "{list}");
    // An exec is in the same cgroup.
    assert!(limited.exec("cat /dev/null && head -c 1 /dev/zero >/dev/null").code == Some(0));
    assert!(refused(|c| c["linux"]["resources"]["devices"] = json!([{"allow": true, "type": "x", "access": "r"}])).contains("config.json"));
    let told = refused(|c| {
        c["linux"]["resources"]["devices"] = json!([{"allow": true, "type": "c", "access": "xyz"}])
    });
    assert!(told.contains("linux.resources.devices[0]"), "{told}");
}

#[test]
fn no_resources_no_limits() {
    need_v1!("memory", "pids");
    for none in [Value::Null, json!({})] {
        let limited = Limited::new(none);
        assert!(limited.file("memory", "memory.limit_in_bytes").parse::<u64>().unwrap() > 1 << 60);
        assert_eq!(limited.file("pids", "pids.max"), "max");
    }
    let limited =
        Limited::new(json!({"memory": {"kernel": 1 << 20, "kernelTCP": 1 << 20, "useHierarchy": true}}));
    assert!(limited.file("memory", "memory.limit_in_bytes").parse::<u64>().unwrap() > 1 << 60);
}

#[test]
fn processes_are_where_the_limits_are_and_nothing_stays() {
    need_v1!("pids", "freezer");
    let limited = Limited::new(json!({"pids": {"limit": 100}}));
    let pids: Vec<i32> =
        serde_json::from_str(&limited.state.ok(["ps", "--format", "json", &limited.id])).unwrap();
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", pids[0])).unwrap();
    for line in text.lines().filter(|l| !l.starts_with("0::")) {
        assert!(line.contains(&limited.id), "{line}");
    }
    assert!(limited.file("pids", "cgroup.procs").lines().any(|l| l == pids[0].to_string()));
    let Limited { state, id, .. } = limited;
    state.ok(["delete", "--force", &id]);
    assert_eq!(leaks::cgroups(&id), Vec::<String>::new());
}

#[test]
fn a_failed_limit_leaves_nothing() {
    need_v1!("memory");
    let id = unique("airlock-resources") + "-bad";
    let state = State::new();
    let bundle = Bundle::with(&["true"], |c| {
        c["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        c["linux"]["resources"]["cpu"] = json!({"quota": 1});
    });
    let ran = run_in(&state, &bundle);
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    assert_eq!(leaks::cgroups(&id), Vec::<String>::new());
}

#[test]
fn a_frozen_container_takes_limits_and_dies() {
    need_v1!("freezer", "pids");
    let limited = Limited::new(json!({}));
    limited.state.ok(["pause", &limited.id]);
    assert_eq!(limited.state.status(&limited.id), "paused");
    limited.state.ok(["update", "--pids-limit", "50", &limited.id]);
    assert_eq!(limited.file("pids", "pids.max"), "50");
    limited.state.ok(["kill", &limited.id, "KILL"]);
    wait::until("stopped", || (limited.state.status(&limited.id) == "stopped").then_some(()));
}

#[test]
fn what_the_files_say_is_what_stats_say() {
    need_v1!("memory", "pids");
    let limited = Limited::new(json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 99}}));
    let stats: Value = serde_json::from_str(&limited.state.ok(["events", "--stats", &limited.id])).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(limited.id)));
    assert_eq!(
        (&stats["data"]["memory"]["usage"]["limit"], &stats["data"]["pids"]["limit"]),
        (&json!(64 << 20), &json!(99))
    );
    assert!(stats["data"]["pids"]["current"].as_u64().unwrap() >= 1);
    assert!(output("true", |_| {}).is_empty());
}
