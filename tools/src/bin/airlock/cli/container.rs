//! Commands of the container API (`docs/CONTAINERS.md`), named and ordered as lmctfy's.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Resource containers of a machine or a sandbox: a tree of named cgroups
///
/// A name is absolute ('/web/a') or relative to the container that the caller is in ('a', '..'). A SPEC is JSON or lmctfy's
/// text form, as in 'memory:{limit:100000000}', or '-' for standard input. docs/CONTAINERS.md tells more.
#[derive(Debug, Clone, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct ContainersArgs {
    /// What to do
    #[command(subcommand)]
    pub action: ContainerAction,
}

/// What `container` does.
#[derive(Debug, Clone, Subcommand)]
pub enum ContainerAction {
    Init(ContainerInitArgs),
    Create(ContainerCreateArgs),
    Destroy(ContainerDestroyArgs),
    List(ContainerListArgs),
    Run(ContainerRunArgs),
    Exec(ContainerExecArgs),
    Enter(ContainerEnterArgs),
    Detect(ContainerDetectArgs),
    Update(ContainerUpdateArgs),
    Killall(ContainerKillallArgs),
    Pause(ContainerPauseArgs),
    Resume(ContainerResumeArgs),
    Stats(ContainerStatsArgs),
    Spec(ContainerSpecArgs),
    Notify(ContainerNotifyArgs),
    InitPid(ContainerInitPidArgs),
}

// No doc comment: clap would take it for the command's own description.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Socket of 'airlock machine serve' [default: machine.sock in the --root folder]
    #[arg(long, value_name = "PATH", conflicts_with = "sandbox")]
    pub socket: Option<PathBuf>,
    /// The containers inside of this sandbox instead of the machine's
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,
}

/// Check the machine's hierarchies and clear away what a killed server has left
#[derive(Debug, Clone, Args)]
pub struct ContainerInitArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// An InitSpec, as in 'cgroup_mount:{mount_path:"/sys/fs/cgroup/cpu" hierarchy:CGROUP_CPU}'
    #[arg(value_name = "SPEC", default_value = "", hide_default_value = true)]
    pub spec: String,
}

/// Make a container
#[derive(Debug, Clone, Args)]
pub struct ContainerCreateArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Read the specification from this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "spec")]
    pub config: Option<PathBuf>,
    /// The new container; its parent exists
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What it isolates; nothing when absent
    #[arg(value_name = "SPEC", default_value = "", hide_default_value = true)]
    pub spec: String,
}

/// Kill everything in a container and remove it with its subcontainers
#[derive(Debug, Clone, Args)]
pub struct ContainerDestroyArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// What `container list` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Listing {
    /// Subcontainers
    Containers,
    /// Processes
    Pids,
    /// Threads
    Threads,
}

/// List the subcontainers, processes or threads of a container
#[derive(Debug, Clone, Args)]
pub struct ContainerListArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// With those of its subcontainers, and theirs
    #[arg(short, long)]
    pub recursive: bool,
    /// Absolute names of containers
    #[arg(short, long)]
    pub absolute: bool,
    /// What to list
    #[arg(value_name = "WHAT", value_enum)]
    pub what: Listing,
    /// The container
    #[arg(value_name = "NAME", default_value = ".")]
    pub name: String,
}

/// Run a command in a container, and wait for it
///
/// Standard input, output and error are the caller's, and so are environment and working folder (inside of a sandbox or
/// virtual host: its own environment, and /). The exit status is the command's; 128 and the signal's number if it died of one.
#[derive(Debug, Clone, Args)]
pub struct ContainerRunArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Do not wait: print its pid. It has /dev/null for its standard streams then
    #[arg(short, long)]
    pub no_wait: bool,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The command, with an absolute path, and its arguments
    #[arg(required = true, value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Enter a container and become a command, which PATH finds
#[derive(Debug, Clone, Args)]
pub struct ContainerExecArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The command and its arguments
    #[arg(required = true, value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Move threads into a container
#[derive(Debug, Clone, Args)]
pub struct ContainerEnterArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Thread ids [default: the process that called this command, as a shell]
    #[arg(value_name = "TID")]
    pub tids: Vec<i32>,
}

/// Tell which container a thread is in
#[derive(Debug, Clone, Args)]
pub struct ContainerDetectArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Thread id; 0 is the caller
    #[arg(value_name = "TID", default_value_t = 0, hide_default_value = true)]
    pub tid: i32,
}

/// Change what a container isolates
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("policy").required(true).args(["update", "replace"]))]
pub struct ContainerUpdateArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Change what the specification has, and leave the rest
    #[arg(short, long)]
    pub update: bool,
    /// Make the container what the specification says; what is absent becomes the default
    #[arg(short, long)]
    pub replace: bool,
    /// Read the specification from this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "spec")]
    pub config: Option<PathBuf>,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The specification
    #[arg(value_name = "SPEC", default_value = "", hide_default_value = true)]
    pub spec: String,
}

/// Kill all processes in a container and below
#[derive(Debug, Clone, Args)]
pub struct ContainerKillallArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Stop all threads in a container and below
#[derive(Debug, Clone, Args)]
pub struct ContainerPauseArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Let all threads in a container and below go on
#[derive(Debug, Clone, Args)]
pub struct ContainerResumeArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Show what a container uses
#[derive(Debug, Clone, Args)]
pub struct ContainerStatsArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// JSON instead of lmctfy's text form
    #[arg(long)]
    pub json: bool,
    /// 'full' for all that the kernel has (else 'summary'), and the container
    #[arg(value_name = "[summary|full] NAME", num_args = 1..=2, required = true)]
    pub words: Vec<String>,
}

/// Show what a container isolates
#[derive(Debug, Clone, Args)]
pub struct ContainerSpecArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// JSON instead of lmctfy's text form
    #[arg(long)]
    pub json: bool,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Print a line of JSON each time that something happens to a container, until it is destroyed
#[derive(Debug, Clone, Args)]
pub struct ContainerNotifyArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// 'memory oom NAME', 'memory threshold NAME BYTES' or 'empty NAME'
    #[arg(value_name = "EVENT", num_args = 2..=4, required = true)]
    pub words: Vec<String>,
}

/// Show the pid of the system's init that a container has
#[derive(Debug, Clone, Args)]
pub struct ContainerInitPidArgs {
    #[command(flatten)]
    pub server: ServerArgs,
    /// The container
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Serve the container API for the whole machine
#[derive(Debug, Clone, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct MachineArgs {
    /// What to do
    #[command(subcommand)]
    pub action: MachineAction,
}

/// What `machine` does.
#[derive(Debug, Clone, Subcommand)]
pub enum MachineAction {
    Serve(MachineServeArgs),
}

/// Answer the methods of ContainerApi and Container until killed
///
/// Containers are cgroups: they stay when the server ends, and the next one finds them. Prints 'listening' when it is ready.
#[derive(Debug, Clone, Args)]
pub struct MachineServeArgs {
    /// Where to listen [default: machine.sock in the --root folder]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The cgroup that is the root container, in every hierarchy; made where it is missing
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    pub cgroup: PathBuf,
}
