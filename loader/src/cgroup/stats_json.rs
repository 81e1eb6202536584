//! [`Stats`] as `runc events --stats` prints it: callers (containerd's go-runc, kubelet's readers) parse that shape.
#![forbid(unsafe_code)]

use super::{Blkio, BlkioEntry, MemoryEntry, Stats};
use serde_json::{Map, Value, json};

/// Adds `key` unless the value is zero: runc leaves such fields out.
fn some(map: &mut Map<String, Value>, key: &str, value: u64) {
    if value != 0 {
        map.insert(key.to_owned(), value.into());
    }
}

fn list(map: &mut Map<String, Value>, key: &str, values: &[u64]) {
    if !values.is_empty() {
        map.insert(key.to_owned(), values.into());
    }
}

fn memory(entry: &MemoryEntry) -> Value {
    let mut map = Map::new();
    map.insert("limit".to_owned(), entry.limit.into());
    some(&mut map, "usage", entry.usage);
    some(&mut map, "max", entry.max);
    map.insert("failcnt".to_owned(), entry.failcnt.into());
    Value::Object(map)
}

fn blkio(blkio: &Blkio) -> Value {
    let entry = |e: &BlkioEntry| {
        let mut map = Map::new();
        some(&mut map, "major", e.major);
        some(&mut map, "minor", e.minor);
        if !e.op.is_empty() {
            map.insert("op".to_owned(), e.op.as_str().into());
        }
        some(&mut map, "value", e.value);
        Value::Object(map)
    };
    let mut map = Map::new();
    for (key, entries) in [
        ("ioServiceBytesRecursive", &blkio.io_service_bytes_recursive),
        ("ioServicedRecursive", &blkio.io_serviced_recursive),
        ("ioQueueRecursive", &blkio.io_queue_recursive),
        ("ioServiceTimeRecursive", &blkio.io_service_time_recursive),
        ("ioWaitTimeRecursive", &blkio.io_wait_time_recursive),
        ("ioMergedRecursive", &blkio.io_merged_recursive),
        ("ioTimeRecursive", &blkio.io_time_recursive),
        ("sectorsRecursive", &blkio.sectors_recursive),
    ] {
        if !entries.is_empty() {
            map.insert(key.to_owned(), entries.iter().map(entry).collect());
        }
    }
    Value::Object(map)
}

impl Stats {
    /// The `data` object of `events --stats`, without `intel_rdt` and `network_interfaces`.
    pub fn to_runc_json(&self) -> Value {
        let cpu = &self.cpu;
        let mut usage = Map::new();
        some(&mut usage, "total", cpu.total);
        list(&mut usage, "percpu", &cpu.percpu);
        list(&mut usage, "percpu_kernel", &cpu.percpu_kernel);
        list(&mut usage, "percpu_user", &cpu.percpu_user);
        usage.insert("kernel".to_owned(), cpu.kernel.into());
        usage.insert("user".to_owned(), cpu.user.into());
        let mut throttling = Map::new();
        some(&mut throttling, "periods", cpu.throttling.periods);
        some(&mut throttling, "throttledPeriods", cpu.throttling.throttled_periods);
        some(&mut throttling, "throttledTime", cpu.throttling.throttled_time);
        let mut mem = Map::new();
        some(&mut mem, "cache", self.memory.cache);
        for (key, entry) in [
            ("usage", &self.memory.usage),
            ("swap", &self.memory.swap),
            ("kernel", &self.memory.kernel),
            ("kernelTCP", &self.memory.kernel_tcp),
        ] {
            mem.insert(key.to_owned(), memory(entry));
        }
        if !self.memory.raw.is_empty() {
            mem.insert("raw".to_owned(), json!(self.memory.raw));
        }
        let mut pids = Map::new();
        some(&mut pids, "current", self.pids.current);
        some(&mut pids, "limit", self.pids.limit);
        let mut huge = Map::new();
        for (size, entry) in &self.hugetlb {
            let mut map = Map::new();
            some(&mut map, "usage", entry.usage);
            some(&mut map, "max", entry.max);
            map.insert("failcnt".to_owned(), entry.failcnt.into());
            huge.insert(size.clone(), Value::Object(map));
        }
        json!({
            "cpu": { "usage": usage, "throttling": throttling },
            "memory": mem,
            "pids": pids,
            "blkio": blkio(&self.blkio),
            "hugetlb": huge,
        })
    }
}
