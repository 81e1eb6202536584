//! `trace`: looks on while a sandbox runs. Output as runsc's `trace` has it.

#![forbid(unsafe_code)]

use crate::cli::{TraceAction, TraceArgs};
use crate::global::Global;
use crate::output;
use airlock_wire::api::container_manager as cm;
use airlock_wire::api::types::Empty;
use airlock_wire::client::Dialect;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Runs one of the actions.
pub fn run(global: &Global, args: TraceArgs) -> Result<ExitCode> {
    match args.action {
        TraceAction::Procfs => procfs(global, &args.id)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn procfs(global: &Global, id: &str) -> Result<()> {
    let mut client = global.airlock()?.connect(id, Dialect::Binary)?;
    let mut text = "PROCFS DUMP\n".to_owned();
    for dump in &**client.call::<cm::ProcfsDump>(&Empty {}, &[])?.value {
        let line = serde_json::to_string(dump).map_err(|e| Error::failure(format!("encode JSON: {e}")))?;
        text += &format!("\n{line}\n");
    }
    output::print(&text)
}
