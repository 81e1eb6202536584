//! `trace`: looks on while a sandbox runs. Output as runsc's `trace` has it.

#![forbid(unsafe_code)]

use crate::cli::{TraceAction, TraceArgs};
use crate::global::Global;
use crate::output;
use airlock::trace::{self, Session};
use airlock_loader::trace::points;
use airlock_wire::api::container_manager as cm;
use airlock_wire::api::trace::CreateTraceSessionArgs;
use airlock_wire::api::types::{Empty, Json};
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::{Error, Result};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

/// Runs one of the actions.
pub fn run(global: &Global, args: TraceArgs) -> Result<ExitCode> {
    let connect = || global.airlock()?.connect(args.id.as_deref().unwrap_or_default(), Dialect::Binary);
    match args.action {
        TraceAction::Create => {
            create(connect, args.config.as_deref().unwrap_or(Path::new("")), args.force)?;
        }
        TraceAction::Delete => delete(connect()?, args.name.unwrap_or_default())?,
        TraceAction::List => list(connect()?)?,
        TraceAction::Metadata => output::print(&points::metadata())?,
        TraceAction::Procfs => procfs(connect()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn create(connect: impl FnOnce() -> Result<Client>, config: &Path, force: bool) -> Result<()> {
    let context = |e: Error| e.context("creating session");
    let config = trace::read_config(config, true).map_err(context)?;
    let mut client = connect()?;
    let Session { config, fds } = trace::open_sinks(config).map_err(context)?;
    let name = config.name.clone();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    client
        .call::<cm::CreateTraceSession>(&Json(CreateTraceSessionArgs { config, force }), &fds)
        .map_err(|e| e.context("creating trace session"))
        .map_err(context)?;
    output::print(&format!("Trace session {name:?} created.\n"))
}

fn delete(mut client: Client, name: String) -> Result<()> {
    client
        .call::<cm::DeleteTraceSession>(&name, &[])
        .map_err(|e| e.context("deleting session: deleting trace session"))?;
    output::print(&format!("Trace session {name:?} deleted.\n"))
}

fn list(mut client: Client) -> Result<()> {
    let sessions = client.call::<cm::ListTraceSessions>(&Empty {}, &[])?.value;
    let mut text = format!("SESSIONS ({})\n", sessions.len());
    for session in &**sessions {
        text += &format!("{:?}\n", session.name);
        for sink in &*session.sinks {
            text += &format!("\tSink: {:?}, dropped: {}\n", sink.name, sink.status.dropped_count);
        }
    }
    output::print(&text)
}

fn procfs(mut client: Client) -> Result<()> {
    let mut text = "PROCFS DUMP\n".to_owned();
    for dump in &**client.call::<cm::ProcfsDump>(&Empty {}, &[])?.value {
        let line = serde_json::to_string(dump).map_err(|e| Error::failure(format!("encode JSON: {e}")))?;
        text += &format!("\n{line}\n");
    }
    output::print(&text)
}
