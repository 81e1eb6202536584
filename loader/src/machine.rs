//! The container API (lmctfy, seed 003): a tree of named containers, which are cgroups, and what can be done with them.
//!
//! The containers are in the kernel alone ([`crate::cgroup::tree`]): what a container was asked to be is an attribute of
//! its cgroup's directory. So several servers' clients, and a server that was killed and started again, see the same. The
//! same code serves a sandbox (the tree below its own cgroup) and a machine; what differs is a [`Place`].
#![forbid(unsafe_code)]

mod fields;
mod hosts;
mod list;
mod locks;
pub mod names;
mod notify;
mod place;
mod plan;
mod unclaimed;
pub mod update;
mod usage;

pub use fields::Event;
pub use names::Name;
pub use place::{Place, Privileged, Program, Running, VirtualHosts};
pub use unclaimed::Unclaimed;

use crate::cgroup::files::Dir;
use crate::cgroup::resources::devices::{self, ALL, Rule};
use crate::cgroup::tree::Node;
use crate::sys::xattr;
use airlock_wire::api::container::spec::{CgroupHierarchy, ContainerSpec, EventSpec, InitSpec};
use airlock_wire::api::container::stats::ContainerStats;
use airlock_wire::api::container::status::Code;
use airlock_wire::api::container::{StatsType, UpdatePolicy};
use airlock_wire::error::{Error, Kind, Result};
use locks::Locks;
use nix::errno::Errno;
use notify::Notifications;
use plan::Plan;
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// The attribute that holds a container's specification, in JSON.
const SPEC: &CStr = c"user.airlock.container";
/// Longest specification that is kept; the kernel takes 64 KiB for one attribute.
const MAX_SPEC: usize = 60_000;
/// How long the killed may take to end.
const END: Duration = Duration::from_secs(10);
/// Most threads that one call moves.
pub const MAX_TIDS: usize = 65_536;

/// A tree of containers.
#[derive(Debug)]
pub struct Machine {
    root: Node,
    /// Where the root is, as `/proc/<pid>/cgroup` names it; without a slash at the end.
    prefix: String,
    place: Box<dyn Place>,
    locks: Locks,
    /// Held while containers are made; exclusively, while what was left of some is cleared away.
    making: RwLock<()>,
    notifications: OnceLock<Notifications>,
}

/// The names of a specification's hierarchies as the kernel calls their controllers (v1, v2).
const HIERARCHIES: [(CgroupHierarchy, &str, &str); 10] = [
    (CgroupHierarchy::CgroupCpu, "cpu", "cpu"),
    (CgroupHierarchy::CgroupCpuacct, "cpuacct", "cpu"),
    (CgroupHierarchy::CgroupCpuset, "cpuset", "cpuset"),
    (CgroupHierarchy::CgroupFreezer, "freezer", ""),
    (CgroupHierarchy::CgroupIo, "blkio", "io"),
    (CgroupHierarchy::CgroupJob, "pids", "pids"),
    (CgroupHierarchy::CgroupMemory, "memory", "memory"),
    (CgroupHierarchy::CgroupNet, "net_cls", "net_cls"),
    (CgroupHierarchy::CgroupPerfEvent, "perf_event", "perf_event"),
    (CgroupHierarchy::CgroupDevice, "devices", ""),
];

fn no_container(name: &Name) -> Error {
    Code::NotFound.error(format_args!("container \"{name}\" does not exist"))
}

fn not_the_root(name: &Name, what: &str) -> Result<()> {
    if name.is_root() {
        return Err(Code::FailedPrecondition.error(format_args!("the root container cannot be {what}")));
    }
    Ok(())
}

impl Machine {
    /// The tree below `root`, which is at `path` as `/proc/<pid>/cgroup` names it.
    pub fn new(root: Node, path: &str, place: Box<dyn Place>) -> Self {
        Self {
            root,
            prefix: path.trim_end_matches('/').to_owned(),
            place,
            locks: Locks::default(),
            making: RwLock::default(),
            notifications: OnceLock::new(),
        }
    }

    /// Checks what `spec` says of hierarchies, and clears away what was left of containers that were not completed
    /// (seed 003, `InitMachine`).
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for one that is not there, `UNIMPLEMENTED` for one that the kernel has not.
    pub fn init(&self, spec: &InitSpec) -> Result<()> {
        for mount in &spec.cgroup_mount {
            let path = mount.mount_path.as_deref().ok_or_else(|| plan::missing("cgroup_mount.mount_path"))?;
            for hierarchy in &mount.hierarchy {
                let Some((_, v1, v2)) = HIERARCHIES.iter().find(|(h, ..)| h == hierarchy) else {
                    return Err(Code::Unimplemented.error(format_args!(
                        "cgroup_mount.hierarchy: the kernel has nothing like {hierarchy:?}"
                    )));
                };
                let name = if self.root.v2() { v2 } else { v1 };
                if !name.is_empty() && !self.root.offers(name) {
                    return Err(Code::FailedPrecondition
                        .error(format_args!("cgroup_mount: the {name} controller is not available")));
                }
                self.place.check_mount(path, if self.root.v2() { "unified" } else { name })?;
            }
        }
        self.clear_remains()
    }

    /// Removes what a server that was killed has left of containers that it was making.
    ///
    /// # Errors
    /// The first that cannot be removed.
    pub fn clear_remains(&self) -> Result<()> {
        let _alone = self.making.write().unwrap_or_else(PoisonError::into_inner);
        self.root.sweep().and_then(|()| self.sweep_hosts())
    }

    /// The name that `given` means to the process `caller`: relative to the container that it is in, or to the root when
    /// it is in none of these.
    ///
    /// # Errors
    /// As [`Name::resolve`].
    pub fn resolve(&self, caller: i32, given: &str) -> Result<Name> {
        let current = if given.starts_with('/') || caller <= 0 {
            Name::root()
        } else {
            self.detect(caller).unwrap_or_default()
        };
        current.resolve(given)
    }

    /// The container that thread `tid` is in (seed 003, `Detect`).
    ///
    /// # Errors
    /// `NOT_FOUND` when there is no such thread, or it is outside of the root container.
    pub fn detect(&self, tid: i32) -> Result<Name> {
        let none = |why: &str| Code::NotFound.error(format_args!("thread {tid} {why}"));
        if tid <= 0 {
            return Err(none("is none that the server can see"));
        }
        let text = self.place.cgroups_of(tid).map_err(|_| none("does not exist"))?;
        let place = text.lines().find_map(|line| {
            let mut words = line.splitn(3, ':');
            let (number, controllers, path) = (words.next()?, words.next()?, words.next()?);
            let v2 = number == "0" && controllers.is_empty();
            let core = if self.root.v2() { v2 } else { controllers.split(',').any(|c| c == "freezer") };
            core.then_some(path)
        });
        let below = place.and_then(|path| {
            let rest = path.strip_prefix(self.prefix.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then_some(rest)
        });
        let name = below.map(Name::of_path).ok_or_else(|| none("is in no container of this tree"))?;
        // A leaf of a sandbox, which a virtual host has as well.
        let in_leaf = name.parts().iter().any(|part| part.starts_with("airlock-"));
        Ok(if in_leaf { self.owner_of(name) } else { name })
    }

    /// The nodes from the root to a container, and it.
    fn way(&self, name: &Name) -> Result<(Vec<Node>, Node)> {
        let mut above = Vec::with_capacity(name.parts().len());
        let mut node = self.root.clone();
        for part in name.parts() {
            let child = node.child(part).map_err(|e| match e.kind {
                Kind::NoSuchEntity => no_container(name),
                _ => e,
            })?;
            above.push(std::mem::replace(&mut node, child));
        }
        Ok((above, node))
    }

    /// Does something with a container. When that fails because somebody has removed it meanwhile, says so.
    fn on<T>(&self, name: &Name, alone: bool, f: impl FnOnce(&[Node], &Node) -> Result<T>) -> Result<T> {
        self.locks.with(name, alone, || {
            let (above, node) = self.way(name)?;
            f(&above, &node).map_err(|e| if node.gone() { no_container(name) } else { e })
        })
    }

    /// Whether the container exists (seed 003, `Get`).
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn get(&self, name: &Name) -> Result<()> {
        self.way(name).map(drop)
    }

    /// Makes a container, completely or not at all (seed 003, `Create`).
    ///
    /// # Errors
    /// `ALREADY_EXISTS`; `NOT_FOUND`: the parent; what [`Plan::new`] and the kernel refuse.
    pub fn create(&self, name: &Name, spec: &ContainerSpec) -> Result<()> {
        let exists = || Code::AlreadyExists.error(format_args!("container \"{name}\" exists"));
        let (above, last) = name.split().ok_or_else(exists)?;
        let _making = self.making.read().unwrap_or_else(PoisonError::into_inner);
        self.locks.with(name, true, || {
            let (further, parent) = match self.way(&above) {
                Ok(way) => way,
                Err(e) if e.kind == Kind::NoSuchEntity => {
                    return Err(Code::NotFound.error(format_args!(
                        "container \"{above}\" does not exist, so it cannot have a subcontainer"
                    )));
                }
                Err(e) => return Err(e),
            };
            if parent.child(last).is_ok() {
                return Err(exists());
            }
            hosts::outside(&[further, vec![parent.clone()]].concat(), "creating")?;
            let plan = Plan::new(spec, None, &self.root)?;
            let mut controllers: Vec<&str> = plan.controllers.clone();
            let wanted = hosts::Making::new(self, name, spec)?;
            if wanted.is_some() {
                // Its sandbox has a directory everywhere: these then have limits, owners and an end with the container.
                controllers.extend(self.root.others_have());
            }
            let made = parent.make_child(last, &controllers);
            let making = made.map_err(|e| if parent.gone() { no_container(&above) } else { e })?;
            // On an error it is removed before the cgroup is.
            let mut host = wanted;
            host.as_mut().map_or(Ok(()), hosts::Making::create)?;
            self.settle(making.node(), &parent, spec, &plan)?;
            host.as_ref().map_or(Ok(()), hosts::Making::start)?;
            making.keep()?;
            if let Some(host) = host {
                host.keep();
            }
            Ok(())
        })
    }

    /// Writes all that a specification says.
    fn settle(&self, node: &Node, parent: &Node, spec: &ContainerSpec, plan: &Plan) -> Result<()> {
        let text = serde_json::to_vec(spec).map_err(|e| Error::failure(format!("a specification: {e}")))?;
        if text.len() > MAX_SPEC {
            return Err(Code::OutOfRange.error(format_args!(
                "the specification has {} bytes as JSON: at most {MAX_SPEC} can be kept",
                text.len()
            )));
        }
        plan.write(node, parent)?;
        if let Some(rules) = &plan.devices {
            self.restrict(node, parent, rules)?;
        }
        if spec.owner.is_some() || spec.owner_group.is_some() {
            let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
            let owner = Privileged { owner: Some((id(spec.owner), id(spec.owner_group))), devices: None };
            for dir in node.own_dirs()? {
                self.place.privileged(dir, node.v2(), &owner)?;
            }
        }
        xattr::set(node.core_dir(), SPEC, &text)
            .map_err(|e| Error::from(e).context("noting the specification at the cgroup"))
    }

    /// Sets device rules: what the parent has, and then these.
    fn restrict(&self, node: &Node, parent: &Node, rules: &[Rule]) -> Result<()> {
        let v2 = node.v2();
        let Some(dir) = node.dir("devices")? else { return Ok(()) };
        let mut all = if v2 {
            // The parent's program runs as well.
            vec![Rule { allow: true, node: None, major: None, minor: None, access: ALL }]
        } else {
            match parent.nearest("devices")? {
                Some(above) => devices::listed(&Dir(above))?,
                None => Vec::new(),
            }
        };
        all.extend(rules);
        self.place.privileged(dir, v2, &Privileged { devices: Some(all), owner: None })
    }

    /// Kills everything in a container and removes it (seed 003, `Destroy`).
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` for the root, `UNAVAILABLE` when a process does not end: the container stays then.
    pub fn destroy(&self, name: &Name) -> Result<()> {
        not_the_root(name, "destroyed")?;
        self.on(name, true, |above, node| {
            let (Some(parent), Some(last)) = (above.last(), name.parts().last()) else { return Ok(()) };
            let deadline = Instant::now() + END;
            let mut kill = !node.threads_below()?.is_empty();
            loop {
                if kill {
                    node.kill(deadline).map_err(unavailable)?;
                }
                self.remove_hosts(node)?;
                let moment = deadline.min(Instant::now() + Duration::from_millis(200));
                match parent.remove_child(last, moment) {
                    Ok(()) => break,
                    // Somebody has moved a process in, or to another hierarchy alone.
                    Err(e) if e.kind == Kind::InvalidState && Instant::now() < deadline => kill = true,
                    Err(e) => return Err(unavailable(e)),
                }
            }
            if let Some(notifications) = self.notifications.get() {
                notifications.destroyed(name);
            }
            Ok(())
        })
    }

    /// The specification of a container (seed 003, `Spec`); of a cgroup that others have made, what its files say.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn spec(&self, name: &Name) -> Result<ContainerSpec> {
        self.on(name, false, |_, node| self.spec_of(node))
    }

    fn spec_of(&self, node: &Node) -> Result<ContainerSpec> {
        if node.path().is_empty() {
            return Ok(ContainerSpec::default());
        }
        match xattr::get(node.core_dir(), SPEC) {
            // Whoever owns the directory can write there.
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|e| Error::failure(format!("the specification at the cgroup is damaged: {e}"))),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => usage::spec_of(node),
            Err(e) => Err(Error::from(e).context("reading the specification at the cgroup")),
        }
    }

    /// Changes a container (seed 003, `Update`). What fails leaves it as it was.
    ///
    /// # Errors
    /// As [`update::updated`] and [`Machine::create`].
    pub fn update(&self, name: &Name, update: &ContainerSpec, policy: UpdatePolicy) -> Result<()> {
        not_the_root(name, "updated")?;
        self.on(name, true, |above, node| {
            let Some(parent) = above.last() else { return Ok(()) };
            let now = self.spec_of(node)?;
            fields::refuse_unimplemented(update)?;
            let new = update::updated(&now, update, policy)?;
            let replaces = policy == UpdatePolicy::UpdateReplace;
            let plan = Plan::new(&new, replaces.then_some(&now), &self.root)?;
            self.settle(node, parent, &new, &plan).inspect_err(|_| {
                let back = Plan::new(&now, Some(&new), &self.root);
                if let Err(e) = back.and_then(|back| self.settle(node, parent, &now, &back)) {
                    log::warn!("container {name}: undoing an update: {e}");
                }
            })
        })
    }

    /// Moves threads into a container (seed 003, `Enter`).
    ///
    /// # Errors
    /// `NOT_FOUND`: the container, or a thread; some may have been moved then.
    pub fn enter(&self, name: &Name, tids: &[i32]) -> Result<()> {
        if tids.len() > MAX_TIDS {
            return Err(Code::InvalidArgument
                .error(format_args!("{} threads: at most {MAX_TIDS} at once", tids.len())));
        }
        if let Some(bad) = tids.iter().find(|tid| **tid <= 0) {
            return Err(Code::InvalidArgument.error(format_args!("{bad} is no thread id")));
        }
        self.on(name, false, |above, node| {
            hosts::no_entry(above, node)?;
            tids.iter().try_for_each(|tid| node.enter(*tid))?;
            self.entered(name);
            Ok(())
        })
    }

    /// Moves a process with all its threads into a container: `Exec` is what its caller does next.
    ///
    /// # Errors
    /// As [`Machine::enter`].
    pub fn enter_process(&self, name: &Name, pid: i32) -> Result<()> {
        self.on(name, false, |above, node| {
            hosts::no_entry(above, node)?;
            node.enter_process(pid)?;
            self.entered(name);
            Ok(())
        })
    }

    fn entered(&self, name: &Name) {
        if let Some(notifications) = self.notifications.get() {
            notifications.entered(name);
        }
    }

    /// Starts a program in a container (seed 003, `Run`).
    ///
    /// # Errors
    /// `NOT_FOUND`; `INVALID_ARGUMENT`: no absolute path, a NUL; `FAILED_PRECONDITION`: it cannot be executed.
    pub fn run(&self, name: &Name, program: Program) -> Result<Running> {
        match program.command.first() {
            Some(path) if path.starts_with('/') => {}
            Some(path) => {
                return Err(Code::InvalidArgument.error(format_args!("command {path:?} is no absolute path")));
            }
            None => return Err(Code::InvalidArgument.error("there is no command")),
        }
        let words = program.command.iter().chain(&program.env).chain([&program.cwd]);
        if let Some(bad) = words.into_iter().find(|w| w.contains('\0')) {
            return Err(Code::InvalidArgument.error(format_args!("{bad:?} has a NUL in it")));
        }
        if let Some(bad) = program.env.iter().find(|e| !e.contains('=') || e.starts_with('=')) {
            return Err(Code::InvalidArgument.error(format_args!("environment: {bad:?} is not NAME=value")));
        }
        self.on(name, false, |above, node| {
            hosts::outside(above, "running a program")?;
            let running = match self.host_of([node]) {
                // Its sandbox could not answer.
                Some(_) if node.frozen()? => {
                    return Err(Code::FailedPrecondition
                        .error(format_args!("virtual host \"{name}\" is paused; resume it first")));
                }
                Some((hosts, cgroup)) => hosts.run(&cgroup, program)?,
                None => self.place.run(node, program)?,
            };
            self.entered(name);
            Ok(running)
        })
    }

    /// Waits for a program that [`Machine::run`] has started; see [`Place::wait`].
    ///
    /// # Errors
    /// As [`Place::wait`].
    pub fn wait(&self, pid: i32, wait: &dyn Fn(BorrowedFd<'_>) -> Result<()>) -> Result<u32> {
        self.place.wait(pid, wait)
    }

    /// Stops (`on`) or resumes all threads in a container and below (seed 003, `Pause` and `Resume`).
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` for the root.
    pub fn pause(&self, name: &Name, on: bool) -> Result<()> {
        not_the_root(name, if on { "paused" } else { "resumed" })?;
        self.on(name, true, |_, node| node.freeze(on))
    }

    /// What a container uses (seed 003, `Stats`).
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn stats(&self, name: &Name, kind: StatsType) -> Result<ContainerStats> {
        self.on(name, false, |above, node| {
            // The root has everything.
            let spec = if name.is_root() { usage::spec_of(node)? } else { self.spec_of(node)? };
            usage::of(node, &spec, above, kind)
        })
    }

    /// Kills everything in a container and below (seed 003, `KillAll`).
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` for the root, `UNAVAILABLE` when a process does not end in 10 seconds.
    pub fn kill_all(&self, name: &Name) -> Result<()> {
        not_the_root(name, "killed")?;
        self.on(name, true, |_, node| node.kill(Instant::now() + END).map_err(unavailable))
    }

    /// The init of the virtual host that a container is or is in; the system's outside of all (seed 003, `GetInitPid`).
    ///
    /// # Errors
    /// `NOT_FOUND`; `FAILED_PRECONDITION` when the virtual host's init has ended.
    pub fn init_pid(&self, name: &Name) -> Result<i32> {
        self.on(name, false, |above, node| match self.host_of(above.iter().chain([node])) {
            Some((hosts, cgroup)) => hosts.init_pid(&cgroup),
            None => Ok(self.place.init_pid()),
        })
    }

    /// Has records written to `out` when something happens to a container (seed 003, `RegisterNotification`).
    ///
    /// # Errors
    /// `NOT_FOUND`; `INVALID_ARGUMENT`: not exactly one event, or a descriptor that cannot be written to;
    /// `FAILED_PRECONDITION` when the container does not isolate memory.
    pub fn register(&self, name: &Name, spec: &EventSpec, out: OwnedFd) -> Result<u64> {
        let event = Event::of(spec)?;
        self.on(name, false, |_, node| self.notifications()?.register(name, node.clone(), event, out))
    }

    fn notifications(&self) -> Result<&Notifications> {
        if let Some(there) = self.notifications.get() {
            return Ok(there);
        }
        let new = Notifications::new()?;
        Ok(self.notifications.get_or_init(|| new))
    }

    /// Ends a notification (seed 003, `UnregisterNotification`).
    ///
    /// # Errors
    /// `NOT_FOUND`: the container has no such notification.
    pub fn unregister(&self, name: &Name, id: u64) -> Result<()> {
        match self.notifications.get() {
            Some(notifications) if notifications.unregister(name, id) => Ok(()),
            _ => Err(Code::NotFound.error(format_args!("container \"{name}\" has no notification {id}"))),
        }
    }
}

/// What may be possible later.
fn unavailable(e: Error) -> Error {
    if e.kind == Kind::InvalidState { Code::Unavailable.error(e.message) } else { e }
}
