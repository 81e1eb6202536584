//! `features`.

#![forbid(unsafe_code)]

use crate::cli::FeaturesArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `features`.
pub fn run(_global: &Global, _args: FeaturesArgs) -> Result<ExitCode> {
    Err(Error::unsupported("features: being written"))
}
