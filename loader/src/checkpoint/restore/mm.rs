//! Address spaces: a task's own calls clear the one it was forked with and make the saved one.
//!
//! Three passes, each one table of calls: [`clear`] and [`map`] before the pages come, [`finish`] when they are there.
#![forbid(unsafe_code)]

use super::{aio, segments};
use crate::checkpoint::remote::{Arg, Batch, Region, Tracee};
use crate::checkpoint::state::{MmState, ShmemKind, ShmemState, Vma, VmaKind};
use airlock_wire::error::{Error, Result};
use std::collections::HashMap;

/// End of what user space may map without asking for more (x86-64 with four levels of page tables).
const TASK_END: u64 = 0x7fff_ffff_f000;

const ARCH_MAP_VDSO_64: u64 = 0x2003;
const MAP_DROPPABLE: i32 = 0x08;
const MADV_GUARD_INSTALL: i32 = 102;
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_MEMORY_MERGE: u64 = 67;
const PR_SET_MDWE: u64 = 65;
const PR_SET_MM: u64 = 35;
const PR_SET_MM_MAP: u64 = 14;
const SYS_MSEAL: i64 = 462;

/// Finds an address for the region through which calls are injected: free in every saved address space and in
/// `taken`, which is what the waiting inits have mapped. Answers none if there is no such place.
pub fn free_address<'a>(
    spaces: impl Iterator<Item = &'a MmState>,
    taken: &[(u64, u64)],
    len: u64,
) -> Option<u64> {
    const LOWEST: u64 = 0x10000;
    // A gap on both sides keeps stacks that grow, and a break that moves, away from it.
    const GAP: u64 = 1 << 24;
    let mut used: Vec<(u64, u64)> = taken.to_vec();
    for mm in spaces {
        used.extend(mm.vmas.iter().map(|v| (v.start, v.end)));
        used.push(mm.layout.brk);
    }
    // `[vsyscall]` is beyond what anybody can map.
    used.retain(|(start, _)| *start < TASK_END);
    used.sort_unstable();
    let (mut best, mut end) = (None, LOWEST);
    let mut widest = 0;
    for (start, stop) in used.into_iter().chain([(TASK_END, TASK_END)]) {
        if start > end && start - end > widest {
            widest = start - end;
            best = Some(end + (start - end) / 2);
        }
        end = end.max(stop);
    }
    (widest >= len + 2 * GAP).then_some(best? & !0xfff)
}

/// Unmaps everything but the region — for which the kernel must first forget the thread's restartable sequences, since it
/// writes to their area whenever the thread goes on —, and puts the kernel's vdso where the program knows it.
///
/// # Errors
/// When the kernel refuses, or puts the vdso elsewhere.
pub fn clear(task: &mut Tracee, region: &Region, mm: &MmState) -> Result<()> {
    const RSEQ_FLAG_UNREGISTER: u64 = 1;
    let value = Arg::Value;
    let mut batch = Batch::new();
    if let Some(rseq) = task.rseq_configuration()?.filter(|r| r.pointer != 0) {
        batch.must(
            libc::SYS_rseq,
            [rseq.pointer.into(), rseq.size.into(), value(RSEQ_FLAG_UNREGISTER), rseq.signature.into()],
        );
    }
    let end = region.base + region.len;
    batch.must(libc::SYS_munmap, [value(0), value(region.base)]);
    batch.must(libc::SYS_munmap, [value(end), value(TASK_END - end)]);
    // The kernel maps its data pages and its code in one piece.
    let first = mm.vmas.iter().find(|v| matches!(v.kind, VmaKind::Vvar | VmaKind::Vdso));
    if let Some(first) = first {
        batch.must(libc::SYS_arch_prctl, [value(ARCH_MAP_VDSO_64), value(first.start)]);
    }
    batch.run(task, region)?.check().map_err(|e| e.context("clearing a forked address space"))
}

/// Checks, with the task's `/proc/pid/maps`, that the kernel's own mappings are where they were.
///
/// # Errors
/// Says which is not.
pub fn check_vdso(maps: &str, mm: &MmState) -> Result<()> {
    let Some(saved) = mm.vmas.iter().find(|v| v.kind == VmaKind::Vdso) else { return Ok(()) };
    let now = maps.lines().find(|l| l.ends_with("[vdso]")).and_then(|l| l.split_once(' ')).map(|(r, _)| r);
    let wanted = format!("{:x}-{:x}", saved.start, saved.end);
    let padded = format!("{:08x}-{:08x}", saved.start, saved.end);
    if now == Some(wanted.as_str()) || now == Some(padded.as_str()) {
        return Ok(());
    }
    Err(Error::failure(format!(
        "the kernel's vdso is laid out differently here (at {}, in the image at {wanted}): the image comes from another kernel",
        now.unwrap_or("no address")
    )))
}

/// What a mapping needs from outside: numbers of descriptors in the task, by file and by memory object.
#[derive(Debug, Default)]
pub struct MapFds {
    /// By index of the file.
    pub files: HashMap<u32, i32>,
    /// By index of the memory object.
    pub shmems: HashMap<u32, i32>,
    /// SysV segments are attached by id, not by descriptor: the ids in the new IPC namespace.
    pub segments: HashMap<u32, i32>,
}

/// Maps everything. `content` lists, ascending, the address ranges whose pages will be written next: they are mapped
/// writable for that, and [`finish`] gives them their own protection.
///
/// # Errors
/// The first mapping that cannot be made, by its address and what it maps.
pub fn map(
    task: &mut Tracee,
    region: &Region,
    mm: &MmState,
    shmems: &[ShmemState],
    fds: &MapFds,
    content: &[(u64, u64)],
) -> Result<()> {
    let mut batch = Batch::new();
    let mut calls = Vec::with_capacity(mm.vmas.len());
    for vma in &mm.vmas {
        for part in parts(vma) {
            if let Some(call) = map_one(&mut batch, &part, shmems, fds, content)? {
                calls.push((call, part));
            }
        }
        // Before there is content: it decides which pages that gets. Kernels without huge pages know no such advice.
        for advice in vma.advice.iter().filter(|a| is_about_huge_pages(**a)) {
            let len = vma.end - vma.start;
            batch.call(libc::SYS_madvise, [vma.start.into(), len.into(), (*advice).into()]);
        }
    }
    let ran = batch.run(task, region)?;
    for (call, vma) in calls {
        match ran.result(call) {
            Ok(at) if at == vma.start => {}
            Ok(at) => return Err(Error::failure(format!("{} was mapped at {at:#x}", describe(&vma)))),
            Err(e) => return Err(Error::from(e).context(format!("mapping {}", describe(&vma)))),
        }
    }
    segments::parts(task, region, mm, shmems, fds)?;
    aio::contexts(task, region, mm)
}

/// Pieces in which a mapping is made; the kernel joins them. Where memory may be overcommitted, it still refuses a single
/// mapping that is larger than all memory, though a heap may have grown to that piece by piece.
fn parts(vma: &Vma) -> Vec<Vma> {
    const PIECE: u64 = 1 << 30;
    const PIECES: u64 = 1024;
    let len = vma.end.saturating_sub(vma.start);
    let counted =
        vma.kind == VmaKind::Anonymous && !vma.noreserve && !vma.grows_down && vma.huge_page_size == 0;
    if !counted || len <= PIECE {
        return vec![vma.clone()];
    }
    let piece = (len / PIECES).next_multiple_of(PIECE);
    let part = |n: u64| {
        let start = vma.start + n * piece;
        Vma { start, end: vma.end.min(start + piece), ..vma.clone() }
    };
    (0..len.div_ceil(piece)).map(part).collect()
}

fn is_about_huge_pages(advice: i32) -> bool {
    matches!(advice, libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE)
}

pub(super) fn describe(vma: &Vma) -> String {
    format!("{:#x}-{:#x} ({:?})", vma.start, vma.end, vma.kind)
}

fn has_content(vma: &Vma, content: &[(u64, u64)]) -> bool {
    let after = content.partition_point(|(_, end)| *end <= vma.start);
    content.get(after).is_some_and(|(start, _)| *start < vma.end)
}

/// Protection while pages are being written.
fn filling(vma: &Vma, content: &[(u64, u64)]) -> u32 {
    if !vma.shared && vma.prot & 2 == 0 && has_content(vma, content) { 3 } else { vma.prot }
}

fn map_one(
    batch: &mut Batch,
    vma: &Vma,
    shmems: &[ShmemState],
    fds: &MapFds,
    content: &[(u64, u64)],
) -> Result<Option<crate::checkpoint::remote::CallId>> {
    let (mut flags, fd, offset) = match vma.kind {
        VmaKind::Vdso | VmaKind::Vvar | VmaKind::Kernel | VmaKind::Aio => return Ok(None),
        VmaKind::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        VmaKind::File(id) => {
            let fd = fds.files.get(&id).ok_or_else(|| missing(vma))?;
            (if vma.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE }, *fd, vma.offset)
        }
        VmaKind::Shmem(id) => {
            let object = shmems.get(id as usize).ok_or_else(|| missing(vma))?;
            if let ShmemKind::SysV { .. } = object.kind {
                let segment = fds.segments.get(&id).ok_or_else(|| missing(vma))?;
                return Ok(segments::whole(vma, object)
                    .then(|| segments::attach(batch, *segment, vma.start, vma.prot)));
            }
            let fd = fds.shmems.get(&id).ok_or_else(|| missing(vma))?;
            (if vma.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE }, *fd, vma.offset)
        }
    };
    flags |= libc::MAP_FIXED_NOREPLACE;
    if vma.grows_down {
        flags |= libc::MAP_GROWSDOWN;
    }
    if vma.noreserve {
        flags |= libc::MAP_NORESERVE;
    }
    if vma.huge_page_size != 0 && fd == -1 {
        flags |= libc::MAP_HUGETLB | (vma.huge_page_size.trailing_zeros() as i32) << 26;
    }
    if vma.droppable {
        flags = flags & !libc::MAP_PRIVATE | MAP_DROPPABLE;
    }
    Ok(Some(batch.call(
        libc::SYS_mmap,
        [
            Arg::Value(vma.start),
            Arg::Value(vma.end - vma.start),
            Arg::Value(u64::from(filling(vma, content))),
            Arg::Value(flags as u64),
            Arg::Value(fd as i64 as u64),
            Arg::Value(offset),
        ],
    )))
}

pub(super) fn missing(vma: &Vma) -> Error {
    Error::failure(format!("nothing was opened for the mapping {}", describe(vma)))
}

/// When all pages are written: protections, advice, locks, names, guards, and what `/proc` says of the whole. `exe` is
/// the number of a descriptor of the program in the task.
///
/// # Errors
/// What has to be as it was and cannot be: protections, layout. Answers, as warnings, what is only advice.
pub fn finish(
    task: &mut Tracee,
    region: &Region,
    mm: &MmState,
    exe: Option<i32>,
    content: &[(u64, u64)],
) -> Result<Vec<String>> {
    let value = Arg::Value;
    let mut batch = Batch::new();
    let (mut needed, mut wished) = (Vec::new(), Vec::new());
    let keys = mm.vmas.iter().map(|v| v.pkey).max().unwrap_or(0);
    for _ in 0..keys.clamp(0, 15) {
        wished.push((batch.call(libc::SYS_pkey_alloc, [value(0), value(0)]), "pkey_alloc".to_owned()));
    }
    for vma in &mm.vmas {
        if matches!(vma.kind, VmaKind::Vdso | VmaKind::Vvar | VmaKind::Kernel | VmaKind::Aio) {
            continue;
        }
        let (start, len) = (vma.start, vma.end - vma.start);
        if vma.pkey > 0 {
            let call = batch.call(
                libc::SYS_pkey_mprotect,
                [value(start), value(len), value(u64::from(vma.prot)), value(vma.pkey as u64)],
            );
            needed.push((call, vma));
        } else if filling(vma, content) != vma.prot {
            let call = batch.call(libc::SYS_mprotect, [value(start), value(len), value(u64::from(vma.prot))]);
            needed.push((call, vma));
        }
        for advice in vma.advice.iter().filter(|a| !is_about_huge_pages(**a)) {
            let call = batch.call(libc::SYS_madvise, [value(start), value(len), value(*advice as u64)]);
            wished.push((call, format!("advice {advice} for {}", describe(vma))));
        }
        for (from, to) in &vma.guards {
            let call = batch.call(
                libc::SYS_madvise,
                [value(*from), value(to.saturating_sub(*from)), value(MADV_GUARD_INSTALL as u64)],
            );
            needed.push((call, vma));
        }
        if vma.locked != 0 {
            let flags = u64::from(vma.locked == 2);
            let call = batch.call(libc::SYS_mlock2, [value(start), value(len), value(flags)]);
            wished.push((call, format!("locking {}", describe(vma))));
        }
        if let Some(name) = &vma.name {
            let mut bytes = name.clone().into_bytes();
            bytes.push(0);
            let text = batch.data(&bytes);
            let call =
                batch.call(libc::SYS_prctl, [value(PR_SET_VMA), value(0), value(start), value(len), text]);
            // Only kernels with CONFIG_ANON_VMA_NAME know names, and nothing depends on them.
            let _ = call;
        }
        if vma.sealed {
            let call = batch.call(SYS_MSEAL, [value(start), value(len), value(0)]);
            wished.push((call, format!("sealing {}", describe(vma))));
        }
    }
    let layout = set_layout(&mut batch, mm, exe);
    if mm.ksm {
        let call = batch.call(libc::SYS_prctl, [value(PR_SET_MEMORY_MERGE), value(1)]);
        wished.push((call, "merging of equal pages".to_owned()));
    }
    if mm.mdwe != 0 {
        let call = batch.call(libc::SYS_prctl, [value(PR_SET_MDWE), value(mm.mdwe)]);
        wished.push((call, "denying writable code".to_owned()));
    }
    let ran = batch.run(task, region)?;
    for (call, vma) in needed {
        ran.result(call).map_err(|e| Error::from(e).context(format!("protecting {}", describe(vma))))?;
    }
    ran.result(layout).map_err(|e| {
        Error::from(e)
            .context("setting the layout of an address space (PR_SET_MM_MAP, needs CAP_CHECKPOINT_RESTORE)")
    })?;
    Ok(wished
        .into_iter()
        .filter_map(|(call, what)| ran.result(call).err().map(|e| format!("{what}: {e}")))
        .collect())
}

/// `struct prctl_mm_map` (prctl(2), PR_SET_MM_MAP).
fn set_layout(batch: &mut Batch, mm: &MmState, exe: Option<i32>) -> crate::checkpoint::remote::CallId {
    let l = &mm.layout;
    // What the kernel copies to `/proc/pid/auxv` is a fixed array; longer ones are refused.
    let auxv = batch.data(&mm.auxv);
    let mut words = Vec::new();
    for word in [
        l.code.0, l.code.1, l.data.0, l.data.1, l.brk.0, l.brk.1, l.stack, l.args.0, l.args.1, l.env.0,
        l.env.1,
    ] {
        words.extend_from_slice(&word.to_ne_bytes());
    }
    let at = words.len();
    words.extend_from_slice(&[0; 8]);
    words.extend_from_slice(&(mm.auxv.len() as u32).to_ne_bytes());
    words.extend_from_slice(&exe.unwrap_or(-1).to_ne_bytes());
    let len = words.len() as u64;
    let map = batch.data(&words);
    batch.pointer(map.at(at), auxv);
    batch.call(libc::SYS_prctl, [Arg::Value(PR_SET_MM), Arg::Value(PR_SET_MM_MAP), map, Arg::Value(len)])
}

#[cfg(test)]
#[path = "mm_tests.rs"]
mod tests;
