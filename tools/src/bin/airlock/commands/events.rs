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
        print(&stats, &args.id)?;
    } else {
        for event in airlock.events(&args.id, args.interval)? {
            print(&event?, &args.id)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(event: &Event, id: &str) -> Result<()> {
    output::print(&(event.to_line(id) + "\n"))
}
