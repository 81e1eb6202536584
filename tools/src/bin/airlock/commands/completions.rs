//! `completions`: a script that lets a shell complete airlock's command line.

#![forbid(unsafe_code)]

use crate::cli::{Cli, CompletionsArgs};
use crate::global::Global;
use crate::output;
use airlock_wire::error::{Error, Result};
use clap::CommandFactory;
use std::process::ExitCode;

/// Prints the script.
pub fn run(_global: &Global, args: CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "airlock", &mut script);
    let script =
        String::from_utf8(script).map_err(|_| Error::failure("the completion script is not UTF-8"))?;
    output::print(&script).map(|()| ExitCode::SUCCESS)
}
