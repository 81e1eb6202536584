//! Tests of scanning, against what programs do to their memory.

use super::testing::{Program, range};
use super::{HUGE, PAGE, Range, Run, RunKind, scan};

/// First page (counted from the range's start) and number of pages of each run.
fn shape(runs: &[Run], range: &Range) -> Vec<(u64, u64)> {
    runs.iter().map(|r| ((r.start - range.start) / PAGE, r.pages)).collect()
}

/// Both ways of scanning, which have to agree but for the kernel's zeros and the marks of huge pages.
fn both(program: &Program, range: &Range) -> Vec<(u64, u64)> {
    let memory = program.memory();
    let fast = shape(&scan(&memory, std::slice::from_ref(range)).unwrap(), range);
    let slow = shape(&super::scan::slow(&memory, range).unwrap(), range);
    assert_eq!(fast, slow);
    fast
}

#[test]
fn only_pages_that_the_program_made_are_found() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(100);
    assert_eq!(both(&p, &r), []);
    p.run(&format!("put({}, 1, [0, 1, 2, 50, 99])", r.start));
    assert_eq!(both(&p, &r), [(0, 3), (50, 1), (99, 1)]);
    p.run(&format!("advise({} + P, 1, 4)", r.start));
    assert_eq!(both(&p, &r), [(0, 1), (2, 1), (50, 1), (99, 1)]);
}

#[test]
fn pages_that_were_only_read_are_the_kernels() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(10);
    p.run(&format!("put({}, 1, [3])", r.start));
    p.run(&format!("digest({}, 10)", r.start));
    assert_eq!(shape(&scan(&p.memory(), &[r]).unwrap(), &r), [(3, 1)]);
}

#[test]
fn of_a_private_file_only_changed_pages_are_found() {
    let Some(mut p) = Program::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7u8; 8 * PAGE as usize]).unwrap();
    let start = p.number(&format!("filemap({:?}, 8)", path.to_str().unwrap()));
    let r = Range { backed: true, ..range(start, 8) };
    p.run(&format!("digest({start}, 8)"));
    assert_eq!(both(&p, &r), []);
    p.run(&format!("put({start}, 1, [2, 3])"));
    assert_eq!(both(&p, &r), [(2, 2)]);
    // Also those of the file, where that will not be there.
    let all = Range { file_pages: true, ..r };
    assert_eq!(shape(&scan(&p.memory(), &[all]).unwrap(), &all), [(0, 8)]);
    // Those as well that nobody has touched, but none behind the end of the file.
    let start = p.number(&format!("filemap({:?}, 20)", path.to_str().unwrap()));
    let all = Range { backed: true, file_pages: true, ..range(start, 20) };
    assert_eq!(shape(&scan(&p.memory(), &[all]).unwrap(), &all), [(0, 8)]);
    std::fs::write(&path, b"").unwrap();
    assert_eq!(scan(&p.memory(), &[all]).unwrap(), []);
}

/// After 512 regions the kernel begins anew, and may tell where that was instead of where it ended.
#[test]
fn many_pages_far_apart_are_found_once() {
    let Some(mut p) = Program::start() else { return };
    for count in [511, 512, 513, 1000, 2048, 2500] {
        let r = p.anon(count * 2);
        p.run(&format!("put({}, 1, range(0, {}, 2))", r.start, count * 2));
        let expected: Vec<_> = (0..count).map(|n| (n * 2, 1)).collect();
        assert_eq!(both(&p, &r), expected);
    }
}

#[test]
fn guards_are_told_apart() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(10);
    p.run(&format!("put({}, 1, range(10))", r.start));
    p.send(&format!("advise({} + 4 * P, 2, 102)", r.start));
    if p.answer().starts_with("failed") {
        eprintln!("skipped: the kernel has no MADV_GUARD_INSTALL (Linux 6.13)");
        return;
    }
    let runs = scan(&p.memory(), &[r]).unwrap();
    let kinds: Vec<_> = runs.iter().map(|r| (r.kind, r.pages)).collect();
    assert_eq!(kinds, [(RunKind::Data, 4), (RunKind::Guard, 2), (RunKind::Data, 4)]);
}

#[test]
fn huge_pages_are_told_apart() {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if enabled.is_empty() || enabled.contains("[never]") {
        eprintln!("skipped: the kernel has no transparent huge pages");
        return;
    }
    let Some(mut p) = Program::start() else { return };
    let whole = p.anon(4 * 512);
    let start = whole.start.next_multiple_of(HUGE);
    p.run(&format!("advise({start}, 512, 14); advise({start} + 512 * P, 512, 15)"));
    p.run(&format!("put({start}, 1, range(1024))"));
    let r = Range { huge: true, ..range(start, 1024) };
    let runs = scan(&p.memory(), &[r]).unwrap();
    let marks: Vec<_> = runs.iter().map(|r| (r.pages, r.huge)).collect();
    assert_eq!(marks, [(512, true), (512, false)]);
}

#[test]
fn a_process_that_is_gone_is_named() {
    let Some(p) = Program::start() else { return };
    let (memory, pid) = (p.memory(), p.pid());
    drop(p);
    let e = scan(&memory, &[range(1 << 20, 10)]).unwrap_or_default();
    assert_eq!(e, []);
    let e = super::Memory::open(&super::testing::procfs(), pid).unwrap_err();
    assert_eq!(e.kind, airlock_wire::error::Kind::NoSuchEntity);
    assert!(e.message.contains(&pid.to_string()), "{e}");
}
