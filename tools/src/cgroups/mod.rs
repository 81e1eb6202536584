//! The cgroups of a container on the parent side: found, made, limited, watched and removed by path.
//!
//! A [`Manager`] is a description that is kept in the state file. It is planned first (nothing is made, but it is
//! known what will be), saved, and then made, so that a `create` that is killed in between leaves nothing that the
//! next command cannot find. What a sandbox may do with its cgroups it does through descriptors, see
//! [`airlock_loader::cgroup`].
//!
//! ```text
//! v1, in every hierarchy:  <path>                      limits; loader and spawner (join `tasks`)
//!     freezer also:        <path>/airlock-<cid>        the container's processes
//! v2:                      <path>                      limits, device program, statistics; loader and spawner
//!                                                      (join `cgroup.procs`), or the proxy
//!                          <path>/airlock-<cid>        the container's processes; no controllers
//! ```
//!
//! So in both `/proc/<OCI pid>/cgroup` names `<path>`, where callers look for what a container uses. v2 lets a cgroup
//! have processes and children only as long as it hands no controller on to the children: `<path>/cgroup.subtree_control`
//! stays empty, and what the leaf uses is charged to `<path>`. Controllers are handed on down to the parent of `<path>`.
#![forbid(unsafe_code)]

mod donate;
pub mod hierarchy;
mod live;
mod make;
mod oom;
mod open;
pub mod path;
mod remove;

pub use make::Created;
pub use oom::OomWatch;
pub use open::{OpenedCgroup, OpenedDir};

use airlock_loader::cgroup::leaf_name;
use airlock_loader::cgroup::resources::{self, apply_dir};
use airlock_loader::oci::mounts::{self, MountKind};
use airlock_loader::sys::mount::MOUNT_ATTR_RDONLY;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

/// How cgroups are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// User and group ids that the sandbox's root has on the host, when it is in a user namespace: they get the
    /// files through which processes join and freeze.
    pub owner: Option<(u32, u32)>,
}

/// The cgroups of one container. The default has none: everything succeeds and finds nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manager {
    /// The container's id: names the leaf.
    cid: String,
    /// Pure v2: one hierarchy.
    v2: bool,
    /// The container's directories. In v1 the one with the leaf comes first.
    hierarchies: Vec<Hierarchy>,
    /// Directories that this container made or is about to make, the outermost of each hierarchy first; leaves not
    /// counted. Only these are removed.
    made: Vec<PathBuf>,
    /// Everything is made. Until then only what is marked by a leaf is taken for this container's.
    complete: bool,
    /// When this was planned, a leaf of this container's name was in use: by what a killed `create` of ours left and
    /// is about to end, or by a container of the same name that is not ours. Nothing is touched before that is known.
    #[serde(default)]
    disputed: bool,
}

/// A container's directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// As it is called below `/sys/fs/cgroup` (`cpu,cpuacct`, `systemd`); empty in a pure v2 tree.
    pub name: String,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The container's cgroup, an absolute path on the host.
    pub path: PathBuf,
    /// The container's processes are in a leaf below.
    pub leaf: bool,
    /// Has the files of v2 (`cgroup.freeze`) rather than those of v1 (`tasks`).
    pub v2_files: bool,
}

impl Manager {
    /// Plans the cgroups of container `id` as its spec and the command line want them. Nothing is made.
    ///
    /// # Errors
    /// See [`Self::plan_path`].
    pub fn plan(spec: &Spec, id: &str, systemd: bool) -> Result<Self> {
        let path = spec.linux().as_ref().and_then(|l| l.cgroups_path().as_deref());
        Self::plan_path(id, path, systemd)
    }

    /// Plans the cgroups of container `cid` at `cgroups_path` (see [`path::locate`]). Nothing is made.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::InvalidArgument`] for a bad path; [`airlock_wire::error::Kind::InvalidState`] when the cgroup exists and has processes or
    /// is frozen; [`airlock_wire::error::Kind::Unsupported`] when no hierarchy is mounted, or `systemd` is asked for and does not run.
    pub fn plan_path(cid: &str, cgroups_path: Option<&Path>, systemd: bool) -> Result<Self> {
        if systemd && !Path::new("/run/systemd/system").exists() {
            return Err(Error::unsupported(
                "--systemd-cgroup: systemd does not run here (/run/systemd/system is missing); leave the option out \
                 and give linux.cgroupsPath as a path",
            ));
        }
        let place = path::locate(cid, cgroups_path, systemd, nix::unistd::geteuid().is_root())?;
        let (v2, found) = hierarchy::find(&place)?;
        let hierarchies = found
            .into_iter()
            .enumerate()
            .map(|(index, (mount, path))| Hierarchy {
                name: if v2 { String::new() } else { mount.name },
                mount: mount.point,
                path,
                leaf: index == 0,
                v2_files: mount.v2,
            })
            .collect();
        let mut manager = Self { cid: cid.to_owned(), v2, hierarchies, ..Self::default() };
        manager.disputed = make::disputed(&manager)?;
        if !manager.disputed {
            manager.made = make::missing(&manager)?;
        }
        Ok(manager)
    }

    /// Plans and makes the directories. Limits are not set yet: see [`Self::apply_new`].
    ///
    /// # Errors
    /// As [`Self::plan_path`]; mkdir(2). On error nothing is left.
    pub fn create(
        cid: &str,
        cgroups_path: Option<&Path>,
        systemd: bool,
        options: CreateOptions,
    ) -> Result<(Self, Created)> {
        let mut manager = Self::plan_path(cid, cgroups_path, systemd)?;
        let created = manager.make_dirs(options)?;
        Ok((manager, created))
    }

    /// The container's directories.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// True for a pure v2 tree.
    pub fn v2(&self) -> bool {
        self.v2
    }

    /// Checks a description that came from a file: later steps trust its paths.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::InvalidArgument`] for paths that are not plain and absolute, or not below their mount.
    pub fn check(&self) -> Result<()> {
        let bad = |path: &Path| {
            Err(Error::invalid_argument(format!(
                "the container's state names {path:?}, which is no cgroup path"
            )))
        };
        if self.hierarchies.is_empty() {
            return Ok(());
        }
        leaf_name(&self.cid)?;
        for h in &self.hierarchies {
            if !is_plain(&h.mount) || !is_plain(&h.path) || h.path == h.mount || !h.path.starts_with(&h.mount)
            {
                return bad(&h.path);
            }
        }
        for made in &self.made {
            let fits =
                |h: &Hierarchy| h.path.starts_with(made) && made != &h.mount && made.starts_with(&h.mount);
            if !is_plain(made) || !self.hierarchies.iter().any(fits) {
                return bad(made);
            }
        }
        Ok(())
    }

    /// The name of the container's leaf.
    fn leaf(&self) -> Result<String> {
        leaf_name(&self.cid)
    }

    /// Sets the limits of a new container, and its device rules also when the spec has none: everything but the
    /// default devices is denied then.
    ///
    /// # Errors
    /// The first limit that is refused, naming file and value.
    pub fn apply_new(&self, given: Option<&LinuxResources>) -> Result<()> {
        let mut all = given.cloned().unwrap_or_default();
        let has_devices =
            self.v2 || self.hierarchies.iter().any(|h| h.name.split(',').any(|c| c == "devices"));
        if all.devices().is_none() && has_devices {
            all.set_devices(Some(Vec::new()));
        }
        self.apply(&all)
    }

    /// Sets limits; what is not given stays as it is. `devices`, given as a list, replaces all device rules.
    ///
    /// # Errors
    /// The first limit that is refused, naming file and value; earlier ones stay set.
    pub fn apply(&self, given: &LinuxResources) -> Result<()> {
        self.check()?;
        if self.hierarchies.is_empty() {
            return Ok(());
        }
        if self.v2 {
            for h in &self.hierarchies {
                let dir = open::open_dir(&h.path)?;
                let at = |e: Error| e.context(h.path.display());
                apply_dir(true, "", dir.as_fd(), given).map_err(at)?;
            }
            return Ok(());
        }
        resources::check_v1(self.hierarchies.iter().map(|h| h.name.as_str()), given)?;
        let needed = resources::needed_v1(given);
        for h in &self.hierarchies {
            if h.name.split(',').any(|c| needed.contains(&c)) {
                let dir = open::open_dir(&h.path)?;
                apply_dir(false, &h.name, dir.as_fd(), given).map_err(|e| e.context(h.path.display()))?;
            }
        }
        Ok(())
    }

    /// As [`Self::apply`], for `update` of a container that runs.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn update(&self, given: &LinuxResources) -> Result<()> {
        self.apply(given)
    }
}

fn is_plain(path: &Path) -> bool {
    let mut components = path.components();
    components.next() == Some(Component::RootDir) && components.all(|c| matches!(c, Component::Normal(_)))
}

/// What a container is to see of its cgroups, by a mount that the parent donates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// v1: its directory in every hierarchy; where it has a leaf, that. v2: its cgroup, so that programs find their
    /// limits. Not to be written to.
    Limits,
    /// v2, for a container that may write to its cgroups: its leaf. It would lift its limits otherwise, or leave the
    /// leaf and with it all that acts on the leaf.
    Leaf,
}

/// The detached mounts that a container of `spec` needs. v1: at most one, for all hierarchies, and none where the init
/// mounts them itself, in a cgroup namespace of the container's own. v2: one for each cgroup mount of the spec, in spec
/// order: that namespace's root is the leaf, which has no limits to be seen.
pub fn views(spec: &Spec, v2: bool) -> Vec<View> {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let own = namespaces
        .is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::Cgroup && n.path().is_none()));
    let mut views = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let options = mounts::options(mount);
        if !matches!(mounts::kind_of(mount, &options), MountKind::Cgroup | MountKind::Cgroup2) {
            continue;
        }
        let read_only = options.new_mount_attrs() & MOUNT_ATTR_RDONLY != 0;
        views.push(if read_only || !v2 { View::Limits } else { View::Leaf });
    }
    if !v2 {
        views.truncate(usize::from(!own));
    }
    views
}

/// Who the container's root is on the host, if the spec makes a user namespace.
pub fn owner_of(spec: &Spec) -> Option<(u32, u32)> {
    let linux = spec.linux().as_ref()?;
    let host = |maps: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| {
        maps.as_ref()?.iter().find(|m| m.container_id() == 0 && m.size() > 0).map(|m| m.host_id())
    };
    let namespaces = linux.namespaces().as_ref()?;
    let user = namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::User);
    Some((host(linux.uid_mappings())?, host(linux.gid_mappings())?)).filter(|_| user)
}

#[cfg(test)]
mod description_tests;
#[cfg(test)]
mod tests;
