//! `boot`: internal; becomes the stage of a new sandbox. Takes no global options.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `boot` with the words behind it.
pub fn run(_words: &[OsString]) -> ExitCode {
    ExitCode::FAILURE
}
