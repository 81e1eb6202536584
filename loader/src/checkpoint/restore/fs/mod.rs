//! Mounts that programs had made, and the content of filesystems in memory.
//!
//! The containers were made anew by their specs. This happens in their mount namespaces before any file is opened.
#![forbid(unsafe_code)]

mod generation;

pub use generation::announce;

use super::context::{Context, Stub};
use crate::checkpoint::dump::fs::disk_layer;
use crate::checkpoint::image::{Reader, fs_section};
use crate::checkpoint::mountinfo::{self, How};
use crate::checkpoint::order::{RestoreContainer, RestoreOrder};
use crate::checkpoint::remote::{Arg, Batch};
use crate::checkpoint::state::{FilesystemState, Id, MountState};
use crate::checkpoint::{content, inside};
use crate::init::mounts::{DEFAULT_DEVICES, GENERATION};
use crate::sys::mount::{self, MOUNT_ATTR_RDONLY, MountAttr};
use airlock_wire::error::{Error, Kind, Result};
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag};
use nix::sys::statfs;
use oci_spec::runtime::{LinuxDeviceType, Spec};
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Makes mounts and contents what the image says. The inits have been taken over.
///
/// # Errors
/// A mount that cannot be made; a filesystem that is of another kind than the image's; content that does not fit.
pub fn restore(ctx: &mut Context, reader: &Reader, layers: Layers) -> Result<()> {
    for saved in ctx.state.filesystems.iter().filter(|f| f.kind == "overlay-disk") {
        layers.check(saved)?;
    }
    for index in 0..ctx.stubs.len() {
        if ctx.stubs.get(index).is_some_and(Option::is_some) {
            let cid = ctx.state.containers.get(index).map(|c| c.cid.clone()).unwrap_or_default();
            container(ctx, reader, index).map_err(|e| e.context(format!("container {cid:?}")))?;
        }
    }
    Ok(())
}

/// Upper layers on a disk, by index of the container in the image and place of the overlay.
#[derive(Debug, Default)]
pub struct Layers(Vec<(Id, String, OwnedFd)>);

impl Layers {
    /// Takes them from the end of what came with the order.
    ///
    /// # Errors
    /// When fewer came than the order says.
    pub fn take(order: &RestoreOrder, fds: &mut Vec<OwnedFd>) -> Result<Self> {
        let place = |c: &RestoreContainer| {
            let places = c.upper.iter().cloned().zip(c.on_disk.iter().copied());
            let image = c.image;
            places.filter(|(_, on_disk)| *on_disk).map(move |(place, _)| (image, place)).collect::<Vec<_>>()
        };
        let places: Vec<(Id, String)> = order.containers.iter().flat_map(place).collect();
        let first = fds.len().checked_sub(places.len());
        let first = first.ok_or_else(|| Error::invalid_argument("no descriptors came for overlay layers"))?;
        let fds = fds.split_off(first);
        Ok(Self(places.into_iter().zip(fds).map(|((image, place), fd)| (image, place, fd)).collect()))
    }

    fn check(&self, saved: &FilesystemState) -> Result<()> {
        let failed = |why: &str| {
            Err(Error::new(
                Kind::InvalidState,
                format!(
                    "the overlay at {:?} keeps what is written to it on a disk, outside the image, and {why}: restore \
                     with the layer that the container had at the checkpoint",
                    saved.path
                ),
            ))
        };
        let found = self.0.iter().find(|(image, place, _)| *image == saved.container && *place == saved.path);
        let Some((_, _, fd)) = found else { return failed("there is no such overlay now") };
        if disk_layer(fd.as_fd())? != saved.digest {
            return failed("it is not what it was");
        }
        Ok(())
    }
}

fn container(ctx: &mut Context, reader: &Reader, index: usize) -> Result<()> {
    let Some(saved) = ctx.state.containers.get(index) else { return Ok(()) };
    let mounts = saved.mounts.clone();
    let own: Vec<usize> = (0..mounts.len()).filter(|i| mounts[*i].own).collect();
    let contents: Vec<FilesystemState> =
        ctx.state.filesystems.iter().filter(|f| f.container == index as Id).cloned().collect();
    let is_own = |f: &FilesystemState| own.iter().any(|i| mounts[*i].path == f.path) && f.kind == "tmpfs";
    let (later, now): (Vec<_>, Vec<_>) = contents.into_iter().partition(is_own);
    fill(ctx, reader, index, &now, Some(&mounts))?;
    for i in own {
        let mount = &mounts[i];
        make(ctx, index, &mounts, i).map_err(|e| e.context(format!("mounting {:?} again", mount.path)))?;
        let content: Vec<_> =
            later.iter().filter(|f| f.path == mount.path && mount.fstype == "tmpfs").cloned().collect();
        fill(ctx, reader, index, &content, None)?;
    }
    Ok(())
}

/// Has the init mount what a program of it had mounted: so the new mount belongs to the container's namespaces.
fn make(ctx: &mut Context, index: usize, mounts: &[MountState], which: usize) -> Result<()> {
    let mount = &mounts[which];
    let how = mountinfo::how(mounts, which).map_err(Error::unsupported)?;
    let Some(Stub { tracee, region, .. }) = ctx.stubs.get_mut(index).and_then(Option::as_mut) else {
        return Ok(());
    };
    let flags = mountinfo::flags(&mount.options);
    let mut batch = Batch::new();
    let target = batch.text(&mount.path);
    let (source, kind) = (batch.text(&mount.source), batch.text(&mount.fstype));
    let number = |flags: MsFlags| Arg::from(flags.bits());
    match how {
        How::New { data } => {
            let data = batch.text(data);
            batch.must(libc::SYS_mount, [source, target, kind, number(flags), data]);
        }
        How::Bind { from } => {
            let from = batch.text(from);
            batch.must(libc::SYS_mount, [from, target, Arg::NULL, number(MsFlags::MS_BIND), Arg::NULL]);
            let flags = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
            batch.must(libc::SYS_mount, [Arg::NULL, target, Arg::NULL, number(flags), Arg::NULL]);
        }
    }
    batch.run(tracee, region)?.check()
}

/// Puts contents into filesystems that are there, and compares the mounts with those of the image.
fn fill(
    ctx: &mut Context,
    reader: &Reader,
    index: usize,
    contents: &[FilesystemState],
    mounts: Option<&[MountState]>,
) -> Result<()> {
    if contents.is_empty() && mounts.is_none() {
        return Ok(());
    }
    let Some(Some(stub)) = ctx.stubs.get(index) else { return Ok(()) };
    let spec = ctx.order.containers.iter().find(|c| c.image as usize == index).map(|c| c.spec.as_str());
    let devices = devices(spec.unwrap_or_default());
    let upper: Vec<String> = ctx
        .order
        .containers
        .iter()
        .filter(|c| c.image as usize == index)
        .flat_map(|c| c.upper.iter().zip(&c.on_disk).filter(|(_, on_disk)| !**on_disk))
        .map(|(place, _)| place.clone())
        .collect();
    let procfs = &ctx.procfs;
    let warnings = inside::run(stub.pidfd.as_fd(), libc::CLONE_NEWNS, || {
        let mut warnings = Vec::new();
        for filesystem in contents {
            let failed = |e: Error| e.context(format!("content of {}", filesystem.path));
            warnings.extend(one(reader, filesystem, &devices, &upper).map_err(failed)?);
        }
        if let Some(mounts) = mounts {
            compare(&mountinfo::own(procfs)?, mounts, &mut warnings);
        }
        Ok(warnings)
    })?;
    warnings.into_iter().for_each(|w| ctx.warn(w));
    Ok(())
}

pub(crate) type Devices = Vec<(bool, u64, u64)>;

/// Fills one filesystem, on a thread in the container's mount namespace.
pub(crate) fn one(
    reader: &Reader,
    saved: &FilesystemState,
    devices: &Devices,
    upper: &[String],
) -> Result<Vec<String>> {
    let Some(section) = saved.section else { return Ok(Vec::new()) };
    let root = open(saved, upper)?;
    let mut stream = BufReader::with_capacity(256 << 10, reader.stream(&fs_section(section))?);
    let device = |char: bool, major: u64, minor: u64| devices.contains(&(char, major, minor));
    let skip: &[&str] = if saved.path == "/dev" { &[GENERATION] } else { &[] };
    let applied = content::apply(root.as_fd(), &mut stream, &device, skip)?;
    // To close a detached mount is to wait for the kernel; the agent's end will do it.
    std::mem::forget(root);
    Ok(applied.warnings)
}

/// The place for the content: writable, and without what is mounted on it. It must be a filesystem that is the
/// sandbox's own, or the content would be written to somebody else's files.
fn open(saved: &FilesystemState, upper: &[String]) -> Result<OwnedFd> {
    let path = Path::new(&saved.path);
    let wrong = |is: &str| {
        Error::new(
            Kind::InvalidState,
            format!("{is}; restore with the same configuration, and the same overlays, as at the checkpoint"),
        )
    };
    if saved.kind == "overlay-memory" && !upper.contains(&saved.path) {
        return Err(wrong("the image has what was written to an overlay in memory, and there is none now"));
    }
    let is_file = nix::sys::stat::stat(path)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
    if is_file {
        return Ok(nix::fcntl::open(path, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?);
    }
    let root = match mount::open_tree(AT_FDCWD, path, mount::OPEN_TREE_CLONE) {
        Ok(detached) => {
            // The container may have it read-only.
            let attr = MountAttr { clear: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            mount::mount_setattr(detached.as_fd(), &attr, false)?;
            detached
        }
        Err(_) => {
            nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?
        }
    };
    if saved.kind == "tmpfs" {
        let kind = statfs::fstatfs(&root)?.filesystem_type();
        if kind != statfs::TMPFS_MAGIC || !mount::mount_id(root.as_fd())?.1 {
            return Err(wrong("the image has the content of a tmpfs, and there is none now"));
        }
    }
    Ok(root)
}

/// Device nodes that the container has by its spec: (character device, major, minor).
pub(crate) fn devices(spec: &str) -> Devices {
    let mut all: Devices = DEFAULT_DEVICES.iter().map(|(_, major, minor)| (true, *major, *minor)).collect();
    let Ok(spec) = serde_json::from_str::<Spec>(spec) else { return all };
    let listed = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
    for device in listed.into_iter().flatten() {
        let char = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
        all.push((char, device.major() as u64, device.minor() as u64));
    }
    all
}

/// Compares the mounts of the new container with those of the image, and makes read-only what a program had made so.
fn compare(now: &[MountState], saved: &[MountState], warnings: &mut Vec<String>) {
    for mount in saved.iter().filter(|m| !m.own) {
        let Some(here) = now.iter().rfind(|m| m.path == mount.path) else {
            warnings.push(format!("nothing is mounted at {:?}, as there was ({})", mount.path, mount.fstype));
            continue;
        };
        if here.fstype != mount.fstype {
            let (path, is, was) = (&mount.path, &here.fstype, &mount.fstype);
            warnings.push(format!("at {path:?} there is a {is} now, which was a {was}"));
        }
        tighten(mount, here, warnings);
    }
    for mount in now {
        if !saved.iter().any(|m| m.path == mount.path) {
            warnings.push(format!("{:?} had been unmounted, and is mounted again", mount.path));
        }
    }
}

/// Only ever takes rights away: an image may be forged.
fn tighten(saved: &MountState, here: &MountState, warnings: &mut Vec<String>) {
    let (was, is) = (mountinfo::flags(&saved.options), mountinfo::flags(&here.options));
    let limits = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if !((is - was) & limits).is_empty() {
        warnings.push(format!("{:?} had been remounted with fewer limits, which are back", saved.path));
    }
    let missing = (was - is) & limits;
    if missing.is_empty() {
        return;
    }
    let attr = |flag: MsFlags, attr: u64| if missing.contains(flag) { attr } else { 0 };
    let set = attr(MsFlags::MS_RDONLY, MOUNT_ATTR_RDONLY)
        | attr(MsFlags::MS_NOSUID, mount::MOUNT_ATTR_NOSUID)
        | attr(MsFlags::MS_NODEV, mount::MOUNT_ATTR_NODEV)
        | attr(MsFlags::MS_NOEXEC, mount::MOUNT_ATTR_NOEXEC);
    let changed = nix::fcntl::open(Path::new(&saved.path), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|fd| mount::mount_setattr(fd.as_fd(), &MountAttr { set, ..MountAttr::default() }, false));
    if let Err(e) = changed {
        warnings.push(format!("{:?} cannot be limited as it was: {e}", saved.path));
    }
}

#[cfg(test)]
mod tests;
