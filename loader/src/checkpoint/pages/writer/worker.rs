//! What a thread does with a unit: read, look, compare, write.
#![forbid(unsafe_code)]

use super::gather::{Segment, Unit, Work};
use super::{Content, Known, Like, Stats, Task, Writer};
use crate::checkpoint::image::Compression;
use crate::checkpoint::pages::pool::Buffer;
use crate::checkpoint::pages::{Entry, PAGE, Place, RunKind, Source};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::sys::uio::{pwrite, pwritev};
use std::fs::File;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::BorrowedFd;

const PAGE_BYTES: usize = PAGE as usize;

/// What a thread made.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Number of the task; entries whose `sum` counts in `sums`.
    pub(super) entries: Vec<(usize, Entry)>,
    pub(super) sums: Vec<u8>,
    pub(super) stats: Stats,
    /// The extent that was not used up.
    pub(super) rest: Range<u64>,
}

pub(super) struct Worker<'a> {
    writer: &'a Writer,
    tasks: &'a [Task<'a>],
    work: &'a Work,
    buffer: Buffer,
    other: Buffer,
    out: Output,
    sum: u64,
}

/// Pages of a unit, one after the other, to which the same happens.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// First page in the buffer.
    at: usize,
    entry: Entry,
    data: bool,
}

impl<'a> Worker<'a> {
    pub(super) fn new(writer: &'a Writer, tasks: &'a [Task<'a>], work: &'a Work) -> Self {
        let (buffer, other) = (Buffer::new(), Buffer::new());
        Self { writer, tasks, work, buffer, other, out: Output::default(), sum: 0 }
    }

    pub(super) fn finish(self) -> Output {
        self.out
    }

    /// Does these units; returns how many pages they had.
    pub(super) fn run(&mut self, units: Range<usize>) -> Result<u64> {
        let mut pages = 0;
        for unit in self.work.units.get(units).unwrap_or_default() {
            let Some(task) = self.tasks.get(unit.task) else { continue };
            self.unit(task, unit).map_err(|e| e.context(format!("save {}", task.object)))?;
            pages += unit.pages;
        }
        Ok(pages)
    }

    fn unit(&mut self, task: &Task<'_>, unit: &Unit) -> Result<()> {
        let segments = self.work.segments.get(unit.segments.clone()).unwrap_or_default();
        let buffer = self.buffer.pages((unit.pages * PAGE) as usize)?;
        let mut groups = Vec::new();
        let mut at = 0;
        for segment in segments {
            let (from, to) = (at * PAGE_BYTES, (at + segment.pages as usize) * PAGE_BYTES);
            let Some(bytes) = buffer.get_mut(from..to) else { break };
            read(&task.content, segment.start, bytes)?;
            let same = match &task.like {
                Some(like) => Some(read_like(like, segment, &mut self.other)?),
                None => None,
            };
            look(task, segment, bytes, same, at, &mut groups, &mut self.out.stats);
            at += segment.pages as usize;
        }
        let bytes = &*buffer;
        for group in &mut groups {
            group.entry.sum = self.sum;
            if group.data {
                for page in pages_of(bytes, group).chunks_exact(PAGE_BYTES) {
                    self.writer.index.sum_kind.append(self.writer.index.seed, page, &mut self.out.sums);
                }
                self.sum += group.entry.pages;
            }
        }
        self.out.entries.extend(groups.iter().filter(|g| !g.data).map(|g| (unit.task, g.entry)));
        groups.retain(|g| g.data);
        match self.writer.options.compression {
            Compression::None => store_raw(self.writer, &mut self.out, unit.task, &groups, bytes),
            _ => store_packed(self.writer, &mut self.out, unit.task, &groups, bytes),
        }
    }
}

fn pages_of<'b>(bytes: &'b [u8], group: &Group) -> &'b [u8] {
    let from = group.at * PAGE_BYTES;
    bytes.get(from..from + group.entry.pages as usize * PAGE_BYTES).unwrap_or_default()
}

fn read(content: &Content<'_>, start: u64, bytes: &mut [u8]) -> Result<()> {
    match content {
        Content::Memory(memory, _) => memory.read(start, bytes),
        Content::File(fd, len) => read_file(*fd, *len, start, bytes),
    }
}

/// Reads a file that may end within the last page.
fn read_file(fd: BorrowedFd<'_>, len: u64, start: u64, bytes: &mut [u8]) -> Result<()> {
    let there = usize::try_from(len.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
    let (content, behind) = bytes.split_at_mut(there);
    behind.fill(0);
    let mut done = 0;
    while let Some(rest) = content.get_mut(done..).filter(|r| !r.is_empty()) {
        match nix::sys::uio::pread(fd, rest, (start + done as u64) as i64) {
            // It became shorter meanwhile.
            Ok(0) => {
                rest.fill(0);
                break;
            }
            Ok(n) => done += n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(Error::from(e).context(format!("read offset {:#x}", start + done as u64))),
        }
    }
    Ok(())
}

/// Reads the same pages of the other address space; where it has none that is stored, zeros, which no page that is
/// compared can equal.
fn read_like<'b>(like: &Like<'_>, segment: &Segment, buffer: &'b mut Buffer) -> Result<&'b [u8]> {
    let bytes = buffer.pages((segment.pages * PAGE) as usize)?;
    bytes.fill(0);
    let end = segment.start + segment.pages * PAGE;
    let first = like.runs.partition_point(|r| r.end() <= segment.start);
    for run in like.runs.iter().skip(first).take_while(|r| r.start < end) {
        if run.kind == RunKind::Guard {
            continue;
        }
        let (from, to) = (run.start.max(segment.start), run.end().min(end));
        let span = (from - segment.start) as usize..(to - segment.start) as usize;
        if let Some(bytes) = bytes.get_mut(span) {
            like.memory.read(from, bytes)?;
        }
    }
    Ok(bytes)
}

fn is_zero(page: &[u8]) -> bool {
    let (words, _) = page.as_chunks::<64>();
    words.iter().all(|w| *w == [0; 64])
}

/// True when the parent image has just this page.
fn is_known(known: &Known<'_>, position: u64, page: &[u8]) -> bool {
    let Some(piece) = known.layout.within(position..position + PAGE).next() else { return false };
    let (image, sum) = match piece.source {
        Source::Zero => return false,
        Source::Raw { image, sum, .. } => (image, sum),
        Source::Packed { image, sum, skip, .. } => (image, sum + u64::from(skip)),
    };
    let Some(index) = known.chain.images().get(image as usize).map(|i| &i.index) else { return false };
    index.sum_kind.width() > 0
        && index.sum(sum).is_some_and(|sum| index.sum_kind.matches(index.seed, page, sum))
}

/// Decides for each page of a segment what becomes of it, and puts neighbours with the same fate together.
fn look(
    task: &Task<'_>,
    segment: &Segment,
    bytes: &[u8],
    same: Option<&[u8]>,
    at: usize,
    groups: &mut Vec<Group>,
    stats: &mut Stats,
) {
    let known = task.known.filter(|k| k.compare);
    let first = groups.len();
    for (i, page) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
        let start = segment.start + i as u64 * PAGE;
        let alike = || same.and_then(|s| s.get(i * PAGE_BYTES..(i + 1) * PAGE_BYTES)) == Some(page);
        // The offset is not known yet; all that matters here is which kind it is.
        let (place, count) = if is_zero(page) {
            (Place::Zero, &mut stats.zero)
        } else if let Some(like) = task.like.filter(|_| alike()) {
            (Place::Like(like.object), &mut stats.like)
        } else if let Some(known) = known.filter(|k| is_known(k, start, page)) {
            (Place::Parent(known.object), &mut stats.parent)
        } else {
            (Place::Raw { offset: 0 }, &mut stats.stored)
        };
        *count += 1;
        if place == Place::Zero && !segment.backed {
            continue;
        }
        let last = groups.get_mut(first..).and_then(|g| g.last_mut());
        match last {
            Some(g) if g.entry.place == place && g.entry.end() == start => g.entry.pages += 1,
            _ => groups.push(Group {
                at: at + i,
                entry: Entry { start, pages: 1, huge: segment.huge, place, sum: 0 },
                data: matches!(place, Place::Raw { .. }),
            }),
        }
    }
}

/// Writes pages as they are, in one call if the extent has room for all.
fn store_raw(writer: &Writer, out: &mut Output, task: usize, groups: &[Group], bytes: &[u8]) -> Result<()> {
    let mut slices: Vec<&[u8]> = Vec::with_capacity(groups.len());
    let mut offset = out.rest.start;
    for group in groups {
        let mut group = *group;
        while group.entry.pages > 0 {
            if out.rest.is_empty() {
                write_all(&writer.file, writer.base, offset, &mut slices)?;
                out.rest = writer.space.take();
                offset = out.rest.start;
            }
            let fits = group.entry.pages.min((out.rest.end - out.rest.start) / PAGE);
            let place = Place::Raw { offset: out.rest.start };
            out.entries.push((task, Entry { pages: fits, place, ..group.entry }));
            let from = group.at * PAGE_BYTES;
            slices.extend(bytes.get(from..from + fits as usize * PAGE_BYTES));
            out.rest.start += fits * PAGE;
            out.stats.bytes += fits * PAGE;
            group.at += fits as usize;
            group.entry.start += fits * PAGE;
            group.entry.sum += fits;
            group.entry.pages -= fits;
        }
    }
    write_all(&writer.file, writer.base, offset, &mut slices)
}

/// Compresses each group by itself. What does not become smaller is written as it is.
fn store_packed(
    writer: &Writer,
    out: &mut Output,
    task: usize,
    groups: &[Group],
    bytes: &[u8],
) -> Result<()> {
    for group in groups {
        let pages = pages_of(bytes, group);
        let packed = writer.options.compression.compress(pages).map_err(|e| Error::failure(e.to_string()))?;
        let Some(packed) = packed else {
            store_raw(writer, out, task, std::slice::from_ref(group), bytes)?;
            continue;
        };
        // Compressed data begins on page boundaries too, since others in the file may be as they are: half a page is lost
        // for 64.
        let room = (packed.len() as u64).next_multiple_of(PAGE);
        let (offset, len) = (writer.space.take_exactly(room), packed.len() as u32);
        write_all(&writer.file, writer.base, offset, &mut vec![&packed])?;
        out.entries.push((task, Entry { place: Place::Packed { offset, len }, ..group.entry }));
        out.stats.bytes += u64::from(len);
    }
    Ok(())
}

/// Writes slices one after the other at an offset of the page data, and empties the list.
fn write_all(file: &File, base: u64, offset: u64, slices: &mut Vec<&[u8]>) -> Result<()> {
    let mut at = base + offset;
    let mut skip = 0;
    while !slices.is_empty() {
        let vectors: Vec<IoSlice<'_>> = slices
            .iter()
            .take(64)
            .enumerate()
            .map(|(i, s)| IoSlice::new(s.get(if i == 0 { skip } else { 0 }..).unwrap_or_default()))
            .collect();
        let position = i64::try_from(at).map_err(|_| cannot_write(at, Errno::EFBIG))?;
        let written = match vectors.as_slice() {
            [one] => pwrite(file, one, position),
            _ => pwritev(file, &vectors, position),
        };
        let mut written = match written {
            Ok(0) => return Err(cannot_write(at, Errno::EIO)),
            Ok(n) => n,
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(cannot_write(at, e)),
        };
        at += written as u64;
        while let Some(first) = slices.first().map(|s| s.len() - skip) {
            if written < first {
                skip += written;
                break;
            }
            written -= first;
            skip = 0;
            slices.remove(0);
        }
    }
    Ok(())
}

fn cannot_write(at: u64, e: Errno) -> Error {
    let advice = match e {
        Errno::ENOSPC | Errno::EDQUOT => "; make room there, or choose another place for the image",
        _ => "",
    };
    let text = format!("write the pages file at offset {at} ({} MiB): {}{advice}", at >> 20, e.desc());
    Error::new(Kind::Failure, text)
}
