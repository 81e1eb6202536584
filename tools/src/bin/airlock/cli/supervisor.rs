//! Options of `supervisor`.

use crate::values::{EnvVar, parse_deadline, parse_env, parse_log_config, parse_log_target};
use airlock_wire::api::supervisor::{Deadline, ManagedLogging, Topic};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What `supervisor` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SupervisorAction {
    /// Give a domain the root filesystem, mounts, limits and users of a bundle (--bundle)
    Define,
    /// Configure a domain by a ConfigureRequest (--config)
    Configure,
    /// Start a domain: set it up and run its hooks
    Start,
    /// End all processes of a domain, and print the metrics of its last cycle
    Stop,
    /// Freeze a domain, and print the metrics of the cycle
    Freeze,
    /// Thaw a frozen domain
    Thaw,
    /// End the sandbox with all its domains
    Exit,
    /// Execute COMMAND as process NAME in a domain; ends as that does
    Exec,
    /// Send SIGTERM to the process group of process NAME
    Terminate,
    /// Kill the process group of process NAME, and wait for its end
    Kill,
    /// Print what happens in DOMAIN, or in all: a JSON object a line, until this is interrupted or the sandbox ends
    Events,
    /// Ask the supervisor for an answer
    Ping,
    /// Print all domains, their states and processes, as JSON
    Domains,
}

/// Run processes in domains of a sandbox, freeze and thaw them, as AWS Lambda's supervisor does
///
/// The sandbox is one that was started in any way ('airlock run --detach'); its root container is the parent domain. A
/// domain is defined or configured, started, and then runs named processes. docs/SUPERVISOR.md tells more.
#[derive(Debug, Clone, Args)]
pub struct SupervisorArgs {
    /// For define: folder with the config.json of the domain
    #[arg(long, short, value_name = "DIR", required_if_eq("action", "define"))]
    pub bundle: Option<PathBuf>,
    /// For define: keep what the domain writes apart, as 'root:memory' does
    #[arg(long, value_name = "OVERLAY")]
    pub overlay2: Option<String>,
    /// For configure: file with the ConfigureRequest as JSON, '-' for standard input; its domain may be left out
    #[arg(long, value_name = "FILE", required_if_eq("action", "configure"))]
    pub config: Option<PathBuf>,
    /// For configure: where logs of a topic ('runtime', 'runtime_extension') go: a named pipe, whose reader is waited for,
    /// or '-' for standard output if that is a pipe (repeatable)
    #[arg(long, value_name = "TOPIC=FILE", value_parser = parse_log_target)]
    pub log_to: Vec<(Topic, PathBuf)>,
    /// For stop and kill: how long to wait (10s, 500ms), or until when (2026-11-28T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = parse_deadline, default_value = "10s")]
    pub deadline: Deadline,
    /// For exec: return as soon as the program runs
    #[arg(long, short)]
    pub detach: bool,
    /// For exec: working folder in the domain [default: its root]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// For exec: set an environment variable (repeatable); there are no others
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub env: Vec<EnvVar>,
    /// For exec: log to a topic of the domain, in the formats 'line' (its output, which is not ours then), 'message' (the
    /// descriptor that $_LAMBDA_TELEMETRY_LOG_FD names) or both
    #[arg(long, value_name = "TOPIC[:FORMAT,…]", value_parser = parse_log_config)]
    pub log_config: Option<ManagedLogging>,
    /// For exec: hand a descriptor of the caller to the program; the first becomes 3, the next 4 (repeatable)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub extra_fd: Vec<i32>,
    /// What to do
    #[arg(value_name = "ACTION", value_enum)]
    pub action: SupervisorAction,
    /// The sandbox
    #[arg(value_name = "SANDBOX")]
    pub id: String,
    /// The domain
    #[arg(value_name = "DOMAIN", required_if_eq_any([
        ("action", "define"), ("action", "configure"), ("action", "start"), ("action", "stop"), ("action", "freeze"),
        ("action", "thaw"), ("action", "exec"), ("action", "terminate"), ("action", "kill"),
    ]))]
    pub domain: Option<String>,
    /// Name of the process, unique in the domain
    #[arg(value_name = "NAME", required_if_eq_any([("action", "exec"), ("action", "terminate"), ("action", "kill")]))]
    pub name: Option<String>,
    /// Path of the program in the domain, and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, required_if_eq("action", "exec"))]
    pub command: Vec<String>,
}
