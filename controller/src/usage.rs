//! `Usage`: memory of the sandbox; and the statistics part of `containerManager.Event`.

use airlock_loader::cgroup::stats::{self, Stats as CgroupStats};
use airlock_loader::container::Container;
use airlock_loader::loader::Loader;
use airlock_wire::api::container_manager::{
    Cpu, CpuUsage, Memory, MemoryEntry, NetworkInterface, Pids, Stats, StatsEvent,
};
use airlock_wire::api::types::{Empty, List};
use airlock_wire::api::usage::{Collect, GetFileIoStats, MemoryUsage, Reduce, UsageFD};
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::Registry;
use serde_json::json;
use std::sync::Arc;

/// Memory limits from here on are the kernel's way to say that there is none.
pub(crate) const NO_LIMIT: u64 = i64::MAX as u64 / 2;
/// The one layout of the page that there is.
const PAGE_VERSION: u64 = 1;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Collect>(move |_, args| collect(&l, args.full));
    let l = loader.clone();
    registry.on::<UsageFD>(move |call, args| {
        if args.version != PAGE_VERSION {
            return Err(Error::invalid_argument(format!("unsupported version requested: {}", args.version)));
        }
        let (page, file) = l.usage_page()?;
        call.reply_fd(page);
        call.reply_fd(file);
        Ok(Empty {})
    });
    let l = loader.clone();
    registry.on::<Reduce>(move |_, args| {
        l.reclaim(args.wait)?;
        if !args.do_not_gc {
            airlock_loader::loader::trim();
        }
        Ok(Empty {})
    });
    let l = loader.clone();
    registry.on::<GetFileIoStats>(move |_, Empty {}| {
        let wait = u64::try_from(l.io_wait()?.as_nanos()).unwrap_or(u64::MAX);
        Ok(json!({"ReadWait": {"/": wait}, "ReadWait9P": {"/": 0}}).to_string())
    });
}

/// Memory of all containers. gVisor knows categories of its own memory file; here they are the kernel's, as the
/// memory controller counts them. Without `full`, only what is mapped is told apart.
fn collect(loader: &Loader, full: bool) -> Result<MemoryUsage> {
    let memory = loader.memory()?;
    let (total, mapped) = (memory.total(), memory.mapped);
    if !full {
        return Ok(MemoryUsage { unknown: total - mapped, mapped, total, ..MemoryUsage::default() });
    }
    Ok(MemoryUsage {
        unknown: 0,
        system: memory.system,
        anonymous: memory.anonymous,
        page_cache: memory.page_cache,
        mapped,
        tmpfs: memory.tmpfs,
        ramdiskfs: 0,
        total,
    })
}

/// CPU time of a container in nanoseconds.
pub(crate) fn cpu_total(stats: &CgroupStats) -> u64 {
    stats.cpu.total
}

/// Statistics in gVisor's shape; `id` is repeated as the caller gave it.
pub(crate) fn event_of(loader: &Loader, container: &Container, id: &str, stats: &CgroupStats) -> StatsEvent {
    let entry = |e: &stats::MemoryEntry| MemoryEntry {
        // gVisor says 0 where there is no limit; the kernel's "no limit" is a number close to 2^63.
        limit: if e.limit >= NO_LIMIT { 0 } else { e.limit },
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
            network_interfaces: List(interfaces(loader, container)),
        },
    }
}

/// Counters of a container's network interfaces, `lo` among them as in gVisor, as its init's network namespace has them;
/// the sandbox's, in which the loader is, when that has ended.
pub(crate) fn interfaces(loader: &Loader, container: &Container) -> Vec<NetworkInterface> {
    let init = container.init().filter(|init| init.status().is_none()).map(|init| init.pid);
    let of = |pid| loader.procfs().interfaces(pid).ok();
    init.and_then(of).or_else(|| of(std::process::id() as i32)).unwrap_or_default()
}
