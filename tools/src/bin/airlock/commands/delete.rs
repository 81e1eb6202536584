//! `delete`.

#![forbid(unsafe_code)]

use crate::cli::DeleteArgs;
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs `delete`.
pub fn run(_global: &Global, _args: DeleteArgs) -> Result<ExitCode> {
    Err(Error::unsupported("delete: being written"))
}
