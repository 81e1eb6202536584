//! Memory objects: memfds and shared anonymous memory, made once and shared by all who map or hold them.
#![forbid(unsafe_code)]

use super::context::Context;
use super::files::reopen;
use super::source::Source;
use crate::checkpoint::pages::{self, Object};
use crate::checkpoint::state::{FileKind, SandboxState, ShmemKind, ShmemState};
use airlock_wire::error::{Error, Result};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// Gives all objects but SysV segments their contents; those that nobody has a descriptor of are made. Seals come last ([`seal`]): they may forbid mapping.
///
/// # Errors
/// No memory, no huge pages, damaged pages.
pub fn create(ctx: &mut Context, source: &Source) -> Result<u64> {
    let mut pages = 0;
    for (id, (object, slot)) in ctx.state.shmems.iter().zip(&mut ctx.shmems).enumerate() {
        if matches!(object.kind, ShmemKind::SysV { .. }) {
            continue;
        }
        let describe = |e: Error| e.context(format!("making memory object {id} ({:?})", object.name));
        let fd = match slot.take() {
            Some(fd) => fd,
            None => make(object).map_err(describe)?,
        };
        let target = Object::Shared(id as u32);
        pages += pages::fill_file(&source.chain, target, fd.as_fd(), object.size, 0, None)
            .map_err(describe)?
            .pages;
        *slot = Some(fd);
    }
    let executed: Vec<usize> = executed(&ctx.state).collect();
    for id in executed {
        // The kernel makes no file a process' program that somebody could write to.
        if let Some(slot) = ctx.shmems.get_mut(id)
            && let Some(fd) = slot.take()
        {
            *slot = Some(reopen(ctx.procfs.root(), fd.as_fd(), libc::O_RDONLY)?);
        }
    }
    Ok(pages)
}

/// The memory objects that stand for deleted files which processes execute.
fn executed(state: &SandboxState) -> impl Iterator<Item = usize> {
    state.mms.iter().filter_map(|mm| match state.files.get(mm.exe? as usize)?.kind {
        FileKind::Deleted { shmem: Some(id), .. } => Some(id as usize),
        _ => None,
    })
}

fn make(object: &ShmemState) -> Result<OwnedFd> {
    const MFD_HUGE_SHIFT: u32 = 26;
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if object.huge_page_size != 0 {
        let size = object.huge_page_size.trailing_zeros() << MFD_HUGE_SHIFT;
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(size);
    }
    // Anonymous memory has no name; what `/proc` shows is that of a memfd.
    let fd = memfd_create(object.name.as_str(), flags)?;
    let file = File::from(fd);
    file.set_len(object.size)?;
    nix::sys::stat::fchmod(&file, nix::sys::stat::Mode::from_bits_truncate(object.mode & 0o7777))?;
    let (uid, gid) = object.owner;
    // Ids without a meaning here stay ours.
    let _ = nix::unistd::fchown(&file, Some(uid.into()), Some(gid.into()));
    Ok(file.into())
}

/// Puts the seals of memfds back, when everything is mapped.
///
/// # Errors
/// A seal is refused.
pub fn seal(ctx: &Context) -> Result<()> {
    for (id, (object, fd)) in ctx.state.shmems.iter().zip(&ctx.shmems).enumerate() {
        let Some(fd) = fd else { continue };
        // Without the permission to seal, a memfd has the seal against sealing.
        let seals = match object.kind {
            ShmemKind::Memfd => SealFlag::from_bits_retain(object.seals),
            _ => SealFlag::F_SEAL_SEAL,
        };
        // Files of a tmpfs have the seal against sealing from the start; those of other filesystems know none.
        let Ok(now) = fcntl(fd, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain) else { continue };
        if now.contains(seals) {
            continue;
        }
        fcntl(fd, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|e| Error::from(e).context(format!("sealing memory object {id} ({:?})", object.name)))?;
    }
    Ok(())
}
