//! Forks of sandboxes, and what copies of one image share.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::leaks::descriptors;
use airlock_tests::programs::python;
use airlock_tests::revive::Running;
use airlock_tests::{State, need_inside, wait};
use std::collections::BTreeSet;
use std::path::Path;

/// A fork of `of`, with an output of its own in `dir`.
#[track_caller]
fn fork<'a>(of: &Running<'a>, dir: &Path, more: &[&str]) -> Running<'a> {
    Running::launch(of.state, dir, &[&["fork"], more, &[of.id.as_str()]].concat())
}

/// Anonymous memory of a container's processes, in KiB.
fn anonymous(container: &Running<'_>) -> u64 {
    let pids = container.state.ok(["ps", "--format", "json", &container.id]);
    let pids: Vec<i32> = serde_json::from_str(&pids).unwrap();
    assert!(!pids.is_empty());
    let of = |pid: &i32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("Anonymous:")).unwrap();
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    };
    pids.iter().map(of).sum()
}

#[test]
fn forks_share_what_they_do_not_touch_and_outlive_what_they_were_made_of() {
    need_inside!("python3");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = python("memory", &["40"]);
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let full = anonymous(&first);
    assert!(full > 64 << 10, "{full} KiB");
    let forks: Vec<_> = (0..3).map(|_| fork(&first, dir.path(), &[])).collect();
    for fork in &forks {
        let own = anonymous(fork);
        assert!(own * 5 < full, "a fork has {own} KiB, a full copy {full}");
    }
    let ids: BTreeSet<_> = forks
        .iter()
        .chain([&first])
        .map(|f| state.ok(["exec", &f.id, "/bin/cat", "/dev/airlock-generation"]))
        .collect();
    assert_eq!(ids.len(), 4, "each has a generation of its own: {ids:?}");
    first.verify();
    first.delete();
    // A fork of a fork; what it is made of gets all its memory for that.
    let second = fork(&forks[0], dir.path(), &[]);
    assert!(anonymous(&forks[0]) > 64 << 10);
    assert!(anonymous(&second) * 5 < full);
    forks[0].delete();
    for fork in forks[1..].iter().chain([&second]) {
        fork.verify();
        fork.delete();
    }
}

#[test]
fn a_fork_can_have_all_its_memory_at_once_or_later() {
    need_inside!("python3");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = python("memory", &["2"]);
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let copy = fork(&first, dir.path(), &["--copy"]);
    assert!(anonymous(&copy) > 64 << 10);
    copy.verify();
    // A paused container can be forked, and stays paused; the fork runs.
    state.ok(["pause", &first.id]);
    let later = fork(&first, dir.path(), &[]);
    assert_eq!((state.status(&first.id), state.status(&later.id)), ("paused".into(), "running".into()));
    assert!(anonymous(&later) < 32 << 10);
    state.ok(["wait", "--restore", &later.id]);
    assert!(anonymous(&later) > 64 << 10);
    let loader = state.state(&later.id)["pid"].as_i64().unwrap() as i32;
    wait::until("nothing is left of what brought memory in", || {
        descriptors(loader).iter().all(|d| !d.contains("userfaultfd")).then_some(())
    });
    let image = dir.path().join("image");
    later.checkpoint(&image, &[]);
    let restored = Running::restore(&state, &bundle, &image, dir.path(), &[]);
    restored.verify();
    state.ok(["resume", &first.id]);
    first.verify();
    for container in [&first, &copy, &later, &restored] {
        container.delete();
    }
}

#[test]
fn what_is_there_for_children_does_not_pile_up() {
    need_inside!("python3");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = python("memory", &["400"]);
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let fork = fork(&first, dir.path(), &[]);
    let loader = state.state(&fork.id)["pid"].as_i64().unwrap() as i32;
    let mut most = 0;
    state.ok(["kill", &fork.id, "USR1"]);
    wait::until("the fork has made its children", || {
        most = most.max(descriptors(loader).len());
        (fork.output().contains("ok\n") || state.status(&fork.id) == "stopped").then_some(())
    });
    assert!(fork.output().ends_with("ok\n"), "{}", fork.output());
    assert!(most < 100, "{most} descriptors");
    fork.delete();
    first.delete();
}

#[test]
fn restores_in_the_background_record_the_working_set() {
    need_inside!("python3");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = python("memory", &["2"]);
    let first = Running::start(&state, &bundle, dir.path());
    first.wait_for("ready\n");
    let image = dir.path().join("image");
    first.checkpoint(&image, &[]);
    first.delete();
    let record = image.join("working_set.img");
    let restore = || {
        let copy = Running::restore(&state, &bundle, &image, dir.path(), &["--background"]);
        copy.verify();
        // Not before the last page is there, which `verify` did not need to wait for.
        copy.delete();
    };
    let whole = || {
        let copy = Running::restore(&state, &bundle, &image, dir.path(), &["--background"]);
        state.ok(["wait", "--restore", &copy.id]);
        copy.verify();
        copy.delete();
        std::fs::read(&record).unwrap()
    };
    let made = whole();
    assert!(made.starts_with(b"ALWSET\0\0") && made.len() >= 40, "{} bytes", made.len());
    restore();
    assert_eq!(whole(), made, "it is made once");
    // What is no record of this image does no harm, and is replaced.
    std::fs::write(&record, b"something else").unwrap();
    assert!(whole().starts_with(b"ALWSET\0\0"));
    std::fs::remove_file(&record).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &record).unwrap();
    restore();
    assert!(record.is_symlink());
    // Restores that do not need it leave the image alone.
    std::fs::remove_file(&record).unwrap();
    let copy = Running::restore(&state, &bundle, &image, dir.path(), &[]);
    copy.verify();
    copy.delete();
    assert!(!record.exists());
}
