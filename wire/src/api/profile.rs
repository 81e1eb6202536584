//! `Profile`: profiles of the sandbox process, and of what containers do (`Airlock.ProfileContainer`).

use super::types::Empty;
use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Profile", from "gVisor pkg/sentry/control/pprof.go";
    /// Where the sandbox process spends processor time: the kernel samples its threads 100 times a second of processor time.
    CPU: CpuArgs => Empty, fds "in: the file for a gzipped pprof profile, and if wanted one for a flame graph (SVG); without any nothing is done", errors "`unknown method` unless the sandbox was booted with --profile; the kernel does not let samples be taken; the file cannot be written", blocks "for `duration`; calls of one kind wait for each other";
    /// What the sandbox process' heap is and was used for: a sample of the allocations since boot, one for each 16 KiB on
    /// average.
    Heap: HeapArgs => Empty, fds "in: the file for a gzipped pprof profile; without one nothing is done", errors "as CPU", blocks "for `delay`";
    /// What the sandbox process' threads wait for: locks, conditions, connections, other processes. Found by looking at them
    /// 100 times a second.
    Block: BlockArgs => Empty, fds "in: the file for a gzipped pprof profile; without one nothing is done", errors "as CPU", blocks "for `duration`";
    /// Which locks the sandbox process' threads wait for; found as Block does.
    Mutex: MutexArgs => Empty, fds "in: the file for a gzipped pprof profile; without one nothing is done", errors "as CPU", blocks "for `duration`";
    /// What happens in the sandbox process: its calls from begin to end, what its threads do 100 times a second, and which
    /// containers start and end, as JSON in the Trace Event Format (chrome://tracing, ui.perfetto.dev).
    Trace: TraceArgs => Empty, fds "in: the file for JSON; without one nothing is done", errors "as CPU", blocks "for `duration`";
    /// The stacks of all threads of the sandbox process, as text (gVisor: of all goroutines).
    Goroutine: Empty => Empty, fds "in: the file for text; without one nothing is done", errors "as CPU";
}

/// Argument of [`CPU`] (gVisor's `control.CPUProfileOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuArgs {
    /// How long, in nanoseconds; not above 0: not at all.
    pub duration: i64,
}

/// Argument of [`Heap`] (gVisor's `control.HeapProfileOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeapArgs {
    /// How long to wait before, in nanoseconds.
    pub delay: i64,
}

/// Argument of [`Block`] (gVisor's `control.BlockProfileOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockArgs {
    /// How long, in nanoseconds.
    pub duration: i64,
    /// Of gVisor's scheduler; threads are looked at 100 times a second whatever it says.
    pub rate: i64,
}

/// Argument of [`Mutex`] (gVisor's `control.MutexProfileOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MutexArgs {
    /// How long, in nanoseconds.
    pub duration: i64,
    /// Of gVisor's scheduler; threads are looked at 100 times a second whatever it says.
    pub fraction: i64,
}

/// Argument of [`Trace`] (gVisor's `control.TraceProfileOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TraceArgs {
    /// How long, in nanoseconds.
    pub duration: i64,
}

/// Argument of [`Airlock.ProfileContainer`](super::airlock::ProfileContainer).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerProfileArgs {
    /// The container.
    pub cid: String,
    /// How long, in nanoseconds.
    pub duration: i64,
    /// Samples for each second of processor time, 1 to 10000; 0 for 99.
    pub frequency: u32,
}

/// Result of [`Airlock.ProfileContainer`](super::airlock::ProfileContainer).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampled {
    /// Samples in the profile.
    pub samples: u64,
    /// Samples that were lost: the container was faster than they could be taken.
    pub lost: u64,
}
