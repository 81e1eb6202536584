//! `metric-metadata`: which metrics there are.

#![forbid(unsafe_code)]

use crate::cli::MetricMetadataArgs;
use crate::global::Global;
use crate::output;
use airlock_wire::api::metrics::GetRegisteredMetrics;
use airlock_wire::api::types::Empty;
use airlock_wire::client::Dialect;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Prints what this build has, or what a live sandbox says that it has.
pub fn run(global: &Global, args: MetricMetadataArgs) -> Result<ExitCode> {
    let registered = match args.id {
        Some(id) => {
            let mut client = global.airlock()?.connect(&id, Dialect::Binary)?;
            client.call::<GetRegisteredMetrics>(&Empty {}, &[])?.value.0
        }
        None => airlock_controller::metrics::registered(),
    };
    output::print_json(&registered.registered).map(|()| ExitCode::SUCCESS)
}
