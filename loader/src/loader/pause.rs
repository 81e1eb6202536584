//! Freezing: the whole sandbox (counted, as in gVisor) or one container (OCI pause).
#![forbid(unsafe_code)]

use super::Loader;
use crate::container::{Container, State, lock};
use airlock_wire::error::{Error, Result};

impl Loader {
    /// Freezes all containers; blocks until none of their processes runs. Nests: as many [`Loader::resume`]
    /// calls are needed.
    ///
    /// # Errors
    /// When the freezer refuses; what was frozen is thawed again.
    pub fn pause(&self) -> Result<()> {
        let mut pauses = lock(&self.pauses);
        if *pauses == 0 {
            for container in self.containers() {
                if let Err(e) = freeze(&container, true) {
                    for container in self.containers() {
                        let _ = freeze(&container, false);
                    }
                    return Err(e);
                }
            }
        }
        *pauses += 1;
        Ok(())
    }

    /// Undoes one [`Loader::pause`].
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::InvalidState`] when nothing is paused.
    pub fn resume(&self) -> Result<()> {
        let mut pauses = lock(&self.pauses);
        match *pauses {
            0 => Err(Error::invalid_state("the sandbox is not paused")),
            1 => {
                for container in self.containers() {
                    freeze(&container, false)?;
                }
                *pauses = 0;
                Ok(())
            }
            _ => {
                *pauses -= 1;
                Ok(())
            }
        }
    }

    /// Freezes or thaws one container (OCI `pause`, `resume`).
    ///
    /// # Errors
    /// When it is not running, or already as wanted.
    pub fn pause_container(&self, cid: &str, on: bool) -> Result<()> {
        let container = self.container(cid)?;
        // Held while a checkpoint makes the containers stand still.
        let mut pauses = lock(&self.pauses);
        if !can_freeze(&container) {
            return Err(Error::invalid_state("container not running".to_owned()));
        }
        let frozen = self.is_paused(&container);
        if frozen == on {
            return Err(Error::invalid_state(format!(
                "container {cid:?} is {}",
                if on { "already paused" } else { "not paused" }
            )));
        }
        freeze(&container, on)?;
        if !on && container.root {
            *pauses = 0;
        }
        Ok(())
    }

    /// True while the container is frozen.
    pub fn is_paused(&self, container: &Container) -> bool {
        container.state() != State::Stopped
            && container.cgroup.get().is_some_and(|c| c.frozen().unwrap_or(false))
    }
}

/// One that is being restored must not stop in the middle of it.
fn can_freeze(container: &Container) -> bool {
    container.state() == State::Created || container.state().runs()
}

fn freeze(container: &Container, on: bool) -> Result<()> {
    if !can_freeze(container) {
        return Ok(());
    }
    container.cgroup()?.freeze(on).map_err(|e| {
        e.context(format!("{} container {:?}", if on { "freezing" } else { "thawing" }, container.cid))
    })
}
