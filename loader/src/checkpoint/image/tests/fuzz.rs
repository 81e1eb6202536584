//! The fuzz target's code on its corpus and on inputs near it.
use super::super::fuzzing::{self, seed, state, statefile};
use super::*;
use proptest::prelude::*;
use std::path::PathBuf;

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/statefile")
}

fn images() -> Vec<Vec<u8>> {
    seeds().into_iter().map(|(_, bytes)| bytes).collect()
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("plain", seed(Compression::None, None)),
        ("lz4", seed(Compression::Lz4, None)),
        ("zstd", seed(Compression::Zstd, None)),
        ("sealed", seed(Compression::None, Some(b"key"))),
    ]
}

/// Images of format 1 that were made once: whoever changes how they are read breaks everybody's images.
#[test]
fn corpus_replays() {
    if std::env::var_os("AIRLOCK_WRITE_CORPUS").is_some() {
        std::fs::create_dir_all(corpus()).unwrap();
        seeds().iter().for_each(|(name, bytes)| std::fs::write(corpus().join(name), bytes).unwrap());
    }
    let read = |name: &str| std::fs::read(corpus().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    for file in std::fs::read_dir(corpus()).unwrap() {
        statefile(&std::fs::read(file.unwrap().path()).unwrap());
    }
    for (name, compression) in
        [("plain", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)]
    {
        let (old, new) =
            (read_all(&read(name), None).unwrap(), read_all(&seed(compression, None), None).unwrap());
        assert_eq!(old[1..], new[1..], "{name}");
    }
    read_all(&read("sealed"), Some(b"key")).unwrap();
    // The repairing half of the target really gets beyond the checksums.
    let mut changed = seed(Compression::Lz4, None);
    let at = changed.windows(5).position(|bytes| bytes == b"conte").unwrap();
    changed[at] ^= 1;
    assert!(read_all(&changed, None).is_err());
    let repaired = fuzzing::repair(&changed).unwrap();
    assert_ne!(read_all(&repaired, None).unwrap()[2], read_all(&read("lz4"), None).unwrap()[2]);
}

/// The state of a saved program.
fn saved_states() -> Vec<Vec<u8>> {
    let dir = corpus().with_file_name("state");
    std::fs::read_dir(dir).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn saved_states_are_read() {
    for text in saved_states() {
        state(&text);
        serde_json::from_slice::<crate::checkpoint::state::SandboxState>(&text).unwrap().check().unwrap();
    }
}

/// Bytes near a valid input: cut, with bytes changed, or with a piece repeated.
fn near(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..6u8), 0..6);
    (prop::sample::select(seeds), changes).prop_map(|(mut bytes, changes)| {
        for (at, value, how) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, value),
                2 => bytes.extend_from_within(at..),
                _ => bytes[at] = value,
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_statefiles(data in prop_oneof![4 => near(images()), 1 => any::<Vec<u8>>()]) {
        statefile(&data);
    }

    #[test]
    fn arbitrary_states(data in near(saved_states())) {
        state(&data);
    }

    /// Digits become other digits: the text stays JSON, and what it says changes.
    #[test]
    fn states_with_other_numbers(changes in prop::collection::vec((any::<prop::sample::Index>(), b'0'..=b'9'), 1..20)) {
        for mut text in saved_states() {
            let digits: Vec<usize> = (0..text.len()).filter(|at| text[*at].is_ascii_digit()).collect();
            for (at, digit) in &changes {
                text[digits[at.index(digits.len())]] = *digit;
            }
            state(&text);
        }
    }

    #[test]
    fn arbitrary_chunks(data: Vec<u8>, len in 0..20_000usize) {
        for compression in [Compression::Lz4, Compression::Zstd] {
            if let Ok(content) = compression.decompress(&data, len) {
                prop_assert_eq!(content.len(), len);
            }
        }
    }

    #[test]
    fn chunks_come_back(data in prop::collection::vec(0..4u8, 0..20_000), compression in prop::sample::select(vec![Compression::Lz4, Compression::Zstd])) {
        if let Some(packed) = compression.compress(&data).unwrap() {
            prop_assert!(packed.len() < data.len());
            prop_assert_eq!(compression.decompress(&packed, data.len()).unwrap(), data);
        }
    }
}
