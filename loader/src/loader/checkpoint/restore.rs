//! Reviving a sandbox.
#![forbid(unsafe_code)]

use super::conversation::Agent;
use super::room::Room;
use super::save::names;
use super::{Kind, Loader, Notice};
use crate::checkpoint::image::{Metadata, Reader};
use crate::checkpoint::order::{Order, Report, RestoreContainer, RestoreOrder};
use crate::checkpoint::specs;
use crate::container::{Container, Process, State, lock};
use crate::loader::{Event, Layer};
use crate::procfs::parse_nspid;
use crate::sys::process;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

/// What is asked of a restore.
#[derive(Debug)]
pub struct RestoreRequest {
    /// The caller's choices; the containers are filled in here.
    pub order: RestoreOrder,
    /// Descriptors as [`Order::Restore`] wants them.
    pub files: Vec<OwnedFd>,
}

/// A restore that has begun: its containers come one after the other.
#[derive(Debug)]
pub(super) struct Collecting {
    request: RestoreRequest,
    metadata: Metadata,
    /// Names of the containers, in the order of the image.
    names: Vec<String>,
    /// Those that have come, with their index in the image.
    come: Vec<(Arc<Container>, u32)>,
}

impl Collecting {
    fn missing(&self) -> usize {
        self.names.len().saturating_sub(self.come.len())
    }

    /// Takes a container in.
    fn add(&mut self, container: &Arc<Container>) -> Result<()> {
        let index = if container.root {
            0
        } else {
            let annotations = self.come.iter().map(|(c, _)| c.name_annotation());
            let name = names(annotations.chain([container.name_annotation()])).pop().unwrap_or_default();
            let found = self.names.iter().position(|n| *n == name).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "container {:?} is called {name:?}, and the statefile has no such container; it has {}",
                    container.cid,
                    self.names.join(", ")
                ))
            })?;
            if self.come.iter().any(|(_, index)| *index as usize == found) {
                return Err(Error::invalid_argument(format!("container {name:?} already restored")));
            }
            found
        };
        let old = self.names.get(index).and_then(|name| self.metadata.container_specs.get(name));
        let old = old.ok_or_else(|| {
            Error::invalid_argument("container specs not found in metadata during restore".to_owned())
        })?;
        let new = container.spec_text.get().map(String::as_str).unwrap_or_default();
        specs::check(&old.0, new)
            .map_err(|e| e.context(format!("container {:?} cannot be restored", container.cid)))?;
        self.come.push((container.clone(), index as u32));
        Ok(())
    }
}

fn layers(container: &Container) -> impl Iterator<Item = &Layer> {
    container.layers.get().into_iter().flatten()
}

impl Loader {
    /// Begins to restore the sandbox, whose root container is created and not started: at once if the image has no other
    /// container (blocks until the programs run, and with all pages unless they are to follow); else the report is
    /// `None`, and the number of the missing ones is given.
    ///
    /// # Errors
    /// gVisor's, for states, files and metadata. After one that concerns the image the sandbox stays, restorable no more:
    /// its state is `restoreFailed`.
    pub fn restore(self: &Arc<Self>, request: RestoreRequest) -> Result<(Option<Report>, usize)> {
        let root = self.root()?;
        let notice = self.begin_restore(&root, &request)?;
        let begun = read_metadata(&request).and_then(|metadata| {
            // Connections that are brought back need their addresses.
            self.create_kept_links()?;
            let names = image_names(&metadata)?;
            let mut collecting = Collecting { request, metadata, names, come: Vec::new() };
            collecting.add(&root)?;
            Ok(collecting)
        });
        let collecting = match begun {
            Ok(collecting) => collecting,
            Err(e) => return Err(self.restore_failed(&[root], &notice, e)),
        };
        match collecting.missing() {
            0 => self.load(collecting, &notice).map(|report| (Some(report), 0)),
            missing => {
                log::info!("restore: waiting for {missing} more containers");
                *lock(&self.work.collecting) = Some(collecting);
                Ok((None, missing))
            }
        }
    }

    /// A container of a sandbox that is being restored has been set up: it is restored with the others. The last one to
    /// come has all of them restored, and blocks until then; the others return at once.
    ///
    /// # Errors
    /// `sandbox is not being restored, cannot restore subcontainer: state=S`; a container that the image does not have, or
    /// that is another one there; what [`Loader::restore`] says. All but the first have the whole restore fail.
    pub fn restore_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(Option<Report>, usize)> {
        let (collecting, notice) = {
            let mut collecting = lock(&self.work.collecting);
            let (Some(now), Some(notice)) = (&mut *collecting, self.work.restored.get()) else {
                return Err(self.not_restoring()?);
            };
            let added = now.add(container).and_then(|()| claim(container));
            if let Err(e) = added {
                let mut all: Vec<_> = now.come.iter().map(|(c, _)| c.clone()).collect();
                all.push(container.clone());
                *collecting = None;
                drop(collecting);
                return Err(self.restore_failed(&all, notice, e));
            }
            match now.missing() {
                0 => match collecting.take() {
                    Some(all) => (all, notice),
                    None => return Err(self.not_restoring()?),
                },
                missing => return Ok((None, missing)),
            }
        };
        self.load(collecting, notice).map(|report| (Some(report), 0))
    }

    /// Whether [`Loader::restore`] may be called at all.
    ///
    /// # Errors
    /// gVisor's, by the sandbox's state.
    pub fn may_restore(&self) -> Result<()> {
        let root = self.root()?;
        let life = lock(&root.life);
        restorable(life.state, life.channel.is_some())
    }

    /// Whether [`Loader::restore_container`] may be called at all.
    ///
    /// # Errors
    /// `sandbox is not being restored, cannot restore subcontainer: state=S`.
    pub fn may_restore_container(&self) -> Result<()> {
        if self.is_collecting() { Ok(()) } else { Err(self.not_restoring()?) }
    }

    /// Whether further containers of this sandbox are to be restored, not started.
    pub fn is_collecting(&self) -> bool {
        lock(&self.work.collecting).is_some()
    }

    /// gVisor's answer to those who come at the wrong time.
    fn not_restoring(&self) -> Result<Error> {
        Ok(Error::invalid_state(format!(
            "sandbox is not being restored, cannot restore subcontainer: state={}",
            self.root()?.state().name()
        )))
    }

    /// Checks state and files, in gVisor's order; from here on the sandbox is being restored.
    fn begin_restore(&self, root: &Container, request: &RestoreRequest) -> Result<Arc<Notice>> {
        let mut life = lock(&root.life);
        restorable(life.state, life.channel.is_some())?;
        let statefile = request
            .files
            .first()
            .ok_or_else(|| Error::invalid_argument("at least one file must be passed to Restore"))?;
        let stat = fstat(statefile).map_err(|e| Error::from(e).context("statefile"))?;
        let is_file = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        if is_file && stat.st_size == 0 {
            return Err(Error::invalid_argument("statefile cannot be empty"));
        }
        let notice = Arc::new(Notice::new()?);
        if self.work.restored.set(notice.clone()).is_err() {
            return Err(Error::invalid_state("restore is already in progress"));
        }
        life.state = State::RestoringUnstarted;
        Ok(notice)
    }

    /// Everything is there: has an agent make the containers.
    fn load(self: &Arc<Self>, mut collecting: Collecting, notice: &Arc<Notice>) -> Result<Report> {
        let containers: Vec<_> = collecting.come.iter().map(|(c, _)| c.clone()).collect();
        let RestoreOrder { background, on_demand, .. } = collecting.request.order;
        let domains = std::mem::take(&mut collecting.metadata.supervisor);
        *lock(&self.work.postponed) = Some(Vec::new());
        let loaded = self.run_agent(collecting);
        let (agent, report, complete) = match loaded {
            Ok(loaded) => loaded,
            Err(e) => {
                let e = self.restore_failed(&containers, notice, e);
                self.settle_postponed();
                return Err(e);
            }
        };
        let _ = self.work.savings.set((report.saved_cpu_ns, report.saved_wall_ns));
        let complete = complete || !background;
        for (cid, pid) in &report.moved {
            if let Some(container) = containers.iter().find(|c| c.cid == *cid)
                && let Err(e) = self.replace_init(container, *pid)
            {
                log::error!("container {cid:?}: its restored init, pid {pid}, cannot be watched: {e}");
            }
        }
        for container in &containers {
            let mut life = lock(&container.life);
            life.state = if complete { State::Restored } else { State::RestoringStarted };
            life.channel = None;
            life.times.started = Some(SystemTime::now());
            drop(life);
            self.publish(&Event::Started { cid: container.cid.clone() });
        }
        if let Err(e) = self.revive_domains(&domains) {
            log::error!("the supervisor's domains: {e}");
        }
        if complete {
            notice.set(Ok(()));
        } else {
            if on_demand {
                self.leave_for_demand(&agent);
            }
            self.follow_pages(agent, containers, notice.clone());
        }
        self.settle_postponed();
        Ok(report)
    }

    fn run_agent(&self, collecting: Collecting) -> Result<(Agent, Report, bool)> {
        let _busy = self.work.begin(Kind::Restore)?;
        let Collecting { request: RestoreRequest { mut order, files }, mut come, .. } = collecting;
        come.sort_by_key(|(_, index)| *index);
        order.containers = come
            .iter()
            .map(|(container, image)| {
                let init = container.init().filter(|init| init.status().is_none()).ok_or_else(|| {
                    Error::invalid_state(format!(
                        "container {:?} has ended before it was restored",
                        container.cid
                    ))
                })?;
                Ok(RestoreContainer {
                    cid: container.cid.clone(),
                    image: *image,
                    init: init.pid,
                    origin: container.origin.get().into_iter().flatten().map(|(n, _, _)| *n).collect(),
                    own_pid_namespace: container.own_pid_namespace.get().copied().unwrap_or(true),
                    spec: container.spec_text.get().cloned().unwrap_or_default(),
                    upper: layers(container).map(|l| l.place.clone()).collect(),
                    on_disk: layers(container).map(|l| l.on_disk).collect(),
                })
            })
            .collect::<Result<_>>()?;
        order.in_userns = self.config.in_userns;
        let containers: Vec<_> = come.iter().map(|(c, _)| c.clone()).collect();
        let mut room = Room::default();
        room.make(&containers);
        let agent = self.spawn_agent()?;
        let on_disk = come.iter().flat_map(|(c, _)| layers(c)).filter(|l| l.on_disk).map(|l| l.fd.as_fd());
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).chain(on_disk).collect();
        agent.order(&Order::Restore(order), &fds)?;
        let (report, complete) = agent.restored(|progress| self.work.set_progress(progress))?;
        Ok((agent, report, complete))
    }

    /// The agent made a container's init as another process than the one that waited: a child of the spawner as well.
    fn replace_init(&self, container: &Arc<Container>, pid: i32) -> Result<()> {
        let mut life = lock(&container.life);
        let old = life.init.clone();
        let init = Process::new(pid, process::pidfd_open(pid)?)?.instead_of(old.as_ref());
        let nspid = self.config.procfs.status_field(pid, "NSpid").ok().flatten().unwrap_or_default();
        if let Some(own) = parse_nspid(&nspid).last() {
            init.set_ns_pid(*own);
        }
        life.init = Some(init.clone());
        let mut by_pid = lock(&self.by_pid);
        if let Some(old) = old {
            by_pid.remove(&old.pid);
        }
        by_pid.insert(pid, (container.clone(), init));
        Ok(())
    }

    /// Takes note of the ends that had to wait for what the agent says.
    fn settle_postponed(&self) {
        let mut root = None;
        // Under the lock, so that an end that comes now is not overtaken by one that came later.
        let mut postponed = lock(&self.work.postponed);
        for exited in postponed.take().into_iter().flatten() {
            root = root.or(self.settle(exited));
        }
        drop(postponed);
        if let Some(status) = root {
            self.work.end_sandbox(status);
        }
    }

    /// Waits on a thread of its own for the pages of a restore in the background.
    fn follow_pages(self: &Arc<Self>, agent: Agent, containers: Vec<Arc<Container>>, notice: Arc<Notice>) {
        let loader = self.clone();
        let slot = Arc::new(std::sync::Mutex::new(Some((agent, containers, notice))));
        let of_thread = slot.clone();
        let follow = move || {
            if let Some((agent, containers, notice)) = lock(&of_thread).take() {
                loader.take_pages(&agent, &containers, &notice);
            }
        };
        let thread = std::thread::Builder::new().name("restore".to_owned()).stack_size(256 << 10);
        if thread.spawn(follow).is_err()
            && let Some((agent, containers, notice)) = lock(&slot).take()
        {
            // No thread to be had (pids limit): the caller waits.
            self.take_pages(&agent, &containers, &notice);
        }
    }

    fn take_pages(&self, agent: &Agent, containers: &[Arc<Container>], notice: &Notice) {
        // What comes on demand may never be complete: that is no work in progress.
        let busy =
            if lock(&self.work.on_demand).is_some() { None } else { self.work.begin(Kind::Restore).ok() };
        let outcome = agent.restored(|progress| self.work.set_progress(progress));
        drop(busy);
        *lock(&self.work.on_demand) = None;
        match outcome {
            Ok(_) => {
                for container in containers {
                    let mut life = lock(&container.life);
                    if life.state == State::RestoringStarted {
                        life.state = State::Restored;
                    }
                }
                notice.set(Ok(()));
            }
            Err(e) => {
                log::error!("restore in the background: {e}");
                for container in containers {
                    let mut life = lock(&container.life);
                    if life.state.runs() {
                        life.reason = format!("restore failed: {e}");
                    }
                    drop(life);
                    // Memory that is missing would read as zeros.
                    kill(container);
                }
                notice.set(Err(e));
            }
        }
    }

    /// Remembers whom to ask for the pages that come on demand.
    fn leave_for_demand(&self, agent: &Agent) {
        match agent.channel.try_clone() {
            Ok(channel) => *lock(&self.work.on_demand) = Some((channel, false)),
            // Nobody could ask for them later.
            Err(_) => drop(agent.order(&Order::Continue, &[])),
        }
    }

    /// Has the pages brought in that were left until somebody asks for them; true if there are any. Does not wait.
    fn fetch_pages(&self) -> Result<bool> {
        let mut on_demand = lock(&self.work.on_demand);
        let Some((channel, asked)) = &mut *on_demand else { return Ok(false) };
        if !*asked {
            binary::send(channel, &Order::Continue, &[])
                .map_err(|e| e.context("bring in the rest of the memory"))?;
            *asked = true;
        }
        Ok(true)
    }

    /// Has all memory of a sandbox brought in that gets it on demand, and waits for it.
    ///
    /// # Errors
    /// The image could not be read; the containers are dead then.
    pub(super) fn complete_pages(&self) -> Result<()> {
        let Some(notice) = self.work.restored.get() else { return Ok(()) };
        if !self.fetch_pages()? {
            return Ok(());
        }
        loop {
            if let Some(outcome) = notice.outcome() {
                return outcome;
            }
            let _ = poll(&mut [PollFd::new(notice.ready(), PollFlags::POLLIN)], PollTimeout::NONE);
        }
    }

    /// The end of the restore that this sandbox is made by, with all pages. Those that come on demand are brought in.
    ///
    /// # Errors
    /// gVisor's `sandbox is not being restored, cannot wait for restore: state=S`.
    pub fn restored(&self) -> Result<Arc<Notice>> {
        let notice = self.work.restored.get().cloned().ok_or_else(|| {
            let state = self.root().map_or("unknown", |root| root.state().name());
            Error::invalid_state(format!(
                "sandbox is not being restored, cannot wait for restore: state={state}"
            ))
        })?;
        self.fetch_pages()?;
        Ok(notice)
    }

    /// Leaves nothing half-restored: the containers' processes are killed, the sandbox stays to tell of it.
    fn restore_failed(&self, containers: &[Arc<Container>], notice: &Notice, error: Error) -> Error {
        log::error!("restore: {error}");
        for container in containers {
            let mut life = lock(&container.life);
            if matches!(life.state, State::Stopped | State::Creating) {
                continue;
            }
            life.state = State::RestoreFailed;
            life.reason = format!("restore failed: {error}");
            life.channel = None;
            drop(life);
            kill(container);
        }
        notice.set(Err(error.clone()));
        error
    }
}

/// Whether a sandbox may be restored whose root container is in `state`, with an init that `waits` or not.
fn restorable(state: State, waits: bool) -> Result<()> {
    let what = format!("cannot restore a container in state={}", state.name());
    Err(Error::invalid_state(match state {
        State::Created if waits => return Ok(()),
        State::RestoringUnstarted | State::RestoringStarted => {
            format!("restore is already in progress: {what}")
        }
        state if state.runs() => format!("cannot restore a started container: {what}"),
        _ => what,
    }))
}

/// The container belongs to the restore from now on, and cannot be started.
fn claim(container: &Container) -> Result<()> {
    let mut life = lock(&container.life);
    match life.state {
        State::Created if life.channel.is_some() => {
            life.state = State::RestoringUnstarted;
            Ok(())
        }
        state => Err(Error::invalid_state(format!(
            "cannot restore a container in state={}: container {:?}",
            state.name(),
            container.cid
        ))),
    }
}

fn kill(container: &Container) {
    if let Some(cgroup) = container.cgroup.get() {
        let _ = cgroup.kill();
    }
    if let Some(init) = container.init() {
        let _ = init.signal(libc::SIGKILL);
    }
}

fn read_metadata(request: &RestoreRequest) -> Result<Metadata> {
    let statefile = request
        .files
        .first()
        .ok_or_else(|| Error::invalid_argument("at least one file must be passed to Restore"))?;
    let reader = Reader::inspect(File::from(statefile.try_clone()?), request.order.key.as_deref())?;
    let metadata = reader.metadata();
    metadata.check_version(env!("CARGO_PKG_VERSION"))?;
    metadata.count_containers()?;
    crate::supervisor::check_saved(&metadata.supervisor)?;
    if metadata.pre_dump {
        return Err(Error::invalid_argument(
            "the image is a pre-dump: it has memory alone and serves as the parent of a checkpoint",
        ));
    }
    Ok(metadata.clone())
}

/// Names of the image's containers in their order.
fn image_names(metadata: &Metadata) -> Result<Vec<String>> {
    let count = metadata.count_containers()? as usize;
    if metadata.containers.len() == count {
        return Ok(metadata.containers.iter().map(|c| c.name.clone()).collect());
    }
    let names: Vec<String> = metadata.container_specs.keys().cloned().collect();
    if names.len() != count {
        return Err(Error::invalid_argument("container specs not found in metadata during restore"));
    }
    Ok(names)
}
