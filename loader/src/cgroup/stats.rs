//! What a container uses, read from its control files, in one shape for v1 and v2.
#![forbid(unsafe_code)]

use super::Cgroup;
use super::files::{Dir, Files, explain, number_opt, parse_number};
use airlock_wire::error::Result;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

#[path = "stats_json.rs"]
mod json;

/// Use and limits of one container. Absent files count as zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block I/O.
    pub blkio: Blkio,
    /// Huge pages by page size (`2MB`).
    pub hugetlb: BTreeMap<String, Hugetlb>,
}

/// Processor time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// All of it.
    pub total: u64,
    /// Spent in the kernel.
    pub kernel: u64,
    /// Spent in user mode.
    pub user: u64,
    /// By processor (v1 only).
    pub percpu: Vec<u64>,
    /// In the kernel, by processor (v1 only).
    pub percpu_kernel: Vec<u64>,
    /// In user mode, by processor (v1 only).
    pub percpu_user: Vec<u64>,
    /// How often the quota was reached.
    pub throttling: Throttling,
}

/// How a CPU quota bit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttling {
    /// Periods in which the cgroup ran.
    pub periods: u64,
    /// Periods in which it was stopped.
    pub throttled_periods: u64,
    /// How long it was stopped, in nanoseconds.
    pub throttled_time: u64,
}

/// One memory counter, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEntry {
    /// The limit; without one `u64::MAX` (v2) or the kernel's largest number (v1).
    pub limit: u64,
    /// In use now.
    pub usage: u64,
    /// The most that was ever in use (v2: Linux 5.19).
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Page cache.
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together.
    pub swap: MemoryEntry,
    /// Kernel memory (v1 only).
    pub kernel: MemoryEntry,
    /// TCP buffers (v1 only).
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat`.
    pub raw: BTreeMap<String, u64>,
    /// Processes that the OOM killer killed.
    pub oom_kills: u64,
}

/// Memory by what it is used for, in bytes. The sum of all is the memory in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Categories {
    /// Anonymous memory.
    pub anonymous: u64,
    /// Files that are mapped.
    pub mapped: u64,
    /// Page cache that is neither mapped nor in a memory file system.
    pub page_cache: u64,
    /// Memory file systems and shared memory.
    pub tmpfs: u64,
    /// The rest: the kernel's on the container's behalf.
    pub system: u64,
}

impl Categories {
    /// All memory in use.
    pub fn total(&self) -> u64 {
        self.anonymous + self.mapped + self.page_cache + self.tmpfs + self.system
    }

    /// Adds another cgroup's.
    pub fn add(&mut self, other: &Self) {
        self.anonymous += other.anonymous;
        self.mapped += other.mapped;
        self.page_cache += other.page_cache;
        self.tmpfs += other.tmpfs;
        self.system += other.system;
    }
}

impl Memory {
    /// What the memory in use is used for. The kernel counts mapped files of tmpfs both as mapped and as tmpfs; here they
    /// are tmpfs, and no category is more than what is left of the memory in use.
    pub fn categories(&self) -> Categories {
        let raw = |v1: &str, v2: &str| self.raw.get(v1).or_else(|| self.raw.get(v2)).copied().unwrap_or(0);
        let mut left = self.usage.usage;
        let mut take = |wanted: u64| {
            let taken = wanted.min(left);
            left -= taken;
            taken
        };
        let tmpfs = take(raw("total_shmem", "shmem"));
        let cache = raw("total_cache", "file").saturating_sub(tmpfs);
        let anonymous = take(raw("total_rss", "anon"));
        let mapped = take(raw("total_mapped_file", "file_mapped").min(cache));
        let page_cache = take(cache - mapped.min(cache));
        Categories { anonymous, mapped, page_cache, tmpfs, system: left }
    }
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// Now.
    pub current: u64,
    /// At most; 0 for no limit.
    pub limit: u64,
}

/// One line of block I/O accounting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkioEntry {
    /// Device.
    pub major: u64,
    /// Device.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`; empty where the file has no such column.
    pub op: String,
    /// Bytes, operations, nanoseconds or sectors.
    pub value: u64,
}

/// Block I/O with everything below the cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blkio {
    /// Bytes.
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Operations.
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Operations that wait.
    pub io_queue_recursive: Vec<BlkioEntry>,
    /// Nanoseconds in service.
    pub io_service_time_recursive: Vec<BlkioEntry>,
    /// Nanoseconds waited.
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    /// Operations merged.
    pub io_merged_recursive: Vec<BlkioEntry>,
    /// Disk time.
    pub io_time_recursive: Vec<BlkioEntry>,
    /// Sectors.
    pub sectors_recursive: Vec<BlkioEntry>,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hugetlb {
    /// In use now.
    pub usage: u64,
    /// The most that was ever in use (v1 only).
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Reads all controllers of `cgroup`.
pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    let mut stats = Stats::default();
    let dir = |controller: &str| cgroup.dir(controller).map(Dir);
    if cgroup.v2() {
        return cgroup.dir("").map_or_else(|| Ok(Stats::default()), of_v2);
    }
    if let Some(dir) = dir("cpuacct") {
        cpuacct(&dir, &mut stats.cpu)?;
    }
    if let Some(dir) = dir("cpu") {
        throttling(&flat(&dir, "cpu.stat")?, &mut stats.cpu.throttling);
    }
    if let Some(dir) = dir("memory") {
        stats.memory = memory_v1(&dir)?;
    }
    if let Some(dir) = dir("pids") {
        stats.pids = pids(&dir)?;
    }
    if let Some(dir) = dir("blkio") {
        stats.blkio = blkio_v1(&dir)?;
    }
    if let Some(dir) = dir("hugetlb") {
        stats.hugetlb = hugetlb(dir, false)?;
    }
    Ok(stats)
}

/// Reads all controllers of one v2 cgroup.
///
/// # Errors
/// As reading control files; absent files count as zero.
pub fn of_v2(dir: BorrowedFd<'_>) -> Result<Stats> {
    let mut stats = Stats::default();
    read_v2(&Dir(dir), &mut stats)?;
    stats.hugetlb = hugetlb(Dir(dir), true)?;
    Ok(stats)
}

/// The text of `file`, empty when there is none.
fn text(files: &dyn Files, file: &str) -> Result<String> {
    match files.read(file) {
        Ok(text) => Ok(text),
        Err(Errno::ENOENT | Errno::EOPNOTSUPP) => Ok(String::new()),
        Err(e) => Err(explain(&format!("reading {file}"), file, e)),
    }
}

/// A file of `key number` lines.
fn flat(files: &dyn Files, file: &str) -> Result<BTreeMap<String, u64>> {
    Ok(parse_flat(&text(files, file)?))
}

fn parse_flat(text: &str) -> BTreeMap<String, u64> {
    let line = |l: &str| {
        let (key, value) = l.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn value(files: &dyn Files, file: &str) -> Result<u64> {
    Ok(number_opt(files, file)?.unwrap_or_default())
}

fn get(map: &BTreeMap<String, u64>, key: &str) -> u64 {
    map.get(key).copied().unwrap_or_default()
}

fn throttling(stat: &BTreeMap<String, u64>, to: &mut Throttling) {
    to.periods = get(stat, "nr_periods");
    to.throttled_periods = get(stat, "nr_throttled");
    // v1 counts nanoseconds, v2 microseconds under another name.
    to.throttled_time = get(stat, "throttled_time").max(get(stat, "throttled_usec").saturating_mul(1000));
}

fn cpuacct(files: &dyn Files, cpu: &mut Cpu) -> Result<()> {
    /// Ticks of `cpuacct.stat`: USER_HZ is 100 on all architectures that we build for.
    const TICK: u64 = 10_000_000;
    cpu.total = value(files, "cpuacct.usage")?;
    let stat = flat(files, "cpuacct.stat")?;
    cpu.user = get(&stat, "user").saturating_mul(TICK);
    cpu.kernel = get(&stat, "system").saturating_mul(TICK);
    let percpu = text(files, "cpuacct.usage_percpu")?;
    cpu.percpu = percpu.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // "cpu user system", then one line for each processor.
    for line in text(files, "cpuacct.usage_all")?.lines().skip(1) {
        let mut words = line.split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0));
        if let (Some(user), Some(system)) = (words.next(), words.next()) {
            cpu.percpu_user.push(user);
            cpu.percpu_kernel.push(system);
        }
    }
    Ok(())
}

fn memory_v1(files: &dyn Files) -> Result<Memory> {
    let entry = |prefix: &str| -> Result<MemoryEntry> {
        Ok(MemoryEntry {
            limit: value(files, &format!("{prefix}.limit_in_bytes"))?,
            usage: value(files, &format!("{prefix}.usage_in_bytes"))?,
            max: value(files, &format!("{prefix}.max_usage_in_bytes"))?,
            failcnt: value(files, &format!("{prefix}.failcnt"))?,
        })
    };
    let raw = flat(files, "memory.stat")?;
    Ok(Memory {
        cache: get(&raw, "cache"),
        usage: entry("memory")?,
        swap: entry("memory.memsw")?,
        kernel: entry("memory.kmem")?,
        kernel_tcp: entry("memory.kmem.tcp")?,
        oom_kills: get(&flat(files, "memory.oom_control")?, "oom_kill"),
        raw,
    })
}

fn pids(files: &dyn Files) -> Result<Pids> {
    let limit = number_opt(files, "pids.max")?.filter(|n| *n != u64::MAX).unwrap_or_default();
    Ok(Pids { current: value(files, "pids.current")?, limit })
}

fn blkio_v1(files: &dyn Files) -> Result<Blkio> {
    // CFQ's and BFQ's files are empty for disks without that scheduler; the throttle files count always.
    let first = |names: &[&str]| -> Result<Vec<BlkioEntry>> {
        for name in names {
            let entries = parse_blkio(&text(files, name)?);
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    };
    let both =
        |name: &str| first(&[&format!("blkio.{name}_recursive"), &format!("blkio.bfq.{name}_recursive")]);
    Ok(Blkio {
        io_service_bytes_recursive: first(&[
            "blkio.io_service_bytes_recursive",
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ])?,
        io_serviced_recursive: first(&[
            "blkio.io_serviced_recursive",
            "blkio.bfq.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ])?,
        io_queue_recursive: both("io_queued")?,
        io_service_time_recursive: both("io_service_time")?,
        io_wait_time_recursive: both("io_wait_time")?,
        io_merged_recursive: both("io_merged")?,
        io_time_recursive: both("time")?,
        sectors_recursive: both("sectors")?,
    })
}

/// Lines of `major:minor [Op] value`; the final `Total value` is left out.
fn parse_blkio(text: &str) -> Vec<BlkioEntry> {
    let line = |l: &str| {
        let words: Vec<&str> = l.split_whitespace().collect();
        let (device, op, value) = match words.as_slice() {
            [device, op, value] => (*device, *op, *value),
            [device, value] => (*device, "", *value),
            _ => return None,
        };
        let (major, minor) = device.split_once(':')?;
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(line).collect()
}

fn read_v2(files: &dyn Files, stats: &mut Stats) -> Result<()> {
    let cpu = flat(files, "cpu.stat")?;
    let ns = |key: &str| get(&cpu, key).saturating_mul(1000);
    (stats.cpu.total, stats.cpu.user, stats.cpu.kernel) =
        (ns("usage_usec"), ns("user_usec"), ns("system_usec"));
    throttling(&cpu, &mut stats.cpu.throttling);
    stats.memory = memory_v2(files)?;
    stats.pids = pids(files)?;
    stats.blkio = parse_io_stat(&text(files, "io.stat")?);
    Ok(())
}

fn memory_v2(files: &dyn Files) -> Result<Memory> {
    let raw = flat(files, "memory.stat")?;
    let events = flat(files, "memory.events")?;
    let entry = |prefix: &str, failcnt: u64| -> Result<MemoryEntry> {
        Ok(MemoryEntry {
            limit: value(files, &format!("{prefix}.max"))?,
            usage: value(files, &format!("{prefix}.current"))?,
            max: value(files, &format!("{prefix}.peak"))?,
            failcnt,
        })
    };
    let usage = entry("memory", get(&events, "max"))?;
    let alone = entry("memory.swap", get(&flat(files, "memory.swap.events")?, "max"))?;
    // v2 counts swap alone; callers expect v1's sum.
    let swap = MemoryEntry {
        limit: alone.limit.saturating_add(usage.limit),
        usage: alone.usage.saturating_add(usage.usage),
        max: 0,
        failcnt: alone.failcnt,
    };
    Ok(Memory {
        cache: get(&raw, "file"),
        usage,
        swap,
        oom_kills: get(&events, "oom_kill"),
        raw,
        ..Memory::default()
    })
}

/// `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn parse_io_stat(text: &str) -> Blkio {
    let mut blkio = Blkio::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let numbers = words.next().and_then(|d| d.split_once(':'));
        let Some((Ok(major), Ok(minor))) = numbers.map(|(a, b)| (a.parse(), b.parse())) else { continue };
        for word in words {
            let Some((key, Some(value))) = word.split_once('=').map(|(k, v)| (k, parse_number(v))) else {
                continue;
            };
            let (list, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut blkio.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                "dios" => (&mut blkio.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value });
        }
    }
    blkio
}

/// Page sizes are found by listing the directory: the sandbox has no `/sys`.
fn hugetlb(dir: Dir<'_>, v2: bool) -> Result<BTreeMap<String, Hugetlb>> {
    let end = if v2 { ".current" } else { ".usage_in_bytes" };
    let files: &dyn Files = &dir;
    let mut all = BTreeMap::new();
    for size in super::control::page_sizes(dir.0, end)? {
        let file = |end: &str| format!("hugetlb.{size}.{end}");
        let entry = if v2 {
            let failcnt = get(&flat(files, &file("events"))?, "max");
            Hugetlb { usage: value(files, &file("current"))?, max: 0, failcnt }
        } else {
            Hugetlb {
                usage: value(files, &file("usage_in_bytes"))?,
                max: value(files, &file("max_usage_in_bytes"))?,
                failcnt: value(files, &file("failcnt"))?,
            }
        };
        all.insert(size, entry);
    }
    Ok(all)
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
