//! `do`.

#![forbid(unsafe_code)]

use crate::cli::DoArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `do`.
pub fn run(_global: &Global, _args: DoArgs) -> Result<ExitCode> {
    Err(Error::unsupported("do: being written"))
}
