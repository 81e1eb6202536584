//! `kill`.

#![forbid(unsafe_code)]

use crate::cli::KillArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `kill`.
pub fn run(_global: &Global, _args: KillArgs) -> Result<ExitCode> {
    Err(Error::unsupported("kill: being written"))
}
