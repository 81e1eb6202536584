//! Images of filesystems: see [`crate::checkpoint::filesystems`].
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use crate::checkpoint::agent::next_fd;
use crate::checkpoint::filesystems::{Found, Manifest, Place, Wanted, restore};
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, OwnedFd};

/// Saves filesystems of containers that stand still. Descriptors: the manifest and the trees; then for each container its
/// pidfd and the layers of its `upper`. The first answer, [`Captured`], says that the containers may go on; a second one,
/// `Result<(), Error>`, that the image is complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SaveFilesystems {
    /// The containers.
    pub places: Vec<Place>,
    /// What is saved.
    pub wanted: Vec<Wanted>,
    /// Bytes of memory that may be used to let the containers go on before everything is written.
    pub room: u64,
}

/// The containers may go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The trees are in memory, and are yet to be written.
    pub in_memory: bool,
    /// Files saved.
    pub files: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

/// Makes filesystems of a container that waits for its start what an image says. Descriptors: the manifest, the trees,
/// the container's pidfd. Answers what could not be made the same; an image that has nothing for it is an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreFilesystems(pub Place);

impl Task for SaveFilesystems {
    type Reply = Captured;

    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<Captured>> {
        let mut fds = fds.into_iter();
        let manifest_file = File::from(next_fd(&mut fds, "manifest")?);
        let trees = File::from(next_fd(&mut fds, "trees")?);
        let mut found = Found::new();
        for (index, place) in self.places.iter().enumerate() {
            let target = next_fd(&mut fds, "container")?;
            let layers: Vec<OwnedFd> =
                place.upper.iter().map(|_| next_fd(&mut fds, "layer")).collect::<Result<_>>()?;
            found
                .look(&worker.procfs, index, place, (target.as_fd(), &layers), &self.wanted)
                .map_err(|e| e.context(format!("container {:?}", place.cid)))?;
        }
        if found.is_empty() {
            return Err(Error::invalid_state("no checkpointable filesystems"));
        }
        let in_memory = found.size().is_some_and(|size| size < self.room);
        let memory = if in_memory {
            let made = memfd_create(c"airlock-filesystems", MFdFlags::MFD_CLOEXEC);
            Some(File::from(made.map_err(|e| Error::from(e).context("memory for the filesystems"))?))
        } else {
            None
        };
        let to = memory.as_ref().unwrap_or(&trees).try_clone()?;
        let manifest = found.write(to, &self.places, !in_memory)?;
        let sum = |of: fn(&crate::checkpoint::state::FilesystemState) -> u64| {
            manifest.filesystems.iter().map(of).sum()
        };
        let reply = Captured { in_memory, files: sum(|f| f.files), bytes: sum(|f| f.bytes) };
        // Closing a detached mount waits for the kernel; the worker's end does it.
        std::mem::forget(found);
        let then = move |worker: &Worker| {
            let written = complete(memory, &trees, &manifest_file, &manifest);
            binary::send(&worker.channel, &written, &[])
        };
        Ok(Done { reply, fds: Vec::new(), then: Some(Box::new(then)) })
    }
}

/// The trees first: a manifest says that they are there.
fn complete(memory: Option<File>, trees: &File, manifest_file: &File, manifest: &Manifest) -> Result<()> {
    if let Some(mut memory) = memory {
        memory.rewind()?;
        let mut to = trees;
        to.set_len(0)?;
        to.rewind()?;
        std::io::copy(&mut memory, &mut to)?;
        to.sync_data()?;
    }
    manifest.write(manifest_file)
}

impl Task for RestoreFilesystems {
    type Reply = Vec<String>;

    fn run(self, _: &Worker, fds: Vec<OwnedFd>) -> Result<Done<Self::Reply>> {
        let [manifest, trees, target] = super::exactly(fds)?;
        let mut manifest = File::from(manifest);
        manifest.rewind()?;
        let manifest = Manifest::read(&mut manifest)?;
        if manifest.of(&self.0.name).next().is_none() {
            return Err(Error::no_such_entity(format!(
                "no filesystems restored for container {}: the image is of {:?}, and this is {:?}",
                self.0.cid, manifest.containers, self.0.name
            )));
        }
        Ok(Done::with(restore(&manifest, File::from(trees), &self.0, target.as_fd())?))
    }
}
