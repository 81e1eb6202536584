//! `run`.

#![forbid(unsafe_code)]

use crate::cli::RunArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `run`.
pub fn run(_global: &Global, _args: RunArgs) -> Result<ExitCode> {
    Err(Error::unsupported("run: being written"))
}
