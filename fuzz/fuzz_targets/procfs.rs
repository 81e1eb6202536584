//! Feeds arbitrary bytes to the code that reads what procfs says of processes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| airlock_loader::checkpoint::dump::fuzzing::procfs(data));
