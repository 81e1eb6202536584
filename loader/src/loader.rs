//! The loader: keeps the sandbox's containers. The controller's handlers call it; all methods may be called from any
//! thread.
#![forbid(unsafe_code)]

pub mod checkpoint;
mod containers;
mod exec;
mod files;
mod filesystems;
mod forward;
mod lifecycle;
mod network;
mod parts;
mod pause;
mod processes;
mod signal;
mod trace;
mod usage;
mod work;

pub use exec::{ExecRequest, Executed};
pub use files::Wait;
pub use filesystems::FsSaved;
pub use forward::Forwarded;
pub use lifecycle::Prepared;
pub use parts::ContainerParts;
pub(crate) use parts::Layer;
pub use signal::DeliveryMode;
pub use usage::trim;
pub use work::Working;

use crate::checkpoint::image::Generation;
use crate::container::{Container, Process, State, lock};
use crate::machine::Machine;
use crate::procfs::ProcFs;
use crate::spawner::{Exited, Spawner};
use crate::supervisor::Supervisor;
use airlock_wire::error::{Error, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The program was executed.
    Started {
        /// Container ID.
        cid: String,
    },
    /// The init ended.
    Exited {
        /// Container ID.
        cid: String,
        /// Raw wait status.
        status: u32,
    },
}

/// What a loader is made from.
#[derive(Debug)]
pub struct LoaderConfig {
    /// Sandbox ID, which is the root container's.
    pub id: String,
    /// Bundle of the root container, as text.
    pub bundle: String,
    /// The sandbox is in a user namespace of its own.
    pub in_userns: bool,
    /// The containers live in somebody else's pid namespace.
    pub shared_pid_namespace: bool,
    /// procfs of the sandbox's pid namespace.
    pub procfs: ProcFs,
    /// The way to new processes.
    pub spawner: Arc<Spawner>,
    /// airlock's own binary, for symbols.
    pub self_exe: Option<OwnedFd>,
    /// This process can be profiled.
    pub profile: bool,
    /// Mounts that containers share, by the name of the hint.
    pub shared_mounts: Vec<(String, OwnedFd)>,
    /// The sandbox has a network namespace of its own, or one that its caller names.
    pub own_network: bool,
}

/// Processes that the spawner has forked, by their pid in the sandbox.
type ByPid = HashMap<i32, (Arc<Container>, Arc<Process>)>;

/// Keeps the containers of one sandbox.
#[derive(Debug)]
pub struct Loader {
    config: LoaderConfig,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    by_pid: Mutex<ByPid>,
    pauses: Mutex<u32>,
    subscribers: Mutex<Vec<Sender<Event>>>,
    work: checkpoint::Work,
    filesystems: filesystems::Filesystems,
    forwards: forward::Forwards,
    usage: usage::Live,
    session: Mutex<Option<trace::Live>>,
    strace: Mutex<Option<trace::Watch>>,
    network: network::Network,
    supervisor: Supervisor,
    generation: String,
    machine: OnceLock<Arc<Machine>>,
}

impl Loader {
    /// Makes a loader whose root container is reserved but not yet set up.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new(config: LoaderConfig) -> Result<Self> {
        let root = Arc::new(Container::reserve(&config.id, true, None));
        Ok(Self {
            containers: Mutex::new(BTreeMap::from([(config.id.clone(), root)])),
            by_pid: Mutex::default(),
            pauses: Mutex::new(0),
            subscribers: Mutex::default(),
            work: checkpoint::Work::new()?,
            filesystems: filesystems::Filesystems::default(),
            forwards: forward::Forwards::new()?,
            usage: usage::Live::default(),
            session: Mutex::default(),
            strace: Mutex::default(),
            network: network::Network::default(),
            supervisor: Supervisor::default(),
            generation: Generation::new()
                .map_err(|e| Error::from(e).context("making a generation ID"))?
                .to_string(),
            machine: OnceLock::new(),
            config,
        })
    }

    /// The sandbox's ID.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// What tells this sandbox from those that were made of the same image: random, new in each, also in a restored or
    /// forked one. Containers find it in `/dev/airlock-generation`.
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// The supervisor's domains.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// True in a user namespace of the sandbox's own.
    pub(crate) fn in_userns(&self) -> bool {
        self.config.in_userns
    }

    /// True when the containers live in somebody else's pid namespace.
    pub(crate) fn shares_pid_namespace(&self) -> bool {
        self.config.shared_pid_namespace
    }

    /// procfs of the sandbox's pid namespace.
    pub fn procfs(&self) -> &ProcFs {
        &self.config.procfs
    }

    /// True when this process can be profiled.
    pub fn can_be_profiled(&self) -> bool {
        self.config.profile
    }

    /// airlock's own binary, for symbols.
    pub fn self_exe(&self) -> Option<&OwnedFd> {
        self.config.self_exe.as_ref()
    }

    /// Mounts that containers share, by the name of the hint.
    pub fn shared_mounts(&self) -> &[(String, OwnedFd)] {
        &self.config.shared_mounts
    }

    /// The container `cid`.
    ///
    /// # Errors
    /// gVisor's `container "X" not found`.
    pub fn container(&self, cid: &str) -> Result<Arc<Container>> {
        lock(&self.containers)
            .get(cid)
            .cloned()
            .ok_or_else(|| Error::no_such_entity(format!("container {cid:?} not found")))
    }

    /// The root container.
    ///
    /// # Errors
    /// Never, while the sandbox lives.
    pub fn root(&self) -> Result<Arc<Container>> {
        self.container(&self.config.id)
    }

    /// All containers, by ID.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    /// A container whose init was started and has not ended.
    ///
    /// # Errors
    /// gVisor's `container "X" not found`, `not started` and `has stopped`.
    pub fn running(&self, cid: &str) -> Result<(Arc<Container>, Arc<Process>)> {
        let container = self.container(cid)?;
        let (state, init) = {
            let life = lock(&container.life);
            (life.state, life.init.clone())
        };
        match (state, init) {
            (state, Some(init)) if state.runs() => Ok((container, init)),
            (State::Stopped, _) => Err(Error::invalid_state(format!("container {cid:?} has stopped"))),
            _ => Err(Error::invalid_state(format!("container {cid:?} not started"))),
        }
    }

    /// A feed of what happens from now on. A receiver that is dropped is forgotten.
    pub fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = unbounded();
        lock(&self.subscribers).push(sender);
        receiver
    }

    fn publish(&self, event: &Event) {
        lock(&self.subscribers).retain(|s| s.send(event.clone()).is_ok());
    }

    /// Takes note of an ended process. Returns the raw wait status when it was the root container's init, and the sandbox
    /// is to end.
    pub fn process_ended(&self, exited: Exited) -> Option<u32> {
        if self.work.agent_ended(exited) || self.work.postpones(exited) {
            return None;
        }
        self.settle(exited)
    }

    /// Becomes readable when the sandbox is to end although [`Loader::process_ended`] did not say so; then
    /// [`Loader::ended`] tells how.
    pub fn late_end(&self) -> BorrowedFd<'_> {
        self.work.late_end()
    }

    /// Raw wait status with which the sandbox is to end, once [`Loader::late_end`] is readable.
    pub fn ended(&self) -> Option<u32> {
        self.work.ended()
    }

    /// What follows from a process' end.
    fn settle(&self, exited: Exited) -> Option<u32> {
        let (container, process) = lock(&self.by_pid).remove(&exited.pid)?;
        let is_init = lock(&container.life).init.as_ref().is_some_and(|i| Arc::ptr_eq(i, &process));
        let status = match exited.status as u32 {
            // It was killed because it lives on in an image.
            _ if is_init && lock(&container.life).reason == checkpoint::CHECKPOINTED => 0,
            status => status,
        };
        let ends = is_init && self.init_ended(&container, status);
        log::debug!("process {} of {:?} ended with status {status:#x}", exited.pid, container.cid);
        process.end(status);
        if !is_init {
            self.supervisor.process_ended(&container.cid, &process, status);
        }
        (ends && container.root).then_some(status)
    }

    /// Takes note of the end of a container's init. False for one that could not be restored: its sandbox stays, to tell
    /// of it.
    fn init_ended(&self, container: &Container, status: u32) -> bool {
        let (was_started, failed) = {
            let mut life = lock(&container.life);
            let (was_started, failed) = (life.state.runs(), life.state == State::RestoreFailed);
            if !failed {
                life.state = State::Stopped;
            }
            life.channel = None;
            life.times.finished = Some(std::time::SystemTime::now());
            if life.reason.is_empty() {
                let asked = life.asked.as_ref().is_some_and(|k| k.signal.cast_unsigned() == status & 0x7f);
                life.reason = end_reason(container, status, asked);
            }
            (was_started, failed)
        };
        if !container.own_pid_namespace.get().copied().unwrap_or(true) {
            // With a pid namespace of its own the kernel has done that already.
            if let Some(cgroup) = container.cgroup.get()
                && let Err(e) = cgroup.kill()
            {
                log::warn!("killing what is left of container {:?}: {e}", container.cid);
            }
        }
        if was_started {
            self.publish(&Event::Exited { cid: container.cid.clone(), status });
        }
        !failed
    }
}

/// Why a container's init ended. `asked` says that a client asked for the signal that it ended by: then it was that, also if
/// the OOM killer was at work before.
fn end_reason(container: &Container, status: u32, asked: bool) -> String {
    let signal = status & 0x7f;
    if signal == 0 {
        return "exited".to_owned();
    }
    let oom = signal == libc::SIGKILL as u32
        && !asked
        && container.cgroup.get().and_then(|c| c.stats().ok()).is_some_and(|s| s.memory.oom_kills > 0);
    if oom { "oom".to_owned() } else { format!("signal {signal}") }
}
