//! Fields of specifications: what they write, what is refused and why.

use super::{create, name, need_v1};
use airlock_tests::machine::{Machine, output};
use airlock_tests::urpc::Caller;
use airlock_tests::{need, skip};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A whole disk, `major:minor`.
fn disk() -> Option<(i64, i64)> {
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    disks.filter(|d| !d.file_name().to_string_lossy().starts_with("zram")).find_map(|disk| {
        let text = std::fs::read_to_string(disk.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

#[test]
fn every_field_is_seen_in_its_file() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    let spec = json!({
        "owner": 1234, "owner_group": 2345, "children_limit": 33,
        "cpu": {"scheduling_latency": "NORMAL", "limit": 1500, "max_limit": 2000, "mask": {"data": [1]}},
        "memory": {"limit": 67_108_864, "reservation": 1_048_576, "swap_limit": 4096, "kmem_charge_usage": true},
        "device": {"restrictions_set": {"restrictions": [
            {"permission": "DENY", "type": "DEVICE_ALL"},
            {"permission": "ALLOW", "type": "DEVICE_CHAR", "access": ["READ", "WRITE", "MKNOD"], "major": 1, "minor": 3},
            {"permission": "ALLOW", "type": "DEVICE_BLOCK", "access": ["READ"], "major": 7},
        ]}},
    });
    create(&mut c, "/a", spec.clone());
    let file = |hierarchy: &str, file: &str| machine.file(hierarchy, "/a", file);
    assert_eq!(file("cpu", "cpu.shares"), "1536");
    assert_eq!(
        (file("cpu", "cpu.cfs_quota_us"), file("cpu", "cpu.cfs_period_us")),
        ("200000".into(), "100000".into())
    );
    assert_eq!(file("cpu", "cpu.idle"), "0");
    assert_eq!(file("cpuset", "cpuset.cpus"), "0");
    assert_eq!(file("cpuset", "cpuset.mems"), machine.file("cpuset", "/", "cpuset.mems"));
    assert_eq!(file("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(file("memory", "memory.soft_limit_in_bytes"), "1048576");
    if machine.dir("memory", "/a").join("memory.memsw.limit_in_bytes").exists() {
        assert_eq!(file("memory", "memory.memsw.limit_in_bytes"), "67112960");
    }
    assert_eq!(file("pids", "pids.max"), "33");
    assert_eq!(file("devices", "devices.list"), "b 7:* r\nc 1:3 rwm");
    for hierarchy in ["freezer", "cpu", "cpuacct", "cpuset", "memory", "pids", "devices"] {
        use std::os::unix::fs::MetadataExt;
        let status = std::fs::metadata(machine.dir(hierarchy, "/a")).unwrap();
        assert_eq!((status.uid(), status.gid()), (1234, 2345), "{hierarchy}");
    }
    assert!(!machine.dir("blkio", "/a").exists(), "what is not isolated has no cgroup");
    assert_eq!(c.ok("Container.Spec", &name("/a"), &[]), spec);
    let (text, _) =
        output(&mut c, "/a", &["/bin/sh", "-c", "echo x >/dev/null && echo fine; cat /dev/zero | head -c 1"]);
    assert!(text.starts_with("fine\n") && text.contains("Operation not permitted"), "{text}");

    // A child has what its parent has, and no more.
    let allow = json!({"restrictions_set": {"restrictions": [
        {"permission": "ALLOW", "type": "DEVICE_CHAR", "access": ["READ"], "major": 1, "minor": 5}]}});
    let text = c.fails("ContainerApi.Create", &json!({"name": "/a/more", "spec": {"device": allow}}), &[]);
    assert!(
        text.starts_with("FAILED_PRECONDITION: ") && text.contains("the cgroup above does not have"),
        "{text}"
    );
    assert!(!machine.dir("freezer", "/a/more").exists() && !machine.dir("devices", "/a/more").exists());
    create(&mut c, "/a/same", json!({"device": {}}));
    assert_eq!(machine.file("devices", "/a/same", "devices.list"), file("devices", "devices.list"));

    // Best effort is the kernel's idle class, where it has one.
    create(&mut c, "/idle", json!({"cpu": {"scheduling_latency": "BEST_EFFORT"}}));
    assert_eq!(machine.file("cpu", "/idle", "cpu.idle"), "1");
    create(&mut c, "/soon", json!({"cpu": {"scheduling_latency": "PRIORITY"}}));
    assert_eq!(machine.file("cpu", "/soon", "cpu.shares"), "1024");
}

#[test]
fn rates_of_block_devices() {
    need_v1!();
    let Some((major, minor)) = disk() else { skip!("needs a block device") };
    let machine = Machine::new();
    let mut c = machine.caller();
    let device = json!({"major": major, "minor": minor});
    let limit = |op: &str, kind: &str, rate: u64| json!({"op_type": op, "limit_type": kind, "limits": [{"device": device, "limit": rate}]});
    let all = [
        ("READ", "BYTES_PER_SECOND", 1_048_576, "blkio.throttle.read_bps_device"),
        ("WRITE", "BYTES_PER_SECOND", 2_097_152, "blkio.throttle.write_bps_device"),
        ("READ", "IO_PER_SECOND", 300, "blkio.throttle.read_iops_device"),
        ("WRITE", "IO_PER_SECOND", 400, "blkio.throttle.write_iops_device"),
    ];
    let limits: Vec<Value> = all.iter().map(|(op, kind, rate, _)| limit(op, kind, *rate)).collect();
    create(&mut c, "/a", json!({"blockio": {"max_device_limit_set": {"max_limits": limits}}}));
    for (_, _, rate, file) in all {
        assert_eq!(machine.file("blkio", "/a", file), format!("{major}:{minor} {rate}"));
    }
    // What is not in the new list is not limited any more.
    let spec =
        json!({"blockio": {"max_device_limit_set": {"max_limits": [limit("READ", "IO_PER_SECOND", 200)]}}});
    c.ok("Container.Update", &json!({"name": "/a", "spec": spec, "policy": "UPDATE_REPLACE"}), &[]);
    assert_eq!(
        machine.file("blkio", "/a", "blkio.throttle.read_iops_device"),
        format!("{major}:{minor} 200")
    );
    assert_eq!(machine.file("blkio", "/a", "blkio.throttle.write_bps_device"), "");

    let weights = json!({"blockio": {"device_limit_set": {"default_limit": 50}}});
    if ["blkio.weight", "blkio.bfq.weight"].iter().any(|f| machine.dir("blkio", "/a").join(f).exists()) {
        create(&mut c, "/b", weights);
        assert_eq!(machine.file("blkio", "/b", "blkio.bfq.weight"), "500");
    } else {
        let text = c.fails("ContainerApi.Create", &json!({"name": "/b", "spec": weights}), &[]);
        assert!(text.starts_with("UNIMPLEMENTED: "), "{text}");
    }
    let nowhere = json!({"op_type": "READ", "limit_type": "IO_PER_SECOND",
                         "limits": [{"device": {"major": 4000, "minor": 1}, "limit": 5}]});
    let spec = json!({"blockio": {"max_device_limit_set": {"max_limits": [nowhere]}}});
    let text = c.fails("ContainerApi.Create", &json!({"name": "/none", "spec": spec}), &[]);
    assert!(text.contains("blkio.throttle.read_iops_device"), "{text}");
    assert!(machine.left().iter().all(|p| !p.ends_with("none")));
}

/// Creates with a specification that is refused; nothing is left of it.
#[track_caller]
fn refused(machine: &Machine, c: &mut Caller, spec: &Value, expected: &str) {
    let text = c.fails("ContainerApi.Create", &json!({"name": "/refused", "spec": spec}), &[]);
    assert!(text.starts_with(expected), "{spec}: {text:?} does not begin with {expected:?}");
    assert_eq!(machine.left(), Vec::<PathBuf>::new(), "{spec}");
}

#[test]
fn what_nobody_implements_is_refused_by_name() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    for (field, spec) in [
        ("memory.eviction_priority", json!({"memory": {"eviction_priority": 5}})),
        ("memory.max_limit", json!({"memory": {"max_limit": 5}})),
        ("memory.hugetlbfs_path", json!({"memory": {"hugetlbfs_path": "/x"}})),
        ("memory.tmpfs", json!({"memory": {"tmpfs": {"path": ["/x"]}}})),
        ("memory.compression_sampling_ratio", json!({"memory": {"compression_sampling_ratio": 5}})),
        ("memory.stale_page_age", json!({"memory": {"stale_page_age": 5}})),
        ("memory.dirty", json!({"memory": {"dirty": {"ratio": 5, "background_ratio": 3}}})),
        ("memory.kmem_charge_usage: false", json!({"memory": {"kmem_charge_usage": false}})),
        ("cpu.scheduling_latency: PREMIER", json!({"cpu": {"scheduling_latency": "PREMIER"}})),
        ("network", json!({"network": {}})),
        ("monitoring", json!({"monitoring": {"enable_perf_counters": true}})),
        ("filesystem.fd_limit", json!({"filesystem": {"fd_limit": 5}})),
        (
            "filesystem.mounts",
            json!({"filesystem": {"mounts": {"mount": [{"source": "/a", "target": "/b"}]}}}),
        ),
        ("virtual_host.virtual_hostname", json!({"virtual_host": {"virtual_hostname": "x"}})),
        ("virtual_host.network", json!({"virtual_host": {"network": {"interface": "eth0"}}})),
        (
            "virtual_host.init.run_spec.console",
            json!({"virtual_host": {"init": {"run_spec": {"console": {"slave_pty": "0"}}}}}),
        ),
        (
            "virtual_host.init.run_spec.apparmor_profile",
            json!({"virtual_host": {"init": {"run_spec": {"apparmor_profile": "x"}}}}),
        ),
        ("security_spec", json!({"security_spec": {"apparmor_profile": {"name": "x"}}})),
    ] {
        refused(&machine, &mut c, &spec, &format!("UNIMPLEMENTED: {field}: "));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    let device = |rule: Value| json!({"device": {"restrictions_set": {"restrictions": [rule]}}});
    let rate = |limits: Value| json!({"blockio": {"max_device_limit_set": {"max_limits": limits}}});
    let one = json!({"device": {"major": 8, "minor": 0}, "limit": 5});
    let two = json!({"device": {"major": 8, "minor": 0}, "limit": 6});
    for (spec, expected) in [
        (json!({"memory": {"limit": 0}}), "OUT_OF_RANGE: memory.limit is 0"),
        (json!({"memory": {"limit": -2}}), "OUT_OF_RANGE: memory.limit is -2"),
        (json!({"memory": {"reservation": -1}}), "OUT_OF_RANGE: memory.reservation"),
        (json!({"memory": {"swap_limit": -2}}), "OUT_OF_RANGE: memory.swap_limit"),
        (json!({"memory": {"swap_limit": 5}}), "INVALID_ARGUMENT: memory.swap_limit needs a memory.limit"),
        (
            json!({"memory": {"limit": 4096, "reservation": 8192}}),
            "INVALID_ARGUMENT: memory.reservation 8192 is above",
        ),
        (json!({"memory": {"eviction_priority": 10_001}}), "OUT_OF_RANGE: memory.eviction_priority"),
        (
            json!({"memory": {"dirty": {"ratio": 5, "limit": 5}}}),
            "INVALID_ARGUMENT: memory.dirty has ratios and limits",
        ),
        (json!({"cpu": {"limit": 0}}), "OUT_OF_RANGE: cpu.limit"),
        (json!({"cpu": {"max_limit": 9}}), "OUT_OF_RANGE: cpu.max_limit"),
        (
            json!({"cpu": {"limit": 800, "max_limit": 500}}),
            "INVALID_ARGUMENT: cpu.max_limit 500 is below cpu.limit 800",
        ),
        (json!({"cpu": {"mask": {}}}), "INVALID_ARGUMENT: cpu.mask has no processor"),
        (
            json!({"cpu": {"mask": {"data": [0, 0, 0, 1]}}}),
            "INVALID_ARGUMENT: cgroup: writing \"192\" to cpuset.cpus",
        ),
        (json!({"children_limit": 0}), "OUT_OF_RANGE: children_limit"),
        (json!({"owner": -1}), "OUT_OF_RANGE: owner"),
        (json!({"owner_group": 4_294_967_295_i64}), "OUT_OF_RANGE: owner_group"),
        (json!({"filesystem": {"rootfs": "/"}}), "INVALID_ARGUMENT: filesystem.rootfs needs a virtual_host"),
        (
            device(json!({"type": "DEVICE_ALL"})),
            "INVALID_ARGUMENT: device.restrictions_set.restrictions.permission",
        ),
        (
            device(json!({"permission": "ALLOW"})),
            "INVALID_ARGUMENT: device.restrictions_set.restrictions.type",
        ),
        (
            device(json!({"permission": "ALLOW", "type": "DEVICE_CHAR"})),
            "INVALID_ARGUMENT: device.restrictions_set.restrictions.access",
        ),
        (
            device(json!({"permission": "DENY", "type": "DEVICE_CHAR", "access": ["READ"], "major": -1})),
            "OUT_OF_RANGE: device",
        ),
        (
            json!({"blockio": {"device_limit_set": {"default_limit": 101}}}),
            "OUT_OF_RANGE: blockio.device_limit_set.default_limit",
        ),
        (
            json!({"blockio": {"device_limit_set": {"device_limits": [{"limit": 5}]}}}),
            "INVALID_ARGUMENT: blockio.device_limit_set.device_limits.device",
        ),
        (
            rate(json!([{"limits": [one]}])),
            "INVALID_ARGUMENT: blockio.max_device_limit_set.max_limits.op_type",
        ),
        (
            rate(json!([{"op_type": "READ", "limits": [one]}])),
            "INVALID_ARGUMENT: blockio.max_device_limit_set.max_limits.limit_type",
        ),
        (
            rate(json!([{"op_type": "READ", "limit_type": "IO_PER_SECOND", "limits": [one, two]}])),
            "INVALID_ARGUMENT: blockio.max_device_limit_set.max_limits: two limits",
        ),
    ] {
        refused(&machine, &mut c, &spec, expected);
    }
    // What no message has is refused before anything is done.
    let text = Caller::json(&machine.socket()).fails(
        "ContainerApi.Create",
        &json!({"name": "/x", "spec": {"memory": {"limits": 1}}}),
        &[],
    );
    assert!(text.contains("unknown field `limits`"), "{text}");
}

#[test]
fn updates_change_files_and_keep_the_set_of_resources() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    let spec = json!({"cpu": {"limit": 500, "max_limit": 600, "mask": {"data": [1]}, "scheduling_latency": "NORMAL"},
                      "memory": {"limit": 33_554_432, "reservation": 4096}});
    create(&mut c, "/a", spec.clone());
    let update = |c: &mut Caller, spec: Value, policy: &str| {
        c.call("Container.Update", &json!({"name": "/a", "spec": spec, "policy": policy}), &[])
    };
    for (new, policy, expected) in [
        (
            json!({"children_limit": 5}),
            "UPDATE_DIFF",
            "INVALID_ARGUMENT: an update cannot begin to isolate children_limit",
        ),
        (
            json!({"cpu": {}}),
            "UPDATE_REPLACE",
            "INVALID_ARGUMENT: an update that replaces has to have every resource",
        ),
        (
            json!({"cpu": {"scheduling_latency": "PRIORITY"}}),
            "UPDATE_DIFF",
            "INVALID_ARGUMENT: cpu.scheduling_latency cannot",
        ),
        (
            json!({"cpu": {"max_limit": 400}}),
            "UPDATE_DIFF",
            "INVALID_ARGUMENT: cpu.max_limit 400 is below cpu.limit 500",
        ),
        (json!({"memory": {"stale_page_age": 4}}), "UPDATE_DIFF", "UNIMPLEMENTED: memory.stale_page_age"),
        // The kernel refuses the last of these; the others are undone.
        (
            json!({"memory": {"limit": 16_777_216}, "cpu": {"limit": 550, "mask": {"data": [0, 1]}}}),
            "UPDATE_DIFF",
            "INVALID_ARGUMENT: ",
        ),
    ] {
        let text = update(&mut c, new.clone(), policy).unwrap_err();
        assert!(text.starts_with(expected), "{new}: {text}");
        assert_eq!(c.ok("Container.Spec", &name("/a"), &[]), spec, "{new}");
        assert_eq!(machine.file("memory", "/a", "memory.limit_in_bytes"), "33554432");
        assert_eq!(machine.file("cpu", "/a", "cpu.shares"), "512");
    }
    update(&mut c, json!({"memory": {"limit": 16_777_216}}), "UPDATE_DIFF").unwrap();
    assert_eq!(machine.file("memory", "/a", "memory.limit_in_bytes"), "16777216");
    assert_eq!(machine.file("memory", "/a", "memory.soft_limit_in_bytes"), "4096");
    update(&mut c, json!({"cpu": {}, "memory": {}}), "UPDATE_REPLACE").unwrap();
    let cpus = machine.file("cpuset", "/", "cpuset.cpus");
    for (hierarchy, file, expected) in [
        ("cpu", "cpu.shares", "1024"),
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpuset", "cpuset.cpus", cpus.as_str()),
        ("memory", "memory.limit_in_bytes", "9223372036854771712"),
        ("memory", "memory.soft_limit_in_bytes", "9223372036854771712"),
    ] {
        assert_eq!(machine.file(hierarchy, "/a", file), expected, "{file}");
    }
    // The latency cannot be updated, so it stays.
    let now = json!({"cpu": {"scheduling_latency": "NORMAL"}, "memory": {}});
    assert_eq!(c.ok("Container.Spec", &name("/a"), &[]), now);
}

#[test]
fn statistics_have_what_the_kernel_tells() {
    need_v1!();
    let machine = Machine::new();
    let mut c = machine.caller();
    create(&mut c, "/a", json!({"memory": {"limit": 50_331_648}, "cpu": {"max_limit": 50}}));
    create(&mut c, "/a/b", json!({"memory": {}}));
    let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; head -c 4194304 /dev/zero | tail -c 1";
    output(&mut c, "/a/b", &["/bin/sh", "-c", busy]);
    let stats = c.ok("Container.Stats", &json!({"name": "/a", "type": "STATS_FULL"}), &[]);
    let at = |path: &str| {
        stats.pointer(path).and_then(Value::as_i64).unwrap_or_else(|| panic!("{path} in {stats}"))
    };
    assert!(at("/cpu/usage/total") > 1_000_000 && at("/cpu/throttling_data/throttled_time") > 0, "{stats}");
    assert!(at("/cpu/throttling_data/periods") >= at("/cpu/throttling_data/throttled_periods"));
    let per_cpu: i64 =
        stats["cpu"]["usage"]["per_cpu"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).sum();
    assert!(per_cpu > 0 && at("/cpu/usage/user") >= 0 && at("/cpu/usage/system") >= 0);
    assert_eq!((at("/memory/limit"), at("/memory/effective_limit")), (50_331_648, 50_331_648));
    assert!(
        at("/memory/max_usage") >= at("/memory/usage") && at("/memory/usage") >= at("/memory/working_set")
    );
    assert!(at("/memory/hierarchical_data/pgfault") > 0 && at("/memory/fail_count") == 0);
    assert_eq!(at("/memory/hierarchical_memory_limit"), 50_331_648);
    assert!(at("/memory/container_data/rss") <= at("/memory/hierarchical_data/rss"));
    assert!(stats.pointer("/memory/numa/hierarchical_data/total/node/0/page_count").is_some(), "{stats}");
    // A child without a limit has its parent's.
    let inner = c.ok("Container.Stats", &json!({"name": "/a/b"}), &[]);
    assert_eq!(
        (&inner["memory"]["limit"], &inner["memory"]["effective_limit"]),
        (&json!(-1), &json!(50_331_648))
    );
    assert!(inner.get("cpu").is_none() && inner["memory"].get("fail_count").is_none(), "{inner}");
    // The root isolates all there is.
    let root = c.ok("Container.Stats", &json!({"name": "/"}), &[]);
    assert!(root["cpu"].is_object() && root["memory"].is_object() && root["blockio"].is_object(), "{root}");
}
