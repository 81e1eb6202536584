//! `call`.

#![forbid(unsafe_code)]

use crate::cli::CallArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `call`.
pub fn run(_global: &Global, _args: CallArgs) -> Result<ExitCode> {
    Err(Error::unsupported("call: being written"))
}
