//! `debug`: looking into a sandbox.

use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "debug", from "gVisor pkg/sentry/control (runsc debug -stacks); seed 001";
    /// Stacks of every thread of the sandbox process, and for every container process its state, wait channel and
    /// kernel stack where the kernel shows it; with `All` also the user-space stacks of container processes, with symbols.
    Stacks: StacksArgs => String;
}

/// Argument of [`Stacks`]. gVisor's takes none (`null`), which is the default here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StacksArgs {
    /// User-space stacks of container processes too. Threads that wait are not touched; those that run are stopped for less
    /// than a millisecond each.
    #[serde(rename = "All")]
    pub all: bool,
    /// Only of this container; empty for the sandbox process and all containers.
    #[serde(rename = "CID")]
    pub cid: String,
}
