//! Feeds arbitrary bytes to the code that reads records of perf events, and to that which writes profiles and flame graphs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_loader::profile::fuzzing::profile(data));
