//! Device rules and owners of cgroups, which take capabilities that the loader has given up.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker, exactly};
use crate::cgroup::is_cgroup_fs;
use crate::machine::Privileged;
use airlock_wire::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

/// Does what a container of the container API asks for to one directory of its cgroup, which is the descriptor.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CgroupWork {
    /// What is done.
    pub what: Privileged,
    /// The directory has the files of v2.
    pub v2: bool,
}

impl Task for CgroupWork {
    type Reply = ();

    fn run(self, _: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        let [dir] = exactly(fds)?;
        if !is_cgroup_fs(dir.as_fd())? {
            return Err(Error::invalid_argument("the directory is no cgroup"));
        }
        self.what.perform(dir.as_fd(), self.v2).map(Done::with)
    }
}
