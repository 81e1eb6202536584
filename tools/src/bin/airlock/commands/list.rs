//! `list`: all containers below the state directory.

#![forbid(unsafe_code)]

use crate::cli::{ListArgs, TableFormat};
use crate::global::Global;
use crate::output;
use airlock::client::Container;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Prints the ids, a JSON array of states, or a table.
pub fn run(global: &Global, args: ListArgs) -> Result<ExitCode> {
    let airlock = global.airlock()?;
    let wanted =
        |id: &str| !args.sandbox || airlock.states().load(id).map_or(true, |state| !state.is_subcontainer());
    if args.quiet {
        let ids: String = airlock.ids()?.iter().filter(|id| wanted(id)).map(|id| format!("{id}\n")).collect();
        output::print(&ids)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut containers = airlock.list()?;
    containers.retain(|container| wanted(&container.id));
    match args.format {
        TableFormat::Json => output::print_json_line(&containers)?,
        TableFormat::Table => output::print(&table(&containers))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(containers: &[Container]) -> String {
    let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned).to_vec();
    let row = |c: &Container| {
        vec![
            c.id.clone(),
            c.pid.to_string(),
            c.status.to_string(),
            c.bundle.display().to_string(),
            c.created.clone(),
            c.owner.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(containers.iter().map(row)).collect();
    output::table(&rows, output::Layout::List)
}
