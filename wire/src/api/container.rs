//! `Container`: what lmctfy does with one container (seed 003, class `Container`). [`api`] finds and makes them.
//!
//! A call names its container: an absolute name (`/sys/sub`), or one relative to the container that the caller is in
//! (`sub`, `.`, `../sibling`). Results have absolute names. What containers are is in `docs/CONTAINERS.md`.

pub mod api;
pub mod spec;
pub mod stats;
pub mod status;
pub mod text;

use super::types::{Empty, Json};
use serde::{Deserialize, Serialize};
use spec::{ContainerSpec, EventSpec, RunSpec};
use stats::ContainerStats;

crate::methods! {
    receiver "Container", from "lmctfy's include/lmctfy.h (seed 003)", errors_as super::container::status::Coded;
    /// Changes what a container isolates. UPDATE_DIFF changes what the specification has, UPDATE_REPLACE makes the container what it says; the set of isolated resource types stays the same.
    Update: Json<UpdateArgs> => Empty, errors "`NOT_FOUND`; `INVALID_ARGUMENT`: a field, or a resource type more or less than it isolates; `UNIMPLEMENTED`: a field that lmctfy or the kernel does not have; `FAILED_PRECONDITION`: the root, or what the kernel refuses";
    /// Moves threads into a container; 0 is the calling process.
    Enter: EnterArgs => Empty, errors "`NOT_FOUND`: the container, or a thread; some of the threads may have been moved then. `UNIMPLEMENTED`: a thread that is no process, on cgroup v2; a virtual host";
    /// Runs a program in a container, in a virtual host's namespaces if it is one; the server keeps its status for Wait.
    Run: Json<RunArgs> => Pid, fds "in: INHERIT: stdin, stdout and stderr; DETACHED: none; out: a pidfd", errors "`NOT_FOUND`; `INVALID_ARGUMENT`: no command, no absolute path, or descriptors that the policy does not take; `FAILED_PRECONDITION`: the program cannot be executed, or a virtual host is paused or its init has ended; `UNIMPLEMENTED`: a console, an AppArmor profile", blocks "until the program runs";
    /// Waits until a program that Run started has ended, and forgets it; the result is its wait status.
    Wait: WaitArgs => u32, errors "`NOT_FOUND`: Run did not start it, or its status was taken", blocks "until it has ended", from "airlock: `processes MUST be reaped by the caller` of seed 003, whose caller is the parent";
    /// Moves the calling process into a container, so that it can execute a program there. lmctfy's Exec replaces the caller's image, which only the caller can: the client library does it when this has succeeded.
    Exec: ContainerName => Empty, errors "`NOT_FOUND`; `FAILED_PRECONDITION`: the server cannot see the caller's process; `UNIMPLEMENTED`: a virtual host";
    /// The specification of a container: what Create and Update have set.
    Spec: ContainerName => Json<ContainerSpec>, errors "`NOT_FOUND`";
    /// Names of the containers in a container, sorted.
    ListSubcontainers: ListArgs => Vec<String>, errors "`NOT_FOUND`";
    /// Ids of the threads in a container, ascending.
    ListThreads: ListArgs => Vec<i32>, errors "`NOT_FOUND`";
    /// Ids of the processes in a container, ascending. On cgroup v1 also those of which only a visitor thread is there.
    ListProcesses: ListArgs => Vec<i32>, errors "`NOT_FOUND`";
    /// Stops all threads in a container and below.
    Pause: ContainerName => Empty, errors "`NOT_FOUND`; `FAILED_PRECONDITION`: the root; `INTERNAL`: a process does not stop", blocks "until none runs, 5 s at most";
    /// Lets all threads in a container and below go on.
    Resume: ContainerName => Empty, errors "`NOT_FOUND`; `FAILED_PRECONDITION`: the root";
    /// What a container uses, of the resources that it isolates.
    Stats: StatsArgs => Json<ContainerStats>, errors "`NOT_FOUND`";
    /// Has a line of JSON (a `Notification`) written to a descriptor each time that an event happens, and a last one when the container is destroyed. The result is the notification's id, unique in this server. A reader that is slow loses records; how many is in the next one.
    RegisterNotification: Json<RegisterArgs> => u64, fds "in: where to write (a pipe, a socket or a file)", errors "`NOT_FOUND`; `INVALID_ARGUMENT`: not exactly one event or descriptor; `FAILED_PRECONDITION`: the container does not isolate memory";
    /// Ends a notification; no record is written after that.
    UnregisterNotification: UnregisterArgs => Empty, errors "`NOT_FOUND`: the container has no such notification";
    /// Kills all processes in a container and below, then visitor threads.
    KillAll: ContainerName => Empty, errors "`NOT_FOUND`; `FAILED_PRECONDITION`: the root; `UNAVAILABLE`: a process does not end", blocks "until they have ended, 10 s at most";
    /// The pid of a virtual host's init; of other containers the system's, inside of a sandbox the root container's.
    GetInitPid: ContainerName => i32, errors "`NOT_FOUND`; `FAILED_PRECONDITION`: the virtual host's init has ended";
}

/// Names a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerName {
    /// Absolute, or relative to the caller's container.
    pub name: String,
}

/// How [`Update`] treats what the specification does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UpdatePolicy {
    /// It stays.
    #[default]
    UpdateDiff,
    /// It becomes the default.
    UpdateReplace,
}

/// Argument of [`Update`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateArgs {
    /// The container.
    pub name: String,
    /// What to change.
    #[serde(deserialize_with = "spec::strict")]
    pub spec: ContainerSpec,
    /// And what else.
    pub policy: UpdatePolicy,
}

/// Argument of [`Enter`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EnterArgs {
    /// The container.
    pub name: String,
    /// Thread ids, as the server sees them; 0 is the calling process. At most 65536.
    pub tids: Vec<i32>,
}

/// Argument of [`Run`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunArgs {
    /// The container.
    pub name: String,
    /// The program's absolute path, and its arguments.
    pub command: Vec<String>,
    /// How it runs.
    #[serde(deserialize_with = "spec::strict")]
    pub spec: RunSpec,
    /// Its environment, `NAME=value`. (lmctfy's is its caller's, which a server does not have.) In a sandbox
    /// or virtual host its own when empty.
    pub env: Vec<String>,
    /// Its working directory; `/` when empty.
    pub cwd: String,
}

/// Result of [`Run`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pid {
    /// As the server sees it.
    pub pid: i32,
}

/// Argument of [`Wait`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitArgs {
    /// What [`Run`] answered.
    pub pid: i32,
}

/// How deep a listing goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ListPolicy {
    /// The container alone.
    #[default]
    ListSelf,
    /// With its subcontainers and theirs. Not atomic.
    ListRecursive,
}

/// Argument of the listings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListArgs {
    /// The container.
    pub name: String,
    /// How deep.
    pub policy: ListPolicy,
}

/// Which statistics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StatsType {
    /// A few.
    #[default]
    StatsSummary,
    /// All that the kernel has.
    StatsFull,
}

/// Argument of [`Stats`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatsArgs {
    /// The container.
    pub name: String,
    /// Which.
    #[serde(rename = "type")]
    pub kind: StatsType,
}

/// Argument of [`RegisterNotification`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegisterArgs {
    /// The container.
    pub name: String,
    /// The event.
    #[serde(deserialize_with = "spec::strict")]
    pub spec: EventSpec,
}

/// Argument of [`UnregisterNotification`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnregisterArgs {
    /// The container.
    pub name: String,
    /// What [`RegisterNotification`] answered.
    pub notification_id: u64,
}

/// One line of what [`RegisterNotification`] writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notification {
    /// Which.
    pub notification_id: u64,
    /// The container's absolute name.
    pub container: String,
    /// `oom`, `memory_threshold` or `container_empty`.
    pub event: String,
    /// `OK`: the event happened. Otherwise a status code, and no record follows: `NOT_FOUND` when the container was
    /// destroyed.
    pub status: String,
    /// Records before this one that the reader was too slow for.
    pub lost: u64,
}

#[cfg(test)]
mod tests;
