//! Every command and option of the command line, in one place: the parser, `--help`, the shell completions and
//! the man page all come from these definitions.
//!
//! A command's own parser is built only when that command runs ([`crate::argv`] splits the words first), because
//! building the whole tree costs more than a `state` call does.

#![forbid(unsafe_code)]

mod container;
mod images;
mod inside;
mod looking;
mod measures;
mod supervisor;

pub use container::{
    ContainerCreateArgs, ContainerDestroyArgs, ContainerDetectArgs, ContainerEnterArgs, ContainerExecArgs,
    ContainerInitArgs, ContainerInitPidArgs, ContainerKillallArgs, ContainerListArgs, ContainerNotifyArgs,
    ContainerPauseArgs, ContainerResumeArgs, ContainerRunArgs, ContainerSpecArgs, ContainerStatsArgs,
    ContainerUpdateArgs, ContainersArgs, Listing, MachineArgs, MachineServeArgs, ServerArgs,
};
pub use images::{
    CheckpointArgs, CriuArgs, ForkArgs, ImageArgs, RestoreArgs, StatefileAction, StatefileArgs,
};
pub use inside::{FscheckpointArgs, MountArgs, PortForwardArgs, ReadArgs, TarArgs, TarWhat, UmountArgs};
pub use looking::{DebugArgs, StacksOf, TopArgs};
pub use measures::{
    ExportMetricsArgs, MetricFormat, MetricMetadataArgs, MetricServerArgs, ReadControlArgs, UsageArgs,
    WriteControlArgs,
};
pub use supervisor::{SupervisorAction, SupervisorArgs};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

use crate::values::{
    EnvVar, parse_duration, parse_env, parse_pass_fd, parse_signal, parse_size, parse_user, parse_xdp,
};
use airlock::container::Frames;

/// Form of the error log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `time="…" level=error msg="…"`
    Text,
    /// One JSON object a line: `{"level":"error","msg":"…","time":"…"}`
    Json,
}

/// Whether to run without root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    /// Insist on running without root (refused: it comes later)
    True,
    /// Run with root
    False,
    /// Whatever the caller is
    Auto,
}

/// Output of `ps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// Aligned columns for people
    #[value(alias = "text")]
    Table,
    /// JSON for programs
    Json,
}

// No doc comment on the structs that are flattened: clap would take it for the command's own description.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options (before the command)")]
pub struct GlobalArgs {
    /// Folder that holds the state of all containers, best on a tmpfs [default: /run/airlock, or
    /// $XDG_RUNTIME_DIR/airlock without root]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Append errors (with --debug: everything) to this file; errors go to standard error all the same
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Form of the log's lines
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Log debug messages, to --log or else to standard error
    #[arg(long)]
    pub debug: bool,
    /// Debug log of the sandbox and of this command: a file, or a folder when it ends in '/'; %TIMESTAMP%,
    /// %COMMAND% and %ID% are filled in
    #[arg(long, value_name = "PATTERN")]
    pub debug_log: Option<String>,
    /// Let the new sandbox be profiled (Profile.*, 'debug --profile-…'): it remembers its allocations then
    #[arg(long)]
    pub profile: bool,
    /// Name cgroups as systemd does: cgroupsPath is then 'slice:prefix:name'
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// The sandbox writes its last words there when it crashes; patterns as in --debug-log
    #[arg(long, value_name = "PATTERN")]
    pub panic_log: Option<String>,
    /// Network of new sandboxes, instead of what their configuration says; see 'run --help'
    #[arg(long, value_name = "NETWORK", value_enum)]
    pub network: Option<ContainerNetwork>,
    /// How '--network takeover' has frames: 'off' by packet sockets, 'ns' by an AF_XDP socket in the namespace that is
    /// taken over; 'redirect:INTERFACE' and 'tunnel:INTERFACE' are refused
    #[arg(long = "EXPERIMENTAL-xdp", value_name = "MODE", value_parser = parse_xdp, default_value = "off")]
    pub xdp: Frames,
    /// Packet sockets on each interface that '--network takeover' takes over; connections are spread over them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=64))]
    pub num_network_channels: i32,
    /// Take the rules of iptables' table nat along with '--network takeover' (those of its legacy interface)
    #[arg(long)]
    pub reproduce_nat: bool,
    /// Run without root: only 'false' and 'auto' so far
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    pub rootless: Rootless,
}

/// Runs Linux programs in sandboxes that can be controlled over a Unix socket.
#[derive(Debug, Parser)]
#[command(
    name = "airlock",
    about = "Runs Linux programs in sandboxes that can be controlled over a Unix socket",
    long_about = "Runs Linux programs in sandboxes that can be controlled over a Unix socket.\n\n\
                  The command line is what container engines expect of an OCI runtime (runc, crun, runsc). A \
                  container is made from a bundle: a folder with a config.json and a root filesystem. To try a \
                  program without any of that: 'airlock do COMMAND'.\n\n\
                  Options may also be written as Go programs have them: '-pid-file F', '--detach=true'.",
    disable_version_flag = true,
    subcommand_required = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    /// Print the version and the OCI runtime specification that it follows
    #[arg(short = 'v', short_alias = 'V', long, action = ArgAction::SetTrue)]
    pub version: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// All commands, for the tree that help, completions and the man page need.
#[derive(Debug, Subcommand)]
pub enum Command {
    Do(DoArgs),
    Run(RunArgs),
    Create(CreateArgs),
    Start(StartArgs),
    State(StateArgs),
    List(ListArgs),
    Ps(PsArgs),
    Exec(ExecArgs),
    Kill(KillArgs),
    Delete(DeleteArgs),
    Wait(WaitArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
    Checkpoint(CheckpointArgs),
    Restore(RestoreArgs),
    Fork(ForkArgs),
    Events(EventsArgs),
    Trace(TraceArgs),
    Supervisor(SupervisorArgs),
    Fscheckpoint(FscheckpointArgs),
    PortForward(PortForwardArgs),
    Mount(MountArgs),
    Umount(UmountArgs),
    Read(ReadArgs),
    Tar(TarArgs),
    Debug(DebugArgs),
    Top(TopArgs),
    Update(UpdateArgs),
    Spec(SpecArgs),
    Features(FeaturesArgs),
    Statefile(StatefileArgs),
    Usage(UsageArgs),
    ReadControl(ReadControlArgs),
    WriteControl(WriteControlArgs),
    #[command(visible_alias = "metric-export")]
    ExportMetrics(ExportMetricsArgs),
    MetricMetadata(MetricMetadataArgs),
    MetricServer(MetricServerArgs),
    Container(ContainersArgs),
    Machine(MachineArgs),
    Call(CallArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Run a command in a sandbox over the host's root filesystem
///
/// The host's files are there to read; what the command writes goes to memory and is forgotten. No image and no
/// bundle are needed.
#[derive(Debug, Clone, Args)]
pub struct DoArgs {
    /// Folder that becomes the sandbox's root
    #[arg(long, value_name = "DIR", default_value = "/", alias = "root")]
    pub root_dir: PathBuf,
    /// Working folder of the command [default: the caller's, or / where --root-dir lacks it]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set an environment variable (repeatable); without any, the caller's environment is passed on
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub env: Vec<EnvVar>,
    /// Network of the sandbox: 'none' has a loopback device only, 'host' shares the host's
    #[arg(long, value_name = "NETWORK", value_enum, default_value = "none")]
    pub network: DoNetwork,
    /// Bind a host folder or file into the sandbox, for reading and writing unless ':ro' follows (repeatable)
    #[arg(long, value_name = "HOST:GUEST[:ro]")]
    pub volume: Vec<String>,
    /// User (and group) of the command, as numbers
    #[arg(long, short, value_name = "UID[:GID]", value_parser = parse_user)]
    pub user: Option<(u32, Option<u32>)>,
    /// The command and its arguments
    #[arg(required = true, value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Network of `do`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DoNetwork {
    /// A network namespace of its own with a loopback device
    None,
    /// The caller's network namespace
    Host,
}

// Shared by `create` and `run`; see the note at GlobalArgs.
#[derive(Debug, Clone, Args)]
pub struct ContainerArgs {
    /// Folder with config.json [default: the current folder]
    #[arg(long, short, value_name = "DIR", default_value = ".", hide_default_value = true)]
    pub bundle: PathBuf,
    /// Unix socket that receives the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the container's process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Write the container's pid to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted and not needed: where pivot_root cannot work (on the initial ramdisk), chroot is used anyway
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted without effect: a container always gets a session keyring of its own
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Hand N more descriptors to the container, numbers 3 to N+2 (after $LISTEN_FDS)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub preserve_fds: u32,
    /// Hand descriptor HOST to the container as number GUEST (repeatable)
    #[arg(long, value_name = "HOST:GUEST", value_parser = parse_pass_fd)]
    pub pass_fd: Vec<(i32, i32)>,
    /// Execute the program behind this descriptor instead of the file that process.args[0] names
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(0..))]
    pub exec_fd: Option<i32>,
    /// File that receives messages for the container's owner
    #[arg(long, value_name = "FILE")]
    pub user_log: Option<PathBuf>,
    /// Begin the trace session that this file describes before the program runs: {"trace_session": {...}}
    #[arg(long, value_name = "FILE")]
    pub pod_init_config: Option<PathBuf>,
    /// Lay a writable layer over the root filesystem: MOUNT:MEDIUM[,size=N] with MOUNT 'root' or 'all' and MEDIUM
    /// 'memory', 'self' or 'dir=PATH'; 'none' for no layer
    #[arg(long, value_name = "MOUNT:MEDIUM")]
    pub overlay2: Option<String>,
    /// Network, instead of what the configuration says [default: exactly that]
    #[arg(long, value_name = "NETWORK", value_enum)]
    pub network: Option<ContainerNetwork>,
    /// Name of the new container: letters, digits and '_', '+', '-', '.'
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ContainerNetwork {
    /// The namespace that the configuration names by path, else a new one
    Sandbox,
    /// The namespace that the configuration names by path, else the caller's
    Host,
    /// A new namespace with a loopback device only
    None,
    /// A new namespace, with the interfaces, addresses and routes of the one that the configuration names by path; that
    /// one's addresses are taken away until the sandbox is deleted
    Takeover,
}

impl From<ContainerNetwork> for airlock::podspec::Network {
    fn from(network: ContainerNetwork) -> Self {
        match network {
            // What is taken over is replaced later.
            ContainerNetwork::Sandbox | ContainerNetwork::Takeover => Self::Sandbox,
            ContainerNetwork::Host => Self::Host,
            ContainerNetwork::None => Self::None,
        }
    }
}

/// Create a container; 'start' then runs its program
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
    #[command(flatten)]
    pub image: ImageArgs,
}

// Shared by `create` and `run`: from what a container is restored instead of being started.
/// Create a container, run it, and delete it when it ends
///
/// The exit status is the program's own, or 128 + the signal that ended it.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
    #[command(flatten)]
    pub image: ImageArgs,
    /// Return as soon as the program runs
    #[arg(long, short)]
    pub detach: bool,
    /// Keep the container's state after it has ended
    #[arg(long)]
    pub keep: bool,
    /// Accepted and not needed: airlock never adopts a container's orphans
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Run the program of a created container
#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Print a container's state as JSON
#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// List the containers below --root
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Form of the list
    #[arg(long, short, value_enum, default_value = "table")]
    pub format: TableFormat,
    /// Print only the ids
    #[arg(long, short)]
    pub quiet: bool,
    /// List only sandboxes (root containers)
    #[arg(long)]
    pub sandbox: bool,
}

/// List the processes of a container
#[derive(Debug, Clone, Args)]
pub struct PsArgs {
    /// Form of the list; 'json' is an array of pids
    #[arg(long, short, value_enum, default_value = "table")]
    pub format: TableFormat,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Options of ps(1), for the table: which columns, as 'ps' takes them [default: -ef]
    #[arg(value_name = "PS OPTIONS", trailing_var_arg = true)]
    pub options: Vec<String>,
}

/// Run another program in a running container
///
/// The exit status is the program's own, or 128 + the signal that ended it; 255 if it could not be started.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// Unix socket that receives the master of the program's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that receives a pidfd of the program
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working folder in the container [default: as the container's own process]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set an environment variable, on top of the container's own (repeatable)
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub env: Vec<EnvVar>,
    /// Give the program a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// User and group, as numbers
    #[arg(long, short, value_name = "UID[:GID]", value_parser = parse_user)]
    pub user: Option<(u32, Option<u32>)>,
    /// Additional group (repeatable)
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the OCI process object; without it, COMMAND says what to run
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return as soon as the program runs
    #[arg(long, short)]
    pub detach: bool,
    /// Write the program's pid, as this namespace sees it, to this file
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Write the program's pid, as the container sees it, to this file
    #[arg(long, value_name = "FILE")]
    pub internal_pid_file: Option<PathBuf>,
    /// SELinux label of the program
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile of the program
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Forbid the program to gain privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Capability to add (repeatable)
    #[arg(long, short, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Hand N more descriptors to the program, numbers 3 to N+2 (after $LISTEN_FDS)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub preserve_fds: u32,
    /// Hand descriptor HOST to the program as number GUEST (repeatable)
    #[arg(long, value_name = "HOST:GUEST", value_parser = parse_pass_fd)]
    pub pass_fd: Vec<(i32, i32)>,
    /// Execute the program behind this descriptor instead of the file that COMMAND names
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(0..))]
    pub exec_fd: Option<i32>,
    /// Not supported: a program always runs in its container's cgroup
    #[arg(long, value_name = "[CONTROLLER:]CGROUP", hide = true)]
    pub cgroup: Vec<String>,
    /// Allow a paused container: the program runs once it is resumed
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// The command and its arguments; everything after its first word belongs to it
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Send a signal to a container's process
#[derive(Debug, Clone, Args)]
pub struct KillArgs {
    /// Signal all processes of the container
    #[arg(long, short)]
    pub all: bool,
    /// Signal this process, a pid as the sandbox sees it, instead of the container's first
    #[arg(long, value_name = "PID", conflicts_with = "all", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Number or name, with or without SIG
    #[arg(value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    pub signal: i32,
}

/// Delete a stopped container and everything that belongs to it
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// Kill it first if it runs; no error if it does not exist
    #[arg(long, short)]
    pub force: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Wait until a container ends; prints {"id","exitStatus"}
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// Wait for this process, a pid as the container sees it
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// Wait for this process, a pid as the root container of the sandbox sees it
    #[arg(long, value_name = "PID", conflicts_with = "pid", value_parser = clap::value_parser!(i32).range(1..))]
    pub rootpid: Option<i32>,
    /// Wait for the next checkpoint of the sandbox, and fail if it does
    #[arg(long, conflicts_with_all = ["pid", "rootpid", "restore"])]
    pub checkpoint: bool,
    /// Wait until the sandbox is restored with all its memory, and fail if it cannot be
    #[arg(long, conflicts_with_all = ["pid", "rootpid"])]
    pub restore: bool,
    /// Wait for the next filesystem checkpoint of the sandbox, and fail if it does
    #[arg(long, conflicts_with_all = ["pid", "rootpid", "checkpoint", "restore"])]
    pub fscheckpoint: bool,
    /// Wait until the container's filesystems are restored, and fail if they cannot be
    #[arg(long, conflicts_with_all = ["pid", "rootpid", "checkpoint", "restore", "fscheckpoint"])]
    pub fsrestore: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Suspend all processes of a container
#[derive(Debug, Clone, Args)]
pub struct PauseArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Let a paused container go on
#[derive(Debug, Clone, Args)]
pub struct ResumeArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Print resource statistics and out-of-memory events as JSON lines
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Print the statistics once and end
    #[arg(long)]
    pub stats: bool,
    /// Time between two statistics: 5s, 500ms, or a number of seconds
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub interval: Duration,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Change a container's resource limits
///
/// Sizes are bytes, or have a suffix: k, m, g, t.
#[derive(Debug, Clone, Default, Args)]
pub struct UpdateArgs {
    /// File with an OCI resources object ('-' for standard input); the other options are then ignored
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Relative weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// CPU period in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_period: Option<u64>,
    /// CPU time in a period, in microseconds; -1 for no limit
    #[arg(long, value_name = "USECS")]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up for a burst, in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_burst: Option<u64>,
    /// Relative share of CPU time
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    /// Realtime CPU period in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_rt_period: Option<u64>,
    /// Realtime CPU time in a period, in microseconds
    #[arg(long, value_name = "USECS")]
    pub cpu_rt_runtime: Option<i64>,
    /// 1 to run only when nothing else wants the CPU
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(i64).range(0..=1))]
    pub cpu_idle: Option<i64>,
    /// CPUs to use: 0-2,4
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use: 0-1
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Memory limit; -1 for none
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<i64>,
    /// Memory that is left alone when memory is short
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_reservation: Option<i64>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_swap: Option<i64>,
    /// Processes and threads; -1 for no limit
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<i64>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Write a starter config.json
#[derive(Debug, Clone, Args)]
pub struct SpecArgs {
    /// Folder to write it to [default: the current folder]
    #[arg(long, short, value_name = "DIR", default_value = ".", hide_default_value = true)]
    pub bundle: PathBuf,
    /// Make one with a user namespace that maps root to the caller
    #[arg(long)]
    pub rootless: bool,
    /// Working folder of the program
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub cwd: String,
    /// Network namespace to join, as a path
    #[arg(long, value_name = "PATH")]
    pub netns: Option<String>,
    /// The program and its arguments [default: sh]
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Print what this build and this kernel can do, as JSON (OCI features)
#[derive(Debug, Clone, Args)]
pub struct FeaturesArgs {}

/// What `trace` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceAction {
    /// Begin the session that --config describes
    Create,
    /// End the session that --name names, when its sinks have been told what has happened until then
    Delete,
    /// Sessions, their sinks, and how many events those did not get
    List,
    /// The points, fields and sinks that there are; no sandbox is needed
    Metadata,
    /// What procfs shows of every process of the sandbox: a JSON object for each
    Procfs,
}

/// Look on while a sandbox runs: trace sessions, and what procfs shows
///
/// A session tells of points in the life of a sandbox (a program is executed, a system call begins or ends) to sinks:
/// 'remote', a Unix socket as gVisor's consumers listen on; 'file', lines of JSON appended to a file; 'null'. The
/// options and the output are those of runsc's 'trace'.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// For create: the session, {"name": "Default", "points": [...], "sinks": [...]}, or the same as the value of
    /// "trace_session"
    #[arg(long, value_name = "FILE", required_if_eq("action", "create"))]
    pub config: Option<PathBuf>,
    /// For create: replace a session of the same name
    #[arg(long)]
    pub force: bool,
    /// For delete: name of the session
    #[arg(long, value_name = "NAME", required_if_eq("action", "delete"))]
    pub name: Option<String>,
    /// What to do
    #[arg(value_name = "ACTION", value_enum)]
    pub action: TraceAction,
    /// The sandbox, by the id of a container in it
    #[arg(value_name = "ID", required_if_eq_any([
        ("action", "create"), ("action", "delete"), ("action", "list"), ("action", "procfs"),
    ]))]
    pub id: Option<String>,
}

/// Call a method of a sandbox and print the reply
///
/// Speaks gVisor's urpc JSON, so it works with a real runsc sandbox too: '--socket @runsc-sandbox.ID'.
#[derive(Debug, Clone, Args)]
pub struct CallArgs {
    /// The sandbox, by its id or that of one of its containers
    #[arg(long, value_name = "ID", conflicts_with = "socket")]
    pub sandbox: Option<String>,
    /// The sandbox's control socket: a path, or '@NAME' for an abstract name
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// List all methods with their arguments, results, descriptors and documentation as JSON; with --sandbox or
    /// --socket, those that the live sandbox has
    #[arg(long, conflicts_with_all = ["method", "argument"])]
    pub list: bool,
    /// With --list and no sandbox: list them as a document for people (docs/API.md)
    #[arg(long, requires = "list", conflicts_with_all = ["sandbox", "socket"])]
    pub markdown: bool,
    /// Send this descriptor of the caller with the call (repeatable)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Vec<i32>,
    /// Give up after this time: 5s, 500ms [default: wait for ever]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// The method, as 'containerManager.Processes'
    #[arg(value_name = "METHOD", required_unless_present = "list")]
    pub method: Option<String>,
    /// Its argument as JSON
    #[arg(value_name = "JSON", default_value = "null", hide_default_value = true)]
    pub argument: String,
}

/// Print a completion script for a shell
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Print the manual page (roff)
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Page of this command [default: of airlock itself, with all commands]
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
}
