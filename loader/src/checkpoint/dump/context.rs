//! What the parts of a dump share.
#![forbid(unsafe_code)]

use super::smaps::RawVma;
use super::status::Status;
use super::waits::Sleepers;
use crate::checkpoint::order::DumpOrder;
use crate::checkpoint::remote::{Region, Tracee};
use crate::checkpoint::state::{Id, Life, Refusal, SandboxState, ShmemState};
use crate::procfs::ProcFs;
use std::os::fd::OwnedFd;

/// A dump on its way.
#[derive(Debug)]
pub struct Context {
    /// What was ordered.
    pub order: DumpOrder,
    /// A procfs of the sandbox's pid namespace: paths in it take [`Proc::pid`] and `Tracee::tid`.
    pub procfs: ProcFs,
    /// Processes, all their threads stopped. Parents are before children. `state.processes` has the same order: a
    /// process has the same index here and there, once `task::collect` has been through all of them.
    pub procs: Vec<Proc>,
    /// What is known so far.
    pub state: SandboxState,
    /// What cannot be saved. All of it is found before the containers are disturbed.
    pub refusals: Vec<Refusal>,
    /// Private memory to be looked through by the page engine.
    pub spaces: Vec<Space>,
    /// Memory objects (`state.shmems`) whose content has to be saved, each once, with a descriptor to read it from.
    pub contents: Vec<(Id, OwnedFd)>,
    /// The processes were let go.
    pub released: bool,
    /// Threads that waited for a time when they were stopped.
    pub sleepers: Sleepers,
    /// Upper layers kept in memory, by container, in the order of their `upper`.
    pub uppers: Vec<Vec<OwnedFd>>,
}

/// An address space and what of it may have content.
#[derive(Debug)]
pub struct Space {
    /// Index in `state.mms`.
    pub mm: Id,
    /// Index of a process that has it.
    pub proc: usize,
    /// Where content may be, ascending.
    pub extents: Vec<Extent>,
    /// Its mappings, when they were looked at before it stood still: to be confirmed.
    pub early: Option<Vec<RawVma>>,
}

/// Memory of a mapping that the page engine looks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Transparent huge pages are in it or wanted.
    pub huge: bool,
    /// Page size.
    pub page_size: u64,
    /// A file, not zeros, shows where the mapping has no page of its own.
    pub backed: bool,
    /// Pages of the file below belong to the content (the file will not be there).
    pub file_pages: bool,
}

/// A process that is saved.
#[derive(Debug, Default)]
pub struct Proc {
    /// Pid in the sandbox's pid namespace. `/proc/<pid>` of a process whose leader has ended ([`Proc::leader_gone`])
    /// shows nothing of its memory and descriptors: use [`Proc::task`] for those.
    pub pid: i32,
    /// Pid in its own pid namespace, which is what the state speaks of.
    pub ns_pid: i32,
    /// Index of its container.
    pub container: Id,
    /// Command name, for messages.
    pub comm: String,
    /// Index of its parent; none for a container's init.
    pub parent: Option<usize>,
    /// Whether it runs.
    pub life: Life,
    /// Index of an earlier process with the same address space: its region serves both.
    pub shares_mm_with: Option<usize>,
    /// Shares signal actions with the process of `shares_mm_with` (`CLONE_SIGHAND`).
    pub shares_sighand: bool,
    /// The first thread has ended while others live on. It is not in `threads`.
    pub leader_gone: bool,
    /// Its threads, the leader first; none for a zombie.
    pub threads: Vec<Tracee>,
    /// Thread ids in its own pid namespace, by index of `threads`.
    pub ns_tids: Vec<i32>,
    /// `/proc/<tid>/status` when it was stopped, by index of `threads`; a zombie has one too.
    pub statuses: Vec<Status>,
    /// Where calls are injected, mapped by `task::collect`, unmapped by `task::release`.
    pub region: Option<Region>,
    /// What its own calls told of its address space, by `task::collect`.
    pub memory: MemoryFacts,
}

/// What only calls of a task itself tell of its address space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryFacts {
    /// PR_GET_MDWE.
    pub mdwe: u64,
    /// PR_GET_MEMORY_MERGE.
    pub ksm: bool,
}

impl Proc {
    /// A living thread's id in the sandbox's pid namespace: `/proc/<task()>/maps`, `fd`, `mem` and so on are the
    /// process', even when its leader has ended. A zombie's own pid.
    pub fn task(&self) -> i32 {
        self.threads.first().map_or(self.pid, Tracee::tid)
    }

    /// A zombie has no memory, no descriptors and no threads.
    pub fn is_zombie(&self) -> bool {
        matches!(self.life, Life::Zombie { .. })
    }

    /// The thread through which calls are injected, and where.
    pub fn injector(&mut self) -> Option<(&mut Tracee, Region)> {
        let region = self.region?;
        Some((self.threads.first_mut()?, region))
    }
}

impl Context {
    /// At the beginning.
    pub fn new(order: DumpOrder, procfs: ProcFs, uppers: Vec<Vec<OwnedFd>>) -> Self {
        Self {
            order,
            procfs,
            procs: Vec::new(),
            state: SandboxState::default(),
            refusals: Vec::new(),
            spaces: Vec::new(),
            sleepers: Sleepers::default(),
            contents: Vec::new(),
            released: false,
            uppers,
        }
    }

    /// The memory object with that identity (device, inode), if it was met before.
    pub fn shmem(&self, identity: (u64, u64)) -> Option<Id> {
        self.state.shmems.iter().position(|s| s.identity == identity).map(|i| i as Id)
    }

    /// Takes note of a memory object; its content will be read from `fd`. Whoever meets it again finds it with
    /// [`Context::shmem`].
    pub fn add_shmem(&mut self, object: ShmemState, fd: OwnedFd) -> Id {
        let id = self.state.shmems.len() as Id;
        self.state.shmems.push(object);
        self.contents.push((id, fd));
        id
    }

    /// Container ID of the container with that index, for messages.
    pub fn cid(&self, container: Id) -> &str {
        self.order.containers.get(container as usize).map_or("", |c| c.cid.as_str())
    }

    /// Notes that something of process `index` cannot be saved.
    pub fn refuse(&mut self, index: usize, fd: Option<i32>, kind: &str, what: impl Into<String>) {
        let Some(proc) = self.procs.get(index) else { return };
        let refusal = Refusal {
            cid: self.cid(proc.container).to_owned(),
            pid: proc.ns_pid,
            comm: proc.comm.clone(),
            fd,
            kind: kind.to_owned(),
            what: what.into(),
        };
        // Threads of a process often have the same trouble.
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    /// Notes something that will be different after a restore.
    pub fn warn(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.state.warnings.contains(&text) {
            self.state.warnings.push(text);
        }
    }
}
