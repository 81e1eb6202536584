//! Feeds arbitrary bytes to the code that reads the state of a sandbox.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_loader::checkpoint::image::fuzzing::state(data));
