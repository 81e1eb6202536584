//! Feeds arbitrary bytes to the code that reads a trace session's configuration and the records of its programs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_loader::trace::fuzzing::trace(data));
