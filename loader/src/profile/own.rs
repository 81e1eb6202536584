//! Profiles of this process, the loader: its heap, and what its threads wait for.
#![forbid(unsafe_code)]

use super::pprof::{Function, Label, Profile};
use super::stacks::{Counted, to_flame, to_pprof};
use crate::loader::Loader;
use crate::procfs::{ProcFs, Stat};
use crate::stacks::names::Place;
use crate::sys::ticks::Ticks;
use crate::sys::{backtrace, heap, misc};
use crate::worker::NameAddresses;
use airlock_wire::error::Result;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

/// Time between two looks at what threads wait for.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Names of addresses of this process.
pub type Named = HashMap<usize, Place>;

/// Stacks of this process that are not named yet.
pub trait Unnamed {
    /// Every address in them.
    fn addresses(&self) -> BTreeSet<usize>;
}

/// Stacks of which a profile can be made.
pub trait Stacks: Unnamed {
    /// A profile of them.
    fn profile(&self, names: &Named) -> Profile;
}

/// Has a worker name the addresses in `stacks`. Blocks for as long as that takes.
///
/// # Errors
/// Those of [`Loader::work`].
pub fn names(loader: &Loader, stacks: &impl Unnamed) -> Result<Named> {
    let addresses: Vec<usize> = stacks.addresses().into_iter().filter(|a| *a != 0).collect();
    // They are return addresses, but for the first: it does not matter there.
    let inside = addresses.iter().map(|a| *a as u64 - 1).collect();
    let (names, ..) =
        loader.work(NameAddresses { pid: std::process::id() as i32, addresses: inside }, &[])?;
    Ok(addresses.into_iter().zip(names).collect())
}

/// What the heap was and is used for, by stack.
#[derive(Debug)]
pub struct Heap(Vec<(Vec<usize>, heap::Usage)>);

impl Heap {
    /// Now.
    pub fn now() -> Self {
        Self(heap::usage())
    }
}

impl Unnamed for Heap {
    fn addresses(&self) -> BTreeSet<usize> {
        self.0.iter().flat_map(|(stack, _)| stack).copied().collect()
    }
}

impl Stacks for Heap {
    /// As Go's profiles have it: allocated so far and in use, objects and bytes.
    fn profile(&self, names: &Named) -> Profile {
        const BYTES: (&str, &str) = ("space", "bytes");
        let counted = [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ];
        let mut profile = Profile::new(&counted, (BYTES, heap::RATE as i64));
        for (stack, usage) in &self.0 {
            let values = [usage.allocations, usage.allocated, usage.live, usage.in_use];
            let functions = functions(names, stack, &["sys::heap::", "__rust_alloc", "__rust_realloc"], 0);
            profile.add(&functions, &values.map(|v| v.round() as i64), &[]);
        }
        profile
    }
}

/// Where processor time went, by stack.
#[derive(Debug)]
pub struct Cpu {
    stacks: HashMap<Vec<usize>, u64>,
    lost: u64,
    period: Duration,
    begun: SystemTime,
    took: Duration,
}

/// Where this process spends processor time during `duration`, or until `stop` says so: one look for each `period` of it. Blocks
/// for that time.
///
/// # Errors
/// There is no timer left.
pub fn cpu(period: Duration, duration: Duration, stop: impl Fn() -> bool) -> Result<Cpu> {
    let (begun, start) = (SystemTime::now(), Instant::now());
    let mut stacks: HashMap<Vec<usize>, u64> = HashMap::new();
    let ticks = Ticks::start(period)?;
    while start.elapsed() < duration && !stop() {
        std::thread::sleep(LOOK_EVERY.min(duration.saturating_sub(start.elapsed())));
        ticks.take(|stack| *stacks.entry(stack).or_default() += 1);
    }
    Ok(Cpu { stacks, lost: ticks.lost(), period, begun, took: start.elapsed() })
}

impl Unnamed for Cpu {
    fn addresses(&self) -> BTreeSet<usize> {
        self.stacks.keys().flatten().copied().collect()
    }
}

impl Stacks for Cpu {
    fn profile(&self, names: &Named) -> Profile {
        let stacks = self.counted(names);
        let mut profile = to_pprof(&stacks, self.period.as_nanos() as u64, self.begun, self.took);
        profile.comment(format!("{} samples lost", self.lost));
        profile
    }
}

impl Cpu {
    /// A flame graph of them, as SVG.
    pub fn flame(&self, names: &Named, title: &str) -> String {
        to_flame(&self.counted(names)).to_svg(title, "samples")
    }

    /// The stacks with names.
    fn counted(&self, names: &Named) -> Vec<Counted> {
        let one = |(stack, count): (&Vec<usize>, &u64)| Counted {
            pid: std::process::id() as i32,
            name: "airlock-loader".to_owned(),
            // Behind the handler comes what the kernel had it return to.
            functions: functions(names, stack, &["backtrace::here", "ticks::on_tick"], 1),
            count: *count,
        };
        self.stacks.iter().map(one).collect()
    }
}

/// Which waits are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// All: for locks, conditions, connections, other processes.
    All,
    /// For locks that another thread holds.
    Locks,
}

/// One thread's wait.
struct Wait {
    /// How often the thread has been put on a processor: the same wait goes on as long as this stays.
    runs: u64,
    stack: Vec<usize>,
}

/// What threads waited for: by the thread's name and stack, how often and for how long.
#[derive(Debug)]
pub struct Waited {
    found: HashMap<(String, Vec<usize>), (i64, Duration)>,
    which: Waits,
    begun: SystemTime,
    took: Duration,
}

/// What this process' threads, other than the calling one, wait for during `duration`, or until `stop` says so: found by looking
/// every [`LOOK_EVERY`]. Blocks for that time. What is shorter than the time between two looks is seen in proportion.
///
/// # Errors
/// The threads cannot be listed.
pub fn waits(procfs: &ProcFs, which: Waits, duration: Duration, stop: impl Fn() -> bool) -> Result<Waited> {
    let (begun, start) = (SystemTime::now(), Instant::now());
    let mut found: HashMap<(String, Vec<usize>), (i64, Duration)> = HashMap::new();
    look(procfs, duration, stop, |thread, passed| {
        if let Some(wait) = thread.wait {
            let entry = found.entry((thread.name, wait.to_vec())).or_default();
            entry.0 += i64::from(thread.changed);
            entry.1 += passed;
        }
    })?;
    Ok(Waited { found, which, begun, took: start.elapsed() })
}

/// A thread at one look.
pub(super) struct Look<'a> {
    /// The thread.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// What it waits for; `None` when it runs.
    pub wait: Option<&'a [usize]>,
    /// It does not do the same as at the last look.
    pub changed: bool,
}

/// Looks at this process' other threads again and again, and tells each time how much time has passed since the last.
pub(super) fn look(
    procfs: &ProcFs,
    duration: Duration,
    stop: impl Fn() -> bool,
    mut seen: impl FnMut(Look<'_>, Duration),
) -> Result<()> {
    let (me, own, start) = (std::process::id() as i32, misc::gettid(), Instant::now());
    let mut waiting: HashMap<i32, Wait> = HashMap::new();
    let mut last = start;
    while start.elapsed() < duration && !stop() {
        std::thread::sleep(LOOK_EVERY.min(duration.saturating_sub(start.elapsed())));
        let passed = last.elapsed();
        last = Instant::now();
        for tid in procfs.threads(me)? {
            let read = |name: &str| procfs.read_path(&format!("{me}/task/{tid}/{name}")).ok();
            let stat = read("stat").and_then(|s| Stat::parse(&s));
            let Some(stat) = stat.filter(|_| tid != own) else { continue };
            if stat.state == 'R' {
                let changed = waiting.remove(&tid).is_some();
                seen(Look { tid, name: stat.comm, wait: None, changed }, passed);
                continue;
            }
            let runs = || read("schedstat").and_then(|s| s.split_ascii_whitespace().nth(2)?.parse().ok());
            let before = runs();
            let changed = waiting.get(&tid).is_none_or(|w| before != Some(w.runs));
            if changed {
                // This wakes the thread for a moment: once for each wait.
                let stack = backtrace::of_thread(tid);
                waiting.insert(tid, Wait { runs: runs().unwrap_or(0), stack });
            }
            let wait = waiting.get(&tid).map(|w| w.stack.as_slice());
            seen(Look { tid, name: stat.comm, wait, changed }, passed);
        }
    }
    Ok(())
}

impl Unnamed for Waited {
    fn addresses(&self) -> BTreeSet<usize> {
        self.found.keys().flat_map(|(_, stack)| stack).copied().collect()
    }
}

impl Stacks for Waited {
    /// As Go's profiles have it: how often, and for how long.
    fn profile(&self, names: &Named) -> Profile {
        const DELAY: (&str, &str) = ("delay", "nanoseconds");
        let period = LOOK_EVERY.as_nanos() as i64;
        let mut profile = Profile::new(&[("contentions", "count"), DELAY], (DELAY, period));
        profile.set_time(self.begun, self.took);
        for ((thread, stack), (count, time)) in &self.found {
            // Behind the handler comes what the kernel had it return to.
            let functions = functions(names, stack, &["backtrace::on_signal"], 1);
            if self.which == Waits::All || functions.iter().any(|f| is_lock(&f.name)) {
                let values = [*count, time.as_nanos() as i64];
                profile.add(&functions, &values, &[("thread", Label::Text(thread.clone()))]);
            }
        }
        profile
    }
}

/// True for the functions of Rust's standard library in which a thread waits for a lock.
fn is_lock(function: &str) -> bool {
    ["lock_contended", "read_contended", "write_contended"].iter().any(|name| function.ends_with(name))
}

/// A stack with names, without the functions at its inner end that the profiler itself added: up to the last of the `own` ones,
/// and `more`.
pub(super) fn functions(names: &Named, stack: &[usize], own: &[&str], more: usize) -> Vec<Function> {
    /// As deep as the profiler's functions are.
    const OWN: usize = 12;
    let name = |address: &usize| match names.get(address) {
        Some(place) => {
            Function { name: place.function.clone(), file: place.file.clone(), offset: place.offset }
        }
        None => Function { name: format!("[{address:#x}]"), ..Function::default() },
    };
    let all: Vec<Function> = stack.iter().filter(|a| **a != 0).map(name).collect();
    let is_own = |f: &Function| own.iter().any(|o| f.name.contains(o));
    let inner = all.iter().take(OWN).rposition(is_own).map_or(0, |i| i + 1 + more);
    // All of it if nothing else would be left.
    all.get(inner..).filter(|rest| !rest.is_empty()).unwrap_or(&all).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stacks::{Files, Names, Space};
    use std::fs::File;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_wait_for_a_lock_is_told_from_others() {
        backtrace::enable();
        let procfs = ProcFs::new(File::open("/proc").unwrap().into());
        let pid = std::process::id() as i32;
        let space = Space::read(&procfs, pid, &mut Files::default()).unwrap();
        let name = |a: usize| (a, Names::default().place(&procfs, &space, a as u64 - 1));
        let lock = Arc::new(Mutex::new(()));
        let (held, other) = (lock.lock().unwrap(), lock.clone());
        let thread = std::thread::Builder::new().name("contender".to_owned());
        let thread = thread.spawn(move || drop(other.lock())).unwrap();
        let seen = AtomicBool::new(false);
        // Until the thread was seen waiting: it may need a while to get there.
        while !seen.load(Ordering::Relaxed) {
            let waited = waits(&procfs, Waits::Locks, LOOK_EVERY * 3, || false).unwrap();
            let names = waited.addresses().into_iter().filter(|a| *a != 0).map(name).collect();
            let bytes = waited.profile(&names).encode();
            let text = String::from_utf8_lossy(&bytes);
            seen.store(text.contains("contender") && text.contains("lock_contended"), Ordering::Relaxed);
        }
        drop(held);
        thread.join().unwrap();
    }
}
