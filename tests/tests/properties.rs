//! Boot messages and configurations that are nearly valid: refused or taken, never a panic.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{bundle, fuzzing, leaks};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;

fn configurations() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut all = vec![bundle::default_config(&["/bin/true"]).to_string()];
    let profile: Value =
        serde_json::from_slice(&std::fs::read(dir.join("seccomp-docker-default.json")).unwrap()).unwrap();
    let mut filtered = bundle::default_config(&["/bin/true"]);
    filtered["linux"]["seccomp"] = profile;
    all.push(filtered.to_string());
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("config-") {
            all.push(std::fs::read_to_string(entry.path()).unwrap());
        }
    }
    assert!(all.len() >= 5);
    all
}

/// Bytes near a valid input: cut, with bytes changed, or with a piece repeated.
fn near(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..5);
    (prop::sample::select(inputs), changes).prop_map(|(mut bytes, changes)| {
        for (at, byte, kind) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, byte),
                _ => {
                    let piece = bytes[at..bytes.len().min(at + usize::from(byte))].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        bytes
    })
}

/// Values that configurations are not made for.
fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[a-zA-Z_/.:,=-]{0,20}".prop_map(Value::from),
        "(/|\\.\\.|a|\u{0}|\n){0,200}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        prop::collection::vec(any::<i32>(), 0..4).prop_map(|v| json!(v)),
        prop::collection::vec(any::<String>(), 0..4).prop_map(|v| json!(v)),
    ]
}

/// All places in a document.
fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let key = key.replace('~', "~0").replace('/', "~1");
                pointers(member, &format!("{at}/{key}"), all);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                pointers(item, &format!("{at}/{i}"), all);
            }
        }
        _ => {}
    }
}

/// A configuration in which some values are odd.
fn odd_configuration() -> impl Strategy<Value = String> {
    let parsed: Vec<(Value, Vec<String>)> = configurations()
        .iter()
        .map(|text| {
            let value: Value = serde_json::from_str(text).unwrap();
            let mut places = Vec::new();
            pointers(&value, "", &mut places);
            (value, places)
        })
        .collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), odd()), 1..4);
    (prop::sample::select(parsed), changes).prop_map(|((mut value, places), changes)| {
        for (at, odd) in changes {
            // An earlier change may have taken the place away.
            if let Some(place) = value.pointer_mut(&places[at.index(places.len())]) {
                *place = odd;
            }
        }
        value.to_string()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn boot_messages_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzzing::boot(&bytes);
    }

    #[test]
    fn boot_messages_near_a_valid_one(bytes in near(vec![fuzzing::boot_seed()])) {
        fuzzing::boot(&bytes);
    }

    #[test]
    fn configurations_near_a_valid_one(bytes in near(configurations().into_iter().map(String::into_bytes).collect())) {
        fuzzing::bundle(&bytes);
    }

    #[test]
    fn configurations_with_odd_values(text in odd_configuration()) {
        fuzzing::bundle(text.as_bytes());
    }
}

#[test]
fn valid_inputs_are_read_and_leave_no_descriptor() {
    assert!(airlock_wire::codec::decode::<airlock_wire::api::boot::BootArgs>(&fuzzing::boot_seed()).is_ok());
    let me = std::process::id() as i32;
    let null = |all: Vec<String>| all.iter().filter(|d| d.ends_with("-> /dev/null")).count();
    let before = null(leaks::descriptors(me));
    for _ in 0..100 {
        fuzzing::boot(&fuzzing::boot_seed());
    }
    // The other tests of this program have some open too, at most eight each.
    assert!(null(leaks::descriptors(me)) <= before + 8 * 4);
    for text in configurations() {
        fuzzing::bundle(text.as_bytes());
    }
}

/// The seed in `fuzz/corpus` is what a fuzzer starts from: it has to be of today's format.
#[test]
fn corpora_replay() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let seed = corpus.join("boot/seed");
    if std::env::var_os("AIRLOCK_WRITE_SEEDS").is_some() {
        std::fs::write(&seed, fuzzing::boot_seed()).unwrap();
    }
    assert!(
        std::fs::read(&seed).unwrap() == fuzzing::boot_seed(),
        "run this test with AIRLOCK_WRITE_SEEDS=1"
    );
    for (target, run) in [("boot", fuzzing::boot as fn(&[u8])), ("bundle", fuzzing::bundle)] {
        for file in std::fs::read_dir(corpus.join(target)).unwrap() {
            run(&std::fs::read(file.unwrap().path()).unwrap());
        }
    }
}
