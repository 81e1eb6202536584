//! Files and mounts of running containers. Workers do it ([`crate::worker`]), inside the container's mount namespace.
#![forbid(unsafe_code)]

use super::Loader;
use crate::container::{Container, Process};
use crate::worker::{Mount, ReadFiles, TarUpper, Unmount};
use airlock_wire::error::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Blocks until a descriptor is readable, or nobody wants the answer any more, which is an error.
pub type Wait<'a> = &'a dyn Fn(BorrowedFd<'_>) -> Result<()>;

impl Loader {
    /// A container with an init that has not ended; its program may not have been started.
    fn with_init(&self, cid: &str) -> Result<(Arc<Container>, Arc<Process>)> {
        let container = self.container(cid)?;
        let init = container.init().filter(|init| init.status().is_none() && init.ns_pid() > 0);
        let init = init.ok_or_else(|| {
            Error::no_such_entity(format!("failed to find process associated with container {cid}"))
        })?;
        Ok((container, init))
    }

    /// Writes files of container `cid` to `out`, as [`ReadFiles`] does. Blocks as long as that takes or `wait` allows.
    ///
    /// # Errors
    /// `container "X" not found`; `failed to find process associated with container X`; `cannot read from file P: …`.
    pub fn read_files(&self, cid: &str, files: ReadFiles, out: &OwnedFd, wait: Wait<'_>) -> Result<()> {
        let (_, init) = self.with_init(cid)?;
        self.work_while(files, &[init.pidfd(), out.as_fd()], wait).map(drop)
    }

    /// Mounts something in container `cid`; `given` is the descriptor that its [`Filesystem`](crate::worker::Filesystem) wants.
    ///
    /// # Errors
    /// As [`Loader::read_files`]; what the kernel has against it.
    pub fn mount(&self, cid: &str, mount: Mount, given: Option<&OwnedFd>) -> Result<()> {
        let (_, init) = self.with_init(cid)?;
        let fds: Vec<BorrowedFd<'_>> =
            std::iter::once(init.pidfd()).chain(given.into_iter().map(AsFd::as_fd)).collect();
        self.work(mount, &fds).map(drop)
    }

    /// Unmounts in container `cid`.
    ///
    /// # Errors
    /// As [`Loader::mount`].
    pub fn unmount(&self, cid: &str, unmount: Unmount) -> Result<()> {
        let (_, init) = self.with_init(cid)?;
        self.work(unmount, &[init.pidfd()]).map(drop)
    }

    /// Writes the upper layer of the root filesystem of container `cid` to `out`, as [`TarUpper`] does. All containers stand
    /// still meanwhile. Blocks as long as that takes or `wait` allows.
    ///
    /// # Errors
    /// `failed to find process associated with container X`, `rootfs is not an overlayfs`; what cannot be read.
    pub fn tar_upper(&self, cid: &str, out: &OwnedFd, wait: Wait<'_>) -> Result<()> {
        let missing =
            |_| Error::no_such_entity(format!("failed to find process associated with container {cid}"));
        let (container, _) = self.with_init(cid).map_err(missing)?;
        let layers = container.layers.get().map(Vec::as_slice).unwrap_or_default();
        let layer = layers
            .iter()
            .find(|layer| layer.place == "/")
            .ok_or_else(|| Error::invalid_state("rootfs is not an overlayfs"))?;
        self.pause()?;
        let fds = [layer.fd.as_fd(), out.as_fd()];
        let done = self.work_while(TarUpper { on_disk: layer.on_disk }, &fds, wait).map(drop);
        let resumed = self.resume();
        done.and(resumed)
    }
}
