//! Work on all cores.
#![forbid(unsafe_code)]

use airlock_wire::error::Result;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Most threads that are of use: pages files have one lock.
const THREADS_MAX: usize = 8;
/// Work of fewer pages than this is done before a thread would have started.
const PAGES_FOR_THREADS: u64 = 1024;

/// How many threads to use for this many pages. `wanted` 0 means all cores.
pub(super) fn threads(wanted: usize, pages: u64) -> usize {
    if pages < PAGES_FOR_THREADS {
        return 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if wanted == 0 { cores.min(THREADS_MAX) } else { wanted.min(64) }
}

/// Work that several threads take from.
#[derive(Debug)]
pub(super) struct Queue {
    next: AtomicUsize,
    count: usize,
    stop: AtomicBool,
}

impl Queue {
    pub(super) fn new(count: usize) -> Self {
        Self { next: AtomicUsize::new(0), count, stop: AtomicBool::new(false) }
    }

    /// Takes up to `n` items that follow each other; `None` when there are none left, or a thread has failed.
    pub(super) fn take(&self, n: usize) -> Option<std::ops::Range<usize>> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let first = self.next.fetch_add(n, Ordering::Relaxed);
        (first < self.count).then(|| first..self.count.min(first + n))
    }
}

/// Runs `work` on `threads` threads, this one included; each gets its own number, this one 0. When no thread can be
/// started, this one does all. The first error ends all and is given.
pub(super) fn run<T: Send>(
    threads: usize,
    queue: &Queue,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let run = |number| {
        let result = work(number);
        if result.is_err() {
            queue.stop.store(true, Ordering::Relaxed);
        }
        result
    };
    if threads < 2 {
        return Ok(vec![run(0)?]);
    }
    std::thread::scope(|scope| {
        let run = &run;
        let spawn = |number| {
            let builder = std::thread::Builder::new().name("pages".to_owned());
            builder.spawn_scoped(scope, move || run(number)).ok()
        };
        let others: Vec<_> = (1..threads).map_while(spawn).collect();
        let mut results = vec![run(0)];
        results.extend(others.into_iter().map(|t| {
            t.join().unwrap_or_else(|_| {
                Err(airlock_wire::error::Error::failure("a thread of the page engine panicked"))
            })
        }));
        results.into_iter().collect()
    })
}
