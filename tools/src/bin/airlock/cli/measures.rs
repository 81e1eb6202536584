//! Options of the commands that measure: memory, control files, metrics.

#![forbid(unsafe_code)]

use airlock::metrics::server::Address;
use clap::{Args, ValueEnum};

/// Print how much memory a container's sandbox uses, in bytes, as JSON
#[derive(Debug, Clone, Args)]
pub struct UsageArgs {
    /// Tell all categories apart
    #[arg(long, conflicts_with = "fd")]
    pub full: bool,
    /// Read the figures from the sandbox's live page instead, and print them as runsc does
    #[arg(long)]
    pub fd: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Print a control file of a container's cgroup
#[derive(Debug, Clone, Args)]
pub struct ReadControlArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// The controller, as 'memory'; 'cgroup' for the files that each cgroup has
    #[arg(value_name = "CONTROLLER")]
    pub controller: String,
    /// The cgroup as runsc takes it ('/' is the root container's, '/ID' another's, and what follows is below it) [default:
    /// the container's], then the file, as 'memory.stat'
    #[arg(value_name = "[PATH] FILE", num_args = 1..=2, required = true)]
    pub place: Vec<String>,
}

/// Write a control file of a container's cgroup
#[derive(Debug, Clone, Args)]
pub struct WriteControlArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// The controller, as 'memory'; 'cgroup' for the files that each cgroup has
    #[arg(value_name = "CONTROLLER")]
    pub controller: String,
    /// The cgroup as in read-control [default: the container's], the file, and what to write to it
    #[arg(value_name = "[PATH] FILE VALUE", num_args = 2..=3, required = true, allow_hyphen_values = true)]
    pub place: Vec<String>,
}

/// Form of exported metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricFormat {
    /// OpenMetrics, which Prometheus reads
    Text,
    /// JSON of gVisor's structures
    Json,
}

/// Print the metrics of a container's sandbox
#[derive(Debug, Clone, Args)]
pub struct ExportMetricsArgs {
    /// Form of the metrics
    #[arg(long, short, value_enum, default_value = "text")]
    pub format: MetricFormat,
    /// Only metrics whose names match this regular expression
    #[arg(long, value_name = "REGEX", default_value = "", hide_default_value = true)]
    pub sandbox_metrics_filter: String,
    /// Put this before all names (text only)
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub exporter_prefix: String,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// List the metrics that sandboxes have, as JSON
#[derive(Debug, Clone, Args)]
pub struct MetricMetadataArgs {
    /// Ask the sandbox of this container [default: what this build has]
    #[arg(value_name = "ID")]
    pub id: Option<String>,
}

/// Serve the metrics of all sandboxes below --root over HTTP, for Prometheus
///
/// The first line of output says where. There is no authentication: choose an address that only those can reach who may
/// know, such as the loopback device or a Unix socket.
#[derive(Debug, Clone, Args)]
pub struct MetricServerArgs {
    /// Where to listen: 127.0.0.1:PORT, [::1]:PORT, :PORT (loopback), or the path of a Unix socket
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:1337")]
    pub metric_server: Address,
    /// Put this before all names
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub exporter_prefix: String,
}
