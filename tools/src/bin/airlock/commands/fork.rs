//! `fork`: further sandboxes that begin where one is now.

#![forbid(unsafe_code)]

use super::create::this_program;
use crate::cli::ForkArgs;
use crate::global::Global;
use airlock::container::restore::Memory;
use airlock::container::{self, CreateOptions, ForkOptions, Stdio};
use airlock::state::StateDir;
use airlock_wire::error::{Error, Result};
use std::process::ExitCode;

/// Log level of a sandbox whose debug log is asked for.
const DEBUG: u8 = 4;

/// Makes the forks. They inherit our stdio, as what `restore --detach` makes does.
pub fn run(global: &Global, args: ForkArgs) -> Result<ExitCode> {
    if args.count > 1 && args.pid_file.is_some() {
        return Err(Error::invalid_argument(
            "--pid-file: several forks have several pids; 'state' tells them",
        ));
    }
    let dir = StateDir::open(&global.root)?;
    let options = ForkOptions {
        count: args.count,
        systemd_cgroup: global.args.systemd_cgroup,
        memory: if args.copy { Memory::First } else { Memory::OnDemand },
    };
    container::fork(&dir, &args.id, &args.new_id, options, |id| {
        let log = global.open_debug_log(id)?;
        Ok(CreateOptions {
            stdio: Some(Stdio::inherit()?),
            console_socket: args.console_socket.clone(),
            pid_file: args.pid_file.clone(),
            log_level: if log.is_some() { DEBUG } else { 0 },
            log: log.map(Into::into),
            profile: global.args.profile,
            panic_log: global.open_panic_log(id)?.map(Into::into),
            sandbox: this_program(),
            ..CreateOptions::default()
        })
    })?;
    Ok(ExitCode::SUCCESS)
}
