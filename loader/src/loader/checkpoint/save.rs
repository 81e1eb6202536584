//! Saving the sandbox.
#![forbid(unsafe_code)]

use super::conversation::{Dumped, Turns};
use super::room::Room;
use super::{CHECKPOINTED, Kind, Loader, NAME_ANNOTATION, Work};
use crate::checkpoint::order::{DumpContainer, DumpOrder, Order, Progress, Report};
use crate::checkpoint::state::Refusal;
use crate::container::{Container, State, lock};
use airlock_wire::error::{Error, Kind as ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, MutexGuard};

/// What is asked of a checkpoint.
#[derive(Debug)]
pub struct CheckpointRequest {
    /// The caller's choices; the containers are filled in here.
    pub order: DumpOrder,
    /// Descriptors as [`Order::Dump`] wants them, up to those of the parent image.
    pub files: Vec<OwnedFd>,
}

/// How a checkpoint came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// What was done, or could be done.
    pub report: Report,
    /// What cannot be saved; only after a dry run.
    pub refusals: Vec<Refusal>,
}

impl Loader {
    /// Saves all containers of the sandbox that run. Blocks until the image is complete.
    ///
    /// `may_end` is asked when the image of containers that are not to go on is complete: false lets them go on, and the
    /// checkpoint has failed. Otherwise they are ended, and with them the sandbox, with status 0 and the reason
    /// [`CHECKPOINTED`].
    ///
    /// # Errors
    /// State errors; what cannot be saved, all of it at once; what the agent says. The containers go on unharmed.
    pub fn checkpoint(&self, request: CheckpointRequest, may_end: &mut dyn FnMut() -> bool) -> Result<Saved> {
        self.complete_pages()?;
        let _busy = self.work.begin(Kind::Checkpoint)?;
        let dry_run = request.order.dry_run;
        let saved = self.save(request, may_end);
        if !dry_run {
            self.work.notify_checkpoint(&saved.as_ref().map(drop).map_err(Clone::clone));
        }
        saved
    }

    fn save(&self, request: CheckpointRequest, may_end: &mut dyn FnMut() -> bool) -> Result<Saved> {
        let CheckpointRequest { mut order, files } = request;
        // Nobody freezes or thaws, and nothing is executed, between a look at the containers and their standstill.
        let pauses = lock(&self.pauses);
        self.work.close();
        let containers = self.to_save()?;
        let frozen: Vec<_> = containers.iter().filter(|c| self.is_paused(c)).cloned().collect();
        let names = names(containers.iter().map(|c| c.name_annotation()));
        for (container, name) in containers.iter().zip(names) {
            order.containers.push(self.describe_to_save(container, name)?);
        }
        order.paused = !frozen.is_empty();
        order.in_userns = self.config.in_userns;
        order.supervisor = self.supervisor.snapshot()?;
        order.tracked = lock(&self.work.tracking).as_ref().map(|(tracked, _)| tracked.clone());
        let dry_run = order.dry_run;
        let ends = !order.resume && !order.pre_dump && !dry_run;
        let mut room = Room::default();
        let root = containers.first().cloned().ok_or_else(|| Error::failure("no container runs"))?;
        let agent = room.for_agent(&root, || self.spawn_agent())?;
        let files = files.iter().filter(|_| !dry_run).map(AsFd::as_fd);
        let layers = containers.iter().flat_map(|c| c.layers.get()).flatten().map(|layer| layer.fd.as_fd());
        let fds: Vec<BorrowedFd<'_>> = files.chain(layers).collect();
        let mut turns = Standstill {
            work: &self.work,
            pauses: Some(pauses),
            containers: &containers,
            frozen: &frozen,
            room: &mut room,
            may_end: ends.then_some(may_end),
        };
        let dumped = agent.dump(&Order::Dump(order), &fds, &mut turns);
        let ended = matches!(dumped, Ok(Dumped::Saved(_, true)));
        turns.over(ended);
        match dumped? {
            Dumped::Refused(refusals) if dry_run => Ok(Saved { refusals, ..Saved::default() }),
            Dumped::Refused(refusals) => Err(refused(&refusals)),
            Dumped::Saved(_, false) if ends => Err(Error::new(
                ErrorKind::Disconnected,
                "the caller of the checkpoint is gone: the containers go on, and the image is not to be used",
            )),
            Dumped::Possible(report) | Dumped::Saved(report, _) => Ok(Saved { report, ..Saved::default() }),
        }
    }

    /// The containers that run, the root container first.
    fn to_save(&self) -> Result<Vec<Arc<Container>>> {
        if self.config.shared_pid_namespace {
            return Err(Error::unsupported(
                "checkpoint: the container shares the host's pid namespace, where its pids may be taken when it is restored; \
                 give it one of its own (linux.namespaces, type pid)",
            ));
        }
        let root = self.root()?;
        let state_error = |container: &Container, hint: &str| {
            Error::invalid_state(format!(
                "cannot checkpoint a container in state={}: container {:?}{hint}",
                container.state().name(),
                container.cid
            ))
        };
        let mut containers = vec![];
        for container in std::iter::once(root).chain(self.containers().into_iter().filter(|c| !c.root)) {
            match container.state() {
                State::Started | State::Restored => containers.push(container),
                // What has ended has nothing to save.
                State::Stopped | State::RestoreFailed if !container.root => {}
                State::RestoringStarted => {
                    return Err(state_error(&container, " waits for memory; call WaitRestore first"));
                }
                State::Created | State::Creating if !container.root => {
                    return Err(state_error(&container, " has not been started; start or delete it first"));
                }
                _ => return Err(state_error(&container, "")),
            }
        }
        Ok(containers)
    }

    fn describe_to_save(&self, container: &Arc<Container>, name: String) -> Result<DumpContainer> {
        let init = container.init().filter(|init| init.status().is_none()).ok_or_else(|| {
            Error::invalid_state(format!(
                "cannot checkpoint container {:?}: it has just ended",
                container.cid
            ))
        })?;
        let by_pid = lock(&self.by_pid);
        let mut execs: Vec<i32> = by_pid
            .iter()
            .filter(|(pid, (owner, _))| Arc::ptr_eq(owner, container) && **pid != init.pid)
            .map(|(pid, _)| *pid)
            .collect();
        execs.sort_unstable();
        let named = self.supervisor.named_pids(&container.cid);
        let (adopted, execs) = execs.into_iter().partition(|pid| named.contains(pid));
        let layers = || container.layers.get().into_iter().flatten();
        Ok(DumpContainer {
            cid: container.cid.clone(),
            name,
            spec: container.spec_text.get().cloned().unwrap_or_default(),
            init: init.pid,
            execs,
            adopted,
            origin: container.origin.get().cloned().unwrap_or_default(),
            own_pid_namespace: container.own_pid_namespace.get().copied().unwrap_or(true),
            newest_mount: container.newest_mount.get().copied().unwrap_or(0),
            upper: layers().map(|l| l.place.clone()).collect(),
            on_disk: layers().map(|l| l.on_disk).collect(),
        })
    }
}

/// The names by which containers are found at a restore, in their order: the annotation's, or a number.
pub(in crate::loader) fn names<'a>(annotations: impl Iterator<Item = Option<&'a str>>) -> Vec<String> {
    let mut unnamed = 0;
    annotations
        .map(|name| {
            name.map_or_else(
                || {
                    unnamed += 1;
                    format!("__no_name_{}", unnamed - 1)
                },
                str::to_owned,
            )
        })
        .collect()
}

impl Container {
    pub(in crate::loader) fn name_annotation(&self) -> Option<&str> {
        let annotations = self.spec.get()?.annotations().as_ref()?;
        annotations.get(NAME_ANNOTATION).map(String::as_str).filter(|name| !name.is_empty())
    }
}

fn refused(refusals: &[Refusal]) -> Error {
    let list: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    Error::unsupported(format!("cannot be saved, nothing was disturbed: {}", list.join("; ")))
}

/// The loader's part while containers stand still.
struct Standstill<'a> {
    work: &'a Work,
    pauses: Option<MutexGuard<'a, u32>>,
    containers: &'a [Arc<Container>],
    frozen: &'a [Arc<Container>],
    room: &'a mut Room,
    /// Asked before containers are ended; none: they go on anyhow.
    may_end: Option<&'a mut dyn FnMut() -> bool>,
}

impl Standstill<'_> {
    fn freeze_again(&self, how: impl Fn(&crate::cgroup::Cgroup) -> Result<()>) {
        for container in self.frozen.iter().filter(|c| c.state().runs()) {
            if let Some(cgroup) = container.cgroup.get()
                && let Err(e) = how(cgroup)
            {
                log::warn!("freezing container {:?} again: {e}", container.cid);
            }
        }
    }

    fn mark(&self, reason: &str) {
        for container in self.containers {
            let mut life = lock(&container.life);
            if life.state.runs() {
                reason.clone_into(&mut life.reason);
            }
        }
    }

    /// The agent is gone.
    fn over(mut self, ended: bool) {
        if ended {
            // It has ended what it saved; sessions that were executed go with that.
            for cgroup in self.containers.iter().filter_map(|c| c.cgroup.get()) {
                let _ = cgroup.kill();
            }
        } else {
            self.mark("");
            if self.pauses.is_some() {
                self.freeze_again(|cgroup| cgroup.freeze(true));
            }
        }
        self.pauses = None;
    }
}

impl Turns for Standstill<'_> {
    fn progress(&mut self, progress: Progress) {
        self.work.set_progress(progress);
    }

    fn interrupted(&mut self) -> Result<()> {
        for container in self.frozen {
            container
                .cgroup()?
                .freeze(false)
                .map_err(|e| e.context(format!("thawing container {:?}", container.cid)))?;
        }
        Ok(())
    }

    fn stopped(&mut self) {
        self.room.make(self.containers);
    }

    fn detaching(&mut self) {
        self.freeze_again(crate::cgroup::Cgroup::start_freezing);
    }

    fn untrack(&mut self) -> Vec<OwnedFd> {
        lock(&self.work.tracking).take().map(|(_, fds)| fds).unwrap_or_default()
    }

    fn resumed(&mut self, pause_us: u64) {
        log::info!("checkpoint: the containers stood still for {pause_us} us");
        self.freeze_again(|cgroup| cgroup.freeze(true));
        self.pauses = None;
        self.work.open();
    }

    fn saved(&mut self, report: &Report, fds: Vec<OwnedFd>) -> bool {
        log::info!("checkpoint: the image is complete, {} bytes", report.bytes);
        *lock(&self.work.tracking) = report.tracked.clone().map(|tracked| (tracked, fds));
        let ends = self.may_end.as_mut().is_some_and(|may_end| may_end());
        if ends {
            self.mark(CHECKPOINTED);
        }
        ends
    }
}
