//! The container's view of its cgroups below `/sys/fs/cgroup`.

#![forbid(unsafe_code)]

use super::{Builder, Entry, during, filesystems, set_propagation};
use crate::init::paths;
use crate::oci::mounts::{AttrChange, MountKind};
use crate::sys::mount::{self, MOUNT_ATTR_RDONLY, MountAttr};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, mkdirat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// v1 controllers. A hierarchy whose name consists of these is mounted by controllers, any other by its name.
const CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

pub(super) fn mount(builder: &mut Builder<'_>, entry: &Entry<'_>) -> Result<()> {
    if builder.cgroup.v2 || entry.kind == MountKind::Cgroup2 {
        v2(builder, entry)
    } else {
        v1(builder, entry)
    }
}

fn v2(builder: &mut Builder<'_>, entry: &Entry<'_>) -> Result<()> {
    let attrs = attributes(builder, entry);
    let donated = &mut builder.cgroup.mounts;
    let donated = if builder.cgroup.v2 && !donated.is_empty() { Some(donated.remove(0)) } else { None };
    let fd = match donated {
        // It has the limits, which a mount of our own namespace's root would not show: that is the leaf below.
        Some(fd) => {
            if builder.cgroup.new_ns && attrs.set & MOUNT_ATTR_RDONLY != 0 {
                // To us the root of that mount is `/..`. Programs that look for a mount whose root is at or above their
                // cgroup, which is `/`, find this one in the table, and in its place the files of the one on top.
                let below = fresh("cgroup2", entry, attrs.set, &[])?;
                builder.attach_at_destination(below, entry)?;
            }
            restrict(fd.as_fd(), attrs)?;
            fd
        }
        None if builder.cgroup.new_ns => fresh("cgroup2", entry, attrs.set, &[])?,
        None => {
            return Err(Error::invalid_argument(
                "without a cgroup namespace the container's cgroup has to be donated, and none came",
            ));
        }
    };
    set_propagation(fd.as_fd(), &entry.options)?;
    builder.attach_at_destination(fd, entry)
}

/// A tmpfs with one directory for each hierarchy, and links for controllers that share one.
fn v1(builder: &mut Builder<'_>, entry: &Entry<'_>) -> Result<()> {
    let attrs = attributes(builder, entry);
    let base = {
        let context = mount::fsopen("tmpfs")?;
        mount::fsconfig_string(context.as_fd(), "source", "tmpfs")?;
        mount::fsconfig_string(context.as_fd(), "mode", "755")?;
        mount::fsconfig_create(context.as_fd())?;
        mount::fsmount(context.as_fd(), attrs.set & !MOUNT_ATTR_RDONLY)?
    };
    builder.attach_at_destination(base.try_clone()?, entry)?;
    let mut donated = std::mem::take(&mut builder.cgroup.mounts).into_iter();
    for name in &builder.cgroup.names {
        if !Path::new(name).components().eq([std::path::Component::Normal(OsStr::new(name))]) {
            return Err(Error::invalid_argument(format!("cgroup hierarchy {name:?}: not a plain name")));
        }
        let fd = if builder.cgroup.new_ns {
            hierarchy(name, entry, attrs.set).map_err(during(format!("hierarchy {name}")))?
        } else {
            let Some(fd) = donated.next() else {
                return Err(Error::invalid_argument(format!(
                    "without a cgroup namespace the container's cgroups have to be donated, and {name} is missing"
                )));
            };
            restrict(fd.as_fd(), attrs)?;
            fd
        };
        mkdirat(&base, name.as_str(), Mode::from_bits_truncate(0o755))?;
        let rules = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let target = paths::open_in_root_no_symlinks(base.as_fd(), Path::new(name), rules)?;
        mount::attach(fd.as_fd(), target.as_fd()).map_err(during(format!("hierarchy {name}")))?;
        set_propagation(fd.as_fd(), &entry.options)?;
        for alias in name.split(',').filter(|alias| alias != name) {
            match nix::unistd::symlinkat(name.as_str(), &base, alias) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(Error::from(e).context(format!("link {alias} to {name}"))),
            }
        }
    }
    set_propagation(base.as_fd(), &entry.options)?;
    if attrs.set & MOUNT_ATTR_RDONLY != 0 {
        builder.late_read_only.push(base);
    }
    Ok(())
}

fn hierarchy(name: &str, entry: &Entry<'_>, attrs: u64) -> Result<OwnedFd> {
    if name == "unified" {
        return fresh("cgroup2", entry, attrs, &[]);
    }
    if name.split(',').all(|part| CONTROLLERS.contains(&part)) {
        let flags: Vec<_> = name.split(',').map(|part| (part, None)).collect();
        return fresh("cgroup", entry, attrs, &flags);
    }
    fresh("cgroup", entry, attrs, &[("name", Some(name))])
}

/// A new mount of a hierarchy, whose root is that of the caller's cgroup namespace.
fn fresh(kind: &str, entry: &Entry<'_>, attrs: u64, parameters: &[(&str, Option<&str>)]) -> Result<OwnedFd> {
    let context = mount::fsopen(kind)?;
    mount::fsconfig_string(context.as_fd(), "source", "cgroup")?;
    for (key, value) in parameters {
        match value {
            Some(value) => mount::fsconfig_string(context.as_fd(), key, value)?,
            None => mount::fsconfig_flag(context.as_fd(), key)?,
        }
    }
    if kind == "cgroup2" {
        filesystems::configure(context.as_fd(), &entry.options, &[])?;
    }
    mount::fsconfig_create(context.as_fd())?;
    Ok(mount::fsmount(context.as_fd(), attrs)?)
}

/// The entry's attributes. Where no cgroup namespace hides the host's hierarchy from a user namespace, writing is
/// not allowed whatever the spec says: that would be the host's cgroups.
fn attributes(builder: &Builder<'_>, entry: &Entry<'_>) -> AttrChange {
    let mut attrs = AttrChange { set: entry.options.new_mount_attrs(), clear: entry.options.attrs.clear };
    if builder.in_userns && !builder.cgroup.new_ns {
        attrs.set |= MOUNT_ATTR_RDONLY;
        attrs.clear &= !MOUNT_ATTR_RDONLY;
    }
    attrs
}

fn restrict(fd: BorrowedFd<'_>, attrs: AttrChange) -> Result<()> {
    if attrs.is_empty() {
        return Ok(());
    }
    let attr = MountAttr { set: attrs.set, clear: attrs.clear, ..Default::default() };
    mount::mount_setattr(fd, &attr, false).map_err(during("changing mount attributes"))
}
