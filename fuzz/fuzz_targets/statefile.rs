//! Feeds arbitrary bytes to the code that reads a statefile, with its checksums as they are and put right.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_loader::checkpoint::image::fuzzing::statefile(data));
