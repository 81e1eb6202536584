//! `read`: a file of a container.

#![forbid(unsafe_code)]

use crate::cli::ReadArgs;
use crate::global::Global;
use airlock_wire::error::Result;
use std::os::fd::AsFd;
use std::process::ExitCode;

/// Prints the files; the sandbox itself writes to standard output.
pub fn run(global: &Global, args: ReadArgs) -> Result<ExitCode> {
    let airlock = global.airlock()?;
    let out = std::io::stdout();
    for path in &args.paths {
        airlock.read_file(&args.id, path, (args.offset, args.size), out.as_fd())?;
    }
    Ok(ExitCode::SUCCESS)
}
