//! `Lifecycle`: gVisor's older life cycle interface. runsc of 2022 pauses and resumes through it.

use super::types::Empty;
use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Lifecycle";
    /// Pauses every process of every container; nests with Resume.
    Pause: Empty => Empty;
    /// Undoes one Pause.
    Resume: Empty => Empty;
    /// Ends the sandbox: every container is killed.
    Shutdown: Empty => Empty;
    /// Wait status of a container's init, without waiting; an error while it runs.
    GetExitStatus: ContainerArgs => u32;
    /// Tells whether a container's init runs; false for an unknown container.
    IsContainerRunning: ContainerArgs => bool;
    /// Sends a signal to a container's init or to all its processes.
    SignalContainer: SignalContainerArgs => Empty;
    /// Forgets a container that has exited.
    Reap: ContainerArgs => Empty;
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
