//! Names for addresses of a process: the loader's own root is empty, so it cannot open the libraries that it uses.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use crate::stacks::names::Place;
use crate::stacks::{self, Files, Names, Space};
use airlock_wire::error::Result;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Processor time for one task.
const EFFORT: Duration = Duration::from_secs(60);

/// Names addresses in process `pid` of the sandbox's pid namespace. Takes no descriptors. Answers in the same order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct NameAddresses {
    /// The process.
    pub pid: i32,
    /// Addresses in it.
    pub addresses: Vec<u64>,
}

impl Task for NameAddresses {
    type Reply = Vec<Place>;

    fn run(self, worker: &Worker, _: Vec<OwnedFd>) -> Result<Done<Self::Reply>> {
        stacks::limit_effort(EFFORT);
        let (mut files, mut names) = (Files::default(), Names::default());
        let space = Space::read(&worker.procfs, self.pid, &mut files)?;
        Ok(Done::with(self.addresses.iter().map(|a| names.place(&worker.procfs, &space, *a)).collect()))
    }
}
