//! Opens everything of the host that a container will see: as detached mounts, which are donated by descriptor.
//!
//! This side has the host's authority and resolves the host's paths, all of which come from the caller (the bundle and
//! its configuration), none from an image. The sandbox resolves the image's paths, without any authority over the
//! host. What the two exchange is descriptors, in an order that both derive from the spec
//! ([`airlock_loader::oci::mounts::needs_gofer`]).

#![forbid(unsafe_code)]

mod bind;
mod devices;
mod hints;
mod host_root;
mod idmap;
mod image;
mod later;
mod overlay;
mod private;

pub use hints::{MountHint, PodMountHints, Share};
pub use host_root::{HostRoot, open_host_root};
pub use later::open_later;
pub use overlay::{Medium, Overlay, OverlayConfig};

use crate::podspec::Bundle;
use crate::sandbox::FdList;
use airlock_loader::oci::mounts::{MountKind, MountOptions, kind_of, needs_gofer, options};
use airlock_loader::sys::mount;
use airlock_wire::api::boot::Fd;
use airlock_wire::api::types::GoferMountConf;
use airlock_wire::error::{Error, Kind, Result};
use bind::BasePropagation;
use idmap::UserNamespaces;
use nix::errno::Errno;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use overlay::layers::{self, Layer, Layers, Upper};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// [`GoferMountConf::lower`]: a directory tree.
const LOWER_TREE: u8 = 1;
/// [`GoferMountConf::lower`]: an erofs image.
const LOWER_EROFS: u8 = 2;

/// What [`open_all`] may be asked for besides the spec.
#[derive(Debug, Default)]
pub struct GoferOptions<'a> {
    /// Which mounts get a writable layer of their own, so that their sources stay as they are.
    pub overlay: OverlayConfig,
    /// The container's user namespace, for mounts with `idmap` and no maps of their own. Without it, one with the
    /// maps of the spec is made.
    pub userns: Option<BorrowedFd<'a>>,
    /// Hints from the annotations of the pod's root container.
    pub hints: PodMountHints,
    /// Mounts that other containers of the pod share, by hint name (from [`Opened::shared`] of the first of them).
    pub shared: HashMap<String, OwnedFd>,
    /// Make all that the pod shares, whether this container mounts it or not: it is the pod's first.
    pub make_shared: bool,
}

/// What was opened for one container. The caller owns it all; dropped without having been donated, it is gone.
#[derive(Debug)]
pub struct Opened {
    /// Detached mount of the root filesystem.
    pub rootfs: OwnedFd,
    /// Detached mounts of the spec's mounts that need the gofer, in spec order.
    pub mounts: Vec<OwnedFd>,
    /// Detached mounts of device nodes by path; only for containers in a user namespace.
    pub devices: Vec<(String, OwnedFd)>,
    /// Directories behind upper layers on the host, and upper layers in memory, in the order of the overlaid entries.
    pub filestores: Vec<OwnedFd>,
    /// How each was made: the rootfs, then the mounts.
    pub confs: Vec<GoferMountConf>,
    /// The root filesystem's path on the host, as far as it is known: absolute if the bundle's path is.
    pub rootfs_path: PathBuf,
    /// Mounts that were made for hints of type tmpfs, for the pod's other containers. Somebody has to keep them.
    pub shared: Vec<(String, OwnedFd)>,
    /// Directories on the host that hold upper layers: to be removed (with [`remove_filestores`]) when the container
    /// is gone.
    pub cleanup: Vec<PathBuf>,
}

impl Opened {
    /// Puts it into a message's descriptor list.
    pub fn donate(self, fds: &mut FdList) -> Donated {
        let mut gofer = vec![fds.push(self.rootfs)];
        gofer.extend(self.mounts.into_iter().map(|fd| fds.push(fd)));
        Donated {
            gofer,
            devices: self.devices.into_iter().map(|(path, fd)| (path, fds.push(fd))).collect(),
            filestores: self.filestores.into_iter().map(|fd| fds.push(fd)).collect(),
            confs: self.confs,
            shared: self.shared.into_iter().map(|(name, fd)| (name, fds.push(fd))).collect(),
            cleanup: self.cleanup,
        }
    }
}

/// What [`open`] put into a message.
#[derive(Debug)]
pub struct Donated {
    /// The rootfs, then the mounts that need the gofer.
    pub gofer: Vec<Fd>,
    /// Device nodes by path.
    pub devices: Vec<(String, Fd)>,
    /// Directories behind upper layers, and upper layers in memory.
    pub filestores: Vec<Fd>,
    /// How each was made.
    pub confs: Vec<GoferMountConf>,
    /// As [`Opened::shared`].
    pub shared: Vec<(String, Fd)>,
    /// As [`Opened::cleanup`].
    pub cleanup: Vec<PathBuf>,
}

/// What the containers of a pod share, for those that come after the first.
#[derive(Debug, Default)]
pub struct PodMounts {
    /// Hints of the pod's root container.
    pub hints: PodMountHints,
    /// What the sandbox keeps for them, by hint name.
    pub kept: HashMap<String, OwnedFd>,
}

/// [`open_all`] for a bundle, into a message's descriptor list. `overlay` is in gVisor's form (`root:memory`). Without
/// a `pod`, the container is the first of one.
///
/// # Errors
/// As [`open_all`]; [`Kind::InvalidArgument`] for an overlay text that cannot be read.
pub fn open(
    bundle: &Bundle,
    overlay: &Option<String>,
    pod: Option<PodMounts>,
    fds: &mut FdList,
) -> Result<Donated> {
    let overlay = overlay.as_deref().unwrap_or("none").parse()?;
    let options = match pod {
        None => GoferOptions {
            overlay,
            hints: PodMountHints::from_spec(&bundle.spec)?,
            make_shared: true,
            ..Default::default()
        },
        Some(pod) => GoferOptions {
            overlay,
            hints: pod.hints.with_kept(&pod.kept),
            shared: pod.kept,
            ..Default::default()
        },
    };
    let opened = open_all(&bundle.path, &bundle.spec, &options)?;
    Ok(opened.donate(fds))
}

/// Opens what `spec` wants of the host. Relative paths start at `bundle`. Nothing is attached anywhere, and on error
/// nothing is left behind.
///
/// # Errors
/// [`Kind::NoSuchEntity`] with the path for a source that is not there; [`Kind::Unsupported`] for what the kernel or
/// a file system cannot do; else the entry, the step and the kernel's reason.
pub fn open_all(bundle: &Path, spec: &Spec, options: &GoferOptions<'_>) -> Result<Opened> {
    let mut gofer = Gofer {
        bundle,
        spec,
        options,
        base: BasePropagation::of(spec)?,
        namespaces: UserNamespaces::default(),
        filestores: Vec::new(),
        cleanup: Cleanup::default(),
        confs: Vec::new(),
        shared: Vec::new(),
    };
    let (rootfs, rootfs_path) = gofer.rootfs()?;
    let mut mounts = Vec::new();
    for entry in spec.mounts().iter().flatten().filter(|m| needs_gofer(m)) {
        mounts.push(
            gofer
                .mount(entry)
                .map_err(|e| e.context(format!("mount {:?}", entry.destination().display().to_string())))?,
        );
    }
    if options.make_shared {
        gofer.make_shared()?;
    }
    let in_userns = spec
        .linux()
        .as_ref()
        .and_then(|l| l.namespaces().as_ref())
        .is_some_and(|all| all.iter().any(|n| n.typ() == LinuxNamespaceType::User));
    let devices = if in_userns { devices::open(spec)? } else { Vec::new() };
    Ok(Opened {
        rootfs,
        mounts,
        devices,
        filestores: gofer.filestores,
        confs: gofer.confs,
        rootfs_path,
        shared: gofer.shared,
        cleanup: gofer.cleanup.keep(),
    })
}

/// Removes directories of [`Opened::cleanup`], when the mounts that used them are gone. What is not there is no
/// error.
///
/// # Errors
/// The first directory that could not be removed; the others are tried all the same.
pub fn remove_filestores(directories: &[PathBuf]) -> Result<()> {
    let mut result = Ok(());
    for directory in directories {
        match std::fs::remove_dir_all(directory) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) if result.is_ok() => {
                result = Err(Error::from(e).context(format!("remove overlay layer {}", directory.display())));
            }
            Err(_) => {}
        }
    }
    result
}

/// Directories that are removed again unless everything works out.
#[derive(Debug, Default)]
struct Cleanup(Vec<PathBuf>);

impl Cleanup {
    fn keep(mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = remove_filestores(&self.0);
    }
}

struct Gofer<'a> {
    bundle: &'a Path,
    spec: &'a Spec,
    options: &'a GoferOptions<'a>,
    base: BasePropagation,
    namespaces: UserNamespaces,
    filestores: Vec<OwnedFd>,
    cleanup: Cleanup,
    confs: Vec<GoferMountConf>,
    shared: Vec<(String, OwnedFd)>,
}

impl Gofer<'_> {
    fn rootfs(&mut self) -> Result<(OwnedFd, PathBuf)> {
        let root = self.spec.root().as_ref().ok_or_else(|| Error::invalid_argument("root: is missing"))?;
        let path = self.bundle.join(root.path());
        let context = || format!("root.path {}", path.display());
        let status = std::fs::metadata(&path).map_err(|e| missing(e).context(context()))?;
        let overlay = self.options.overlay.root.clone();
        if status.is_file() {
            let image = image::root_image(&path).map_err(|e| e.context(context()))?;
            let layer = Layer::Mount(image);
            let fd = match &overlay {
                Some(overlay) => self.overlaid(layer, overlay, &path).map_err(|e| e.context(context()))?,
                None => match layer {
                    Layer::Mount(fd) => fd,
                    Layer::Path(_) => return Err(Error::failure("an image is always a mount")),
                },
            };
            self.note(LOWER_EROFS, overlay.as_ref());
            return Ok((fd, path));
        }
        if !status.is_dir() {
            return Err(Error::invalid_argument("not a directory").context(context()));
        }
        let fd = match &overlay {
            Some(overlay) => self.overlaid(Layer::Path(path.clone()), overlay, &path),
            None => bind::clone(&path, true).and_then(|fd| {
                self.base.apply_to_rootfs(fd.as_fd())?;
                Ok(fd)
            }),
        };
        self.note(LOWER_TREE, overlay.as_ref());
        Ok((fd.map_err(|e| e.context(context()))?, path))
    }

    fn mount(&mut self, entry: &Mount) -> Result<OwnedFd> {
        let options = options(entry);
        let fd = match kind_of(entry, &options) {
            MountKind::Bind => self.bind(entry, &options)?,
            MountKind::Overlay => {
                let fd = overlay::from_spec(&options)?;
                bind::apply(fd.as_fd(), &options, &self.base)?;
                self.note(LOWER_TREE, None);
                fd
            }
            MountKind::Other(name) => {
                let fd = image::mount(&name, &self.source(entry)?, &options)?;
                bind::apply(fd.as_fd(), &options, &self.base)?;
                self.note(if name == "erofs" { LOWER_EROFS } else { LOWER_TREE }, None);
                fd
            }
            _ => return Err(Error::failure("is no mount from the host")),
        };
        idmap::apply(fd.as_fd(), entry, &options, self.spec, self.options.userns, &mut self.namespaces)?;
        Ok(fd)
    }

    fn source(&self, entry: &Mount) -> Result<PathBuf> {
        match entry.source() {
            Some(source) if !source.as_os_str().is_empty() => Ok(self.bundle.join(source)),
            _ => Err(Error::invalid_argument("source: is missing")),
        }
    }

    fn bind(&mut self, entry: &Mount, options: &MountOptions) -> Result<OwnedFd> {
        let source = self.source(entry)?;
        let hints = &self.options.hints;
        let hint = hints.find(entry);
        if let Some(hint) = hint.filter(|h| h.is_shared_tmpfs())
            && let Some(fd) = self.shared_tmpfs(hint, entry, options)?
        {
            self.note(LOWER_TREE, None);
            return Ok(fd);
        }
        let overlay = self.options.overlay.mounts.clone().filter(|_| {
            // Nothing is written to a read-only mount, and what others see too has to stay where it is.
            !options.read_only() && hint.is_none_or(MountHint::should_overlay)
        });
        let context = || format!("bind source {}", source.display());
        let Some(overlay) = overlay else {
            let recursive = airlock_loader::oci::mounts::is_recursive_bind(entry, options);
            let fd = bind::clone(&source, recursive).map_err(|e| e.context(context()))?;
            bind::apply(fd.as_fd(), options, &self.base)?;
            self.note(LOWER_TREE, None);
            return Ok(fd);
        };
        let status = std::fs::metadata(&source).map_err(|e| missing(e).context(context()))?;
        let fd = if status.is_dir() {
            self.note(LOWER_TREE, Some(&overlay));
            self.overlaid(Layer::Path(source.clone()), &overlay, &source)
        } else if status.is_file() {
            // A file has no layers: the container gets a copy in memory.
            let memory = Overlay { medium: Medium::Memory, size: overlay.size };
            self.note(LOWER_TREE, Some(&memory));
            layers::copy_of_file(&source).map(|(mount, copy)| {
                self.filestores.push(copy);
                mount
            })
        } else {
            self.note(LOWER_TREE, None);
            bind::clone(&source, false)
        };
        let fd = fd.map_err(|e| e.context(context()))?;
        bind::apply(fd.as_fd(), options, &self.base)?;
        Ok(fd)
    }

    /// Makes what the pod shares and this container does not mount.
    fn make_shared(&mut self) -> Result<()> {
        for hint in self.options.hints.iter().filter(|h| h.is_kept_by_pod()) {
            if self.shared.iter().any(|(name, _)| *name == hint.name) {
                continue;
            }
            let fd = hint.make_tmpfs()?;
            match mount::clone_tree(fd.as_fd(), false) {
                Ok(_) => self.shared.push((hint.name.clone(), fd)),
                Err(Errno::EINVAL) => {}
                Err(e) => {
                    return Err(Error::from(e).context(format!("copying shared mount {:?}", hint.name)));
                }
            }
        }
        Ok(())
    }

    /// A tmpfs that the pod's containers share; `None` where the kernel cannot copy a mount that is attached nowhere
    /// (before Linux 6.15): the host's directory does the sharing then.
    fn shared_tmpfs(
        &mut self,
        hint: &MountHint,
        entry: &Mount,
        options: &MountOptions,
    ) -> Result<Option<OwnedFd>> {
        hint.check_compatible(entry)?;
        let made;
        let known = self.options.shared.get(&hint.name);
        let known =
            known.or_else(|| self.shared.iter().find(|(name, _)| *name == hint.name).map(|(_, fd)| fd));
        let (master, new) = match known {
            Some(fd) => (fd, false),
            None => {
                made = hint.make_tmpfs()?;
                (&made, true)
            }
        };
        let copy = match mount::clone_tree(master.as_fd(), false) {
            Ok(copy) => copy,
            Err(Errno::EINVAL) if new => return Ok(None),
            Err(e) => return Err(Error::from(e).context(format!("copying shared mount {:?}", hint.name))),
        };
        bind::apply(copy.as_fd(), options, &self.base)?;
        if new {
            self.shared.push((hint.name.clone(), master.try_clone()?));
        }
        Ok(Some(copy))
    }

    fn overlaid(&mut self, lower: Layer, overlay: &Overlay, source: &Path) -> Result<OwnedFd> {
        let upper = match overlay::filestore(&overlay.medium, source)? {
            None => Upper::Memory { size: overlay.size },
            Some(directory) => {
                self.cleanup.0.push(directory.clone());
                Upper::Directory(directory)
            }
        };
        let (fd, filestore) =
            layers::mount(&Layers { lowers: vec![lower], data_only: Vec::new(), upper }, &[])?;
        self.filestores.extend(filestore);
        Ok(fd)
    }

    fn note(&mut self, lower: u8, overlay: Option<&Overlay>) {
        self.confs.push(GoferMountConf {
            lower,
            upper: overlay.map_or(0, |o| o.medium.number()),
            size: overlay.and_then(|o| o.size).unwrap_or(0),
        });
    }
}

/// Turns "not found" into the words that callers look for.
fn missing(e: std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::NotFound {
        return Error::new(Kind::NoSuchEntity, "no such file or directory");
    }
    e.into()
}

#[cfg(test)]
mod tests;
