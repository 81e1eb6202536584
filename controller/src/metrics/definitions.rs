//! The metrics that there are. Names follow Prometheus' rules: base units, a counter's name without the `_total` that its
//! text adds. Containers that share a cgroup or a network namespace show the same figures.

use airlock_wire::api::metrics::{Field, Metadata, Metric};
use airlock_wire::calls;

/// One metric.
pub(super) struct Definition {
    /// Its name.
    pub name: &'static str,
    /// A kind of [`Metric`].
    pub kind: i32,
    /// What it says.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
}

impl Definition {
    /// As `GetRegisteredMetrics` has it.
    pub fn metadata(&self) -> Metadata {
        let is_histogram = self.kind == Metric::HISTOGRAM;
        let bounds = (0..calls::BOUNDS).filter_map(calls::bound).map(u64::cast_signed);
        Metadata {
            name: format!("/{}", self.name.replacen('_', "/", 1)),
            prometheus_name: self.name.to_owned(),
            description: self.help.to_owned(),
            cumulative: self.kind != Metric::GAUGE,
            kind: i32::from(is_histogram),
            // Those of the histograms alone, whose bounds gVisor has as whole numbers.
            units: i32::from(is_histogram),
            fields: self.labels.iter().map(|label| field(label)).collect(),
            distribution_bucket_lower_bounds: if is_histogram {
                std::iter::once(0).chain(bounds).collect()
            } else {
                Vec::new()
            },
            ..Metadata::default()
        }
    }
}

fn field(label: &str) -> Field {
    let values: &[&str] = match label {
        "result" => &["ok", "error"],
        "state" => &["creating", "created", "running", "paused", "stopped"],
        "kind" => &["init", "exec"],
        "mode" => &["user", "system"],
        "category" => &["anonymous", "mapped", "page_cache", "tmpfs", "system"],
        "op" => &["read", "write", "discard"],
        "direction" => &["receive", "transmit"],
        _ => &[],
    };
    let allowed_values = values.iter().map(|value| (*value).to_owned()).collect();
    Field { field_name: label.to_owned(), allowed_values }
}

pub(super) static BUILD: Definition = Definition {
    name: "airlock_build_info",
    kind: Metric::GAUGE,
    help: "Always 1; the label tells the version of the sandbox.",
    labels: &["version"],
};
pub(super) static START: Definition = Definition {
    name: "airlock_sandbox_start_time_seconds",
    kind: Metric::GAUGE,
    help: "When the sandbox was made, in seconds since 1970.",
    labels: &[],
};
pub(super) static LOADER_MEMORY: Definition = Definition {
    name: "airlock_loader_resident_bytes",
    kind: Metric::GAUGE,
    help: "Memory of the sandbox's own process (the loader), shared pages included.",
    labels: &[],
};
pub(super) static LOADER_THREADS: Definition = Definition {
    name: "airlock_loader_threads",
    kind: Metric::GAUGE,
    help: "Threads of the loader.",
    labels: &[],
};
pub(super) static LOADER_FDS: Definition = Definition {
    name: "airlock_loader_open_fds",
    kind: Metric::GAUGE,
    help: "Descriptors that the loader has open.",
    labels: &[],
};
pub(super) static RPC_CALLS: Definition = Definition {
    name: "airlock_rpc_calls",
    kind: Metric::COUNTER,
    help: "Calls that the sandbox has answered.",
    labels: &["method", "result"],
};
pub(super) static RPC_DURATION: Definition = Definition {
    name: "airlock_rpc_duration_seconds",
    kind: Metric::HISTOGRAM,
    help: "How long calls took; those that wait for something wait in it.",
    labels: &["method"],
};
pub(super) static RPC_UNKNOWN: Definition = Definition {
    name: "airlock_rpc_unknown_methods",
    kind: Metric::COUNTER,
    help: "Calls of methods that there are not.",
    labels: &[],
};
pub(super) static CHECKPOINT: Definition = Definition {
    name: "airlock_checkpoint_duration_seconds",
    kind: Metric::HISTOGRAM,
    help: "How long checkpoints of this sandbox took, failed ones included.",
    labels: &[],
};
pub(super) static RESTORE: Definition = Definition {
    name: "airlock_restore_duration_seconds",
    kind: Metric::HISTOGRAM,
    help: "How long the calls took that restored this sandbox, failed ones included.",
    labels: &[],
};
pub(super) static STATE: Definition = Definition {
    name: "airlock_container_state",
    kind: Metric::GAUGE,
    help: "Always 1; the label tells what the container does.",
    labels: &["container", "state"],
};
pub(super) static CONTAINER_START: Definition = Definition {
    name: "airlock_container_start_time_seconds",
    kind: Metric::GAUGE,
    help: "When the container's program was started, in seconds since 1970.",
    labels: &["container"],
};
pub(super) static PROCESSES: Definition = Definition {
    name: "airlock_container_processes_started",
    kind: Metric::COUNTER,
    help: "Processes that the sandbox has started in the container (not those that they make).",
    labels: &["container", "kind"],
};
pub(super) static CPU: Definition = Definition {
    name: "airlock_container_cpu_seconds",
    kind: Metric::COUNTER,
    help: "Processor time.",
    labels: &["container"],
};
pub(super) static CPU_MODE: Definition = Definition {
    name: "airlock_container_cpu_mode_seconds",
    kind: Metric::COUNTER,
    help: "Processor time, user and system apart.",
    labels: &["container", "mode"],
};
pub(super) static CPU_PERIODS: Definition = Definition {
    name: "airlock_container_cpu_periods",
    kind: Metric::COUNTER,
    help: "Periods of the CPU quota in which the container ran.",
    labels: &["container"],
};
pub(super) static CPU_THROTTLED_PERIODS: Definition = Definition {
    name: "airlock_container_cpu_throttled_periods",
    kind: Metric::COUNTER,
    help: "Periods in which the container was stopped at its CPU quota.",
    labels: &["container"],
};
pub(super) static CPU_THROTTLED: Definition = Definition {
    name: "airlock_container_cpu_throttled_seconds",
    kind: Metric::COUNTER,
    help: "How long the container was stopped at its CPU quota.",
    labels: &["container"],
};
pub(super) static MEMORY: Definition = Definition {
    name: "airlock_container_memory_usage_bytes",
    kind: Metric::GAUGE,
    help: "Memory in use, page cache included.",
    labels: &["container"],
};
pub(super) static MEMORY_PEAK: Definition = Definition {
    name: "airlock_container_memory_peak_bytes",
    kind: Metric::GAUGE,
    help: "The most memory that was ever in use; 0 where the kernel does not tell.",
    labels: &["container"],
};
pub(super) static MEMORY_LIMIT: Definition = Definition {
    name: "airlock_container_memory_limit_bytes",
    kind: Metric::GAUGE,
    help: "The memory limit; absent without one.",
    labels: &["container"],
};
pub(super) static MEMORY_CATEGORY: Definition = Definition {
    name: "airlock_container_memory_category_bytes",
    kind: Metric::GAUGE,
    help: "Memory in use by what it is used for.",
    labels: &["container", "category"],
};
pub(super) static MEMORY_FAILURES: Definition = Definition {
    name: "airlock_container_memory_limit_hits",
    kind: Metric::COUNTER,
    help: "How often the memory limit was hit.",
    labels: &["container"],
};
pub(super) static OOM_KILLS: Definition = Definition {
    name: "airlock_container_oom_kills",
    kind: Metric::COUNTER,
    help: "Processes that were killed for lack of memory.",
    labels: &["container"],
};
pub(super) static PIDS: Definition = Definition {
    name: "airlock_container_pids",
    kind: Metric::GAUGE,
    help: "Processes and threads.",
    labels: &["container"],
};
pub(super) static PIDS_LIMIT: Definition = Definition {
    name: "airlock_container_pids_limit",
    kind: Metric::GAUGE,
    help: "The limit of processes and threads; absent without one.",
    labels: &["container"],
};
pub(super) static IO_BYTES: Definition = Definition {
    name: "airlock_container_io_bytes",
    kind: Metric::COUNTER,
    help: "Bytes read from and written to block devices.",
    labels: &["container", "device", "op"],
};
pub(super) static IO_OPERATIONS: Definition = Definition {
    name: "airlock_container_io_operations",
    kind: Metric::COUNTER,
    help: "Operations on block devices.",
    labels: &["container", "device", "op"],
};
pub(super) static HUGETLB: Definition = Definition {
    name: "airlock_container_hugetlb_bytes",
    kind: Metric::GAUGE,
    help: "Huge pages in use.",
    labels: &["container", "page_size"],
};
pub(super) static NETWORK_BYTES: Definition = Definition {
    name: "airlock_container_network_bytes",
    kind: Metric::COUNTER,
    help: "Bytes through the interfaces of the container's network namespace.",
    labels: &["container", "direction", "interface"],
};
pub(super) static NETWORK_PACKETS: Definition = Definition {
    name: "airlock_container_network_packets",
    kind: Metric::COUNTER,
    help: "Packets through these interfaces.",
    labels: &["container", "direction", "interface"],
};
pub(super) static NETWORK_ERRORS: Definition = Definition {
    name: "airlock_container_network_errors",
    kind: Metric::COUNTER,
    help: "Errors of these interfaces.",
    labels: &["container", "direction", "interface"],
};
pub(super) static NETWORK_DROPS: Definition = Definition {
    name: "airlock_container_network_drops",
    kind: Metric::COUNTER,
    help: "Packets that these interfaces dropped.",
    labels: &["container", "direction", "interface"],
};

/// All of them.
pub(super) static ALL: [&Definition; 33] = [
    &BUILD,
    &START,
    &LOADER_MEMORY,
    &LOADER_THREADS,
    &LOADER_FDS,
    &RPC_CALLS,
    &RPC_DURATION,
    &RPC_UNKNOWN,
    &CHECKPOINT,
    &RESTORE,
    &STATE,
    &CONTAINER_START,
    &PROCESSES,
    &CPU,
    &CPU_MODE,
    &CPU_PERIODS,
    &CPU_THROTTLED_PERIODS,
    &CPU_THROTTLED,
    &MEMORY,
    &MEMORY_PEAK,
    &MEMORY_LIMIT,
    &MEMORY_CATEGORY,
    &MEMORY_FAILURES,
    &OOM_KILLS,
    &PIDS,
    &PIDS_LIMIT,
    &IO_BYTES,
    &IO_OPERATIONS,
    &HUGETLB,
    &NETWORK_BYTES,
    &NETWORK_PACKETS,
    &NETWORK_ERRORS,
    &NETWORK_DROPS,
];
