//! `resume`.

#![forbid(unsafe_code)]

use crate::cli::ResumeArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `resume`.
pub fn run(_global: &Global, _args: ResumeArgs) -> Result<ExitCode> {
    Err(Error::unsupported("resume: being written"))
}
