//! `pause`.

#![forbid(unsafe_code)]

use crate::cli::PauseArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `pause`.
pub fn run(_global: &Global, _args: PauseArgs) -> Result<ExitCode> {
    Err(Error::unsupported("pause: being written"))
}
