//! `machine serve`: the container API for the whole machine.

#![forbid(unsafe_code)]

use crate::cli::MachineServeArgs;
use crate::global::Global;
use crate::output;
use airlock::machine::{MachineOptions, MachineServer, SOCKET};
use airlock_wire::error::Result;
use std::process::ExitCode;

/// Serves until it is killed. The first line of output says that it is ready.
pub fn run(global: &Global, args: MachineServeArgs) -> Result<ExitCode> {
    let socket = args.socket.unwrap_or_else(|| global.root.join(SOCKET));
    let options = MachineOptions {
        cgroup: args.cgroup,
        socket,
        states: global.root.clone(),
        sandbox: super::create::this_program(),
    };
    let server = MachineServer::listen(&options)?;
    output::print("listening\n")?;
    server.serve().map(|()| ExitCode::SUCCESS)
}
