//! What the allocator of heap profiles costs: `cargo run --release -p airlock-loader --example heap`.
//!
//! Blocks of several sizes are allocated and freed, 64 of them alive at a time, on one thread and on two; first while nothing
//! is remembered, then while a sample is.
#![forbid(unsafe_code)]

use airlock_loader::sys::heap::{self, Allocator};
use std::hint::black_box;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const ALIVE: usize = 64;
const BLOCKS: usize = 1 << 20;
const ROUNDS: usize = 9;

/// Time for one block, allocated and freed.
fn blocks(size: usize) -> Duration {
    let mut alive: Vec<Vec<u8>> = (0..ALIVE).map(|_| Vec::with_capacity(size)).collect();
    let begun = Instant::now();
    for n in 0..BLOCKS {
        if let Some(place) = alive.get_mut(n % ALIVE) {
            *place = black_box(Vec::with_capacity(size));
        }
    }
    begun.elapsed()
}

/// The median of several rounds, in nanoseconds a block; `threads` do the same at the same time.
fn median(size: usize, threads: usize) -> f64 {
    let round = || {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| blocks(size))).collect();
            all.into_iter().filter_map(|thread| thread.join().ok()).max().unwrap_or_default()
        })
    };
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| round()).collect();
    times.sort_unstable();
    times.get(ROUNDS / 2).copied().unwrap_or_default().as_secs_f64() * 1e9 / BLOCKS as f64
}

fn main() {
    const CASES: [(usize, usize); 5] = [(32, 1), (256, 1), (4096, 1), (65_536, 1), (256, 2)];
    let off = CASES.map(|(size, threads)| median(size, threads));
    heap::enable();
    println!("| bytes | threads | off | on | × |\n| --- | --- | --- | --- | --- |");
    for ((size, threads), off) in CASES.into_iter().zip(off) {
        let on = median(size, threads);
        println!("| {size} | {threads} | {off:.1} ns | {on:.1} ns | {:.2} |", on / off);
    }
    println!("\n{} stacks are remembered", heap::usage().len());
}
