//! What a cycle has used: the time from a start or thaw to the next freeze or stop.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was used in one cycle. Times are in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CycleDeltaMetrics {
    /// Processor time of the domain's processes, from its cgroup.
    pub domain_cpu_run_ns: u64,
    /// How long the cycle was.
    pub domain_run_ns: u64,
    /// Processor time of the sandbox's own processes.
    pub service_cpu_run_ns: u64,
    /// Most memory that the domain used at once, in bytes.
    pub domain_max_memory_usage_bytes: u64,
    /// Processor time of the machine: all processors, all work.
    pub microvm_cpu_run_ns: u64,
    /// Bytes by interface of the sandbox's network namespace.
    pub microvm_network_interfaces: BTreeMap<String, NetworkInterfaceMetrics>,
    /// Time in which the machine's processors had nothing to do: of all processors together.
    pub idle_cpu_run_ns: u64,
}

/// Bytes that went through an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkInterfaceMetrics {
    /// Received.
    pub received_bytes: u64,
    /// Sent.
    pub transmitted_bytes: u64,
}
