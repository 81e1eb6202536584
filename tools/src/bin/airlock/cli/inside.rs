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

/// Print a file of a container
///
/// Read as the container sees it; links do not lead out of it. What would block (an empty pipe) is not waited for.
#[derive(Debug, Clone, Args)]
pub struct ReadArgs {
    /// Print at most so many bytes; 0 for all
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(i64).range(0..))]
    pub size: i64,
    /// Begin so many bytes behind the beginning
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(i64).range(0..))]
    pub offset: i64,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// The file, or several, one after the other
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<String>,
}

/// What `tar` archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TarWhat {
    /// The upper layer of the root filesystem: what the container has changed
    RootfsUpper,
}

/// Save what a container has changed as a tar archive
///
/// The archive can be a layer of an OCI image: what was removed is a '.wh.' entry. The container needs an overlay over its
/// root filesystem ('--overlay2 root:memory'); the sandbox stands still while the archive is written.
#[derive(Debug, Clone, Args)]
pub struct TarArgs {
    /// Write the archive to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What to save
    #[arg(value_name = "WHAT", value_enum)]
    pub what: TarWhat,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Mount something in a running container
///
/// SOURCE is a folder, a file, or an image or device of a file system. A missing folder TARGET is made.
#[derive(Debug, Clone, Args)]
pub struct MountArgs {
    /// 'bind', 'tmpfs' (without SOURCE), or the file system that SOURCE holds [default: whether SOURCE is an erofs image is
    /// seen; everything else is bound]
    #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "", hide_default_value = true)]
    pub kind: String,
    /// Options, with commas: ro, nosuid, nodev, noexec, noatime, …, and those of the file system (repeatable)
    #[arg(long, short, value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// On this machine; then where, an absolute path in the container
    #[arg(value_name = "[SOURCE] TARGET", required = true, num_args = 1..=2)]
    pub places: Vec<String>,
}

/// Unmount what is mounted in a running container
#[derive(Debug, Clone, Args)]
pub struct UmountArgs {
    /// Take it out of sight now, and unmount it when nobody uses it any more
    #[arg(long, short)]
    pub lazy: bool,
    /// Unmount even if a server does not answer
    #[arg(long, short)]
    pub force: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Where, in the container
    #[arg(value_name = "TARGET")]
    pub target: String,
}

/// Save what containers have written, without their processes
///
/// Without --path: the upper layers of all root filesystems ('--overlay2'). The containers stand still until it is captured,
/// and end with exit status 0 unless --leave-running is given. 'create' and 'run' begin with such an image by
/// --fs-restore-image-path.
#[derive(Debug, Clone, Args)]
pub struct FscheckpointArgs {
    /// Folder of the image; one that is in it is lost
    #[arg(long, value_name = "DIR")]
    pub image_path: PathBuf,
    /// Let the containers go on
    #[arg(long)]
    pub leave_running: bool,
    /// Save what is mounted there, an overlay or a tmpfs, in one container or all; 'all-tmpfs' for every tmpfs of the
    /// configuration (repeatable)
    #[arg(long, value_name = "[CONTAINER:]PATH")]
    pub path: Vec<String>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}
