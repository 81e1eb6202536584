//! `Proc`: processes of the whole sandbox.

use super::container_manager::ExecArgs;
use super::types::Empty;
use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Proc", from "gVisor pkg/sentry/control/proc.go";
    /// Executes a process in the root container and blocks until it exits; the result is its wait status.
    Exec: ExecArgs => u32, fds "in: as containerManager.ExecuteAsync", errors "as containerManager.ExecuteAsync", blocks "until the process has exited";
    /// Lists the processes of all containers, as a table or as indented JSON text.
    Ps: PsArgs => String;
    /// Sends a signal to any process of the sandbox, by its pid in the root container's pid namespace.
    SignalProcess: SignalProcessArgs => Empty, errors "`no such process with PID n`";
}

/// Argument of [`Ps`] (gVisor's `control.PsArgs`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PsArgs {
    /// JSON text instead of a table.
    #[serde(rename = "JSON")]
    pub json: bool,
}

/// Argument of [`SignalProcess`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalProcessArgs {
    /// Signal number, 0 to 64; 0 only checks that the process exists.
    pub signo: i32,
    /// The pid in the root container's pid namespace.
    pub pid: i32,
}
