//! The kernel's own file systems: made by the container's init in the container's namespaces.

#![forbid(unsafe_code)]

use super::{Builder, Entry, copyup, set_propagation};
use crate::init::paths::ProcHandle;
use crate::oci::mounts::{MountKind, MountOptions};
use crate::sys::mount::{self, FsError, MOUNT_ATTR_RDONLY};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

type FsResult<T> = std::result::Result<T, FsError>;

/// Makes procfs and sysfs mounts, detached, while the old tree is still visible.
pub(super) fn make_early(entry: &Entry<'_>) -> Result<Option<OwnedFd>> {
    if !matches!(entry.kind, MountKind::Proc | MountKind::Sysfs) {
        return Ok(None);
    }
    let name = if entry.kind == MountKind::Proc { "proc" } else { "sysfs" };
    make(name, entry, entry.options.new_mount_attrs(), &[]).map(Some).map_err(|e| {
        let hint = match (e.errno, &entry.kind) {
            (Errno::EPERM, MountKind::Sysfs) => {
                "; in a user namespace a sysfs needs a network namespace of its own: \
                 bind mount the host's /sys instead (\"type\": \"bind\", \"options\": [\"rbind\", \"ro\"])"
            }
            (Errno::EPERM, _) => {
                "; in a user namespace a procfs needs a pid namespace of its own, \
                 and a place where it is made that has nothing mounted over parts of /proc"
            }
            _ => "",
        };
        let error = Error::from(e);
        entry.error(Error { message: format!("{}{hint}", error.message), ..error })
    })
}

/// Makes and attaches the file system of `entry` (or `early`, if it was made before).
pub(super) fn mount(builder: &mut Builder<'_>, entry: &Entry<'_>, early: Option<OwnedFd>) -> Result<()> {
    let mut attrs = entry.options.new_mount_attrs();
    // Later mounts and device nodes need directories made in these.
    let late = (entry.kind == MountKind::Tmpfs || entry.destination == Path::new("/dev"))
        && attrs & MOUNT_ATTR_RDONLY != 0;
    if late {
        attrs &= !MOUNT_ATTR_RDONLY;
    }
    let fd = match (early, &entry.kind) {
        (Some(fd), _) => fd,
        (None, MountKind::Tmpfs) => tmpfs(builder, entry, attrs)?,
        (None, MountKind::Devpts) => devpts(builder, entry, attrs)?,
        (None, MountKind::Mqueue) => make("mqueue", entry, attrs, &[])?,
        (None, MountKind::Other(name)) if !name.is_empty() => make(name, entry, attrs, &[])?,
        _ => {
            return Err(Error::invalid_argument(
                "the entry has neither a type nor the option bind: say what is to be mounted",
            ));
        }
    };
    let kept = fd.try_clone()?;
    builder.attach_at_destination(fd, entry)?;
    set_propagation(kept.as_fd(), &entry.options)?;
    match entry.kind {
        MountKind::Devpts if builder.devpts.is_none() || entry.destination == Path::new("/dev/pts") => {
            builder.devpts = Some(kept);
        }
        MountKind::Proc if entry.destination == Path::new("/proc") && is_plain(&entry.options) => {
            builder.procfs = Some(ProcHandle::from_mount(kept)?);
        }
        _ if late => builder.late_read_only.push(kept),
        _ => {}
    }
    Ok(())
}

/// A procfs that shows and lets write all of itself.
fn is_plain(options: &MountOptions) -> bool {
    !options.read_only() && options.data.is_empty()
}

/// Makes a detached mount of file system `name`; `extra` parameters come before the entry's own, which win.
pub(super) fn make(name: &str, entry: &Entry<'_>, attrs: u64, extra: &[(&str, &str)]) -> FsResult<OwnedFd> {
    let context = mount::fsopen(name)?;
    // What mountinfo and df(1) show.
    if let Some(source) = entry.mount.source().as_ref().and_then(|s| s.to_str()).filter(|s| s.len() < 256) {
        mount::fsconfig_string(context.as_fd(), "source", source)?;
    }
    configure(context.as_fd(), &entry.options, extra)?;
    mount::fsconfig_create(context.as_fd())?;
    mount::fsmount(context.as_fd(), attrs)
}

/// Hands superblock flags and file system options to a context.
pub(super) fn configure(
    context: BorrowedFd<'_>,
    options: &MountOptions,
    extra: &[(&str, &str)],
) -> FsResult<()> {
    for flag in &options.superblock {
        mount::fsconfig_flag(context, flag)?;
    }
    for (key, value) in extra {
        mount::fsconfig_string(context, key, value)?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) => mount::fsconfig_string(context, key, value)?,
            None => mount::fsconfig_flag(context, key)?,
        }
    }
    Ok(())
}

/// A tmpfs takes the mode of the directory that it covers unless the spec names one, as in runc.
fn tmpfs(builder: &Builder<'_>, entry: &Entry<'_>, attrs: u64) -> Result<OwnedFd> {
    let below = builder.places.open(&entry.destination, OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    let mode = match &below {
        Ok(dir) if entry.options.data_value("mode").is_none() => {
            Some(format!("{:o}", fstat(dir)?.st_mode & 0o7777))
        }
        _ => None,
    };
    let extra: Vec<_> = mode.iter().map(|mode| ("mode", mode.as_str())).collect();
    let fd = make("tmpfs", entry, attrs, &extra)?;
    if entry.options.tmpcopyup
        && let Ok(below) = below
    {
        copyup::copy_directory(below.as_fd(), fd.as_fd())
            .map_err(|e| Error::from(e).context("tmpcopyup: copying what the image has there"))?;
    }
    Ok(fd)
}

/// In a user namespace the usual `gid=5` may be an id that is not mapped, which the kernel refuses. The terminals
/// then belong to the group of whoever opens them, which is what rootless runtimes do too.
fn devpts(builder: &Builder<'_>, entry: &Entry<'_>, attrs: u64) -> Result<OwnedFd> {
    match make("devpts", entry, attrs, &[]) {
        Err(e)
            if e.errno == Errno::EINVAL && builder.in_userns && entry.options.data_value("gid").is_some() =>
        {
            let mut options = entry.options.clone();
            options.data.retain(|(key, _)| key != "gid");
            let entry = Entry {
                mount: entry.mount,
                kind: MountKind::Devpts,
                destination: entry.destination.clone(),
                options,
            };
            Ok(make("devpts", &entry, attrs, &[])?)
        }
        Err(e) if e.errno == Errno::ENODEV => Err(Error::new(Kind::Unsupported, e.to_string())),
        result => Ok(result?),
    }
}
