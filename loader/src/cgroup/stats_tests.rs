//! Parsing of statistics, with files as kernels print them.

use super::*;
use crate::cgroup::files::tests::Fake;

#[test]
fn cpuacct_files() {
    let fake = Fake::new(&[
        ("cpuacct.usage", "16297264\n"),
        ("cpuacct.stat", "user 3\nsystem 1\n"),
        ("cpuacct.usage_percpu", "2493840 13803424 \n"),
        ("cpuacct.usage_all", "cpu user system\n0 11 22\n1 33 44\n"),
    ]);
    let mut cpu = Cpu::default();
    cpuacct(&fake, &mut cpu).unwrap();
    assert_eq!((cpu.total, cpu.user, cpu.kernel), (16_297_264, 30_000_000, 10_000_000));
    assert_eq!(cpu.percpu, [2_493_840, 13_803_424]);
    assert_eq!((cpu.percpu_user, cpu.percpu_kernel), (vec![11, 33], vec![22, 44]));
}

#[test]
fn throttling_in_both_units() {
    let mut t = Throttling::default();
    throttling(&parse_flat("nr_periods 5\nnr_throttled 2\nthrottled_time 9000\n"), &mut t);
    assert_eq!((t.periods, t.throttled_periods, t.throttled_time), (5, 2, 9000));
    throttling(&parse_flat("usage_usec 1\nnr_periods 5\nnr_throttled 2\nthrottled_usec 9\n"), &mut t);
    assert_eq!(t.throttled_time, 9000);
}

#[test]
fn memory_of_v1() {
    let fake = Fake::new(&[
        ("memory.stat", "cache 12288\nrss 53248\nbroken\nalso broken x\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.usage_in_bytes", "991232\n"),
        ("memory.max_usage_in_bytes", "2772992\n"),
        ("memory.failcnt", "3\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ]);
    let m = memory_v1(&fake).unwrap();
    assert_eq!(m.cache, 12288);
    assert_eq!(
        m.usage,
        MemoryEntry { limit: 9_223_372_036_854_771_712, usage: 991_232, max: 2_772_992, failcnt: 3 }
    );
    assert_eq!(m.swap, MemoryEntry::default());
    assert_eq!(m.oom_kills, 2);
    assert_eq!(m.raw.len(), 2);
}

#[test]
fn everything_of_v2() {
    let fake = Fake::new(&[
        ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 0\n"),
        ("memory.stat", "anon 4096\nfile 8192\n"),
        ("memory.current", "100\n"),
        ("memory.max", "1000\n"),
        ("memory.peak", "500\n"),
        ("memory.swap.current", "7\n"),
        ("memory.swap.max", "max\n"),
        ("memory.events", "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n"),
        ("pids.current", "2\n"),
        ("pids.max", "max\n"),
        ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost=x\nbroken\n8:16 \n"),
    ]);
    let mut s = Stats::default();
    read_v2(&fake, &mut s).unwrap();
    assert_eq!((s.cpu.total, s.cpu.user, s.cpu.kernel), (30_000, 20_000, 10_000));
    assert_eq!(s.memory.usage, MemoryEntry { limit: 1000, usage: 100, max: 500, failcnt: 4 });
    assert_eq!((s.memory.swap.limit, s.memory.swap.usage), (u64::MAX, 107));
    assert_eq!((s.memory.cache, s.memory.oom_kills), (8192, 1));
    assert_eq!((s.pids.current, s.pids.limit), (2, 0));
    let bytes: Vec<_> = s.blkio.io_service_bytes_recursive.iter().map(|e| (e.op.as_str(), e.value)).collect();
    assert_eq!(bytes, [("Read", 1), ("Write", 2), ("Discard", 5)]);
    assert_eq!(s.blkio.io_serviced_recursive.len(), 3);
}

#[test]
fn blkio_lines() {
    let text = "8:0 Read 5\n8:0 Total 5\n8:16 77\nTotal 5\n\nx:y Read 1\n8:0 Read -1\n";
    let entries = parse_blkio(text);
    let short: Vec<_> = entries.iter().map(|e| (e.minor, e.op.as_str(), e.value)).collect();
    assert_eq!(short, [(0, "Read", 5), (0, "Total", 5), (16, "", 77)]);
    let fake = Fake::new(&[
        ("blkio.bfq.io_serviced_recursive", "Total 0\n"),
        ("blkio.throttle.io_serviced_recursive", "8:0 Read 9\nTotal 9\n"),
    ]);
    assert_eq!(blkio_v1(&fake).unwrap().io_serviced_recursive[0].value, 9);
}

#[test]
fn json_has_runcs_shape() {
    let mut s = Stats::default();
    s.cpu.total = 5;
    s.cpu.percpu = vec![2, 3];
    s.memory.usage = MemoryEntry { limit: 10, usage: 4, max: 0, failcnt: 0 };
    s.memory.raw.insert("rss".into(), 1);
    s.pids.current = 2;
    s.blkio.io_serviced_recursive.push(BlkioEntry { major: 8, minor: 0, op: "Read".into(), value: 1 });
    s.hugetlb.insert("2MB".into(), Hugetlb::default());
    let zero = serde_json::json!({"limit": 0, "failcnt": 0});
    assert_eq!(
        s.to_runc_json(),
        serde_json::json!({
            "cpu": {"usage": {"total": 5, "percpu": [2, 3], "kernel": 0, "user": 0}, "throttling": {}},
            "memory": {
                "usage": {"limit": 10, "usage": 4, "failcnt": 0}, "swap": zero, "kernel": zero, "kernelTCP": zero,
                "raw": {"rss": 1},
            },
            "pids": {"current": 2},
            "blkio": {"ioServicedRecursive": [{"major": 8, "op": "Read", "value": 1}]},
            "hugetlb": {"2MB": {"failcnt": 0}},
        })
    );
}
