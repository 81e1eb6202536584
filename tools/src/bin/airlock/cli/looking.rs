//! Options of the commands that look into live sandboxes.

use crate::values::{parse_duration, parse_signal};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Whose stacks `debug --stacks` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StacksOf {
    /// None
    #[value(alias = "0")]
    False,
    /// The sandbox process' threads with symbols, and the containers' threads with their kernel stacks
    #[value(alias = "1")]
    True,
    /// And the user-space stacks of the containers' threads, with symbols
    All,
}

/// Look into a live sandbox: stacks, processes, profiles, log
///
/// Several things can be asked for at once; profiles are taken at the same time. The options are runsc's.
#[derive(Debug, Clone, Args)]
pub struct DebugArgs {
    /// The sandbox process; takes the place of ID
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..), conflicts_with = "id")]
    pub pid: Option<i32>,
    /// Print stacks: of the sandbox process, with '=all' also the user-space stacks of container processes
    #[arg(long, value_name = "OF", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub stacks: Option<StacksOf>,
    /// Print the processes as JSON
    #[arg(long)]
    pub ps: bool,
    /// Send a signal to the sandbox process, which passes it on to its root container: a name or a number
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub signal: Option<i32>,
    /// Log level of the sandbox: warning (0), info (1) or debug (2)
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log packets, of a sandbox whose network airlock carries
    #[arg(long, value_name = "BOOL")]
    pub log_packets: Option<bool>,
    /// Write system calls of all containers into the sandbox's log (--debug-log at its start): names with commas between, 'all' or 'off'
    #[arg(long, value_name = "CALLS")]
    pub strace: Option<String>,
    /// Write a CPU profile (pprof) of the sandbox process, with --container of the container's processes
    #[arg(long, value_name = "FILE")]
    pub profile_cpu: Option<PathBuf>,
    /// Write a heap profile (pprof) of the sandbox process, after --delay
    #[arg(long, value_name = "FILE")]
    pub profile_heap: Option<PathBuf>,
    /// Write what the sandbox process' threads wait for (pprof)
    #[arg(long, value_name = "FILE")]
    pub profile_block: Option<PathBuf>,
    /// Write which locks the sandbox process' threads wait for (pprof)
    #[arg(long, value_name = "FILE")]
    pub profile_mutex: Option<PathBuf>,
    /// Write what happens in the sandbox process (Trace Event JSON, for ui.perfetto.dev)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write the CPU profile as a flame graph (SVG), too or only
    #[arg(long, value_name = "FILE")]
    pub flamegraph: Option<PathBuf>,
    /// Profile the processes of the container ID; needs no --profile at its start
    #[arg(long)]
    pub container: bool,
    /// With --container: samples for each second of processor time
    #[arg(long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub frequency: u32,
    /// How long to wait before the heap profile
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "0s")]
    pub delay: Duration,
    /// How long the other profiles take
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub duration: Duration,
    /// Mount an erofs image read-only into the container: IMAGE:PATH
    #[arg(long, value_name = "IMAGE:PATH")]
    pub mount: Option<String>,
    /// The container
    #[arg(value_name = "ID", required_unless_present = "pid")]
    pub id: Option<String>,
}

/// Watch sandboxes, containers and processes on the terminal
///
/// Keys: arrows and tab move, enter unfolds a container's processes, p pauses, r resumes, k sends a signal, c saves into an image,
/// / filters, s sorts, q quits.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    /// Time between two looks
    #[arg(long, short = 'd', value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    pub interval: Duration,
}
