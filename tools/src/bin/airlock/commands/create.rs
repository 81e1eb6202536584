//! `create`.

#![forbid(unsafe_code)]

use crate::cli::CreateArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `create`.
pub fn run(_global: &Global, _args: CreateArgs) -> Result<ExitCode> {
    Err(Error::unsupported("create: being written"))
}
