//! Feeds arbitrary bytes to the code that reads the text form of the container API's messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_wire::fuzzing::container(data));
