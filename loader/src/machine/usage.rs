//! Statistics of a container in lmctfy's shape, and the specification of a cgroup that others have made.
#![forbid(unsafe_code)]

use super::fields::cpu_mask;
use crate::cgroup::files::{Dir, Files, number_opt};
use crate::cgroup::stats::Stats;
use crate::cgroup::tree::Node;
use airlock_wire::api::container::StatsType;
use airlock_wire::api::container::spec::{BlockIoSpec, ContainerSpec, CpuSpec, DeviceSpec, MemorySpec};
use airlock_wire::api::container::stats::{
    BlockIoStats, ContainerStats, CpuStats, CpuUsage, KernelMemory, MemoryData, MemoryStats, NumaData,
    NumaNode, NumaStat, NumaStats, Thp, ThrottlingData,
};
use airlock_wire::error::Result;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// From here on v1 means that there is no limit (the largest multiple of a page).
const UNLIMITED: u64 = i64::MAX as u64 - (1 << 20);

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A limit as lmctfy says it: -1 for none.
fn limit(n: u64) -> i64 {
    if n >= UNLIMITED { -1 } else { signed(n) }
}

fn number(dir: BorrowedFd<'_>, file: &str) -> Result<Option<u64>> {
    number_opt(&Dir(dir), file)
}

/// What a node uses, of what `spec` isolates. `above`: the nodes from the root to its parent.
pub(super) fn of(
    node: &Node,
    spec: &ContainerSpec,
    above: &[Node],
    kind: StatsType,
) -> Result<ContainerStats> {
    let stats = node.stats()?;
    let full = kind == StatsType::StatsFull;
    Ok(ContainerStats {
        cpu: spec.cpu.as_ref().map(|_| cpu(&stats, full)),
        memory: spec.memory.as_ref().map(|_| memory(node, &stats, above, full)).transpose()?,
        blockio: spec.blockio.as_ref().map(|_| BlockIoStats {}),
        ..ContainerStats::default()
    })
}

fn cpu(stats: &Stats, full: bool) -> CpuStats {
    let cpu = &stats.cpu;
    let usage = CpuUsage {
        total: Some(cpu.total),
        per_cpu: if full { cpu.percpu.iter().copied().map(signed).collect() } else { Vec::new() },
        user: Some(signed(cpu.user / 1000)),
        system: Some(signed(cpu.kernel / 1000)),
    };
    let throttling = ThrottlingData {
        periods: Some(signed(cpu.throttling.periods)),
        throttled_periods: Some(signed(cpu.throttling.throttled_periods)),
        throttled_time: Some(signed(cpu.throttling.throttled_time)),
    };
    CpuStats { usage: Some(usage), throttling_data: full.then_some(throttling), ..CpuStats::default() }
}

fn memory(node: &Node, stats: &Stats, above: &[Node], full: bool) -> Result<MemoryStats> {
    let Some(dir) = node.dir("memory")? else { return Ok(MemoryStats::default()) };
    let v2 = node.v2();
    let raw = &stats.memory.raw;
    let get = |name: &str| raw.get(name).copied();
    let own = stats.memory.usage.limit;
    let mut effective = get("hierarchical_memory_limit").unwrap_or(own);
    for outer in above.iter().filter(|_| v2).map(Node::core_dir) {
        effective = effective.min(number(outer, "memory.max")?.unwrap_or(u64::MAX));
    }
    let reservation = number(dir, if v2 { "memory.low" } else { "memory.soft_limit_in_bytes" })?;
    let idle = get(if v2 { "inactive_file" } else { "total_inactive_file" }).unwrap_or_default();
    let usage = &stats.memory.usage;
    let mut all = MemoryStats {
        limit: Some(limit(own)),
        effective_limit: Some(limit(effective)),
        // v1 without a soft limit keeps nothing for the container.
        reservation: reservation.map(|n| if n >= UNLIMITED { 0 } else { signed(n) }),
        usage: Some(signed(usage.usage)),
        max_usage: Some(signed(usage.max)),
        working_set: Some(signed(usage.usage.saturating_sub(idle))),
        ..MemoryStats::default()
    };
    if full {
        all.fail_count = Some(signed(usage.failcnt));
        all.hierarchical_memory_limit = Some(limit(effective));
        let kernel =
            |memory: Option<u64>| KernelMemory { memory: memory.map(signed), ..KernelMemory::default() };
        if v2 {
            all.hierarchical_data = Some(data_v2(raw));
        } else {
            all.container_data = Some(data_v1(raw, ""));
            let mut below = data_v1(raw, "total_");
            below.kernel = Some(kernel(Some(stats.memory.kernel.usage)));
            all.hierarchical_data = Some(below);
        }
        all.numa = numa(dir, v2)?;
    }
    Ok(all)
}

fn data_v1(raw: &BTreeMap<String, u64>, prefix: &str) -> MemoryData {
    let get = |name: &str| raw.get(&format!("{prefix}{name}")).copied().map(signed);
    MemoryData {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        pgpgin: get("pgpgin"),
        pgpgout: get("pgpgout"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        ..MemoryData::default()
    }
}

fn data_v2(raw: &BTreeMap<String, u64>) -> MemoryData {
    let get = |name: &str| raw.get(name).copied().map(signed);
    MemoryData {
        cache: get("file"),
        rss: get("anon"),
        rss_huge: get("anon_thp"),
        mapped_file: get("file_mapped"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        dirty: get("file_dirty"),
        writeback: get("file_writeback"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        thp: get("thp_fault_alloc").map(|n| Thp {
            fault_alloc: Some(n),
            collapse_alloc: get("thp_collapse_alloc"),
            ..Thp::default()
        }),
        kernel: get("kernel").map(|n| KernelMemory {
            memory: Some(n),
            slab_memory: get("slab"),
            stack_memory: get("kernel_stack"),
            pgtable_memory: get("pagetables"),
            vmalloc_memory: get("vmalloc"),
            ..KernelMemory::default()
        }),
        ..MemoryData::default()
    }
}

/// `memory.numa_stat`: v1 `total=5 N0=5` in pages, and the same with `hierarchical_` in front; v2 `anon N0=4096` in bytes.
fn numa(dir: BorrowedFd<'_>, v2: bool) -> Result<Option<NumaStats>> {
    const PAGE: i64 = 4096;
    let Ok(text) = Dir(dir).read("memory.numa_stat") else { return Ok(None) };
    let line = |name: &str| -> Option<NumaStat> {
        let line = text.lines().find_map(|l| {
            let rest = l.strip_prefix(name)?;
            rest.starts_with(['=', ' ']).then_some(rest)
        })?;
        let (total, rest) = line.split_once(' ').unwrap_or((line, ""));
        let unit = if v2 { PAGE } else { 1 };
        let node = |word: &str| {
            let (level, count) = word.strip_prefix('N')?.split_once('=')?;
            Some(NumaNode {
                level: level.parse().ok(),
                page_count: count.parse::<i64>().ok().map(|n| n / unit),
            })
        };
        let node: Vec<NumaNode> = rest.split_whitespace().filter_map(node).collect();
        let sum = node.iter().filter_map(|n| n.page_count).sum();
        let total_page_count = total.strip_prefix('=').and_then(|n| n.parse().ok()).or(Some(sum));
        Some(NumaStat { node, total_page_count })
    };
    let data = |prefix: &str| NumaData {
        total: line(&format!("{prefix}total")),
        file: line(&format!("{prefix}file")),
        anon: line(&format!("{prefix}anon")),
        unevictable: line(&format!("{prefix}unevictable")),
    };
    let container_data = (!v2).then(|| data(""));
    Ok(Some(NumaStats {
        container_data,
        hierarchical_data: Some(data(if v2 { "" } else { "hierarchical_" })),
    }))
}

/// What the control files say of a cgroup that was made by others.
pub(super) fn spec_of(node: &Node) -> Result<ContainerSpec> {
    let mut spec = ContainerSpec::default();
    let v2 = node.v2();
    let has = |controller: &str, file: &str| -> Result<Option<BorrowedFd<'_>>> {
        Ok(node.dir(controller)?.filter(|dir| Dir(*dir).exists(file)))
    };
    if let Some(dir) = has("cpu", if v2 { "cpu.weight" } else { "cpu.shares" })? {
        let mut cpu = CpuSpec::default();
        if !v2 {
            cpu.limit = number(dir, "cpu.shares")?.map(|n| n * 1000 / 1024);
            let quota = number(dir, "cpu.cfs_quota_us")?.filter(|q| *q != u64::MAX);
            let period = number(dir, "cpu.cfs_period_us")?.filter(|p| *p > 0);
            cpu.max_limit = quota.zip(period).map(|(quota, period)| quota.saturating_mul(1000) / period);
        } else if let Ok(text) = Dir(dir).read("cpu.max") {
            let mut words = text.split_whitespace().map(|w| w.parse::<u64>().ok());
            if let (Some(Some(quota)), Some(Some(period @ 1..))) = (words.next(), words.next()) {
                cpu.max_limit = Some(quota.saturating_mul(1000) / period);
            }
        }
        if let Some(dir) = node.dir("cpuset")?
            && let Ok(list) = Dir(dir).read("cpuset.cpus")
        {
            cpu.mask = Some(cpu_mask(&list)).filter(|mask| !mask.data.is_empty());
        }
        spec.cpu = Some(cpu);
    }
    if let Some(dir) = has("memory", if v2 { "memory.max" } else { "memory.limit_in_bytes" })? {
        let bytes = |v1: &str, name: &str| number(dir, if v2 { name } else { v1 });
        spec.memory = Some(MemorySpec {
            limit: bytes("memory.limit_in_bytes", "memory.max")?.map(limit),
            reservation: bytes("memory.soft_limit_in_bytes", "memory.low")?
                .filter(|n| *n < UNLIMITED)
                .map(signed),
            ..MemorySpec::default()
        });
    }
    if let Some(dir) = has("pids", "pids.max")? {
        spec.children_limit = number(dir, "pids.max")?.map(limit);
    }
    if has(if v2 { "io" } else { "blkio" }, if v2 { "io.max" } else { "blkio.throttle.read_bps_device" })?
        .is_some()
    {
        spec.blockio = Some(BlockIoSpec::default());
    }
    if !v2 && has("devices", "devices.list")?.is_some() {
        spec.device = Some(DeviceSpec::default());
    }
    Ok(spec)
}
