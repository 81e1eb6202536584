//! Making, starting and destroying containers.
#![forbid(unsafe_code)]

use super::parts::layers;
use super::{ContainerParts, Event, Loader};
use crate::cgroup::Cgroup;
use crate::container::{Container, Process, State, lock};
use crate::init::plan::{Answer, CreateOrder, FdLayout, Order};
use crate::oci::namespaces::joined;
use crate::spawner::{Placement, Role, Spawned};
use airlock_wire::api::boot::Namespace;
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

/// What comes out of setting a container up.
#[derive(Debug)]
pub struct Prepared {
    /// Pid of the init in the sandbox's pid namespace.
    pub init_pid: i32,
    /// pty master of the container's terminal.
    pub console: Option<OwnedFd>,
    /// Seccomp user-notification listener.
    pub listener: Option<OwnedFd>,
}

impl Loader {
    /// Reserves `cid` for a subcontainer (gVisor `CreateSubcontainer`).
    ///
    /// # Errors
    /// gVisor's `container "X" already exists`.
    pub fn reserve(&self, cid: &str, tty: Option<OwnedFd>) -> Result<Arc<Container>> {
        if cid.is_empty() || cid.len() > 1024 || cid.contains(['/', '\0']) || cid == "." || cid == ".." {
            return Err(Error::invalid_argument(format!("invalid container ID {cid:?}")));
        }
        let mut containers = lock(&self.containers);
        if containers.contains_key(cid) {
            return Err(Error::invalid_state(format!("container {cid:?} already exists")));
        }
        let container = Arc::new(Container::reserve(cid, false, tty));
        containers.insert(cid.to_owned(), container.clone());
        Ok(container)
    }

    /// Forgets a reserved container that never got a process.
    pub fn unreserve(&self, cid: &str) {
        let mut containers = lock(&self.containers);
        if containers.get(cid).is_some_and(|c| !c.root && c.init().is_none()) {
            containers.remove(cid);
        }
    }

    /// Sets a reserved container up to the point where its program could be executed (OCI `create`). Blocks until then.
    ///
    /// # Errors
    /// Whatever the spec, the kernel or the descriptors do not allow; nothing of the attempt is left but the id.
    pub fn prepare(
        &self,
        container: &Arc<Container>,
        spec_text: String,
        spec: Spec,
        bundle: &str,
        mut parts: ContainerParts,
    ) -> Result<Prepared> {
        let cid = &container.cid;
        if container.state() != State::Creating || container.spec.get().is_some() {
            return Err(Error::invalid_state(format!(
                "container {cid:?} cannot be created again: it is {}",
                container.state().name()
            )));
        }
        let cgroup = match parts.cgroup.take() {
            Some(cgroup) if container.root => Some(cgroup.sandbox_inside()),
            Some(cgroup) => Some(cgroup),
            None if container.root => None,
            None => {
                let child = self.root()?.cgroup.get().map(|c| c.make_child(cid)).transpose()?;
                container.made_leaf.store(child.is_some(), Ordering::Relaxed);
                child
            }
        };
        if let Some(cgroup) = cgroup {
            let _ = container.cgroup.set(cgroup);
        }
        let filestores = std::mem::take(&mut parts.filestores);
        let _ = container.layers.set(layers(&spec, &parts.confs, filestores));
        let _ = container.spec.set(spec);
        let _ = container.spec_text.set(spec_text.clone());
        self.trace_container(container);
        let (placement_pid, own) = self.pid_namespace(container)?;
        let _ = container.own_pid_namespace.set(own);
        let _ = container.namespaces.set(own_namespaces(container, &parts));
        if parts.tty.is_none() {
            parts.tty = lock(&container.tty).take();
        }
        let cgroup = container.cgroup.get();
        let placement = Placement {
            new_pid_namespace: own,
            pid_namespace_of: placement_pid.as_ref().map(|p| p.pidfd()),
            into_cgroup: cgroup.and_then(Cgroup::v2_dir),
            role: Role::Container,
        };
        let (process, channel) = self.spawner_fork(container, placement, true)?;
        let (order, fds) = self.create_order(container, spec_text, bundle, parts)?;
        let answer = (|| {
            let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            binary::send(&channel, &Order::Create(order), &refs)?;
            drop(refs);
            drop(fds);
            match binary::recv::<Answer>(&channel) {
                Ok((Answer::Ready { pid, console, listener, devpts, newest_mount, origin }, fds)) => {
                    let _ = container.newest_mount.set(newest_mount);
                    let _ = container.origin.set(origin);
                    Ok((pid, console, listener, devpts, fds))
                }
                Ok((Answer::Failed(e), _)) => Err(e),
                Err(e) => Err(died_early(&process, e)),
            }
        })();
        let (pid, has_console, has_listener, has_devpts, fds) = match answer {
            Ok(x) => x,
            Err(e) => {
                self.abandon(container, &process, &e);
                return Err(e);
            }
        };
        process.set_ns_pid(pid);
        let mut fds = fds.into_iter();
        let console = if has_console { fds.next() } else { None };
        let listener = if has_listener { fds.next() } else { None };
        if has_devpts && let Some(fd) = fds.next() {
            let _ = container.devpts.set(fd);
        }
        let mut life = lock(&container.life);
        if life.state == State::Creating {
            life.state = State::Created;
            life.channel = Some(channel);
            life.times.created = Some(SystemTime::now());
        }
        Ok(Prepared { init_pid: process.pid, console, listener })
    }

    /// Executes the program of a created container (OCI `start`). Blocks until it is executed or has failed.
    ///
    /// # Errors
    /// State errors; the exec's own failure, after which the container is stopped.
    pub fn start(&self, container: &Arc<Container>) -> Result<()> {
        let cid = &container.cid;
        if container.root && container.state() == State::Created {
            self.create_kept_links()?;
        }
        let (channel, process) = {
            let mut life = lock(&container.life);
            match (life.state, life.channel.take(), life.init.clone()) {
                (State::Created, Some(channel), Some(init)) => (channel, init),
                (state, channel, _) => {
                    life.channel = channel;
                    return Err(Error::invalid_state(format!(
                        "cannot start container {cid:?}: it is {}",
                        if state == State::Created { "being started" } else { state.name() }
                    )));
                }
            }
        };
        self.trace_start(container, &process);
        let failed = match binary::send(&channel, &Order::Start, &[]) {
            Ok(()) => match binary::recv::<Answer>(&channel) {
                Ok((Answer::Failed(e), _)) => Some(e),
                Ok((Answer::Ready { .. }, _)) => Some(Error::failure("the init answered out of turn")),
                // Closed on exec: the program runs.
                Err(e) if e.kind == Kind::Disconnected => None,
                Err(e) => Some(e),
            },
            Err(e) => Some(died_early(&process, e)),
        };
        if let Some(e) = failed {
            self.abandon(container, &process, &e);
            return Err(e);
        }
        {
            let mut life = lock(&container.life);
            if life.state == State::Created {
                life.state = State::Started;
            }
            life.times.started = Some(SystemTime::now());
        }
        self.publish(&Event::Started { cid: cid.clone() });
        // A program that ended at once was taken note of as a created container: its end is news only now.
        if let Some(status) = process.status() {
            self.publish(&Event::Exited { cid: cid.clone(), status });
        }
        Ok(())
    }

    /// Kills all processes of a subcontainer, waits for their end, and forgets it (gVisor `DestroySubcontainer`).
    ///
    /// # Errors
    /// `container "X" not found`; the root container cannot be destroyed but by ending the sandbox.
    pub fn destroy(&self, cid: &str) -> Result<()> {
        let container = self.container(cid)?;
        if container.root {
            return Err(Error::invalid_argument(format!(
                "container {cid:?} is the sandbox's root container: end it by signal"
            )));
        }
        if let Some(init) = kill_init(&container) {
            wait_end(&init);
        }
        if let Some(cgroup) = container.cgroup.get() {
            empty(cgroup)?;
            if container.made_leaf.load(Ordering::Relaxed)
                && let Some(parent) = self.root()?.cgroup.get()
            {
                parent.remove_child(cid)?;
            }
        }
        self.trace_forget(&container);
        lock(&self.containers).remove(cid);
        self.supervisor.container_destroyed(cid, self);
        Ok(())
    }

    /// Ends every container but the root (which has ended already): the last act of a sandbox.
    ///
    /// For the thread that takes in exits, which nobody else can do meanwhile: `take_exit` blocks for the next one and
    /// hands it to [`Loader::process_ended`]; false means that no more will come.
    pub fn end_subcontainers(&self, mut take_exit: impl FnMut() -> bool) {
        let containers: Vec<_> = self.containers().into_iter().filter(|c| !c.root).collect();
        for container in &containers {
            kill_init(container);
        }
        let running = |c: &Arc<Container>| c.init().is_some_and(|init| init.status().is_none());
        while containers.iter().any(running) {
            if !take_exit() {
                return;
            }
        }
        for container in containers {
            if let Err(e) = self.destroy(&container.cid) {
                log::warn!("ending container {:?}: {e}", container.cid);
            }
        }
    }

    pub(super) fn spawner_fork(
        &self,
        container: &Arc<Container>,
        placement: Placement<'_>,
        init: bool,
    ) -> Result<(Arc<Process>, std::os::unix::net::UnixStream)> {
        self.config.spawner.spawn(placement, |Spawned { pid, pidfd, channel }| {
            let process = Arc::new(Process::new(pid, pidfd)?);
            if init {
                lock(&container.life).init = Some(process.clone());
            }
            lock(&self.by_pid).insert(pid, (container.clone(), process.clone()));
            Ok((process, channel))
        })?
    }

    /// Whose pid namespace the container lives in, and whether it gets one of its own.
    fn pid_namespace(&self, container: &Container) -> Result<(Option<Arc<Process>>, bool)> {
        let entry = container.spec.get().and_then(|spec| {
            let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
            namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::Pid).cloned()
        });
        match entry {
            Some(ns) if joined(&ns).is_none() => Ok((None, true)),
            _ if container.root => Ok((None, false)),
            // By path or absent: a subcontainer shares its pod's, which is the root container's.
            _ => {
                let root = self.root()?;
                let init = root.init().filter(|i| i.status().is_none()).ok_or_else(|| {
                    Error::invalid_state(
                        "the root container, whose pid namespace is to be shared, has stopped",
                    )
                })?;
                Ok((Some(init), false))
            }
        }
    }

    fn create_order(
        &self,
        container: &Container,
        spec: String,
        bundle: &str,
        parts: ContainerParts,
    ) -> Result<(CreateOrder, Vec<OwnedFd>)> {
        let cgroup = container.cgroup.get();
        let mut fds = cgroup.map(Cgroup::join_fd).transpose()?.unwrap_or_default();
        let layout = FdLayout {
            cgroup_join: fds.len() as u16,
            stdio: parts.stdio.len() as u16,
            tty: u16::from(parts.tty.is_some()),
            devpts: 0,
            exec: u16::from(parts.exec.is_some()),
            pass: parts.pass.iter().map(|(n, _)| *n).collect(),
            join: parts.join.iter().map(|(n, _)| *n).collect(),
            init: 0,
            mounts: parts.mounts.len() as u16,
            devices: parts.devices.iter().map(|(p, _)| p.clone()).collect(),
            cgroup_mounts: parts.cgroup_mounts.iter().map(|(n, _)| n.clone()).collect(),
        };
        fds.extend(parts.stdio);
        fds.extend(parts.tty);
        fds.extend(parts.exec);
        fds.extend(parts.pass.into_iter().map(|(_, fd)| fd));
        fds.extend(parts.join.into_iter().map(|(_, fd)| fd));
        fds.extend(parts.mounts);
        fds.extend(parts.devices.into_iter().map(|(_, fd)| fd));
        fds.extend(parts.cgroup_mounts.into_iter().map(|(_, fd)| fd));
        let order = CreateOrder {
            cid: container.cid.clone(),
            spec,
            bundle: bundle.to_owned(),
            root: container.root,
            in_userns: self.config.in_userns,
            cgroup_v2: cgroup.is_some_and(Cgroup::v2),
            cgroup_names: cgroup
                .map(|c| c.dirs().map(|(name, _)| name.to_owned()).collect())
                .unwrap_or_default(),
            generation: self.generation.clone(),
            to_restore: parts.to_restore,
            fds: layout,
        };
        Ok((order, fds))
    }

    /// After a failed set-up or start: kills the process and leaves the container stopped.
    fn abandon(&self, container: &Container, process: &Arc<Process>, error: &Error) {
        lock(&container.life).reason = error.message.clone();
        let _ = process.signal(libc::SIGKILL);
        wait_end(process);
        if let Some(cgroup) = container.cgroup.get() {
            let _ = empty(cgroup);
        }
    }
}

/// Sends SIGKILL to the container's init, if it has one.
fn kill_init(container: &Container) -> Option<Arc<Process>> {
    let init = container.init()?;
    // A frozen process does not die.
    if let Some(cgroup) = container.cgroup.get() {
        let _ = cgroup.freeze(false);
    }
    let _ = init.signal(libc::SIGKILL);
    Some(init)
}

/// The namespaces, as `CLONE_NEW*` flags, in which a container differs from the spawner: its mounts always (the spawner
/// sits in an empty root), its cgroups if it has a namespace for them, and what it joins beyond its sandbox's.
fn own_namespaces(container: &Container, parts: &ContainerParts) -> i32 {
    let namespaces =
        container.spec.get().and_then(|s| s.linux().as_ref()).and_then(|l| l.namespaces().as_ref());
    let cgroup = namespaces.is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::Cgroup));
    let joined = parts.join.iter().map(|(kind, _)| match kind {
        Namespace::Network => libc::CLONE_NEWNET,
        Namespace::Ipc => libc::CLONE_NEWIPC,
        Namespace::Uts => libc::CLONE_NEWUTS,
        Namespace::Cgroup => libc::CLONE_NEWCGROUP,
        Namespace::User => libc::CLONE_NEWUSER,
        // Chosen when the process is forked.
        Namespace::Pid | Namespace::Time | Namespace::Mount => 0,
    });
    let cgroup = if cgroup { libc::CLONE_NEWCGROUP } else { 0 };
    joined.fold(libc::CLONE_NEWNS | cgroup, |all, flag| all | flag)
}

/// Blocks until `process` has ended.
fn wait_end(process: &Process) {
    while process.status().is_none() {
        let mut fds = [PollFd::new(process.ended(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
    }
}

/// Kills what is in a leaf and waits until it is empty.
fn empty(cgroup: &Cgroup) -> Result<()> {
    loop {
        let pids = cgroup.procs()?;
        if pids.is_empty() {
            return Ok(());
        }
        cgroup.kill()?;
        for pid in pids {
            if let Ok(pidfd) = crate::sys::process::pidfd_open(pid) {
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::NONE);
            }
        }
    }
}

fn died_early(process: &Process, error: Error) -> Error {
    if error.kind != Kind::Disconnected {
        return error;
    }
    match process.status() {
        Some(s) if s & 0x7f != 0 => Error::failure(format!(
            "the container's init was killed by signal {} while it was set up",
            s & 0x7f
        )),
        _ => Error::failure("the container's init ended while it was set up (out of memory or killed?)"),
    }
}
