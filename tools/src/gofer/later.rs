//! What is mounted into a container that runs already.

#![forbid(unsafe_code)]

use super::bind::{self, BasePropagation};
use super::{image, missing};
use airlock_loader::oci::mounts::parse_options;
use airlock_wire::error::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Opens `source` of the host as a detached mount with `options` (those of a spec's `mounts`). `kind` is a file system, of
/// which `source` is an image file or a device (a tmpfs has none), or `bind` for a folder or a file itself; empty: whichever it is (of images,
/// only erofs is recognised). What is mounted below it on the host later on is seen in the container, but not the other way
/// round.
///
/// # Errors
/// With the path: it is missing, or cannot be mounted.
pub fn open_later(kind: &str, source: &Path, options: &[String]) -> Result<OwnedFd> {
    let options = parse_options(options);
    let context = |e: Error| e.context(source.display());
    let is_image = || -> Result<bool> {
        Ok(std::fs::metadata(source).map_err(missing)?.is_file() && image::is_erofs(source)?)
    };
    let mounted = match kind {
        "" if is_image().map_err(context)? => image::mount("erofs", source, &options)?,
        "" | "bind" | "none" => bind::clone(source, !options.bind).map_err(context)?,
        "tmpfs" => image::without_source(kind, &options).map_err(|e| e.context(kind))?,
        name => image::mount(name, source, &options)?,
    };
    bind::apply(mounted.as_fd(), &options, &BasePropagation::SLAVE).map_err(context)?;
    Ok(mounted)
}
