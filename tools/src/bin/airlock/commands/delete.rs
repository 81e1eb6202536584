//! `delete`: everything that belongs to a container goes.

#![forbid(unsafe_code)]

use crate::cli::DeleteArgs;
use crate::global::Global;
use airlock::container::{DeleteOptions, delete};
use airlock::state::StateDir;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Deletes the container.
pub fn run(global: &Global, args: DeleteArgs) -> Result<ExitCode> {
    let dir = StateDir::open(&global.root)?;
    delete(&dir, &args.id, DeleteOptions { force: args.force }).map(|()| ExitCode::SUCCESS)
}
