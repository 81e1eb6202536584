//! Path resolution by components, for what the kernel's own does not do: making what is missing on the way, old
//! kernels, and trees in which somebody renames all the time.

#![forbid(unsafe_code)]

use super::{Result, file_type, is_procfs, open_component, read_link};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

/// As many as the kernel follows in one resolution.
const MAX_LINKS: u32 = 40;
/// Bounds the descriptors of one walk; deeper paths are no container's mount points.
const MAX_DEPTH: usize = 256;

/// What to do about a component that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Fail,
    /// Make a directory with this mode.
    Directory(u32),
    /// Make an empty file with this mode if it is the last component, else a directory.
    File(u32),
}

/// Resolves `path` below `root`. `..` goes back along the descriptors of the walk itself and never asks the kernel,
/// so that no rename can lead it out.
pub(super) fn walk(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlag,
    no_symlinks: bool,
    missing: Missing,
) -> Result<OwnedFd> {
    let mut rest: VecDeque<OsString> = names(path).collect();
    let mut stack: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    let nofollow = flags.contains(OFlag::O_NOFOLLOW);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            stack.pop();
            continue;
        }
        if stack.len() >= MAX_DEPTH {
            return Err(Errno::ENAMETOOLONG);
        }
        let here = stack.last().map_or(root, |fd| fd.as_fd());
        let found = match open_component(here, &name) {
            Err(Errno::ENOENT) => make(here, &name, missing, rest.is_empty())?,
            result => result?,
        };
        if file_type(found.as_fd())? == SFlag::S_IFLNK {
            links += 1;
            if rest.is_empty() && nofollow && flags.contains(OFlag::O_PATH) {
                return Ok(found);
            }
            // Links of procfs may be magic, and the walk cannot tell.
            if no_symlinks || links > MAX_LINKS || (rest.is_empty() && nofollow) || is_procfs(found.as_fd())?
            {
                return Err(Errno::ELOOP);
            }
            let target = read_link(found.as_fd())?;
            let target = Path::new(&target);
            if target.is_absolute() {
                stack.clear();
            }
            for name in names(target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(name);
            }
            continue;
        }
        if rest.is_empty() {
            return finish(here, &name, found, flags);
        }
        stack.push(found);
    }
    // The path was the root, or ended by going up.
    let here = stack.last().map_or(root, |fd| fd.as_fd());
    openat(here, ".", (flags - OFlag::O_NOFOLLOW) | OFlag::O_CLOEXEC, Mode::empty())
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn make(dir: BorrowedFd<'_>, name: &OsStr, missing: Missing, last: bool) -> Result<OwnedFd> {
    let made = match missing {
        Missing::Fail => return Err(Errno::ENOENT),
        Missing::File(mode) if last => {
            let flags =
                OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(dir, name, flags, Mode::from_bits_truncate(mode)).map(drop)
        }
        Missing::File(_) => mkdirat(dir, name, Mode::from_bits_truncate(0o755)),
        Missing::Directory(mode) => mkdirat(dir, name, Mode::from_bits_truncate(mode)),
    };
    match made {
        // Somebody was faster: whatever it is, the caller looks at it.
        Ok(()) | Err(Errno::EEXIST) => open_component(dir, name),
        Err(e) => Err(e),
    }
}

/// Turns the `O_PATH` descriptor of the last component into what was asked for.
fn finish(dir: BorrowedFd<'_>, name: &OsStr, found: OwnedFd, flags: OFlag) -> Result<OwnedFd> {
    if flags.contains(OFlag::O_DIRECTORY) && file_type(found.as_fd())? != SFlag::S_IFDIR {
        return Err(Errno::ENOTDIR);
    }
    if flags.contains(OFlag::O_PATH) {
        return Ok(found);
    }
    // A link that has taken its place meanwhile is refused.
    openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}
