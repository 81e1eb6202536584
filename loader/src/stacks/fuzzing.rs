//! What the fuzz target `stacks` in `fuzz/` runs, kept here so that `cargo test` compiles it and replays the corpus.
//!
//! A DWARF expression that never ends is found by a fuzzer as a time-out: it is known, and [`super::limit_effort`] is for that.
#![forbid(unsafe_code)]

use super::elf::{Elf, start_in_header};
use super::names::{demangle, parse_map};
use super::{Frame, MAX_FRAMES, Space, maps};
use std::rc::Rc;

/// Where the file is said to be mapped.
const AT: u64 = 0x5000_0000;

/// Reads `data` as everything that a container can put before an unwinder: a memory map, the map of a just-in-time compiler,
/// a function's name, a file with its tables, and the stack that is walked with them.
pub fn stacks(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for mapping in text.lines().take(1000).filter_map(maps::parse) {
        assert!(mapping.start < mapping.end && !mapping.path.contains(|c: char| c.is_control()));
    }
    let compiled = parse_map(data);
    assert!(compiled.is_sorted_by_key(|(start, ..)| *start));
    for name in text.lines().take(100) {
        for name in [demangle(name), demangle(&format!("_Z{name}")), demangle(&format!("_R{name}"))] {
            assert!(!name.contains(|c: char| c.is_control()));
        }
    }
    let _ = start_in_header(data, AT, AT + 100);
    let tables = Elf::of_tables("tables".to_owned(), data, 0x1000);
    for elf in [Some(tables), Elf::of_memory("file".to_owned(), data)].into_iter().flatten() {
        walk(Rc::new(elf), data);
    }
}

fn walk(elf: Rc<Elf>, data: &[u8]) {
    let length = 1 << 20;
    for at in (0..length).step_by(length as usize / 64) {
        let _ = elf.function(at).map(|(name, _)| demangle(name));
        let _ = elf.function_start(at);
    }
    let mut space = Space::of_file(elf, AT..AT + length);
    let word = |address: u64| {
        let at = usize::try_from(address.checked_sub(0x7000)?).ok()?;
        Some(u64::from_ne_bytes(*data.get(at..)?.first_chunk()?))
    };
    for n in 0..64 {
        let ip = AT + n * (length / 64) + n;
        let (frames, _) = space.unwind(Frame { ip, sp: 0x7000 + 8 * n, bp: 0x7100 }, word);
        assert!(frames.len() <= MAX_FRAMES);
        frames.iter().for_each(|frame| drop(space.find(*frame)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::ProcFs;
    use crate::sys::ptrace;
    use proptest::prelude::*;

    /// A whole ELF file with unwind tables, and names: the kernel's own.
    fn vdso() -> Vec<u8> {
        let procfs = ProcFs::new(std::fs::File::open("/proc").unwrap().into());
        let pid = std::process::id() as i32;
        let maps = maps::executable(&procfs, pid).unwrap();
        let mapping = maps.iter().find(|m| m.path == "[vdso]").unwrap();
        let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
        let read = ptrace::read_memory(pid, mapping.start, &mut bytes).unwrap();
        bytes.truncate(read);
        bytes
    }

    #[test]
    fn the_corpus_is_replayed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/stacks");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            stacks(&std::fs::read(entry.path()).unwrap());
            seen += 1;
        }
        assert!(seen > 0, "{dir} is empty");
        let whole = vdso();
        stacks(&whole);
        assert!(Elf::of_memory("vdso".to_owned(), &whole).is_some());
    }

    proptest! {
        #[test]
        fn damaged_files_are_walked_or_refused(damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..40), cut in any::<proptest::sample::Index>()) {
            let mut bytes = vdso();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            stacks(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            stacks(&bytes);
        }

        #[test]
        fn any_bytes_are_walked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            stacks(&bytes);
        }
    }
}
