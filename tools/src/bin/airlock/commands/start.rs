//! `start`.

#![forbid(unsafe_code)]

use crate::cli::StartArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `start`.
pub fn run(_global: &Global, _args: StartArgs) -> Result<ExitCode> {
    Err(Error::unsupported("start: being written"))
}
