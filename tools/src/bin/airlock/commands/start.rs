//! `start`: lets the program of a created container run.

#![forbid(unsafe_code)]

use crate::cli::StartArgs;
use crate::global::Global;
use airlock::state::StateDir;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Starts the container.
pub fn run(global: &Global, args: StartArgs) -> Result<ExitCode> {
    airlock::container::start(&StateDir::open(&global.root)?, &args.id).map(|()| ExitCode::SUCCESS)
}
