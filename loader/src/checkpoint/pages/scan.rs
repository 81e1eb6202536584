//! Which pages of an address space have to be saved.
#![forbid(unsafe_code)]

use super::{HUGE, Memory, PAGE, Range};
use crate::sys::pagemap::{self, Query, Region};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pages one after the other with something in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address of the first, page-aligned.
    pub start: u64,
    /// How many, at least 1.
    pub pages: u64,
    /// What they are.
    pub kind: RunKind,
    /// They are parts of huge pages.
    pub huge: bool,
    /// See [`Range::backed`].
    pub backed: bool,
}

/// What a [`Run`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunKind {
    /// Content that has to be stored.
    Data,
    /// Guards (`MADV_GUARD_INSTALL`): not stored; whoever describes the mapping notes them.
    Guard,
    /// Not written since the parent image was made, which has them ([`super::track`]).
    Unchanged,
}

impl Run {
    /// Address after the last page.
    pub fn end(&self) -> u64 {
        self.start + self.pages * PAGE
    }
}

/// How many regions one call returns at most.
pub(super) const REGIONS: usize = 2048;
/// `PAGE_IS_GUARD` is not known to this kernel (found out once).
static NO_GUARDS: AtomicBool = AtomicBool::new(false);

/// Looks through `ranges` (ascending) of a stopped process for pages that must be saved: those that the program has of
/// its own, also swapped out. Pages that only show the kernel's zeros, or a file that will be there at the restore,
/// are not among them.
///
/// # Errors
/// When the page tables cannot be read: the process is gone, permissions.
pub fn scan(memory: &Memory, ranges: &[Range]) -> Result<Vec<Run>> {
    let (mut all, mut room) = (Vec::new(), vec![Region::default(); REGIONS]);
    for range in ranges.iter().filter(|r| r.start < r.end) {
        if range.file_pages {
            all.extend(whole(memory, range)?);
            continue;
        }
        let found = match fast(memory, range, &mut room) {
            // No such request before Linux 6.7.
            Err(Errno::ENOTTY | Errno::ENOSYS | Errno::EINVAL) => slow(memory, range),
            other => other.map_err(Error::from),
        };
        all.append(&mut found.map_err(|e| {
            let span = format!("{:#x}-{:#x}", range.start, range.end);
            e.context(format!("look for pages of process {} in {span}", memory.pid()))
        })?);
    }
    Ok(all)
}

/// All of a mapping whose file will not be there, up to the end of the file: also what nobody has touched yet, of which
/// page tables (and those of a shadow least of all) tell nothing.
pub(super) fn whole(memory: &Memory, range: &Range) -> Result<Option<Run>> {
    let readable = |page: u64| match memory.read(range.start + page * PAGE, &mut [0]) {
        Ok(()) => Ok(true),
        Err(e) if e.kind == Kind::NoSuchEntity => Err(e),
        // Behind the end of the file.
        Err(_) => Ok(false),
    };
    let (mut some, mut none) = (0, (range.end - range.start) / PAGE);
    while some < none {
        let middle = some + (none - some) / 2;
        if readable(middle)? { some = middle + 1 } else { none = middle }
    }
    let run = Run { start: range.start, pages: some, kind: RunKind::Data, huge: false, backed: range.backed };
    Ok((some > 0).then_some(run))
}

/// Calls PAGEMAP_SCAN until all is seen. Passes each region to `each`.
pub(super) fn regions(
    memory: &Memory,
    start: u64,
    end: u64,
    query: &Query,
    room: &mut [Region],
    mut each: impl FnMut(Region),
) -> std::result::Result<(), Errno> {
    let mut at = start;
    while at < end {
        let (n, walked) = match pagemap::scan(memory.pagemap(), at, end, query, room) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let found = room.get(..n).unwrap_or_default();
        found.iter().for_each(|r| each(*r));
        if walked <= at {
            return Err(Errno::EIO);
        }
        // Having begun anew inside (after 512 regions), the kernel may tell where that was instead of where it ended.
        at = found.last().map_or(walked, |last| last.end.max(walked));
    }
    Ok(())
}

fn fast(memory: &Memory, range: &Range, room: &mut [Region]) -> std::result::Result<Vec<Run>, Errno> {
    // To know whose a page is, the kernel has to look at its descriptor in memory, which is most of the work: only
    // asked where pages of a file can be.
    let file = if range.backed { pagemap::FILE } else { 0 };
    let mut query = Query {
        none_of: pagemap::PFNZERO | file,
        any_of: pagemap::PRESENT | pagemap::SWAPPED,
        report: pagemap::HUGE | pagemap::GUARD,
        ..Query::default()
    };
    if NO_GUARDS.load(Ordering::Relaxed) {
        query.report &= !pagemap::GUARD;
    }
    let mut runs = Vec::new();
    let scanned = regions(memory, range.start, range.end, &query, room, |r| push_region(&mut runs, range, r));
    if scanned == Err(Errno::EINVAL) && query.report & pagemap::GUARD != 0 {
        runs.clear();
        query.report &= !pagemap::GUARD;
        regions(memory, range.start, range.end, &query, room, |r| push_region(&mut runs, range, r))?;
        NO_GUARDS.store(true, Ordering::Relaxed);
        return Ok(runs);
    }
    scanned.map(|()| runs)
}

fn push_region(runs: &mut Vec<Run>, range: &Range, region: Region) {
    let kind = if region.categories & pagemap::GUARD == 0 { RunKind::Data } else { RunKind::Guard };
    push(
        runs,
        Run {
            start: region.start,
            pages: (region.end - region.start) / PAGE,
            kind,
            huge: region.categories & pagemap::HUGE != 0,
            backed: range.backed,
        },
    );
}

/// Adds a run, joined to the last one if it continues it.
pub(super) fn push(runs: &mut Vec<Run>, run: Run) {
    if run.pages == 0 {
        return;
    }
    match runs.last_mut() {
        Some(last)
            if last.end() == run.start
                && (last.kind, last.huge, last.backed) == (run.kind, run.huge, run.backed) =>
        {
            last.pages += run.pages;
        }
        _ => runs.push(run),
    }
}

/// The same by `/proc/<pid>/pagemap`, eight bytes for each page. It tells neither huge pages nor pages of zeros: a page
/// counts as huge when a whole one of a range that wants them is there, and zeros are found when they are read.
pub(super) fn slow(memory: &Memory, range: &Range) -> Result<Vec<Run>> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE: u64 = 1 << 61;
    const GUARD: u64 = 1 << 58;
    let mut runs = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let (mut at, end) = (range.start, range.end);
    while at < end {
        let want = (((end - at) / PAGE * 8).min(buffer.len() as u64)) as usize;
        let entries = buffer.get_mut(..want).unwrap_or_default();
        memory.pagemap_file().read_exact_at(entries, at / PAGE * 8)?;
        for (entry, start) in entries.chunks_exact(8).zip((at..).step_by(PAGE as usize)) {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            let owned = entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0;
            if owned {
                let kind = if entry & GUARD == 0 { RunKind::Data } else { RunKind::Guard };
                push(&mut runs, Run { start, pages: 1, kind, huge: false, backed: range.backed });
            }
        }
        at += want as u64 / 8 * PAGE;
    }
    Ok(if range.huge || range.hugetlb() { mark_huge(runs) } else { runs })
}

/// Splits runs so that those with whole huge pages are marked.
fn mark_huge(runs: Vec<Run>) -> Vec<Run> {
    let mut marked = Vec::new();
    for run in runs {
        let (from, to) = (run.start.next_multiple_of(HUGE), run.end() / HUGE * HUGE);
        if run.kind != RunKind::Data || from >= to {
            marked.push(run);
            continue;
        }
        let part = |start: u64, end: u64, huge| Run { start, pages: (end - start) / PAGE, huge, ..run };
        push(&mut marked, part(run.start, from, false));
        push(&mut marked, part(from, to, true));
        push(&mut marked, part(to, run.end(), false));
    }
    marked
}
