//! What a cycle has used: figures at its beginning, and the difference at its end.
#![forbid(unsafe_code)]

use crate::cgroup::Cgroup;
use crate::cgroup::files::{Dir, Files};
use crate::container::Container;
use crate::loader::Loader;
use airlock_wire::api::supervisor::{CycleDeltaMetrics, NetworkInterfaceMetrics};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Nanoseconds of a tick in `/proc/stat`: the kernel's interface fixes it at 100 a second.
const TICK: u64 = 10_000_000;

/// Figures at one moment.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    at: Option<Instant>,
    domain: u64,
    service: u64,
    machine: Machine,
    interfaces: BTreeMap<String, NetworkInterfaceMetrics>,
    /// v2's `memory.peak`, which counts anew for each descriptor from what is written to it on (Linux 6.12).
    peak: Option<File>,
}

/// Processor time of the machine in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Machine {
    busy: u64,
    idle: u64,
}

impl Baseline {
    /// Begins a cycle.
    pub(super) fn begin(loader: &Loader, container: &Container) -> Self {
        let cgroup = container.cgroup.get();
        Self { peak: cgroup.and_then(reset_peak), ..Self::now(loader, cgroup) }
    }

    fn now(loader: &Loader, cgroup: Option<&Cgroup>) -> Self {
        let stat = loader.procfs().read_path("stat").unwrap_or_default();
        Self {
            at: Some(Instant::now()),
            domain: cgroup.map(domain_cpu).unwrap_or_default(),
            service: service_cpu(loader),
            machine: parse_stat(&stat).unwrap_or_default(),
            interfaces: interfaces(loader),
            peak: None,
        }
    }

    /// Ends the cycle: what was used in it. The next one begins at this moment.
    pub(super) fn turn(&mut self, loader: &Loader, container: &Container) -> CycleDeltaMetrics {
        let cgroup = container.cgroup.get();
        let now = Self::now(loader, cgroup);
        let most = cgroup.map(|c| peak(c, self.peak.as_ref())).unwrap_or_default();
        let used = self.until(&now, most);
        *self = Self { peak: self.peak.take(), ..now };
        used
    }

    fn until(&self, now: &Self, most: u64) -> CycleDeltaMetrics {
        let ran = now.at.zip(self.at).map(|(now, begin)| now.saturating_duration_since(begin));
        let interfaces = now.interfaces.iter().map(|(name, bytes)| {
            let before = self.interfaces.get(name).copied().unwrap_or_default();
            let delta = NetworkInterfaceMetrics {
                received_bytes: bytes.received_bytes.saturating_sub(before.received_bytes),
                transmitted_bytes: bytes.transmitted_bytes.saturating_sub(before.transmitted_bytes),
            };
            (name.clone(), delta)
        });
        CycleDeltaMetrics {
            domain_cpu_run_ns: now.domain.saturating_sub(self.domain),
            domain_run_ns: nanos(ran.unwrap_or_default()),
            service_cpu_run_ns: now.service.saturating_sub(self.service),
            domain_max_memory_usage_bytes: most,
            microvm_cpu_run_ns: now.machine.busy.saturating_sub(self.machine.busy),
            microvm_network_interfaces: interfaces.collect(),
            idle_cpu_run_ns: now.machine.idle.saturating_sub(self.machine.idle),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Processor time of the domain: `cpuacct.usage`, on v2 `cpu.stat` of the cgroup that its leaf is in or is.
fn domain_cpu(cgroup: &Cgroup) -> u64 {
    if cgroup.v2() {
        // The leaf has the figure of its processes even when it has no controllers.
        let stat = Dir(cgroup.leaf()).read("cpu.stat").unwrap_or_default();
        let usec = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        return usec.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or_default().saturating_mul(1000);
    }
    let usage = cgroup.dir("cpuacct").and_then(|dir| Dir(dir).read("cpuacct.usage").ok());
    usage.and_then(|n| n.trim().parse().ok()).unwrap_or_default()
}

/// Processor time of the sandbox's own two processes, the loader and the spawner (PID 1 here).
fn service_cpu(loader: &Loader) -> u64 {
    let spent = |clock: ClockId| clock_gettime(clock).map(Duration::from).map(nanos).unwrap_or_default();
    let spawner = match loader.shares_pid_namespace() {
        true => None,
        false => clock_getcpuclockid(Pid::from_raw(1)).ok(),
    };
    spent(ClockId::CLOCK_PROCESS_CPUTIME_ID) + spawner.map(spent).unwrap_or_default()
}

/// The first line of `/proc/stat` (proc_stat(5)). Guests' time is in that of their hosts; a disk's wait is idle time.
fn parse_stat(stat: &str) -> Option<Machine> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|n| n.parse().ok()).take(8).collect();
    let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks.try_into().ok()?;
    Some(Machine {
        busy: (user + nice + system + irq + softirq + steal).saturating_mul(TICK),
        idle: (idle + iowait).saturating_mul(TICK),
    })
}

fn interfaces(loader: &Loader) -> BTreeMap<String, NetworkInterfaceMetrics> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let found = loader.procfs().interfaces(own).unwrap_or_default();
    let bytes = found.into_iter().map(|i| {
        (i.name, NetworkInterfaceMetrics { received_bytes: i.rx_bytes, transmitted_bytes: i.tx_bytes })
    });
    bytes.collect()
}

/// Has the most memory in use counted from now on.
fn reset_peak(cgroup: &Cgroup) -> Option<File> {
    if !cgroup.v2() {
        // Any number makes it what is in use now.
        let _ = cgroup.dir("memory").map(|dir| Dir(dir).write("memory.max_usage_in_bytes", "0"));
        return None;
    }
    let mut file: File = Dir(cgroup.dir("")?).open("memory.peak", nix::fcntl::OFlag::O_RDWR).ok()?.into();
    // Kernels before 6.12 count from the cgroup's beginning.
    file.write_all(b"reset").ok().map(|()| file)
}

/// The most memory in use since [`reset_peak`], in bytes. Where v2 cannot begin anew it is the most ever.
fn peak(cgroup: &Cgroup, since: Option<&File>) -> u64 {
    if let Some(file) = since {
        let mut buffer = [0; 32];
        let n = file.read_at(&mut buffer, 0).unwrap_or_default();
        return std::str::from_utf8(&buffer[..n])
            .ok()
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or_default();
    }
    let (controller, file) =
        if cgroup.v2() { ("", "memory.peak") } else { ("memory", "memory.max_usage_in_bytes") };
    let text = cgroup.dir(controller).and_then(|dir| Dir(dir).read(file).ok());
    text.and_then(|n| n.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_time_is_read_from_proc_stat() {
        let stat = "cpu  10 20 30 400 5 6 7 8 9 1\ncpu0 1 2 3 4 5 6 7 8 9 1\nintr 5\n";
        assert_eq!(parse_stat(stat), Some(Machine { busy: 81 * TICK, idle: 405 * TICK }));
        for bad in ["", "cpu0 1 2 3 4 5 6 7 8", "cpu  1 2 3", "cpu  a b c d e f g h"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
        let own = std::fs::read_to_string("/proc/stat").unwrap();
        let machine = parse_stat(&own).unwrap();
        assert!(machine.busy > 0 && machine.idle > 0);
    }
}
