//! Feeds arbitrary bytes to the code that reads a page index, with its checksum as it is and put right.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_loader::checkpoint::pages::fuzzing::index(data));
