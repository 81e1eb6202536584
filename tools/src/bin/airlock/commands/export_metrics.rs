//! `export-metrics`: the metrics of one sandbox, as text or JSON.

#![forbid(unsafe_code)]

use crate::cli::{ExportMetricsArgs, MetricFormat};
use crate::global::Global;
use crate::output;
use airlock::metrics::{Metrics, SANDBOX};
use airlock_wire::api::metrics::{Export, ExportOpts};
use airlock_wire::client::Dialect;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Prints them.
pub fn run(global: &Global, args: ExportMetricsArgs) -> Result<ExitCode> {
    let airlock = global.airlock()?;
    let sandbox = airlock.states().load(&args.id)?.sandbox_id;
    let mut client = airlock.connect(&args.id, Dialect::Binary)?;
    let opts = ExportOpts { only_metrics: args.sandbox_metrics_filter };
    let exported = client.call::<Export>(&opts, &[])?.value;
    match args.format {
        MetricFormat::Json => output::print_json(&exported)?,
        MetricFormat::Text => {
            let mut metrics = Metrics::default();
            metrics.add(exported.0.snapshot, &args.exporter_prefix, &[(SANDBOX, &sandbox)]);
            output::print(&metrics.to_text()?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
