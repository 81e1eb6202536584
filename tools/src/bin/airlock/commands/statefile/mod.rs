//! `statefile`: looks at images without restoring them.

#![forbid(unsafe_code)]

mod diff;
mod image;
mod lists;
mod show;
mod verify;
mod view;
mod what;

use crate::cli::{StatefileAction, StatefileArgs, TableFormat};
use crate::global::Global;
use crate::output;
use airlock::container::restore::read_key;
use airlock_wire::error::{Error, Result};
use image::Opened;
use std::process::ExitCode;

/// Runs one of the actions.
pub fn run(_global: &Global, args: StatefileArgs) -> Result<ExitCode> {
    let key = args.key_file.as_deref().map(read_key).transpose()?;
    let key = key.as_deref();
    let other = args.other.as_deref();
    let pid = match (args.action, other) {
        (StatefileAction::Diff, _) | (_, None) => None,
        (StatefileAction::Fds | StatefileAction::Maps | StatefileAction::Ps, Some(text)) => {
            Some(parse_pid(text)?)
        }
        (StatefileAction::Show | StatefileAction::Verify, Some(text)) => {
            return Err(Error::invalid_argument(format!(
                "one image is enough; what is '{}'?",
                text.to_string_lossy()
            )));
        }
    };
    match args.action {
        StatefileAction::Show => show::run(&Opened::open(&args.image, key)?, args.format),
        StatefileAction::Ps => list(&lists::processes(&Opened::open(&args.image, key)?, pid)?, args.format),
        StatefileAction::Fds => {
            list(&lists::descriptors(&Opened::open(&args.image, key)?, pid)?, args.format)
        }
        StatefileAction::Maps => list(&lists::mappings(&Opened::open(&args.image, key)?, pid)?, args.format),
        StatefileAction::Verify => verify::run(&args.image, key, args.format),
        StatefileAction::Diff => {
            let other = other.ok_or_else(|| Error::invalid_argument("diff needs two images"))?;
            diff::run(&Opened::open(&args.image, key)?, &Opened::open(other.as_ref(), key)?, args.format)
        }
    }
}

fn parse_pid(text: &std::ffi::OsStr) -> Result<i32> {
    let pid = text.to_str().and_then(|text| text.parse().ok()).filter(|pid| *pid > 0);
    pid.ok_or_else(|| {
        Error::invalid_argument(format!(
            "'{}' is no pid: give the number that the process has in its container",
            text.to_string_lossy()
        ))
    })
}

fn list<T: serde::Serialize + lists::Row>(rows: &[T], format: TableFormat) -> Result<ExitCode> {
    match format {
        TableFormat::Json => output::print_json_line(&rows)?,
        TableFormat::Table => {
            let header = T::HEADER.iter().map(|name| (*name).to_owned()).collect();
            let table: Vec<Vec<String>> = std::iter::once(header).chain(rows.iter().map(T::cells)).collect();
            output::print(&output::table(&table, output::Layout::Ps))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests;
