//! `boot`: internal; becomes the stage of a new sandbox. Takes no global options.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `boot`; does not return. The boot message comes on descriptor 0; the words, the sandbox's id, are for people who
/// read process lists.
pub fn run(_words: &[OsString]) -> ExitCode {
    airlock_controller::boot_main()
}
