//! Tests of hugetlbfs. They need a few huge pages (`vm.nr_hugepages`), which no machine has unless somebody wants them.

use super::testing::{Program, procfs, range};
use super::{
    Chain, Content, HUGE, Image, Memory, Object, Options, PAGE, Range, Target, Task, Writer, fill, fill_file,
    scan,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// True when `n` huge pages of 2 MiB are free.
fn have(n: u64) -> bool {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let enough = free.ok().and_then(|t| t.trim().parse::<u64>().ok()).is_some_and(|f| f >= n);
    if !enough {
        eprintln!("skipped: needs {n} free huge pages (vm.nr_hugepages)");
    }
    enough
}

fn save(object: Object, content: Content<'_>) -> Chain {
    let mut writer = Writer::new(tempfile::tempfile().unwrap(), 0, Options::default()).unwrap();
    writer.add(&[Task { object, content, like: None, known: None }], None).unwrap();
    let (file, index) = writer.finish().unwrap();
    Chain::new(vec![Image { index, file, base: 0 }]).unwrap()
}

#[test]
fn private_huge_pages_come_back() {
    if !have(4) {
        return;
    }
    let (Some(mut a), Some(mut b)) = (Program::start(), Program::start()) else { return };
    let (at, object) = (0x1000_0000_0000, Object::Memory(0));
    for p in [&mut a, &mut b] {
        p.run(&format!("anon(1536, {at}, 0x40022)"));
    }
    a.run(&format!("put({at}, 4, range(512, 600))"));
    let ranges = [Range { page_size: HUGE, ..range(at, 1536) }];
    let memory = a.memory();
    let runs = scan(&memory, &ranges).unwrap();
    assert_eq!(runs.iter().map(|r| ((r.start - at) / PAGE, r.pages)).collect::<Vec<_>>(), [(512, 512)]);
    let chain = save(object, Content::Memory(&memory, &runs));
    let to = Memory::open(&procfs(), b.pid()).unwrap();
    let layout = chain.layout(object).unwrap();
    let target = Target { object, layout: &layout, memory: &to, ranges: &ranges, uffd: None };
    fill(&chain, &[target], 0, None).unwrap();
    assert_eq!(b.run(&format!("r = same({at}, 4, range(512, 600))")), "[]");
    let runs = scan(&to, &ranges).unwrap();
    assert_eq!(runs.iter().map(|r| r.pages).sum::<u64>(), 512, "no more than what was there");
}

#[test]
fn shared_huge_pages_come_back() {
    if !have(4) {
        return;
    }
    let len = 2 * HUGE;
    let make = || {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB;
        let file = File::from(memfd_create(c"huge", flags).unwrap());
        file.set_len(len).unwrap();
        file
    };
    let (from, to, object) = (make(), make(), Object::Shared(0));
    let mapping = crate::sys::mapping::HugeFile::map(from.as_fd(), len).unwrap();
    mapping.write(HUGE + 5, b"something").unwrap();
    assert!(mapping.write(len - 3, b"something").is_err());
    drop(mapping);
    let chain = save(object, Content::File(from.as_fd(), len));
    fill_file(&chain, object, to.as_fd(), len, 0, None).unwrap();
    let mut bytes = [0; 9];
    to.read_exact_at(&mut bytes, HUGE + 5).unwrap();
    assert_eq!(&bytes, b"something");
}

#[test]
fn only_files_of_hugetlbfs_are_mapped() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(HUGE).unwrap();
    assert!(crate::sys::mapping::HugeFile::map(file.as_fd(), HUGE).is_err());
}
