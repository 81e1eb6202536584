//! Restore in the background: the program runs, and its pages follow.
//!
//! Mappings are registered with a userfaultfd before the program runs. From then on whoever touches a page that is not
//! there waits until one thread here has answered with its content, while others bring all pages in, the recorded working
//! set first. A fork, mremap, munmap or madvise of the program is reported by the kernel and followed: a child gets the
//! pages that it had not yet when it was made, from a descriptor of its own; what was given up does not come back. When
//! all pages of an address space are there its descriptor is closed, and nothing is left of all this.
//!
//! On demand ([`Options::on_demand`]) nobody brings in what nobody asks for: many copies of one image then share what they
//! do not touch, which is in the image alone. It ends with the programs, or when [`Monitor::fetch`] has the rest brought in.
//!
//! # What must not happen
//! When the last copy of a descriptor is closed too early, the program goes on with zeros where its memory was. So
//! somebody else should hold a copy of each ([`Options::share`]) and kill the program before he closes it when this
//! process dies; and after an error the program is killed before the [`Monitor`] is dropped.
//!
//! Mappings that cannot wait are filled before, with [`super::fill`]: private mappings of files, hugetlbfs, locked memory
//! ([`split`]).
#![forbid(unsafe_code)]

mod space;
#[cfg(test)]
mod tests;

use super::pool::Buffer;
use super::{Chain, Layout, Object, Range, parallel, working_set};
use airlock_wire::error::{Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use space::{Served, Space};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An address space whose pages shall follow.
#[derive(Debug)]
pub struct Waiting {
    /// Which.
    pub object: Object,
    /// Its process.
    pub pid: i32,
    /// Made for [`super::descriptor::Purpose::Faults`].
    pub uffd: OwnedFd,
    /// The pages that shall follow: the first part of what [`split`] gives.
    pub layout: Layout,
    /// The mappings that they are in, whole.
    pub ranges: Vec<Range>,
}

/// What becomes of the copies that somebody else keeps ([`Options::share`]).
#[derive(Debug)]
pub enum Sharing<'a> {
    /// Keep a copy of this one.
    Keep(BorrowedFd<'a>),
    /// Close the copy of this one.
    Forget(BorrowedFd<'a>),
}

/// Gives a copy of a descriptor to whoever keeps it from being closed too early, and takes it back.
pub type Share = Box<dyn Fn(Sharing<'_>) -> Result<()> + Send + Sync>;

/// Pages in the order in which they are asked for.
pub type Positions = Vec<(Object, u64)>;

/// How pages follow.
#[derive(Default)]
pub struct Options {
    /// Threads that bring pages in; 0 means one for each core (at most 8).
    pub threads: usize,
    /// Positions to begin with, in this order: the [`Outcome::order`] of an earlier restore of the image.
    pub first: Positions,
    /// Called with each descriptor before it matters, those of forked children included.
    pub share: Option<Share>,
    /// Pages come when they are asked for, and not before, until [`Monitor::fetch`].
    pub on_demand: bool,
    /// Make huge pages of what had been huge pages, once all is there.
    pub collapse: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Pages brought in, those of forked children included.
    pub pages: u64,
    /// Faults answered.
    pub faults: u64,
    /// Pages that the program asked for, in that order: its working set.
    pub order: Positions,
    /// From the start until all pages were there.
    pub took: Duration,
}

/// The part of a layout that can follow, and the part that has to be there before the program runs. `eager` lists
/// address ranges that cannot wait (locked memory), ascending.
pub fn split(layout: &Layout, ranges: &[Range], eager: &[std::ops::Range<u64>]) -> (Layout, Layout) {
    let can_wait = |r: &&Range| {
        let locked = eager.iter().any(|e| e.start < r.end && r.start < e.end);
        !r.hugetlb() && !r.backed && !r.file_pages && !locked
    };
    let lazy: Vec<_> = ranges.iter().filter(can_wait).map(|r| r.start..r.end).collect();
    layout.split(&lazy)
}

/// Brings pages in while programs run.
pub struct Monitor {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    fetching: AtomicBool,
}

struct Shared {
    chain: Chain,
    options: Options,
    spaces: RwLock<Vec<Arc<Space>>>,
    progress: Mutex<Progress>,
    /// Something about `progress` has changed.
    changed: Condvar,
    stop: AtomicBool,
    /// Wakes the thread that waits for events.
    wake: EventFd,
    /// Readable from the time when all pages are there, or something went wrong.
    ended: EventFd,
    /// Children that were forked since those that have ended were looked for.
    forked: AtomicU64,
    total: AtomicU64,
    pages: AtomicU64,
    faults: AtomicU64,
    order: Mutex<Positions>,
    begun: Instant,
}

#[derive(Default)]
struct Progress {
    /// Address spaces that are not complete.
    open: usize,
    failure: Option<Error>,
    took: Option<Duration>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Monitor {
    /// Registers the mappings and begins. When this returns, the programs may run.
    ///
    /// # Errors
    /// A mapping cannot be registered; no thread can be started. Nothing of the programs may run then.
    pub fn start(chain: Chain, waiting: Vec<Waiting>, options: Options) -> Result<Self> {
        let event = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|e| Error::from(e).context("make an eventfd"))
        };
        let (wake, ended) = (event()?, event()?);
        let mut spaces = Vec::with_capacity(waiting.len());
        for space in waiting {
            if space.layout.is_empty() {
                continue;
            }
            if let Some(share) = &options.share {
                share(Sharing::Keep(space.uffd.as_fd()))?;
            }
            spaces.push(Arc::new(Space::register(space, &options.first)?));
        }
        let total = spaces.iter().map(|s| s.pages()).sum();
        let on_demand = options.on_demand;
        let progress = Progress { open: spaces.len(), ..Progress::default() };
        let shared = Arc::new(Shared {
            chain,
            options,
            spaces: RwLock::new(spaces),
            progress: Mutex::new(progress),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            wake,
            ended,
            forked: AtomicU64::new(0),
            total: AtomicU64::new(total),
            pages: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            order: Mutex::new(Vec::new()),
            begun: Instant::now(),
        });
        let monitor = Self { shared, threads: Mutex::default(), fetching: AtomicBool::new(false) };
        if total > 0 {
            monitor.spawn("page faults", Shared::serve)?;
            if !on_demand {
                monitor.fetch()?;
            }
        } else {
            lock(&monitor.shared.progress).took = Some(Duration::ZERO);
            let _ = monitor.shared.ended.write(1);
        }
        Ok(monitor)
    }

    /// Has all pages brought in that are not there, from now on. Does nothing when that is being done.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn fetch(&self) -> Result<()> {
        if self.fetching.swap(true, Ordering::AcqRel) || lock(&self.shared.progress).took.is_some() {
            return Ok(());
        }
        for _ in 0..parallel::threads(self.shared.options.threads, self.progress().1) {
            self.spawn("pages", Shared::prefetch)?;
        }
        Ok(())
    }

    /// Readable from the time when [`Monitor::wait`] does not wait any more.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.shared.ended.as_fd()
    }

    fn spawn(&self, name: &str, run: fn(&Shared) -> Result<()>) -> Result<()> {
        let shared = self.shared.clone();
        let body = move || {
            if let Err(e) = run(&shared) {
                shared.fail(e);
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .map_err(|e| Error::from(e).context("start a thread for pages"))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Pages that are there, and all that shall be, of those that follow.
    pub fn progress(&self) -> (u64, u64) {
        (self.shared.pages.load(Ordering::Relaxed), self.shared.total.load(Ordering::Relaxed))
    }

    /// Waits until all pages are there (or `timeout` has passed: `None`).
    ///
    /// # Errors
    /// A page could not be read, was damaged or could not be put into place. Threads that wait for pages wait on: the
    /// programs have to be killed before this monitor is dropped.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<Outcome>> {
        let deadline = timeout.map(|t| Instant::now() + t);
        let mut progress = lock(&self.shared.progress);
        loop {
            if let Some(e) = &progress.failure {
                return Err(e.clone());
            }
            if let Some(took) = progress.took {
                return Ok(Some(Outcome {
                    pages: self.shared.pages.load(Ordering::Relaxed),
                    faults: self.shared.faults.load(Ordering::Relaxed),
                    order: lock(&self.shared.order).clone(),
                    took,
                }));
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            let waited = match left {
                Some(left) => self
                    .shared
                    .changed
                    .wait_timeout(progress, left)
                    .map(|(g, _)| g)
                    .map_err(|e| e.into_inner().0),
                None => self.shared.changed.wait(progress).map_err(PoisonError::into_inner),
            };
            progress = waited.unwrap_or_else(|guard| guard);
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("progress", &self.progress()).finish_non_exhaustive()
    }
}

impl Shared {
    fn spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.wake.write(1);
        self.changed.notify_all();
    }

    fn fail(&self, e: Error) {
        lock(&self.progress).failure.get_or_insert(e);
        let _ = self.ended.write(1);
        self.stop();
    }

    /// Waits for events of all address spaces, and answers them.
    fn serve(&self) -> Result<()> {
        let mut buffer = Buffer::new();
        while !self.stopped() {
            let spaces: Vec<_> = self.spaces().into_iter().filter(|s| !s.is_done()).collect();
            let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            let uffds: Vec<_> = spaces.iter().map(|s| s.descriptor()).collect();
            fds.extend(uffds.iter().flatten().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(Error::from(e).context("wait for page faults")),
            }
            let _ = self.wake.read();
            drop(uffds);
            for space in &spaces {
                self.serve_one(space, &mut buffer)?;
            }
        }
        Ok(())
    }

    fn serve_one(&self, space: &Arc<Space>, buffer: &mut Buffer) -> Result<()> {
        let Served { faults, children } = space.read_events()?;
        if !children.is_empty() {
            self.clear_up(children.len() as u64)?;
        }
        for child in children {
            if let (Some(share), Some(fd)) = (&self.options.share, child.descriptor()) {
                share(Sharing::Keep(fd.as_fd()))?;
            }
            self.total.fetch_add(child.pages(), Ordering::Relaxed);
            lock(&self.progress).open += 1;
            self.spaces.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(child));
            self.changed.notify_all();
        }
        if faults.is_empty() {
            return Ok(());
        }
        self.faults.fetch_add(faults.len() as u64, Ordering::Relaxed);
        for address in &faults {
            space.answer(&self.chain, *address, buffer)?;
        }
        let mut order = lock(&self.order);
        let room = working_set::MAX.saturating_sub(order.len());
        order.extend(faults.into_iter().take(room).map(|address| (space.object, address)));
        drop(order);
        self.changed.notify_all();
        Ok(())
    }

    /// Lets go of children that have ended, or have executed another program, which nobody tells: as many as there are,
    /// so that the work is spread over those that come.
    fn clear_up(&self, forked: u64) -> Result<()> {
        const FEW: u64 = 16;
        let since = self.forked.fetch_add(forked, Ordering::Relaxed) + forked;
        if since < FEW.max(self.spaces().len() as u64 / 2) {
            return Ok(());
        }
        self.forked.store(0, Ordering::Relaxed);
        let mut gone = Vec::new();
        self.spaces.write().unwrap_or_else(PoisonError::into_inner).retain(|space| {
            let over = space.child_is_gone();
            if over {
                gone.push(space.clone());
            }
            !over
        });
        for space in gone {
            // Those that bring pages may have found out at the same time.
            if let Some(closed) = space.abandon() {
                self.complete(&space, &closed)?;
            }
        }
        Ok(())
    }

    /// Brings pages in until all are there.
    fn prefetch(&self) -> Result<()> {
        let mut buffer = Buffer::new();
        while !self.stopped() {
            let mut worked = false;
            for space in self.spaces().iter().filter(|s| !s.is_done()) {
                // A while with each, so that none starves.
                for _ in 0..8 {
                    let Some(pages) = space.bring(&self.chain, &mut buffer)? else { break };
                    self.pages.fetch_add(pages, Ordering::Relaxed);
                    worked = true;
                    if self.stopped() {
                        return Ok(());
                    }
                }
                if let Some(closed) = space.finish()? {
                    self.complete(space, &closed)?;
                    worked = true;
                }
            }
            if !worked {
                // Others are at the last pages, or at a fork.
                let progress = lock(&self.progress);
                if progress.open > 0 && !self.stopped() {
                    let _ = self.changed.wait_timeout(progress, Duration::from_millis(1));
                }
            }
        }
        Ok(())
    }

    /// All pages of an address space are there, or it is gone. `closed` is the descriptor that it had.
    fn complete(&self, space: &Space, closed: &OwnedFd) -> Result<()> {
        if let Some(share) = &self.options.share {
            share(Sharing::Forget(closed.as_fd()))?;
        }
        let mut progress = lock(&self.progress);
        progress.open -= 1;
        if progress.open == 0 {
            progress.took = Some(self.begun.elapsed());
            drop(progress);
            let _ = self.ended.write(1);
            self.stop();
        } else {
            drop(progress);
            let _ = self.wake.write(1);
        }
        if self.options.collapse {
            space.collapse();
        }
        Ok(())
    }
}

/// Positions still to be brought in.
type Queue = VecDeque<std::ops::Range<u64>>;
