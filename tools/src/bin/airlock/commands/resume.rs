//! `resume`: lets a paused container go on.

#![forbid(unsafe_code)]

use crate::cli::ResumeArgs;
use crate::global::Global;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Resumes the container.
pub fn run(global: &Global, args: ResumeArgs) -> Result<ExitCode> {
    global.airlock()?.resume(&args.id).map(|()| ExitCode::SUCCESS)
}
