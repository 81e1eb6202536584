//! `containerManager`: containers and their processes (gVisor's `runsc/boot/controller.go`).

use super::checkpoint::{RestoreOpts, SaveOpts, Savings};
use super::network::CreateLinksAndRoutesArgs;
use super::procfs::ProcessProcfsDump;
use super::trace::{CreateTraceSessionArgs, SessionConfig};
use super::types::{Empty, GoferMountConf, Json, List, RawJson, SpecJson};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

crate::methods! {
    receiver "containerManager", from "gVisor runsc/boot/controller.go; seeds 001 and 002";
    /// Starts the root container, which was made with the sandbox; returns once its program runs. The argument is
    /// the container's ID.
    StartRoot: String => Empty, errors "`sandbox is not in created state, cannot start root container: state=S`; `starting sandbox: …`", blocks "until the program runs";
    /// Reserves the ID of a further container.
    CreateSubcontainer: CreateArgs => Empty, fds "in: none, or the terminal (a pty replica)", errors "`container \"X\" already exists`; `start arguments must have at most 1 files for TTY`";
    /// Starts a container whose ID was reserved; returns once its program runs.
    StartSubcontainer: StartArgs => Empty, fds "in: stdin, stdout, stderr (unless terminal), overlay filestores, /dev, rootfs upper tar, then rootfs and bind mounts", errors "`start arguments missing spec`, `missing config`, `missing container ID`; `sandbox is not in started state, cannot start subcontainer: state=S`; `start arguments must contain at least N FDs, but only got M`; `trying to start a deleted container \"X\"`; `terminal enabled but no TTY provided…`; what setting it up fails at", blocks "until the program runs";
    /// Kills every process of a container, waits for their end and forgets its ID.
    DestroySubcontainer: String => Empty, errors "`container \"X\" not found`; it is the root container", blocks "until all its processes have ended";
    /// Executes a further process in a container; the result is its pid in the container's pid namespace.
    ExecuteAsync: ExecArgs => i32, fds "in: one for each of GuestFDs (0, 1, 2 … when absent), then optionally the program", errors "`container \"X\" not found`, `not started`, `has stopped`; `failed to load P: …`; `creating fd map: …`; `guest file descriptors must be 0 or greater`; `process must either be started from a file or a filename, not both`", blocks "until the program runs";
    /// Lists the processes of a container (of all containers for an empty ID), by pid in the root container's pid
    /// namespace; null when there are none.
    Processes: String => List<Process>;
    /// Sends a signal to one process, a container, a terminal's foreground process group or a process group.
    Signal: SignalArgs => Empty, errors "`PID (n) must be positive`; `signaling process in container \"X\" PID n: …`; `PID (n) cannot be set when signaling all processes`; `signaling foreground process group in container \"X\" PID n: …`; `PGID must be set when signaling a process group`; `signaling process group n: …`; an unknown mode or signal";
    /// Waits until a container's init has exited; the result is its wait status, which stays readable until the
    /// container is destroyed.
    Wait: String => u32, errors "`container \"X\" not found`, `not started`", blocks "until the init has exited";
    /// Waits for a process that ExecuteAsync started; the result is its wait status.
    WaitPID: WaitPidArgs => u32, errors "`PID (n) must be positive`; `waiting for PID n: …`", blocks "until the process has exited";
    /// Pauses every process of every container; nests with Resume.
    Pause: Empty => Empty, blocks "until no process runs; fails after 5 s";
    /// Undoes one Pause.
    Resume: Empty => Empty, errors "`the sandbox is not paused`";
    /// Resource usage of a container as runc's `events --stats` shows it.
    Event: String => Json<EventOut>, errors "`container \"X\" not found`";
    /// State of a container: 1 created, 2 running, 3 stopped or unknown.
    ContainerRuntimeState: String => RuntimeState;
    /// Saves all containers of the sandbox into files. Then the sandbox ends with exit status 0, unless Resume says that
    /// they go on.
    Checkpoint: SaveOpts => Empty, fds "in: the statefile; with have_pages_file the pages' metadata and the pages", errors "`got N files, wanted M`; a sandbox that is not running; an unknown compression; everything that cannot be saved, by name", blocks "until the image is written";
    /// Makes the root container, which is created and not started, what a statefile says. If that has further
    /// containers, all are restored when the last of them has come with RestoreSubcontainer.
    Restore: RestoreOpts => Empty, fds "in: the statefile; with HavePagesFile the pages' metadata and the pages; with HaveDeviceFile /dev/userfaultfd", errors "`cannot restore a container in state=S`; `at least one file must be passed to Restore`; a damaged image, or one that does not fit; what restoring fails at", blocks "until the programs run; without Background until all memory is there";
    /// Sets up a container whose ID was reserved, to be restored with its sandbox; returns at once unless it is the last
    /// one, which has all of them restored.
    RestoreSubcontainer: StartArgs => Empty, fds "in: as StartSubcontainer", errors "`sandbox is not being restored, cannot restore subcontainer: state=S`; as StartSubcontainer; as Restore", blocks "until the programs run, for the last container";
    /// Waits for the next checkpoint; fails as that does.
    WaitCheckpoint: Empty => Empty, errors "the checkpoint's", blocks "until the next checkpoint is over";
    /// Waits until the sandbox is restored with all its memory; fails as the restore does.
    WaitRestore: Empty => Empty, errors "`sandbox is not being restored, cannot wait for restore: state=S`; the restore's", blocks "until the restore is over";
    /// Saves filesystems of containers, without their processes. The containers stand still until it is captured; with
    /// exit_after_saving the sandbox then ends with status 0.
    FSSave: FsSaveOpts => Empty, fds "in: manifest, multi-tar, pages metadata, pages", errors "`got N files, want 4`; `no checkpointable filesystems`", blocks "until it is written; ends when the caller hangs up";
    /// Waits for the next filesystem checkpoint; fails as that does.
    WaitFSCheckpoint: Empty => Empty, blocks "until the next filesystem checkpoint is over";
    /// Waits until the filesystems of a container are restored; fails as that does.
    WaitFSRestore: WaitFsRestoreArgs => Empty, errors "`filesystem restore is not enabled`; `no filesystems restored for container X`", blocks "until then";
    /// Mounts an erofs image, read-only, at an absolute path of a running container.
    Mount: MountArgs => Empty, fds "in: the image", errors "`container X is deleted`; `container X isn't started`; `failed to find init process`; `absolute path must be provided for destination`; `unsupported filesystem type: T`; `exactly one image file must be provided`";
    /// Connects a socket to a TCP port inside a container, on 127.0.0.1 or else ::1; returns once that connection is made.
    /// Then bytes go both ways until either end closes.
    PortForward: PortForwardOpts => Empty, fds "in: a connected stream socket, which becomes non-blocking", errors "`stream FD is required for port forward`; `failed to get threadgroup from X: …`; `container X not started`; `creating netstack port forward connection: …`", blocks "until that connection is made, 10 s at most";
    /// What a restore has saved, compared with a start.
    GetSavings: Empty => Savings;
    /// What proc(5) shows of every process of every container, by pid; null when there is none. A process that ends
    /// while it is looked at, or that no longer fits into a message, is left out, and the log says so.
    ProcfsDump: Empty => Json<List<ProcessProcfsDump>>;
    /// Begins a trace session: from now on its points are told to its sinks.
    CreateTraceSession: Json<CreateTraceSessionArgs> => Empty, fds "in: for each sink that needs one (a connected SOCK_SEQPACKET socket for remote, a file open for writing for file), in their order; or one for every sink";
    /// Ends a trace session, when its sinks have been told what has happened until then. The argument is its name.
    DeleteTraceSession: String => Empty;
    /// The trace sessions there are, with their sinks and what those did not get; null when there is none.
    ListTraceSessions: Empty => Json<List<SessionConfig>>;
    /// Keeps what Network.CreateLinksAndRoutes takes, until the root container is started or restored; later it is
    /// ignored with a warning.
    SetNetworkArgs: Option<CreateLinksAndRoutesArgs> => Empty, fds "in: as Network.CreateLinksAndRoutes", errors "`cannot set nil networkArgs`; `insufficient FDs provided for link \"L\"`; what Network.CreateLinksAndRoutes says of the number of descriptors";
    /// The sandbox's interfaces as they were given, empty if none were.
    GetNetworkConfig: Empty => CreateLinksAndRoutesArgs;
}

/// State of a container as [`ContainerRuntimeState`] answers it; a number on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "i32", from = "i32")]
pub enum RuntimeState {
    /// 0, and every number without a meaning.
    #[default]
    Invalid,
    /// 1: created, not started.
    Creating,
    /// 2: running (or paused).
    Running,
    /// 3: stopped, or unknown.
    Stopped,
}

impl From<RuntimeState> for i32 {
    fn from(state: RuntimeState) -> Self {
        state as i32
    }
}

impl From<i32> for RuntimeState {
    fn from(n: i32) -> Self {
        match n {
            1 => Self::Creating,
            2 => Self::Running,
            3 => Self::Stopped,
            _ => Self::Invalid,
        }
    }
}

/// Argument of [`CreateSubcontainer`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateArgs {
    /// The new container's ID.
    #[serde(rename = "CID")]
    pub cid: String,
}

/// Argument of [`StartSubcontainer`], in every spelling since 2022: the first three fields are all that 2022 had;
/// `NumOverlayFilestoreFDs` and `OverlayMediums` are August 2024's names, the others March 2025's and later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartArgs {
    /// The container's OCI spec.
    #[serde(rename = "Spec")]
    pub spec: SpecJson,
    /// runsc's configuration; must be there, but airlock uses nothing of it.
    #[serde(rename = "Conf")]
    pub conf: RawJson,
    /// The container's ID.
    #[serde(rename = "CID")]
    pub cid: String,
    /// Number of overlay filestore descriptors.
    #[serde(rename = "NumGoferFilestoreFDs", alias = "NumOverlayFilestoreFDs")]
    pub num_gofer_filestore_fds: i32,
    /// A descriptor for `/dev` is among them.
    #[serde(rename = "IsDevIoFilePresent")]
    pub is_dev_io_file_present: bool,
    /// How the gofer mounts were made: the rootfs, then the bind mounts in the order of the spec.
    #[serde(rename = "GoferMountConfs", alias = "OverlayMediums")]
    pub gofer_mount_confs: Vec<GoferMountConf>,
    /// A tar archive for the rootfs' upper layer is among the descriptors.
    #[serde(rename = "IsRootfsUpperTarFilePresent")]
    pub is_rootfs_upper_tar_file_present: bool,
}

/// Which of the descriptors of a [`StartSubcontainer`] call is what, as indices into them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartLayout {
    /// stdin, stdout and stderr; empty when the container has a terminal.
    pub stdio: Range<usize>,
    /// Overlay filestores.
    pub filestores: Range<usize>,
    /// The one for `/dev`.
    pub dev: Option<usize>,
    /// The rootfs' upper tar archive.
    pub rootfs_upper_tar: Option<usize>,
    /// The rootfs, then the bind mounts; at least one.
    pub gofer: Range<usize>,
}

impl StartArgs {
    /// Assigns `count` descriptors to their purposes; `terminal` is the spec's `process.terminal`.
    ///
    /// Fails with gVisor's text when there are too few.
    pub fn layout(&self, terminal: bool, count: usize) -> Result<StartLayout> {
        let filestores = usize::try_from(self.num_gofer_filestore_fds).map_err(|_| {
            Error::invalid_argument(format!(
                "start arguments name {} filestores; the number must be 0 or greater",
                self.num_gofer_filestore_fds
            ))
        })?;
        let stdio = if terminal { 0 } else { 3 };
        let single =
            usize::from(self.is_dev_io_file_present) + usize::from(self.is_rootfs_upper_tar_file_present);
        let least = filestores.saturating_add(stdio + single + 1);
        if count < least {
            return Err(Error::invalid_argument(format!(
                "start arguments must contain at least {least} FDs, but only got {count}"
            )));
        }
        let mut next = stdio + filestores;
        let mut one = |present: bool| {
            present.then(|| {
                next += 1;
                next - 1
            })
        };
        let dev = one(self.is_dev_io_file_present);
        let rootfs_upper_tar = one(self.is_rootfs_upper_tar_file_present);
        Ok(StartLayout {
            stdio: 0..stdio,
            filestores: stdio..stdio + filestores,
            dev,
            rootfs_upper_tar,
            gofer: next..count,
        })
    }
}

/// Argument of [`ExecuteAsync`] and [`Proc.Exec`](super::proc::Exec) (gVisor's `control.ExecArgs`).
///
/// gVisor's further keys are pointers to kernel objects that only its server fills in; they are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecArgs {
    /// Path of the program; empty to look up `argv[0]` in `PATH`, or to execute the last descriptor.
    pub filename: String,
    /// Arguments, the program's name first.
    pub argv: Vec<String>,
    /// Environment, `NAME=value`.
    pub envv: Vec<String>,
    /// Working directory; empty for `/`.
    #[serde(rename = "wd")]
    pub working_directory: String,
    /// User id in the container.
    #[serde(rename = "KUID")]
    pub kuid: u32,
    /// Group id in the container.
    #[serde(rename = "KGID")]
    pub kgid: u32,
    /// Supplementary group ids.
    #[serde(rename = "ExtraKGIDs")]
    pub extra_kgids: Vec<u32>,
    /// Sets `PR_SET_NO_NEW_PRIVS`; runsc of 2022 does not send it.
    #[serde(rename = "NoNewPrivileges")]
    pub no_new_privileges: bool,
    /// Capability sets; `None` for no capabilities.
    #[serde(rename = "Capabilities")]
    pub capabilities: Option<TaskCapabilities>,
    /// The first descriptors are a pty replica, which becomes the controlling terminal.
    #[serde(rename = "StdioIsPty")]
    pub stdio_is_pty: bool,
    /// gVisor may make a terminal from any descriptor; airlock's always can.
    #[serde(rename = "SupportTTYs")]
    pub support_ttys: bool,
    /// The number in the process of each descriptor. Absent or null (2022): 0, 1, 2 and so on.
    #[serde(rename = "GuestFDs")]
    pub guest_fds: Option<Vec<i32>>,
    /// The container's ID.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
}

/// Which of the descriptors of an exec call is what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecLayout {
    /// For each descriptor in turn, its number in the new process.
    pub guest: Vec<i32>,
    /// Index of the program's descriptor.
    pub program: Option<usize>,
}

impl ExecArgs {
    /// Assigns `count` descriptors to their purposes.
    ///
    /// With `GuestFDs` there may be one descriptor more than it names: the program. Fails with gVisor's texts when
    /// the numbers do not match, are negative, or a program is given both as a descriptor and as `filename`.
    pub fn layout(&self, count: usize) -> Result<ExecLayout> {
        let Some(guest) = &self.guest_fds else {
            let guest = (0..).take(count).collect();
            return Ok(ExecLayout { guest, program: None });
        };
        let program = match count.checked_sub(guest.len()) {
            Some(0) => None,
            Some(1) if self.filename.is_empty() => Some(count - 1),
            Some(1) => {
                return Err(Error::invalid_argument(
                    "process must either be started from a file or a filename, not both",
                ));
            }
            _ => {
                return Err(Error::invalid_argument(
                    "creating fd map: length of payload files does not match length of file descriptor array",
                ));
            }
        };
        if guest.iter().any(|fd| *fd < 0) {
            return Err(Error::invalid_argument("guest file descriptors must be 0 or greater"));
        }
        Ok(ExecLayout { guest: guest.clone(), program })
    }
}

/// Capability sets as bit masks, bit n for capability number n of capabilities(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskCapabilities {
    /// Permitted set.
    #[serde(rename = "PermittedCaps")]
    pub permitted: u64,
    /// Inheritable set.
    #[serde(rename = "InheritableCaps")]
    pub inheritable: u64,
    /// Effective set.
    #[serde(rename = "EffectiveCaps")]
    pub effective: u64,
    /// Bounding set.
    #[serde(rename = "BoundingCaps")]
    pub bounding: u64,
    /// Ambient set.
    #[serde(rename = "AmbientCaps")]
    pub ambient: u64,
}

/// Argument of [`Signal`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalArgs {
    /// The container's ID.
    #[serde(rename = "CID")]
    pub cid: String,
    /// Signal number, 0 to 64; 0 only checks that the target exists.
    #[serde(rename = "Signo")]
    pub signo: i32,
    /// A pid in the root container's pid namespace, or one that ExecuteAsync answered; what it means depends on
    /// the mode, 0 stands for the container's init.
    #[serde(rename = "PID")]
    pub pid: i32,
    /// The delivery mode's number; see [`SignalArgs::delivery`].
    #[serde(rename = "Mode")]
    pub mode: i32,
}

/// To whom a signal is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignalMode {
    /// 0: one process.
    Process,
    /// 1: all processes of the container; `PID` must be 0.
    AllProcesses,
    /// 2: the foreground process group of the terminal of `PID`.
    ForegroundProcessGroup,
    /// 3: the process group `PID`.
    ProcessGroup,
}

impl SignalArgs {
    /// The delivery mode; an error for a number without a meaning (where gVisor panics).
    pub fn delivery(&self) -> Result<SignalMode> {
        match self.mode {
            0 => Ok(SignalMode::Process),
            1 => Ok(SignalMode::AllProcesses),
            2 => Ok(SignalMode::ForegroundProcessGroup),
            3 => Ok(SignalMode::ProcessGroup),
            n => Err(Error::invalid_argument(format!(
                "unknown signal delivery mode {n}: use 0 (process), 1 (all), 2 (foreground process group) or 3 (process group)"
            ))),
        }
    }
}

/// Argument of [`WaitPID`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitPidArgs {
    /// The pid in the container's pid namespace, as [`ExecuteAsync`] answered it.
    #[serde(rename = "PID")]
    pub pid: i32,
    /// The container's ID.
    #[serde(rename = "CID")]
    pub cid: String,
}

/// Argument of [`FSSave`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FsSaveOpts {
    /// What is saved; none: the upper layers of all root filesystems.
    pub paths: Vec<FsPath>,
    /// The containers do not go on.
    pub exit_after_saving: bool,
    /// gVisor's; refused.
    pub use_checkpoint_gofer: bool,
}

/// A filesystem of [`FSSave`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FsPath {
    /// Name or ID of the container; empty for all.
    pub container_name: String,
    /// Where it is mounted; `all-tmpfs` for every tmpfs of the configuration.
    pub path: String,
}

/// Argument of [`WaitFSRestore`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitFsRestoreArgs {
    /// The container's ID.
    #[serde(rename = "CID")]
    pub cid: String,
}

/// Argument of [`Mount`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct MountArgs {
    /// The container's ID.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// What is mounted, for messages.
    pub source: String,
    /// Where: an absolute path in the container.
    pub destination: String,
    /// `erofs`.
    pub fs_type: String,
}

/// Argument of [`PortForward`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortForwardOpts {
    /// The container's ID.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// The port, 1 to 65535.
    #[serde(rename = "Port")]
    pub port: u16,
    /// End the forwarding when the caller closes the connection on which it called. airlock's own field; gVisor's callers
    /// close theirs at once.
    #[serde(rename = "EndsWithConnection")]
    pub ends_with_connection: bool,
}

/// One process in the result of [`Processes`] (gVisor's `control.Process`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Real user id.
    pub uid: u32,
    /// Pid in the root container's pid namespace.
    pub pid: i32,
    /// Parent's pid; 0 when it is not in that namespace.
    pub ppid: i32,
    /// Process group id; runsc of 2022 has none.
    pub pgid: i32,
    /// Thread ids.
    pub threads: List<i32>,
    /// Processor use in percent, 0 to 99.
    pub c: i32,
    /// `?` or `pts/N`.
    pub tty: String,
    /// Start time: `15:04` today, `Jan02` this year, else `2006`.
    pub stime: String,
    /// Processor time as a Go duration (`1.23s`).
    pub time: String,
    /// Command name.
    pub cmd: String,
}

/// Result of [`Event`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventOut {
    /// The event as the command line prints it.
    pub event: StatsEvent,
    /// Processor time of every container in nanoseconds, by container ID.
    #[serde(rename = "containerUsage")]
    pub container_usage: BTreeMap<String, u64>,
}

/// A `stats` event in runc's form.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatsEvent {
    /// Always `stats`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The container's ID.
    pub id: String,
    /// The figures.
    pub data: Stats,
}

/// Resource usage of a container. Memory in bytes, time in nanoseconds; a zero is left out where gVisor leaves it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Processor.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Number of processes.
    pub pids: Pids,
    /// Interfaces of the sandbox's network namespace; runsc of 2022 has none.
    pub network_interfaces: List<NetworkInterface>,
}

/// Processor usage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Time used.
    pub usage: CpuUsage,
}

/// Processor time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    /// In the kernel.
    #[serde(skip_serializing_if = "is_zero")]
    pub kernel: u64,
    /// In user mode.
    #[serde(skip_serializing_if = "is_zero")]
    pub user: u64,
    /// Both.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    /// For each processor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
}

/// Memory usage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Page cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// All memory.
    pub usage: MemoryEntry,
    /// Swap.
    pub swap: MemoryEntry,
    /// Kernel memory.
    pub kernel: MemoryEntry,
    /// Kernel memory for TCP.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// The controller's raw figures.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
}

/// One kind of memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryEntry {
    /// The limit; 0 for none.
    pub limit: u64,
    /// Now in use.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// Highest use so far.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Number of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// The limit; 0 for none.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// Counters of a network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct NetworkInterface {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
