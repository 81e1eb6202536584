//! Feeds arbitrary bytes to the code that reads the arguments of methods, in both dialects.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_wire::fuzzing::arguments(data));
