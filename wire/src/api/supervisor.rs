//! `Supervisor`: domains and the named processes in them (AWS Lambda's `supervisor/model/model.go`, seed 000).
//!
//! JSON is what Go's `encoding/json` makes of that model: the same names, the same omissions, `null` for its nil
//! pointers. What airlock adds is left out where it is not used. In the JSON dialect an error's text is a
//! [`SupervisorError`] as JSON.

mod deadline;
mod error;
mod event;
mod metrics;
mod mount;

pub use deadline::Deadline;
pub use error::{ErrorKind, SupervisorError};
pub use event::{Cause, Event, EventData, EventType};
pub use metrics::{CycleDeltaMetrics, NetworkInterfaceMetrics};
pub use mount::{BindMount, DriveMount, Mount};

use super::boot::ContainerFds;
use super::types::{Empty, GoferMountConf, Json, List, SpecJson};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

crate::methods! {
    receiver "Supervisor", from "AWS Lambda supervisor/model/model.go; seed 000", errors_as SupervisorError;
    /// Gives a domain what the supervisor's configuration file would: an OCI spec with what its parent opened for it. Nothing
    /// of it runs yet. A domain that has stopped can be defined again.
    Define: DefineArgs => Empty, fds "in: those that `fds` names", errors "`invalid_state`: the domain exists; `serde`: the spec cannot be read; `failure`: the spec is invalid, or descriptors do not fit `fds`", from "airlock";
    /// Completes or changes the configuration of a domain that does not run. One that nobody has defined, or that has stopped,
    /// begins with this; then a mount must have the destination `/`.
    Configure: Json<ConfigureRequest> => Empty, fds "in: none or one for each of `mounts` (a detached mount, or the image file of a drive), in order; then one for each of `log_topics`", errors "`invalid_state`: the domain runs; `failure`: what is wrong with which field, or the number of descriptors";
    /// Starts a domain: its init, which does nothing, then the start hooks in the parent domain, one after the other.
    Start: StartRequest => Empty, errors "`no_such_entity`; `invalid_state`: it is not configured, or was started already; `failure`: what setting it up fails at, or which hook failed and how", blocks "until the domain is up and its hooks have ended";
    /// Ends every process of a domain, however many it makes meanwhile and also when it is frozen, and tells what the last
    /// cycle has used.
    Stop: StopRequest => StopResponse, errors "`no_such_entity`; `invalid_state`: it does not run; `failure`: the deadline is in the past, or passes first", blocks "until nothing runs in the domain, or the deadline";
    /// Freezes all processes of a domain, and tells what they have used since they were started or thawed.
    Freeze: FreezeRequest => FreezeResponse, errors "`no_such_entity`; `invalid_state`: it does not run, or is frozen; `failure`: a process does not stop in time", blocks "until no process runs";
    /// Thaws a frozen domain, with the throttled profile if it has profiles.
    Thaw: ThawRequest => Empty, errors "`no_such_entity`; `invalid_state`: it is not frozen";
    /// Ends the supervisor, which is the sandbox, with everything in it.
    Exit: Empty => Empty;
    /// Executes a named process in a domain, in a session and process group of its own.
    Exec: Json<ExecRequest> => Empty, fds "in: one for `stdout`, one for `stderr`, each if it is set; the rest are extra files, numbers 3 and up", errors "`no_such_entity`: the domain; `invalid_state`: it does not run, is frozen, or has a process of that name; `failure`: too few descriptors, or the program cannot be executed", blocks "until the program runs";
    /// Sends SIGTERM to the process group of a named process.
    Terminate: TerminateRequest => Empty, errors "`no_such_entity`: the domain or the process";
    /// Sends SIGKILL to the process group of a named process and waits for the end of that process. One that has ended already
    /// is a success.
    Kill: KillRequest => Empty, errors "`no_such_entity`: the domain or the process; `failure`: the deadline is in the past, or passes first", blocks "until the process has ended, or the deadline";
    /// Has events told, one JSON object a line ([`Event`]), from now on until the reader hangs up. An empty domain stands for
    /// all domains.
    Events: EventsRequest => Empty, fds "in: none, or one open for writing (a pipe or a stream socket); out: without one, the read end of a pipe", errors "`no_such_entity`: the domain; `failure`: more than one descriptor, one that is not open for writing, or too many readers";
    /// Answers.
    Ping: Empty => Empty;
    /// Describes every domain, by name.
    Domains: Empty => Vec<DomainInfo>, from "airlock";
}

/// Argument of [`Define`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DefineArgs {
    /// The domain's name.
    pub domain: String,
    /// An OCI spec: the domain's root, mounts, namespaces with their mappings, limits. Its `process` names the user that
    /// processes run as, their limits and capabilities; its program is not executed.
    pub spec: SpecJson,
    /// The bundle directory, as text (never opened).
    pub bundle: String,
    /// What the descriptors of this call are; `stdio`, `exec`, `tty` and `pass` stay empty.
    pub fds: ContainerFds,
    /// How the gofer mounts were made; `[0]` is the rootfs.
    pub gofer_mount_confs: Vec<GoferMountConf>,
}

/// Argument of [`Start`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartRequest {
    /// The domain's name.
    pub domain: String,
}

/// Argument of [`Configure`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigureRequest {
    /// The domain's name.
    pub domain: String,
    /// Mounts, behind those that it has, in order.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub mounts: List<Mount>,
    /// Capabilities of its processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Seccomp filters of its processes: names of built-in ones, or OCI seccomp objects as JSON text. See
    /// `docs/SUPERVISOR.md`.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub seccomp_filters: List<String>,
    /// Limits that it can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_profiles: Option<CgroupProfiles>,
    /// Which of them holds from its start on.
    #[serde(skip_serializing_if = "ProfileName::is_none")]
    pub start_profile: ProfileName,
    /// Who its processes run as, in its user namespace. Without it, whom the spec's `process.user` names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec_user: Option<ExecUser>,
    /// Programs that run in the parent domain when it is started, one after the other.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub additional_start_hooks: List<Hook>,
    /// airlock's own: topics of managed logging, for each of which a descriptor comes with the call.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub log_topics: List<Topic>,
}

/// Sets of capabilities by name, with or without `CAP_`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Ambient.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub ambient: List<String>,
    /// Bounding.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub bounding: List<String>,
    /// Effective.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub effective: List<String>,
    /// Inheritable.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub inheritable: List<String>,
    /// Permitted.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub permitted: List<String>,
}

/// Limits by profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupProfiles {
    /// After every thaw.
    pub throttled: CgroupProfile,
    /// While all of the machine's share is wanted.
    pub unthrottled: CgroupProfile,
}

/// Limits of a domain's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupProfile {
    /// Processors, as 0.5 for half of one; 0 for no limit.
    pub cpu_limit: f64,
    /// Memory in bytes; 0 for no limit.
    pub memory_limit_bytes: u64,
}

/// The name of a profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileName {
    /// None: limits stay as the domain's cgroup has them.
    #[default]
    #[serde(rename = "")]
    None,
    /// [`CgroupProfiles::throttled`].
    Throttled,
    /// [`CgroupProfiles::unthrottled`].
    Unthrottled,
}

impl ProfileName {
    /// True for [`ProfileName::None`].
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// A user of the domain's user namespace; what is absent stays as the domain's definition says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecUser {
    /// User id.
    pub uid: Option<u32>,
    /// Group id.
    pub gid: Option<u32>,
}

/// A program to run in the parent domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Its name, unique in the domain; errors name it.
    pub name: String,
    /// The program in the parent domain's mount namespace.
    pub path: String,
    /// Arguments behind the program's name.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub args: List<String>,
    /// Its environment; without it, none.
    #[serde(rename = "envs")]
    pub env: Option<BTreeMap<String, String>>,
}

/// Argument of [`Exec`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    /// Name of the process, unique in the domain for ever.
    pub name: String,
    /// The domain's name.
    pub domain: String,
    /// The program, inside the domain.
    pub path: String,
    /// Arguments behind the program's name.
    #[serde(skip_serializing_if = "List::is_empty")]
    pub args: List<String>,
    /// Working directory; without it, the domain's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment; without it, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Where its output goes if not to descriptors of this call.
    #[serde(rename = "log_config")]
    pub logging: Logging,
    /// airlock's own: a descriptor for standard output is the first one of this call.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stdout: bool,
    /// airlock's own: a descriptor for standard error is the next one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stderr: bool,
}

/// Where a process' output goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Logging {
    /// Through the supervisor.
    pub managed: ManagedLogging,
}

/// Output that the supervisor takes in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagedLogging {
    /// Which of the domain's log descriptors it goes to.
    pub topic: Topic,
    /// How the process may write it.
    pub formats: List<Format>,
}

/// A stream of logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// None.
    #[default]
    #[serde(rename = "")]
    None,
    /// Of the runtime.
    Runtime,
    /// Of an extension that runs beside the runtime.
    RuntimeExtension,
}

/// A way to write logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Lines on standard output and standard error.
    Line,
    /// Framed messages on the descriptor that the environment variable `_LAMBDA_TELEMETRY_LOG_FD` names.
    Message,
}

/// Argument of [`Terminate`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TerminateRequest {
    /// Name of the process.
    pub name: String,
    /// The domain's name.
    pub domain: String,
}

/// Argument of [`Kill`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KillRequest {
    /// Name of the process.
    pub name: String,
    /// The domain's name.
    pub domain: String,
    /// Until when to wait; must be in the future.
    pub deadline: Deadline,
}

/// Argument of [`Stop`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopRequest {
    /// The domain's name.
    pub domain: String,
    /// Until when to wait; must be in the future.
    pub deadline: Deadline,
}

/// Result of [`Stop`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopResponse {
    /// What was used since the domain was started or thawed.
    pub cycle_delta_metrics: CycleDeltaMetrics,
}

/// Argument of [`Freeze`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FreezeRequest {
    /// The domain's name.
    pub domain: String,
}

/// Result of [`Freeze`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FreezeResponse {
    /// What was used since the domain was started or thawed.
    pub cycle_delta_metrics: CycleDeltaMetrics,
}

/// Argument of [`Thaw`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThawRequest {
    /// The domain's name.
    pub domain: String,
}

/// Argument of [`Events`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventsRequest {
    /// The domain's name; empty for all of them.
    pub domain: String,
}

/// A domain as [`Domains`] describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DomainInfo {
    /// Its name.
    pub domain: String,
    /// `configured`, `started`, `frozen`, `thawed` or `stopped`.
    pub state: String,
    /// The ID of its container in this sandbox; empty before it was started.
    pub cid: String,
    /// Its named processes, by name, also those that have ended.
    pub processes: Vec<ProcessInfo>,
    /// Records of managed logging that were lost because their reader was slow, by topic.
    pub logs_lost: BTreeMap<Topic, u64>,
}

/// A named process of a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    /// Its name.
    pub name: String,
    /// Pid in the domain's pid namespace; 0 when it could not be executed.
    pub pid: i32,
    /// Wait status, once it has ended.
    pub status: Option<u32>,
}

#[cfg(test)]
mod tests;
