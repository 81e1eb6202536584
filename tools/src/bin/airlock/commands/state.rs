//! `state`.

#![forbid(unsafe_code)]

use crate::cli::StateArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `state`.
pub fn run(_global: &Global, _args: StateArgs) -> Result<ExitCode> {
    Err(Error::unsupported("state: being written"))
}
