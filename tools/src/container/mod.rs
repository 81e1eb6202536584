//! The life cycle of containers, as the command line and the library client do it: create, start, run, exec, delete.
//!
//! Each function leaves the state directory so that a command that is killed at any step can be followed by another
//! one: `delete --force` clears everything away whatever happened before.

#![forbid(unsafe_code)]

pub mod checkpoint;
mod create;
mod delete;
mod exec;
pub mod filesystems;
mod fork;
pub(crate) mod host;
pub mod image;
mod making;
pub mod passed;
mod pidns;
mod pod;
mod process;
pub mod restore;
mod run;
mod start;
mod takeover;

pub use create::{Created, create};
pub use delete::{DeleteOptions, delete, purge};
pub use exec::{ExecOptions, Executed, exec, write_pid_file};
pub(crate) use fork::beside;
pub use fork::{ForkOptions, fork};
pub use host::HostCommand;
pub use process::{ProcessFlags, ProcessObject};
pub use run::{Outcome, run_detached, run_foreground};
pub use start::start;
pub use takeover::{Frames, Taken, Takeover};

use crate::gofer::Opened;
use crate::sandbox::SandboxOptions;
use airlock_wire::error::{Error, Result};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Descriptors 0 to 2 of a container's process.
#[derive(Debug)]
pub struct Stdio {
    /// stdin, stdout, stderr.
    pub fds: [OwnedFd; 3],
}

impl Stdio {
    /// This process' own three, duplicated.
    pub fn inherit() -> Result<Self> {
        let own = |fd: i32| {
            crate::sys::duplicate_number(fd)
                .map_err(|e| Error::from(e).context(format!("duplicate descriptor {fd}")))
        };
        Ok(Self { fds: [own(0)?, own(1)?, own(2)?] })
    }

    /// `/dev/null` three times.
    pub fn null() -> Result<Self> {
        let open = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let all = || -> std::io::Result<_> { Ok([open()?, open()?, open()?]) };
        Ok(Self { fds: all().map_err(|e| Error::from(e).context("open /dev/null"))? })
    }
}

/// How the process that stands for a subcontainer is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// By forking: only for single-threaded programs, as the command line is.
    #[default]
    Fork,
    /// By executing `airlock proxy`: for programs with threads.
    Execute,
}

/// What a container is created with besides its bundle. The default is a detached container without stdio.
#[derive(Debug, Default)]
pub struct CreateOptions {
    /// stdin, stdout, stderr; `/dev/null` when there are none. Not used with a terminal.
    pub stdio: Option<Stdio>,
    /// Sends the terminal's master there.
    pub console_socket: Option<PathBuf>,
    /// The caller relays the terminal itself: [`Created::console`] is its master.
    pub attached: bool,
    /// Sends a pidfd of the OCI pid there.
    pub pidfd_socket: Option<PathBuf>,
    /// Writes the OCI pid there: digits only.
    pub pid_file: Option<PathBuf>,
    /// Descriptors for the container, by number there.
    pub pass: Vec<(i32, OwnedFd)>,
    /// The caller passed systemd sockets: so many, from number 3 on. Sets `LISTEN_FDS` and `LISTEN_PID=1`.
    pub listen_fds: u32,
    /// The program, instead of the file that `process.args[0]` names.
    pub exec: Option<OwnedFd>,
    /// Debug log of the sandbox.
    pub log: Option<OwnedFd>,
    /// Its level: 0 off, 1 error … 5 trace.
    pub log_level: u8,
    /// The sandbox process can be profiled.
    pub profile: bool,
    /// Panics of the sandbox go there.
    pub panic_log: Option<OwnedFd>,
    /// Messages for the container's owner go there.
    pub user_log: Option<OwnedFd>,
    /// `cgroupsPath` is in systemd's form.
    pub systemd_cgroup: bool,
    /// Starts the program at once.
    pub autostart: bool,
    /// Instead of being started the container is restored from an image: at once with `autostart`, else by [`start`].
    pub restore: Option<restore::RestoreOptions>,
    /// An image that the caller has opened, and when its memory comes: the container is restored from it at once.
    pub image: Option<(image::Image, restore::Memory)>,
    /// A trace session that a new sandbox has from the beginning.
    pub trace: Option<crate::trace::Session>,
    /// Folder of an image of filesystems, which the container begins with.
    pub filesystems: Option<PathBuf>,
    /// User ids that may call the sandbox besides root.
    pub allowed_uids: Vec<u32>,
    /// Takes over the network namespace that a new sandbox's configuration joins, instead of joining it.
    pub takeover: Option<Takeover>,
    /// Overlay over root filesystem and mounts, in gVisor's form (`root:memory`).
    pub overlay: Option<String>,
    /// Mounts that the caller has opened already: the root filesystem, then those that the configuration's mounts need,
    /// in its order. Without them, they are opened as the configuration says.
    pub mounts: Option<Opened>,
    /// Which program becomes the sandbox.
    pub sandbox: SandboxOptions,
    /// How a subcontainer's proxy is made.
    pub proxy: ProxyMode,
}

/// The combinations of terminal, detaching and console socket that callers may ask for.
///
/// A detached container with a terminal needs a console socket to send the master to; a console socket makes sense only
/// then.
pub fn check_terminal(terminal: bool, detached: bool, console_socket: bool) -> Result<()> {
    match (terminal, detached, console_socket) {
        (true, true, false) => Err(Error::invalid_argument(
            "process.terminal is set and airlock detaches: give a --console-socket that takes the terminal",
        )),
        (false, _, true) => Err(Error::invalid_argument(
            "--console-socket is given but process.terminal is not set: nothing would be sent there",
        )),
        (true, false, true) => Err(Error::invalid_argument(
            "--console-socket is given but airlock does not detach: the terminal is relayed; drop one of the two",
        )),
        _ => Ok(()),
    }
}
