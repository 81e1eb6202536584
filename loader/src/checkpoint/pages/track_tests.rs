//! Tests of tracking writes.

use super::descriptor::{self, Purpose};
use super::testing::{Program, range};
use super::track::{Tracker, scan_since};
use super::{PAGE, Range, Run, RunKind};
use crate::checkpoint::remote::Tracee;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A descriptor that tracks, or a note that there are none.
fn descriptor(p: &Program) -> Option<OwnedFd> {
    let mut t = Tracee::seize(p.pid()).unwrap();
    let made = descriptor::make(&mut t, Purpose::Writes, None).unwrap();
    if made.is_none() {
        eprintln!("skipped: the kernel does not track writes (Linux 6.7)");
    }
    made
}

fn shape(runs: &[Run], range: &Range, kind: RunKind) -> Vec<(u64, u64)> {
    runs.iter().filter(|r| r.kind == kind).map(|r| ((r.start - range.start) / PAGE, r.pages)).collect()
}

#[test]
fn what_was_written_since_is_told_apart() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(200);
    let at = r.start;
    p.run(&format!("put({at}, 1, range(100))"));
    let Some(descriptor) = descriptor(&p) else { return };
    let tracker = Tracker::new(descriptor);
    let memory = p.memory();
    // Nothing is known before it is armed.
    assert_eq!(shape(&scan_since(&memory, &[r]).unwrap(), &r, RunKind::Data), [(0, 100)]);
    assert!(tracker.arm(&memory, &[r]).unwrap());
    assert_eq!(shape(&scan_since(&memory, &[r]).unwrap(), &r, RunKind::Unchanged), [(0, 100)]);

    // Reading is not writing; giving up and making anew is.
    p.run(&format!("digest({at}, 100)"));
    p.run(&format!("put({at}, 2, [3, 4, 150]); advise({at} + 50 * P, 10, 4); put({at}, 2, [55])"));
    let runs = scan_since(&memory, &[r]).unwrap();
    assert_eq!(shape(&runs, &r, RunKind::Data), [(3, 2), (55, 1), (150, 1)]);
    assert_eq!(shape(&runs, &r, RunKind::Unchanged), [(0, 3), (5, 45), (60, 40)]);

    // A new count, by the same descriptor.
    assert!(tracker.arm(&memory, &[r]).unwrap());
    p.run(&format!("put({at}, 3, [4])"));
    assert_eq!(shape(&scan_since(&memory, &[r]).unwrap(), &r, RunKind::Data), [(4, 1)]);

    // The kernel writes too.
    p.run(&format!(
        "rd, wr = os.pipe(); os.write(wr, b'x' * P); libc.read(rd, ctypes.c_void_p({at} + 70 * P), P)"
    ));
    assert_eq!(shape(&scan_since(&memory, &[r]).unwrap(), &r, RunKind::Data), [(4, 1), (70, 1)]);
    drop(tracker);
    // All is unknown again, once no child that another test has just forked has the descriptor any more.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !shape(&scan_since(&memory, &[r]).unwrap(), &r, RunKind::Unchanged).is_empty() {
        assert!(Instant::now() < deadline, "still tracked");
        std::thread::yield_now();
    }
}

#[test]
fn mappings_made_or_moved_since_are_not_taken_for_unwritten() {
    let Some(mut p) = Program::start() else { return };
    let r = p.anon(100);
    let at = r.start;
    p.run(&format!("put({at}, 1, range(100))"));
    let Some(descriptor) = descriptor(&p) else { return };
    let tracker = Tracker::new(descriptor);
    let memory = p.memory();
    tracker.arm(&memory, &[r]).unwrap();
    // A new mapping where an old one was, with other content.
    p.run(&format!("unmap({at} + 10 * P, 10); anon(10, {at} + 10 * P); put({at}, 2, range(10, 20))"));
    // Swapped places.
    let spare = p.number("anon(300)") + 200 * PAGE;
    p.run(&format!("move({at} + 30 * P, 5, {spare}); move({at} + 40 * P, 5, {at} + 30 * P); move({spare}, 5, {at} + 40 * P)"));
    let runs = scan_since(&memory, &[r]).unwrap();
    assert_eq!(shape(&runs, &r, RunKind::Data), [(10, 10), (30, 5), (40, 5)]);
    // A child is another address space.
    let child: i32 = p
        .run("rd, wr = os.pipe(); r = os.fork(); r or (os.close(wr), os.read(rd, 1), os._exit(0))")
        .parse()
        .unwrap();
    let forked = super::Memory::open(&super::testing::procfs(), child).unwrap();
    assert_eq!(shape(&scan_since(&forked, &[r]).unwrap(), &r, RunKind::Unchanged), []);
}

#[test]
fn a_descriptor_of_another_address_space_tracks_nothing() {
    let (Some(mut p), Some(mut other)) = (Program::start(), Program::start()) else { return };
    let r = p.anon(20);
    p.run(&format!("put({}, 1, range(20))", r.start));
    other.run(&format!("anon(20, {0}); put({0}, 1, range(20))", r.start));
    let Some(descriptor) = descriptor(&other) else { return };
    let tracker = Tracker::new(descriptor);
    // As long as it lives, and when nobody has it any more.
    assert!(!tracker.arm(&p.memory(), &[r]).unwrap());
    drop(other);
    assert!(!tracker.arm(&p.memory(), &[r]).unwrap());
    assert_eq!(shape(&scan_since(&p.memory(), &[r]).unwrap(), &r, RunKind::Unchanged), []);
}

#[test]
fn given_up_pages_of_files_are_not_taken_for_unwritten() {
    let Some(mut p) = Program::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7u8; 8 * PAGE as usize]).unwrap();
    let at = p.number(&format!("filemap({:?}, 8)", path.to_str().unwrap()));
    p.run(&format!("put({at}, 1, range(8))"));
    let r = Range { backed: true, ..range(at, 8) };
    let Some(descriptor) = descriptor(&p) else { return };
    let tracker = Tracker::new(descriptor);
    let memory = p.memory();
    tracker.arm(&memory, &[r]).unwrap();
    assert_eq!(shape(&scan_since(&memory, &[r]).unwrap(), &r, RunKind::Unchanged), [(0, 8)]);
    // The file shows through again.
    p.run(&format!("advise({at} + 2 * P, 2, 4)"));
    let runs = scan_since(&memory, &[r]).unwrap();
    assert_eq!(shape(&runs, &r, RunKind::Unchanged), [(0, 2), (4, 4)]);
}

#[test]
fn huge_pages_are_tracked() {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if enabled.is_empty() || enabled.contains("[never]") {
        eprintln!("skipped: the kernel has no transparent huge pages");
        return;
    }
    let Some(mut p) = Program::start() else { return };
    let start = p.anon(2048).start.next_multiple_of(super::HUGE);
    p.run(&format!("advise({start}, 1024, 14); put({start}, 1, range(1024))"));
    let r = Range { huge: true, ..range(start, 1024) };
    let Some(descriptor) = descriptor(&p) else { return };
    let tracker = Tracker::new(descriptor);
    let memory = p.memory();
    tracker.arm(&memory, &[r]).unwrap();
    p.run(&format!("put({start}, 2, [700])"));
    let runs = scan_since(&memory, &[r]).unwrap();
    assert_eq!(shape(&runs, &r, RunKind::Data), [(700, 1)]);
    assert_eq!(runs.iter().map(|r| r.pages).sum::<u64>(), 1024);
}
