//! Feeds arbitrary bytes to the code that reads a frame of the binary dialect and its body.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_wire::fuzzing::binary(data));
