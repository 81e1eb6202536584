//! `kill`: a signal to a container's process.

#![forbid(unsafe_code)]

use crate::cli::KillArgs;
use crate::global::Global;
use airlock::client::KillTarget;
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Sends the signal.
pub fn run(global: &Global, args: KillArgs) -> Result<ExitCode> {
    let target = match args.pid {
        Some(pid) => KillTarget::Pid(pid),
        None if args.all => KillTarget::All,
        None => KillTarget::Init,
    };
    global.airlock()?.kill(&args.id, args.signal, target).map(|()| ExitCode::SUCCESS)
}
