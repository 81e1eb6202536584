//! Writing pages into a pages file, and the index of it.
#![forbid(unsafe_code)]

mod gather;
mod space;
mod worker;

use super::parallel::{self, Queue};
use super::{Chain, Index, Layout, Memory, Object, Run, SumKind};
use crate::checkpoint::image::Compression;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek};
use space::Space;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Units that a thread takes at a time: neighbours stay together in the file.
const UNITS_AT_A_TIME: usize = 8;

/// How pages are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Threads; 0 means one for each core (at most 8).
    pub threads: usize,
    /// Compression of page data. Compressed pages take longer both ways.
    pub compression: Compression,
    /// Checksums of pages.
    pub sums: SumKind,
    /// Write past the page cache (O_DIRECT). Where the filesystem cannot, pages are written as usual. Not for compressed
    /// pages.
    pub direct: bool,
    /// Identity of the image.
    pub id: [u8; 16],
}

/// Where content comes from.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// These runs of an address space.
    Memory(&'a Memory, &'a [Run]),
    /// A file (memfd, SysV segment, file on tmpfs, deleted file): all of the first bytes, holes excepted.
    File(BorrowedFd<'a>, u64),
}

/// An address space that another one was forked from: pages that did not change since are stored once.
#[derive(Debug, Clone, Copy)]
pub struct Like<'a> {
    /// It; must be written before, or come before in the same call.
    pub object: Object,
    /// Its memory.
    pub memory: &'a Memory,
    /// What was (or is being) written of it.
    pub runs: &'a [Run],
}

/// What the parent image has of an object.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The object in the parent image.
    pub object: Object,
    /// Its pages.
    pub layout: &'a Layout,
    /// The parent image and its ancestors.
    pub chain: &'a Chain,
    /// Pages that may have changed are compared with the parent image's by their checksums.
    pub compare: bool,
}

/// An object to write.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Which.
    pub object: Object,
    /// Its content.
    pub content: Content<'a>,
    /// For forked address spaces.
    pub like: Option<Like<'a>>,
    /// For incremental images.
    pub known: Option<Known<'a>>,
}

/// What was done, in pages and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pages stored in this image.
    pub stored: u64,
    /// Pages found to be zeros.
    pub zero: u64,
    /// Pages equal to those of a forked address space.
    pub like: u64,
    /// Pages that the parent image has.
    pub parent: u64,
    /// Bytes of page data written.
    pub bytes: u64,
}

/// Called by the thread that writes, now and then: pages dealt with so far, and in all (of this [`Writer::add`]).
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Writes pages. Not complete until [`Writer::finish`].
#[derive(Debug)]
pub struct Writer {
    file: File,
    base: u64,
    options: Options,
    index: Index,
    space: Space,
    stats: Stats,
    direct: Option<Direct>,
}

impl Writer {
    /// Writes to `file` from offset `base` (a multiple of the page size) on. With `base` 0 the file is emptied first. It
    /// is open for writing without O_APPEND; its position is not used.
    ///
    /// # Errors
    /// I/O; an unsuitable `base`.
    pub fn new(file: File, base: u64, options: Options) -> Result<Self> {
        if !base.is_multiple_of(super::PAGE) {
            return Err(Error::new(Kind::InvalidArgument, "page data must begin on a page boundary"));
        }
        if base == 0 {
            file.set_len(0).map_err(|e| Error::from(e).context("empty the pages file"))?;
        }
        let mut seed = [0; 8];
        crate::sys::random::fill(&mut seed)?;
        let index = Index {
            id: options.id,
            compression: options.compression,
            sum_kind: options.sums,
            seed: u64::from_ne_bytes(seed),
            ..Index::default()
        };
        let direct = options.direct && options.compression == Compression::None;
        let direct = if direct { Direct::set(&file) } else { None };
        Ok(Self { file, base, options, index, space: Space::default(), stats: Stats::default(), direct })
    }

    /// Pages refer to the image with this identity ([`Task::known`]). To be called before they are added.
    pub fn set_parent(&mut self, id: [u8; 16]) {
        self.index.parent = Some(id);
    }

    /// Writes objects, each once in a writer's life, with all cores: those of one call share the work.
    ///
    /// # Errors
    /// A page cannot be read or written; the image is of no use then. A full disk is named as such.
    pub fn add(&mut self, tasks: &[Task<'_>], progress: Option<Progress<'_>>) -> Result<Stats> {
        for (i, task) in tasks.iter().enumerate() {
            let twice = tasks.iter().take(i).any(|t| t.object == task.object);
            if twice || self.index.contains(task.object) {
                return Err(Error::failure(format!("{} is written twice", task.object)));
            }
            let unknown = task.like.is_some_and(|l| {
                !self.index.contains(l.object) && !tasks.iter().take(i).any(|t| t.object == l.object)
            });
            if unknown || (task.known.is_some() && self.index.parent.is_none()) {
                return Err(Error::failure(format!("{} refers to what is not there", task.object)));
            }
        }
        let work = gather::gather(tasks)?;
        let threads = parallel::threads(self.options.threads, work.pages);
        self.space.set_extent(work.pages, threads);
        let queue = Queue::new(work.units.len());
        let (writer, done) = (&*self, AtomicU64::new(0));
        let outputs = parallel::run(threads, &queue, |number| {
            let mut worker = worker::Worker::new(writer, tasks, &work);
            while let Some(units) = queue.take(UNITS_AT_A_TIME) {
                let pages = worker.run(units)?;
                let so_far = done.fetch_add(pages, Ordering::Relaxed) + pages;
                if let Some(progress) = progress.filter(|_| number == 0) {
                    progress(so_far, work.pages);
                }
            }
            Ok(worker.finish())
        })?;
        let stats = self.collect(tasks, &work, outputs);
        if let Some(progress) = progress {
            progress(work.pages, work.pages);
        }
        Ok(stats)
    }

    /// Puts what the threads made into the index.
    fn collect(&mut self, tasks: &[Task<'_>], work: &gather::Work, outputs: Vec<worker::Output>) -> Stats {
        let mut stats = Stats::default();
        for output in &outputs {
            stats.stored += output.stats.stored;
            stats.zero += output.stats.zero;
            stats.like += output.stats.like;
            stats.parent += output.stats.parent;
            stats.bytes += output.stats.bytes;
        }
        let mut lists: Vec<Vec<(usize, super::Entry)>> = vec![Vec::new(); tasks.len()];
        for (number, output) in outputs.iter().enumerate() {
            for (task, entry) in &output.entries {
                if let Some(list) = lists.get_mut(*task) {
                    list.push((number, *entry));
                }
            }
        }
        for (task, entry) in &work.unchanged {
            stats.parent += entry.pages;
            if let Some(list) = lists.get_mut(*task) {
                list.push((usize::MAX, *entry));
            }
        }
        let width = self.index.sum_kind.width();
        let mut sums = std::mem::take(&mut self.index.sums);
        let mut count =
            self.index.objects.iter().flat_map(|(_, e)| e).filter(|e| e.has_sums()).map(|e| e.pages).sum();
        for (task, mut list) in tasks.iter().zip(lists) {
            list.sort_unstable_by_key(|(_, e)| e.start);
            let mut entries: Vec<super::Entry> = Vec::with_capacity(list.len());
            for (number, mut entry) in list {
                if entry.has_sums() {
                    let from = entry.sum as usize * width;
                    let of = outputs
                        .get(number)
                        .and_then(|o| o.sums.get(from..from + entry.pages as usize * width));
                    sums.extend_from_slice(of.unwrap_or_default());
                    entry.sum = count;
                    count += entry.pages;
                } else {
                    entry.sum = count;
                }
                match entries.last_mut() {
                    Some(last) if last.joins(&entry) => last.pages += entry.pages,
                    _ => entries.push(entry),
                }
            }
            self.index.push(task.object, entries);
        }
        self.index.sums = sums;
        for output in outputs {
            self.space.give_back(output.rest);
        }
        self.stats.add(&stats);
        stats
    }

    /// Everything that was added so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Ends: gives the file back, with the index that describes it. Nothing is synced to disk.
    ///
    /// # Errors
    /// I/O.
    pub fn finish(mut self) -> Result<(File, Index)> {
        self.direct = None;
        self.index.data_len = self.space.end();
        if self.base == 0 {
            // The last extent may not be full.
            self.file
                .set_len(self.index.data_len)
                .map_err(|e| Error::from(e).context("set the length of the pages file"))?;
        }
        Ok((self.file, self.index))
    }
}

impl Stats {
    fn add(&mut self, other: &Self) {
        self.stored += other.stored;
        self.zero += other.zero;
        self.like += other.like;
        self.parent += other.parent;
        self.bytes += other.bytes;
    }
}

/// An open file with O_DIRECT set. Its flags are the caller's too (one open file description): dropping puts them back.
#[derive(Debug)]
struct Direct {
    file: File,
    flags: OFlag,
}

impl Direct {
    /// `None` when the filesystem has no such thing.
    fn set(file: &File) -> Option<Self> {
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).ok()?);
        match fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT)) {
            Ok(_) => Some(Self { file: file.try_clone().ok()?, flags }),
            Err(e) => {
                log::info!("pages are written through the page cache: no direct I/O there ({e})");
                None
            }
        }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let _ = fcntl(&self.file, FcntlArg::F_SETFL(self.flags));
    }
}

/// Parts of a file that are not holes.
fn data_ranges(file: BorrowedFd<'_>, len: u64) -> Result<Vec<(u64, u64)>> {
    let failed = |e: Errno| Error::from(e).context("look for data in a memory object");
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < len {
        let from = match lseek(file, at as i64, Whence::SeekData) {
            Ok(from) => from as u64,
            Err(Errno::ENXIO) => break,
            // No such thing here (hugetlbfs before 4.3, some FUSE): all of it.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                ranges.push((at, len));
                break;
            }
            Err(e) => return Err(failed(e)),
        };
        let to = lseek(file, from as i64, Whence::SeekHole).map_err(failed)? as u64;
        let (from, to) = (from / super::PAGE * super::PAGE, to.min(len).next_multiple_of(super::PAGE));
        if from >= to.min(len) {
            break;
        }
        ranges.push((from, to));
        at = to;
    }
    Ok(ranges)
}

/// A file's data as runs.
fn file_runs(file: BorrowedFd<'_>, len: u64) -> Result<Vec<Run>> {
    let run = |(from, to): (u64, u64)| Run {
        start: from,
        pages: (to - from) / super::PAGE,
        kind: super::RunKind::Data,
        huge: false,
        backed: false,
    };
    Ok(data_ranges(file, len)?.into_iter().map(run).collect())
}
