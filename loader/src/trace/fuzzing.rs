//! What the fuzz target `trace` in `fuzz/` runs, kept here so that `cargo test` compiles it and replays the corpus.
#![forbid(unsafe_code)]

use super::afterwards::Found;
use super::config;
use super::event::Event;
use super::message::{Known, Teller};
use super::points::{CONTEXT, Point};
use super::{strace, wire};
use airlock_wire::api::trace::{PointConfig, SessionConfig};

/// A session with every point and every field.
fn everything() -> SessionConfig {
    let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>().into();
    let point = |point: Point| PointConfig {
        name: point.name(),
        optional_fields: texts(point.optional()),
        context_fields: texts(&CONTEXT),
    };
    let points: Vec<_> = Point::all().into_iter().map(point).collect();
    SessionConfig {
        name: "Default".to_owned(),
        points: points.into(),
        ignore_missing: true,
        ..SessionConfig::default()
    }
}

/// Reads `data` as the configuration of a session and as a record, and encodes what is told of that.
pub fn trace(data: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<SessionConfig>(data)
        && let Ok((plan, _)) = config::plan(&config)
    {
        let _ = (plan.needs(), plan.probes(), plan.syscalls());
    }
    let Some(event) = Event::parse(data) else { return };
    let Ok((plan, _)) = config::plan(&everything()) else { return };
    let mut teller = Teller::new(plan);
    teller.know(Known { number: 1, cid: "c".to_owned(), root: true, cgroup: 1, init: Some(3) });
    for message in teller.tell(&event, &Found::default(), i64::MAX) {
        let mut bytes = Vec::new();
        wire::protobuf(&message.fields, &mut bytes);
        assert!(wire::parsed(&message.fields).is_some());
        assert!(strace::line(&message).is_none_or(|l| l.matches(['\n', '\r']).count() == 1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::bpf::record;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_corpus_is_replayed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/trace");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            trace(&std::fs::read(entry.path()).unwrap());
            seen += 1;
        }
        assert!(seen > 0, "{dir} is empty");
    }

    proptest! {
        #[test]
        fn records_are_told_whatever_is_in_them(
            kind in 1u32..6, number in 0u64..500, mut head in proptest::collection::vec(any::<u8>(), record::HEAD as usize),
            items in proptest::collection::vec((prop_oneof![1u16..20, 64u16..74, 132u16..136], proptest::collection::vec(any::<u8>(), 0..60)), 0..12),
        ) {
            head[..4].copy_from_slice(&kind.to_ne_bytes());
            head[record::ARGS as usize..][..8].copy_from_slice(&number.to_ne_bytes());
            for (tag, content) in items {
                head.extend(tag.to_ne_bytes());
                head.extend((content.len() as u16).to_ne_bytes());
                head.extend([0; 4]);
                head.extend(content);
                head.resize(head.len().next_multiple_of(8), 0);
            }
            trace(&head);
        }
    }
}
