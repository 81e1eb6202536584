//! The container API inside of a sandbox: the tree below the root container's cgroup.
#![forbid(unsafe_code)]

use super::{ExecRequest, Loader};
use crate::cgroup::leaf_name;
use crate::cgroup::tree::Node;
use crate::machine::{Machine, Place, Privileged, Program, Running, Unclaimed, VirtualHosts};
use crate::worker::CgroupWork;
use airlock_wire::api::container::status::Code;
use airlock_wire::error::{Error, Kind, Result};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

impl Loader {
    /// The tree of containers below the root container, which is its `/`.
    ///
    /// # Errors
    /// The sandbox has no cgroup.
    pub fn machine(self: &Arc<Self>) -> Result<Arc<Machine>> {
        if let Some(there) = self.machine.get() {
            return Ok(there.clone());
        }
        let root = self.root()?;
        let tree = Node::below(root.cgroup()?)?;
        let own = self.procfs().read(std::process::id().cast_signed(), "cgroup")?;
        let core = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let found = if tree.v2() {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|c| c == "freezer")
            };
            found.then_some(path)
        });
        let core =
            core.ok_or_else(|| Error::failure("the sandbox's own cgroup is not told by /proc/self/cgroup"))?;
        let path = format!("{}/{}", core.trim_end_matches('/'), leaf_name(self.id())?);
        let place = Inside { loader: Arc::downgrade(self), running: Unclaimed::default() };
        let new = Arc::new(Machine::new(tree, &path, Box::new(place)));
        Ok(self.machine.get_or_init(|| new).clone())
    }
}

/// A sandbox.
#[derive(Debug)]
struct Inside {
    loader: Weak<Loader>,
    running: Unclaimed,
}

impl Inside {
    fn loader(&self) -> Result<Arc<Loader>> {
        self.loader.upgrade().ok_or_else(|| Error::new(Kind::Disconnected, "the sandbox is ending"))
    }
}

impl Place for Inside {
    fn cgroups_of(&self, tid: i32) -> Result<String> {
        self.loader()?.procfs().read(tid, "cgroup")
    }

    fn run(&self, node: &Node, program: Program) -> Result<Running> {
        let loader = self.loader()?;
        let root = loader.root()?;
        let own = root.process_spec().ok_or_else(|| Error::failure("the root container has no process"))?;
        let mut process = serde_json::to_value(own).map_err(|e| Error::failure(format!("process: {e}")))?;
        process["terminal"] = false.into();
        process["args"] = program.command.into();
        process["cwd"] = if program.cwd.is_empty() { "/".into() } else { program.cwd.into() };
        if !program.env.is_empty() {
            process["env"] = program.env.into();
        }
        let request = ExecRequest {
            process: process.to_string(),
            stdio: program.stdio.map(Vec::from).unwrap_or_default(),
            tty: None,
            pass: Vec::new(),
            exec: None,
            cgroup: Some(node.cgroup()?),
        };
        let executed = loader.exec(loader.id(), request).map_err(|e| match e.kind {
            Kind::NoSuchEntity | Kind::Permission => Code::FailedPrecondition.error(e.message),
            _ => e,
        })?;
        let pidfd = executed.process.pidfd().try_clone_to_owned()?;
        let pid = executed.process.pid;
        self.running.add(executed.process);
        Ok(Running { pid, pidfd })
    }

    fn wait(&self, pid: i32, wait: &dyn Fn(BorrowedFd<'_>) -> Result<()>) -> Result<u32> {
        self.running.wait(pid, wait)
    }

    fn privileged(&self, dir: BorrowedFd<'_>, v2: bool, what: &Privileged) -> Result<()> {
        if what.owner.is_some() {
            return Err(Code::Unimplemented.error(
                "owner, owner_group: in a sandbox containers belong to its loader, which could not administer another's",
            ));
        }
        self.loader()?.work(CgroupWork { what: what.clone(), v2 }, &[dir]).map(drop)
    }

    fn check_mount(&self, path: &str, _: &str) -> Result<()> {
        Err(Code::FailedPrecondition.error(format_args!(
            "cgroup_mount {path:?}: a sandbox has directories and sees no mounts; leave it out"
        )))
    }

    fn init_pid(&self) -> i32 {
        self.loader().and_then(|l| l.root()).ok().and_then(|root| root.init()).map_or(1, |init| init.pid)
    }

    fn hosts(&self) -> Option<&dyn VirtualHosts> {
        // A sandbox opens nothing of the machine: neither a root for another one, nor the program that it would be.
        None
    }
}
