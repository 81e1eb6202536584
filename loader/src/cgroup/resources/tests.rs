//! What is written for which limits, and in which order.

use super::*;
use crate::cgroup::files::tests::Fake;
use nix::errno::Errno;
use std::collections::BTreeMap;

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn cpu_of(json: &str) -> oci_spec::runtime::LinuxCpu {
    serde_json::from_str(json).unwrap()
}

fn memory_of(json: &str) -> oci_spec::runtime::LinuxMemory {
    serde_json::from_str(json).unwrap()
}

fn n(files: &BTreeMap<String, String>, file: &str) -> i64 {
    match files.get(file).map_or("", |t| t.trim()) {
        "-1" | "max" => i64::MAX,
        t => t.parse().unwrap(),
    }
}

/// A memory cgroup that refuses what the kernel refuses: memsw below limit, limit below use.
fn memory_v1(limit: &str, swap: &str, usage: &str) -> Fake {
    let mut fake = Fake::new(&[
        ("memory.limit_in_bytes", limit),
        ("memory.memsw.limit_in_bytes", swap),
        ("memory.usage_in_bytes", usage),
        ("memory.soft_limit_in_bytes", "-1"),
        ("memory.swappiness", "60"),
        ("memory.oom_control", "0"),
    ]);
    fake.refuse = Some(Box::new(|files, file, value| {
        let value = value.parse::<i64>().map_or(i64::MAX, |v| if v < 0 { i64::MAX } else { v });
        match file {
            "memory.limit_in_bytes" if value > n(files, "memory.memsw.limit_in_bytes") => Some(Errno::EINVAL),
            "memory.limit_in_bytes" if value < n(files, "memory.usage_in_bytes") => Some(Errno::EBUSY),
            "memory.memsw.limit_in_bytes" if value < n(files, "memory.limit_in_bytes") => Some(Errno::EINVAL),
            _ => None,
        }
    }));
    fake
}

#[test]
fn memory_v1_in_either_direction() {
    let fake = memory_v1("-1", "-1", "0");
    memory::v1(&fake, &memory_of(r#"{"limit":100,"swap":200,"reservation":50}"#)).unwrap();
    memory::v1(&fake, &memory_of(r#"{"limit":1000,"swap":2000}"#)).unwrap();
    memory::v1(&fake, &memory_of(r#"{"limit":10,"swap":20}"#)).unwrap();
    memory::v1(&fake, &memory_of(r#"{"limit":15,"swap":15}"#)).unwrap();
    memory::v1(&fake, &memory_of(r#"{"limit":-1}"#)).unwrap();
    assert_eq!(fake.files.borrow()["memory.limit_in_bytes"], "-1");
    assert_eq!(fake.files.borrow()["memory.memsw.limit_in_bytes"], "-1");
    assert_eq!(fake.files.borrow()["memory.soft_limit_in_bytes"], "50");
}

#[test]
fn memory_v1_refusals() {
    let fake = memory_v1("-1", "-1", "5000");
    let e = memory::v1(&fake, &memory_of(r#"{"limit":100}"#)).unwrap_err();
    assert!(e.message.contains("5000 bytes are in use"), "{e}");
    let e = memory::v1(&fake, &memory_of(r#"{"limit":100,"checkBeforeUpdate":true}"#)).unwrap_err();
    assert!(e.message.contains("checkBeforeUpdate"), "{e}");
    let e = memory::v1(&fake, &memory_of(r#"{"limit":100000,"swap":10}"#)).unwrap_err();
    assert!(e.message.contains("must not be below"), "{e}");
    assert!(memory::v1(&fake, &memory_of(r#"{"swappiness":101}"#)).is_err());
    assert!(fake.log().is_empty());
    // 0 means "not given"; obsolete kernel limits and false flags are accepted.
    let zero =
        r#"{"limit":0,"swap":0,"kernel":7,"kernelTCP":7,"disableOOMKiller":false,"useHierarchy":false}"#;
    memory::v1(&fake, &memory_of(zero)).unwrap();
    assert!(fake.log().is_empty());
}

#[test]
fn memory_v2() {
    let files =
        [("memory.max", "max"), ("memory.swap.max", "max"), ("memory.low", "0"), ("memory.current", "0")];
    let fake = Fake::new(&files);
    memory::v2(&fake, &memory_of(r#"{"limit":100,"swap":250,"reservation":50}"#)).unwrap();
    assert_eq!(fake.log(), ["memory.swap.max=150", "memory.max=100", "memory.low=50"]);
    let fake = Fake::new(&files);
    memory::v2(&fake, &memory_of(r#"{"limit":-1}"#)).unwrap();
    assert_eq!(fake.log(), ["memory.swap.max=max", "memory.max=max"]);
    let fake = Fake::new(&[("memory.max", "max")]);
    memory::v2(&fake, &memory_of(r#"{"limit":100,"swap":100}"#)).unwrap();
    assert!(memory::v2(&fake, &memory_of(r#"{"limit":100,"swap":200}"#)).is_err());
    for bad in [r#"{"swap":5}"#, r#"{"limit":10,"swap":5}"#, r#"{"limit":-1,"swap":5}"#] {
        assert!(memory::v2(&fake, &memory_of(bad)).is_err(), "{bad}");
    }
    for (bad, word) in
        [(r#"{"swappiness":1}"#, "swappiness"), (r#"{"disableOOMKiller":true}"#, "disableOOMKiller")]
    {
        let e = memory::v2(&fake, &memory_of(bad)).unwrap_err();
        assert!(e.kind == Kind::Unsupported && e.message.contains(word), "{e}");
    }
}

#[test]
fn shares_to_weight() {
    for (shares, weight) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(cpu::weight_of_shares(shares), weight, "{shares}");
    }
    let mut last = 0;
    for shares in 2..20_000 {
        let weight = cpu::weight_of_shares(shares);
        assert!(weight >= last);
        last = weight;
    }
    assert_eq!([io::io_weight(10), io::io_weight(1000), io::io_weight(5)], [1, 10_000, 1]);
}

/// A v1 cpu cgroup below a parent with 50 % of a CPU, that lets no burst exceed its quota.
fn cpu_v1() -> Fake {
    let mut fake = Fake::new(&[
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_burst_us", "0"),
        ("cpu.shares", "1024"),
        ("cpu.idle", "0"),
    ]);
    fake.refuse = Some(Box::new(|files, file, value| {
        let mut after = files.clone();
        after.insert(file.to_owned(), value.to_owned());
        let (quota, period) = (n(&after, "cpu.cfs_quota_us"), n(&after, "cpu.cfs_period_us"));
        let too_much = quota != i64::MAX && quota * 2 > period;
        (too_much || n(&after, "cpu.cfs_burst_us") > quota).then_some(Errno::EINVAL)
    }));
    fake
}

#[test]
fn cpu_v1_order() {
    let fake = cpu_v1();
    cpu::v1(&fake, &cpu_of(r#"{"shares":512,"period":20000,"quota":10000}"#)).unwrap();
    assert_eq!(fake.log(), ["cpu.shares=512", "cpu.cfs_quota_us=10000", "cpu.cfs_period_us=20000"]);
    cpu::v1(&fake, &cpu_of(r#"{"period":200000,"quota":100000,"burst":60000}"#)).unwrap();
    assert_eq!(fake.files.borrow()["cpu.cfs_burst_us"], "60000");
    cpu::v1(&fake, &cpu_of(r#"{"quota":-1}"#)).unwrap();
    assert_eq!(fake.files.borrow()["cpu.cfs_quota_us"], "-1");
    assert!(cpu::v1(&fake, &cpu_of(r#"{"period":1,"quota":100}"#)).is_err());
    assert!(cpu::v1(&fake, &cpu_of(r#"{"idle":2}"#)).is_err());
    let before = fake.log().len();
    cpu::v1(&fake, &cpu_of(r#"{"shares":0,"period":0,"quota":0}"#)).unwrap();
    assert_eq!(fake.log().len(), before);
}

#[test]
fn cpu_v2() {
    let files = [("cpu.weight", "100"), ("cpu.max", "max 100000"), ("cpu.max.burst", "0"), ("cpu.idle", "0")];
    let fake = Fake::new(&files);
    cpu::v2(&fake, &cpu_of(r#"{"shares":1024,"quota":5000,"period":10000,"idle":0}"#)).unwrap();
    assert_eq!(fake.log(), ["cpu.idle=0", "cpu.weight=100", "cpu.max=5000 10000"]);
    cpu::v2(&fake, &cpu_of(r#"{"period":20000}"#)).unwrap();
    assert_eq!(fake.files.borrow()["cpu.max"], "5000 20000");
    cpu::v2(&fake, &cpu_of(r#"{"quota":-1}"#)).unwrap();
    assert_eq!(fake.files.borrow()["cpu.max"], "max");
    cpu::v2(&fake, &cpu_of(r#"{"idle":1,"shares":5}"#)).unwrap();
    assert_eq!(fake.log().last().unwrap(), "cpu.idle=1");
    let e = cpu::v2(&fake, &cpu_of(r#"{"realtimeRuntime":5}"#)).unwrap_err();
    assert_eq!(e.kind, Kind::Unsupported);
}

#[test]
fn block_io() {
    let spec = r#"{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":100}],
        "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
        "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}"#;
    let spec: oci_spec::runtime::LinuxBlockIo = serde_json::from_str(spec).unwrap();
    let throttle = [("blkio.throttle.read_bps_device", ""), ("blkio.throttle.write_iops_device", "")];
    for prefix in ["blkio", "blkio.bfq"] {
        let mut files = throttle.map(|(k, v)| (k.to_owned(), v)).to_vec();
        files.extend(["weight", "weight_device"].map(|f| (format!("{prefix}.{f}"), "")));
        let files: Vec<_> = files.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let fake = Fake::new(&files);
        io::v1(&fake, &spec).unwrap();
        assert_eq!(
            fake.log(),
            [
                format!("{prefix}.weight=500"),
                format!("{prefix}.weight_device=8:0 100"),
                "blkio.throttle.read_bps_device=8:0 1000".to_owned(),
                "blkio.throttle.write_iops_device=8:16 0".to_owned(),
            ]
        );
    }
    let e = io::v1(&Fake::new(&throttle), &spec).unwrap_err();
    assert!(e.kind == Kind::Unsupported && e.message.contains("BFQ"), "{e}");
    let fake = Fake::new(&[("io.weight", ""), ("io.max", "")]);
    io::v2(&fake, &spec).unwrap();
    let log = fake.log();
    assert_eq!(log, ["io.weight=4950", "io.weight=8:0 910", "io.max=8:0 rbps=1000", "io.max=8:16 wiops=max"]);
    let bad = r#"{"throttleReadBpsDevice":[{"major":-1,"minor":0,"rate":1}]}"#;
    assert!(io::v1(&Fake::new(&throttle), &serde_json::from_str(bad).unwrap()).is_err());
}

#[test]
fn small_controllers() {
    let fake = Fake::new(&[("pids.max", "max"), ("hugetlb.2MB.limit_in_bytes", ""), ("net_cls.classid", "")]);
    for (limit, text) in [(10, "10"), (0, "max"), (-1, "max"), (-7, "max")] {
        misc::pids(&fake, &serde_json::from_str(&format!(r#"{{"limit":{limit}}}"#)).unwrap()).unwrap();
        assert_eq!(fake.files.borrow()["pids.max"], text);
    }
    let huge = |json: &str| misc::hugetlb(&fake, false, &serde_json::from_str::<Vec<_>>(json).unwrap());
    huge(r#"[{"pageSize":"2MB","limit":4194304}]"#).unwrap();
    assert_eq!(fake.files.borrow()["hugetlb.2MB.limit_in_bytes"], "4194304");
    for bad in ["../2MB", "2mb", "MB", "0MB", "2MB.x", "-2MB", ""] {
        let e = huge(&format!(r#"[{{"pageSize":"{bad}","limit":1}}]"#)).unwrap_err();
        assert_eq!(e.kind, Kind::InvalidArgument, "{bad}");
    }
    assert_eq!(huge(r#"[{"pageSize":"1GB","limit":1}]"#).unwrap_err().kind, Kind::Unsupported);
    misc::net_cls(&fake, &serde_json::from_str(r#"{"classID":1048577}"#).unwrap()).unwrap();
    assert_eq!(fake.files.borrow()["net_cls.classid"], "1048577");
    let prio = Fake::new(&[("net_prio.ifpriomap", "")]);
    let network = |name: &str| {
        serde_json::from_value(serde_json::json!({"priorities":[{"name":name,"priority":3}]})).unwrap()
    };
    misc::net_prio(&prio, &network("eth0")).unwrap();
    assert_eq!(prio.log(), ["net_prio.ifpriomap=eth0 3"]);
    for bad in ["", "eth0 5\nlo", "a/b", "sixteenletters!!"] {
        assert!(misc::net_prio(&prio, &network(bad)).is_err(), "{bad:?}");
    }
    let rdma = Fake::new(&[("rdma.max", "")]);
    misc::rdma(&rdma, &serde_json::from_str(r#"{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000}}"#).unwrap())
        .unwrap();
    assert_eq!(rdma.log(), ["rdma.max=mlx5_1 hca_handle=3 hca_object=10000"]);
}

#[test]
fn unified_keys() {
    let fake = Fake::new(&[("memory.high", "max"), ("io.max", "")]);
    let keys = |json: &str| misc::unified(&fake, &serde_json::from_str(json).unwrap());
    keys(r#"{"memory.high":"1000000","io.max":"8:0 rbps=1\n8:16 rbps=2\n"}"#).unwrap();
    assert_eq!(fake.log(), ["io.max=8:0 rbps=1", "io.max=8:16 rbps=2", "memory.high=1000000"]);
    for bad in ["../memory.max", "a/b.c", "memory", "", "cgroup.procs", "cgroup.kill", ".x"] {
        let e = keys(&serde_json::json!({bad: "1"}).to_string()).unwrap_err();
        assert!(e.kind == Kind::InvalidArgument && e.message.contains("unified"), "{e}");
    }
    let e = keys(r#"{"hugetlb.2MB.max":"1"}"#).unwrap_err();
    assert!(e.kind == Kind::Unsupported && e.message.contains("hugetlb controller"), "{e}");
    let spec = resources(r#"{"unified":{"memory.high":"1"}}"#);
    let e = check_v1(["memory"].into_iter(), &spec).unwrap_err();
    assert!(e.message.contains("memory.high"), "{e}");
}

#[test]
fn missing_v1_controllers_are_named() {
    let spec = resources(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1}],"memory":{"limit":1}}"#);
    let e = check_v1(["cpu,cpuacct", "memory"].into_iter(), &spec).unwrap_err();
    assert!(e.message.contains("hugetlb") && e.message.contains("mount -t cgroup"), "{e}");
    check_v1(["hugetlb", "memory"].into_iter(), &spec).unwrap();
    let nothing =
        r#"{"cpu":{"shares":0,"cpus":""},"memory":{"limit":0},"network":{},"rdma":{},"blockIO":{}}"#;
    assert!(needed_v1(&resources(nothing)).is_empty());
    let all = r#"{"cpu":{"shares":5,"cpus":"0"},"memory":{"limit":5},"pids":{"limit":0},"blockIO":{"weight":10},
        "network":{"classID":1,"priorities":[{"name":"lo","priority":1}]},"rdma":{"x":{}},"devices":[]}"#;
    assert_eq!(
        needed_v1(&resources(all)),
        ["cpu", "cpuset", "memory", "pids", "blkio", "net_cls", "net_prio", "rdma", "devices"]
    );
}
