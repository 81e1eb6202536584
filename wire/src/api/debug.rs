//! `debug`: looking into a sandbox.

use super::types::Empty;

crate::methods! {
    receiver "debug", from "gVisor pkg/sentry/control (runsc debug -stacks); seed 001";
    /// Stacks of every thread of the sandbox process, and for every container process its state, wait channel and
    /// kernel stack where the kernel shows it.
    Stacks: Empty => String;
}
