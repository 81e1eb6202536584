//! `proxy`: internal; stands for a process of a sandbox. Takes no global options.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `proxy` with the words behind it: a container's id and a pid. Connections are on descriptors 0 and 1.
pub fn run(words: &[OsString]) -> ExitCode {
    let (Some(cid), Some(pid)) = (
        words.first().and_then(|w| w.to_str()),
        words.get(1).and_then(|w| w.to_str()).and_then(|w| w.parse().ok()),
    ) else {
        return ExitCode::FAILURE;
    };
    airlock::proxy::main(cid, pid)
}
