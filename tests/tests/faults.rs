//! Faults: commands and sandboxes that are killed, malformed bundles, damaged state, missing resources. Whatever
//! happens, there is a clear error, the next command goes on or cleans up, and nothing is left behind.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "faults/bundles.rs"]
mod bundles;
#[path = "faults/commands.rs"]
mod commands;
#[path = "faults/resources.rs"]
mod resources;
#[path = "faults/sandbox.rs"]
mod sandbox;
#[path = "faults/state.rs"]
mod state;

use airlock_tests::{Bundle, State, leaks, unique, wait};
use serde_json::json;

/// Runs a command that ought to fail. Should it succeed, the container that it leaves behind does not hold our pipes.
fn attempt<S: AsRef<std::ffi::OsStr>>(
    state: &State,
    args: impl IntoIterator<Item = S>,
) -> std::process::Output {
    let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut command = state.command(args);
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let status = command.status().unwrap();
    let text = |file| airlock_tests::read_all(file).into_bytes();
    std::process::Output { status, stdout: text(stdout), stderr: text(stderr) }
}

/// What a command that failed has to look like: exit code 1 (`exec`: 255), one line of error, nothing on standard
/// output.
#[track_caller]
fn one_line(out: &std::process::Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(matches!(out.status.code(), Some(1 | 255)), "{}: {text}", out.status);
    assert_eq!(text.trim_end().lines().count(), 1, "not one line: {text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(out.stdout.is_empty(), "{}", String::from_utf8_lossy(&out.stdout));
    text
}
