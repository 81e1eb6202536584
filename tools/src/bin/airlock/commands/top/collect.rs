//! What there is to be seen.
#![forbid(unsafe_code)]

use airlock::client::Airlock;
use airlock::state::State;
use airlock_wire::api::metrics::{Export, ExportOpts};
use airlock_wire::client::Dialect;
use airlock_wire::error::Result;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a sandbox may take to tell what it counts.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clock ticks in a second, as `/proc` counts them (USER_HZ).
const TICKS: f64 = 100.0;
/// Calls that looking itself makes, which are not counted.
const OWN: [&str; 2] = ["Airlock.Info", "Metrics.Export"];

/// Everything at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Containers: each root container before the others of its sandbox.
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// The sandbox it is in; its own id for a root container.
    pub sandbox: String,
    /// `running`, `paused`, …
    pub status: String,
    /// What it uses.
    pub usage: Usage,
    /// Calls a second that its sandbox answers; `None` where that is not known, and for containers in others' sandboxes.
    pub calls: Option<f64>,
    /// Its processes.
    pub processes: Vec<Process>,
}

/// A process, or what processes use together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Percent of one processor.
    pub cpu: f64,
    /// Bytes.
    pub memory: u64,
    /// Bytes a second from and to disks.
    pub io: f64,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Process {
    /// As the host knows it.
    pub pid: i32,
    /// Its name.
    pub name: String,
    /// Its threads.
    pub threads: u32,
    /// What it uses.
    pub usage: Usage,
}

/// Remembers what was counted the last time, for rates.
#[derive(Debug)]
pub struct Collector {
    airlock: Airlock,
    /// By what is counted: when, and how much.
    last: HashMap<Counter, (Instant, f64)>,
    /// What was asked for since the last look began.
    used: HashSet<Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Counter {
    Cpu(String),
    Calls(String),
    /// Pid and start.
    ProcessCpu(i32, u64),
    ProcessIo(i32, u64),
}

impl Collector {
    /// Looks at the containers below a state directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(root: &Path) -> Result<Self> {
        Ok(Self { airlock: Airlock::open(root)?, last: HashMap::new(), used: HashSet::new() })
    }

    /// Looks once. Containers that go away meanwhile are left out.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn look(&mut self) -> Result<Snapshot> {
        let mut containers = Vec::new();
        for id in self.airlock.ids()? {
            let Ok(state) = self.airlock.states().load(&id) else { continue };
            let status = self.airlock.states().status(&state);
            let status = status.map_or_else(|_| "?".to_owned(), |s| s.to_string());
            containers.push(self.container(&state, status));
        }
        containers.sort_by(|a, b| {
            (&a.sandbox, a.id != a.sandbox, &a.id).cmp(&(&b.sandbox, b.id != b.sandbox, &b.id))
        });
        let used = std::mem::take(&mut self.used);
        self.last.retain(|counter, _| used.contains(counter));
        Ok(Snapshot { containers })
    }

    fn container(&mut self, state: &State, status: String) -> Container {
        let alive = !matches!(status.as_str(), "stopped" | "creating");
        let pids = if alive { state.cgroup.procs().unwrap_or_default() } else { Vec::new() };
        let processes: Vec<Process> = pids.into_iter().filter_map(|pid| self.process(pid)).collect();
        let mut usage = Usage { io: processes.iter().map(|p| p.usage.io).sum(), ..Usage::default() };
        if let Some(stats) = alive.then(|| state.cgroup.stats().ok()).flatten() {
            usage.cpu = self.rate(Counter::Cpu(state.id.clone()), stats.cpu.total as f64) / 1e7;
            usage.memory = stats.memory.usage.usage;
        }
        let calls = (alive && !state.is_subcontainer()).then(|| self.calls(state)).flatten();
        Container { id: state.id.clone(), sandbox: state.sandbox_id.clone(), status, usage, calls, processes }
    }

    /// Calls that a sandbox has answered, a second.
    fn calls(&mut self, state: &State) -> Option<f64> {
        let mut client = self.airlock.connect(&state.id, Dialect::Binary).ok()?;
        client.set_timeout(Some(PATIENCE)).ok()?;
        let opts = ExportOpts { only_metrics: "^airlock_rpc_calls$".to_owned() };
        let snapshot = client.call::<Export>(&opts, &[]).ok()?.value.0.snapshot;
        let of_others = |labels: &std::collections::BTreeMap<String, String>| {
            !labels.get("method").is_some_and(|method| OWN.contains(&method.as_str()))
        };
        let counted = snapshot.data.iter().filter(|d| of_others(&d.labels)).filter_map(|d| d.value.as_ref());
        let total: f64 = counted.map(|n| n.int as f64 + n.float).sum();
        Some(self.rate(Counter::Calls(state.id.clone()), total))
    }

    fn process(&mut self, pid: i32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let stat = Stat::parse(&stat)?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let usage = Usage {
            cpu: self.rate(Counter::ProcessCpu(pid, stat.start), stat.ticks as f64) * 100.0 / TICKS,
            memory: stat.resident,
            io: self.rate(Counter::ProcessIo(pid, stat.start), disk_bytes(&io) as f64),
        };
        Some(Process { pid, name: stat.name, threads: stat.threads, usage })
    }

    /// How much more a second it has become since the last look; 0 at the first.
    fn rate(&mut self, counter: Counter, now: f64) -> f64 {
        self.used.insert(counter.clone());
        let at = Instant::now();
        match self.last.insert(counter, (at, now)) {
            Some((before, was)) => (now - was).max(0.0) / at.duration_since(before).as_secs_f64().max(1e-3),
            None => 0.0,
        }
    }
}

/// What is of use of `/proc/<pid>/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    ticks: u64,
    threads: u32,
    start: u64,
    resident: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name is the program's own choice: the last parenthesis ends it.
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        let name = text.get(open + 1..close)?;
        let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
        Some(Self {
            name: name.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
            ticks: number(11)?.saturating_add(number(12)?),
            threads: number(17)?.try_into().ok()?,
            start: number(19)?,
            resident: number(21)?.saturating_mul(4096),
        })
    }
}

/// Bytes read from and written to disks, from `/proc/<pid>/io`.
fn disk_bytes(io: &str) -> u64 {
    let bytes = |line: &str| match line.split_once(": ")? {
        ("read_bytes" | "write_bytes", n) => n.trim().parse::<u64>().ok(),
        _ => None,
    };
    io.lines().filter_map(bytes).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_procfs_are_read() {
        let text = "7 (a) \u{1b}[2J) S 1 7 7 0 -1 0 0 0 0 0 11 12 0 0 20 0 3 0 999 8192 2 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.ticks, stat.threads), ("a) ?[2J", 23, 3));
        assert_eq!((stat.start, stat.resident), (999, 8192));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(
            disk_bytes("rchar: 9\nread_bytes: 4096\nwrite_bytes: 1\ncancelled_write_bytes: 5\n"),
            4097
        );
    }

    #[test]
    fn rates_are_by_the_second() {
        let dir = tempfile::tempdir().unwrap();
        let mut collector = Collector::new(&dir.path().join("state")).unwrap();
        assert!(collector.look().unwrap().containers.is_empty());
        let counter = || Counter::Cpu("c".to_owned());
        assert_eq!(collector.rate(counter(), 5.0), 0.0, "nothing to compare with yet");
        assert!(collector.rate(counter(), 10.0) > 0.0);
        assert_eq!(collector.rate(counter(), 1.0), 0.0, "it began anew");
    }
}
