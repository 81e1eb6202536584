//! The record of a working set: pages in the order in which the programs asked for them after a restore in the background.
//!
//! It lies beside an image as a file of its own, made by the first such restore and read by later ones, which bring these
//! pages in first. It is a hint and nothing depends on it: one that is damaged, or of another image, is not used.
//! All numbers are little-endian.
//!
//! ```text
//! header   0 "ALWSET\0\0", 8 generation of the image 16 bytes, 24 entries u32, 28 u32 0
//! entries  16 bytes each: kind u32 (0 address space, 1 memory object, 2 file), number u32, position u64
//! end      checksum u64: low half of XXH3 (128 bits) over all before it
//! ```
#![forbid(unsafe_code)]

use super::Object;
use super::background::Positions;
use super::index::{known_object, object_number};
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use twox_hash::XxHash3_128;

const MAGIC: [u8; 8] = *b"ALWSET\0\0";
const HEADER: usize = 32;
const ENTRY: usize = 16;
const SUM: usize = 8;
/// The most pages that are recorded, and read back.
pub const MAX: usize = 1 << 20;

/// The bytes of a record. What is beyond [`MAX`] is left out.
pub fn encode(generation: [u8; 16], order: &[(Object, u64)]) -> Vec<u8> {
    let order = order.get(..MAX).unwrap_or(order);
    let mut out = Vec::with_capacity(HEADER + order.len() * ENTRY + SUM);
    out.extend(MAGIC);
    out.extend(generation);
    out.extend((order.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    for (object, position) in order {
        let (kind, number) = object_number(*object);
        out.extend(kind.to_le_bytes());
        out.extend(number.to_le_bytes());
        out.extend(position.to_le_bytes());
    }
    let sum = XxHash3_128::oneshot(&out) as u64;
    out.extend(sum.to_le_bytes());
    out
}

/// Reads a record of the image with this generation. `None` for anything else.
pub fn decode(bytes: &[u8], generation: [u8; 16]) -> Option<Positions> {
    let (body, sum) = bytes.split_last_chunk::<SUM>()?;
    let (header, entries) = body.split_first_chunk::<HEADER>()?;
    let count = u32::from_le_bytes(*header.get(24..)?.first_chunk()?) as usize;
    let known = header.starts_with(&MAGIC) && header.get(8..24) == Some(&generation);
    if !known || count > MAX || entries.len() != count * ENTRY {
        return None;
    }
    if XxHash3_128::oneshot(body) as u64 != u64::from_le_bytes(*sum) {
        return None;
    }
    let entry = |bytes: &[u8]| {
        let (number, position) = bytes.split_first_chunk::<8>()?;
        let (kind, number) = number.split_first_chunk::<4>()?;
        let number = u32::from_le_bytes(*number.first_chunk()?);
        Some((known_object(u32::from_le_bytes(*kind), number)?, u64::from_le_bytes(*position.first_chunk()?)))
    };
    entries.chunks_exact(ENTRY).map(entry).collect()
}

/// Reads what `file` records of the image. `None` if that is nothing, or cannot be used.
pub fn read(file: &File, generation: [u8; 16]) -> Option<Positions> {
    let len = usize::try_from(file.metadata().ok()?.len()).ok()?;
    if len > HEADER + MAX * ENTRY + SUM {
        return None;
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).ok()?;
    decode(&bytes, generation)
}

/// Replaces what `file` records.
///
/// # Errors
/// I/O. Half a record is none.
pub fn write(file: &File, generation: [u8; 16], order: &[(Object, u64)]) -> Result<()> {
    let failed = |e: std::io::Error| Error::from(e).context("record the working set");
    file.set_len(0).map_err(failed)?;
    file.write_all_at(&encode(generation, order), 0).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_object() -> impl Strategy<Value = Object> {
        (0u32..3, any::<u32>()).prop_map(|(kind, number)| known_object(kind, number).unwrap())
    }

    proptest! {
        #[test]
        fn a_record_is_read_back(
            id: [u8; 16],
            order in prop::collection::vec((any_object(), any::<u64>()), 0..50),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut bytes = encode(id, &order);
            prop_assert_eq!(decode(&bytes, id), Some(order));
            let mut other = id;
            other[3] ^= 1;
            prop_assert_eq!(decode(&bytes, other), None);
            for len in 0..bytes.len() {
                prop_assert_eq!(decode(&bytes[..len], id), None);
            }
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert_eq!(decode(&bytes, id), None);
        }

        #[test]
        fn bytes_from_elsewhere_do_no_harm(bytes: Vec<u8>, id: [u8; 16]) {
            let _ = decode(&bytes, id);
        }
    }

    #[test]
    fn files_are_replaced_and_other_things_are_no_record() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read(&file, [1; 16]), None);
        let long: Vec<_> = (0..100).map(|n| (Object::Memory(0), n * 4096)).collect();
        write(&file, [1; 16], &long).unwrap();
        assert_eq!(read(&file, [1; 16]), Some(long));
        let short = vec![(Object::Shared(2), 0)];
        write(&file, [2; 16], &short).unwrap();
        assert_eq!((read(&file, [1; 16]), read(&file, [2; 16])), (None, Some(short)));
        let (read_end, _write_end) = nix::unistd::pipe().unwrap();
        assert_eq!(read(&File::from(read_end), [1; 16]), None);
        file.set_len(1 << 40).unwrap();
        assert_eq!(read(&file, [1; 16]), None);
    }
}
