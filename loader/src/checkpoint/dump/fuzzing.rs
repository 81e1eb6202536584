//! What the fuzz target `procfs` in `fuzz/` runs, kept here so that `cargo test` compiles it and replays the corpus.
#![forbid(unsafe_code)]

use super::files::fdinfo::FdInfo;
use super::files::fuzzing as files;
use super::{aio, net, smaps, status, task, timers, waits};
use crate::procfs::{Stat, parse_nspid, tty_name};
use crate::worker::procfs_dump;

/// Reads `data` as each of the files of procfs that say what a process is: names, paths and contents in them are the
/// process' own.
pub fn procfs(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ =
        (Stat::parse(&text), parse_nspid(&text), status::Status::parse(&text), status::Ending::parse(&text));
    let _ = tty_name(data.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b)));
    if let Ok(vmas) = smaps::parse(&text) {
        assert!(vmas.len() <= text.lines().count());
    }
    let _ = timers::parse(&text, |tid| (tid % 2 == 0).then_some(tid));
    let _ = FdInfo::parse(&text);
    files::files(data, &text);
    let _ = (task::parse_limits(&text), aio::parse(0x1000, data), waits::fuzz(&text));
    net::fuzz(&text);
    procfs_dump::fuzz(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Files of this process, whatever the kernel is.
    fn own() -> Vec<Vec<u8>> {
        let names = [
            "stat",
            "status",
            "smaps",
            "limits",
            "mountinfo",
            "cgroup",
            "maps",
            "timers",
            "sched",
            "fdinfo/0",
            "net/igmp",
        ];
        let read = |name: &&str| std::fs::read(format!("/proc/self/{name}")).ok();
        names.iter().filter_map(read).filter(|text| !text.is_empty()).collect()
    }

    #[test]
    fn the_corpus_is_replayed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/procfs");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            procfs(&std::fs::read(entry.path()).unwrap());
            seen += 1;
        }
        assert!(seen > 0, "{dir} is empty");
        own().iter().for_each(|text| procfs(text));
    }

    proptest! {
        #[test]
        fn damaged_files_are_read_or_refused(which in any::<proptest::sample::Index>(),
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), prop_oneof![any::<u8>(), Just(b'\n'), Just(b' '), Just(b'9')]), 1..30)) {
            let files = own();
            let mut text = files[which.index(files.len())].clone();
            text.truncate(1 << 14);
            for (at, byte) in damage {
                let at = at.index(text.len());
                text[at] = byte;
            }
            procfs(&text);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[-0-9a-f: .()/%x]{0,200}") {
            procfs(&bytes);
            procfs(text.as_bytes());
        }
    }
}
