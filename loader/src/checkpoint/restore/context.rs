//! What the parts of a restore share.
#![forbid(unsafe_code)]

use crate::checkpoint::order::RestoreOrder;
use crate::checkpoint::remote::fdpass::{Channel, Link};
use crate::checkpoint::remote::{Region, Tracee};
use crate::checkpoint::state::{Id, ProcessState, SandboxState};
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

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
    /// Inits that wait to become what the image says, by index of the container; taken by `tree::create`.
    pub stubs: Vec<Option<Stub>>,
    /// The way for descriptors into a container's processes, by index of the container.
    pub channels: Vec<Option<Channel>>,
    /// What came from outside: (container, number of the descriptor in its init), taken from the stubs.
    pub externals: BTreeMap<(Id, i32), OwnedFd>,
    /// Open file descriptions, by index of `state.files`; filled by `files::open_all`. Those of mappings too.
    pub files: Vec<Option<OwnedFd>>,
    /// Memory objects with their content, by index of `state.shmems`; SysV segments are in [`Context::segments`].
    pub shmems: Vec<Option<OwnedFd>>,
    /// Ids of SysV segments in the new IPC namespace, by index of `state.shmems`.
    pub segments: BTreeMap<Id, i32>,
    /// What there is to give to the processes; found out by `tree::create`.
    pub means: Means,
}

/// What the waiting inits have, and so the most that processes can be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Means {
    /// CPUs that they may run on.
    pub cpus: Vec<u32>,
    /// Capabilities.
    pub caps: u64,
    /// Additional groups. A user namespace may deny changing them.
    pub groups: Vec<u32>,
    /// Seccomp filters that were there before, and that every process has inherited.
    pub filters: u32,
}

/// A container's init that waits for its start, stopped and taken over.
#[derive(Debug)]
pub struct Stub {
    /// The init.
    pub tracee: Tracee,
    /// Its pidfd, through which its namespaces are entered.
    pub pidfd: OwnedFd,
    /// Where calls are injected: at the same address in every process.
    pub region: Region,
    /// Its end of the container's channel; the only descriptor that is left to it.
    pub link: Link,
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
    /// Its end of its container's channel, inherited from its parent; closed when its descriptors are in place.
    pub link: Option<Link>,
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
    /// At the beginning.
    pub fn new(order: RestoreOrder, procfs: ProcFs, state: SandboxState) -> Self {
        let (files, shmems) = (state.files.len(), state.shmems.len());
        Self {
            order,
            procfs,
            state,
            procs: Vec::new(),
            warnings: Vec::new(),
            stubs: Vec::new(),
            channels: Vec::new(),
            externals: BTreeMap::new(),
            files: std::iter::repeat_with(|| None).take(files).collect(),
            shmems: std::iter::repeat_with(|| None).take(shmems).collect(),
            segments: BTreeMap::new(),
            means: Means::default(),
        }
    }

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
