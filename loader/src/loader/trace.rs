//! The trace session of a sandbox: at most one, run by a worker ([`crate::worker::TraceSession`]); and, independent of it,
//! another worker that writes system calls into the sandbox's log.
#![forbid(unsafe_code)]

use super::{Loader, Working};
use crate::boot::logging;
use crate::container::{Container, Process, lock};
use crate::trace::config::plan;
use crate::trace::message::{Known, Start};
use crate::trace::strace;
use crate::worker::{TraceRequest, TraceSession, Traced};
use airlock_wire::api::trace::{SessionConfig, SinkConfig, SinkStatus};
use airlock_wire::api::types::{Json, List};
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a session may take to answer; it may be waiting for a sink.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to tell its sinks what is left, at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A session, as the loader sees it.
#[derive(Debug)]
pub(super) struct Live {
    config: SessionConfig,
    watch: Watch,
}

/// A worker that traces the containers.
#[derive(Debug)]
pub(super) struct Watch {
    working: Working,
    numbers: Numbers,
}

/// Numbers of the containers, by which records name them.
#[derive(Debug, Default)]
struct Numbers {
    by_cid: HashMap<String, u32>,
    given: u32,
}

impl Loader {
    /// Begins a trace session. `fds` are one for each sink, or one for each sink that takes one, in their order. With
    /// `force` it replaces one of the same name. Blocks until it is set up.
    ///
    /// # Errors
    /// gVisor's: `session "Default" already exists`, and those of [`plan`]; what prevents tracing on this machine. A
    /// session that there was goes on then.
    pub fn create_trace_session(&self, config: SessionConfig, force: bool, fds: Vec<OwnedFd>) -> Result<()> {
        let mut session = lock(&self.session);
        if session.as_ref().is_some_and(|live| live.config.name == config.name) && !force {
            return Err(Error::invalid_state(format!("session {:?} already exists", config.name)));
        }
        let given = assign(&config, fds.len())?;
        let donated: Vec<_> = match given.len() == fds.len() {
            // One for each sink: those that need none are not passed on.
            true => fds.iter().zip(&given).filter(|(_, given)| **given).map(|(fd, _)| fd.as_fd()).collect(),
            false => fds.iter().map(AsFd::as_fd).collect(),
        };
        let watch = self.watch(Traced::Session { config: Json(config.clone()), given }, &donated)?;
        // A replaced session ends when the new one has begun.
        if let Some(old) = session.replace(Live { config, watch }) {
            old.watch.end();
        }
        Ok(())
    }

    /// Writes the containers' system calls of these names into the sandbox's log from now on, without names all of them;
    /// with `None` no more. Blocks until that is so; at the end all that has happened is in the log.
    ///
    /// # Errors
    /// `syscall "x" not found`; the sandbox has no log; what prevents tracing on this machine. What was written until then
    /// is written on.
    pub fn strace(&self, calls: Option<&[String]>) -> Result<()> {
        let calls = calls.map(strace::numbers).transpose()?;
        let mut strace = lock(&self.strace);
        let new = match calls {
            Some(calls) => {
                let log = logging::file().ok_or_else(|| {
                    Error::invalid_state(
                        "this sandbox has no log to write system calls to: start it with the global option --debug-log, or \
                         use a trace session",
                    )
                })?;
                Some(self.watch(Traced::Strace(calls), &[log.as_fd()])?)
            }
            None => None,
        };
        if let Some(old) = std::mem::replace(&mut *strace, new) {
            old.end();
        }
        Ok(())
    }

    /// Has a worker trace the containers that there are.
    fn watch(&self, what: Traced, fds: &[BorrowedFd<'_>]) -> Result<Watch> {
        let mut numbers = Numbers::default();
        let mut v2 = false;
        let mut containers = Vec::new();
        for container in self.containers() {
            if let Some(known) = numbers.give(&container)? {
                v2 |= container.cgroup()?.leaf_is_v2();
                containers.push(known);
            }
        }
        let ((), _, working) = self.work(TraceSession { what, containers, v2 }, fds)?;
        Ok(Watch { working, numbers })
    }

    /// Does something with each worker that traces.
    fn watches(&self, mut each: impl FnMut(&mut Watch)) {
        if let Some(live) = lock(&self.session).as_mut() {
            each(&mut live.watch);
        }
        if let Some(watch) = lock(&self.strace).as_mut() {
            each(watch);
        }
    }

    /// Ends a session: what has happened until now is told to the sinks before.
    ///
    /// # Errors
    /// gVisor's `session "X" not found`.
    pub fn delete_trace_session(&self, name: &str) -> Result<()> {
        let mut session = lock(&self.session);
        match session.take_if(|live| live.config.name == name) {
            Some(live) => live.watch.end(),
            None => return Err(Error::no_such_entity(format!("session {name:?} not found"))),
        }
        Ok(())
    }

    /// The sessions there are, with what their sinks did not get. A session whose worker has died is none any more.
    pub fn trace_sessions(&self) -> Vec<SessionConfig> {
        let mut session = lock(&self.session);
        let Some(live) = session.as_ref() else { return Vec::new() };
        let dropped = match live.watch.ask(&TraceRequest::Status) {
            Ok(dropped) => dropped,
            Err(e) if e.kind == Kind::Disconnected => {
                log::error!("the trace session's worker has died");
                *session = None;
                return Vec::new();
            }
            Err(e) => {
                log::warn!("the trace session does not answer: {e}");
                Vec::new()
            }
        };
        let sinks = live.config.sinks.iter().enumerate().map(|(i, sink)| SinkConfig {
            name: sink.name.clone(),
            status: SinkStatus { dropped_count: dropped.get(i).copied().unwrap_or(0) },
            ..SinkConfig::default()
        });
        let sinks = List(sinks.collect());
        vec![SessionConfig { name: live.config.name.clone(), sinks, ..SessionConfig::default() }]
    }

    /// Ends the session, and strace, with the sandbox.
    pub fn end_trace_sessions(&self) {
        if let Some(live) = lock(&self.session).take() {
            live.watch.end();
        }
        if let Some(watch) = lock(&self.strace).take() {
            watch.end();
        }
    }

    /// A container has its cgroup: what runs there is to be traced.
    pub(super) fn trace_container(&self, container: &Container) {
        self.watches(|watch| {
            let told = watch.numbers.give(container).and_then(|known| match known {
                Some(known) => watch.ask(&TraceRequest::Know(known)).map(drop),
                None => Ok(()),
            });
            report(told);
        });
    }

    /// A container's program is about to be executed.
    pub(super) fn trace_start(&self, container: &Container, init: &Process) {
        self.watches(|watch| {
            if let Some(number) = watch.numbers.by_cid.get(&container.cid) {
                let start = self.describe_start(container, init, *number);
                report(watch.ask(&TraceRequest::Start(start)).map(drop));
            }
        });
    }

    /// A container is gone.
    pub(super) fn trace_forget(&self, container: &Container) {
        self.watches(|watch| {
            if let Some(number) = watch.numbers.by_cid.remove(&container.cid) {
                report(watch.ask(&TraceRequest::Forget(number)).map(drop));
            }
        });
    }

    fn describe_start(&self, container: &Container, init: &Process, number: u32) -> Start {
        /// Nanoseconds of a clock tick in procfs.
        const TICK: u64 = 10_000_000;
        let spec = container.process_spec();
        let texts = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
        Start {
            number,
            init: init.pid,
            made: self.procfs().stat(init.pid).map_or(0, |s| s.starttime.saturating_mul(TICK)),
            cwd: spec.map(|p| p.cwd().to_string_lossy().into_owned()).unwrap_or_default(),
            args: texts(spec.and_then(|p| p.args().as_ref())),
            env: texts(spec.and_then(|p| p.env().as_ref())),
            terminal: spec.and_then(|p| p.terminal()).unwrap_or(false),
            user: spec.map_or((0, 0), |p| (p.user().uid(), p.user().gid())),
        }
    }
}

impl Numbers {
    /// The container as the session is to know it; `None` before it has a process.
    fn give(&mut self, container: &Container) -> Result<Option<Known>> {
        if container.spec.get().is_none() {
            return Ok(None);
        }
        let cgroup = container.cgroup().map_err(|e| e.context("trace sessions need cgroups"))?;
        let given = &mut self.given;
        let number = *self.by_cid.entry(container.cid.clone()).or_insert_with(|| {
            *given += 1;
            *given
        });
        Ok(Some(Known {
            number,
            cid: container.cid.clone(),
            root: container.root,
            cgroup: cgroup.leaf_id()?,
            init: container.init().map(|init| init.pid),
        }))
    }
}

impl Watch {
    /// Asks the worker, and waits for its answer for a while.
    fn ask(&self, request: &TraceRequest) -> Result<Vec<u64>> {
        let channel = &self.working.channel;
        binary::send(channel, request, &[])?;
        if !readable(&self.working, PATIENCE) {
            // An answer that comes later would be taken for another's.
            let _ = channel.shutdown(Shutdown::Both);
            return Err(Error::failure("the trace session did not answer in time, and is ended"));
        }
        binary::recv::<Vec<u64>>(channel).map(|(dropped, _)| dropped)
    }

    /// Lets it end. Blocks until it has told its sinks what is left, or for two seconds.
    fn end(self) {
        let _ = self.working.channel.shutdown(Shutdown::Write);
        // Nothing more is said: readable is the end.
        if !readable(&self.working, LAST_WORDS) {
            log::warn!("the trace session could not tell its sinks everything in time");
            if let Some(process) = &self.working.process {
                let _ = process.signal(libc::SIGKILL);
            }
        }
    }
}

fn readable(working: &Working, within: Duration) -> bool {
    let mut fds = [PollFd::new(working.channel.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::NONE);
    matches!(poll(&mut fds, timeout), Ok(1..))
}

fn report(told: Result<()>) {
    if let Err(e) = told {
        log::warn!("trace session: {e}");
    }
}

/// Which sinks get a descriptor when there are `count`.
fn assign(config: &SessionConfig, count: usize) -> Result<Vec<bool>> {
    let (_, sinks) = plan(config)?;
    let takes: Vec<bool> = sinks.iter().map(|sink| sink.takes_descriptor()).collect();
    let needed = takes.iter().filter(|takes| **takes).count();
    if count == sinks.len() || count == needed {
        return Ok(takes);
    }
    if count == 0 {
        // Each says itself what it lacks.
        return Ok(vec![false; sinks.len()]);
    }
    Err(Error::invalid_argument(format!(
        "{count} descriptors came for {} sinks, of which {needed} need one: give one for each that does, or one for each",
        sinks.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of a library's caller who donates none; the command line makes no such container.
    #[test]
    fn a_container_without_a_cgroup_cannot_be_traced() {
        let (mut numbers, container) = (Numbers::default(), Container::reserve("c", true, None));
        assert!(matches!(numbers.give(&container), Ok(None)), "nothing is to be traced yet");
        container.spec.set(oci_spec::runtime::Spec::default()).unwrap();
        let error = numbers.give(&container).unwrap_err();
        assert_eq!(error.message, "trace sessions need cgroups: container \"c\" has no cgroup");
    }

    #[test]
    fn descriptors_are_for_those_who_need_them() {
        let text = r#"{"name":"Default","sinks":[{"name":"null"},{"name":"file"},{"name":"remote"}]}"#;
        let config: SessionConfig = serde_json::from_str(text).unwrap();
        assert_eq!(assign(&config, 2).unwrap(), [false, true, true]);
        assert_eq!(assign(&config, 3).unwrap(), [false, true, true]);
        assert_eq!(assign(&config, 0).unwrap(), [false; 3]);
        for wrong in [1, 4] {
            assert!(assign(&config, wrong).unwrap_err().message.contains("3 sinks, of which 2 need one"));
        }
    }
}
