//! What the parts of a restore share.
#![forbid(unsafe_code)]

use crate::checkpoint::order::RestoreOrder;
use crate::checkpoint::remote::{Region, Tracee};
use crate::checkpoint::state::{Id, ProcessState, SandboxState};
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};

/// A restore on its way.
#[derive(Debug)]
pub struct Context {
    /// What was ordered.
    pub order: RestoreOrder,
    /// A procfs of the sandbox's pid namespace: paths in it take [`Proc::pid`] and `Tracee::tid`.
    pub procfs: ProcFs,
    /// The image's state; its indexes have been checked.
    pub state: SandboxState,
    /// The processes that have been made. A process has the same index here and in `state.processes`. Empty before
    /// `tree::create`; those of containers that are not restored by this order are none.
    pub procs: Vec<Option<Proc>>,
    /// What is different from what was saved, in words.
    pub warnings: Vec<String>,
}

/// A process that is being restored. It is killed when this is dropped before `task::release`.
#[derive(Debug)]
pub struct Proc {
    /// Index in `state.processes`.
    pub index: usize,
    /// Index of its container in the image.
    pub container: Id,
    /// Pid in the sandbox's pid namespace.
    pub pid: i32,
    /// Pid in its own pid namespace.
    pub ns_pid: i32,
    /// Its threads, the leader first, in the order of the state's; the leader alone before `task::make_threads`. None
    /// for a zombie, which has ended already.
    pub threads: Vec<Tracee>,
    /// Where calls are injected: at the same address in every process of the container.
    pub region: Region,
}

impl Proc {
    /// The thread through which calls are injected, and where.
    ///
    /// # Errors
    /// When it is a zombie.
    pub fn injector(&mut self) -> Result<(&mut Tracee, Region)> {
        let (pid, region) = (self.ns_pid, self.region);
        let leader = self.threads.first_mut();
        Ok((leader.ok_or_else(|| Error::failure(format!("process {pid} has ended")))?, region))
    }
}

impl Context {
    /// What the image says of process `index`, and the process.
    pub fn process(&mut self, index: usize) -> Option<(&ProcessState, &mut Proc)> {
        Some((self.state.processes.get(index)?, self.procs.get_mut(index)?.as_mut()?))
    }

    /// Notes a difference, once.
    pub fn warn(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }
}
