//! `ps`.

#![forbid(unsafe_code)]

use crate::cli::PsArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `ps`.
pub fn run(_global: &Global, _args: PsArgs) -> Result<ExitCode> {
    Err(Error::unsupported("ps: being written"))
}
