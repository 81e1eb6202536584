//! Virtual hosts: containers with processes, IPC and mounts of their own (seed 003). Such a container is a cgroup as any
//! other, with a sandbox in it that [`VirtualHosts`] makes. All below it is the sandbox's.
#![forbid(unsafe_code)]

use super::{Machine, Name, SPEC, VirtualHosts};
use crate::cgroup::tree::Node;
use crate::sys::xattr;
use airlock_wire::api::container::spec::{ContainerSpec, FdPolicy};
use airlock_wire::api::container::status::Code;
use airlock_wire::error::Result;
use std::path::Path;

/// Whether a container was made with a `virtual_host`.
pub(super) fn is_host(node: &Node) -> bool {
    // Of a cgroup that is gone, or that others have made, it is not.
    !node.path().is_empty()
        && xattr::get(node.core_dir(), SPEC).is_ok_and(|text| {
            serde_json::from_slice::<ContainerSpec>(&text).is_ok_and(|spec| spec.virtual_host.is_some())
        })
}

/// Refuses to do something in a container that is below a virtual host.
pub(super) fn outside(above: &[Node], what: &str) -> Result<()> {
    match above.iter().find(|node| is_host(node)) {
        None => Ok(()),
        Some(host) => Err(Code::Unimplemented.error(format_args!(
            "{what}: what is below the virtual host /{} is its own; its sandbox serves containers there",
            host.path().join("/")
        ))),
    }
}

/// Refuses to move what runs outside into a virtual host.
pub(super) fn no_entry(above: &[Node], node: &Node) -> Result<()> {
    outside(above, "entering")?;
    if is_host(node) {
        return Err(Code::Unimplemented.error(
            "entering: a process that runs cannot be moved into the namespaces of a virtual host; have Run start it \
             there",
        ));
    }
    Ok(())
}

/// A virtual host that is wanted or being made. Dropped, it is removed; [`Making::keep`] leaves it.
#[derive(Debug)]
#[must_use = "dropped, it removes the virtual host"]
pub(super) struct Making<'a> {
    hosts: &'a dyn VirtualHosts,
    cgroup: String,
    spec: &'a ContainerSpec,
    /// There may be something to remove.
    begun: bool,
}

impl<'a> Making<'a> {
    /// What `spec` wants, checked; `None` when it wants no virtual host.
    pub(super) fn new(machine: &'a Machine, name: &Name, spec: &'a ContainerSpec) -> Result<Option<Self>> {
        let Some(host) = &spec.virtual_host else { return Ok(None) };
        let hosts = machine.place.hosts().ok_or_else(|| {
            Code::Unimplemented.error(
                "virtual_host: a sandbox opens nothing of the machine, so it can make no other; ask the machine's server \
                 (airlock machine serve); leave it out",
            )
        })?;
        let run = host.init.as_ref().and_then(|init| init.run_spec.as_ref());
        if run.is_some_and(|run| !matches!(run.fd_policy, None | Some(FdPolicy::Detached))) {
            return Err(Code::InvalidArgument.error(
                "virtual_host.init.run_spec.fd_policy: no descriptors come with Create; use DETACHED or leave it out",
            ));
        }
        let making = Self { hosts, cgroup: machine.cgroup_of(name), spec, begun: false };
        if let Some(path) = making.init().first().filter(|path| !path.starts_with('/')) {
            return Err(Code::InvalidArgument
                .error(format_args!("virtual_host.init.init_argv: {path:?} is no absolute path")));
        }
        if let Some(bad) = making.init().iter().find(|word| word.contains('\0')) {
            return Err(Code::InvalidArgument
                .error(format_args!("virtual_host.init.init_argv: {bad:?} has a NUL in it")));
        }
        if let Some(path) = making.rootfs().filter(|path| !path.is_absolute()) {
            return Err(Code::InvalidArgument
                .error(format_args!("filesystem.rootfs {:?} is no absolute path", path.to_string_lossy())));
        }
        Ok(Some(making))
    }

    fn init(&self) -> &'a [String] {
        let init = self.spec.virtual_host.as_ref().and_then(|host| host.init.as_ref());
        init.map_or(&[], |init| &init.init_argv)
    }

    fn rootfs(&self) -> Option<&'a Path> {
        self.spec.filesystem.as_ref().and_then(|fs| fs.rootfs.as_deref()).map(Path::new)
    }

    /// Makes it; its init waits for [`Self::start`].
    pub(super) fn create(&mut self) -> Result<()> {
        self.begun = true;
        self.hosts.create(&self.cgroup, self.rootfs(), self.init())
    }

    pub(super) fn start(&self) -> Result<()> {
        self.hosts.start(&self.cgroup)
    }

    pub(super) fn keep(mut self) {
        self.begun = false;
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if self.begun
            && let Err(e) = self.hosts.remove(&self.cgroup)
        {
            log::warn!("virtual host {} stays: {e}", self.cgroup);
        }
    }
}

impl Machine {
    /// Where a container is, as `/proc/<pid>/cgroup` names it.
    fn cgroup_of(&self, name: &Name) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The place's virtual hosts, and the cgroup of the one that the last of `way` is or is in, if it is in any.
    pub(super) fn host_of<'a>(
        &self,
        way: impl IntoIterator<Item = &'a Node>,
    ) -> Option<(&dyn VirtualHosts, String)> {
        let host = way.into_iter().find(|node| is_host(node))?;
        Some((self.place.hosts()?, format!("{}/{}", self.prefix, host.path().join("/"))))
    }

    /// Removes the sandboxes of all virtual hosts from `node` on down; their processes were killed.
    pub(super) fn remove_hosts(&self, node: &Node) -> Result<()> {
        if let Some((hosts, cgroup)) = self.host_of([node]) {
            return hosts.remove(&cgroup);
        }
        node.children()?
            .iter()
            .filter_map(|name| node.child(name).ok())
            .try_for_each(|n| self.remove_hosts(&n))
    }

    /// Removes the sandboxes of virtual hosts that are no containers (any more).
    pub(super) fn sweep_hosts(&self) -> Result<()> {
        let Some(hosts) = self.place.hosts() else { return Ok(()) };
        for cgroup in hosts.all()? {
            let Some(rest) = cgroup.strip_prefix(&self.prefix).filter(|rest| rest.starts_with('/')) else {
                continue;
            };
            let there = self.way(&Name::of_path(rest)).is_ok_and(|(_, node)| is_host(&node));
            if !there {
                hosts.remove(&cgroup)?;
            }
        }
        Ok(())
    }

    /// The container that a place in the tree belongs to: the virtual host that it is in, or itself.
    pub(super) fn owner_of(&self, name: Name) -> Name {
        match self.way(&name) {
            Ok((above, _)) => above
                .iter()
                .find(|node| is_host(node))
                .map_or(name, |host| Name::of_path(&format!("/{}", host.path().join("/")))),
            Err(_) => name,
        }
    }
}
