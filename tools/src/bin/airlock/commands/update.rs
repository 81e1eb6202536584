//! `update`.

#![forbid(unsafe_code)]

use crate::cli::UpdateArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `update`.
pub fn run(_global: &Global, _args: UpdateArgs) -> Result<ExitCode> {
    Err(Error::unsupported("update: being written"))
}
