//! Tests of the index: what is written is read, and nothing forged is believed.

use super::encode::{ENTRY, HEADER, OBJECT, seal};
use super::*;
use airlock_wire::error::Kind;
use proptest::prelude::*;

fn entry(start: u64, pages: u64, place: Place, sum: u64) -> Entry {
    Entry { start: start * PAGE, pages, huge: false, place, sum }
}

fn sample() -> Index {
    let mut index = Index {
        id: [7; 16],
        parent: Some([9; 16]),
        data_len: 20 * PAGE,
        compression: Compression::Lz4,
        seed: 42,
        ..Index::default()
    };
    index.push(
        Object::Memory(3),
        vec![
            Entry { huge: true, ..entry(1, 4, Place::Raw { offset: 0 }, 0) },
            entry(5, 2, Place::Zero, 4),
            entry(10, 10, Place::Packed { offset: 4 * PAGE, len: 5000 }, 4),
            entry(30, 7, Place::Parent(Object::Shared(1)), 14),
        ],
    );
    index.push(
        Object::Memory(4),
        vec![
            entry(1, 2, Place::Like(Object::Memory(3)), 14),
            entry(3, 3, Place::Raw { offset: 8 * PAGE }, 14),
        ],
    );
    index.push(Object::Shared(0), Vec::new());
    index.sums = (0..17 * 8).map(|b| b as u8).collect();
    index
}

fn refused(bytes: &[u8], with: &str) {
    let e = Index::decode(bytes).unwrap_err();
    assert!(e.message.contains(with), "{e}");
}

/// Where the `n`-th entry of [`sample`] begins.
fn at(n: usize) -> usize {
    HEADER + 3 * OBJECT + n * ENTRY
}

#[test]
fn what_is_written_is_read() {
    let index = sample();
    let read = Index::decode(&index.encode()).unwrap();
    assert_eq!(read, index);
    assert_eq!(read.sum(16), Some(&index.sums[128..136]));
    assert_eq!(read.sum(17), None);
    let totals = read.totals();
    assert_eq!((totals.pages, totals.stored, totals.zero, totals.like, totals.parent), (28, 17, 2, 2, 7));
    assert_eq!(totals.huge, 4);
}

#[test]
fn parts_of_entries_are_found_by_position() {
    let index = sample();
    let found = |from: u64, to: u64| -> Vec<_> {
        let all = index.within(Object::Memory(3), from * PAGE..to * PAGE);
        all.map(|(_, r)| (r.start / PAGE, r.end / PAGE)).collect()
    };
    assert_eq!(found(0, 100), [(1, 5), (5, 7), (10, 20), (30, 37)]);
    assert_eq!(found(4, 6), [(4, 5), (5, 6)]);
    assert_eq!(found(7, 10), []);
    assert_eq!(index.within(Object::File(0), 0..PAGE).count(), 0);
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = sample().encode();
    for len in 0..bytes.len() {
        assert!(Index::decode(&bytes[..len]).is_err(), "{len}");
    }
    let mut longer = bytes;
    longer.push(0);
    refused(&longer, "bytes instead of");
}

#[test]
fn every_changed_bit_is_noticed() {
    let bytes = sample().encode();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            assert!(Index::decode(&changed).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn files_of_other_kinds_and_versions_are_named() {
    refused(b"", "empty");
    refused(b"\x7fELF, and so on and so on", "another kind of file");
    let mut bytes = sample().encode();
    bytes[8] = 2;
    let e = Index::decode(&bytes).unwrap_err();
    assert_eq!(e.kind, Kind::Unsupported);
    assert!(e.message.contains("format 2.0") && e.message.contains("reads 1.0"), "{e}");
}

#[test]
fn forged_entries_are_refused() {
    type Forge = fn(&mut [u8]);
    let cases: [(&str, Forge); 12] = [
        ("out of order", |b| b[at(1)..at(1) + 8].copy_from_slice(&PAGE.to_le_bytes())),
        ("not a range of pages", |b| b[at(0)] = 1),
        ("not a range of pages", |b| b[at(0) + 8..at(0) + 12].fill(0)),
        ("not a range of pages", |b| b[at(0)..at(0) + 8].copy_from_slice(&(u64::MAX - 4095).to_le_bytes())),
        ("behind the end", |b| b[at(0) + 16..at(0) + 24].copy_from_slice(&(19 * PAGE).to_le_bytes())),
        ("not on a page boundary", |b| b[at(0) + 16] = 1),
        ("unknown place", |b| b[at(0) + 12] = 77),
        ("unknown flags", |b| b[at(0) + 13] = 2),
        ("longer than its content", |b| {
            b[at(2) + 24..at(2) + 32].copy_from_slice(&(10 * PAGE).to_le_bytes())
        }),
        ("does not come before", |b| b[at(4) + 24] = 4),
        ("two entries use", |b| b[at(5) + 16..at(5) + 24].copy_from_slice(&PAGE.to_le_bytes())),
        ("listed twice", |b| b[HEADER + OBJECT + 4] = 3),
    ];
    for (with, forge) in cases {
        let mut bytes = sample().encode();
        forge(&mut bytes);
        seal(&mut bytes);
        refused(&bytes, with);
    }
}

#[test]
fn a_small_file_cannot_claim_to_be_large() {
    let mut bytes = sample().encode();
    bytes[72..80].copy_from_slice(&u64::MAX.to_le_bytes());
    seal(&mut bytes);
    refused(&bytes, "bytes instead of");
    let mut bytes = sample().encode();
    // More entries for the first object than there are.
    bytes[HEADER + 8] = 200;
    seal(&mut bytes);
    refused(&bytes, "more entries than there are");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_never_believed(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Index::decode(&bytes).is_err());
    }

    /// What passes with its checksum put right keeps the promises that others rely on.
    #[test]
    fn forged_indexes_keep_the_promises_or_are_refused(
        changes in proptest::collection::vec((8usize..400, any::<u8>()), 1..6)
    ) {
        let mut bytes = sample().encode();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        seal(&mut bytes);
        if let Ok(index) = Index::decode(&bytes) {
            crate::checkpoint::pages::fuzzing::check(&index);
        }
    }
}
