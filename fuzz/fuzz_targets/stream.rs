//! Feeds arbitrary bytes to the code that reads a whole connection, descriptors included.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_wire::fuzzing::stream(data));
