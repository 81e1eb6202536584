use super::super::fdpass::{Channel, Pass, take};
use super::super::*;
use super::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

fn files(count: usize) -> (tempfile::TempDir, Vec<File>) {
    let dir = tempfile::tempdir().unwrap();
    let files = (0..count).map(|i| File::create(dir.path().join(i.to_string())).unwrap()).collect();
    (dir, files)
}

/// Number to (name of the file, close-on-exec), for files of [`files`].
fn open_files(pid: i32) -> BTreeMap<i32, (usize, bool)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap();
        let Some(name) = target.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) else {
            continue;
        };
        if !target.starts_with(std::env::temp_dir()) {
            continue;
        }
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
        let cloexec = u32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC as u32 != 0;
        found.insert(number, (name, cloexec));
    }
    found
}

#[test]
fn descriptors_arrive_at_their_numbers() {
    let (_dir, files) = files(600);
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let (channel, mut link) = Channel::open(&mut t, &region).unwrap();
    assert_eq!(link.number, 4); // the lowest free numbers were 3 and 4, and 3 is ours now
    let mut expected = BTreeMap::new();
    let mut send = |t: &mut Tracee, numbers: &[i32]| {
        let fds: Vec<Pass<'_>> = numbers
            .iter()
            .enumerate()
            .map(|(i, number)| Pass { fd: files[i].as_fd(), number: *number, cloexec: i % 2 == 0 })
            .collect();
        channel.send(t, &region, &mut link, &fds).unwrap();
        for (i, number) in numbers.iter().enumerate() {
            expected.insert(*number, (i, i % 2 == 0));
        }
        assert_eq!(open_files(t.tid()), expected);
        assert!(!numbers.contains(&link.number));
    };
    // In order and backwards, over the link's own number, far away, rings among what is received.
    send(&mut t, &(3..603).collect::<Vec<i32>>());
    send(&mut t, &(3..603).rev().collect::<Vec<i32>>());
    send(&mut t, &[900, 5, 3, 4, 606, 604, 605, 608, 607, 1000]);
    send(&mut t, &[10]);
    send(&mut t, &[]);
    let free = link_free(&t);
    send(&mut t, &[free]);
    link.close(&mut t).unwrap();
    assert_eq!(open_files(t.tid()).len(), expected.len());
    let count = std::fs::read_dir(format!("/proc/{}/fd", t.tid())).unwrap().count();
    assert_eq!(count, expected.len() + 3, "something is left open");
}

/// A number that is free in the task.
fn link_free(t: &Tracee) -> i32 {
    (3..).find(|n| std::fs::read_link(format!("/proc/{}/fd/{n}", t.tid())).is_err()).unwrap()
}

#[test]
fn children_share_the_channel() {
    let (_dir, files) = files(20);
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let (channel, link) = Channel::open(&mut t, &region).unwrap();
    let fork = Clone3 { exit_signal: libc::SIGCHLD, ..Clone3::default() };
    let mut child = t.clone3(&region, &fork).unwrap().unwrap();
    let pass = |at: usize, number| Pass { fd: files[at].as_fd(), number, cloexec: false };
    let (mut of_child, mut of_parent) = (link, link);
    channel.send(&mut child, &region, &mut of_child, &[pass(1, 4), pass(2, 20)]).unwrap();
    channel.send(&mut t, &region, &mut of_parent, &[pass(3, 20)]).unwrap();
    channel.send(&mut child, &region, &mut of_child, &[pass(4, 21)]).unwrap();
    assert_eq!(open_files(child.tid()), [(4, (1, false)), (20, (2, false)), (21, (4, false))].into());
    assert_eq!(open_files(t.tid()), [(20, (3, false))].into());
    assert_ne!(of_child, of_parent);
    child.kill().unwrap();
}

#[test]
fn limits_and_nonsense_are_told() {
    let (_dir, files) = files(20);
    let program = Program::sleep("1000");
    let (mut t, region) = seized(&program);
    let (channel, mut link) = Channel::open(&mut t, &region).unwrap();
    let pass = |number| Pass { fd: files[0].as_fd(), number, cloexec: false };
    for bad in [[pass(5), pass(5)], [pass(-1), pass(7)]] {
        assert!(channel.send(&mut t, &region, &mut link, &bad).is_err());
    }
    let mut batch = Batch::new();
    let limit = batch.data(&[10u64, 10].map(u64::to_ne_bytes).concat());
    batch.must(libc::SYS_setrlimit, [libc::RLIMIT_NOFILE.into(), limit]);
    batch.run(&mut t, &region).unwrap().check().unwrap();
    let many: Vec<Pass<'_>> = (0..20).map(|i| pass(100 + i)).collect();
    let e = channel.send(&mut t, &region, &mut link, &many).unwrap_err();
    assert!(e.message.contains("RLIMIT_NOFILE"), "{e}");
    let e = take(t.tid(), 77).unwrap_err();
    assert!(e.message.contains("descriptor 77"), "{e}");
    assert!(take(t.tid(), 0).is_ok());
}
