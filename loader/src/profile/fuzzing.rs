//! What the fuzz target `profile` in `fuzz/` runs, kept here so that `cargo test` compiles it and replays the corpus.
#![forbid(unsafe_code)]

use super::flame::Flame;
use super::pprof::{Function, Label, Profile};
use super::samples::{Record, parse};

/// Reads `data` as records of perf_event_open(2), and as the names of functions in stacks that become a profile and a flame
/// graph.
pub fn profile(data: &[u8]) {
    for callchain in [false, true] {
        if let Some(Record::Sample(sample)) = parse(data, callchain) {
            let sp = sample.user.map_or(0, |user| user.sp);
            let _ = (
                sample.word(sp),
                sample.word(u64::MAX),
                sample.word(sp.wrapping_add(sample.stack.len() as u64)),
            );
        }
    }
    let text = String::from_utf8_lossy(data);
    let (mut flame, mut profile) =
        (Flame::default(), Profile::new(&[("samples", "count")], (("cpu", "ns"), 1)));
    for (n, line) in (0..).zip(text.lines().take(64)) {
        let names: Vec<&str> = line.split(';').take(300).collect();
        flame.add(names.iter().copied(), n + 1);
        let function =
            |name: &&str| Function { name: (*name).to_owned(), file: line.to_owned(), offset: u64::MAX - n };
        let stack: Vec<Function> = names.iter().map(function).collect();
        profile.add(
            &stack,
            &[i64::MIN, -1],
            &[("thread", Label::Text(line.to_owned())), ("n", Label::Number(-1))],
        );
    }
    profile.comment(text.clone());
    assert!(!profile.encode().is_empty());
    let svg = flame.to_svg(&text, "samples");
    // Nothing of it can be more than text.
    assert_eq!((svg.matches("<script>").count(), svg.matches("<svg").count()), (1, 1));
    assert_eq!(svg.matches("<title>").count(), svg.matches("</g>").count());
    assert!(svg.ends_with("</svg>\n") && !svg.contains(|c: char| c.is_control() && c != '\n'));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_corpus_is_replayed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/profile");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            profile(&std::fs::read(entry.path()).unwrap());
            seen += 1;
        }
        assert!(seen > 0, "{dir} is empty");
    }

    proptest! {
        #[test]
        fn names_stay_text(text in "([<>&;\"'\\]a/!\\[\u{0}-\u{1f}]|script|svg|CDATA|\\PC){0,80}") {
            profile(text.as_bytes());
        }

        /// The counts of a record are what could lead out of it.
        #[test]
        fn records_are_read_or_refused(counts in proptest::collection::vec(prop_oneof![0u64..20, any::<u64>()], 0..40), kind in 0u32..12) {
            let mut record = kind.to_ne_bytes().to_vec();
            record.extend([0; 4]);
            counts.iter().for_each(|n| record.extend(n.to_ne_bytes()));
            profile(&record);
        }
    }
}
