//! Feeds arbitrary bytes to the code that reads a message of the JSON dialect.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_wire::fuzzing::json(data));
