//! The supervisor: domains and the named processes in them (`docs/SUPERVISOR.md`; AWS Lambda's `supervisor/model`).
//!
//! A domain is a container of the loader whose ID is the domain's name. This module keeps what the loader does not: the
//! configuration, the state, names, who is told of ends, where logs go, what a cycle has used. All work on containers is the
//! loader's.
//!
//! ```text
//! define    what a domain is made of: spec, descriptors, mounts, limits
//! run       start, freeze, thaw, stop; start hooks
//! process   exec, terminate, kill; names and ends
//! events    readers of ends            outlet   a bounded way to a reader
//! logs      managed logging            metrics  what a cycle has used
//! idle      the init of a domain       filters  seccomp filters by name
//! saved     domains in an image, and out of it again
//! ```
#![forbid(unsafe_code)]

mod define;
pub mod events;
mod filters;
pub mod idle;
mod logs;
mod metrics;
pub mod outlet;
mod process;
mod run;
mod saved;

use crate::cgroup::tree::Node;
use crate::container::{Container, Process, State as ContainerState, lock};
use crate::loader::{ContainerParts, Loader};
use airlock_wire::api::supervisor::{
    Capabilities, CgroupProfiles, DomainInfo, EventData, ExecUser, Hook, ProcessInfo, ProfileName, Topic,
};
use airlock_wire::error::{Error, Kind, Result};
use events::Hub;
use outlet::Outlet;
pub(crate) use saved::check as check_saved;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// Ends of processes that are remembered by name in each domain; older ones are forgotten first.
const MAX_ENDED: usize = 16_384;
/// Domains, also those that have stopped.
const MAX_DOMAINS: usize = 1024;

/// Waits until a descriptor is readable or the deadline has passed (then false); fails when the client is gone.
pub type Wait<'a> = &'a dyn Fn(BorrowedFd<'_>, Option<Instant>) -> Result<bool>;

/// All domains of a sandbox.
#[derive(Debug, Default)]
pub struct Supervisor {
    domains: Mutex<BTreeMap<String, Arc<Domain>>>,
    hub: Hub,
}

/// One domain.
#[derive(Debug)]
pub struct Domain {
    name: String,
    inner: Mutex<Inner>,
    /// Told when an exec is over.
    settled: Condvar,
}

/// What changes of a domain. Never locked while anything blocks.
#[derive(Debug, Default)]
struct Inner {
    state: State,
    config: Config,
    /// What it is made of when it starts.
    source: Option<Source>,
    /// `process` of its spec, once it was started.
    base: serde_json::Value,
    container: Option<Arc<Container>>,
    /// Its cgroup, if the loader made it: where it is, to be removed.
    made: Option<Node>,
    processes: Processes,
    logs: BTreeMap<Topic, Arc<Outlet>>,
    /// What was used when the cycle began.
    cycle: metrics::Baseline,
    /// Execs that are under way: nothing is frozen meanwhile.
    executing: u32,
}

/// Where a domain is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Configured,
    Starting,
    Started,
    Freezing,
    Frozen,
    Thawing,
    Thawed,
    Stopping,
    Stopped,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Starting => "being started",
            Self::Started => "started",
            Self::Freezing => "being frozen",
            Self::Frozen => "frozen",
            Self::Thawing => "being thawed",
            Self::Thawed => "thawed",
            Self::Stopping => "being stopped",
            Self::Stopped => "stopped",
        }
    }

    fn runs(self) -> bool {
        matches!(self, Self::Started | Self::Thawed)
    }
}

/// What a domain is configured to be, besides [`Source`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    capabilities: Option<Capabilities>,
    /// `linux.seccomp` in place of the spec's.
    seccomp: Option<serde_json::Value>,
    profiles: Option<CgroupProfiles>,
    start_profile: ProfileName,
    exec_user: Option<ExecUser>,
    hooks: Vec<Hook>,
}

/// What a domain's container is made from.
#[derive(Debug)]
struct Source {
    spec: serde_json::Value,
    bundle: String,
    parts: ContainerParts,
}

/// Named processes.
#[derive(Debug, Default)]
struct Processes {
    by_name: BTreeMap<String, Named>,
    /// Names of running ones by pid in the sandbox.
    by_pid: BTreeMap<i32, String>,
    /// Names of those that have ended, the oldest first.
    ended: VecDeque<String>,
}

/// A name and what it stands for.
#[derive(Debug, Clone)]
enum Named {
    /// Being executed.
    Starting,
    Running(Arc<Process>),
    /// Pid in the domain, wait status.
    Ended(i32, u32),
}

impl Processes {
    fn end(&mut self, name: &str, pid: i32, status: u32) {
        self.by_name.insert(name.to_owned(), Named::Ended(pid, status));
        self.ended.push_back(name.to_owned());
        if self.ended.len() > MAX_ENDED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.by_name.remove(&oldest);
        }
    }
}

impl Inner {
    /// The state, with what has happened to the container by other ways than through the supervisor.
    fn state(&self) -> State {
        let over = self.container.as_ref().is_some_and(|c| c.state() == ContainerState::Stopped);
        match self.state {
            State::Started | State::Thawed | State::Frozen if over => State::Stopped,
            state => state,
        }
    }
}

impl Domain {
    /// Goes from a state that `from` accepts to `to`, which others see from then on.
    fn enter(&self, verb: &str, to: State, from: impl Fn(State) -> bool) -> Result<State> {
        let mut inner = lock(&self.inner);
        let state = inner.state();
        if !from(state) {
            return Err(self.wrong(verb, state));
        }
        inner.state = to;
        Ok(state)
    }

    fn wrong(&self, verb: &str, state: State) -> Error {
        Error::invalid_state(format!("domain {:?} cannot be {verb}: it is {}", self.name, state.name()))
    }

    fn set(&self, state: State) {
        lock(&self.inner).state = state;
    }

    fn info(&self) -> DomainInfo {
        let inner = lock(&self.inner);
        let processes = inner.processes.by_name.iter().map(|(name, named)| {
            let (pid, status) = match named {
                Named::Starting => (0, None),
                Named::Running(process) => (process.ns_pid(), process.status()),
                Named::Ended(pid, status) => (*pid, Some(*status)),
            };
            ProcessInfo { name: name.clone(), pid, status }
        });
        DomainInfo {
            domain: self.name.clone(),
            state: inner.state().name().to_owned(),
            cid: inner.container.as_ref().map(|c| c.cid.clone()).unwrap_or_default(),
            processes: processes.collect(),
            logs_lost: inner.logs.iter().map(|(topic, outlet)| (*topic, outlet.losses())).collect(),
        }
    }
}

/// What is missing while something is done with a domain is not the domain.
fn as_failure(e: Error) -> Error {
    match e.kind {
        Kind::NoSuchEntity => Error::failure(e.message),
        _ => e,
    }
}

impl Supervisor {
    fn domain(&self, name: &str) -> Result<Arc<Domain>> {
        let found = lock(&self.domains).get(name).cloned();
        found.ok_or_else(|| Error::no_such_entity(format!("domain {name:?} does not exist")))
    }

    /// Describes every domain, by name.
    pub fn domains(&self) -> Vec<DomainInfo> {
        let domains: Vec<_> = lock(&self.domains).values().cloned().collect();
        domains.iter().map(|domain| domain.info()).collect()
    }

    /// Has events told to `to`, of one domain or with an empty name of all.
    ///
    /// # Errors
    /// There is no such domain; as [`Hub::add`].
    pub fn events(&self, domain: &str, to: OwnedFd) -> Result<()> {
        if !domain.is_empty() {
            self.domain(domain)?;
        }
        self.hub.add(domain, to)
    }

    /// Takes note of the end of a process of container `cid`: tells it if it has a name.
    pub(crate) fn process_ended(&self, cid: &str, process: &Arc<Process>, status: u32) {
        let Ok(domain) = self.domain(cid) else { return };
        let mut inner = lock(&domain.inner);
        let Some(name) = inner.processes.by_pid.get(&process.pid).cloned() else { return };
        if !matches!(inner.processes.by_name.get(&name), Some(Named::Running(p)) if Arc::ptr_eq(p, process)) {
            return;
        }
        inner.processes.by_pid.remove(&process.pid);
        inner.processes.end(&name, process.ns_pid(), status);
        if let Some(container) = &inner.container {
            container.forget_process(process.ns_pid(), process);
        }
        // With the lock, so that events come in the order in which names end.
        self.hub.tell(&domain.name, || EventData::termination(&domain.name, &name, status));
    }

    /// Takes note that a container was destroyed: removes the cgroup that was made for it.
    pub(crate) fn container_destroyed(&self, cid: &str, loader: &Loader) {
        let Ok(domain) = self.domain(cid) else { return };
        let made = lock(&domain.inner).made.take();
        if let Some(node) = made
            && let Err(e) = run::remove_cgroup(loader, &node)
        {
            log::warn!("removing the cgroup of domain {cid:?}: {e}");
        }
    }
}
