//! `tar`: what a container has changed.

#![forbid(unsafe_code)]

use crate::cli::{TarArgs, TarWhat};
use crate::global::Global;
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::process::ExitCode;

/// Writes the archive; a file that could not be written whole is removed.
pub fn run(global: &Global, args: TarArgs) -> Result<ExitCode> {
    let airlock = global.airlock()?;
    let TarWhat::RootfsUpper = args.what;
    let Some(path) = &args.file else {
        let out = std::io::stdout();
        if out.is_terminal() {
            return Err(Error::invalid_argument(
                "an archive is not for terminals: give --file, or redirect it",
            ));
        }
        return airlock.tar_rootfs_upper(&args.id, out.as_fd()).map(|()| ExitCode::SUCCESS);
    };
    // Before there is a file.
    airlock.state(&args.id)?;
    let file = File::create(path).map_err(|e| Error::from(e).context(format!("make {}", path.display())))?;
    airlock.tar_rootfs_upper(&args.id, file.as_fd()).inspect_err(|_| {
        if file.metadata().is_ok_and(|status| status.is_file()) {
            let _ = std::fs::remove_file(path);
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
