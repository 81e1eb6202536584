//! What there is to do, cut into units.
#![forbid(unsafe_code)]

use super::{Content, Task, file_runs};
use crate::checkpoint::pages::{Entry, PAGE, Place, Run, RunKind, UNIT, unit};
use airlock_wire::error::Result;
use std::ops::Range;

/// Pages of an object that are read in one go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) pages: u64,
    pub(super) huge: bool,
    pub(super) backed: bool,
}

/// Segments of one task, a unit of pages at most.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) task: usize,
    pub(super) segments: Range<usize>,
    pub(super) pages: u64,
}

#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) segments: Vec<Segment>,
    pub(super) units: Vec<Unit>,
    /// Pages to look at.
    pub(super) pages: u64,
    /// Entries that are known without looking, with the number of the task.
    pub(super) unchanged: Vec<(usize, Entry)>,
}

pub(super) fn gather(tasks: &[Task<'_>]) -> Result<Work> {
    let mut work = Work::default();
    for (number, task) in tasks.iter().enumerate() {
        let files;
        let runs = match task.content {
            Content::Memory(_, runs) => runs,
            Content::File(fd, len) => {
                files = file_runs(fd, len).map_err(|e| e.context(task.object))?;
                files.as_slice()
            }
        };
        for run in runs {
            match run.kind {
                RunKind::Guard => {}
                RunKind::Data => work.add(number, run),
                RunKind::Unchanged => work.add_unchanged(number, task, run),
            }
        }
    }
    Ok(work)
}

impl Work {
    fn add(&mut self, task: usize, run: &Run) {
        for (from, to) in unit::cut(run.start, run.end()) {
            let pages = (to - from) / PAGE;
            self.pages += pages;
            self.segments.push(Segment { start: from, pages, huge: run.huge, backed: run.backed });
            let behind = self.segments.len();
            match self.units.last_mut() {
                // Scattered pages are written together.
                Some(last) if last.task == task && last.pages + pages <= UNIT => {
                    last.segments.end = behind;
                    last.pages += pages;
                }
                _ => self.units.push(Unit { task, segments: behind - 1..behind, pages }),
            }
        }
    }

    /// Pages that were not written since the parent image was made. Those that it does not have were zeros then; where
    /// zeros are stored they should be there, so they are looked at after all.
    fn add_unchanged(&mut self, number: usize, task: &Task<'_>, run: &Run) {
        let Some(known) = task.known else { return self.add(number, run) };
        let mut at = run.start;
        let gap = |work: &mut Self, from: u64, to: u64| {
            if run.backed && from < to {
                work.add(number, &Run { start: from, pages: (to - from) / PAGE, ..*run });
            }
        };
        for piece in known.layout.within(run.start..run.end()) {
            gap(self, at, piece.start);
            let place = Place::Parent(known.object);
            let entry = Entry { start: piece.start, pages: piece.pages, huge: run.huge, place, sum: 0 };
            match self.unchanged.last_mut() {
                Some((n, last)) if *n == number && last.joins(&entry) => last.pages += entry.pages,
                _ => self.unchanged.push((number, entry)),
            }
            at = piece.end();
        }
        gap(self, at, run.end());
    }
}
