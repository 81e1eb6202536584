//! Bind mounts: detached copies of the host's mounts, with attributes and propagation.

#![forbid(unsafe_code)]

use super::missing;
use airlock_loader::oci::mounts::{MountOptions, parse_propagation};
use airlock_loader::sys::mount::{self, AT_RECURSIVE, MountAttr, OPEN_TREE_CLONE, Propagation};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use oci_spec::runtime::Spec;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// A detached copy of what is at `source` on the host, symbolic links followed.
pub(super) fn clone(source: &Path, recursive: bool) -> Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | if recursive { AT_RECURSIVE } else { 0 };
    mount::open_tree(AT_FDCWD, source, flags).map_err(|e| match e {
        Errno::EINVAL => Error::invalid_argument(
            "cannot be bind mounted: it lies on a mount that is unbindable, or is not in this mount namespace",
        ),
        e => missing(e.into()),
    })
}

/// How a copy of a host mount relates to its original before the entry's own options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BasePropagation {
    propagation: Propagation,
    peers: bool,
}

impl BasePropagation {
    /// Without a spec.
    pub(super) const SLAVE: Self = Self { propagation: Propagation::Slave, peers: false };

    /// From `linux.rootfsPropagation`. A copy of a shared mount is a peer of the original: what the container mounts
    /// below it would appear on the host. So copies are slaves (private if the spec says so) from the start; only
    /// where both the rootfs and an entry ask for `shared` do they stay peers, which is what a Kubernetes volume with
    /// bidirectional propagation is.
    pub(super) fn of(spec: &Spec) -> Result<Self> {
        let word = spec.linux().as_ref().and_then(|l| l.rootfs_propagation().as_deref()).unwrap_or("");
        if word.is_empty() {
            return Ok(Self::SLAVE);
        }
        let (propagation, _) = parse_propagation(word).ok_or_else(|| {
            Error::invalid_argument(format!(
                "linux.rootfsPropagation: {word:?} is none of private, shared, slave, unbindable and their r… forms"
            ))
        })?;
        Ok(match propagation {
            Propagation::Private | Propagation::Unbindable => {
                Self { propagation: Propagation::Private, peers: false }
            }
            Propagation::Slave => Self { propagation, peers: false },
            Propagation::Shared => Self { propagation: Propagation::Slave, peers: true },
        })
    }

    pub(super) fn apply_to_rootfs(self, fd: BorrowedFd<'_>) -> Result<()> {
        propagate(fd, self.propagation, true)
    }
}

fn propagate(fd: BorrowedFd<'_>, propagation: Propagation, recursive: bool) -> Result<()> {
    let attr = MountAttr { propagation: Some(propagation), ..Default::default() };
    mount::mount_setattr(fd, &attr, recursive).map_err(|e| Error::from(e).context("setting propagation"))
}

/// Gives a detached mount the attributes and the propagation of its entry. `ro` and the like act on the mount itself,
/// as in runc; `rro` and the like on everything below it too.
pub(super) fn apply(fd: BorrowedFd<'_>, options: &MountOptions, base: &BasePropagation) -> Result<()> {
    let last = options.propagation.last().map(|(p, _)| *p);
    let stays_peer = base.peers && last == Some(Propagation::Shared);
    let covered = options.propagation == [(Propagation::Private, true)];
    if !stays_peer && !covered {
        propagate(fd, base.propagation, true)?;
    }
    for (propagation, recursive) in &options.propagation {
        propagate(fd, *propagation, *recursive)?;
    }
    for (change, recursive) in [(options.attrs, false), (options.recursive, true)] {
        if !change.is_empty() {
            let attr = MountAttr { set: change.set, clear: change.clear, ..Default::default() };
            mount::mount_setattr(fd, &attr, recursive).map_err(|e| {
                let hint = match e {
                    Errno::EPERM => " (an attribute is locked by the owner of the mount, and this caller may not change it)",
                    Errno::EBUSY => " (files on it are open for writing)",
                    _ => "",
                };
                Error::from(e).context(format!("changing mount attributes{hint}"))
            })?;
        }
    }
    Ok(())
}
