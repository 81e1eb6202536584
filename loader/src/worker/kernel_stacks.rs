//! Kernel stacks of threads, which only `CAP_SYS_ADMIN` may read.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker};
use airlock_wire::error::Result;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// Reads `/proc/<pid>/task/<tid>/stack` (proc(5)) of threads, given as (pid, tid) in the sandbox's pid namespace. Takes no
/// descriptors. Answers in the same order: the text, or why there is none.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct KernelStacks(pub Vec<(i32, i32)>);

impl Task for KernelStacks {
    type Reply = Vec<std::result::Result<String, String>>;

    fn run(self, worker: &Worker, _: Vec<OwnedFd>) -> Result<Done<Self::Reply>> {
        let stack = |(pid, tid): (i32, i32)| {
            worker.procfs.read_path(&format!("{pid}/task/{tid}/stack")).map_err(|e| e.to_string())
        };
        Ok(Done::with(self.0.into_iter().map(stack).collect()))
    }
}
