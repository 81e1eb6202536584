//! `spec`.

#![forbid(unsafe_code)]

use crate::cli::SpecArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `spec`.
pub fn run(_global: &Global, _args: SpecArgs) -> Result<ExitCode> {
    Err(Error::unsupported("spec: being written"))
}
