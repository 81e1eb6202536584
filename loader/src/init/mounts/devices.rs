//! Device nodes and the usual links in `/dev`.

#![forbid(unsafe_code)]

use super::{Builder, Entry};
use crate::init::paths;
use crate::oci::mounts::{MountKind, clean_destination};
use crate::sys::mount;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, makedev, minor, mknodat};
use nix::unistd::{UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Nodes that every container has (OCI runtime spec, "Default Devices"), by their name in `/dev`: character devices
/// that everybody may read and write.
pub const DEFAULT_DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// A file in `/dev` with the sandbox's generation ID and a line feed. A restored or forked sandbox has an ID of its own
/// in it: programs that must not share secrets with their copies watch it (inotify(7), `IN_MODIFY`).
pub const GENERATION: &str = "airlock-generation";

/// A node to make.
struct Node {
    path: PathBuf,
    kind: SFlag,
    major: u64,
    minor: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Node {
    fn from_spec(device: &LinuxDevice) -> Result<Self> {
        let path = clean_destination(device.path());
        let fail =
            |why: String| Err(Error::invalid_argument(format!("linux.devices {}: {why}", path.display())));
        let kind = match device.typ() {
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
            LinuxDeviceType::P => SFlag::S_IFIFO,
            LinuxDeviceType::A => return fail("type a stands for all devices and cannot be made".to_owned()),
        };
        // The kernel's device numbers have 12 and 20 bits.
        let number = |what: &str, value: i64, bits: u32| match u64::try_from(value) {
            Ok(v) if v < 1 << bits => Ok(v),
            _ => Err(Error::invalid_argument(format!(
                "linux.devices {}: {what} number {value} is out of range",
                path.display()
            ))),
        };
        let (major, minor) = match kind {
            SFlag::S_IFIFO => (0, 0),
            _ => (number("major", device.major(), 12)?, number("minor", device.minor(), 20)?),
        };
        Ok(Self {
            kind,
            major,
            minor,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            path,
        })
    }

    fn error(&self, e: impl Into<Error>) -> Error {
        let e: Error = e.into();
        e.context(format!("device {}", self.path.display()))
    }

    fn is(&self, status: &FileStat) -> bool {
        paths::type_of(status) == self.kind
            && (self.kind == SFlag::S_IFIFO
                || (major(status.st_rdev), minor(status.st_rdev)) == (self.major, self.minor))
    }
}

/// Makes the nodes of the spec, the default ones, and the links. A container that has another tree bound to its
/// `/dev` gets nothing: that tree has what it needs, and may be the host's.
pub(super) fn set_up(builder: &mut Builder<'_>) -> Result<()> {
    let mounts = builder.spec.mounts();
    let bound = mounts.iter().flatten().map(Entry::new);
    if bound.into_iter().any(|e| e.kind == MountKind::Bind && e.destination == Path::new("/dev")) {
        return Ok(());
    }
    let listed = builder.spec.linux().as_ref().and_then(|l| l.devices().as_deref()).unwrap_or_default();
    let mut nodes: Vec<Node> = listed
        .iter()
        // The link to the container's own devpts takes its place.
        .filter(|d| !d.path().as_os_str().is_empty() && clean_destination(d.path()) != Path::new("/dev/ptmx"))
        .map(Node::from_spec)
        .collect::<Result<_>>()?;
    for (name, major, minor) in DEFAULT_DEVICES {
        let path = Path::new("/dev").join(name);
        if !nodes.iter().any(|n| n.path == path) {
            nodes.push(Node { path, kind: SFlag::S_IFCHR, major, minor, mode: 0o666, uid: 0, gid: 0 });
        }
    }
    // Opened once, in-root, before anything is made in it: it may be a link to anywhere in the image.
    let (dev, _) =
        builder.places.make(Path::new("/dev"), true, false).map_err(|e| Error::from(e).context("/dev"))?;
    for node in &nodes {
        make(builder, dev.as_fd(), node).map_err(|e| node.error(e))?;
    }
    links(builder, dev.as_fd())?;
    if !builder.generation.is_empty() {
        generation(dev.as_fd(), builder.generation)
            .map_err(|e| Error::from(e).context(format!("/dev/{GENERATION}")))?;
    }
    if builder.spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false) {
        replace(
            dev.as_fd(),
            OsStr::new("console"),
            |dir, name| {
                let flags =
                    OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(dir, name, flags, Mode::from_bits_truncate(0o600)).map(drop)
            },
            |status| paths::type_of(status) != SFlag::S_IFLNK,
        )
        .map_err(|e| Error::from(e).context("/dev/console"))?;
    }
    Ok(())
}

fn generation(dev: BorrowedFd<'_>, id: &str) -> nix::Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let make = |dir: BorrowedFd<'_>, name: &OsStr| {
        let file = openat(dir, name, flags, Mode::from_bits_truncate(0o444))?;
        nix::unistd::write(&file, format!("{id}\n").as_bytes()).map(drop)
    };
    replace(dev, OsStr::new(GENERATION), make, |_| false)
}

fn make(builder: &mut Builder<'_>, dev: BorrowedFd<'_>, node: &Node) -> Result<()> {
    let opened;
    let (dir, name) = match node.path.strip_prefix("/dev") {
        Ok(rest) if rest.components().count() == 1 => (dev, rest.as_os_str()),
        _ => {
            let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else {
                return Err(Error::invalid_argument("the path names no file"));
            };
            opened = builder.places.make(parent, true, false)?.0;
            (opened.as_fd(), name)
        }
    };
    let text = node.path.to_str().unwrap_or_default();
    let donated = builder
        .donated_devices
        .iter()
        .position(|(path, _)| path == text || clean_destination(Path::new(path)) == node.path);
    if let Some(i) = donated {
        let (_, fd) = builder.donated_devices.swap_remove(i);
        return bind(dir, name, node, fd);
    }
    let made = replace(
        dir,
        name,
        |dir, name| {
            mknodat(
                dir,
                name,
                node.kind,
                Mode::from_bits_truncate(node.mode),
                makedev(node.major, node.minor),
            )
        },
        |status| node.is(status),
    );
    match made {
        Err(Errno::EPERM) if builder.in_userns => {
            return Err(Error::invalid_argument(
                "a user namespace cannot make device nodes, and no descriptor was donated for this one",
            ));
        }
        result => result?,
    }
    if (node.uid, node.gid) != (0, 0) {
        fchownat(dir, name, Some(node.uid.into()), Some(node.gid.into()), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Binds a donated node onto an empty file.
fn bind(dir: BorrowedFd<'_>, name: &OsStr, node: &Node, fd: OwnedFd) -> Result<()> {
    if !node.is(&fstat(&fd)?) {
        return Err(Error::invalid_argument("the donated descriptor is another device, or none"));
    }
    replace(
        dir,
        name,
        |dir, name| {
            let flags =
                OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(dir, name, flags, Mode::from_bits_truncate(0o644)).map(drop)
        },
        |status| paths::type_of(status) == SFlag::S_IFREG || node.is(status),
    )?;
    let target = openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(mount::attach(fd.as_fd(), target.as_fd())?)
}

/// Makes `name` in `dir` with `make`, which must not follow links. What is in the way is removed, unless `good` says
/// that it will do.
fn replace(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    make: impl Fn(BorrowedFd<'_>, &OsStr) -> nix::Result<()>,
    good: impl Fn(&FileStat) -> bool,
) -> nix::Result<()> {
    // Twice is enough unless somebody else makes things here, who has to be refused anyway.
    for _ in 0..2 {
        match make(dir, name) {
            Err(Errno::EEXIST) => {}
            result => return result,
        }
        match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) if good(&status) => return Ok(()),
            Ok(_) => unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?,
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::EEXIST)
}

fn links(builder: &Builder<'_>, dev: BorrowedFd<'_>) -> Result<()> {
    let kcore = builder.places.open(Path::new("/proc/kcore"), OFlag::O_PATH).is_ok();
    for (name, target) in LINKS.iter().copied().chain(kcore.then_some(("core", "/proc/kcore"))) {
        match symlinkat(target, dev, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(Error::from(e).context(format!("link /dev/{name}"))),
        }
    }
    // Whatever an image has there, terminals come from the container's own devpts.
    let made = replace(
        dev,
        OsStr::new("ptmx"),
        |dir, name| symlinkat("pts/ptmx", dir, name),
        |status| paths::type_of(status) == SFlag::S_IFLNK && points_to_pts(dev),
    );
    match made {
        // Something of the spec is mounted there, which is then what was wanted.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(e) => Err(Error::from(e).context("link /dev/ptmx")),
    }
}

fn points_to_pts(dev: BorrowedFd<'_>) -> bool {
    nix::fcntl::readlinkat(dev, "ptmx").is_ok_and(|target| target == "pts/ptmx")
}
