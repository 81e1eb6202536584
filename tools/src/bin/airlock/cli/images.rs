//! Commands about images: what makes them, what is made of them, what looks at them.

use super::{ContainerArgs, TableFormat};
use crate::values::{EnvVar, parse_env};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// Restore the container from the image in this folder instead of running its program
    #[arg(long, value_name = "DIR")]
    pub image_path: Option<PathBuf>,
    /// With --image-path: let the programs run first and bring their memory later
    #[arg(long, requires = "image_path")]
    pub background: bool,
    /// With --image-path: file with the key that the image was made with
    #[arg(long, value_name = "FILE", requires = "image_path")]
    pub key_file: Option<PathBuf>,
    /// Begin with the filesystems of the image in this folder (of 'fscheckpoint')
    #[arg(long, value_name = "DIR", conflicts_with = "image_path")]
    pub fs_restore_image_path: Option<PathBuf>,
}

/// Save a container's sandbox as an image and end it
///
/// The image can be restored any number of times, here or on another machine with the same airlock. What cannot be saved
/// is named, all of it, before anything is disturbed.
#[derive(Debug, Clone, Args)]
pub struct CheckpointArgs {
    /// Folder for the image: checkpoint.img, pages_meta.img, pages.img; one that is there is replaced when the new one
    /// is complete
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Folder for dump.log, which says what was done
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Let the container go on
    #[arg(long)]
    pub leave_running: bool,
    /// Only say what could not be saved
    #[arg(long)]
    pub dry_run: bool,
    /// Compress the image: none, lz4, zstd, or gVisor's flate-best-speed
    #[arg(long, value_name = "METHOD", default_value = "none")]
    pub compression: String,
    /// Write pages past the page cache (O_DIRECT)
    #[arg(long)]
    pub direct: bool,
    /// Accepted and not needed: pages of zeros are never stored
    #[arg(long)]
    pub exclude_committed_zero_pages: bool,
    /// File with a key: only who has it can restore the image
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Keep a NAME=VALUE in the image's metadata (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_env)]
    pub metadata: Vec<EnvVar>,
    /// Save memory alone and let the container go on; a later checkpoint with --parent-path stores what has changed
    #[arg(long)]
    pub pre_dump: bool,
    /// Folder of an earlier image, as seen from --image-path: store only pages that have changed since
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<PathBuf>,
    /// Keep TCP connections that leave the sandbox
    #[arg(long)]
    pub tcp_established: bool,
    /// Accepted and not needed: connections that nobody has accepted yet are not kept
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Save unix sockets that are connected to the outside
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Save file locks
    #[arg(long)]
    pub file_locks: bool,
    #[command(flatten)]
    pub criu: CriuArgs,
    /// Not supported: a complete image is never changed
    #[arg(long, hide = true)]
    pub auto_dedup: bool,
    /// Not supported: 'restore --background' brings pages later
    #[arg(long, hide = true)]
    pub lazy_pages: bool,
    /// Not supported: images are files
    #[arg(long, value_name = "ADDRESS:PORT", hide = true)]
    pub page_server: Option<String>,
    /// Not supported: there is no page server to become ready
    #[arg(long, value_name = "FD", hide = true)]
    pub status_fd: Option<i32>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Options of runc that are about CRIU, which both commands take
#[derive(Debug, Clone, Args)]
pub struct CriuArgs {
    /// Accepted and not needed: terminals are always handled
    #[arg(long)]
    pub shell_job: bool,
    /// Accepted: 'soft' and 'ignore'; a restored container gets the cgroups of its own configuration
    #[arg(long, value_name = "MODE")]
    pub manage_cgroups_mode: Option<String>,
    /// Accepted: 'network' (repeatable); an image does not hold the configuration of a network namespace
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<String>,
}

/// Create a container and restore it from an image
///
/// As 'run', but the program goes on where it was when the image was made. A container of a pod is restored when all
/// containers of the image have come.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub container: ContainerArgs,
    /// Folder of the image
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Folder for restore.log, which says what was done
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Return as soon as the program runs
    #[arg(long, short)]
    pub detach: bool,
    /// Let the programs run first and bring their memory later
    #[arg(long, visible_alias = "lazy-pages")]
    pub background: bool,
    /// File with the key that the image was made with
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Keep the container's state after it has ended
    #[arg(long)]
    pub keep: bool,
    /// Keep TCP connections that leave the sandbox
    #[arg(long)]
    pub tcp_established: bool,
    /// Accepted: without --tcp-established such connections are closed anyway
    #[arg(long, conflicts_with = "tcp_established")]
    pub tcp_close: bool,
    /// Accepted and not needed: the image says what it has
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Accepted and not needed: the image says what it has
    #[arg(long)]
    pub file_locks: bool,
    #[command(flatten)]
    pub criu: CriuArgs,
    /// Accepted and not needed: airlock never adopts a container's orphans
    #[arg(long)]
    pub no_subreaper: bool,
    /// Not supported: a complete image is never changed
    #[arg(long, hide = true)]
    pub auto_dedup: bool,
    /// Refused unless empty, as labels in a configuration are
    #[arg(long, value_name = "PROFILE")]
    pub lsm_profile: Option<String>,
    /// Refused unless empty, as labels in a configuration are
    #[arg(long, value_name = "LABEL")]
    pub lsm_mount_context: Option<String>,
}

/// Make further sandboxes that begin where one is now
///
/// The container, running or paused, goes on as it was. One fork is called NEW-ID, several NEW-ID-1, NEW-ID-2 and so on.
/// They run detached, with the caller's stdin, stdout and stderr.
#[derive(Debug, Clone, Args)]
pub struct ForkArgs {
    /// How many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
    /// Give each fork a copy of all memory at once. Otherwise memory comes when a fork touches it, and what none of them
    /// touches is there once for all
    #[arg(long)]
    pub copy: bool,
    /// Unix socket that receives the masters of the new containers' terminals
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the new container's pid to this file (of one fork only)
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
    /// Name of the new container
    #[arg(value_name = "NEW-ID")]
    pub new_id: String,
}

/// What `statefile` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatefileAction {
    /// Metadata and sections
    Show,
    /// Processes; the other word picks one
    Ps,
    /// Descriptors and what they refer to
    Fds,
    /// Mappings, and how much of each is stored
    Maps,
    /// Check every checksum; ends with status 1 if something is damaged
    Verify,
    /// Compare with another image; ends with status 1 if they differ
    Diff,
}

/// Look at an image: what is in it, whether it is sound, how it differs from another
///
/// Reads images without restoring them; no sandbox is needed. Ends with status 2 when an image cannot be read.
#[derive(Debug, Clone, Args)]
pub struct StatefileArgs {
    /// Form of what is printed
    #[arg(long, short, value_enum, default_value = "table")]
    pub format: TableFormat,
    /// File with the key that the image was made with; without it a seal is not checked
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// What to do
    #[arg(value_name = "ACTION", value_enum)]
    pub action: StatefileAction,
    /// Folder of the image, or its statefile
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// For ps, fds and maps: only this process, a pid as its container sees it; for diff: the other image
    #[arg(value_name = "PID|IMAGE")]
    pub other: Option<std::ffi::OsString>,
}
