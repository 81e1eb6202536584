//! `run`: create, start, wait and delete in one.

#![forbid(unsafe_code)]

use super::create::options;
use crate::cli::RunArgs;
use crate::global::Global;
use airlock::console::SignalBlock;
use airlock::container::{self, CreateOptions};
use airlock::podspec::Bundle;
use airlock::state::{StateDir, exit_code};
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Runs the container; its exit status becomes ours.
pub fn run(global: &Global, args: RunArgs) -> Result<ExitCode> {
    let dir = StateDir::open(&global.root)?;
    let id = &args.container.id;
    let bundle = Bundle::load(&args.container.bundle)?;
    let options =
        CreateOptions { autostart: true, attached: !args.detach, ..options(global, &args.container)? };
    if args.detach {
        container::run_detached(&dir, id, &bundle, options)?;
        return Ok(ExitCode::SUCCESS);
    }
    let block = SignalBlock::forwardable()?;
    let created = container::create(&dir, id, &bundle, options)?;
    let outcome = container::run_foreground(&dir, created, block, args.keep)?;
    Ok(status(outcome.wait_status))
}

/// A wait status as this program's own exit status.
pub fn status(wait_status: i32) -> ExitCode {
    // An exit code has eight bits, and 128 + a signal fits them.
    ExitCode::from(exit_code(wait_status) as u8)
}
