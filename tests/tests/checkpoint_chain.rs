//! Checkpoints that build upon each other: each image of a chain has what its program had, however it was written.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::programs::python;
use airlock_tests::revive::Running;
use airlock_tests::{Bundle, State, need_inside};
use std::path::{Path, PathBuf};

/// What a restored copy of `image` has.
fn restored(state: &State, bundle: &Bundle, image: &Path, step: usize) -> String {
    let dir = image.parent().unwrap();
    let copy = Running::restore(state, bundle, image, dir, &[]);
    state.ok(["kill", &copy.id, "USR2"]);
    let digest = copy.wait_for_line(&format!("again {step} "));
    copy.delete();
    digest
}

#[test]
fn each_image_of_a_chain_has_what_its_program_had() {
    need_inside!("python3");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = python("writes", &[]);
    let program = Running::start(&state, &bundle, dir.path());
    let image = |step: usize| -> PathBuf { dir.path().join(format!("image-{step}")) };
    let mut digests = vec![program.wait_for_line("step 0 ")];
    program.checkpoint(&image(0), &["--pre-dump"]);
    for step in 1..=6 {
        state.ok(["kill", &program.id, "USR1"]);
        digests.push(program.wait_for_line(&format!("step {step} ")));
        let parent = format!("../image-{}", step - 1);
        program.checkpoint(&image(step), &["--leave-running", "--parent-path", &parent]);
    }
    // It has all of it itself, too.
    state.ok(["kill", &program.id, "USR2"]);
    assert_eq!(program.wait_for_line("again 6 "), digests[6]);
    program.delete();
    for (step, digest) in digests.iter().enumerate().skip(1) {
        assert_eq!(restored(&state, &bundle, &image(step), step), *digest, "step {step}");
    }
}

#[test]
fn a_chain_goes_on_from_an_image_that_is_not_the_last() {
    need_inside!("python3");
    let (state, dir) = (State::new(), tempfile::tempdir().unwrap());
    let bundle = python("writes", &[]);
    let program = Running::start(&state, &bundle, dir.path());
    program.wait_for_line("step 0 ");
    let image = |name: &str| dir.path().join(name);
    let step = |n: usize| {
        state.ok(["kill", &program.id, "USR1"]);
        program.wait_for_line(&format!("step {n} "))
    };
    program.checkpoint(&image("base"), &["--pre-dump"]);
    step(1);
    program.checkpoint(&image("side"), &["--leave-running", "--parent-path", "../base"]);
    step(2);
    // Writes are tracked since `side` now.
    let digest = step(3);
    program.checkpoint(&image("top"), &["--leave-running", "--parent-path", "../base"]);
    // A plain one between two of a chain.
    let fourth = step(4);
    program.checkpoint(&image("plain"), &["--leave-running"]);
    let fifth = step(5);
    program.checkpoint(&image("last"), &["--parent-path", "../top"]);
    program.delete();
    for (name, step, digest) in [("top", 3, digest), ("plain", 4, fourth), ("last", 5, fifth)] {
        assert_eq!(restored(&state, &bundle, &image(name), step), digest, "{name}");
    }
}
