//! Segments of System V shared memory, which are attached whole. Programs may then unmap, protect or advise parts of one.
#![forbid(unsafe_code)]

use super::mm::{MapFds, describe, missing};
use crate::checkpoint::remote::{Arg, Batch, CallId, Region, Tracee};
use crate::checkpoint::state::{MmState, ShmemKind, ShmemState, Vma, VmaKind};
use airlock_wire::error::{Error, Result};

const PAGE: u64 = 4096;

/// Whether shmat(2) alone makes this mapping.
pub(super) fn whole(vma: &Vma, object: &ShmemState) -> bool {
    vma.offset == 0 && vma.end - vma.start == object.size.next_multiple_of(PAGE) && vma.prot & 1 != 0
}

/// Attaches a segment; at an address of the kernel's choice if `at` is 0.
pub(super) fn attach(batch: &mut Batch, segment: i32, at: u64, prot: u32) -> CallId {
    // What can be neither read nor written now may once have been written.
    let readonly = if prot & 3 == 1 { libc::SHM_RDONLY } else { 0 };
    let flags = readonly | if prot & 4 != 0 { libc::SHM_EXEC } else { 0 };
    batch.call(libc::SYS_shmat, [segment.into(), at.into(), flags.into()])
}

/// Makes mappings of parts: the segment is attached elsewhere, the part moved to its place, and the rest unmapped.
///
/// # Errors
/// The first that cannot be made.
pub(super) fn parts(
    task: &mut Tracee,
    region: &Region,
    mm: &MmState,
    shmems: &[ShmemState],
    fds: &MapFds,
) -> Result<()> {
    for vma in &mm.vmas {
        let VmaKind::Shmem(id) = vma.kind else { continue };
        let object = shmems.get(id as usize).ok_or_else(|| missing(vma))?;
        if !matches!(object.kind, ShmemKind::SysV { .. }) || whole(vma, object) {
            continue;
        }
        let segment = fds.segments.get(&id).ok_or_else(|| missing(vma))?;
        part(task, region, vma, object, *segment)
            .map_err(|e| e.context(format!("mapping a part of a segment at {}", describe(vma))))?;
    }
    Ok(())
}

fn part(task: &mut Tracee, region: &Region, vma: &Vma, object: &ShmemState, segment: i32) -> Result<()> {
    let (len, size) = (vma.end - vma.start, object.size.next_multiple_of(PAGE));
    let behind = vma
        .offset
        .checked_add(len)
        .filter(|end| *end <= size)
        .ok_or_else(|| Error::invalid_argument("the segment is not that long"))?;
    let mut batch = Batch::new();
    let call = attach(&mut batch, segment, 0, vma.prot);
    let at = batch.run(task, region)?.get(call)?;
    let mut batch = Batch::new();
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    batch.must(
        libc::SYS_mremap,
        [(at + vma.offset).into(), len.into(), len.into(), flags.into(), vma.start.into()],
    );
    for (from, to) in [(0, vma.offset), (behind, size)] {
        if from < to {
            batch.must(libc::SYS_munmap, [(at + from).into(), Arg::Value(to - from)]);
        }
    }
    batch.must(libc::SYS_mprotect, [vma.start.into(), len.into(), vma.prot.into()]);
    batch.run(task, region)?.check()
}
