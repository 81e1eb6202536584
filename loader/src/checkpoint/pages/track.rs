//! Which pages were written since an image was made.
//!
//! The kernel keeps count (Linux 6.7): mappings are registered with a userfaultfd whose faults nobody answers
//! (`UFFD_FEATURE_WP_ASYNC`), present pages are write-protected, and the first write to one lifts its protection. It costs
//! the program half a microsecond for each page that it writes first after a checkpoint, and splits huge pages that it
//! writes. Everything that is not known to be unwritten counts as written: mappings made, moved or inherited since, other
//! address spaces. So what has become of a process in the meantime (exec, fork, a new one with its number) does not
//! matter.
//!
//! Where there is no such thing, pages are compared with the parent image by their checksums
//! ([`super::Known::compare`]).
//!
//! The descriptor has to live from one checkpoint to the next; when it is closed, tracking ends, and the next image is
//! compared or full. It is used again then: closing it has the kernel lift the protection of every page (24 ms of 1 GB),
//! and a new one protects them all anew, where few have lost it.
#![forbid(unsafe_code)]

use super::scan::{self, regions};
use super::{Memory, PAGE, Range, Run, RunKind};
use crate::sys::{pagemap, uffd};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The mapping is registered for tracking (`PAGE_IS_WPALLOWED`).
const TRACKED: u64 = 1 << 0;

/// Tracks one address space.
#[derive(Debug)]
pub struct Tracker(OwnedFd);

impl Tracker {
    /// From a descriptor that [`super::descriptor::make`] made for [`super::descriptor::Purpose::Writes`], now or at an
    /// earlier checkpoint.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The descriptor, to be kept until the next checkpoint.
    pub fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// The descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Begins a new count: from now on, writes to these ranges are remembered. To be called after [`scan_since`] and
    /// while the process stands still; when what was scanned does not become a complete image, the tracker is worth
    /// nothing any more. What cannot be tracked (mappings that the program itself watches) is left out, which costs
    /// nothing but time at the next checkpoint.
    ///
    /// False: nothing was tracked. The descriptor is of another address space (the process has executed a program since),
    /// and a new one is needed.
    ///
    /// # Errors
    /// The address space of the process is gone; `Unsupported` when the kernel cannot do it.
    pub fn arm(&self, memory: &Memory, ranges: &[Range]) -> Result<bool> {
        let query = pagemap::Query {
            flags: pagemap::SCAN_WP_MATCHING | pagemap::SCAN_CHECK_WPASYNC,
            all_of: pagemap::WRITTEN,
            any_of: pagemap::PRESENT | pagemap::SWAPPED,
            ..pagemap::Query::default()
        };
        let mut any = false;
        let mut room = vec![pagemap::Region::default(); scan::REGIONS];
        for range in ranges.iter().filter(|r| !r.hugetlb()) {
            match uffd::register(self.0.as_fd(), range.start, range.end - range.start, uffd::MODE_WP) {
                Ok(()) => any = true,
                Err(Errno::EBUSY | Errno::EINVAL | Errno::EPERM) => {
                    log::debug!("writes to {:#x}-{:#x} cannot be tracked", range.start, range.end);
                    continue;
                }
                // Nobody has the descriptor's address space any more.
                Err(Errno::ESRCH | Errno::ENOMEM) => return Ok(false),
                Err(e) => {
                    let what = format!("track writes of process {}", memory.pid());
                    return Err(Error::from(e).context(what));
                }
            }
            // Reports are of no interest, but without a place for them the kernel takes a short way: it does not look at
            // categories, and marks every page that is not there.
            match regions(memory, range.start, range.end, &query, &mut room, drop) {
                Ok(()) => {}
                // It was registered, but elsewhere.
                Err(Errno::EPERM) => return Ok(false),
                Err(e) => {
                    let what = format!("write-protect pages of process {}", memory.pid());
                    return Err(Error::from(e).context(what));
                }
            }
        }
        Ok(any)
    }
}

/// As [`super::scan`]; runs that were not written since [`Tracker::arm`] are [`RunKind::Unchanged`]. The tracker need not
/// be at hand, but must not have been closed.
///
/// # Errors
/// As [`super::scan`].
pub fn scan_since(memory: &Memory, ranges: &[Range]) -> Result<Vec<Run>> {
    let (mut all, mut room) = (Vec::new(), vec![pagemap::Region::default(); scan::REGIONS]);
    for range in ranges.iter().filter(|r| r.start < r.end) {
        if range.file_pages {
            all.extend(scan::whole(memory, range)?);
            continue;
        }
        match one(memory, range, &mut room) {
            Ok(mut runs) => all.append(&mut runs),
            Err(Errno::ENOTTY | Errno::ENOSYS | Errno::EINVAL) => {
                all.append(&mut scan::scan(memory, std::slice::from_ref(range))?);
            }
            Err(e) => {
                let what = format!("look for written pages of process {}", memory.pid());
                return Err(Error::from(e).context(what));
            }
        }
    }
    Ok(all)
}

fn one(memory: &Memory, range: &Range, room: &mut [pagemap::Region]) -> std::result::Result<Vec<Run>, Errno> {
    let file = if range.backed { pagemap::FILE } else { 0 };
    let query = |guard: u64| pagemap::Query {
        none_of: pagemap::PFNZERO | file,
        any_of: pagemap::PRESENT | pagemap::SWAPPED,
        report: TRACKED | pagemap::WRITTEN | pagemap::HUGE | pagemap::SWAPPED | guard,
        ..pagemap::Query::default()
    };
    let mut runs = Vec::new();
    let mut look = |query: pagemap::Query, runs: &mut Vec<Run>| {
        regions(memory, range.start, range.end, &query, room, |region| push(runs, range, region))
    };
    let mut scanned = look(query(pagemap::GUARD), &mut runs);
    if scanned == Err(Errno::EINVAL) {
        // No guards before Linux 6.15.
        runs.clear();
        scanned = look(query(0), &mut runs);
    }
    scanned.map(|()| runs)
}

fn push(runs: &mut Vec<Run>, range: &Range, region: pagemap::Region) {
    let is = |category: u64| region.categories & category != 0;
    // A mapping of a file marks pages that were given up after they had been protected as if they were swapped out.
    let doubtful = is(pagemap::SWAPPED) && range.backed;
    let kind = if is(pagemap::GUARD) {
        RunKind::Guard
    } else if is(TRACKED) && !is(pagemap::WRITTEN) && !doubtful {
        RunKind::Unchanged
    } else {
        RunKind::Data
    };
    let pages = (region.end - region.start) / PAGE;
    scan::push(runs, Run { start: region.start, pages, kind, huge: is(pagemap::HUGE), backed: range.backed });
}
