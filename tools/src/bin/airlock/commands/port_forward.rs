//! `port-forward`: ports of a container on this machine.

#![forbid(unsafe_code)]

use crate::cli::PortForwardArgs;
use crate::global::Global;
use crate::output;
use airlock::client::Forwarding;
use airlock_wire::error::{Error, Result};
use std::io::Write;
use std::process::ExitCode;

/// Forwards until the container ends.
pub fn run(global: &Global, args: PortForwardArgs) -> Result<ExitCode> {
    let airlock = global.airlock()?;
    if let Some(path) = &args.stream {
        let [mapping] = args.ports[..] else {
            return Err(Error::invalid_argument("--stream: give one port of the container"));
        };
        return airlock.port_forward_socket(&args.id, mapping.remote, path).map(|()| ExitCode::SUCCESS);
    }
    let forwarder = airlock.forwarder(&args.id, &args.ports, &args.address)?;
    for (at, remote) in forwarder.listening() {
        output::print(&format!("Forwarding from {at} -> {remote}\n"))?;
    }
    forwarder.run(|told| match told {
        // Whoever reads it may be gone while connections are not.
        Forwarding::Accepted(local) => drop(output::print(&format!("Handling connection for {local}\n"))),
        Forwarding::Failed(remote, error) => drop(writeln!(std::io::stderr(), "port {remote}: {error}")),
    })?;
    output::print(&format!("Container {:?} stopped. Exiting...\n", args.id))?;
    Ok(ExitCode::SUCCESS)
}
