//! What the fuzz target `pages` in `fuzz/` runs, kept here so that `cargo test` compiles it and replays the corpus.
//!
//! Arbitrary bytes are a page index, as they are and with the checksum put right; each function panics if a rule of the
//! implementation is broken.
#![forbid(unsafe_code)]
// A panic is how a fuzz target reports.
#![allow(clippy::missing_panics_doc, clippy::unwrap_used)]

use super::index::seal;
use super::pool::Buffer;
use super::{
    Chain, Content, Entry, Image, Index, Object, Options, PAGE, Place, SumKind, Task, UNIT, Writer, unit,
};
use crate::checkpoint::image::Compression;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// No more page data than this is made up for an index, bytes.
const LIMIT: u64 = 1 << 20;

fn file(len: u64) -> File {
    let file = File::from(memfd_create(c"pages", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// A small index with entries of every kind, and its page data.
pub fn seed(compression: Compression, sums: SumKind) -> (Vec<u8>, File) {
    let content = file(100 * PAGE);
    for page in (0..90).filter(|n| n % 7 != 0) {
        content.write_all_at(&vec![page as u8; PAGE as usize], page * PAGE).unwrap();
    }
    let options = Options { compression, sums, id: [3; 16], ..Options::default() };
    let mut writer = Writer::new(file(0), 0, options).unwrap();
    let task = |n| Task {
        object: Object::Shared(n),
        content: Content::File(content.as_fd(), 100 * PAGE),
        like: None,
        known: None,
    };
    writer.add(&[task(0), task(1)], None).unwrap();
    let (file, mut index) = writer.finish().unwrap();
    let other = |start: u64, place| Entry { start, pages: 3, huge: false, place, sum: 0 };
    let like = Place::Like(Object::Shared(1));
    index.push(Object::Memory(0), vec![other(PAGE, like), other(10 * PAGE, Place::Zero)]);
    (index.encode(), file)
}

/// The whole of it.
pub fn index(data: &[u8]) {
    if let Some(order) = super::working_set::decode(data, [3; 16]) {
        assert_eq!(super::working_set::encode([3; 16], &order), data);
    }
    read(data);
    let mut sealed = data.to_vec();
    if seal(&mut sealed) {
        read(&sealed);
    }
}

/// Reads an index and all that it refers to.
pub fn read(data: &[u8]) {
    let Ok(index) = Index::decode(data) else { return };
    assert_eq!(Index::decode(&index.encode()).unwrap(), index, "what is read can be written");
    check(&index);
    let entries: u64 = index.totals().pages;
    let (len, parent) = (index.data_len, index.parent);
    if len > LIMIT || entries > 4 * LIMIT / PAGE {
        return;
    }
    let image = |len| Image { index: index.clone(), file: file(len), base: 0 };
    let whole = Chain::new(vec![image(len)]);
    assert_eq!(whole.is_ok(), parent.is_none());
    assert!(len == 0 || Chain::new(vec![image(len - 1)]).is_err(), "a file that is too short is accepted");
    let Ok(chain) = whole else { return };
    let mut buffer = Buffer::new();
    for (object, entries) in &index.objects {
        let Ok(layout) = chain.layout(*object) else { continue };
        assert_eq!(layout.pages(), entries.iter().map(|e| e.pages).sum::<u64>());
        for piece in layout.pieces().iter().flat_map(unit::pieces) {
            if let Ok(pages) = chain.read(&piece, &mut buffer) {
                assert_eq!(pages.len() as u64, piece.pages * PAGE);
            }
        }
    }
}

/// What others rely on.
pub fn check(index: &Index) {
    let mut seen = Vec::new();
    for (object, entries) in &index.objects {
        let mut end = 0;
        for e in entries {
            assert!(e.pages > 0 && e.start % PAGE == 0 && e.start >= end);
            end = e.end();
            match e.place {
                Place::Raw { offset } => assert!(offset + e.pages * PAGE <= index.data_len),
                Place::Packed { offset, len } => {
                    assert!(offset + u64::from(len) <= index.data_len && e.pages <= UNIT);
                }
                Place::Like(other) => assert!(seen.contains(&other)),
                Place::Parent(_) => assert!(index.parent.is_some()),
                Place::Zero => {}
            }
            if e.has_sums() {
                assert!(index.sum(e.sum + e.pages - 1).is_some() || index.sum_kind == SumKind::None);
            }
        }
        seen.push(*object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn corpus() -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/pages");
        let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        files.map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn seeds_can_be_read() {
        for (compression, sums) in [
            (Compression::None, SumKind::Xxh3),
            (Compression::Lz4, SumKind::Blake3),
            (Compression::Zstd, SumKind::None),
        ] {
            let (bytes, file) = seed(compression, sums);
            let index = Index::decode(&bytes).unwrap();
            let totals = index.totals();
            assert_eq!((totals.stored, totals.like, totals.zero), (154, 3, 3));
            assert!(index.data_len <= LIMIT, "seeds are small enough to be read whole");
            // The references of the made-up object lead to pages that are there.
            let chain = Chain::new(vec![Image { index, file, base: 0 }]).unwrap();
            assert_eq!(chain.verify(|_| ()).unwrap(), 160);
            read(&bytes);
        }
    }

    #[test]
    fn the_corpus_breaks_nothing() {
        let corpus = corpus();
        assert!(
            corpus.iter().any(|bytes| Index::decode(bytes).is_ok()),
            "no input of the corpus is an index"
        );
        corpus.iter().for_each(|bytes| index(bytes));
    }

    proptest! {
        #[test]
        fn changed_inputs_of_the_corpus_break_nothing(
            input in any::<prop::sample::Index>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let corpus = corpus();
            let mut bytes = input.get(&corpus).clone();
            for (at, value) in changes {
                let len = bytes.len();
                bytes[at.index(len)] = value;
            }
            index(&bytes);
            index(&bytes[..cut.index(bytes.len())]);
        }
    }
}
