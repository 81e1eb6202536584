use super::*;
use crate::testing::LeakCheck;
use proptest::prelude::*;
use std::path::Path;

/// The seeds that `fuzz/corpus` was made from, and whatever a fuzzer has added since.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

fn transcripts() -> Vec<Vec<u8>> {
    let texts =
        [include_str!("../../tests/data/urpc-2022.txt"), include_str!("../../tests/data/urpc-2026.txt")];
    texts.iter().flat_map(|text| text.lines()).map(|line| line.as_bytes().to_vec()).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let echo = |text: &str| request("Fuzz.Echo", &text, 0);
    vec![
        script(&[(br#"{"method":"Fuzz.Echo","arg":"x"}"#.to_vec(), 0), (echo("y"), 0)]),
        script(&[
            (br#"{"method":"Fuzz.Bounce","arg":null}"#.to_vec(), 3),
            (request("Fuzz.Bounce", &(), 128), 128),
        ]),
        script(&[(request("Fuzz.Prepare", &airlock::PrepareArgs::default(), 0), 0)]),
        script(&[(request("Fuzz.Bounce", &(), 1), 0)]),
        script(&[(echo(&"long".repeat(300)), 0), (b"\n{".to_vec(), 1)]),
    ]
}

#[test]
fn corpora_replay() {
    let _leaks = LeakCheck::new();
    let count = |target: &str, run: fn(&[u8])| {
        let inputs = corpus(target);
        inputs.iter().for_each(|input| run(input));
        inputs.len()
    };
    assert!(count("json", json) >= 10);
    assert!(count("binary", binary) >= 5);
    assert!(count("stream", stream) >= 5);
    assert!(count("arguments", arguments) >= 20);
    assert!(count("container", container) >= 4);
    transcripts().iter().for_each(|line| json(line));
    seeds().iter().for_each(|seed| stream(seed));
}

/// Bytes near a valid input: cut, with bytes changed, or with a piece repeated.
fn near(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 0..4);
    (prop::sample::select(inputs), changes).prop_map(|(mut bytes, changes)| {
        for (at, value, how) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = value,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, value),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    })
}

/// The default argument of every method, in both dialects, behind its name.
fn default_arguments() -> Vec<Vec<u8>> {
    struct Defaults(Vec<Vec<u8>>);
    impl Visitor for Defaults {
        fn visit<M: Method + 'static>(&mut self) {
            let mut binary = format!("{}\n", M::NAME).into_bytes();
            let mut text = binary.clone();
            codec::encode_into(&M::Arg::default(), &mut binary).unwrap();
            json::encode(&M::Arg::default(), &mut text).unwrap();
            self.0.extend([binary, text]);
        }
    }
    let mut defaults = Defaults(Vec::new());
    api::visit_methods(&mut defaults);
    defaults.0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_arguments(data in near([default_arguments(), corpus("arguments")].concat())) {
        arguments(&data);
    }

    #[test]
    fn arbitrary_json(data in near(transcripts())) {
        json(&data);
    }

    #[test]
    fn arbitrary_bytes(data: Vec<u8>) {
        json(&data);
        binary(&data);
    }

    #[test]
    fn arbitrary_frames(data in near(seeds())) {
        binary(&data);
        binary(data.get(18..).unwrap_or_default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn arbitrary_streams(data in prop_oneof![near(seeds()), any::<Vec<u8>>()]) {
        let _leaks = LeakCheck::new();
        stream(&data);
    }
}
