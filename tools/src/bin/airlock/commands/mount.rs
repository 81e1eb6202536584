//! `mount`: something into a running container.

#![forbid(unsafe_code)]

use crate::cli::MountArgs;
use crate::global::Global;
use airlock::client::MountRequest;
use airlock_wire::error::{Error, Result};
use std::path::Path;
use std::process::ExitCode;

/// Mounts.
pub fn run(global: &Global, args: MountArgs) -> Result<ExitCode> {
    let (source, target) = match &args.places[..] {
        [target] if args.kind == "tmpfs" => ("tmpfs", target),
        [source, target] => (source.as_str(), target),
        _ => return Err(Error::invalid_argument("give a source and a target; only a tmpfs needs no source")),
    };
    let request =
        MountRequest { kind: &args.kind, source: Path::new(source), target, options: &args.options };
    global.airlock()?.mount(&args.id, &request).map(|()| ExitCode::SUCCESS)
}
