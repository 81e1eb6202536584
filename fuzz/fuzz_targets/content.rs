//! Feeds arbitrary bytes to the code that reads the content of filesystems from an image with its manifest, and to that which reads the
//! kernel's tables of mounts and sockets.
#![no_main]

use airlock_loader::checkpoint::{content, filesystems, inet::table, mountinfo};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = (content::check(&mut &*data), filesystems::check(data));
    let text = String::from_utf8_lossy(data);
    let mounts = mountinfo::parse(&text);
    for i in 0..mounts.len() {
        let _ = mountinfo::how(&mounts, i);
    }
    let _ = table::parse(&text);
});
