//! `list`.

#![forbid(unsafe_code)]

use crate::cli::ListArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `list`.
pub fn run(_global: &Global, _args: ListArgs) -> Result<ExitCode> {
    Err(Error::unsupported("list: being written"))
}
