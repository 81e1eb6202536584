//! `events`.

#![forbid(unsafe_code)]

use crate::cli::EventsArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `events`.
pub fn run(_global: &Global, _args: EventsArgs) -> Result<ExitCode> {
    Err(Error::unsupported("events: being written"))
}
