//! Commands that reach into a running container: its ports, its files, its mounts.

use airlock::client::{LocalAddress, PortMapping};
use clap::Args;
use std::path::PathBuf;

/// Forward local ports to ports of a container
///
/// Listens on this machine and connects whoever comes to 127.0.0.1 (or else ::1) inside the container, until the container
/// ends or the command is ended, which ends the connections as well.
#[derive(Debug, Clone, Args)]
pub struct PortForwardArgs {
    /// Address to listen on, or several with commas: IP addresses, and 'localhost' for 127.0.0.1 and ::1
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', default_value = "localhost")]
    pub address: Vec<LocalAddress>,
    /// Forward one connection only, to the Unix socket at this path, and return as soon as it is made; PORTS is then one
    /// port of the container
    #[arg(long, value_name = "PATH")]
    pub stream: Option<PathBuf>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// '8080:80' leads from local port 8080 to port 80, '80' from 80 to 80, ':80' from any to 80
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub ports: Vec<PortMapping>,
}
