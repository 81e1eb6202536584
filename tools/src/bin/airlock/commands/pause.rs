//! `pause`: stops all processes of a container where they are.

#![forbid(unsafe_code)]

use crate::cli::PauseArgs;
use crate::global::Global;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Suspends the container.
pub fn run(global: &Global, args: PauseArgs) -> Result<ExitCode> {
    global.airlock()?.pause(&args.id).map(|()| ExitCode::SUCCESS)
}
