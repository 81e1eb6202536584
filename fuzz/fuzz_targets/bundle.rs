//! Feeds arbitrary bytes to the code that reads and checks a bundle's configuration.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_tests::fuzzing::bundle(data));
