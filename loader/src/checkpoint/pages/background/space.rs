//! One address space whose pages follow.
//!
//! Every page of the layout is on the queue, or on its way (while the layout is locked for reading), or there. What the
//! program changes about its mappings is followed with the layout locked for writing, and before the kernel lets the
//! program go on: an event is read only under that lock, and as long as one is unread the kernel refuses copies.
#![forbid(unsafe_code)]

use super::{Queue, Waiting};
use crate::checkpoint::pages::fill::cannot_put;
use crate::checkpoint::pages::pool::Buffer;
use crate::checkpoint::pages::{self, Chain, HUGE, Layout, Object, PAGE, Piece, Source, unit};
use crate::sys::{pagemap, process, uffd};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Pages brought in with one that was asked for: the next ones, which will be asked for soon.
const CLUSTER: u64 = 8;
/// `MADV_COLLAPSE` (Linux 6.1).
const MADV_COLLAPSE: i32 = 25;
/// Messages read at a time.
const MESSAGES: usize = 32;

#[derive(Debug)]
pub(super) struct Space {
    pub(super) object: Object,
    /// 0 for a child that was forked meanwhile: nobody tells.
    pid: i32,
    /// `None` when all pages are there.
    uffd: RwLock<Option<Arc<OwnedFd>>>,
    layout: RwLock<Layout>,
    queue: Mutex<Queue>,
    done: AtomicBool,
}

/// What events asked for.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// Addresses of pages that somebody waits for.
    pub(super) faults: Vec<u64>,
    /// Address spaces of children.
    pub(super) children: Vec<Space>,
}

/// How putting pages into place ended.
enum Put {
    /// All are there.
    All,
    /// This many bytes are; the mappings are being changed.
    Later(usize),
    /// The address space is no more.
    Gone,
}

impl Space {
    pub(super) fn register(waiting: Waiting, first: &[(Object, u64)]) -> Result<Self> {
        let Waiting { object, pid, uffd, layout, ranges } = waiting;
        for range in &ranges {
            if layout.within(range.start..range.end).next().is_none() {
                continue;
            }
            uffd::register(uffd.as_fd(), range.start, range.end - range.start, uffd::MODE_MISSING).map_err(
                |e| {
                    let span = format!("{:#x}-{:#x}", range.start, range.end);
                    Error::from(e).context(format!("register {span} of {object} for faults"))
                },
            )?;
        }
        let queue = order(&layout, &ranges, object, first);
        Ok(Self::new(object, pid, uffd, layout, queue))
    }

    fn new(object: Object, pid: i32, uffd: OwnedFd, layout: Layout, queue: Queue) -> Self {
        Self {
            object,
            pid,
            uffd: RwLock::new(Some(Arc::new(uffd))),
            layout: RwLock::new(layout),
            queue: Mutex::new(queue),
            done: AtomicBool::new(false),
        }
    }

    /// Pages still on the queue.
    pub(super) fn pages(&self) -> u64 {
        let (layout, queue) = (self.layout(), self.queue());
        queue.iter().flat_map(|r| layout.within(r.clone())).map(|p| p.pages).sum()
    }

    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    pub(super) fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.uffd.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn layout(&self) -> RwLockReadGuard<'_, Layout> {
        self.layout.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn layout_mut(&self) -> RwLockWriteGuard<'_, Layout> {
        self.layout.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the kernel has to tell, and follows it.
    pub(super) fn read_events(&self) -> Result<Served> {
        let mut layout = self.layout_mut();
        let Some(uffd) = self.descriptor() else { return Ok(Served::default()) };
        self.follow(&mut layout, &uffd)
    }

    fn follow(&self, layout: &mut Layout, uffd: &OwnedFd) -> Result<Served> {
        let mut served = Served::default();
        let mut room = uffd::Messages::new(MESSAGES);
        loop {
            let events = uffd::read(uffd.as_fd(), &mut room)
                .map_err(|e| Error::from(e).context(format!("read page faults of {}", self.object)))?;
            let last = events.len() < MESSAGES;
            for event in events {
                match event {
                    uffd::Event::Fault { address, .. } => served.faults.push(address),
                    uffd::Event::Fork(uffd) => {
                        let queue = self.queue().clone();
                        served.children.push(Self::new(self.object, 0, uffd, layout.clone(), queue));
                    }
                    uffd::Event::Remap { from, to, len } => self.remap(layout, from, to, len),
                    uffd::Event::Remove { start, end } | uffd::Event::Unmap { start, end } => {
                        layout.cut(start..end);
                    }
                    uffd::Event::Unknown(number) => {
                        log::warn!("unknown event {number:#x} of a userfaultfd");
                    }
                }
            }
            if last {
                return Ok(served);
            }
        }
    }

    fn remap(&self, layout: &mut Layout, from: u64, to: u64, len: u64) {
        let Some((end, to_end)) = from.checked_add(len).zip(to.checked_add(len)) else { return };
        let shift = |position: u64| position - from + to;
        let mut moved = layout.cut(from..end);
        layout.cut(to..to_end);
        moved.iter_mut().for_each(|piece| piece.start = shift(piece.start));
        layout.put(&moved);
        // What was still to come, comes there.
        let mut queue = self.queue();
        let mut changed = Queue::with_capacity(queue.len() + 2);
        for range in queue.drain(..) {
            let inside = range.start.max(from)..range.end.min(end);
            if inside.is_empty() {
                changed.push_back(range);
                continue;
            }
            let around = [range.start..inside.start, inside.end..range.end];
            changed.extend(around.into_iter().filter(|r| !r.is_empty()));
            changed.push_back(shift(inside.start)..shift(inside.end));
        }
        *queue = changed;
    }

    /// Brings in the page at `address`, for which somebody waits, and some that follow it.
    pub(super) fn answer(&self, chain: &Chain, address: u64, buffer: &mut Buffer) -> Result<()> {
        let layout = self.layout();
        let Some(uffd) = self.descriptor() else { return Ok(()) };
        let limit = (address - address % unit::UNIT_BYTES) + unit::UNIT_BYTES;
        let near = address..address.saturating_add(CLUSTER * PAGE).min(limit);
        let piece = layout.within(near).next().filter(|p| p.start == address && p.source != Source::Zero);
        let put = match piece {
            Some(piece) => {
                let content = chain.read(&piece, buffer).map_err(|e| e.context(self.object))?;
                let put = put(&uffd, address, content)?;
                // The program is at work here.
                self.hurry(address, limit);
                put
            }
            // Memory that the program had not touched.
            None => match uffd::zero(uffd.as_fd(), address, PAGE as usize) {
                (_, None) => Put::All,
                (_, Some(Errno::EAGAIN)) => Put::Later(0),
                (_, Some(Errno::EEXIST | Errno::ENOENT | Errno::EINVAL)) => {
                    wake(&uffd, address);
                    Put::All
                }
                (_, Some(Errno::ESRCH)) => Put::Gone,
                (_, Some(e)) => return Err(cannot_put(address, e)),
            },
        };
        match put {
            Put::All => {}
            Put::Gone => self.queue().clear(),
            // An event has to be read first, which is this thread's to do. The fault is reported again.
            Put::Later(0) => wake(&uffd, address),
            Put::Later(_) => {}
        }
        Ok(())
    }

    /// Puts the rest of a unit to the front of the queue.
    fn hurry(&self, address: u64, limit: u64) {
        let mut queue = self.queue();
        let from = address + CLUSTER * PAGE;
        // Only near the front is it worth looking, and there it usually is.
        let at = queue.iter().take(64).position(|r| r.start <= from && limit <= r.end);
        if from >= limit {
            return;
        }
        if let Some(range) = at.and_then(|at| queue.remove(at)) {
            let around = [range.start..from, limit..range.end];
            for rest in around.into_iter().rev().filter(|r| !r.is_empty()) {
                queue.push_front(rest);
            }
            queue.push_front(from..limit);
        }
    }

    /// Brings in a unit of the queue. `None` when that is empty, or has to wait.
    pub(super) fn bring(&self, chain: &Chain, buffer: &mut Buffer) -> Result<Option<u64>> {
        let layout = self.layout();
        let Some(uffd) = self.descriptor() else { return Ok(None) };
        let taken = {
            let mut queue = self.queue();
            let Some(range) = queue.pop_front() else { return Ok(None) };
            let Some((from, to)) = unit::cut(range.start, range.end).next() else { return Ok(Some(0)) };
            if to < range.end {
                queue.push_front(to..range.end);
            }
            from..to
        };
        let mut pages = 0;
        let mut later = false;
        for piece in layout.within(taken.clone()) {
            // Memory is registered as a whole: zeros are zeros when somebody asks.
            if piece.source == Source::Zero {
                continue;
            }
            let content = chain.read(&piece, buffer).map_err(|e| e.context(self.object))?;
            match put(&uffd, piece.start, content)? {
                Put::All => pages += piece.pages,
                Put::Later(done) => {
                    pages += done as u64 / PAGE;
                    self.queue().push_front(piece.start + done as u64..taken.end);
                    later = true;
                    break;
                }
                Put::Gone => {
                    self.queue().clear();
                    return Ok(None);
                }
            }
        }
        drop(layout);
        if later {
            // The thread that reads events is at it, or about to be.
            std::thread::yield_now();
        }
        Ok(Some(pages))
    }

    /// Ends this address space when nothing is left to come: the one caller who found that out gets its descriptor, whose
    /// last copy shall be closed.
    pub(super) fn finish(&self) -> Result<Option<Arc<OwnedFd>>> {
        if !self.queue().is_empty() {
            return Ok(None);
        }
        // Nothing is on its way while this is locked.
        let mut layout = self.layout_mut();
        let Some(uffd) = self.descriptor().filter(|_| self.queue().is_empty()) else { return Ok(None) };
        // A child whose making was not reported yet has all pages too, or they would be on the queue: its descriptor is
        // closed with what `follow` gives. Whoever waits for a page of zeros is woken by the end.
        self.follow(&mut layout, &uffd)?;
        drop(uffd);
        Ok(self.close())
    }

    /// Whether this is a child of whose process nothing is left.
    pub(super) fn child_is_gone(&self) -> bool {
        // Any page that a process may have.
        const SOMEWHERE: u64 = 1 << 20;
        let gone = |uffd: Arc<OwnedFd>| uffd::is_gone(uffd.as_fd(), SOMEWHERE, PAGE);
        self.pid == 0 && !self.is_done() && self.descriptor().is_some_and(gone)
    }

    /// Ends an address space that is gone. Its descriptor for the first who does so.
    pub(super) fn abandon(&self) -> Option<Arc<OwnedFd>> {
        let _nobody_at_work = self.layout_mut();
        self.queue().clear();
        self.close()
    }

    /// When the last copy of the descriptor is closed nothing is registered any more, and all waiters look again.
    fn close(&self) -> Option<Arc<OwnedFd>> {
        self.done.store(true, Ordering::Release);
        self.uffd.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Makes huge pages of what had been such, as far as memory allows.
    pub(super) fn collapse(&self) {
        let blocks = self.layout().huge_pages();
        if self.pid == 0 || blocks.is_empty() {
            return;
        }
        let Ok(pidfd) = process::pidfd_open(self.pid) else { return };
        for block in blocks {
            match pagemap::advise(pidfd.as_fd(), block, HUGE, MADV_COLLAPSE) {
                Ok(_) | Err(Errno::EAGAIN | Errno::EBUSY | Errno::EINVAL) => {}
                // No memory in one piece, no such advice, no process.
                Err(_) => return,
            }
        }
    }
}

fn wake(uffd: &OwnedFd, address: u64) {
    let _ = uffd::wake(uffd.as_fd(), address, PAGE);
}

/// Puts pages into place. Those that are there already stay.
fn put(uffd: &OwnedFd, at: u64, content: &[u8]) -> Result<Put> {
    let mut done = 0;
    while let Some(rest) = content.get(done..).filter(|r| !r.is_empty()) {
        let to = at + done as u64;
        let (n, error) = uffd::copy(uffd.as_fd(), to, rest);
        done += n;
        match error {
            None => {}
            Some(Errno::EAGAIN) if n > 0 => {}
            Some(Errno::EAGAIN) => return Ok(Put::Later(done)),
            Some(Errno::EEXIST) => {
                wake(uffd, at + done as u64);
                done += PAGE as usize;
            }
            // The range may be of several mappings by now, or of none: page by page.
            Some(Errno::ENOENT | Errno::EINVAL) if content.len() - done > PAGE as usize => {
                let page = content.get(done..done + PAGE as usize).unwrap_or_default();
                match put(uffd, at + done as u64, page)? {
                    Put::All => done += PAGE as usize,
                    Put::Later(_) => return Ok(Put::Later(done)),
                    Put::Gone => return Ok(Put::Gone),
                }
            }
            Some(Errno::ENOENT | Errno::EINVAL) => {
                wake(uffd, at + done as u64);
                done += PAGE as usize;
            }
            Some(Errno::ESRCH) => return Ok(Put::Gone),
            Some(e) => return Err(cannot_put(at + done as u64, e)),
        }
    }
    Ok(Put::All)
}

/// The order in which pages are brought in: those that are known to be asked for, then small mappings (stacks, data), then
/// large ones.
fn order(layout: &Layout, ranges: &[pages::Range], object: Object, first: &[(Object, u64)]) -> Queue {
    let mut rest = layout.clone();
    let mut queue = Queue::new();
    for (_, position) in first.iter().filter(|(o, _)| *o == object) {
        // With its neighbours: the record has only what was not brought in before it was asked for.
        let from = position - position % unit::UNIT_BYTES;
        let unit = from..from.saturating_add(unit::UNIT_BYTES);
        if !rest.cut(unit.clone()).is_empty() {
            queue.push_back(unit);
        }
    }
    let mut mappings: Vec<(u64, Vec<Range<u64>>)> = ranges
        .iter()
        .map(|range| {
            let pieces: Vec<Piece> = rest.within(range.start..range.end).collect();
            (pieces.iter().map(|p| p.pages).sum(), spans(&pieces))
        })
        .collect();
    mappings.sort_by_key(|(pages, _)| *pages);
    queue.extend(mappings.into_iter().flat_map(|(_, spans)| spans));
    queue
}

/// Where pieces are; small holes between them do not matter.
fn spans(pieces: &[Piece]) -> Vec<Range<u64>> {
    let mut spans: Vec<Range<u64>> = Vec::new();
    for piece in pieces {
        match spans.last_mut() {
            Some(last) if piece.start - last.end < unit::UNIT_BYTES => last.end = piece.end(),
            _ => spans.push(piece.start..piece.end()),
        }
    }
    spans
}
