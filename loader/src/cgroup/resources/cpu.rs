//! CPU bandwidth, weight and placement.
#![forbid(unsafe_code)]

use crate::cgroup::files::{Files, explain, set};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use oci_spec::runtime::LinuxCpu;

/// Converts v1 `cpu.shares` (2 to 262144, default 1024) to v2 `cpu.weight` (1 to 10000, default 100), so that the
/// ends and the defaults meet: 10^((log2(s)^2 + 125 log2(s)) / 612 - 7 / 34), as runc 1.4 and crun 1.23 do.
pub fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// Writes `file` now, or tells with `true` that it has to be tried again after the quota: the kernel checks period,
/// quota and burst against each other.
fn early(files: &dyn Files, file: &str, value: &str, quota_follows: bool) -> Result<bool> {
    match files.write(file, value) {
        Ok(()) => Ok(false),
        Err(Errno::EINVAL) if quota_follows => Ok(true),
        Err(e) => Err(explain(&format!("writing {value:?} to {file}"), file, e)),
    }
}

/// Weight and idle exclude each other: an idle cgroup has a fixed weight.
fn weight(files: &dyn Files, cpu: &LinuxCpu, file: &str, value: Option<u64>) -> Result<()> {
    let idle = cpu.idle();
    if idle == Some(0) {
        set(files, "cpu.idle", 0)?;
    }
    if let Some(value) = value
        && idle != Some(1)
    {
        set(files, file, value)?;
    }
    match idle {
        None | Some(0) => Ok(()),
        Some(1) => set(files, "cpu.idle", 1),
        Some(n) => Err(Error::invalid_argument(format!(
            "linux.resources.cpu.idle is {n}: only 0 and 1 have a meaning"
        ))),
    }
}

/// v1 `cpu`: shares, bandwidth, burst, idle, realtime. A quota, period or share of 0 means "not given", a negative
/// quota "no limit".
///
/// # Errors
/// The kernel's refusal, naming file and value.
pub fn v1(files: &dyn Files, cpu: &LinuxCpu) -> Result<()> {
    weight(files, cpu, "cpu.shares", cpu.shares().filter(|s| *s != 0))?;
    let quota = cpu.quota().filter(|q| *q != 0).map(|q| q.max(-1));
    let period = cpu.period().filter(|p| *p != 0).map(|p| p.to_string());
    let burst = cpu.burst().map(|b| b.to_string());
    let mut again = Vec::new();
    for (file, value) in [("cpu.cfs_period_us", &period), ("cpu.cfs_burst_us", &burst)] {
        if let Some(value) = value
            && early(files, file, value, quota.is_some())?
        {
            again.push((file, value));
        }
    }
    if let Some(quota) = quota {
        set(files, "cpu.cfs_quota_us", quota)?;
    }
    for (file, value) in again {
        set(files, file, value)?;
    }
    realtime(files, cpu)
}

fn realtime(files: &dyn Files, cpu: &LinuxCpu) -> Result<()> {
    let runtime = cpu.realtime_runtime().filter(|r| *r != 0);
    let mut retry = None;
    if let Some(period) = cpu.realtime_period().filter(|p| *p != 0).map(|p| p.to_string())
        && early(files, "cpu.rt_period_us", &period, runtime.is_some())?
    {
        retry = Some(period);
    }
    if let Some(runtime) = runtime {
        set(files, "cpu.rt_runtime_us", runtime)?;
    }
    retry.map_or(Ok(()), |period| set(files, "cpu.rt_period_us", period))
}

/// v2 `cpu`: weight, bandwidth, burst, idle; see [`v1`].
///
/// # Errors
/// The kernel's refusal; realtime limits, which v2 does not have.
pub fn v2(files: &dyn Files, cpu: &LinuxCpu) -> Result<()> {
    let realtime =
        [cpu.realtime_runtime().is_some_and(|r| r != 0), cpu.realtime_period().is_some_and(|p| p != 0)];
    if realtime.contains(&true) {
        return Err(Error::unsupported(
            "linux.resources.cpu.realtimeRuntime and realtimePeriod: cgroup v2 has no such limits; leave them out",
        ));
    }
    weight(files, cpu, "cpu.weight", cpu.shares().filter(|s| *s != 0).map(weight_of_shares))?;
    let quota = cpu.quota().filter(|q| *q != 0);
    let period = cpu.period().filter(|p| *p != 0);
    let bandwidth = quota.is_some() || period.is_some();
    let burst = cpu.burst().map(|b| b.to_string());
    let mut again = None;
    if let Some(burst) = &burst
        && early(files, "cpu.max.burst", burst, bandwidth)?
    {
        again = Some(burst);
    }
    if bandwidth {
        let quota = match quota {
            Some(q) if q > 0 => q.to_string(),
            Some(_) => "max".to_owned(),
            // A period alone: the quota has to be said again.
            None => {
                let now = files.read("cpu.max").map_err(|e| explain("reading cpu.max", "cpu.max", e))?;
                now.split_whitespace().next().unwrap_or("max").to_owned()
            }
        };
        match period {
            Some(period) => set(files, "cpu.max", format!("{quota} {period}"))?,
            None => set(files, "cpu.max", quota)?,
        }
    }
    again.map_or(Ok(()), |burst| set(files, "cpu.max.burst", burst))
}

/// `cpuset.cpus` and `cpuset.mems`, the same in v1 and v2. Empty lists mean "not given".
///
/// # Errors
/// The kernel's refusal, for example of CPUs that the machine or the parent cgroup does not have.
pub fn set_cpuset(files: &dyn Files, cpu: &LinuxCpu) -> Result<()> {
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|l| !l.is_empty()) {
            set(files, file, list)?;
        }
    }
    Ok(())
}

/// The files of a v1 cpuset without which nobody can join.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

fn read_cpuset(files: &dyn Files, file: &str) -> Result<String> {
    let text = files.read(file).map_err(|e| explain(&format!("reading {file}"), file, e))?;
    Ok(text.trim().to_owned())
}

/// Gives a v1 cpuset its parent's CPUs and memory nodes: a new one is empty, and nobody can join it. What it has already
/// stays.
///
/// # Errors
/// As reading and writing control files.
pub fn inherit_cpuset(parent: &dyn Files, dir: &dyn Files) -> Result<()> {
    for file in CPUSET {
        if read_cpuset(dir, file)?.is_empty() {
            set(dir, file, read_cpuset(parent, file)?)?;
        }
    }
    Ok(())
}

/// As [`inherit_cpuset`], for one that has just been made.
///
/// # Errors
/// As reading and writing control files.
pub fn fill_new_cpuset(parent: &dyn Files, dir: &dyn Files) -> Result<()> {
    CPUSET.iter().try_for_each(|file| set(dir, file, read_cpuset(parent, file)?))
}
