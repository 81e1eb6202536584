//! Building a container's mount tree, in the container's init.
//!
//! The init is privileged, single-threaded, and sits in a mount namespace of its own that is still a copy of another
//! tree. It gets everything that lies on the host as detached mounts; what it makes itself are the kernel's own file
//! systems. As soon as the rootfs is attached everything else is dropped from the namespace, so that there is nothing
//! left that a hostile path could lead to; and still every path is resolved in-root, once, to a descriptor that is
//! then acted on (see [`super::paths`]).

#![forbid(unsafe_code)]

mod cgroups;
mod console;
mod copyup;
mod devices;
mod filesystems;
mod places;
mod seal;

pub use console::{mount_console, open_console};
pub use devices::{DEFAULT_DEVICES, GENERATION};

use super::paths::{self, ProcHandle};
use super::rootfs;
use crate::oci::mounts::{MountKind, MountOptions, clean_destination, kind_of, needs_gofer, options};
use crate::sys::mount::{self, MOUNT_ATTR_RDONLY, MountAttr};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, umask};
use oci_spec::runtime::{Mount, Spec};
use places::Places;
use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a container sees of its cgroups when its spec mounts them.
#[derive(Debug, Default)]
pub struct CgroupView {
    /// The host has a pure v2 tree.
    pub v2: bool,
    /// v1 hierarchies as they are called below `/sys/fs/cgroup` (`cpu,cpuacct`, `systemd`, …).
    pub names: Vec<String>,
    /// Detached mounts of the container's cgroups: with `v2` one for each cgroup mount of the spec, in spec order;
    /// else in the order of `names`, used when `new_ns` is false.
    pub mounts: Vec<OwnedFd>,
    /// The caller is in a cgroup namespace of its own.
    pub new_ns: bool,
}

/// What [`build`] works from.
pub struct MountInputs<'a> {
    /// The container's spec: `root`, `mounts`, `process.terminal`, `hooks.createContainer` (whether there are any),
    /// and of `linux` the devices, masked and read-only paths, and `rootfsPropagation`.
    pub spec: &'a Spec,
    /// Detached mount of the rootfs.
    pub rootfs: OwnedFd,
    /// Detached mounts for the spec's mounts that [`needs_gofer`] names, in spec order.
    pub gofer: Vec<OwnedFd>,
    /// Detached mounts of device nodes by their path in the container; used instead of mknod(2).
    pub devices: Vec<(String, OwnedFd)>,
    /// The container's cgroups.
    pub cgroup: CgroupView,
    /// The caller is in a user namespace that is not the host's.
    pub in_userns: bool,
    /// The sandbox's generation ID, for [`GENERATION`]; empty: there is no such file.
    pub generation: &'a str,
    /// Called when all mounts of the spec are in place and before the root is changed (`createContainer` hooks).
    pub pre_pivot: Box<dyn FnOnce() -> Result<()> + 'a>,
}

/// What [`build`] leaves for its caller.
#[derive(Debug)]
pub struct Built {
    /// The root directory of the container's devpts instance (an `O_PATH` descriptor), if it has one.
    pub devpts: Option<OwnedFd>,
    /// The container's own `/proc`, made here and so fit for writes that security rests on. None if the spec mounts
    /// none, or one that is restricted (read-only or with options); [`ProcHandle::open`] makes a private one then.
    /// Files below mounts that came later (`readonlyPaths`) cannot be reached through it.
    pub procfs: Option<ProcHandle>,
}

/// A mount of the spec, read once.
struct Entry<'a> {
    mount: &'a Mount,
    options: MountOptions,
    kind: MountKind,
    destination: PathBuf,
}

impl<'a> Entry<'a> {
    fn new(mount: &'a Mount) -> Self {
        let options = options(mount);
        let kind = kind_of(mount, &options);
        Self { mount, options, kind, destination: clean_destination(mount.destination()) }
    }

    fn error(&self, e: impl Into<Error>) -> Error {
        let what = match (&self.kind, self.mount.typ().as_deref()) {
            (MountKind::Bind, _) => "bind",
            (MountKind::Remount, _) => "remount",
            (_, typ) => typ.unwrap_or("no type"),
        };
        let e: Error = e.into();
        e.context(format!("mount {:?} ({what})", self.mount.destination().display().to_string()))
    }
}

/// The tree while it is being built.
struct Builder<'a> {
    spec: &'a Spec,
    in_userns: bool,
    generation: &'a str,
    gofer: std::vec::IntoIter<OwnedFd>,
    donated_devices: Vec<(String, OwnedFd)>,
    cgroup: CgroupView,
    /// What is mounted where already.
    places: Places,
    /// Mounts that become read-only when everything below them is there.
    late_read_only: Vec<OwnedFd>,
    devpts: Option<OwnedFd>,
    procfs: Option<ProcHandle>,
}

/// Builds the container's tree and makes it the root of the mount namespace and of the caller. Everything of the old
/// tree is gone from the namespace afterwards. Blocks only in `pre_pivot`.
///
/// Order: isolation, rootfs, (root change), mounts in spec order, devices, `pre_pivot`, (root change),
/// read-only remounts, read-only paths, masked paths, `rootfsPropagation`. The root changes early, so that nothing of
/// the old tree can be reached; with `createContainer` hooks it changes late, because those run programs of the host:
/// the rootfs is then attached at `root.path` (if absolute), where such hooks look for it.
///
/// # Errors
/// What was to be made, where, and why it failed. The namespace is of no use then.
pub fn build(inputs: MountInputs<'_>) -> Result<Built> {
    let _umask = NoUmask::new();
    let entries: Vec<_> = inputs.spec.mounts().iter().flatten().map(Entry::new).collect();
    let wanted = inputs.spec.mounts().iter().flatten().filter(|m| needs_gofer(m)).count();
    if wanted != inputs.gofer.len() {
        return Err(Error::invalid_argument(format!(
            "the spec has {wanted} mounts from the host, but {} descriptors came for them",
            inputs.gofer.len()
        )));
    }
    let mut builder = Builder {
        places: Places::new(inputs.rootfs),
        spec: inputs.spec,
        in_userns: inputs.in_userns,
        generation: inputs.generation,
        gofer: inputs.gofer.into_iter(),
        donated_devices: inputs.devices,
        cgroup: inputs.cgroup,
        late_read_only: Vec::new(),
        devpts: None,
        procfs: None,
    };
    // In a user namespace the kernel gives a new procfs or sysfs only to those who can see one already: the old
    // tree has to be there still.
    let mut early: Vec<_> = entries.iter().map(|e| filesystems::make_early(e)).collect::<Result<_>>()?;

    rootfs::isolate()?;
    let hooks = inputs.spec.hooks().as_ref().and_then(|h| h.create_container().as_ref());
    let late = hooks.is_some_and(|h| !h.is_empty());
    let place = inputs.spec.root().as_ref().map(|r| r.path().as_path()).filter(|p| late && p.is_absolute());
    rootfs::attach(builder.places.root(), place.unwrap_or(Path::new("/")))?;
    if !late {
        rootfs::pivot(builder.places.root())?;
    }
    for (entry, early) in entries.iter().zip(&mut early) {
        builder.mount(entry, early.take()).map_err(|e| entry.error(e))?;
    }
    devices::set_up(&mut builder)?;
    (inputs.pre_pivot)()?;
    if late {
        rootfs::pivot(builder.places.root())?;
    }
    builder.finish()
}

impl Builder<'_> {
    fn mount(&mut self, entry: &Entry<'_>, early: Option<OwnedFd>) -> Result<()> {
        if entry.destination == Path::new("/") {
            return Err(Error::invalid_argument(
                "the destination is the root itself: put the source into root.path instead",
            ));
        }
        check_proc_destination(entry)?;
        match &entry.kind {
            MountKind::Bind | MountKind::Overlay => self.attach_donated(entry),
            MountKind::Other(_) if needs_gofer(entry.mount) => self.attach_donated(entry),
            MountKind::Remount => self.remount(entry),
            MountKind::Cgroup | MountKind::Cgroup2 => cgroups::mount(self, entry),
            _ => filesystems::mount(self, entry, early),
        }
    }

    /// Attaches what the parent opened; its attributes and its propagation are set already.
    fn attach_donated(&mut self, entry: &Entry<'_>) -> Result<()> {
        let fd = self.gofer.next().ok_or_else(|| Error::invalid_argument("no descriptor came for it"))?;
        self.attach_at_destination(fd, entry)
    }

    /// Attaches `mount` at the entry's destination, which is made if missing: a directory for a directory, else an
    /// empty file.
    fn attach_at_destination(&mut self, mount: OwnedFd, entry: &Entry<'_>) -> Result<()> {
        let path = entry.destination.as_path();
        let is_directory = paths::file_type(mount.as_fd())? == SFlag::S_IFDIR;
        let kernel_tree = matches!(entry.kind, MountKind::Proc | MountKind::Sysfs);
        let strict = kernel_tree || below_proc(path);
        let (target, plain) = self.places.make(path, is_directory, strict).map_err(|e| match e {
            Errno::ELOOP | Errno::ENOTDIR if kernel_tree => Error::invalid_argument(
                "must be mounted on an ordinary directory, but there is a symbolic link or a file in its place",
            ),
            e => Error::from(e).context("destination"),
        })?;
        if !plain && paths::is_procfs(target.as_fd())? {
            return Err(Error::invalid_argument("the destination leads into procfs through a symbolic link"));
        }
        if path == Path::new("/proc") && entry.kind != MountKind::Proc && !paths::is_procfs(mount.as_fd())? {
            return Err(Error::invalid_argument("only a procfs can be mounted on /proc"));
        }
        attach_by_type(mount.as_fd(), target.as_fd())?;
        // Whoever moves directories about meanwhile shall not get a container without what it was promised.
        let now =
            self.places.open_topmost(path, OFlag::O_PATH).map_err(during("looking at the new mount"))?;
        if mount::mount_id(now.as_fd())?.0 != mount::mount_id(mount.as_fd())?.0 {
            return Err(Error::failure("the destination was replaced while it was being mounted on"));
        }
        self.places.add(path, mount, plain);
        Ok(())
    }

    /// `remount`: changes attributes of what is mounted there, and the superblock's parameters unless it is a bind.
    fn remount(&self, entry: &Entry<'_>) -> Result<()> {
        let target = self.places.open(&entry.destination, OFlag::O_PATH).map_err(during("destination"))?;
        if !mount::mount_id(target.as_fd())?.1 {
            return Err(Error::invalid_argument("there is nothing mounted there to remount"));
        }
        let options = &entry.options;
        let of_superblock = !options.data.is_empty() || !options.superblock.is_empty();
        if of_superblock && !options.bind && !options.rbind {
            let context = mount::fspick(target.as_fd())?;
            filesystems::configure(context.as_fd(), options, &[])?;
            mount::fsconfig_reconfigure(context.as_fd())?;
        }
        self.change_attributes(target.as_fd(), options)
    }

    /// Applies attributes and propagation to a mount that is attached already.
    fn change_attributes(&self, mount: BorrowedFd<'_>, options: &MountOptions) -> Result<()> {
        for (change, recursive) in [(options.attrs, false), (options.recursive, true)] {
            if change.is_empty() {
                continue;
            }
            let attr = MountAttr { set: change.set, clear: change.clear, ..Default::default() };
            mount::mount_setattr(mount, &attr, recursive).map_err(|e| {
                let hint = if e == Errno::EPERM && self.in_userns {
                    " (the owner of the mount has locked this attribute against user namespaces)"
                } else {
                    ""
                };
                Error::from(e).context(format!("changing mount attributes{hint}"))
            })?;
        }
        set_propagation(mount, options)
    }

    /// Makes `process.cwd` if the image lacks it, as runc does. Whatever else is wrong with it is told when it is entered.
    fn make_working_directory(&self) -> Result<()> {
        let Some(process) = self.spec.process() else { return Ok(()) };
        let cwd = clean_destination(process.cwd());
        if !matches!(self.places.open(&cwd, OFlag::O_PATH), Err(Errno::ENOENT)) {
            return Ok(());
        }
        let context = format!("process.cwd {:?} does not exist, making it", cwd.display().to_string());
        self.places.make(&cwd, true, false).map(drop).map_err(during(context))
    }

    /// What comes when the root is the container's: read-only mounts, the sealing of paths, propagation.
    fn finish(mut self) -> Result<Built> {
        self.make_working_directory()?;
        let root = self.places.root();
        let linux = self.spec.linux().as_ref();
        for mount in std::mem::take(&mut self.late_read_only) {
            let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..Default::default() };
            mount::mount_setattr(mount.as_fd(), &attr, false).map_err(during("making a mount read-only"))?;
        }
        if self.spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false) {
            rootfs::set_read_only(root)?;
        }
        if let Some(linux) = linux {
            seal::read_only_paths(&self.places, linux.readonly_paths().as_deref().unwrap_or_default())?;
            seal::masked_paths(&self.places, linux.masked_paths().as_deref().unwrap_or_default())?;
        }
        // After the sealing, which could copy nothing from unbindable mounts.
        if let Some(word) = linux.and_then(|l| l.rootfs_propagation().as_deref()).filter(|w| !w.is_empty()) {
            rootfs::set_propagation(root, word)?;
        }
        if self.devpts.is_none() {
            // A bind of the host's /dev, or of another container's.
            self.devpts = console::find_devpts(&self.places);
        }
        Ok(Built { devpts: self.devpts, procfs: self.procfs })
    }
}

fn set_propagation(mount: BorrowedFd<'_>, options: &MountOptions) -> Result<()> {
    for (propagation, recursive) in &options.propagation {
        let attr = MountAttr { propagation: Some(*propagation), ..Default::default() };
        mount::mount_setattr(mount, &attr, *recursive).map_err(during("setting propagation"))?;
    }
    Ok(())
}

fn during<E: Into<Error>>(what: impl Display) -> impl FnOnce(E) -> Error {
    move |e| {
        let e: Error = e.into();
        e.context(what)
    }
}

fn below_proc(path: &Path) -> bool {
    path.starts_with("/proc") && path != Path::new("/proc")
}

fn attach_by_type(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let Err(e) = mount::attach(mount, target) else { return Ok(()) };
    let is_directory = |fd| paths::file_type(fd).map(|t| t == SFlag::S_IFDIR);
    Err(match (is_directory(mount)?, is_directory(target)?) {
        (true, false) => {
            Error::invalid_argument("not a directory: the source is one, but the destination is not")
        }
        (false, true) => {
            Error::invalid_argument("is a directory: the destination is one, but the source is not")
        }
        _ => Error::from(e).context("attaching"),
    })
}

/// Files of procfs that lxcfs and the like may replace, as in runc: what they say is for information only.
const REPLACEABLE_IN_PROC: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Refuses mounts that would put something else in the place of a part of procfs that security rests on.
fn check_proc_destination(entry: &Entry<'_>) -> Result<()> {
    if !below_proc(&entry.destination)
        || matches!(entry.kind, MountKind::Remount)
        || REPLACEABLE_IN_PROC.iter().any(|p| entry.destination == Path::new(p))
    {
        return Ok(());
    }
    Err(Error::invalid_argument(
        "the destination is inside /proc; only information files like /proc/cpuinfo may be replaced",
    ))
}

/// Takes the umask away while nodes are made, so that they get exactly the modes that the spec names.
struct NoUmask(Mode);

impl NoUmask {
    fn new() -> Self {
        Self(umask(Mode::empty()))
    }
}

impl Drop for NoUmask {
    fn drop(&mut self) {
        umask(self.0);
    }
}

#[cfg(test)]
mod tests;
