//! `state`: a container's state as JSON.

#![forbid(unsafe_code)]

use crate::cli::StateArgs;
use crate::global::Global;
use crate::output;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Prints the state, indented.
pub fn run(global: &Global, args: StateArgs) -> Result<ExitCode> {
    output::print_json(&global.airlock()?.state(&args.id)?).map(|()| ExitCode::SUCCESS)
}
