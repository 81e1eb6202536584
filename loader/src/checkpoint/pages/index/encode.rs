//! Writing an index.
//!
//! All numbers are little-endian.
//!
//! ```text
//! header   0 "ALPAGES\0"       8 major u16, minor u16     12 page size u32 (4096)
//!         16 image [u8; 16]   32 parent [u8; 16] (zeros: none)
//!         48 bytes of page data u64                       56 seed of the checksums u64
//!         64 kind of checksums u8 (0 none, 1 XXH3, 2 BLAKE3), compression u8 (0 none, 1 lz4, 2 zstd), u16 0
//!         68 objects u32      72 entries u64              80 checksums u64
//!         88 checksum of all that follows and of the 88 bytes before: low 64 bits of XXH3 (128 bits), seed 0
//! objects  16 bytes each: kind u32 (0 address space, 1 memory object, 2 file), number u32, entries u64
//! entries  32 bytes each, in the order of the objects:
//!          position u64, pages u32, place u8 (0 zeros, 1 as they are, 2 compressed, 3 like another object, 4 in the
//!          parent), flags u8 (1 huge), u16 0, offset u64, extra u64 (2: bytes; 3 and 4: object kind << 32 | number)
//! sums     8 or 16 bytes for each page of places 1 and 2, in the order of the entries
//! ```
#![forbid(unsafe_code)]

use super::{Entry, Index, MAGIC, Place, VERSION};
use crate::checkpoint::image::Compression;
use crate::checkpoint::pages::{Object, PAGE};
use twox_hash::XxHash3_128;

pub(super) const HEADER: usize = 96;
pub(super) const OBJECT: usize = 16;
pub(super) const ENTRY: usize = 32;
/// Where the checksum is in the header.
pub(super) const SUM_AT: usize = 88;

pub(in crate::checkpoint::pages) fn object_number(object: Object) -> (u32, u32) {
    match object {
        Object::Memory(n) => (0, n),
        Object::Shared(n) => (1, n),
        Object::File(n) => (2, n),
    }
}

pub(super) fn compression_number(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Lz4 => 1,
        Compression::Zstd => 2,
    }
}

/// The checksum of an encoded index.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (head, rest) = bytes.split_at_checked(HEADER).unwrap_or((bytes, &[]));
    let head = XxHash3_128::oneshot(head.get(..SUM_AT).unwrap_or_default()) as u64;
    XxHash3_128::oneshot_with_seed(head, rest) as u64
}

/// Puts the checksum into an encoded index. False when it is too short to have one.
pub(in crate::checkpoint::pages) fn seal(bytes: &mut [u8]) -> bool {
    let sum = checksum(bytes).to_le_bytes();
    bytes.get_mut(SUM_AT..HEADER).map(|place| place.copy_from_slice(&sum)).is_some()
}

impl Index {
    /// Writes it as `pages_meta.img` (or the section of the statefile) holds it.
    pub fn encode(&self) -> Vec<u8> {
        let entries: usize = self.objects.iter().map(|(_, e)| e.len()).sum();
        let size = HEADER + self.objects.len() * OBJECT + entries * ENTRY + self.sums.len();
        let mut out = Vec::with_capacity(size);
        out.extend(MAGIC);
        out.extend(VERSION.0.to_le_bytes());
        out.extend(VERSION.1.to_le_bytes());
        out.extend((PAGE as u32).to_le_bytes());
        out.extend(self.id);
        out.extend(self.parent.unwrap_or_default());
        out.extend(self.data_len.to_le_bytes());
        out.extend(self.seed.to_le_bytes());
        out.extend([self.sum_kind.number(), compression_number(self.compression), 0, 0]);
        out.extend((self.objects.len() as u32).to_le_bytes());
        out.extend((entries as u64).to_le_bytes());
        let sums = self.sums.len().checked_div(self.sum_kind.width()).unwrap_or(0);
        out.extend((sums as u64).to_le_bytes());
        out.extend([0; 8]);
        for (object, entries) in &self.objects {
            let (kind, number) = object_number(*object);
            out.extend(kind.to_le_bytes());
            out.extend(number.to_le_bytes());
            out.extend((entries.len() as u64).to_le_bytes());
        }
        self.objects.iter().flat_map(|(_, entries)| entries).for_each(|e| write_entry(e, &mut out));
        out.extend(&self.sums);
        seal(&mut out);
        out
    }
}

fn write_entry(entry: &Entry, out: &mut Vec<u8>) {
    let object = |o: Object| {
        let (kind, number) = object_number(o);
        u64::from(kind) << 32 | u64::from(number)
    };
    let (place, offset, extra) = match entry.place {
        Place::Zero => (0, 0, 0),
        Place::Raw { offset } => (1, offset, 0),
        Place::Packed { offset, len } => (2, offset, u64::from(len)),
        Place::Like(o) => (3, 0, object(o)),
        Place::Parent(o) => (4, 0, object(o)),
    };
    out.extend(entry.start.to_le_bytes());
    // `Index` never holds longer entries: the writer cuts them, the decoder reads 32 bits.
    out.extend((entry.pages as u32).to_le_bytes());
    out.extend([place, u8::from(entry.huge), 0, 0]);
    out.extend(offset.to_le_bytes());
    out.extend(extra.to_le_bytes());
}
