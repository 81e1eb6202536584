//! Images of filesystems alone, in folders: what `fscheckpoint` writes and `--fs-restore-image-path` reads.

#![forbid(unsafe_code)]

use super::checkpoint::{running, wait_for_end};
use crate::state::StateDir;
use airlock_wire::api::airlock as api;
use airlock_wire::api::container_manager as cm;
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Result};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Files of an image, runsc's names: manifest, trees, and two that airlock leaves empty.
const NAMES: [&str; 4] = ["fscheckpoint.pb", "multitar.img", "pages_meta.img", "pages.img"];

/// Saves filesystems of the sandbox of container `id` into the folder `image`, which is made where it is missing: those
/// that `paths` name, or the upper layers of all root filesystems if there are none. The containers go on with
/// `leave_running`; otherwise they have ended, with exit code 0, when this returns. An older image in the folder is lost.
///
/// # Errors
/// `container does not exist`; it is not running, or not its sandbox's root container; `no checkpointable filesystems`; what
/// cannot be read or written. Then the containers go on, and there is no image.
pub fn fscheckpoint(
    dir: &StateDir,
    id: &str,
    image: &Path,
    paths: Vec<cm::FsPath>,
    leave_running: bool,
) -> Result<()> {
    let state = running(dir, id)?;
    let failed = |e: std::io::Error| Error::from(e).context(format!("image directory {}", image.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(image).map_err(failed)?;
    let new = |name: &&str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(image.join(name))
    };
    let files = NAMES.iter().map(new).collect::<std::io::Result<Vec<File>>>().map_err(failed)?;
    let opts = cm::FsSaveOpts { paths, exit_after_saving: !leave_running, ..cm::FsSaveOpts::default() };
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    dir.connect(&state)?.call::<cm::FSSave>(&opts, &fds).inspect_err(|_| {
        for name in NAMES {
            let _ = std::fs::remove_file(image.join(name));
        }
    })?;
    if leave_running { Ok(()) } else { wait_for_end(&state) }
}

/// An image of filesystems, opened.
#[derive(Debug)]
pub(super) struct FsImage([File; 2]);

impl FsImage {
    /// Opens the image in the folder `image`.
    pub fn open(image: &Path) -> Result<Self> {
        let open = |name: &str| {
            let path = image.join(name);
            File::open(&path)
                .map_err(|e| Error::from(e).context(format!("{} of a filesystem checkpoint", path.display())))
        };
        Ok(Self([open(NAMES[0])?, open(NAMES[1])?]))
    }

    /// Has the sandbox behind `client` restore what is in it of container `cid`, which has not been started.
    pub fn restore(&self, client: &mut Client, cid: &str) -> Result<()> {
        let args = api::ContainerId { cid: cid.to_owned() };
        let fds = self.0.each_ref().map(AsFd::as_fd);
        let warnings = client.call::<api::RestoreFilesystems>(&args, &fds)?.value;
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        Ok(())
    }
}
