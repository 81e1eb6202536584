//! `Airlock`: what gVisor's interface has no method for. airlock's own command line uses it.

use super::boot::ContainerFds;
use super::checkpoint::{CheckpointArgs, Progress, Report, RestoreArgs};
use super::profile::{ContainerProfileArgs, Sampled};
use super::types::{Empty, GoferMountConf, Json, SpecJson};
use crate::method::MethodInfo;
use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Airlock", from "airlock";
    /// Makes filesystems of a container that is created and not started what an image of containerManager.FSSave says. Answers
    /// what could not be made the same.
    RestoreFilesystems: ContainerId => Vec<String>, fds "in: manifest, multi-tar", errors "`no filesystems restored for container X: …`", blocks "until that is done";
    /// Lets a sandbox that waits in `BootReply::Held` go on: the parent's hooks are done.
    Continue: Empty => Empty, errors "the sandbox is not held (then there is no such method)";
    /// Creates a further container up to the point where only its program is missing (OCI `create`).
    PrepareSubcontainer: PrepareArgs => Prepared, fds "in: those that `fds` names; out: the console's master, then the seccomp listener, each if there is one", errors "`sandbox is not in started state, cannot create subcontainer: state=S`; `container \"X\" already exists`; an invalid spec; descriptors that do not fit `fds`; what setting it up fails at", blocks "until the container waits for its start";
    /// Starts a created container, root or other (OCI `start`).
    StartContainer: ContainerId => Empty, errors "`container \"X\" not found`; `cannot start container \"X\": it is S`; the program cannot be executed", blocks "until the program runs";
    /// Waits until a process exits; the result is its wait status. If the caller hangs up first, the process is
    /// killed.
    Supervise: SuperviseArgs => u32, errors "`container \"X\" not found`; `no such process with PID n`", blocks "until the process ends";
    /// Executes a further process in a container, as the OCI `process` object describes it. If the caller hangs up
    /// before the process has ended, it is killed.
    Exec: ExecRequest => ExecReply, fds "in: those that `fds` names; out: the console's master, then the seccomp listener, each if there is one", errors "`container \"X\" not found`, `not started`, `has stopped`; an invalid process; the program cannot be executed", blocks "until the program runs";
    /// Describes a container.
    Info: ContainerId => ContainerInfo, errors "`container \"X\" not found`";
    /// Describes every container, the root container first.
    List: Empty => Vec<ContainerInfo>;
    /// The sandbox's generation ID: random, and another one in each sandbox that was restored or forked from the same
    /// image. Its containers find it in `/dev/airlock-generation`.
    Generation: Empty => String;
    /// Lists every method that this sandbox answers.
    Methods: Empty => Json<Vec<MethodInfo>>;
    /// Names the mounts that the containers of this pod share (mount hints of type tmpfs).
    SharedMounts: Empty => Vec<String>, fds "out: a detached mount for each name";
    /// Sends a signal that a proxy process received to the process that it stands for.
    SignalForward: SignalForwardArgs => Empty, errors "`container \"X\" not found`; `no such process with PID n`";
    /// Freezes one container (OCI `pause`); blocks until none of its processes runs.
    PauseContainer: ContainerId => Empty, errors "`container \"X\" not found`; the container does not run, or is paused; a process does not stop in time", blocks "until no process runs, 5 s at most";
    /// Thaws one container (OCI `resume`).
    ResumeContainer: ContainerId => Empty, errors "`container \"X\" not found`; the container is not paused";
    /// Where the processes of a container, and those that they make meanwhile, spend processor time, in the kernel too.
    ProfileContainer: ContainerProfileArgs => Sampled, fds "in: the file for a gzipped pprof profile, and if wanted one for a flame graph (SVG)", errors "`container \"X\" not found`, `container \"X\" not started`; no file came; the kernel does not let samples be taken; a file cannot be written", blocks "for `duration`";
    /// Saves all containers of the sandbox, or finds out what could not be saved; containerManager.Checkpoint with
    /// airlock's own options and a report.
    Checkpoint: CheckpointArgs => Report, fds "in: as containerManager.Checkpoint; with `parent` the parent's statefile, pages' metadata and pages; with `commit` a stream socket", errors "as containerManager.Checkpoint; with `parent`, an image that does not fit", blocks "until the image is written";
    /// containerManager.Restore with airlock's own options and a report.
    Restore: RestoreArgs => Report, fds "in: as containerManager.Restore; then for each parent image its pages' metadata and its pages", errors "as containerManager.Restore; parent images that do not fit", blocks "until the programs run";
    /// Has a created container restored together with its sandbox, whose restore has begun; returns at once unless it is
    /// the last one, which has all of them restored.
    RestoreContainer: ContainerId => Report, errors "`container \"X\" not found`; the sandbox is not being restored; as containerManager.Restore", blocks "until the programs run, for the last container";
    /// Tells how far a checkpoint or restore is that another connection has asked for.
    CheckpointProgress: Empty => Progress;
}

/// Names a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerId {
    /// The container's ID.
    pub cid: String,
}

/// Argument of [`PrepareSubcontainer`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrepareArgs {
    /// The new container's ID.
    pub cid: String,
    /// Its spec.
    pub spec: SpecJson,
    /// The bundle directory, as text (for `state`, never opened).
    pub bundle: String,
    /// What the descriptors of this call are.
    pub fds: ContainerFds,
    /// How the gofer mounts were made; `[0]` is the rootfs.
    pub gofer_mount_confs: Vec<GoferMountConf>,
}

/// Result of [`PrepareSubcontainer`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prepared {
    /// The init's pid in the sandbox's pid namespace.
    pub init_pid: i32,
    /// A pty master is the first descriptor of the reply.
    pub has_console: bool,
    /// A seccomp listener is the last descriptor of the reply.
    pub has_seccomp_listener: bool,
}

/// Argument of [`Supervise`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SuperviseArgs {
    /// The container's ID.
    pub cid: String,
    /// Pid in the container's pid namespace as [`Exec`] answered it; 0 for the container's init.
    pub pid: i32,
}

/// Argument of [`Exec`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    /// The container's ID.
    pub cid: String,
    /// An OCI `process` object.
    pub process: SpecJson,
    /// What the descriptors of this call are: `stdio`, `pass`, `exec` and `tty`; the others stay empty.
    pub fds: ContainerFds,
}

/// Result of [`Exec`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecReply {
    /// Pid in the container's pid namespace.
    pub pid: i32,
    /// Pid in the sandbox's pid namespace.
    pub sandbox_pid: i32,
    /// A pty master is the reply's first descriptor.
    pub has_console: bool,
    /// A seccomp listener is the reply's last descriptor. The process may wait for its answer before its program is
    /// executed.
    pub has_seccomp_listener: bool,
}

/// A container as [`Info`] and [`List`] describe it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerInfo {
    /// The container's ID.
    pub cid: String,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// The init's pid in the sandbox's pid namespace; 0 before there is one.
    pub init_pid: i32,
    /// Wait status of the init, once it has exited.
    pub exit_status: Option<u32>,
    /// Why it ended: `exited`, `signal N`, `oom`, `checkpointed`, or what failed; empty before.
    pub reason: String,
    /// Who sent the signal that it ended by, if that was asked of the sandbox.
    pub killed_by: Option<Killer>,
    /// When it was created, RFC 3339; empty before.
    pub created: String,
    /// When its program started, RFC 3339; empty before.
    pub started: String,
    /// When it ended, RFC 3339; empty before.
    pub finished: String,
}

/// Who had a container killed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Killer {
    /// User id of the client, as the sandbox's user namespace has it.
    pub uid: u32,
    /// Pid of the client in the sandbox's pid namespace; 0 for a client outside of it, of whose pid the kernel tells the sandbox
    /// nothing: not by `SO_PEERCRED`, nor by a pidfd of it (`SO_PEERPIDFD`).
    pub pid: i32,
    /// What it asked by: a method, or `kill(2)` for a signal to the process that stands for the container.
    pub by: String,
    /// The signal.
    pub signal: i32,
}

/// Argument of [`SignalForward`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalForwardArgs {
    /// The container's ID.
    pub cid: String,
    /// Pid in the container's pid namespace; 0 for the container's init.
    pub pid: i32,
    /// Signal number, 1 to 64.
    pub signo: i32,
}
