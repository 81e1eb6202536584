//! A domain's life: start, freeze, thaw, stop.
#![forbid(unsafe_code)]

use super::metrics::Baseline;
use super::{Domain, Named, Source, State, Wait, idle};
use crate::cgroup::tree::Node;
use crate::cgroup::{Cgroup, leaf_name, resources};
use crate::container::{Container, lock};
use crate::loader::{ContainerParts, ExecRequest, Loader};
use airlock_wire::api::supervisor::{
    BindMount, CgroupProfile, CycleDeltaMetrics, Deadline, Hook, Mount, ProfileName, StopRequest,
};
use airlock_wire::error::{Error, Kind, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::json;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The period of CPU quotas in microseconds.
pub(super) const PERIOD: u64 = 100_000;
/// What a hook said last, as much of it as an error shows.
const HOOK_TAIL: usize = 2048;
/// How long execs that are under way may take before a freeze.
const SETTLE: Duration = Duration::from_secs(10);
/// How long the kernel may take to let go of a cgroup whose processes have ended.
const LEAVE: Duration = Duration::from_secs(5);

impl Loader {
    /// Starts a domain. Blocks until its init runs and its hooks have ended; `wait` fails when nobody wants it any more.
    ///
    /// # Errors
    /// Unknown, or not configured; what setting it up fails at; which hook failed and how. The domain has stopped then.
    pub fn start_domain(self: &Arc<Self>, name: &str, wait: Wait<'_>) -> Result<()> {
        let domain = self.supervisor().domain(name)?;
        domain.enter("started", State::Starting, |state| state == State::Configured)?;
        let started = self.bring_up(&domain, wait).map_err(super::as_failure);
        match &started {
            Ok(true) => domain.set(State::Started),
            // It becomes what it was in the image.
            Ok(false) => {}
            Err(_) => {
                self.clear_away(&domain);
                domain.set(State::Stopped);
            }
        }
        started.map(drop)
    }

    /// False for a domain whose sandbox is being restored: so is it, with the last of its containers.
    fn bring_up(self: &Arc<Self>, domain: &Arc<Domain>, wait: Wait<'_>) -> Result<bool> {
        let (mut source, config) = {
            let mut inner = lock(&domain.inner);
            let source = inner.source.take();
            (source.ok_or_else(|| Error::failure("the domain has no root"))?, inner.config.clone())
        };
        lock(&domain.inner).base = source.spec["process"].clone();
        let spec = source.container_spec(&domain.name, &config);
        let text = spec.to_string();
        let spec: Spec = serde_json::from_value(spec).map_err(|e| Error::failure(format!("spec: {e}")))?;
        let container = self.reserve(&domain.name, None)?;
        lock(&domain.inner).container = Some(container.clone());
        if source.parts.cgroup.is_none()
            && let Some((node, cgroup)) = self.make_cgroup(&domain.name)?
        {
            lock(&domain.inner).made = Some(node);
            source.parts.cgroup = Some(cgroup);
        }
        let Source { bundle, mut parts, .. } = source;
        self.complete(&mut parts)?;
        parts.to_restore = self.is_collecting();
        let restored = parts.to_restore;
        if self.in_userns() && parts.devices.is_empty() {
            parts.devices = self.devices_of_parent()?;
        }
        if let Some(profiles) = config.profiles {
            let profile = match config.start_profile {
                ProfileName::None => None,
                ProfileName::Throttled => Some(profiles.throttled),
                ProfileName::Unthrottled => Some(profiles.unthrottled),
            };
            if let Some(profile) = profile {
                let cgroup = parts.cgroup.as_ref();
                apply(domain, cgroup, profile).map_err(|e| e.context("start_profile"))?;
            }
        }
        self.prepare(&container, text, spec, &bundle, parts)?;
        if restored {
            return self.restore_container(&container).map(|_| false);
        }
        let cycle = Baseline::begin(self, &container);
        lock(&domain.inner).cycle = cycle;
        self.start(&container)?;
        for hook in &config.hooks {
            self.run_hook(hook, wait).map_err(|e| e.context(format!("start hook {:?}", hook.name)))?;
        }
        Ok(true)
    }

    /// The program and the streams of the idle init.
    fn complete(&self, parts: &mut ContainerParts) -> Result<()> {
        parts.exec = Some(idle::program()?);
        parts.tty = None;
        parts.pass.clear();
        // It waits for its own start when the sandbox is being restored.
        let parent =
            self.root()?.init().ok_or_else(|| Error::invalid_state("the parent domain has no process"))?;
        let null = self.null_of(parent.pid)?;
        parts.stdio = vec![null.try_clone()?, null.try_clone()?, null];
        Ok(())
    }

    /// Device nodes of the parent domain as detached mounts: in a user namespace nobody can make any.
    fn devices_of_parent(&self) -> Result<Vec<(String, OwnedFd)>> {
        let paths = ["null", "zero", "full", "random", "urandom", "tty"].map(|name| format!("/dev/{name}"));
        let bind = |path: &String| {
            Mount::Bind(BindMount { source: path.clone(), destination: path.clone(), options: Vec::new() })
        };
        let mounts: Vec<_> = paths.iter().map(bind).collect();
        let made = self.make_mounts(&mounts, &[]).map_err(|e| e.context("devices of the parent domain"))?;
        Ok(paths.into_iter().zip(made).collect())
    }

    /// `/dev/null` as process `pid` has it; in a container without one, a socket that nobody is behind.
    pub(super) fn null_of(&self, pid: i32) -> Result<OwnedFd> {
        let found = self.procfs().open_inside(pid, "/dev/null", OFlag::O_PATH | OFlag::O_NOFOLLOW).ok();
        let found = found.filter(|fd| {
            nix::sys::stat::fstat(fd)
                .is_ok_and(|s| s.st_rdev == nix::sys::stat::makedev(1, 3) && is_device(s.st_mode))
        });
        match found.and_then(|fd| self.procfs().reopen_writable(fd.as_fd()).ok()) {
            Some(file) => Ok(file.into()),
            None => Ok(std::os::unix::net::UnixStream::pair()?.0.into()),
        }
    }

    /// A cgroup for a domain whose parent gave none: beside the root container's, with controllers of its own where those can
    /// be had. `None` in a sandbox without cgroups.
    fn make_cgroup(&self, name: &str) -> Result<Option<(Node, Cgroup)>> {
        let root = self.root()?;
        let Some(cgroup) = root.cgroup.get() else { return Ok(None) };
        let beside = Node::beside(cgroup)?;
        let leaf = leaf_name(name)?;
        let wanted: Vec<_> =
            ["cpu", "cpuacct", "memory"].into_iter().filter(|c| !beside.v2() && beside.offers(c)).collect();
        let made = match beside.make_child(&leaf, &wanted) {
            // In a user namespace only the leaves' directory may be ours.
            Err(e) if e.kind == Kind::Permission && !wanted.is_empty() => beside.make_child(&leaf, &[])?,
            made => made?,
        };
        let node = made.keep()?;
        let cgroup = node.cgroup()?;
        Ok(Some((node, cgroup)))
    }

    /// Runs a hook in the parent domain and waits for its end.
    fn run_hook(&self, hook: &Hook, wait: Wait<'_>) -> Result<()> {
        let (parent, init) = self.running(self.id())?;
        let mut args = vec![hook.path.clone()];
        args.extend(hook.args.iter().cloned());
        let mut process = serde_json::to_value(parent.process_spec()).unwrap_or_default();
        if !process.is_object() {
            process = json!({"user": {"uid": 0, "gid": 0}});
        }
        process["terminal"] = json!(false);
        process["args"] = json!(args);
        process["cwd"] = json!("/");
        process["env"] = json!(super::process::environment(hook.env.as_ref())?);
        let (mut said, writer) = std::io::pipe()?;
        fcntl(&said, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let null = self.null_of(init.pid)?;
        let request = ExecRequest {
            process: process.to_string(),
            stdio: vec![null, writer.try_clone()?.into(), writer.into()],
            tty: None,
            pass: Vec::new(),
            exec: None,
            cgroup: None,
        };
        let executed = self.exec(self.id(), request)?;
        let process = executed.process;
        let mut tail = Vec::new();
        while process.status().is_none() {
            // Woken now and then to empty the pipe: a hook that says much must not wait for us.
            let again = Instant::now() + Duration::from_millis(20);
            if let Err(e) = wait(process.ended(), Some(again)) {
                let _ = super::process::signal_group(&process, libc::SIGKILL);
                return Err(e);
            }
            keep_tail(&mut said, &mut tail);
        }
        keep_tail(&mut said, &mut tail);
        parent.forget_process(process.ns_pid(), &process);
        let status = process.status().unwrap_or_default();
        if status == 0 {
            return Ok(());
        }
        let how = match status & 0x7f {
            0 => format!("exit status {}", status >> 8 & 0xff),
            signal => format!("killed by signal {signal}"),
        };
        let said = String::from_utf8_lossy(&tail).split_whitespace().collect::<Vec<_>>().join(" ");
        Err(Error::failure(if said.is_empty() { how } else { format!("{how}; it said: {said}") }))
    }

    /// Freezes a domain; answers what its cycle has used.
    ///
    /// # Errors
    /// Unknown, or it does not run; a process does not stop in time, and all run on.
    pub fn freeze_domain(&self, name: &str) -> Result<CycleDeltaMetrics> {
        let domain = self.supervisor().domain(name)?;
        let before = domain.enter("frozen", State::Freezing, State::runs)?;
        let frozen = (|| {
            // A process in the middle of being executed would hold up its caller until the thaw.
            let settle = Instant::now() + SETTLE;
            let mut inner = lock(&domain.inner);
            while inner.executing > 0 {
                let left = settle.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::failure("a process that is being executed takes too long"));
                }
                let waited = domain.settled.wait_timeout(inner, left);
                inner = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
            }
            drop(inner);
            let container = self.container(name)?;
            self.pause_container(name, true)?;
            let mut inner = lock(&domain.inner);
            let used = inner.cycle.turn(self, &container);
            inner.state = State::Frozen;
            Ok(used)
        })();
        if frozen.is_err() {
            domain.set(before);
        }
        frozen
    }

    /// Thaws a frozen domain, with the throttled profile if it has profiles.
    ///
    /// # Errors
    /// Unknown, or not frozen; the profile cannot be set, and it stays frozen.
    pub fn thaw_domain(&self, name: &str) -> Result<()> {
        let domain = self.supervisor().domain(name)?;
        domain.enter("thawed", State::Thawing, |state| state == State::Frozen)?;
        let thawed = (|| {
            let container = self.container(name)?;
            let profiles = lock(&domain.inner).config.profiles;
            if let Some(profiles) = profiles {
                let applied = apply(&domain, container.cgroup.get(), profiles.throttled);
                applied.map_err(|e| e.context("the throttled profile"))?;
            }
            let cycle = Baseline::begin(self, &container);
            lock(&domain.inner).cycle = cycle;
            // Another call may have thawed it behind our back, which is what is wanted.
            if self.is_paused(&container) {
                self.pause_container(name, false)?;
            }
            Ok(())
        })();
        domain.set(if thawed.is_ok() { State::Thawed } else { State::Frozen });
        thawed
    }

    /// Ends every process of a domain by the deadline; answers what its last cycle has used.
    ///
    /// # Errors
    /// Unknown, or it does not run; the deadline is not in the future, or passes first: then it may be called again.
    pub fn stop_domain(&self, request: &StopRequest, wait: Wait<'_>) -> Result<CycleDeltaMetrics> {
        let domain = self.supervisor().domain(&request.domain)?;
        let (before, container) = {
            let mut inner = lock(&domain.inner);
            let state = inner.state();
            // One that has ended by other means still has to be cleared away.
            let container = inner
                .container
                .clone()
                .filter(|_| state.runs() || matches!(state, State::Frozen | State::Stopped));
            let container = container.ok_or_else(|| domain.wrong("stopped", state))?;
            let until = until(request.deadline)?;
            let before = inner.state;
            inner.state = State::Stopping;
            (before, (container, until))
        };
        let (container, until) = container;
        let ended = end(&container, until, wait);
        match ended {
            Ok(()) => {
                let used = lock(&domain.inner).cycle.turn(self, &container);
                self.clear_away(&domain);
                domain.set(State::Stopped);
                Ok(used)
            }
            Err(e) => {
                domain.set(before);
                Err(e)
            }
        }
    }

    /// Destroys the domain's container, if there is one, with its cgroup, and forgets what comes with it.
    fn clear_away(&self, domain: &Domain) {
        let container = lock(&domain.inner).container.clone();
        if let Some(container) = container
            && let Err(e) = self.destroy(&container.cid)
            && e.kind != Kind::NoSuchEntity
        {
            log::warn!("clearing domain {:?} away: {e}", domain.name);
        }
        self.supervisor().container_destroyed(&domain.name, self);
        let mut inner = lock(&domain.inner);
        inner.container = None;
        inner.source = None;
        inner.logs.clear();
        inner.processes.by_name.retain(|_, named| !matches!(named, Named::Starting));
    }
}

/// The moment by which something has to be done; far away counts as never.
///
/// # Errors
/// It is not in the future.
pub(super) fn until(deadline: Deadline) -> Result<Option<Instant>> {
    let left = deadline
        .left()
        .ok_or_else(|| Error::invalid_argument(format!("the deadline {deadline} is not in the future")))?;
    Ok(Instant::now().checked_add(left))
}

/// Kills a domain's init, and with it, by the kernel, everything in its pid namespace: nothing forks its way out of that.
fn end(container: &Container, until: Option<Instant>, wait: Wait<'_>) -> Result<()> {
    let Some(init) = container.init() else { return Ok(()) };
    if init.status().is_none() {
        // First the signal, so that nothing runs when a frozen domain is thawed to die.
        let _ = init.signal(libc::SIGKILL);
        if let Some(cgroup) = container.cgroup.get() {
            cgroup.freeze(false)?;
        }
    }
    while init.status().is_none() {
        if !wait(init.ended(), until)? {
            let left = container.cgroup.get().and_then(|c| c.procs().ok()).unwrap_or_default();
            return Err(Error::failure(format!(
                "the deadline has passed, and {} processes have not ended, among them {:?}",
                left.len(),
                &left[..left.len().min(8)]
            )));
        }
    }
    Ok(())
}

/// Sets a profile's limits. v1: of the hierarchies of cpu and memory; v2: of the domain's cgroup above its leaf.
fn apply(domain: &Domain, cgroup: Option<&Cgroup>, profile: CgroupProfile) -> Result<()> {
    let quota = match profile.cpu_limit {
        0.0 => -1,
        cores => (cores * PERIOD as f64).round() as i64,
    };
    let memory = match i64::try_from(profile.memory_limit_bytes) {
        Ok(0) | Err(_) => -1,
        Ok(bytes) => bytes,
    };
    let limits = json!({"cpu": {"quota": quota, "period": PERIOD}, "memory": {"limit": memory}});
    let limits: LinuxResources =
        serde_json::from_value(limits).map_err(|e| Error::failure(format!("limits: {e}")))?;
    let made = lock(&domain.inner).made.clone();
    if let Some(node) = made {
        if node.v2() {
            return Err(no_controllers());
        }
        return node.apply(&limits);
    }
    let cgroup = cgroup.ok_or_else(no_controllers)?;
    if cgroup.v2() {
        return cgroup
            .dir("")
            .map_or_else(|| Err(no_controllers()), |dir| resources::apply_dir(true, "", dir, &limits));
    }
    let has = |name: &str, wanted: &str| name.split(',').any(|c| c == wanted);
    let wanted: Vec<_> = cgroup.dirs().filter(|(name, _)| has(name, "cpu") || has(name, "memory")).collect();
    if !["cpu", "memory"].iter().all(|c| wanted.iter().any(|(name, _)| has(name, c))) {
        return Err(no_controllers());
    }
    wanted.into_iter().try_for_each(|(name, dir)| resources::apply_dir(false, name, dir, &limits))
}

fn no_controllers() -> Error {
    Error::unsupported(
        "the domain has no cgroup of its own with the controllers cpu and memory: donate one with Supervisor.Define (on \
         cgroup v2 a sandbox cannot make one)",
    )
}

/// Removes the cgroup that was made for a domain.
pub(super) fn remove_cgroup(loader: &Loader, node: &Node) -> Result<()> {
    let root = loader.root()?;
    let (Some(cgroup), Some(name)) = (root.cgroup.get(), node.path().last()) else { return Ok(()) };
    match Node::beside(cgroup)?.remove_child(name, Instant::now() + LEAVE) {
        Err(e) if e.kind == Kind::NoSuchEntity => Ok(()),
        other => other,
    }
}

fn is_device(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFCHR
}

fn keep_tail(from: &mut std::io::PipeReader, tail: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 {
            return;
        }
        tail.extend_from_slice(&buffer[..n]);
        let surplus = tail.len().saturating_sub(HOOK_TAIL);
        tail.drain(..surplus);
    }
}
