//! The path of an inode: of what inotify watches, and of other names of a deleted file.
//!
//! The kernel keeps no way from an inode back to a name. What helps, the cheapest first: file handles (where the
//! filesystem and the privileges allow), paths that are open anyway, and a walk through the filesystem.
#![forbid(unsafe_code)]

use super::fdinfo::FdInfo;
use super::scan::Mount;
use crate::checkpoint::inside;
use crate::procfs::ProcFs;
use crate::sys::files as call;
use crate::sys::process;
use airlock_wire::error::Result;
use nix::dir::{Dir, Type};
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// How many directory entries a walk looks at before it gives up: some seconds' worth.
const MAX_ENTRIES: usize = 2_000_000;

/// An inode whose path is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Device of its filesystem, as mountinfo has it.
    pub dev: u64,
    /// The filesystem's own number of it.
    pub ino: u64,
    /// File handle: type and bytes.
    pub handle: Option<(i32, Vec<u8>)>,
}

/// Looks for paths as the container sees them; `known` are paths that are likely to be asked for.
///
/// # Errors
/// When the container's mount namespace cannot be entered. What is not found is none.
pub fn find(
    procfs: &ProcFs,
    init: i32,
    mounts: &[Mount],
    known: &[String],
    wanted: &[Wanted],
) -> Result<Vec<Option<String>>> {
    let target = process::pidfd_open(init)?;
    inside::run(target.as_fd(), libc::CLONE_NEWNS, || {
        let mut search =
            Search { procfs: procfs.root(), mounts, left: HashMap::new(), found: vec![None; wanted.len()] };
        for (i, w) in wanted.iter().enumerate() {
            if let Some(path) = search.by_handle(w) {
                search.found[i] = Some(path);
            } else {
                search.left.entry((w.dev, w.ino)).or_default().push(i);
            }
        }
        search.among(known);
        for mount in mounts {
            if search.left.keys().any(|(dev, _)| *dev == mount.dev) {
                search.walk(mount);
            }
        }
        Ok(search.found)
    })
}

struct Search<'a> {
    procfs: BorrowedFd<'a>,
    mounts: &'a [Mount],
    /// Which of the wanted are not found yet, by device and inode.
    left: HashMap<(u64, u64), Vec<usize>>,
    found: Vec<Option<String>>,
}

impl Search<'_> {
    fn by_handle(&self, wanted: &Wanted) -> Option<String> {
        let (kind, handle) = wanted.handle.as_ref()?;
        self.mounts.iter().filter(|m| m.dev == wanted.dev).find_map(|mount| {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let on = openat(AT_FDCWD, mount.path.as_str(), flags, Mode::empty()).ok()?;
            let fd = call::open_by_handle(on.as_fd(), *kind, handle).ok()?;
            let path = self.path_of(&fd)?;
            (self.identity(&path) == Some((wanted.dev, wanted.ino))).then_some(path)
        })
    }

    fn path_of(&self, fd: &OwnedFd) -> Option<String> {
        let link = format!("self/fd/{}", fd.as_raw_fd());
        readlinkat(self.procfs, link.as_str()).ok()?.into_string().ok().filter(|p| p.starts_with('/'))
    }

    /// Device and inode as the kernel has them inside, which stat(2) need not tell (overlayfs).
    fn identity(&self, path: &str) -> Option<(u64, u64)> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(AT_FDCWD, path, flags, Mode::empty()).ok()?;
        let info = format!("self/fdinfo/{}", fd.as_raw_fd());
        let mut text = String::new();
        let file =
            openat(self.procfs, info.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text).ok()?;
        let info = FdInfo::parse(&text);
        let stat = nix::sys::stat::fstat(&fd).ok()?;
        let dev = self.mounts.iter().find(|m| m.id == info.mnt_id).map_or(stat.st_dev, |m| m.dev);
        Some((dev, info.ino.unwrap_or(stat.st_ino)))
    }

    /// Takes note of a path that may be one of those wanted.
    fn try_path(&mut self, path: &str) {
        if let Some(key) = self.identity(path)
            && let Some(who) = self.left.remove(&key)
        {
            for i in who {
                self.found[i] = Some(path.to_owned());
            }
        }
    }

    fn among(&mut self, known: &[String]) {
        for path in known {
            // Programs that watch a directory usually have something in it open.
            let mut path = path.as_str();
            while !self.left.is_empty() && !path.is_empty() {
                self.try_path(path);
                path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            }
        }
        if !self.left.is_empty() {
            self.try_path("/");
        }
    }

    /// Looks through the filesystem of a mount, the shallowest first.
    fn walk(&mut self, mount: &Mount) {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut queue = VecDeque::from([mount.path.clone()]);
        let mut looked = 0;
        while let Some(path) = queue.pop_front() {
            let wanted = |left: &HashMap<(u64, u64), _>| left.keys().any(|(dev, _)| *dev == mount.dev);
            if looked > MAX_ENTRIES || !wanted(&self.left) {
                return;
            }
            let Ok(mut dir) = Dir::open(path.as_str(), flags, Mode::empty()) else { continue };
            let base = if path == "/" { "" } else { path.as_str() };
            let mut likely = Vec::new();
            for entry in dir.iter().filter_map(std::result::Result::ok) {
                looked += 1;
                let Ok(name) = entry.file_name().to_str() else { continue };
                if matches!(name, "." | "..") {
                    continue;
                }
                let full = format!("{base}/{name}");
                if self.left.contains_key(&(mount.dev, entry.ino())) {
                    likely.push(full.clone());
                }
                // What is mounted there has a turn of its own.
                if entry.file_type() == Some(Type::Directory) && !self.mounts.iter().any(|m| m.path == full) {
                    queue.push_back(full);
                }
            }
            for path in likely {
                self.try_path(&path);
            }
        }
    }
}
