//! Feeds arbitrary bytes to the code that reads a boot message and the configuration in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_tests::fuzzing::boot(data));
