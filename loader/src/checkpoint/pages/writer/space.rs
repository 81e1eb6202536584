//! Which bytes of the pages file are whose.
#![forbid(unsafe_code)]

use crate::checkpoint::pages::{PAGE, UNIT};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of an extent at most: 2 MiB.
const EXTENT_MAX: u64 = 512;

/// Hands out extents of page data to threads. Offsets are counted from the start of the page data.
#[derive(Debug, Default)]
pub(super) struct Space {
    end: AtomicU64,
    /// What threads did not use up.
    rest: Mutex<Vec<Range<u64>>>,
    extent: u64,
}

impl Space {
    /// Chooses the size of extents for a piece of work: large ones keep neighbours together, small ones leave small
    /// holes at the end.
    pub(super) fn set_extent(&mut self, pages: u64, threads: usize) {
        let share = if threads < 2 { UNIT } else { pages / (threads as u64 * 8) };
        self.extent = share.clamp(UNIT / 4, EXTENT_MAX) * PAGE;
    }

    /// An extent of at least a page.
    pub(super) fn take(&self) -> Range<u64> {
        let mut rest = self.rest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(range) = rest.pop() {
            return range;
        }
        let start = self.end.fetch_add(self.extent, Ordering::Relaxed);
        start..start + self.extent
    }

    /// So many bytes (a multiple of the page size), from no extent.
    pub(super) fn take_exactly(&self, bytes: u64) -> u64 {
        self.end.fetch_add(bytes, Ordering::Relaxed)
    }

    /// Takes back what was not used.
    pub(super) fn give_back(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let end = self.end.get_mut();
        let rest = self.rest.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        rest.push(range);
        // What lies at the end is no part of the file after all.
        rest.sort_unstable_by_key(|r| r.start);
        while let Some(last) = rest.last().filter(|r| r.end == *end) {
            *end = last.start;
            rest.pop();
        }
    }

    /// Length of the page data.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_at_the_end_shortens_the_file() {
        let mut space = Space::default();
        space.set_extent(1 << 20, 2);
        let (a, b) = (space.take(), space.take());
        assert_eq!(space.end(), 2 * EXTENT_MAX * PAGE);
        space.give_back(a.start + PAGE..a.end);
        assert_eq!(space.end(), 2 * EXTENT_MAX * PAGE);
        space.give_back(b);
        assert_eq!(space.end(), PAGE);
        assert_eq!(space.take().start, PAGE);
    }
}
