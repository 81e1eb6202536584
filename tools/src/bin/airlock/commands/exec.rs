//! `exec`.

#![forbid(unsafe_code)]

use crate::cli::ExecArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `exec`.
pub fn run(_global: &Global, _args: ExecArgs) -> Result<ExitCode> {
    Err(Error::unsupported("exec: being written"))
}
