//! The container's terminal: made in the container's own devpts, and known by descriptor only.

#![forbid(unsafe_code)]

use super::places::Places;
use crate::init::paths;
use crate::sys::{mount, ptmx};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{SFlag, fstat, major, minor};
use nix::sys::statfs::fstatfs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Majors of pty replicas (devices.txt).
const REPLICA_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;
/// Numbers of `ptmx`.
const PTMX: (u64, u64) = (5, 2);

/// Makes a pseudo terminal in the devpts instance whose root directory is `devpts`. Returns the master and the other
/// end, both close-on-exec and not yet anybody's controlling terminal. No name is looked up but `ptmx` itself.
///
/// # Errors
/// [`Kind::InvalidArgument`] when `devpts` is something else; `ENOSPC` when the instance's terminals are used up.
pub fn open_console(devpts: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    if !is_devpts(devpts) {
        return Err(Error::invalid_argument(
            "console: what should be the container's devpts is something else",
        ));
    }
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
    let rules =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let master = match mount::openat2(devpts, "ptmx", flags, 0, rules) {
        Err(Errno::ENOSYS) => {
            nix::fcntl::openat(devpts, "ptmx", flags | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
        }
        result => result,
    }
    .map_err(|e| Error::from(e).context("console: opening ptmx of the container's devpts"))?;
    let status = fstat(&master)?;
    if (major(status.st_rdev), minor(status.st_rdev)) != PTMX || !is_devpts(master.as_fd()) {
        return Err(Error::invalid_argument("console: ptmx of the container's devpts is something else"));
    }
    ptmx::unlock(master.as_fd()).map_err(|e| Error::from(e).context("console: unlocking the terminal"))?;
    let peer =
        ptmx::peer(master.as_fd()).map_err(|e| Error::from(e).context("console: opening the terminal"))?;
    check_replica(peer.as_fd())?;
    Ok((master, peer))
}

/// Binds `peer`, a pty replica of the caller's mount namespace, over `/dev/console`, by descriptor. The caller's root
/// is the container's; [`super::build`] has made the file if the spec asks for a terminal.
///
/// # Errors
/// [`Kind::InvalidArgument`] when `peer` is no terminal or `/dev/console` is a symbolic link.
pub fn mount_console(peer: BorrowedFd<'_>) -> Result<()> {
    let during = |e: Errno| Error::from(e).context("/dev/console");
    check_replica(peer)?;
    let root = mount::open_tree(nix::fcntl::AT_FDCWD, "/", 0).map_err(during)?;
    let path = Path::new("/dev/console");
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let target = match paths::open_in_root(root.as_fd(), path, flags) {
        // The container has another tree bound to its /dev.
        Err(Errno::ENOENT) => paths::create_file_in_root(root.as_fd(), path, 0o600),
        result => result,
    }
    .map_err(during)?;
    if paths::file_type(target.as_fd())? == SFlag::S_IFLNK {
        return Err(Error::new(
            Kind::InvalidArgument,
            "/dev/console: is a symbolic link, refusing to mount there",
        ));
    }
    let tree = mount::clone_tree(peer, false).map_err(during)?;
    mount::attach(tree.as_fd(), target.as_fd()).map_err(during)?;
    let now = paths::open_in_root(root.as_fd(), path, flags).map_err(during)?;
    if mount::mount_id(now.as_fd())?.0 != mount::mount_id(tree.as_fd())?.0 {
        return Err(Error::failure("/dev/console: was replaced while it was being mounted on"));
    }
    Ok(())
}

/// The root directory of what is mounted on `/dev/pts`, if it is a devpts.
pub(super) fn find_devpts(places: &Places) -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    places.open(Path::new("/dev/pts"), flags).ok().filter(|fd| is_devpts(fd.as_fd()))
}

fn is_devpts(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::FsType(libc::DEVPTS_SUPER_MAGIC))
}

fn check_replica(fd: BorrowedFd<'_>) -> Result<()> {
    let status = fstat(fd)?;
    if paths::type_of(&status) == SFlag::S_IFCHR
        && REPLICA_MAJORS.contains(&major(status.st_rdev))
        && is_devpts(fd)
    {
        return Ok(());
    }
    Err(Error::invalid_argument("console: the descriptor is no terminal of a devpts"))
}
