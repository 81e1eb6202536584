//! The global options, once they are decided.

#![forbid(unsafe_code)]

use crate::cli::{GlobalArgs, Rootless};
use crate::logging;
use airlock::client::Airlock;
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::path::PathBuf;

/// What every command gets besides its own options.
#[derive(Debug, Clone)]
pub struct Global {
    /// The options as they were given.
    pub args: GlobalArgs,
    /// Folder of the container states, absolute.
    pub root: PathBuf,
}

impl Global {
    /// Decides the options: defaults, and what this build cannot do yet.
    ///
    /// # Errors
    /// `--rootless=true`; an empty `--root`.
    pub fn new(args: GlobalArgs) -> Result<Self> {
        if args.rootless == Rootless::True {
            return Err(Error::unsupported(
                "--rootless=true: running without root comes later; run airlock as root with --rootless=false",
            ));
        }
        let root = match &args.root {
            Some(root) if root.as_os_str().is_empty() => {
                return Err(Error::invalid_argument(
                    "--root is empty: name the folder that holds the states",
                ));
            }
            Some(root) => std::path::absolute(root)
                .map_err(|e| Error::from(e).context(format!("--root {}", root.display())))?,
            None => default_root(),
        };
        Ok(Self { args, root })
    }

    /// The containers below the state directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn airlock(&self) -> Result<Airlock> {
        Airlock::open(&self.root)
    }

    /// The file that a new sandbox logs to, when `--debug-log` asks for one.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_debug_log(&self, id: &str) -> Result<Option<File>> {
        logging::open_pattern(self.args.debug_log.as_deref(), "boot", id)
    }

    /// The file that a sandbox writes its last words to, when `--panic-log` asks for one.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_panic_log(&self, id: &str) -> Result<Option<File>> {
        logging::open_pattern(self.args.panic_log.as_deref(), "boot", id)
    }
}

/// `/run/airlock` for root, whatever its environment says: podman and containerd call some commands with
/// XDG_RUNTIME_DIR set and others without.
fn default_root() -> PathBuf {
    if !nix::unistd::geteuid().is_root()
        && let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())
    {
        return PathBuf::from(dir).join("airlock");
    }
    PathBuf::from("/run/airlock")
}
