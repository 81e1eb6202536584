//! Files with a path: regular ones, directories, devices, FIFOs, message queues; deleted ones; memfds.
#![forbid(unsafe_code)]

use super::search::Wanted;
use super::{Collector, Later, anon, tty};
use crate::checkpoint::state::{Bytes, FileKind, Id, PathFile, ShmemKind, ShmemState};
use airlock_wire::error::{Error, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, major, minor};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

/// Contents of deleted files up to this size are kept in the state; larger ones go the way of memory.
const INLINE: u64 = 64 << 10;
/// Filesystem type of POSIX message queues (statfs(2)).
const MQUEUE_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x1980_0202);
/// Device nodes that hold no state: those of every container (OCI runtime spec, "Default Devices"), by numbers.
const HARMLESS: &[(u64, u64)] = &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// The type bits of a mode.
pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// What the state says of a file by path.
pub(super) fn describe(path: &str, stat: &FileStat) -> PathFile {
    PathFile {
        path: path.to_owned(),
        mode: stat.st_mode,
        size: stat.st_size as u64,
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
        rdev: stat.st_rdev,
        owner: (stat.st_uid, stat.st_gid),
        identity: (stat.st_dev, stat.st_ino),
        ..PathFile::default()
    }
}

impl Collector<'_> {
    /// Anything whose link starts with a slash.
    pub(super) fn describe_path(&mut self, index: usize) -> Result<()> {
        let raw = &self.found[index].raw;
        let (link, stat, only_path) = (raw.link.clone(), raw.stat, raw.info.flags & libc::O_PATH != 0);
        if let Some(name) = link.strip_prefix("/memfd:").and_then(|l| l.strip_suffix(" (deleted)")) {
            return self.describe_memfd(index, name);
        }
        if link.matches('/').count() == 1
            && !self.own_mount(index)
            && let Some((kind, why)) = anon::refused(&link)
        {
            self.refuse(index, kind, format!("{link}: {why}"));
            return Ok(());
        }
        let kind = file_type(&stat);
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        if !only_path {
            match kind {
                SFlag::S_IFCHR if (major, minor) == (5, 2) => return self.describe_master(index),
                SFlag::S_IFCHR if (major, minor) == (5, 0) => return self.describe_controlling(index),
                SFlag::S_IFCHR if tty::is_slave(stat.st_rdev) => return self.describe_slave(index),
                SFlag::S_IFCHR | SFlag::S_IFBLK
                    if !HARMLESS.contains(&(major, minor)) || kind == SFlag::S_IFBLK =>
                {
                    self.refuse(
                        index,
                        "device",
                        format!("{link} (device {major}:{minor}) has state that only its driver knows"),
                    );
                    return Ok(());
                }
                SFlag::S_IFREG if self.is_mqueue(index)? => return self.describe_mqueue(index, &link),
                _ => {}
            }
        }
        if self.found[index].raw.info.mnt_id != 0 && !self.own_mount(index) {
            self.refuse(
                index,
                "file of another mount namespace",
                format!("{link} is on no mount of the container: it came from outside after the start, or from a namespace of the program's own"),
            );
            return Ok(());
        }
        let reachable = self.found[index].raw.reachable();
        if kind == SFlag::S_IFIFO && !only_path {
            return self.describe_fifo(index, reachable);
        }
        if reachable {
            self.state(index).kind = FileKind::Path(describe(&link, &stat));
            return Ok(());
        }
        match link.strip_suffix(" (deleted)") {
            Some(path) => self.describe_deleted(index, path),
            None => {
                self.refuse(
                    index,
                    "hidden file",
                    format!("{link} cannot be reached by that path: something is mounted over it or was moved there"),
                );
                Ok(())
            }
        }
    }

    /// It was opened through a mount that the container sees.
    pub(super) fn own_mount(&self, index: usize) -> bool {
        let found = &self.found[index];
        let mounts = self.mounts.get(found.container as usize);
        mounts.is_some_and(|all| all.iter().any(|m| m.id == found.raw.info.mnt_id))
    }

    fn fstype(&self, index: usize) -> &str {
        let found = &self.found[index];
        let mounts = self.mounts.get(found.container as usize);
        let mount = mounts.and_then(|all| all.iter().find(|m| m.id == found.raw.info.mnt_id));
        mount.map_or("", |m| m.fstype.as_str())
    }

    fn describe_deleted(&mut self, index: usize, path: &str) -> Result<()> {
        let raw = &self.found[index].raw;
        let (stat, flags, ino, mnt_id) = (raw.stat, raw.info.flags, raw.info.ino, raw.info.mnt_id);
        let file = describe(path, &stat);
        if matches!(self.fstype(index), "proc" | "sysfs" | "cgroup" | "cgroup2") {
            self.refuse(
                index,
                "file of something that has ended",
                format!("{path} is gone from {}", self.fstype(index)),
            );
            return Ok(());
        }
        match file_type(&stat) {
            SFlag::S_IFDIR => {
                self.state(index).kind = FileKind::Deleted { file, content: None, shmem: None, link: None };
                return Ok(());
            }
            SFlag::S_IFREG => {}
            _ => {
                self.refuse(
                    index,
                    "deleted file",
                    format!("{path} was removed, and is neither file nor directory"),
                );
                return Ok(());
            }
        }
        let (mut content, mut shmem) = (None, None);
        let identity = file.identity;
        if flags & libc::O_PATH == 0 || stat.st_size > 0 {
            match self.ctx.shmem(identity) {
                Some(id) => shmem = Some(id),
                None => {
                    let fd = self.reopen(index)?;
                    if stat.st_size as u64 <= INLINE {
                        let mut bytes = Vec::new();
                        File::from(fd).take(INLINE + 1).read_to_end(&mut bytes)?;
                        content = Some(Bytes(bytes));
                    } else {
                        shmem = Some(self.add_object(path, &stat, 0, fd));
                    }
                }
            }
        }
        self.state(index).kind = FileKind::Deleted { file, content, shmem, link: None };
        if stat.st_nlink > 0 {
            let mounts = self.mounts.get(self.found[index].container as usize);
            let dev =
                mounts.and_then(|all| all.iter().find(|m| m.id == mnt_id)).map_or(stat.st_dev, |m| m.dev);
            let wanted = Wanted { dev, ino: ino.unwrap_or(stat.st_ino), handle: None };
            self.later.push((Later::OtherName(index), wanted));
        }
        Ok(())
    }

    /// Opens the file behind a description once more, for reading.
    pub(super) fn reopen(&mut self, index: usize) -> Result<OwnedFd> {
        let fd = self.open(index)?;
        let link = format!("self/fd/{}", fd.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        openat(self.ctx.procfs.root(), link.as_str(), flags, Mode::empty()).map_err(|e| {
            Error::from(e).context(format!("opening {:?} again for reading", self.found[index].raw.link))
        })
    }

    /// Registers an object whose contents the page engine saves.
    fn add_object(&mut self, name: &str, stat: &FileStat, seals: i32, fd: OwnedFd) -> Id {
        let huge = nix::sys::statfs::fstatfs(&fd)
            .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::HUGETLBFS_MAGIC);
        let object = ShmemState {
            kind: ShmemKind::Memfd,
            name: name.rsplit('/').next().unwrap_or(name).to_owned(),
            size: stat.st_size as u64,
            seals,
            huge_page_size: if huge { stat.st_blksize as u64 } else { 0 },
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            identity: (stat.st_dev, stat.st_ino),
        };
        self.ctx.add_shmem(object, fd)
    }

    fn describe_memfd(&mut self, index: usize, name: &str) -> Result<()> {
        let stat = self.found[index].raw.stat;
        let identity = (stat.st_dev, stat.st_ino);
        let fd = self.open(index)?;
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).unwrap_or(0);
        let id = match self.ctx.shmem(identity) {
            Some(id) => {
                // A mapping may be smaller, and may not have told all.
                let object = &mut self.ctx.state.shmems[id as usize];
                object.seals = seals;
                object.size = stat.st_size as u64;
                name.clone_into(&mut object.name);
                id
            }
            None => {
                let readable = self.reopen(index)?;
                self.add_object(name, &stat, seals, readable)
            }
        };
        self.state(index).kind = FileKind::Memfd(id);
        Ok(())
    }

    fn is_mqueue(&mut self, index: usize) -> Result<bool> {
        // Only these live on a filesystem that need not be mounted anywhere in the container.
        if self.found[index].raw.link.matches('/').count() != 1 && self.fstype(index) != "mqueue" {
            return Ok(false);
        }
        let fd = self.open(index)?;
        Ok(nix::sys::statfs::fstatfs(&fd)?.filesystem_type() == MQUEUE_MAGIC)
    }

    fn describe_mqueue(&mut self, index: usize, link: &str) -> Result<()> {
        let name = link.rsplit('/').next().unwrap_or_default().to_owned();
        if self.found[index].raw.stat.st_nlink == 0 || link.ends_with(" (deleted)") {
            self.refuse(
                index,
                "message queue",
                format!("{link}: it was unlinked, and its messages cannot be copied"),
            );
            return Ok(());
        }
        let mut text = String::new();
        File::from(self.reopen(index)?).take(4096).read_to_string(&mut text)?;
        if text.split_ascii_whitespace().any(|w| w.strip_prefix("NOTIFY_PID:").is_some_and(|p| p != "0")) {
            self.ctx.warn(format!(
                "message queue /{name}: the request to be notified of a message (mq_notify) is lost"
            ));
        }
        self.state(index).kind = FileKind::Mqueue { name: format!("/{name}") };
        Ok(())
    }
}
