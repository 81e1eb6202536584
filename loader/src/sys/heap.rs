//! An allocator that can tell what the heap is used for: the system's, with a sample of the allocations remembered.
//!
//! Until [`enable`] is called, which only a sandbox that was booted for profiling does, it costs one load of a flag.

use super::backtrace::{self, MAX_FRAMES};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes allocated between two samples, on average. (Go has 512 KiB; a loader allocates little.)
pub const RATE: u64 = 16 << 10;

/// The allocator; the binary makes it its global one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

/// What the samples of one stack stand for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Allocations so far.
    pub allocations: f64,
    /// Bytes allocated so far.
    pub allocated: f64,
    /// Allocations that were not freed.
    pub live: f64,
    /// Their bytes.
    pub in_use: f64,
}

/// Addresses of a stack, innermost first.
type Stack = Box<[usize]>;

#[derive(Default)]
struct Samples {
    stacks: HashMap<Stack, usize>,
    usage: Vec<Usage>,
    /// Sampled allocations that were not freed: the index of the stack, and bytes.
    live: HashMap<usize, (usize, usize)>,
}

static ENABLED: AtomicBool = AtomicBool::new(false);
/// Bytes until the next sample.
static LEFT: AtomicI64 = AtomicI64::new(0);
static RANDOM: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
static SAMPLES: Mutex<Option<Samples>> = Mutex::new(None);

/// How many sampled allocations there are by a hash of their address: most that is freed was not sampled, and need not look.
static SEEN: [AtomicU16; 1 << 12] = [const { AtomicU16::new(0) }; 1 << 12];

thread_local! {
    /// Set while this thread works on the samples, which takes memory too.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Begins to remember, for the rest of the process' life.
pub fn enable() {
    LEFT.store(interval(), Ordering::Relaxed);
    ENABLED.store(true, Ordering::Relaxed);
}

/// True once [`enable`] was called.
pub fn enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// What the heap was and is used for, by stack.
pub fn usage() -> Vec<(Vec<usize>, Usage)> {
    alone(|| {
        let samples = samples();
        let Some(samples) = samples.as_ref() else { return Vec::new() };
        let one = |(stack, i): (&Stack, &usize)| {
            (stack.to_vec(), samples.usage.get(*i).copied().unwrap_or_default())
        };
        samples.stacks.iter().map(one).collect()
    })
    .unwrap_or_default()
}

fn samples() -> MutexGuard<'static, Option<Samples>> {
    SAMPLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` unless this thread is at it already (or at its end), so that allocations of its own are not sampled.
fn alone<T>(work: impl FnOnce() -> T) -> Option<T> {
    if BUSY.try_with(|busy| busy.replace(true)).unwrap_or(true) {
        return None;
    }
    let done = work();
    let _ = BUSY.try_with(|busy| busy.set(false));
    Some(done)
}

/// Bytes until the next sample: random, exponentially distributed, so that no pattern of a program goes unseen.
fn interval() -> i64 {
    let mut x = RANDOM.load(Ordering::Relaxed);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    RANDOM.store(x, Ordering::Relaxed);
    let uniform = ((x >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
    (-uniform.ln() * RATE as f64) as i64 + 1
}

/// How many allocations of that size a sampled one stands for.
fn weight(size: usize) -> f64 {
    1.0 / (1.0 - (-(size.max(1) as f64) / RATE as f64).exp())
}

fn bucket(address: usize) -> &'static AtomicU16 {
    &SEEN[(address >> 4) % SEEN.len()]
}

#[cold]
fn note(address: usize, size: usize) {
    alone(|| {
        LEFT.store(interval(), Ordering::Relaxed);
        let mut frames = [0; MAX_FRAMES];
        let count = backtrace::here(&mut frames);
        let stack = &frames[..count];
        let mut samples = samples();
        let samples = samples.get_or_insert_default();
        let index = match samples.stacks.get(stack) {
            Some(index) => *index,
            None => {
                samples.usage.push(Usage::default());
                samples.stacks.insert(stack.into(), samples.usage.len() - 1);
                samples.usage.len() - 1
            }
        };
        if let Some(usage) = samples.usage.get_mut(index) {
            let weight = weight(size);
            usage.allocations += weight;
            usage.live += weight;
            usage.allocated += weight * size as f64;
            usage.in_use += weight * size as f64;
        }
        samples.live.insert(address, (index, size));
        bucket(address).fetch_add(1, Ordering::Relaxed);
    });
}

#[cold]
fn forget(address: usize) {
    alone(|| {
        let mut samples = samples();
        let Some(samples) = samples.as_mut() else { return };
        let Some((index, size)) = samples.live.remove(&address) else { return };
        bucket(address).fetch_sub(1, Ordering::Relaxed);
        if let Some(usage) = samples.usage.get_mut(index) {
            let weight = weight(size);
            usage.live -= weight;
            usage.in_use -= weight * size as f64;
        }
    });
}

fn allocated(address: *mut u8, size: usize) {
    if enabled() && !address.is_null() && LEFT.fetch_sub(size as i64, Ordering::Relaxed) <= size as i64 {
        note(address.addr(), size);
    }
}

fn freeing(address: *mut u8) {
    if enabled() && bucket(address.addr()).load(Ordering::Relaxed) > 0 {
        forget(address.addr());
    }
}

// SAFETY: all memory is the system allocator's, which is asked for exactly what was asked of us; what is noted of it is not
// used to reach it.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let address = unsafe { System.alloc(layout) };
        allocated(address, layout.size());
        address
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let address = unsafe { System.alloc_zeroed(layout) };
        allocated(address, layout.size());
        address
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // Before it is free: another thread may get the same address at once.
        freeing(address);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(address, layout) }
    }

    unsafe fn realloc(&self, address: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        freeing(address);
        // SAFETY: the caller's promise.
        let address = unsafe { System.realloc(address, layout, size) };
        allocated(address, size);
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_and_freed_is_counted() {
        enable();
        let layout = Layout::from_size_align(1 << 20, 16).unwrap();
        let total = || usage().iter().map(|(_, u)| u.in_use).sum::<f64>();
        let stacks = usage().len();
        // SAFETY: the layout has a size, and what is allocated is freed with it, once.
        let (before, during) = unsafe {
            let before = total();
            let address = Allocator.alloc(layout);
            let during = total();
            Allocator.dealloc(address, layout);
            (before, during)
        };
        // A megabyte is sampled all but certainly (one in e^256 is not).
        assert!(during - before > 1e6, "{before} {during}");
        assert!(total() < during, "freed");
        assert!(usage().len() > stacks);
        let largest = usage().into_iter().max_by(|a, b| a.1.allocated.total_cmp(&b.1.allocated)).unwrap();
        assert!(largest.0.len() > 2, "{largest:?}");
    }

    #[test]
    fn small_allocations_stand_for_many() {
        assert!(weight(16) > 1000.0 && weight(16) < 1100.0);
        assert!(weight(1 << 20) < 1.001);
        let mean = (0..10_000).map(|_| interval()).sum::<i64>() / 10_000;
        assert!((RATE as i64 / 2..RATE as i64 * 2).contains(&mean), "{mean}");
    }
}
