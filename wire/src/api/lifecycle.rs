//! `Lifecycle`: gVisor's older life cycle interface. runsc of 2022 pauses and resumes through it.

use super::types::Empty;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

crate::methods! {
    receiver "Lifecycle", from "gVisor pkg/sentry/control/lifecycle.go; seed 001";
    /// Pauses every process of every container; nests with Resume.
    Pause: Empty => Empty, blocks "until no process runs; fails after 5 s";
    /// Undoes one Pause.
    Resume: Empty => Empty, errors "as containerManager.Resume";
    /// Ends the sandbox: every container is killed.
    Shutdown: Empty => Empty;
    /// Wait status of a container's init, without waiting; an error while it runs.
    GetExitStatus: ContainerArgs => u32, errors "`container \"X\" doesn't exist, or has not been started`; `container \"X\" hasn't exited yet`";
    /// Tells whether a container's init runs; false for an unknown container.
    IsContainerRunning: ContainerArgs => bool;
    /// Sends a signal to a container's init or to all its processes.
    SignalContainer: SignalContainerArgs => Empty, errors "`container X not started`; `X container not running`";
    /// Forgets a container that has exited.
    Reap: ContainerArgs => Empty, errors "`no container with id \"X\"`; `container \"X\" hasn't exited yet`";
    /// Refused, as runsc's sandboxes do: containers are made with containerManager.CreateSubcontainer and
    /// StartSubcontainer.
    StartContainer: StartContainerArgs => u32, fds "in: one for each of donated_fds", errors "always, at the latest with `mount namespace is nil for X`; before that `FilePayload.Files and DonatedFDs must have same number of elements (a != b)`; `unknown limit \"L\"`; `container id: X already exists`";
    /// Moves no frames between the sandbox's links and the caller's descriptors any more; those that come are lost. The
    /// argument is not used.
    PauseExternalNetworking: ContainerArgs => Empty, errors "the sandbox shares its caller's network namespace";
    /// Undoes PauseExternalNetworking.
    ResumeExternalNetworking: ContainerArgs => Empty, errors "as PauseExternalNetworking";
}

/// Names a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerArgs {
    /// The container's ID.
    pub container_id: String,
}

/// Argument of [`SignalContainer`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalContainerArgs {
    /// The container's ID.
    pub container_id: String,
    /// Signal number, 0 to 64.
    pub signo: i32,
    /// All processes of the container instead of its init.
    #[serde(rename = "signalAll")]
    pub signal_all: bool,
}

/// Argument of [`StartContainer`] (gVisor's `control.StartContainerArgs`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartContainerArgs {
    /// The program.
    pub filename: String,
    /// Its arguments.
    pub argv: Vec<String>,
    /// Its environment.
    pub envv: Vec<String>,
    /// More of its environment, which is not to be logged.
    pub secret_envv: Vec<String>,
    /// Its working directory.
    pub wd: String,
    /// Its user id.
    #[serde(rename = "KUID")]
    pub kuid: u32,
    /// Its group id.
    #[serde(rename = "KGID")]
    pub kgid: u32,
    /// Its user, by name.
    pub user: String,
    /// The container's ID.
    pub container_id: String,
    /// Paths of its cgroups by controller.
    pub initial_cgroups: BTreeMap<String, String>,
    /// Its resource limits by name.
    pub limits: BTreeMap<String, Limit>,
    /// Set HOME.
    pub resolve_home: bool,
    /// Look the program up in PATH.
    pub resolve_binary_path: bool,
    /// Numbers of the descriptors in the container.
    pub donated_fds: Vec<i32>,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// Soft.
    pub cur: u64,
    /// Hard.
    pub max: u64,
}
