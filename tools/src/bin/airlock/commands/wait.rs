//! `wait`: waits until a container has ended and says how.

#![forbid(unsafe_code)]

use crate::cli::WaitArgs;
use crate::global::Global;
use crate::output;
use airlock::client::WaitTarget;
use airlock_wire::error::Result;
use serde::Serialize;
use std::process::ExitCode;

/// The result in the form of runsc.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Waited<'a> {
    id: &'a str,
    exit_status: i32,
}

/// Waits, and prints `{"id","exitStatus"}` of a container or process that has ended.
pub fn run(global: &Global, args: WaitArgs) -> Result<ExitCode> {
    let airlock = global.airlock()?;
    if args.checkpoint {
        return airlock.wait_checkpoint(&args.id).map(|()| ExitCode::SUCCESS);
    }
    if args.restore {
        return airlock.wait_restore(&args.id).map(|()| ExitCode::SUCCESS);
    }
    if args.fscheckpoint {
        return airlock.wait_fscheckpoint(&args.id).map(|()| ExitCode::SUCCESS);
    }
    if args.fsrestore {
        return airlock.wait_fsrestore(&args.id).map(|()| ExitCode::SUCCESS);
    }
    let target = match (args.pid, args.rootpid) {
        (Some(pid), _) => WaitTarget::Pid(pid),
        (None, Some(pid)) => WaitTarget::RootPid(pid),
        (None, None) => WaitTarget::Init,
    };
    let exit_status = airlock.wait(&args.id, target)?;
    output::print_json_line(&Waited { id: &args.id, exit_status }).map(|()| ExitCode::SUCCESS)
}
