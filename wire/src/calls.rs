//! Counts of calls by method: how many, how many failed, how long they took.
//!
//! They are kept for every call, so counting must cost next to nothing: each thread adds to one of a few copies of a
//! method's counters ([`SHARDS`]), which lie on cache lines of their own and are only added up when somebody asks.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Copies of each counter.
const SHARDS: usize = 4;
/// Bounds of the buckets, of which each is four times the one before: 2^12 ns (4 µs) to 2^36 ns (69 s).
pub const BOUNDS: usize = 13;
const LOWEST: u32 = 12;

/// Upper bound of bucket `index`, which belongs to it, in nanoseconds; `None` for the last bucket, [`BOUNDS`].
pub fn bound(index: usize) -> Option<u64> {
    (index < BOUNDS).then(|| 1 << (LOWEST + 2 * index as u32))
}

fn bucket_of(nanoseconds: u64) -> usize {
    let bits = u64::BITS - nanoseconds.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(LOWEST).div_ceil(2) as usize).min(BOUNDS)
}

/// A thread's share of one method's counters: 128 bytes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BOUNDS + 1],
}

/// Counters of one method; they take memory once it is called.
#[derive(Debug, Default)]
pub(crate) struct Counter(OnceLock<Box<[Shard; SHARDS]>>);

impl Counter {
    /// Counts a call that began at `begin` and has just ended.
    pub(crate) fn count(&self, begin: Instant, failed: bool) {
        self.add(begin.elapsed(), failed);
    }

    fn add(&self, took: Duration, failed: bool) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let shard = &self.0.get_or_init(Box::default)[own_shard()];
        shard.buckets[bucket_of(nanoseconds)].fetch_add(1, Ordering::Relaxed);
        shard.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if failed {
            shard.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sum(&self) -> Count {
        let mut count = Count::default();
        for shard in self.0.get().into_iter().flat_map(|shards| shards.iter()) {
            count.errors += shard.errors.load(Ordering::Relaxed);
            count.nanoseconds = count.nanoseconds.wrapping_add(shard.nanoseconds.load(Ordering::Relaxed));
            for (sum, bucket) in count.buckets.iter_mut().zip(&shard.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
        count
    }
}

/// The shard that this thread adds to.
fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS));
    OWN.get()
}

/// What was counted of one method.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Calls that failed; they are in the buckets, too.
    pub errors: u64,
    /// How long all calls took together.
    pub nanoseconds: u64,
    /// Ended calls by how long they took; see [`bound`].
    pub buckets: [u64; BOUNDS + 1],
}

impl Count {
    /// Ended calls.
    pub fn calls(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds what was counted of another method.
    pub fn add(&mut self, other: &Self) {
        self.errors += other.errors;
        self.nanoseconds = self.nanoseconds.wrapping_add(other.nanoseconds);
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, n)| *sum += n);
    }
}

/// The counters of a registry's methods. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    methods: Arc<Mutex<BTreeMap<&'static str, Arc<Counter>>>>,
    unknown: Arc<AtomicU64>,
}

impl Calls {
    /// The counter of `method`, made where there is none.
    pub(crate) fn counter(&self, method: &'static str) -> Arc<Counter> {
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.entry(method).or_default().clone()
    }

    /// Counts a call of a method that there is not.
    pub(crate) fn count_unknown(&self) {
        self.unknown.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls of methods that there are not.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// What was counted until now, for every method that there is, by name.
    pub fn counts(&self) -> Vec<(&'static str, Count)> {
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.iter().map(|(name, counter)| (*name, counter.sum())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_within_its_buckets_bounds() {
        for ns in [0, 1, 4095, 4096, 4097, 16_384, 16_385, 1 << 36, (1 << 36) + 1, u64::MAX] {
            let bucket = bucket_of(ns);
            assert!(bound(bucket).is_none_or(|upper| ns <= upper), "{ns} in {bucket}");
            assert!(bucket == 0 || bound(bucket - 1).is_none_or(|lower| ns > lower), "{ns} in {bucket}");
        }
        assert_eq!((bound(0), bound(BOUNDS - 1), bound(BOUNDS)), (Some(4096), Some(1 << 36), None));
        assert_eq!(size_of::<Shard>(), 128);
    }

    /// Prints what counting a call costs: `cargo test --release -p airlock-wire --lib -- --ignored --nocapture cost`.
    #[test]
    #[ignore = "a measurement"]
    fn cost() {
        const ROUNDS: u32 = 2_000_000;
        for threads in [1, 2, 4] {
            let counter = Counter::default();
            let begin = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..ROUNDS).for_each(|_| counter.count(Instant::now(), false)));
                }
            });
            let each = begin.elapsed().as_nanos() / u128::from(ROUNDS);
            println!(
                "{threads} threads: {each} ns a call (wall time of a thread), two clock readings included"
            );
            assert_eq!(counter.sum().calls(), u64::from(ROUNDS) * threads);
        }
    }

    #[test]
    fn what_several_threads_count_is_added_up() {
        let calls = Calls::default();
        let counter = calls.counter("a.B");
        std::thread::scope(|scope| {
            for _ in 0..7 {
                scope.spawn(|| {
                    for i in 0..1000 {
                        counter.add(Duration::from_micros(5), i % 10 == 0);
                    }
                });
            }
        });
        calls.count_unknown();
        let [("a.B", count)] = calls.counts()[..] else { panic!("{:?}", calls.counts()) };
        assert_eq!((count.calls(), count.errors, count.buckets[1]), (7000, 700, 7000));
        assert_eq!((count.nanoseconds, calls.unknown()), (7000 * 5000, 1));
        let mut twice = count;
        twice.add(&count);
        assert_eq!(twice.calls(), 14_000);
    }
}
