//! `run`: create, start, wait and delete in one.

#![forbid(unsafe_code)]

use super::create::{bundle, options};
use crate::cli::{ContainerArgs, RunArgs};
use crate::global::Global;
use airlock::console::SignalBlock;
use airlock::container::{self, CreateOptions};
use airlock::state::{StateDir, exit_code};
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Runs the container; its exit status becomes ours.
pub fn run(global: &Global, args: RunArgs) -> Result<ExitCode> {
    let options = CreateOptions {
        restore: args.image.options(),
        filesystems: args.image.fs_restore_image_path.clone(),
        ..options(global, &args.container)?
    };
    run_to_end(global, &args.container, options, Fate { detach: args.detach, keep: args.keep })
}

/// What becomes of a container that runs.
#[derive(Debug, Clone, Copy)]
pub struct Fate {
    /// It runs on its own.
    pub detach: bool,
    /// Its state is kept after its end.
    pub keep: bool,
}

/// Creates a container and has it run (or restored, as `options` say); in the foreground, its exit status becomes ours.
pub fn run_to_end(
    global: &Global,
    args: &ContainerArgs,
    options: CreateOptions,
    fate: Fate,
) -> Result<ExitCode> {
    let dir = StateDir::open(&global.root)?;
    let bundle = bundle(global, args)?;
    let options = CreateOptions { autostart: true, attached: !fate.detach, ..options };
    if fate.detach {
        container::run_detached(&dir, &args.id, &bundle, options)?;
        return Ok(ExitCode::SUCCESS);
    }
    let block = SignalBlock::forwardable()?;
    let created = container::create(&dir, &args.id, &bundle, options)?;
    let outcome = container::run_foreground(&dir, created, block, fate.keep)?;
    Ok(status(outcome.wait_status))
}

/// A wait status as this program's own exit status.
pub fn status(wait_status: i32) -> ExitCode {
    // An exit code has eight bits, and 128 + a signal fits them.
    ExitCode::from(exit_code(wait_status) as u8)
}
