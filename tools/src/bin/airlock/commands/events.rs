//! `events`: statistics and out-of-memory events as JSON lines.

#![forbid(unsafe_code)]

use crate::cli::EventsArgs;
use crate::global::Global;
use crate::output;
use airlock::client::Event;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Prints the statistics once, or all events until the container ends.
pub fn run(global: &Global, args: EventsArgs) -> Result<ExitCode> {
    if args.interval.is_zero() {
        return Err(Error::invalid_argument("--interval 0 would never rest: give a time greater than 0"));
    }
    let airlock = global.airlock()?;
    if args.stats {
        let stats = Event::Stats(Box::new(airlock.stats(&args.id)?));
        output::print_json_line(&stats.to_json(&args.id))?;
    } else {
        for event in airlock.events(&args.id, args.interval)? {
            output::print_json_line(&event?.to_json(&args.id))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
