//! Tables of system calls that a task runs with one stop.
#![forbid(unsafe_code)]

use super::inject::{call_name, code_of, signal_of};
use super::region::HEADER;
use super::{Ran, Region, Tracee};
use airlock_wire::error::{Error, Result};
use std::collections::BTreeMap;

/// Bytes of an entry: number, flags, six arguments, result; see `arch::BLOB`.
const ENTRY: usize = 72;
const RESULT: usize = 64;
const MUST: u64 = 1;
const REFERENCE: u64 = 0x100;
/// Data begins at multiples of this.
const ALIGN: usize = 16;
/// Where the table begins: the region keeps something before.
const TABLE: usize = HEADER as usize;

/// A call of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct CallId(pub(super) usize);

/// An argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A number, or an address in the task.
    Value(u64),
    /// The address of data that travels with the batch; the number is an offset that only the batch knows.
    Data(usize),
    /// What an earlier call of the batch returned (its negative errno if it failed).
    Result(CallId),
}

impl Arg {
    /// Null, zero, false, nothing.
    pub const NULL: Self = Self::Value(0);

    /// For data: the address `bytes` further on. For values: the sum. Results stay as they are.
    #[must_use]
    pub fn at(self, bytes: usize) -> Self {
        match self {
            Self::Value(v) => Self::Value(v.wrapping_add(bytes as u64)),
            Self::Data(offset) => Self::Data(offset + bytes),
            Self::Result(_) => self,
        }
    }
}

impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Self::Value(v)
    }
}
impl From<usize> for Arg {
    fn from(v: usize) -> Self {
        Self::Value(v as u64)
    }
}
impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Self::Value(v.into())
    }
}
impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Self::Value(i64::from(v) as u64)
    }
}
impl From<i64> for Arg {
    fn from(v: i64) -> Self {
        Self::Value(v as u64)
    }
}
impl From<CallId> for Arg {
    fn from(id: CallId) -> Self {
        Self::Result(id)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) nr: i64,
    pub(super) must: bool,
    pub(super) args: [Arg; 6],
}

/// A table of system calls and the data they work on.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(super) calls: Vec<Call>,
    pub(super) data: Vec<u8>,
    /// Start and end of each piece of `data`, ascending.
    items: Vec<(usize, usize)>,
    /// Where in `data` an address of data must be written, and of which.
    pointers: Vec<(usize, usize)>,
}

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes for the calls to read (or change). The result points at them; [`Arg::at`] points into them.
    pub fn data(&mut self, bytes: &[u8]) -> Arg {
        let start = self.item(bytes.len());
        if let Some(to) = self.data.get_mut(start..start + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        Arg::Data(start)
    }

    /// As [`Batch::data`], with a NUL behind it: a path or name.
    pub fn text(&mut self, text: impl AsRef<[u8]>) -> Arg {
        let text = text.as_ref();
        let arg = self.space(text.len() + 1);
        if let (Arg::Data(start), true) = (arg, !text.is_empty())
            && let Some(to) = self.data.get_mut(start..start + text.len())
        {
            to.copy_from_slice(text);
        }
        arg
    }

    /// Zeroed space for the calls to write to; see [`Ran::output`].
    pub fn space(&mut self, len: usize) -> Arg {
        Arg::Data(self.item(len))
    }

    fn item(&mut self, len: usize) -> usize {
        let start = self.data.len().next_multiple_of(ALIGN);
        self.data.resize(start + len, 0);
        self.items.push((start, start + len));
        start
    }

    /// Stores the address of `to` in the eight bytes at `at` (both data of this batch): for structures that contain
    /// pointers, such as an iovec or msghdr.
    pub fn pointer(&mut self, at: Arg, to: Arg) {
        if let (Arg::Data(at), Arg::Data(to)) = (at, to) {
            self.pointers.push((at, to));
        }
    }

    /// Adds a call that may fail.
    pub fn call<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> CallId {
        self.push(nr, false, args)
    }

    /// Adds a call whose failure ends the batch: what comes after it is not run.
    pub fn must<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> CallId {
        self.push(nr, true, args)
    }

    fn push<const N: usize>(&mut self, nr: i64, must: bool, args: [Arg; N]) -> CallId {
        const { assert!(N <= 6, "a system call has at most six arguments") };
        let mut six = [Arg::NULL; 6];
        six.iter_mut().zip(args).for_each(|(to, from)| *to = from);
        self.calls.push(Call { nr, must, args: six });
        CallId(self.calls.len() - 1)
    }

    /// How many calls it has.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// True when it has no calls.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Makes `t` run the calls, in order. What does not fit into the region at once is run in several parts. Registers,
    /// mask and pending signals of the thread are as before afterwards.
    ///
    /// Calls that wait for something keep this process waiting. As with [`Tracee::syscall`], avoid calls that sleep for
    /// a time.
    ///
    /// # Errors
    /// When the calls cannot be run: the thread ended (`NoSuchEntity`), one call with its data does not fit into the
    /// region, an argument refers to a later call (`InvalidArgument`). Errors of the calls are in [`Ran`].
    pub fn run(self, t: &mut Tracee, region: &Region) -> Result<Ran> {
        let mut ran = Ran { thread: t.tid(), results: vec![None; self.calls.len()], batch: self };
        let mut next = 0;
        while next < ran.batch.calls.len() {
            let part = Part::plan(&ran, next, region)?;
            let stopped = part.run(&mut ran, t, region)?;
            next = part.end;
            if stopped {
                break;
            }
        }
        Ok(ran)
    }
}

/// Consecutive calls that fit into the region together.
struct Part {
    start: usize,
    end: usize,
    /// Item number to offset in the region's data.
    places: BTreeMap<usize, usize>,
    /// Bytes of the region's data that are used.
    used: usize,
}

impl Part {
    fn plan(ran: &Ran, start: usize, region: &Region) -> Result<Self> {
        let batch = &ran.batch;
        let capacity = region.data_len() as usize;
        let mut wanted: BTreeMap<usize, usize> = BTreeMap::new();
        let mut bytes = ALIGN;
        let mut end = start;
        for call in batch.calls.get(start..).unwrap_or_default() {
            let mut new = Vec::new();
            for arg in &call.args {
                if let Arg::Data(offset) = arg {
                    batch.closure(*offset, &wanted, &mut new)?;
                }
            }
            let more = ENTRY + new.iter().map(|i| batch.size(*i)).sum::<usize>();
            if bytes + more > capacity {
                break;
            }
            bytes += more;
            wanted.extend(new.into_iter().map(|i| (i, 0)));
            end += 1;
        }
        if end == start {
            return Err(Error::invalid_argument(format!(
                "{} and its data need more than the {capacity} bytes of the region; map a larger one",
                batch.calls.get(start).map_or_else(String::new, |c| call_name(c.nr))
            )));
        }
        let mut used = (TABLE + ENTRY * (end - start)).next_multiple_of(ALIGN);
        for (item, place) in &mut wanted {
            *place = used;
            used += batch.size(*item);
        }
        Ok(Self { start, end, places: wanted, used })
    }

    /// Runs the part; true when a call failed that must not.
    fn run(&self, ran: &mut Ran, t: &mut Tracee, region: &Region) -> Result<bool> {
        if t.gadget.is_none() {
            t.gadget = Some(region.gadget());
        }
        let base = region.header();
        let mut buffer = self.fill(ran, base)?;
        let first = base + TABLE as u64;
        let table_end = first + (ENTRY * (self.end - self.start)) as u64;
        let (progress, happened) = t.run_blob(region, &mut buffer, first, table_end)?;
        if !happened.children.is_empty() {
            return Err(Error::failure("a batch made a child; children are made with clone3()"));
        }
        t.mem().read(base, &mut buffer)?;
        for info in happened.taken.iter().filter(|info| signal_of(info) != libc::SIGSTOP) {
            put_back(t, region.data(), info)?;
        }

        let done = progress.saturating_sub(first) as usize / ENTRY;
        let stopped = progress < table_end;
        let answered = (done + usize::from(stopped)).min(self.end - self.start);
        for i in 0..answered {
            let result = word(&buffer, TABLE + ENTRY * i + RESULT);
            if let Some(slot) = ran.results.get_mut(self.start + i) {
                *slot = Some(result);
            }
        }
        for (item, place) in &self.places {
            if let Some((start, end)) = ran.batch.items.get(*item)
                && let Some(to) = ran.batch.data.get_mut(*start..*end)
                && let Some(from) = buffer.get(*place..*place + (end - start))
            {
                to.copy_from_slice(from);
            }
        }
        Ok(stopped)
    }

    /// The region's data before the run.
    fn fill(&self, ran: &Ran, base: u64) -> Result<Vec<u8>> {
        let batch = &ran.batch;
        let mut buffer = Vec::with_capacity(self.used);
        buffer.resize(TABLE, 0);
        for (i, call) in batch.calls.iter().enumerate().take(self.end).skip(self.start) {
            let mut flags = if call.must { MUST } else { 0 };
            let mut args = [0u64; 6];
            for (n, (to, arg)) in args.iter_mut().zip(&call.args).enumerate() {
                *to = match *arg {
                    Arg::Value(v) => v,
                    Arg::Data(offset) => base + self.place(batch, offset)? as u64,
                    Arg::Result(id) if id.0 >= i => {
                        return Err(Error::invalid_argument("an argument refers to a later call"));
                    }
                    Arg::Result(id) if id.0 >= self.start => {
                        flags |= REFERENCE << n;
                        base + (TABLE + ENTRY * (id.0 - self.start) + RESULT) as u64
                    }
                    Arg::Result(id) => ran.results.get(id.0).copied().flatten().unwrap_or(u64::MAX),
                };
            }
            for w in [call.nr as u64, flags].into_iter().chain(args).chain([0]) {
                buffer.extend_from_slice(&w.to_ne_bytes());
            }
        }
        buffer.resize(self.used, 0);
        for (item, place) in &self.places {
            if let Some((start, end)) = batch.items.get(*item)
                && let Some(from) = batch.data.get(*start..*end)
                && let Some(to) = buffer.get_mut(*place..*place + from.len())
            {
                to.copy_from_slice(from);
            }
        }
        for (at, to) in &batch.pointers {
            if !batch.item_of(*at).is_some_and(|item| self.places.contains_key(&item)) {
                continue;
            }
            let address = base + self.place(batch, *to)? as u64;
            let at = self.place(batch, *at)?;
            if let Some(bytes) = buffer.get_mut(at..at + 8) {
                bytes.copy_from_slice(&address.to_ne_bytes());
            }
        }
        Ok(buffer)
    }

    /// Offset in the region's data of what is at `offset` in the batch's.
    fn place(&self, batch: &Batch, offset: usize) -> Result<usize> {
        let item = batch.item_of(offset).ok_or_else(Batch::foreign)?;
        let start = batch.items.get(item).map_or(0, |i| i.0);
        self.places.get(&item).map(|place| place + (offset - start)).ok_or_else(Batch::foreign)
    }
}

impl Batch {
    fn foreign() -> Error {
        Error::invalid_argument("an argument points at data that the batch does not have")
    }

    /// Number of the item that `offset` lies in (or just behind).
    fn item_of(&self, offset: usize) -> Option<usize> {
        let item = self.items.partition_point(|(start, _)| *start <= offset).checked_sub(1)?;
        self.items.get(item).filter(|(_, end)| offset <= *end).map(|_| item)
    }

    /// Room that an item takes up. Never none, so that each has an address of its own.
    fn size(&self, item: usize) -> usize {
        self.items.get(item).map_or(0, |(start, end)| (end - start).max(1).next_multiple_of(ALIGN))
    }

    /// Adds the item at `offset` and those that it points at to `new`, unless they are in `have`.
    fn closure(&self, offset: usize, have: &BTreeMap<usize, usize>, new: &mut Vec<usize>) -> Result<()> {
        let mut todo = vec![offset];
        while let Some(offset) = todo.pop() {
            let item = self.item_of(offset).ok_or_else(Self::foreign)?;
            if have.contains_key(&item) || new.contains(&item) {
                continue;
            }
            new.push(item);
            let (start, end) = self.items.get(item).copied().unwrap_or_default();
            todo.extend(self.pointers.iter().filter(|(at, _)| (start..end).contains(at)).map(|(_, to)| *to));
        }
        Ok(())
    }
}

/// Queues a signal again that was pending and came off its queue because a batch cannot run with it blocked: SIGURG.
fn put_back(t: &mut Tracee, scratch: u64, info: &[u8; 128]) -> Result<()> {
    const SI_TKILL: i32 = -6;
    t.mem().write(scratch, info)?;
    let signal = signal_of(info) as u64;
    let process = t.syscall(libc::SYS_getpid, [0; 6])??;
    if code_of(info) != SI_TKILL
        && t.syscall(libc::SYS_rt_sigqueueinfo, [process, signal, scratch, 0, 0, 0])?.is_ok()
    {
        return Ok(());
    }
    let thread = t.syscall(libc::SYS_gettid, [0; 6])??;
    t.syscall(libc::SYS_rt_tgsigqueueinfo, [process, thread, signal, scratch, 0, 0])??;
    Ok(())
}

fn word(buffer: &[u8], at: usize) -> u64 {
    buffer.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
