//! Bringing pages back before the program runs.
#![forbid(unsafe_code)]

use super::parallel::{self, Queue};
use super::pool::Buffer;
use super::{Chain, HUGE, Layout, Memory, Object, PAGE, Piece, Range, Source, UNIT, unit};
use crate::sys::mapping::HugeFile;
use crate::sys::uffd;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// An address space that gets its pages. Nothing of it runs meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// For messages.
    pub object: Object,
    /// Its pages.
    pub layout: &'a Layout,
    /// Its memory, with everything mapped that gets pages; ranges that want huge pages have been advised so.
    pub memory: &'a Memory,
    /// What the ranges that get pages are, ascending.
    pub ranges: &'a [Range],
    /// A userfaultfd of the address space, enabled and without registrations: faster. See [`wants_descriptor`].
    pub uffd: Option<BorrowedFd<'a>>,
}

/// What was brought back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// Pages.
    pub pages: u64,
    /// Of them, those in places for huge pages.
    pub huge: u64,
}

/// Called by the thread that fills, now and then: pages brought back so far, and in all.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Pages from which on a descriptor is worth its making.
const DESCRIPTOR_PAGES: u64 = 4 * UNIT;

/// True when a userfaultfd makes filling this address space faster by more than its making costs.
pub fn wants_descriptor(layout: &Layout, ranges: &[Range]) -> bool {
    let copied = |job: &Job| if job.way == Way::Copy { job.piece.pages } else { 0 };
    jobs(0, layout, ranges, true).iter().map(copied).sum::<u64>() >= DESCRIPTOR_PAGES
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// UFFDIO_COPY.
    Copy,
    /// process_vm_writev: huge pages, hugetlbfs, private mappings of files.
    Write,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    target: usize,
    piece: Piece,
    way: Way,
}

/// Fills address spaces with all cores (`threads` 0) or so many.
///
/// # Errors
/// A page cannot be read, is damaged, or cannot be put into place: the address spaces are of no use then.
pub fn fill(
    chain: &Chain,
    targets: &[Target<'_>],
    threads: usize,
    progress: Option<Progress<'_>>,
) -> Result<Filled> {
    let (mut copies, mut writes) = (Vec::new(), Vec::new());
    for (number, target) in targets.iter().enumerate() {
        for job in jobs(number, target.layout, target.ranges, target.uffd.is_some()) {
            if job.way == Way::Copy { &mut copies } else { &mut writes }.push(job);
        }
    }
    let count = |jobs: &[Job]| jobs.iter().map(|j| j.piece.pages).sum::<u64>();
    let (total, done) = (count(&copies) + count(&writes), AtomicU64::new(0));
    let tell = |number: usize, pages: u64| {
        let so_far = done.fetch_add(pages, Ordering::Relaxed) + pages;
        if let Some(progress) = progress.filter(|_| number == 0) {
            progress(so_far, total);
        }
    };
    // Writes first: in a registered range they would wait for ever.
    do_jobs(chain, targets, &writes, threads, &tell)?;
    let registered = register(targets, &copies)?;
    let copied = do_jobs(chain, targets, &copies, threads, &tell);
    for (target, start, len) in registered {
        if let Some(uffd) = targets.get(target).and_then(|t| t.uffd) {
            // The descriptor's end ends what is left.
            let _ = uffd::unregister(uffd, start, len);
        }
    }
    copied?;
    let huge = writes.iter().filter(|j| j.piece.huge).map(|j| j.piece.pages).sum();
    Ok(Filled { pages: total, huge })
}

/// Cuts the pages of an address space into jobs of 2 MiB at most.
fn jobs(target: usize, layout: &Layout, ranges: &[Range], descriptor: bool) -> Vec<Job> {
    let (mut jobs, huge) = (Vec::new(), layout.huge_pages());
    for piece in layout.pieces() {
        let mut at = piece.start;
        while at < piece.end() {
            let index = ranges.partition_point(|r| r.end <= at);
            let range = ranges.get(index).filter(|r| r.start <= at);
            let block = (at - at % HUGE).saturating_add(HUGE);
            let limit = match (range, ranges.get(index)) {
                (Some(r), _) => r.end,
                // Between ranges: the write will tell what is wrong.
                (None, Some(next)) => next.start,
                (None, None) => u64::MAX,
            };
            let end = piece.end().min(block).min(limit);
            let range = range.copied().unwrap_or_default();
            let whole = huge.binary_search(&(at - at % HUGE)).is_ok();
            let plain = !range.hugetlb() && !range.backed && !range.file_pages && range.end != 0;
            let way = if plain && !whole && descriptor { Way::Copy } else { Way::Write };
            // New anonymous memory has zeros.
            if !(plain && piece.source == Source::Zero) {
                jobs.push(Job { target, piece: piece.part(at..end), way });
            }
            at = end;
        }
    }
    jobs
}

/// Registers the ranges that jobs copy to. Returns what was registered.
fn register(targets: &[Target<'_>], jobs: &[Job]) -> Result<Vec<(usize, u64, u64)>> {
    let mut registered: Vec<(usize, u64, u64)> = Vec::new();
    for job in jobs {
        let there = |(t, start, len): &(usize, u64, u64)| {
            *t == job.target && *start <= job.piece.start && job.piece.end() <= start + len
        };
        if registered.last().is_some_and(there) {
            continue;
        }
        let Some(target) = targets.get(job.target) else { continue };
        let index = target.ranges.partition_point(|r| r.end <= job.piece.start);
        let (Some(range), Some(uffd)) = (target.ranges.get(index), target.uffd) else { continue };
        let len = range.end - range.start;
        uffd::register(uffd, range.start, len, uffd::MODE_MISSING).map_err(|e| {
            let span = format!("{:#x}-{:#x}", range.start, range.end);
            Error::from(e).context(format!("register {span} of {} for filling", target.object))
        })?;
        registered.push((job.target, range.start, len));
    }
    Ok(registered)
}

fn do_jobs(
    chain: &Chain,
    targets: &[Target<'_>],
    jobs: &[Job],
    threads: usize,
    tell: &(impl Fn(usize, u64) + Sync),
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let pages = jobs.iter().map(|j| j.piece.pages).sum();
    let queue = Queue::new(jobs.len());
    parallel::run(parallel::threads(threads, pages), &queue, |number| {
        let mut buffer = Buffer::new();
        while let Some(range) = queue.take(1) {
            for job in jobs.get(range).unwrap_or_default() {
                let Some(target) = targets.get(job.target) else { continue };
                for piece in unit::pieces(&job.piece) {
                    let content = chain.read(&piece, &mut buffer);
                    let put = content.and_then(|c| put(target, piece.start, c, job.way));
                    put.map_err(|e| e.context(format!("restore {}", target.object)))?;
                }
                tell(number, job.piece.pages);
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn put(target: &Target<'_>, at: u64, content: &[u8], way: Way) -> Result<()> {
    let uffd = match (way, target.uffd) {
        (Way::Copy, Some(uffd)) => uffd,
        _ => return target.memory.write(at, content),
    };
    let mut done = 0;
    while let Some(rest) = content.get(done..).filter(|r| !r.is_empty()) {
        let to = at + done as u64;
        let (n, error) = uffd::copy(uffd, to, rest);
        done += n;
        match error {
            None | Some(Errno::EAGAIN | Errno::EINTR) => {}
            // Somebody was here before us, or the mapping is not what it should be: the slow way knows.
            Some(Errno::EEXIST | Errno::ENOENT | Errno::EINVAL) => {
                let page = content.get(done..done + PAGE as usize).unwrap_or_default();
                target.memory.write(at + done as u64, page)?;
                done += PAGE as usize;
            }
            Some(e) => return Err(cannot_put(to + n as u64, e)),
        }
    }
    Ok(())
}

/// Why a page could not be put into place.
pub(super) fn cannot_put(at: u64, e: Errno) -> Error {
    let (kind, text) = match e {
        Errno::ESRCH => (Kind::NoSuchEntity, "the process has ended (was it killed for want of memory?)"),
        Errno::ENOMEM => (
            Kind::Failure,
            "there is not enough memory: check the container's memory limit and the machine's",
        ),
        other => (Kind::Failure, other.desc()),
    };
    Error::new(kind, format!("put page {at:#x} into place: {text}"))
}

/// Fills a file (memfd, SysV segment, file on tmpfs, deleted file) of `len` bytes, which has its length already, with
/// the pages of an object.
///
/// # Errors
/// A page cannot be read, is damaged, or cannot be written.
pub fn fill_file(
    chain: &Chain,
    object: Object,
    file: BorrowedFd<'_>,
    len: u64,
    threads: usize,
    progress: Option<Progress<'_>>,
) -> Result<Filled> {
    let layout = chain.layout(object)?;
    if let Some(last) = layout.pieces().last().filter(|p| p.end() > len.next_multiple_of(PAGE)) {
        let text = format!("{object} has {len} bytes, but the image has pages of it up to {:#x}", last.end());
        return Err(Error::new(Kind::Serde, text));
    }
    let pieces: Vec<Piece> = layout.pieces().iter().flat_map(unit::pieces).collect();
    let (total, done) = (layout.pages(), AtomicU64::new(0));
    let huge = std::sync::OnceLock::new();
    let queue = Queue::new(pieces.len());
    parallel::run(parallel::threads(threads, total), &queue, |number| {
        let mut buffer = Buffer::new();
        while let Some(range) = queue.take(8) {
            for piece in pieces.get(range).unwrap_or_default() {
                let content = chain.read(piece, &mut buffer)?;
                let there = usize::try_from(len - piece.start).unwrap_or(usize::MAX).min(content.len());
                let content = content.get(..there).unwrap_or_default();
                let written = match write_file(file, piece.start, content) {
                    // hugetlbfs has no such call.
                    Err(Errno::EINVAL) => huge
                        .get_or_init(|| HugeFile::map(file, len))
                        .as_ref()
                        .map_err(|e| *e)
                        .and_then(|f| f.write(piece.start, content)),
                    other => other,
                };
                written.map_err(|e| {
                    Error::from(e).context(format!("write {object} at offset {:#x}", piece.start))
                })?;
                let so_far = done.fetch_add(piece.pages, Ordering::Relaxed) + piece.pages;
                if let Some(progress) = progress.filter(|_| number == 0) {
                    progress(so_far, total);
                }
            }
        }
        Ok(())
    })?;
    Ok(Filled { pages: total, huge: 0 })
}

fn write_file(file: BorrowedFd<'_>, at: u64, content: &[u8]) -> std::result::Result<(), Errno> {
    let mut done = 0;
    while let Some(rest) = content.get(done..).filter(|r| !r.is_empty()) {
        match nix::sys::uio::pwrite(file, rest, (at + done as u64) as i64) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
