//! Reading an index that may have been forged.
#![forbid(unsafe_code)]

use super::encode::{ENTRY, HEADER, OBJECT, SUM_AT, checksum, compression_number};
use super::{Entry, Index, MAGIC, Place, VERSION};
use crate::checkpoint::image::Compression;
use crate::checkpoint::pages::{Object, PAGE, SumKind, UNIT};
use airlock_wire::error::{Error, Kind, Result};

/// Positions are below this.
const POSITION_MAX: u64 = 1 << 63;

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Serde, format!("the page index is damaged: {what}"))
}

/// Reads numbers off the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(n).ok_or_else(|| damaged("it ends too early"))?;
        self.0 = rest;
        Ok(front)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| damaged("it ends too early"))
    }
    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

/// The inverse of [`super::object_number`]; `None` for a kind that there is not.
pub(in crate::checkpoint::pages) fn known_object(kind: u32, number: u32) -> Option<Object> {
    match kind {
        0 => Some(Object::Memory(number)),
        1 => Some(Object::Shared(number)),
        2 => Some(Object::File(number)),
        _ => None,
    }
}

fn object(kind: u32, number: u32) -> Result<Object> {
    known_object(kind, number).ok_or_else(|| damaged(format_args!("an object is of kind {kind}")))
}

fn compression(number: u8) -> Result<Compression> {
    [Compression::None, Compression::Lz4, Compression::Zstd]
        .into_iter()
        .find(|c| compression_number(*c) == number)
        .ok_or_else(|| damaged("unknown kind of compression"))
}

impl Index {
    /// Reads an encoded index. Nothing in it is believed: what comes out has entries that are in order, lie in the page
    /// data as far as the index says how long that is, and refer to objects that come before.
    ///
    /// # Errors
    /// Kind `Serde`, with what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut c = Cursor(bytes);
        if bytes.is_empty() {
            return Err(damaged("it is empty"));
        }
        if c.take(MAGIC.len()).ok() != Some(&MAGIC[..]) {
            return Err(damaged("it does not begin as page indexes do; this may be another kind of file"));
        }
        let (major, minor) = (c.u16()?, c.u16()?);
        if major != VERSION.0 {
            let known = format!("{}.{}", VERSION.0, VERSION.1);
            return Err(Error::new(
                Kind::Unsupported,
                format!("the page index has format {major}.{minor}, and this airlock reads {known}"),
            ));
        }
        let page = c.u32()?;
        if u64::from(page) != PAGE {
            let text =
                format!("the page index is of a machine with pages of {page} bytes; here they have {PAGE}");
            return Err(Error::new(Kind::Unsupported, text));
        }
        let id = c.array()?;
        let parent = Some(c.array()?).filter(|p| *p != [0; 16]);
        let (data_len, seed) = (c.u64()?, c.u64()?);
        let sum_kind = SumKind::from_number(c.u8()?).ok_or_else(|| damaged("unknown kind of checksums"))?;
        let compression = compression(c.u8()?)?;
        if c.u16()? != 0 {
            return Err(damaged("reserved bytes of the header are used"));
        }
        let (objects, entries, sums) = (c.u32()?, c.u64()?, c.u64()?);
        let size = [(u64::from(objects), OBJECT), (entries, ENTRY), (sums, sum_kind.width())]
            .iter()
            .try_fold(HEADER as u64, |sum, (n, each)| n.checked_mul(*each as u64)?.checked_add(sum));
        if size != Some(bytes.len() as u64) {
            let want = size.map_or("absurdly many".to_owned(), |s| s.to_string());
            return Err(damaged(format_args!(
                "it has {} bytes instead of {want}; it may be cut",
                bytes.len()
            )));
        }
        if c.u64()? != checksum(bytes) {
            return Err(damaged(format_args!("its checksum (at byte {SUM_AT}) does not fit")));
        }
        let mut index = Self { id, parent, data_len, compression, sum_kind, seed, ..Self::default() };
        index.read_objects(&mut c, objects, entries, sums)?;
        index.sums = c.0.to_vec();
        Ok(index)
    }

    fn read_objects(&mut self, c: &mut Cursor<'_>, objects: u32, entries: u64, sums: u64) -> Result<()> {
        let mut heads = Cursor(c.take(objects as usize * OBJECT)?);
        let (mut entries_left, mut sum) = (entries, 0);
        for _ in 0..objects {
            let object = object(heads.u32()?, heads.u32()?)?;
            let count = heads.u64()?;
            if self.contains(object) {
                return Err(damaged(format_args!("{object} is listed twice")));
            }
            entries_left = entries_left
                .checked_sub(count)
                .ok_or_else(|| damaged(format_args!("{object} has more entries than there are")))?;
            let mut list: Vec<Entry> = Vec::with_capacity(count as usize);
            for _ in 0..count {
                let after = list.last().map_or(0, Entry::end);
                let entry = self.read_entry(c, after, &mut sum).map_err(|e| e.context(object))?;
                list.push(entry);
            }
            self.push(object, list);
        }
        if entries_left != 0 {
            return Err(damaged("there are more entries than its objects have"));
        }
        let needed = if self.sum_kind == SumKind::None { 0 } else { sum };
        if needed != sums {
            return Err(damaged(format_args!("it has {sums} checksums instead of {needed}")));
        }
        self.check_overlaps()
    }

    fn read_entry(&self, c: &mut Cursor<'_>, after: u64, sum: &mut u64) -> Result<Entry> {
        let (start, pages) = (c.u64()?, u64::from(c.u32()?));
        let (place, flags, reserved) = (c.u8()?, c.u8()?, c.u16()?);
        let (offset, extra) = (c.u64()?, c.u64()?);
        let bad = |what: &str| damaged(format_args!("entry for position {start:#x}: {what}"));
        if flags > 1 || reserved != 0 {
            return Err(bad("unknown flags"));
        }
        let end = pages.checked_mul(PAGE).and_then(|n| start.checked_add(n)).filter(|e| *e <= POSITION_MAX);
        if pages == 0 || start % PAGE != 0 || end.is_none() {
            return Err(bad("not a range of pages"));
        }
        if start < after {
            return Err(bad("it overlaps the one before it, or is out of order"));
        }
        let inside = |len: u64| offset.checked_add(len).is_some_and(|end| end <= self.data_len);
        let other = |e: u64| object((e >> 32) as u32, e as u32);
        let first = *sum;
        let place = match place {
            0 => Place::Zero,
            1 if offset % PAGE != 0 => return Err(bad("its data is not on a page boundary")),
            1 if !inside(pages * PAGE) => return Err(bad("its data lies behind the end")),
            1 => Place::Raw { offset },
            2 if self.compression == Compression::None => return Err(bad("compressed, but not known how")),
            2 if pages > UNIT => return Err(bad("too many pages compressed in one piece")),
            2 if extra == 0 || extra >= pages * PAGE || !inside(extra) => {
                return Err(bad("its compressed data lies behind the end, or is longer than its content"));
            }
            2 => Place::Packed { offset, len: extra as u32 },
            3 => {
                let object = other(extra)?;
                if !self.contains(object) {
                    return Err(bad("it refers to an object that does not come before it"));
                }
                Place::Like(object)
            }
            4 if self.parent.is_none() => return Err(bad("it refers to a parent image, and there is none")),
            4 => Place::Parent(other(extra)?),
            other => return Err(bad(&format!("unknown place {other}"))),
        };
        let entry = Entry { start, pages, huge: flags == 1, place, sum: first };
        if entry.has_sums() {
            // Bounded: each is paid for with bytes that were counted.
            *sum = sum.checked_add(pages).ok_or_else(|| bad("absurdly many pages"))?;
        }
        Ok(entry)
    }

    /// No byte of page data belongs to two entries: what differs at dump must not change together at restore, and an
    /// index of a few bytes must not unfold into more content than there is data.
    fn check_overlaps(&self) -> Result<()> {
        let span = |entry: &Entry| match entry.place {
            Place::Raw { offset } => Some((offset, entry.pages * PAGE)),
            Place::Packed { offset, len } => Some((offset, u64::from(len))),
            _ => None,
        };
        let mut spans: Vec<_> = self.objects.iter().flat_map(|(_, e)| e).filter_map(span).collect();
        spans.sort_unstable();
        let mut end = 0;
        for (offset, len) in spans {
            if offset < end {
                return Err(damaged(format_args!("two entries use the data at offset {offset}")));
            }
            end = offset + len;
        }
        Ok(())
    }
}
