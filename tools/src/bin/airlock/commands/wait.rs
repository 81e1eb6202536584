//! `wait`.

#![forbid(unsafe_code)]

use crate::cli::WaitArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `wait`.
pub fn run(_global: &Global, _args: WaitArgs) -> Result<ExitCode> {
    Err(Error::unsupported("wait: being written"))
}
