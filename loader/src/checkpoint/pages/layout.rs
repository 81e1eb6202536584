//! What an object consists of, with all references followed.
#![forbid(unsafe_code)]

use super::{HUGE, PAGE};
use std::ops::Range;

/// Pages of an object, one after the other, of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Address or offset of the first page.
    pub start: u64,
    /// How many, at least 1.
    pub pages: u64,
    /// They were parts of huge pages.
    pub huge: bool,
    /// Where the first one is.
    pub source: Source,
}

/// Where a [`Piece`] comes from. `image` counts from the newest image to its ancestors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeros.
    Zero,
    /// A pages file, as they are.
    Raw {
        /// Which image.
        image: u32,
        /// Offset in its page data.
        offset: u64,
        /// Number of the first page's checksum.
        sum: u64,
    },
    /// A compressed piece of a pages file.
    Packed {
        /// Which image.
        image: u32,
        /// Offset of the compressed data.
        offset: u64,
        /// Bytes of it.
        len: u32,
        /// Pages that it holds.
        pages: u32,
        /// Which of them comes first.
        skip: u32,
        /// Number of its first page's checksum.
        sum: u64,
    },
}

/// All pages of an object: ascending, not overlapping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pieces: Vec<Piece>,
}

impl Piece {
    /// Position after the last page.
    pub fn end(&self) -> u64 {
        self.start + self.pages * PAGE
    }

    /// The part of it in a range of positions (page-aligned, not empty, inside).
    #[must_use]
    pub fn part(&self, range: Range<u64>) -> Self {
        let by = (range.start - self.start) / PAGE;
        let pages = (range.end - range.start) / PAGE;
        let source = match self.source {
            Source::Zero => Source::Zero,
            Source::Raw { image, offset, sum } => {
                Source::Raw { image, offset: offset + by * PAGE, sum: sum + by }
            }
            Source::Packed { image, offset, len, pages, skip, sum } => {
                Source::Packed { image, offset, len, pages, skip: skip + by as u32, sum }
            }
        };
        Self { start: range.start, pages, huge: self.huge, source }
    }

    /// True when `next` goes on where this ends, here and in the source.
    fn continues_in(&self, next: &Self) -> bool {
        let joins = match (self.source, next.source) {
            (Source::Zero, Source::Zero) => true,
            (Source::Raw { image: a, offset: x, sum: s }, Source::Raw { image: b, offset: y, sum: t }) => {
                a == b && x + self.pages * PAGE == y && s + self.pages == t
            }
            _ => false,
        };
        joins && self.end() == next.start && self.huge == next.huge
    }
}

impl Layout {
    /// The pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.pieces.iter().map(|p| p.pages).sum()
    }

    /// True when it has none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Address ranges that have pages, joined where they touch.
    pub fn spans(&self) -> Vec<Range<u64>> {
        let mut spans: Vec<Range<u64>> = Vec::new();
        for piece in &self.pieces {
            match spans.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end(),
                _ => spans.push(piece.start..piece.end()),
            }
        }
        spans
    }

    /// Addresses of huge pages that are there as a whole, ascending.
    pub(super) fn huge_pages(&self) -> Vec<u64> {
        let (mut whole, mut block, mut seen) = (Vec::new(), u64::MAX, 0);
        for piece in self.pieces.iter().filter(|p| p.huge && p.source != Source::Zero) {
            let mut at = piece.start;
            while at < piece.end() {
                let start = at - at % HUGE;
                let end = start.saturating_add(HUGE).min(piece.end());
                seen = if start == block { seen } else { 0 } + (end - at);
                block = start;
                if seen == HUGE {
                    whole.push(block);
                }
                at = end;
            }
        }
        whole
    }

    /// Adds a piece behind all others.
    pub(super) fn push(&mut self, piece: Piece) {
        match self.pieces.last_mut() {
            Some(last) if last.continues_in(&piece) => last.pages += piece.pages,
            _ => self.pieces.push(piece),
        }
    }

    /// The parts of pieces in a range of positions.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let first = self.pieces.partition_point(|p| p.end() <= range.start);
        let end = range.end;
        self.pieces
            .iter()
            .skip(first)
            .take_while(move |p| p.start < end)
            .map(move |p| p.part(p.start.max(range.start)..p.end().min(range.end)))
    }

    /// Takes out everything in a range of positions, and gives what was there.
    pub fn cut(&mut self, range: Range<u64>) -> Vec<Piece> {
        if range.start >= range.end {
            return Vec::new();
        }
        let first = self.pieces.partition_point(|p| p.end() <= range.start);
        let behind = self.pieces.partition_point(|p| p.start < range.end);
        if first >= behind {
            return Vec::new();
        }
        let taken: Vec<Piece> = self.within(range.clone()).collect();
        let mut stay = Vec::with_capacity(2);
        if let Some(p) = self.pieces.get(first).filter(|p| p.start < range.start) {
            stay.push(p.part(p.start..range.start));
        }
        if let Some(p) = self.pieces.get(behind - 1).filter(|p| p.end() > range.end) {
            stay.push(p.part(range.end..p.end()));
        }
        self.pieces.splice(first..behind, stay);
        taken
    }

    /// Puts pieces (ascending) at their positions; what was there before is replaced.
    pub fn put(&mut self, pieces: &[Piece]) {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return };
        for piece in pieces {
            self.cut(piece.start..piece.end());
        }
        let at = self.pieces.partition_point(|p| p.start < first.start);
        if self.pieces.get(at).is_none_or(|p| p.start >= last.end()) {
            self.pieces.splice(at..at, pieces.iter().copied());
        } else {
            self.pieces.extend_from_slice(pieces);
            self.pieces.sort_unstable_by_key(|p| p.start);
        }
    }

    /// Splits in two: pieces in `ranges` (ascending), and the rest.
    pub fn split(&self, ranges: &[Range<u64>]) -> (Self, Self) {
        let (mut inside, mut outside) = (Self::default(), Self::default());
        for piece in &self.pieces {
            let mut at = piece.start;
            let first = ranges.partition_point(|r| r.end <= at);
            let near = ranges.iter().skip(first).take_while(|r| r.start < piece.end());
            for range in near.filter(|r| r.start < r.end) {
                let (from, to) = (range.start.max(at), range.end.min(piece.end()));
                if at < from {
                    outside.push(piece.part(at..from));
                }
                if from < to {
                    inside.push(piece.part(from..to));
                    at = to;
                }
            }
            if at < piece.end() {
                outside.push(piece.part(at..piece.end()));
            }
        }
        (inside, outside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(pages: &[bool]) -> Layout {
        let mut l = Layout::default();
        for (i, _) in pages.iter().enumerate().filter(|(_, p)| **p) {
            let source = Source::Raw { image: 0, offset: i as u64 * PAGE, sum: i as u64 };
            l.push(Piece { start: i as u64 * PAGE, pages: 1, huge: false, source });
        }
        l
    }

    /// Positions of pages, each with the page of the pages file that belongs there.
    fn content(l: &Layout) -> Vec<(u64, u64)> {
        let each = |p: &Piece| {
            let Source::Raw { offset, sum, .. } = p.source else { panic!("not raw") };
            assert_eq!(offset / PAGE, sum);
            let start = p.start;
            (0..p.pages).map(move |i| (start / PAGE + i, sum + i)).collect::<Vec<_>>()
        };
        l.pieces().iter().flat_map(each).collect()
    }

    proptest! {
        #[test]
        fn cutting_and_putting_back_loses_nothing(
            pages in proptest::collection::vec(any::<bool>(), 1..40),
            from in 0u64..45,
            len in 0u64..45,
        ) {
            let whole = layout(&pages);
            let range = from * PAGE..(from + len) * PAGE;
            let mut rest = whole.clone();
            let cut = rest.cut(range.clone());
            let inside = |page: &(u64, u64)| range.contains(&(page.0 * PAGE));
            let (want_cut, want_rest): (Vec<_>, Vec<_>) = content(&whole).into_iter().partition(inside);
            prop_assert_eq!(content(&Layout { pieces: cut.clone() }), want_cut);
            prop_assert_eq!(content(&rest), want_rest);
            rest.put(&cut);
            prop_assert_eq!(content(&rest), content(&whole));
            let (a, b) = whole.split(std::slice::from_ref(&range));
            prop_assert_eq!(content(&a), content(&Layout { pieces: cut }));
            prop_assert_eq!(a.pages() + b.pages(), whole.pages());
        }

        #[test]
        fn what_is_put_replaces_what_was_there(
            pages in proptest::collection::vec(any::<bool>(), 1..40),
            at in 0u64..45,
            len in 1u64..10,
        ) {
            let mut l = layout(&pages);
            let source = Source::Raw { image: 0, offset: 1000 * PAGE, sum: 1000 };
            l.put(&[Piece { start: at * PAGE, pages: len, huge: false, source }]);
            let mut want: Vec<_> =
                content(&layout(&pages)).into_iter().filter(|(p, _)| !(at..at + len).contains(p)).collect();
            want.extend((0..len).map(|i| (at + i, 1000 + i)));
            want.sort_unstable();
            prop_assert_eq!(content(&l), want);
        }
    }

    #[test]
    fn pages_that_follow_each_other_are_one_piece() {
        assert_eq!(layout(&[true; 8]).pieces().len(), 1);
        assert_eq!(layout(&[true, true, false, true]).pieces().len(), 2);
        assert_eq!(layout(&[true, false, true]).spans(), vec![0..PAGE, 2 * PAGE..3 * PAGE]);
    }
}
