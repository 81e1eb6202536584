//! `read-control`: a control file of a container's cgroup.

#![forbid(unsafe_code)]

use crate::cli::ReadControlArgs;
use crate::global::Global;
use crate::output;
use airlock_wire::api::cgroups::{ControlFile, ReadArg, ReadArgs, ReadControlFiles, Results};
use airlock_wire::client::Dialect;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Prints the file's text.
pub fn run(global: &Global, args: ReadControlArgs) -> Result<ExitCode> {
    let file = control_file(&args.id, args.controller, args.place);
    let mut client = global.airlock()?.connect(&args.id, Dialect::Binary)?;
    let reply = client.call::<ReadControlFiles>(&ReadArgs { args: vec![ReadArg { file }] }, &[])?;
    output::print(&(single(reply.value)? + "\n")).map(|()| ExitCode::SUCCESS)
}

/// The file that `place` names: `[PATH] FILE`, without a path in the container's own cgroup.
pub(super) fn control_file(id: &str, controller: String, mut place: Vec<String>) -> ControlFile {
    let name = place.pop().unwrap_or_default();
    let path = place.pop().unwrap_or_else(|| format!("/{id}"));
    ControlFile { controller, path, name }
}

/// The one result that is expected.
pub(super) fn single(results: Results) -> Result<String> {
    match results.results.into_iter().next() {
        Some(result) if result.is_error => Err(Error::failure(result.value)),
        Some(result) => Ok(result.value),
        None => Err(Error::failure("the sandbox answered without a result")),
    }
}
