//! What must not grow when one program is saved and brought back again and again.
//!
//! The long run: `AIRLOCK_CYCLES=500 cargo test --release -p airlock-tests --test checkpoint_cycles -- --nocapture`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::leaks;
use airlock_tests::revive::{Running, row_bundle};
use airlock_tests::{State, need, wait};
use std::path::Path;

/// How often.
fn cycles() -> usize {
    std::env::var("AIRLOCK_CYCLES").map_or(12, |n| n.parse().unwrap())
}

/// What is counted after a cycle.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    descriptors: usize,
    threads: usize,
    /// In the container.
    mounts: usize,
    processes: usize,
    cgroups: usize,
    /// Bytes of the image; what a program's memory holds differs by a few pages each time.
    image: u64,
    /// Resident memory of the loader, KiB.
    loader: u64,
}

impl Counted {
    fn of(container: &Running<'_>, image: &Path) -> Self {
        let loader = container.state.state(&container.id)["pid"].as_i64().unwrap() as i32;
        let pids = container.state.ok(["ps", "--format", "json", &container.id]);
        let init = pids.trim().trim_matches(['[', ']']).split(',').next().unwrap().to_owned();
        let files = std::fs::read_dir(image).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        Self {
            descriptors: leaks::idle(loader),
            threads: leaks::threads(loader),
            mounts: std::fs::read_to_string(format!("/proc/{init}/mountinfo")).unwrap().lines().count(),
            processes: pids.split(',').count(),
            cgroups: leaks::cgroups(&container.id).len(),
            image: files.sum(),
            loader: leaks::rss(loader),
        }
    }

    /// Nothing is more, and sizes have not grown by more than a quarter.
    fn is_flat(&self, first: &Self) -> bool {
        let counts = |c: &Self| [c.descriptors, c.threads, c.mounts, c.processes, c.cgroups];
        let sizes = |c: &Self| [c.image, c.loader];
        counts(self).iter().zip(counts(first)).all(|(now, then)| *now <= then)
            && sizes(self).iter().zip(sizes(first)).all(|(now, then)| *now <= then + then / 4)
    }

    /// Waits until all is as it was after the first cycle: what belonged to the last command takes a moment to go.
    #[track_caller]
    fn returns_to(first: &mut Option<Self>, container: &Running<'_>, image: &Path, cycle: usize) -> Self {
        let first = first.get_or_insert_with(|| Self::of(container, image));
        wait::until(&format!("cycle {cycle} leaves no more than the first, {first:?}"), || {
            Some(Self::of(container, image)).filter(|now| now.is_flat(first))
        })
    }
}

fn host_mounts() -> usize {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count()
}

#[test]
fn a_program_that_is_saved_and_restored_again_and_again_leaves_nothing() {
    need!("gcc", "busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = row_bundle("threads", &[], |_| {});
    let image = dir.path().join("image");
    let mut running = Running::start(&state, &bundle, dir.path());
    running.wait_for("ready\n");
    let (mounts, mut first) = (host_mounts(), None);
    for cycle in 0..cycles() {
        running.checkpoint(&image, &[]);
        running.delete();
        wait::until("nothing is left of the one that was saved", || {
            leaks::cgroups(&running.id).is_empty().then_some(())
        });
        let more: &[&str] = if cycle % 2 == 0 { &[] } else { &["--background"] };
        running = Running::restore(&state, &bundle, &image, dir.path(), more);
        if cycle % 2 != 0 {
            state.ok(["wait", "--restore", &running.id]);
            std::fs::remove_file(image.join("working_set.img")).unwrap();
        }
        let counted = Counted::returns_to(&mut first, &running, &image, cycle);
        assert_eq!(host_mounts(), mounts, "mounts of the host in cycle {cycle}");
        if cycle % 100 == 0 {
            println!("cycle {cycle}: {counted:?}");
        }
    }
    running.verify();
    running.delete();
    leaks::nothing_left(&state, &running.id);
}

#[test]
fn a_program_that_goes_on_while_it_is_saved_again_and_again_stays_as_it_was() {
    need!("gcc", "busybox");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = row_bundle("threads", &[], |_| {});
    let image = dir.path().join("image");
    let running = Running::start(&state, &bundle, dir.path());
    running.wait_for("ready\n");
    let mut first = None;
    for cycle in 0..cycles() {
        running.checkpoint(&image, &["--leave-running"]);
        let counted = Counted::returns_to(&mut first, &running, &image, cycle);
        if cycle % 100 == 0 {
            println!("cycle {cycle}: {counted:?}");
        }
    }
    running.verify();
    running.delete();
}
