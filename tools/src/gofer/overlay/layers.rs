//! Putting layers together: by descriptor where the kernel takes that, and in the ways of older kernels.

#![forbid(unsafe_code)]

use crate::gofer::missing;
use crate::gofer::private::in_private_namespace;
use airlock_loader::sys::mount::{self, FsError, MOUNT_ATTR_NODEV};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmodat, fstat, mkdirat};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A lower layer.
#[derive(Debug)]
pub(in crate::gofer) enum Layer {
    /// A directory of the host.
    Path(PathBuf),
    /// The root of a detached mount.
    Mount(OwnedFd),
}

/// The upper layer.
#[derive(Debug)]
pub(in crate::gofer) enum Upper {
    /// The overlay is read-only.
    None,
    /// A new tmpfs.
    Memory {
        /// Limit in bytes.
        size: Option<u64>,
    },
    /// This directory, which has or gets directories `upper` and `work`.
    Directory(PathBuf),
    /// These two directories.
    Pair {
        /// The layer.
        upper: PathBuf,
        /// overlayfs' own, on the same file system.
        work: PathBuf,
    },
}

/// The layers of an overlay mount, the uppermost lower layer first.
#[derive(Debug)]
pub(in crate::gofer) struct Layers {
    pub(in crate::gofer) lowers: Vec<Layer>,
    /// Layers that only hold data of the others' files (`::` in `lowerdir`).
    pub(in crate::gofer) data_only: Vec<Layer>,
    pub(in crate::gofer) upper: Upper,
}

/// Makes a detached overlay mount; `options` are more parameters of overlayfs. Also returns the directory behind the
/// upper layer if it is on the host, and the upper layer itself, to be read, if it is in memory.
pub(in crate::gofer) fn mount(
    layers: &Layers,
    options: &[(String, Option<String>)],
) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let opened = OpenLayers::new(layers, false)?;
    match opened.assemble(options) {
        Ok(fd) => Ok((fd, opened.filestore)),
        // Before Linux 6.15 a layer has to lie on a mount that is attached; and some option texts are too long for
        // fsconfig(2).
        Err(first) if matches!(first.errno, Errno::EINVAL | Errno::EPERM | Errno::ENAMETOOLONG) => {
            drop(opened);
            mount_privately(layers, options).map_err(|_| explain(first))
        }
        Err(e) => Err(explain(e)),
    }
}

/// [`mount`] the way that old kernels want it: with the layers attached, in a mount namespace of its own.
pub(in crate::gofer) fn mount_privately(
    layers: &Layers,
    options: &[(String, Option<String>)],
) -> Result<(OwnedFd, Option<OwnedFd>)> {
    in_private_namespace(|| {
        let opened = OpenLayers::new(layers, true)?;
        let fd = match opened.assemble(options) {
            Err(e) if matches!(e.errno, Errno::EINVAL | Errno::ENAMETOOLONG) => {
                opened.assemble_classically(options).map_err(|_| explain(e))?
            }
            result => result.map_err(explain)?,
        };
        Ok((fd, opened.filestore))
    })
}

fn explain(e: FsError) -> Error {
    Error::from(e).context("overlay")
}

/// The layers as descriptors of directories.
struct OpenLayers {
    lowers: Vec<OwnedFd>,
    data_only: Vec<OwnedFd>,
    upper: Option<(OwnedFd, OwnedFd)>,
    filestore: Option<OwnedFd>,
}

/// How layers are told to the kernel.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// By descriptor (Linux 6.13).
    Descriptors,
    /// One parameter a layer, by the descriptor's path (Linux 6.7).
    Paths,
    /// All lower layers in one text.
    Text,
}

impl OpenLayers {
    /// `attach`: puts detached mounts on top of the root directory, where no lookup by path meets them.
    fn new(layers: &Layers, attach: bool) -> Result<Self> {
        let open_all =
            |list: &[Layer]| list.iter().map(|layer| open_layer(layer, attach)).collect::<Result<Vec<_>>>();
        let lowers = open_all(&layers.lowers)?;
        let mut filestore = None;
        let upper = match &layers.upper {
            Upper::None => None,
            Upper::Pair { upper, work } => Some((open_directory(upper)?, open_directory(work)?)),
            Upper::Memory { size } => {
                let tmpfs = memory(*size)?;
                if attach {
                    mount::attach_at(tmpfs.as_fd(), "/")?;
                }
                let pair = upper_and_work(tmpfs.as_fd(), lowers.first())?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                filestore = Some(openat(&tmpfs, "upper", flags, Mode::empty())?);
                Some(pair)
            }
            Upper::Directory(directory) => {
                let directory = open_directory(directory)?;
                let pair = upper_and_work(directory.as_fd(), lowers.first())?;
                filestore = Some(directory);
                Some(pair)
            }
        };
        Ok(Self { lowers, data_only: open_all(&layers.data_only)?, upper, filestore })
    }

    fn assemble(&self, options: &[(String, Option<String>)]) -> std::result::Result<OwnedFd, FsError> {
        let mut first = None;
        for form in [Form::Descriptors, Form::Paths, Form::Text] {
            match self.assemble_as(form, options) {
                Ok(fd) => return Ok(fd),
                Err(e) if e.errno == Errno::EINVAL => first = first.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        Err(first.unwrap_or(FsError { errno: Errno::EINVAL, step: "overlay".to_owned(), log: String::new() }))
    }

    fn assemble_as(
        &self,
        form: Form,
        options: &[(String, Option<String>)],
    ) -> std::result::Result<OwnedFd, FsError> {
        let context = mount::fsopen("overlay")?;
        let context = context.as_fd();
        mount::fsconfig_string(context, "source", "airlock")?;
        let set = |key: &str, fd: &OwnedFd| match form {
            Form::Descriptors => mount::fsconfig_fd(context, key, fd.as_fd()),
            Form::Paths | Form::Text => mount::fsconfig_string(context, key, &fd_path(fd.as_fd())),
        };
        if matches!(form, Form::Text) {
            mount::fsconfig_string(context, "lowerdir", &self.lowerdir())?;
        } else {
            self.lowers.iter().try_for_each(|fd| set("lowerdir+", fd))?;
            self.data_only.iter().try_for_each(|fd| set("datadir+", fd))?;
        }
        if let Some((upper, work)) = &self.upper {
            set("upperdir", upper)?;
            set("workdir", work)?;
        }
        for (key, value) in options {
            match value {
                Some(value) => mount::fsconfig_string(context, key, value)?,
                None => mount::fsconfig_flag(context, key)?,
            }
        }
        mount::fsconfig_create(context)?;
        mount::fsmount(context, 0)
    }

    fn lowerdir(&self) -> String {
        let join = |list: &[OwnedFd], by: &str| {
            list.iter().map(|fd| fd_path(fd.as_fd())).collect::<Vec<_>>().join(by)
        };
        let mut text = join(&self.lowers, ":");
        if !self.data_only.is_empty() {
            text += "::";
            text += &join(&self.data_only, "::");
        }
        text
    }

    /// With mount(2), whose options may be 4 KiB long, on a directory of a tmpfs that is attached for this.
    fn assemble_classically(&self, options: &[(String, Option<String>)]) -> Result<OwnedFd> {
        let mut data = format!("lowerdir={}", self.lowerdir());
        if let Some((upper, work)) = &self.upper {
            data += &format!(",upperdir={},workdir={}", fd_path(upper.as_fd()), fd_path(work.as_fd()));
        }
        for (key, value) in options {
            data += &value.as_ref().map_or_else(|| format!(",{key}"), |v| format!(",{key}={v}"));
        }
        let place = memory(None)?;
        mount::attach_at(place.as_fd(), "/")?;
        mkdirat(&place, "here", Mode::S_IRWXU)?;
        let open = || openat(&place, "here", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        mount::classic_mount("airlock", open()?.as_fd(), "overlay", &data)?;
        Ok(mount::clone_tree(open()?.as_fd(), false)?)
    }
}

fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/thread-self/fd/{}", fd.as_raw_fd())
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, path, flags, Mode::empty())
        .map_err(|e| missing(e.into()).context(format!("overlay layer {}", path.display())))
}

fn open_layer(layer: &Layer, attach: bool) -> Result<OwnedFd> {
    match layer {
        Layer::Path(path) => open_directory(path),
        Layer::Mount(fd) => {
            if attach {
                mount::attach_at(fd.as_fd(), "/")?;
            }
            Ok(fd.try_clone()?)
        }
    }
}

/// A detached tmpfs.
fn memory(size: Option<u64>) -> Result<OwnedFd> {
    let context = mount::fsopen("tmpfs")?;
    mount::fsconfig_string(context.as_fd(), "source", "airlock")?;
    mount::fsconfig_string(context.as_fd(), "mode", "700")?;
    if let Some(size) = size {
        mount::fsconfig_string(context.as_fd(), "size", &size.to_string())?;
    }
    mount::fsconfig_create(context.as_fd())?;
    Ok(mount::fsmount(context.as_fd(), MOUNT_ATTR_NODEV)?)
}

/// Makes `upper` and `work` in `base`. The root of an overlay has the owner and mode of its upper layer, which takes
/// them from the lower one.
fn upper_and_work(base: BorrowedFd<'_>, lower: Option<&OwnedFd>) -> Result<(OwnedFd, OwnedFd)> {
    let make = |name: &str| -> Result<OwnedFd> {
        match mkdirat(base, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(Error::from(e).context("overlay layer")),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(base, name, flags, Mode::empty())?)
    };
    let pair = (make("upper")?, make("work")?);
    if let Some(lower) = lower {
        let status = fstat(lower)?;
        let (uid, gid) = (status.st_uid.into(), status.st_gid.into());
        nix::unistd::fchownat(base, "upper", Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_bits_truncate(status.st_mode);
        fchmodat(base, "upper", mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    }
    Ok(pair)
}

/// A detached mount of a copy of the file `source`, in a tmpfs; and the copy, to be read.
pub(in crate::gofer) fn copy_of_file(source: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let tmpfs = memory(None)?;
    let mut from = File::open(source).map_err(missing)?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mut to = File::from(openat(&tmpfs, "file", flags, Mode::S_IRUSR)?);
    std::io::copy(&mut from, &mut to)?;
    let status = from.metadata()?;
    {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::fchown(&to, Some(status.uid()), Some(status.gid()))?;
    }
    to.set_permissions(status.permissions())?;
    let open = || openat(&tmpfs, "file", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let copy = openat(&tmpfs, "file", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mount = match mount::clone_tree(open()?.as_fd(), false) {
        // Before Linux 6.15 only what is attached can be copied.
        Err(Errno::EINVAL) => in_private_namespace(|| {
            mount::attach_at(tmpfs.as_fd(), "/")?;
            Ok(mount::clone_tree(open()?.as_fd(), false)?)
        })?,
        result => result?,
    };
    Ok((mount, copy))
}
