//! `metric-server`: the metrics of all sandboxes below `--root` over HTTP.

#![forbid(unsafe_code)]

use crate::cli::MetricServerArgs;
use crate::global::Global;
use crate::output;
use airlock::metrics::server::MetricServer;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Serves until it is killed. The first line of output says where.
pub fn run(global: &Global, args: MetricServerArgs) -> Result<ExitCode> {
    let server = MetricServer::listen(global.airlock()?, &args.metric_server, args.exporter_prefix)?;
    match server.url() {
        url if url.is_empty() => output::print("listening\n")?,
        url => output::print(&format!("listening: {url}\n"))?,
    }
    server.serve().map(|()| ExitCode::SUCCESS)
}
