//! Domains of a sandbox: AWS Lambda's supervisor interface (`Supervisor` in [`airlock_wire::api::supervisor`]) for callers
//! on the host.
//!
//! This side opens what a domain needs of the host — root filesystem, mounts, cgroup — and donates it. What a domain is
//! and does is the sandbox's business; `docs/SUPERVISOR.md` tells of both.

#![forbid(unsafe_code)]

mod define;
mod events;

pub use define::DefineOptions;
pub use events::{Ending, Events};

use crate::client::Airlock;
use crate::gofer::open_later;
use crate::state::{State, StateDir, not_running};
use airlock_wire::api::supervisor as api;
use airlock_wire::api::supervisor::{CycleDeltaMetrics, Deadline, DomainInfo, Mount, Topic};
use airlock_wire::api::types::{Empty, Json};
use airlock_wire::client::Reply;
use airlock_wire::error::{Error, Result};
use airlock_wire::method::Method;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The supervisor of one sandbox. Each call makes a connection of its own, so that any number of threads may call.
///
/// All methods fail with `container does not exist` and `container not running` for the sandbox, besides what they say.
#[derive(Debug)]
pub struct Supervisor<'a> {
    states: &'a StateDir,
    sandbox: String,
}

/// Descriptors of a process that is executed. They stay the caller's.
#[derive(Debug, Default)]
pub struct ExecFds<'a> {
    /// Standard output; without it the process' logging, or nothing.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Standard error; likewise.
    pub stderr: Option<BorrowedFd<'a>>,
    /// The process' descriptors 3 and up.
    pub extra: Vec<BorrowedFd<'a>>,
}

impl Airlock {
    /// The supervisor of the sandbox `id`, whose root container is the parent domain.
    ///
    /// # Errors
    /// `container does not exist`; it is a container in another's sandbox.
    pub fn supervisor(&self, id: &str) -> Result<Supervisor<'_>> {
        Supervisor::new(self.states(), id)
    }
}

impl<'a> Supervisor<'a> {
    /// See [`Airlock::supervisor`].
    ///
    /// # Errors
    /// As that.
    pub fn new(states: &'a StateDir, id: &str) -> Result<Self> {
        let state = states.load(id)?;
        if state.is_subcontainer() {
            return Err(Error::invalid_argument(format!(
                "{id} is a container of sandbox {}: name that one",
                state.sandbox_id
            )));
        }
        Ok(Self { states, sandbox: id.to_owned() })
    }

    /// Configures a domain that does not run. The sources of its mounts are paths of the host and opened here; each of
    /// `logs` gets what processes with that topic write.
    ///
    /// # Errors
    /// `invalid_state`: it runs; the first mount whose source cannot be opened; what is wrong with which field.
    pub fn configure(&self, mut request: api::ConfigureRequest, logs: Vec<(Topic, OwnedFd)>) -> Result<()> {
        let mut fds = Vec::new();
        for mount in request.mounts.iter() {
            let opened = open(mount).map_err(|e| e.context(format!("mount at {:?}", mount.destination())))?;
            fds.push(opened);
        }
        for (topic, fd) in logs {
            request.log_topics.0.push(topic);
            fds.push(fd);
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.call::<api::Configure>(&Json(request), &fds).map(drop)
    }

    /// Starts a configured domain: its start hooks have run when this returns.
    ///
    /// # Errors
    /// `no_such_entity`; `invalid_state`; what setting it up fails at, which hook failed and how.
    pub fn start(&self, domain: &str) -> Result<()> {
        self.call::<api::Start>(&api::StartRequest { domain: domain.to_owned() }, &[]).map(drop)
    }

    /// Ends all processes of a domain by `deadline`, and tells what its last cycle has used.
    ///
    /// # Errors
    /// `no_such_entity`; `invalid_state`; the deadline is in the past, or passes first.
    pub fn stop(&self, domain: &str, deadline: Deadline) -> Result<CycleDeltaMetrics> {
        let request = api::StopRequest { domain: domain.to_owned(), deadline };
        Ok(self.call::<api::Stop>(&request, &[])?.value.cycle_delta_metrics)
    }

    /// Freezes a domain, and tells what it used since it was started or thawed.
    ///
    /// # Errors
    /// `no_such_entity`; `invalid_state`.
    pub fn freeze(&self, domain: &str) -> Result<CycleDeltaMetrics> {
        let request = api::FreezeRequest { domain: domain.to_owned() };
        Ok(self.call::<api::Freeze>(&request, &[])?.value.cycle_delta_metrics)
    }

    /// Thaws a frozen domain.
    ///
    /// # Errors
    /// `no_such_entity`; `invalid_state`.
    pub fn thaw(&self, domain: &str) -> Result<()> {
        self.call::<api::Thaw>(&api::ThawRequest { domain: domain.to_owned() }, &[]).map(drop)
    }

    /// Ends the sandbox with all domains.
    ///
    /// # Errors
    /// None of its own.
    pub fn exit(&self) -> Result<()> {
        self.call::<api::Exit>(&Empty {}, &[]).map(drop)
    }

    /// Executes a process in a domain; returns when its program runs. How it ends is told by [`Supervisor::events`].
    ///
    /// # Errors
    /// `no_such_entity`: the domain; `invalid_state`: it does not run or is frozen, or the name is taken; the program cannot
    /// be executed.
    pub fn exec(&self, mut request: api::ExecRequest, fds: ExecFds<'_>) -> Result<()> {
        (request.stdout, request.stderr) = (fds.stdout.is_some(), fds.stderr.is_some());
        let fds: Vec<_> = fds.stdout.into_iter().chain(fds.stderr).chain(fds.extra).collect();
        self.call::<api::Exec>(&Json(request), &fds).map(drop)
    }

    /// Sends SIGTERM to the process group of a named process.
    ///
    /// # Errors
    /// `no_such_entity`: the domain or the process.
    pub fn terminate(&self, domain: &str, name: &str) -> Result<()> {
        let request = api::TerminateRequest { name: name.to_owned(), domain: domain.to_owned() };
        self.call::<api::Terminate>(&request, &[]).map(drop)
    }

    /// Sends SIGKILL to the process group of a named process and waits for its end, until `deadline` at most.
    ///
    /// # Errors
    /// `no_such_entity`: the domain or the process; the deadline is in the past, or passes first.
    pub fn kill(&self, domain: &str, name: &str, deadline: Deadline) -> Result<()> {
        let request = api::KillRequest { name: name.to_owned(), domain: domain.to_owned(), deadline };
        self.call::<api::Kill>(&request, &[]).map(drop)
    }

    /// What happens from now on in a domain, or for an empty name in all of them.
    ///
    /// # Errors
    /// `no_such_entity`: the domain; too many readers.
    pub fn events(&self, domain: &str) -> Result<Events> {
        let request = api::EventsRequest { domain: domain.to_owned() };
        let reply = self.call::<api::Events>(&request, &[])?;
        reply.fds.into_iter().next().map(Events::new).ok_or_else(|| {
            Error::failure(format!("sandbox {} answered Events without a descriptor", self.sandbox))
        })
    }

    /// Asks the supervisor for an answer.
    ///
    /// # Errors
    /// None of its own.
    pub fn ping(&self) -> Result<()> {
        self.call::<api::Ping>(&Empty {}, &[]).map(drop)
    }

    /// All domains, by name.
    ///
    /// # Errors
    /// None of its own.
    pub fn domains(&self) -> Result<Vec<DomainInfo>> {
        Ok(self.call::<api::Domains>(&Empty {}, &[])?.value)
    }

    fn call<M: Method>(&self, arg: &M::Arg, fds: &[BorrowedFd<'_>]) -> Result<Reply<M::Reply>> {
        let state = self.running()?;
        let answered = self.states.connect(&state).and_then(|mut client| client.call::<M>(arg, fds));
        answered.map_err(|e| self.states.or_ended(&state, e))
    }

    /// The state of the sandbox, which is alive.
    fn running(&self) -> Result<State> {
        let state = self.states.load(&self.sandbox)?;
        if state.loader.is_alive() { Ok(state) } else { Err(not_running(&self.sandbox)) }
    }
}

/// Opens the source of a mount as a detached mount.
fn open(mount: &Mount) -> Result<OwnedFd> {
    let kind = match mount {
        Mount::Bind(_) => "bind",
        Mount::Drive(drive) => &drive.fs_type,
    };
    let source = Path::new(mount.source());
    // A tmpfs has none.
    if !source.is_absolute() && kind != "tmpfs" {
        return Err(Error::invalid_argument(format!("source {:?}: give an absolute path", mount.source())));
    }
    open_later(kind, source, mount.options())
}
