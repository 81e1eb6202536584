//! `write-control`: writes a control file of a container's cgroup.

#![forbid(unsafe_code)]

use super::read_control::{control_file, single};
use crate::cli::WriteControlArgs;
use crate::global::Global;
use airlock_wire::api::cgroups::{WriteArg, WriteArgs, WriteControlFiles};
use airlock_wire::client::Dialect;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Writes the value; prints nothing.
pub fn run(global: &Global, mut args: WriteControlArgs) -> Result<ExitCode> {
    let value = args.place.pop().unwrap_or_default();
    let file = control_file(&args.id, args.controller, args.place);
    let mut client = global.airlock()?.connect(&args.id, Dialect::Binary)?;
    let reply = client.call::<WriteControlFiles>(&WriteArgs { args: vec![WriteArg { file, value }] }, &[])?;
    single(reply.value).map(|_| ExitCode::SUCCESS)
}
