//! `Usage`: memory of the sandbox; and the statistics part of `containerManager.Event`.

use airlock_loader::cgroup::stats::{self, Stats as CgroupStats};
use airlock_loader::loader::Loader;
use airlock_wire::api::container_manager::{
    Cpu, CpuUsage, Memory, MemoryEntry, NetworkInterface, Pids, Stats, StatsEvent,
};
use airlock_wire::api::types::List;
use airlock_wire::api::usage::{Collect, MemoryUsage};
use airlock_wire::error::Result;
use airlock_wire::registry::Registry;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Collect>(move |_, args| collect(&l, args.full));
}

/// Memory of all containers. gVisor knows categories of its own memory file; here they are the kernel's, as the
/// memory controller counts them. Without `full`, only what is mapped is told apart.
fn collect(loader: &Loader, full: bool) -> Result<MemoryUsage> {
    let root = loader.root()?;
    let memory = root.cgroup()?.stats()?.memory;
    let raw = |v1: &str, v2: &str| memory.raw.get(v1).or_else(|| memory.raw.get(v2)).copied().unwrap_or(0);
    let mapped = raw("total_mapped_file", "file_mapped");
    let total = memory.usage.usage;
    if !full {
        let unknown = total.saturating_sub(mapped);
        return Ok(MemoryUsage { unknown, mapped, total: unknown + mapped, ..MemoryUsage::default() });
    }
    let anonymous = raw("total_rss", "anon");
    let tmpfs = raw("total_shmem", "shmem");
    let page_cache = raw("total_cache", "file").saturating_sub(mapped).saturating_sub(tmpfs);
    let system = total.saturating_sub(anonymous + tmpfs + page_cache + mapped);
    Ok(MemoryUsage {
        unknown: 0,
        system,
        anonymous,
        page_cache,
        mapped,
        tmpfs,
        ramdiskfs: 0,
        total: system + anonymous + page_cache + mapped + tmpfs,
    })
}

/// CPU time of a container in nanoseconds.
pub(crate) fn cpu_total(stats: &CgroupStats) -> u64 {
    stats.cpu.total
}

/// Statistics in gVisor's shape; `id` is repeated as the caller gave it.
pub(crate) fn event_of(loader: &Loader, id: &str, stats: &CgroupStats) -> StatsEvent {
    let entry = |e: &stats::MemoryEntry| MemoryEntry {
        // gVisor says 0 where there is no limit; the kernel's "no limit" is a number close to 2^63.
        limit: if e.limit >= i64::MAX as u64 / 2 { 0 } else { e.limit },
        usage: e.usage,
        max: e.max,
        failcnt: e.failcnt,
    };
    StatsEvent {
        kind: "stats".to_owned(),
        id: id.to_owned(),
        data: Stats {
            cpu: Cpu {
                usage: CpuUsage {
                    kernel: stats.cpu.kernel,
                    user: stats.cpu.user,
                    total: stats.cpu.total,
                    percpu: stats.cpu.percpu.clone(),
                },
            },
            memory: Memory {
                cache: stats.memory.cache,
                usage: entry(&stats.memory.usage),
                swap: entry(&stats.memory.swap),
                kernel: entry(&stats.memory.kernel),
                kernel_tcp: entry(&stats.memory.kernel_tcp),
                raw: stats.memory.raw.clone(),
            },
            pids: Pids { current: stats.pids.current, limit: stats.pids.limit },
            network_interfaces: List(interfaces(loader)),
        },
    }
}

/// Counters of the sandbox's network interfaces, `lo` among them as in gVisor. The loader is in that network namespace,
/// so its own `net/dev` shows them.
fn interfaces(loader: &Loader) -> Vec<NetworkInterface> {
    let text = loader.procfs().read(std::process::id() as i32, "net/dev").unwrap_or_default();
    text.lines().filter_map(parse_interface).collect()
}

fn parse_interface(line: &str) -> Option<NetworkInterface> {
    let (name, numbers) = line.split_once(':')?;
    let n: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    if n.len() < 16 {
        return None;
    }
    Some(NetworkInterface {
        name: name.trim().to_owned(),
        rx_bytes: n[0],
        rx_packets: n[1],
        rx_errors: n[2],
        rx_dropped: n[3],
        tx_bytes: n[8],
        tx_packets: n[9],
        tx_errors: n[10],
        tx_dropped: n[11],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_net_dev_is_read_and_headings_are_not() {
        let line = "  eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0";
        let i = parse_interface(line).unwrap();
        assert_eq!(
            (i.name.as_str(), i.rx_bytes, i.rx_dropped, i.tx_bytes, i.tx_errors),
            ("eth0", 100, 4, 500, 7)
        );
        assert!(parse_interface(" face |bytes    packets errs").is_none());
    }
}
