//! Mounts of a domain of the supervisor, before it has a container.
#![forbid(unsafe_code)]

use super::{Done, Task, Worker, mounts};
use crate::checkpoint::inside;
use crate::init::paths;
use crate::oci::mounts::{Idmap, MountOptions, parse_options};
use crate::sys::mount::{self, AT_RECURSIVE, FsError, MountAttr, OPEN_TREE_CLONE};
use airlock_wire::api::supervisor::{DriveMount, Mount};
use airlock_wire::api::types::Json;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat};
use nix::unistd::{Gid, Uid, fchownat};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Makes detached mounts, one for each entry, which are the answer's descriptors. Descriptors: a pidfd of a process of the
/// parent domain, in whose mount namespace sources are looked up; or with `donated` one for each entry, a detached mount or
/// a drive's image.
#[derive(Debug, Serialize, Deserialize)]
pub struct DomainMounts {
    /// What to mount.
    pub mounts: Json<Vec<Mount>>,
    /// Descriptors came for them.
    pub donated: bool,
}

impl Task for DomainMounts {
    type Reply = ();

    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<()>> {
        let mut made = Vec::new();
        let mut fds = fds.into_iter();
        let mut next =
            || fds.next().ok_or_else(|| Error::invalid_argument("too few descriptors came for mounts"));
        let parent = if self.donated { None } else { Some(next()?) };
        for entry in &self.mounts.0 {
            let result = (|| {
                let options = options(entry)?;
                let mounted = match &parent {
                    Some(parent) => inside::run(parent.as_fd(), libc::CLONE_NEWNS, || open(entry, &options))?,
                    None => given(worker, entry, next()?)?,
                };
                finish(entry, &options, mounted.as_fd())?;
                Ok(mounted)
            })();
            made.push(result.map_err(|e: Error| e.context(format!("mount {:?}", entry.destination())))?);
        }
        Ok(Done { reply: (), fds: made, then: None })
    }
}

fn options(entry: &Mount) -> Result<MountOptions> {
    let options = parse_options(entry.options());
    if options.idmap != Idmap::None || options.remount || options.tmpcopyup {
        return Err(Error::unsupported(
            "options idmap, ridmap, remount and tmpcopyup are not for mounts of a domain",
        ));
    }
    if let (Mount::Bind(_), Some((key, _))) = (entry, options.data.first()) {
        return Err(Error::invalid_argument(format!("{key:?} is no option of a bind")));
    }
    Ok(options)
}

/// Makes a mount of what `entry` names, as the calling thread's mount namespace has it.
fn open(entry: &Mount, options: &MountOptions) -> Result<OwnedFd> {
    match entry {
        Mount::Bind(bind) => {
            let recursive = if options.rbind { AT_RECURSIVE } else { 0 };
            mount::open_tree(AT_FDCWD, bind.source.as_str(), OPEN_TREE_CLONE | recursive).map_err(|e| {
                Error::from(e).context(format!("opening {:?} in the parent domain", bind.source))
            })
        }
        Mount::Drive(drive) => {
            let attempt = || -> std::result::Result<OwnedFd, FsError> {
                let context = mount::fsopen(&drive.fs_type)?;
                let context = context.as_fd();
                if !drive.source.is_empty() {
                    mount::fsconfig_string(context, "source", &drive.source)?;
                }
                // What is to get an owner becomes read-only afterwards, as a mount.
                if options.read_only() && drive.chowner.is_none() && drive.chmode == 0 {
                    mount::fsconfig_flag(context, "ro")?;
                }
                for flag in &options.superblock {
                    mount::fsconfig_flag(context, flag)?;
                }
                for (key, value) in &options.data {
                    match value {
                        Some(value) => mount::fsconfig_string(context, key, value)?,
                        None => mount::fsconfig_flag(context, key)?,
                    }
                }
                mount::fsconfig_create(context)?;
                mount::fsmount(context, 0)
            };
            attempt().map_err(|e| match e.errno {
                Errno::ENODEV => {
                    Error::unsupported(format!("this kernel has no file system {:?}", drive.fs_type))
                }
                _ => Error::from(e)
                    .context(format!("a {:?} of {:?} cannot be mounted", drive.fs_type, drive.source)),
            })
        }
    }
}

/// Makes a mount of what the parent has opened.
fn given(worker: &Worker, entry: &Mount, fd: OwnedFd) -> Result<OwnedFd> {
    match entry {
        Mount::Drive(drive) if paths::file_type(fd.as_fd())? == SFlag::S_IFREG => {
            match drive.fs_type.as_str() {
                "erofs" => mounts::erofs(worker, fd.as_fd()),
                other => Err(Error::unsupported(format!(
                    "an image of type {other:?} needs a loop device, which a sandbox has not: mount it and give the mount"
                ))),
            }
        }
        _ => Ok(fd),
    }
}

/// Owner and permissions, then attributes.
fn finish(entry: &Mount, options: &MountOptions, mounted: BorrowedFd<'_>) -> Result<()> {
    if let Mount::Drive(drive) = entry {
        own(drive, mounted)?;
    }
    for (change, recursive) in [(options.attrs, false), (options.recursive, true)] {
        if !change.is_empty() {
            let attr = MountAttr { set: change.set, clear: change.clear, ..MountAttr::default() };
            mount::mount_setattr(mounted, &attr, recursive).map_err(|e| match e {
                Errno::EINVAL => Error::invalid_argument("the descriptor is no detached mount"),
                e => Error::from(e).context("changing mount attributes"),
            })?;
        }
    }
    Ok(())
}

fn own(drive: &DriveMount, mounted: BorrowedFd<'_>) -> Result<()> {
    if let Some((uid, gid)) = drive.chowner {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(mounted, "", owner.0, owner.1, AtFlags::AT_EMPTY_PATH)
            .map_err(|e| Error::from(e).context(format!("chowner {uid}:{gid}")))?;
    }
    if drive.chmode != 0 {
        let mode = Mode::from_bits(drive.chmode).ok_or_else(|| {
            Error::invalid_argument(format!("chmode {:#o} has more than permission bits", drive.chmode))
        })?;
        fchmodat(mounted, ".", mode, FchmodatFlags::FollowSymlink)
            .map_err(|e| Error::from(e).context(format!("chmode {:#o}", drive.chmode)))?;
    }
    Ok(())
}
