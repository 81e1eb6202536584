//! Checkpoint, restore and fork on the real binary, with runsc and `cp` beside it in the same run:
//! `cargo bench -p airlock-tests --bench checkpoint` (as root, images on the tmpfs of `/dev/shm`).
//!
//! `-- calls sleep memory background pause incremental fork` picks groups by name. `AIRLOCK_BENCH_MB=64` has less memory
//! saved than the targets are about, to try things out.
#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod fork;
mod memory;
mod running;
mod runsc;
mod shadows;

use airlock_tests::bench;
use std::time::Duration;

/// Idleness before whatever is timed.
const PAUSE: Duration = Duration::from_millis(100);

fn main() {
    let groups: [(&str, fn()); 7] = [
        ("calls", calls::calls),
        ("sleep", calls::commands),
        ("memory", memory::copy),
        ("background", memory::background),
        ("pause", shadows::pause),
        ("incremental", shadows::incremental),
        ("fork", fork::fork),
    ];
    bench::run(&groups);
}

/// Megabytes of the large program.
fn large() -> u64 {
    std::env::var("AIRLOCK_BENCH_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(1024)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn title(text: &str) {
    println!("\n## {text} (load {})\n", bench::load());
}
