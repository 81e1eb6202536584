//! Overlay mounts: which entries get a writable layer, where it lives, and how the kernel is told.

#![forbid(unsafe_code)]

use super::missing;
use super::private::in_private_namespace;
use airlock_loader::oci::mounts::MountOptions;
use airlock_loader::sys::mount::{self, FsError, MOUNT_ATTR_NODEV};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmodat, fstat, mkdirat};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where an upper layer lives (gVisor: `OverlayMedium`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// In a tmpfs of its own.
    Memory,
    /// In a hidden directory beside the mount's source, on the host's file system. (gVisor keeps a file *in* the
    /// source; overlayfs refuses an upper layer inside a lower one.)
    SelfBacked,
    /// In a hidden directory in this one.
    Directory(PathBuf),
}

impl Medium {
    /// As in [`airlock_wire::api::types::GoferMountConf::upper`].
    pub(super) fn number(&self) -> u8 {
        match self {
            Self::Memory => 1,
            Self::SelfBacked => 2,
            Self::Directory(_) => 3,
        }
    }
}

/// A writable layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Where it lives.
    pub medium: Medium,
    /// Limit in bytes, for [`Medium::Memory`] only.
    pub size: Option<u64>,
}

/// Which mounts get a writable layer, as in runsc's `--overlay2`: `none`, or `root:MEDIUM` or `all:MEDIUM` with
/// `memory`, `self` or `dir=/path` as medium, and `,size=N[kmg]` behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayConfig {
    /// For the root filesystem.
    pub root: Option<Overlay>,
    /// For every writable bind mount.
    pub mounts: Option<Overlay>,
}

impl FromStr for OverlayConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: &str| {
            Err(Error::invalid_argument(format!(
                "overlay {text:?}: {why}; say none, or root:MEDIUM or all:MEDIUM with memory, self or dir=/path, \
                 for example root:memory,size=1g"
            )))
        };
        if text.is_empty() || text == "none" {
            return Ok(Self::default());
        }
        let Some((which, rest)) = text.split_once(':') else { return fail("no colon") };
        let mut parts = rest.split(',');
        let medium = match parts.next().unwrap_or("") {
            "memory" => Medium::Memory,
            "self" => Medium::SelfBacked,
            other => match other.strip_prefix("dir=").map(PathBuf::from) {
                Some(dir) if dir.is_absolute() => Medium::Directory(dir),
                Some(_) => return fail("the directory has to be absolute"),
                None => return fail("unknown medium"),
            },
        };
        let mut size = None;
        for part in parts {
            match part.strip_prefix("size=").and_then(parse_size) {
                Some(n) if medium == Medium::Memory => size = Some(n),
                Some(_) => return fail("size is for memory only"),
                None => return fail("the only option is size"),
            }
        }
        let overlay = Overlay { medium, size };
        match which {
            "root" => Ok(Self { root: Some(overlay), mounts: None }),
            "all" => Ok(Self { root: Some(overlay.clone()), mounts: Some(overlay) }),
            _ => fail("neither root nor all"),
        }
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let n: u64 = plain.then(|| digits.parse().ok())??;
    n.checked_mul(1 << shift).filter(|n| *n > 0)
}

/// A lower layer.
#[derive(Debug)]
pub(super) enum Layer {
    /// A directory of the host.
    Path(PathBuf),
    /// The root of a detached mount.
    Mount(OwnedFd),
}

/// The upper layer.
#[derive(Debug)]
pub(super) enum Upper {
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
pub(super) struct Layers {
    pub(super) lowers: Vec<Layer>,
    /// Layers that only hold data of the others' files (`::` in `lowerdir`).
    pub(super) data_only: Vec<Layer>,
    pub(super) upper: Upper,
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Makes the directory for an upper layer of the mount of `source`; `None` for memory.
pub(super) fn filestore(medium: &Medium, source: &Path) -> Result<Option<PathBuf>> {
    let place = match medium {
        Medium::Memory => return Ok(None),
        Medium::Directory(dir) => dir.clone(),
        Medium::SelfBacked => {
            let source = std::fs::canonicalize(source).map_err(missing)?;
            match source.parent() {
                Some(parent) => parent.to_owned(),
                None => {
                    return Err(Error::invalid_argument(
                        "overlay medium self: the root directory has no place beside it; use memory or dir=/path",
                    ));
                }
            }
        }
    };
    loop {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = place.join(format!(".airlock.filestore.{}-{now:x}-{n}", std::process::id()));
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&path) {
            Ok(()) => return Ok(Some(path)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(missing(e).context(format!("overlay layer in {}", place.display()))),
        }
    }
}

/// Makes a detached overlay mount; `options` are more parameters of overlayfs. Also returns the directory behind the
/// upper layer, if it is on the host.
pub(super) fn mount(
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
pub(super) fn mount_privately(
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
                Some(upper_and_work(tmpfs.as_fd(), lowers.first())?)
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

/// A detached mount of a copy of the file `source`, in a tmpfs.
pub(super) fn copy_of_file(source: &Path) -> Result<OwnedFd> {
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
    match mount::clone_tree(open()?.as_fd(), false) {
        // Before Linux 6.15 only what is attached can be copied.
        Err(Errno::EINVAL) => in_private_namespace(|| {
            mount::attach_at(tmpfs.as_fd(), "/")?;
            Ok(mount::clone_tree(open()?.as_fd(), false)?)
        }),
        result => Ok(result?),
    }
}

/// An overlay mount of the spec, whose layers are in its options. Every layer is opened here, so that no length of
/// text and no escaping matters to the kernel.
pub(super) fn from_spec(options: &MountOptions) -> Result<OwnedFd> {
    let value = |key: &str| options.data_value(key).flatten().filter(|v| !v.is_empty());
    let Some(lowerdir) = value("lowerdir") else {
        return Err(Error::invalid_argument("overlay: the option lowerdir is missing"));
    };
    let (lowers, data_only) = split_layers(lowerdir);
    let upper = match (value("upperdir"), value("workdir")) {
        (Some(upper), Some(work)) => {
            Upper::Pair { upper: unescape(upper).into(), work: unescape(work).into() }
        }
        (None, _) => Upper::None,
        (Some(_), None) => return Err(Error::invalid_argument("overlay: upperdir needs a workdir")),
    };
    let to_layers = |list: Vec<String>| list.into_iter().map(|p| Layer::Path(p.into())).collect();
    let rest: Vec<_> = options
        .data
        .iter()
        .filter(|(key, _)| !["lowerdir", "upperdir", "workdir"].contains(&key.as_str()))
        .cloned()
        .chain(options.superblock.iter().map(|flag| ((*flag).to_owned(), None)))
        .collect();
    let layers = Layers { lowers: to_layers(lowers), data_only: to_layers(data_only), upper };
    if layers.lowers.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "overlay: the option lowerdir names no directory"));
    }
    mount(&layers, &rest).map(|(fd, _)| fd)
}

/// Splits a `lowerdir` text: `:` separates layers, `::` the data-only ones from the rest and from each other, and a
/// backslash takes the meaning from what follows.
fn split_layers(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut lowers, mut data_only, mut current) = (Vec::new(), Vec::new(), String::new());
    let mut in_data = false;
    let mut chars = text.chars().peekable();
    let finish = |current: &mut String, in_data: bool, lowers: &mut Vec<String>, data: &mut Vec<String>| {
        let path = std::mem::take(current);
        if !path.is_empty() {
            if in_data { data.push(path) } else { lowers.push(path) }
        }
    };
    while let Some(c) = chars.next() {
        match c {
            '\\' => current.extend(chars.next()),
            ':' => {
                finish(&mut current, in_data, &mut lowers, &mut data_only);
                if chars.next_if_eq(&':').is_some() {
                    in_data = true;
                }
            }
            c => current.push(c),
        }
    }
    finish(&mut current, in_data, &mut lowers, &mut data_only);
    (lowers, data_only)
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::new();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_texts_are_read_like_runsc_does() {
        let parse = |t: &str| t.parse::<OverlayConfig>();
        assert_eq!(parse("none").unwrap(), OverlayConfig::default());
        let root = parse("root:memory,size=2m").unwrap();
        assert_eq!(root.root, Some(Overlay { medium: Medium::Memory, size: Some(2 << 20) }));
        assert_eq!(root.mounts, None);
        let all = parse("all:dir=/x").unwrap();
        assert_eq!(all.mounts.unwrap().medium, Medium::Directory("/x".into()));
        assert_eq!(parse("all:self").unwrap().root.unwrap().medium, Medium::SelfBacked);
        for bad in [
            "memory",
            "root:",
            "root:disk",
            "some:memory",
            "root:dir=x",
            "root:memory,size=",
            "root:memory,size=0",
            "root:memory,size=+1",
            "root:memory,size=99999999999g",
            "root:self,size=1",
            "root:memory,x=1",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind, Kind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn layer_lists_are_split_and_unescaped() {
        let split = |t: &str| split_layers(t);
        assert_eq!(split("/a:/b"), (vec!["/a".to_owned(), "/b".to_owned()], vec![]));
        assert_eq!(split(r"/a\:b:/c\\d").0, [r"/a:b", r"/c\d"]);
        assert_eq!(split("/a::/d1::/d2"), (vec!["/a".to_owned()], vec!["/d1".to_owned(), "/d2".to_owned()]));
        assert_eq!(split(""), (vec![], vec![]));
        assert_eq!(unescape(r"/x\:y"), "/x:y");
    }
}
