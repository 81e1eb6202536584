//! Files and mounts of a running container.

#![forbid(unsafe_code)]

use super::Airlock;
use crate::gofer::open_later;
use airlock_loader::oci::mounts::parse_options;
use airlock_loader::sys::mount as kernel;
use airlock_wire::api::fs;
use airlock_wire::error::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// What [`Airlock::mount`] mounts.
#[derive(Debug, Clone)]
pub struct MountRequest<'a> {
    /// `tmpfs`; `bind` for a folder or file of the host; a file system, whose image or device `source` is; empty for what
    /// `source` is (see [`crate::gofer::open_later`]).
    pub kind: &'a str,
    /// On the host; not used for a tmpfs.
    pub source: &'a Path,
    /// An absolute path in the container. A directory that is missing is made.
    pub target: &'a str,
    /// Options, as in a spec's `mounts`.
    pub options: &'a [String],
}

impl Airlock {
    /// Writes a file of a container to `out`: `size` bytes (0: all) from `offset` on. Blocks until it is written.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; it cannot be read, or written.
    pub fn read_file(
        &self,
        id: &str,
        path: &str,
        (offset, size): (i64, i64),
        out: BorrowedFd<'_>,
    ) -> Result<()> {
        let state = self.alive(id)?;
        let opts = fs::ReadOpts { container_id: state.id.clone(), path: path.to_owned(), offset, size };
        self.states.connect(&state)?.call::<fs::Read>(&opts, &[out]).map(drop)
    }

    /// Writes the upper layer of a container's root filesystem to `out`, as a tar archive that can be a layer of an OCI
    /// image. The sandbox stands still until that is done.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; `rootfs is not an overlayfs`: it was not made with `--overlay2`.
    pub fn tar_rootfs_upper(&self, id: &str, out: BorrowedFd<'_>) -> Result<()> {
        let state = self.alive(id)?;
        let opts = fs::TarRootfsUpperLayerOpts { container_id: state.id.clone() };
        self.states.connect(&state)?.call::<fs::TarRootfsUpperLayer>(&opts, &[out]).map(drop)
    }

    /// Mounts something in a running container.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; the source or the target cannot be mounted.
    pub fn mount(&self, id: &str, request: &MountRequest<'_>) -> Result<()> {
        let state = self.alive(id)?;
        let mut opts = fs::MountOpts {
            container_id: state.id.clone(),
            source: request.source.display().to_string(),
            target: request.target.to_owned(),
            fs_type: "bind".to_owned(),
            ..fs::MountOpts::default()
        };
        let mut client = self.states.connect(&state)?;
        if request.kind == "tmpfs" {
            opts.fs_type = "tmpfs".to_owned();
            (opts.flags, opts.data) = tmpfs_options(request.options)?;
            return client.call::<fs::Mount>(&opts, &[]).map(drop);
        }
        let mounted = open_later(request.kind, request.source, request.options)?;
        client.call::<fs::Mount>(&opts, &[mounted.as_fd()]).map(drop)
    }

    /// Unmounts in a running container; `flags` are umount2(2)'s.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; `failed to unmount T: …`.
    pub fn umount(&self, id: &str, target: &str, flags: u32) -> Result<()> {
        let state = self.alive(id)?;
        let opts = fs::UmountOpts { container_id: state.id.clone(), target: target.to_owned(), flags };
        self.states.connect(&state)?.call::<fs::Umount>(&opts, &[]).map(drop)
    }
}

/// Flags of mount(2), and what is left for the file system.
fn tmpfs_options(words: &[String]) -> Result<(u64, String)> {
    const FLAGS: [(u64, u64); 5] = [
        (kernel::MOUNT_ATTR_RDONLY, libc::MS_RDONLY),
        (kernel::MOUNT_ATTR_NOSUID, libc::MS_NOSUID),
        (kernel::MOUNT_ATTR_NODEV, libc::MS_NODEV),
        (kernel::MOUNT_ATTR_NOEXEC, libc::MS_NOEXEC),
        (kernel::MOUNT_ATTR_NOATIME, libc::MS_NOATIME),
    ];
    let options = parse_options(words);
    let attrs = options.new_mount_attrs();
    let known = FLAGS.iter().fold(0, |all, (attr, _)| all | attr);
    if attrs & !known != 0 || !options.propagation.is_empty() || !options.superblock.is_empty() {
        return Err(Error::unsupported(
            "options of a tmpfs: ro, nosuid, nodev, noexec, noatime, and its own (size, mode, …)",
        ));
    }
    let flags = FLAGS.iter().filter(|(attr, _)| attrs & attr != 0).fold(0, |all, (_, flag)| all | flag);
    let data = options.data.iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    });
    Ok((flags, data.collect::<Vec<_>>().join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_tmpfs_are_flags_and_its_own() {
        let of = |words: &str| tmpfs_options(&[words.to_owned()]);
        assert_eq!(
            of("ro,nosuid,size=1m,mode=700"),
            Ok((libc::MS_RDONLY | libc::MS_NOSUID, "size=1m,mode=700".to_owned()))
        );
        assert_eq!(of("defaults,noswap"), Ok((0, "noswap".to_owned())));
        assert!(of("shared").is_err() && of("nodiratime").is_err() && of("sync").is_err());
    }
}
