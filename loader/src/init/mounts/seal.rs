//! `readonlyPaths` and `maskedPaths`.

#![forbid(unsafe_code)]

use super::during;
use super::places::Places;
use crate::init::paths;
use crate::oci::mounts::clean_destination;
use crate::sys::mount::{
    self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MountAttr,
};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, major, minor};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Puts a read-only copy of each path over itself. What does not exist needs no protection.
pub(super) fn read_only_paths(places: &Places, list: &[String]) -> Result<()> {
    for path in list {
        let context = || format!("linux.readonlyPaths {path}");
        let Some(target) = find(places, path).map_err(during(context()))? else { continue };
        let seal = || {
            let tree = mount::clone_tree(target.as_fd(), true)?;
            let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..Default::default() };
            mount::mount_setattr(tree.as_fd(), &attr, false)?;
            mount::attach(tree.as_fd(), target.as_fd())
        };
        seal().map_err(during::<Errno>(context()))?;
    }
    Ok(())
}

/// Hides each path: directories under one empty read-only tmpfs that they share, everything else under `/dev/null`.
pub(super) fn masked_paths(places: &Places, list: &[String]) -> Result<()> {
    let mut null = None;
    let mut empty: Option<OwnedFd> = None;
    for path in list {
        let context = || format!("linux.maskedPaths {path}");
        let Some(target) = find(places, path).map_err(during(context()))? else { continue };
        let is_directory = paths::file_type(target.as_fd()).map_err(during(context()))? == SFlag::S_IFDIR;
        let mask = match (is_directory, &empty) {
            (true, Some(first)) => mount::clone_tree(first.as_fd(), false).map_err(during(context()))?,
            (true, None) => empty_directory().map_err(during(context()))?,
            (false, _) => {
                if null.is_none() {
                    null = Some(dev_null(places).map_err(during(context()))?);
                }
                let Some(null) = &null else { continue };
                mount::clone_tree(null.as_fd(), false).map_err(during(context()))?
            }
        };
        mount::attach(mask.as_fd(), target.as_fd()).map_err(during(context()))?;
        if is_directory && empty.is_none() {
            // Only a mount that is attached can be copied (before Linux 6.15), so the first serves as the pattern.
            empty = Some(mask);
        }
    }
    Ok(())
}

fn find(places: &Places, path: &str) -> Result<Option<OwnedFd>> {
    match places.open(&clean_destination(Path::new(path)), OFlag::O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn empty_directory() -> Result<OwnedFd> {
    let context = mount::fsopen("tmpfs")?;
    mount::fsconfig_string(context.as_fd(), "nr_blocks", "1")?;
    mount::fsconfig_string(context.as_fd(), "nr_inodes", "1")?;
    mount::fsconfig_string(context.as_fd(), "mode", "755")?;
    mount::fsconfig_flag(context.as_fd(), "ro")?;
    mount::fsconfig_create(context.as_fd())?;
    let attrs = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID;
    Ok(mount::fsmount(context.as_fd(), attrs)?)
}

/// The container's `/dev/null`, but only if it is the null device: everything that follows uses this descriptor, so
/// that putting something else in its place changes nothing.
fn dev_null(places: &Places) -> Result<OwnedFd> {
    let null = places
        .open(Path::new("/dev/null"), OFlag::O_PATH | OFlag::O_NOFOLLOW)
        .map_err(during("/dev/null, to mask with"))?;
    let status = fstat(&null)?;
    if paths::type_of(&status) != SFlag::S_IFCHR || (major(status.st_rdev), minor(status.st_rdev)) != (1, 3) {
        return Err(Error::invalid_argument("/dev/null of the container is not the null device (char 1:3)"));
    }
    Ok(null)
}
