//! The page index: what is stored of which object, and where in the pages file.
#![forbid(unsafe_code)]

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub(super) use decode::known_object;
pub(super) use encode::object_number;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use encode::seal;

use super::{Object, PAGE, SumKind};
use crate::checkpoint::image::Compression;
use std::collections::BTreeMap;
use std::ops::Range;

/// First bytes of an encoded index.
pub const MAGIC: [u8; 8] = *b"ALPAGES\0";
/// Version of the encoding. A reader of another major version refuses.
pub const VERSION: (u16, u16) = (1, 0);

/// Pages of an object, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Address or offset of the first page.
    pub start: u64,
    /// How many, at least 1.
    pub pages: u64,
    /// They were parts of huge pages.
    pub huge: bool,
    /// Where they are.
    pub place: Place,
    /// Index of the first page's checksum ([`Index::sum`]); for [`Place::Raw`] and [`Place::Packed`].
    pub sum: u64,
}

/// Where pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zeros where a file would show otherwise.
    Zero,
    /// In the pages file at this offset, as they are.
    Raw {
        /// Page-aligned.
        offset: u64,
    },
    /// In the pages file, compressed in one piece.
    Packed {
        /// Offset of the piece.
        offset: u64,
        /// Its length, bytes.
        len: u32,
    },
    /// They equal those of an earlier object of this index at the same position.
    Like(Object),
    /// They equal those of an object of the parent image at the same position.
    Parent(Object),
}

/// What a pages file contains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Identity of the image.
    pub id: [u8; 16],
    /// Identity of the parent image, if pages are there.
    pub parent: Option<[u8; 16]>,
    /// Bytes of page data.
    pub data_len: u64,
    /// How pages are compressed, if any are.
    pub compression: Compression,
    /// What the checksums are.
    pub sum_kind: SumKind,
    /// Seed of the checksums.
    pub seed: u64,
    /// Entries of each object, ascending and not overlapping; objects in the order in which they were written.
    pub objects: Vec<(Object, Vec<Entry>)>,
    pub(super) sums: Vec<u8>,
    pub(super) by_object: BTreeMap<Object, usize>,
}

/// How pages of an index are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// All of them.
    pub pages: u64,
    /// With data in the pages file.
    pub stored: u64,
    /// Zeros.
    pub zero: u64,
    /// Equal to those of another object.
    pub like: u64,
    /// In a parent image.
    pub parent: u64,
    /// Parts of huge pages.
    pub huge: u64,
}

impl Entry {
    /// Position after the last page.
    pub fn end(&self) -> u64 {
        self.start + self.pages * PAGE
    }

    /// True when `next` goes on where this ends, here and where the pages are.
    pub(super) fn joins(&self, next: &Self) -> bool {
        let places = match (self.place, next.place) {
            (Place::Raw { offset: a }, Place::Raw { offset: b }) => {
                a + self.pages * PAGE == b && self.sum + self.pages == next.sum
            }
            (Place::Packed { .. }, _) => false,
            (a, b) => a == b,
        };
        places
            && self.end() == next.start
            && self.huge == next.huge
            && self.pages + next.pages <= u64::from(u32::MAX)
    }

    /// True when the pages have checksums of their own in this index.
    pub fn has_sums(&self) -> bool {
        matches!(self.place, Place::Raw { .. } | Place::Packed { .. })
    }
}

impl Index {
    /// Entries of an object; none when it is not there.
    pub fn entries(&self, object: Object) -> &[Entry] {
        let found = self.by_object.get(&object).and_then(|i| self.objects.get(*i));
        found.map(|(_, e)| e.as_slice()).unwrap_or_default()
    }

    /// True when the object is known, even without any page.
    pub fn contains(&self, object: Object) -> bool {
        self.by_object.contains_key(&object)
    }

    /// Parts of an object's entries in a range of positions, in order: entry and the positions of it that are meant.
    pub fn within(&self, object: Object, range: Range<u64>) -> impl Iterator<Item = (&Entry, Range<u64>)> {
        let entries = self.entries(object);
        let first = entries.partition_point(|e| e.end() <= range.start);
        entries
            .iter()
            .skip(first)
            .take_while(move |e| e.start < range.end)
            .map(move |e| (e, e.start.max(range.start)..e.end().min(range.end)))
    }

    /// The checksum of page `number` (of those with data), if there is one.
    pub fn sum(&self, number: u64) -> Option<&[u8]> {
        let width = self.sum_kind.width();
        let from = usize::try_from(number).ok()?.checked_mul(width)?;
        self.sums.get(from..from.checked_add(width)?)
    }

    /// Counts pages by where they are.
    pub fn totals(&self) -> Totals {
        let mut t = Totals::default();
        for entry in self.objects.iter().flat_map(|(_, entries)| entries) {
            t.pages += entry.pages;
            t.huge += if entry.huge { entry.pages } else { 0 };
            *match entry.place {
                Place::Zero => &mut t.zero,
                Place::Raw { .. } | Place::Packed { .. } => &mut t.stored,
                Place::Like(_) => &mut t.like,
                Place::Parent(_) => &mut t.parent,
            } += entry.pages;
        }
        t
    }

    /// Adds an object with its entries, which are ascending and do not overlap.
    pub(super) fn push(&mut self, object: Object, entries: Vec<Entry>) {
        self.by_object.insert(object, self.objects.len());
        self.objects.push((object, entries));
    }
}
