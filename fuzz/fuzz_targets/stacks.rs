//! Feeds arbitrary bytes to what a container can put before an unwinder: maps, files with tables, names.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_loader::stacks::fuzzing::stacks(data));
