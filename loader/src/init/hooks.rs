//! `createContainer` and `startContainer` hooks: run by the container's init, inside its namespaces.
#![forbid(unsafe_code)]

use crate::hook;
use airlock_wire::error::Result;
use oci_spec::runtime::Hook;
use std::path::Path;

/// Runs `hooks` one after the other with the container's `state` (JSON) on standard input, in the directory `cwd` if
/// that is one.
///
/// # Errors
/// The first hook that fails, as [`hook::run`] tells; the later ones do not run.
pub fn run(kind: &str, hooks: Option<&Vec<Hook>>, state: &str, cwd: Option<&Path>) -> Result<()> {
    for (number, one) in hooks.into_iter().flatten().enumerate() {
        hook::run(one, state.as_bytes(), cwd)
            .map_err(|e| e.context(format!("{kind} hook #{number} ({})", one.path().display())))?;
    }
    Ok(())
}
