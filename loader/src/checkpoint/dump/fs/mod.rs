//! Mounts, and the content of filesystems that live and die with the sandbox.
//!
//! What the spec mounts is mounted again by the restored container's init. Two things are not: mounts that programs made
//! themselves, which are recorded and made again after it, and the content of filesystems in memory — tmpfs, and upper
//! layers of overlays —, which travels in the image. Layers on a disk stay where they are; a digest shows at restore
//! whether they are the same.
#![forbid(unsafe_code)]

use super::context::Context;
use crate::checkpoint::content::{self, Options};
use crate::checkpoint::image::{Writer, fs_section};
use crate::checkpoint::state::{FilesystemState, Id, MountState};
use crate::checkpoint::{inside, mountinfo};
use crate::init::mounts::GENERATION;
use crate::init::paths;
use crate::oci::mounts::{MountKind, kind};
use crate::procfs::ProcFs;
use crate::sys::{mount, process};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{FileStat, Mode, fstat};
use oci_spec::runtime::Spec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What airlock names the filesystems that it makes for a sandbox on the parent's side.
const OURS: &str = "airlock";

/// Filesystems whose content has to be written.
#[derive(Debug, Default)]
pub struct Filesystems {
    contents: Vec<Content>,
    /// Layers that stay where they are.
    outside: Vec<FilesystemState>,
}

/// A tree to be written.
#[derive(Debug)]
pub(crate) struct Content {
    container: Id,
    /// Where it is mounted in the container.
    pub(crate) path: String,
    pub(crate) kind: &'static str,
    /// The tree.
    pub(crate) root: OwnedFd,
    /// Of an upper layer: the overlay.
    pub(crate) merged: Option<OwnedFd>,
}

/// What is found in one container.
struct Found {
    mounts: Vec<MountState>,
    contents: Vec<Content>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Filesystems {
    /// Describes the mounts of all containers in `state.containers` and finds out what has to travel. What cannot be
    /// mounted again is refused.
    ///
    /// # Errors
    /// When a container's mounts cannot be looked at.
    pub fn collect(ctx: &mut Context) -> Result<Self> {
        let mut all = Self::default();
        let mut devices: Vec<u64> = Vec::new();
        for index in 0..ctx.order.containers.len() {
            let Some(container) = ctx.order.containers.get(index).cloned() else { continue };
            let descriptors = ctx.uppers.get(index).into_iter().flatten().map(AsFd::as_fd);
            let on_disk = container.on_disk.iter().copied().chain(std::iter::repeat(false));
            let (disk, memory): (Vec<_>, Vec<_>) = container
                .upper
                .iter()
                .cloned()
                .zip(descriptors)
                .zip(on_disk)
                .partition(|(_, on_disk)| *on_disk);
            let uppers: Vec<(String, BorrowedFd<'_>)> = memory.into_iter().map(|(upper, _)| upper).collect();
            for ((path, fd), _) in disk {
                let digest = disk_layer(fd).map_err(|e| e.context(format!("the overlay at {path}")))?;
                all.outside.push(FilesystemState {
                    container: index as Id,
                    path,
                    kind: "overlay-disk".to_owned(),
                    digest,
                    ..FilesystemState::default()
                });
            }
            let spec: Spec = serde_json::from_str(&container.spec)
                .map_err(|e| Error::failure(format!("spec of container {:?}: {e}", container.cid)))?;
            let target = process::pidfd_open(container.init)?;
            let procfs = &ctx.procfs;
            let newest = container.newest_mount;
            let found = inside::run(target.as_fd(), libc::CLONE_NEWNS, || {
                look(procfs, &spec, index as Id, newest, &uppers)
            })
            .map_err(|e| e.context(format!("container {:?}", container.cid)))?;
            for problem in found.problems {
                let init = ctx.procs.iter().position(|p| p.pid == container.init).unwrap_or(0);
                ctx.refuse(init, None, "mount", problem);
            }
            for warning in found.warnings {
                ctx.warn(warning);
            }
            for content in found.contents {
                // Containers of a pod may share one.
                let device = fstat(&content.root)?.st_dev;
                if content.kind == "tmpfs" && content.merged.is_none() && is_root(&content.root) {
                    if devices.contains(&device) {
                        continue;
                    }
                    devices.push(device);
                }
                all.contents.push(content);
            }
            if let Some(state) = ctx.state.containers.get_mut(index) {
                state.mounts = found.mounts;
            }
        }
        Ok(all)
    }

    /// Writes the contents, each into a section of its own, and takes note of them in `state.filesystems`. The containers
    /// stand still meanwhile.
    ///
    /// # Errors
    /// What cannot be read; I/O.
    pub fn write(&self, ctx: &mut Context, writer: &mut Writer) -> Result<()> {
        ctx.state.filesystems.extend(self.outside.iter().cloned());
        for (n, content) in self.contents.iter().enumerate() {
            let n = n as u32;
            let mut section = writer.section(&fs_section(n))?;
            let skip: &[&str] = if content.path == "/dev" { &[GENERATION] } else { &[] };
            let options = Options { merged: content.merged.as_ref().map(AsFd::as_fd), skip };
            let saved = content::save(content.root.as_fd(), options, &mut section)
                .map_err(|e| e.context(format!("content of the filesystem at {}", content.path)))?;
            section.finish()?;
            ctx.state.filesystems.push(FilesystemState {
                container: content.container,
                path: content.path.clone(),
                kind: content.kind.to_owned(),
                section: Some(n),
                digest: String::new(),
                files: saved.files,
                bytes: saved.bytes,
            });
        }
        Ok(())
    }
}

/// What tells whether an upper layer on a disk is still the same; `base` is the directory that holds it.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn disk_layer(base: BorrowedFd<'_>) -> Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let upper = nix::fcntl::openat(base, "upper", flags, Mode::empty())
        .map_err(|e| Error::from(e).context("opening the layer"))?;
    content::digest(upper.as_fd())
}

impl Drop for Filesystems {
    fn drop(&mut self) {
        // To close a detached mount is to wait for the kernel; the agent's end will do it.
        for content in self.contents.drain(..) {
            std::mem::forget((content.root, content.merged));
        }
    }
}

fn is_root(fd: &OwnedFd) -> bool {
    mount::mount_id(fd.as_fd()).is_ok_and(|(_, root)| root)
}

/// Looks at a container's mounts, on a thread that is among them.
fn look(
    procfs: &ProcFs,
    spec: &Spec,
    container: Id,
    newest: u64,
    uppers: &[(String, BorrowedFd<'_>)],
) -> Result<Found> {
    let mut mounts = mountinfo::own(procfs)?;
    let map = |name: &str| procfs.read_path(&format!("self/{name}")).unwrap_or_default();
    mountinfo::ids_of_namespace(&mut mounts, (&map("uid_map"), &map("gid_map")));
    mark_own(&mut mounts, spec, newest);
    let mut found =
        Found { mounts: Vec::new(), contents: Vec::new(), problems: Vec::new(), warnings: Vec::new() };
    for (i, mount) in mounts.iter().enumerate().filter(|(_, m)| m.own) {
        if let Err(why) = mountinfo::how(&mounts, i) {
            found.problems.push(format!("{:?}: {why}; unmount it before the checkpoint", mount.path));
        }
    }
    for mount in &mounts {
        let travels = mount.fstype == "tmpfs"
            && mount.root == "/"
            && (mount.own || mount.source == OURS || is_of_spec(mount, spec));
        if !travels {
            continue;
        }
        match tmpfs(container, mount) {
            Ok(content) => found.contents.push(content),
            Err(e) => found.warnings.push(format!(
                "what is in the tmpfs at {:?} is lost: something else is mounted over it ({e})",
                mount.path
            )),
        }
    }
    for (path, upper) in uppers {
        found.contents.retain(|c| c.path != *path);
        found.contents.push(layer(container, path, *upper)?);
    }
    found.mounts = mounts;
    Ok(found)
}

/// A tmpfs, without what is mounted on it.
///
/// # Errors
/// `EBUSY`: something else is mounted over it.
pub(crate) fn tmpfs(container: Id, mount: &MountState) -> nix::Result<Content> {
    let root = open_mount(mount)?;
    Ok(Content { container, path: mount.path.clone(), kind: "tmpfs", root, merged: None })
}

/// The upper layer at `path`, or the copy of a single file that stands for one.
pub(crate) fn layer(container: Id, path: &str, upper: BorrowedFd<'_>) -> Result<Content> {
    let failed = |e: Errno| Error::from(e).context(format!("looking at the overlay at {path}"));
    let is_file = paths::file_type(upper).map_err(failed)? == nix::sys::stat::SFlag::S_IFREG;
    let merged = if is_file { None } else { Some(uncovered(path).map_err(failed)?) };
    let root = upper.try_clone_to_owned()?;
    Ok(Content { container, path: path.to_owned(), kind: "overlay-memory", root, merged })
}

/// The root of a mount, without what is mounted on it.
fn open_mount(mount: &MountState) -> nix::Result<OwnedFd> {
    let fd = uncovered(&mount.path)?;
    let status: FileStat = fstat(&fd)?;
    let (major, minor) = mount.device;
    if status.st_dev != nix::sys::stat::makedev(major.into(), minor.into()) {
        return Err(Errno::EBUSY);
    }
    Ok(fd)
}

/// What is mounted at `path`, detached and alone, so that what is mounted below does not hide anything. In a user
/// namespace parts of it may have to stay hidden: it is then as the container sees it.
fn uncovered(path: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    mount::open_tree(AT_FDCWD, Path::new(path), mount::OPEN_TREE_CLONE)
        .or_else(|_| nix::fcntl::open(Path::new(path), flags, Mode::empty()))
}

/// Marks what programs mounted: what is newer than the newest mount of the container's init or, where the kernel does
/// not tell, what is at none of the places where the init mounts something.
fn mark_own(mounts: &mut [MountState], spec: &Spec, newest: u64) {
    let newer = if newest == 0 { Err(Errno::ENOSYS) } else { mount::mounts_after(newest) };
    if let Ok(newer) = newer {
        let ids: Vec<u64> = newer.into_iter().filter_map(|id| mount::mountinfo_id(id).ok()).collect();
        for mount in mounts.iter_mut() {
            mount.own = ids.contains(&mount.id);
        }
        return;
    }
    let places = places(spec);
    for mount in mounts.iter_mut() {
        let given = places
            .iter()
            .any(|(path, below)| mount.path == *path || (*below && Path::new(&mount.path).starts_with(path)));
        mount.own = !given;
    }
}

/// Where a container's init mounts something, and whether everything below is the parent's, too.
fn places(spec: &Spec) -> Vec<(String, bool)> {
    let mut all = vec![("/".to_owned(), false), ("/dev/console".to_owned(), false)];
    for entry in spec.mounts().iter().flatten() {
        let below = matches!(
            kind(entry),
            MountKind::Bind | MountKind::Cgroup | MountKind::Cgroup2 | MountKind::Other(_)
        );
        all.push((entry.destination().display().to_string(), below));
    }
    let linux = spec.linux().as_ref();
    let masked = linux.and_then(|l| l.masked_paths().as_ref()).into_iter().flatten();
    let read_only = linux.and_then(|l| l.readonly_paths().as_ref()).into_iter().flatten();
    all.extend(masked.chain(read_only).map(|path| (path.clone(), false)));
    let devices = linux.and_then(|l| l.devices().as_ref()).into_iter().flatten();
    all.extend(devices.map(|d| (d.path().display().to_string(), false)));
    let defaults = crate::init::mounts::DEFAULT_DEVICES;
    all.extend(defaults.iter().map(|(name, ..)| (format!("/dev/{name}"), false)));
    all
}

/// The spec mounts a tmpfs there. The destination may lead there through links.
pub(crate) fn is_of_spec(mount: &MountState, spec: &Spec) -> bool {
    let entries = spec.mounts().iter().flatten().filter(|m| kind(m) == MountKind::Tmpfs);
    entries.into_iter().any(|entry| {
        let path = entry.destination();
        path == Path::new(&mount.path)
            || std::fs::canonicalize(path).is_ok_and(|real| real == Path::new(&mount.path))
    })
}

#[cfg(test)]
mod tests;
