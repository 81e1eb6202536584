//! System calls as lines of the sandbox's log, in the manner of strace(1).
//!
//! A call is one line, once it has ended. One that takes longer than it takes to collect events, or never ends, gets a line
//! with `<unfinished ...>` before.
#![forbid(unsafe_code)]

mod names;
mod show;
mod signatures;

use super::bpf::SYSCALLS;
use super::calls::CALLS;
use super::config::{Plan, Wanted};
use super::message::Message;
use super::points::{CONTEXT, Fields, Point};
use super::sink::append;
use super::wire::{Field, Value};
use crate::seccomp::syscalls::{names, native_name, native_number};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use show::{arguments, find, unread};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

/// Bytes that are written at once: what a pipe takes without blocking once it takes anything (`PIPE_BUF`, pipe(7)).
const AT_ONCE: usize = 4096;
/// How long a reader of the log may take, in milliseconds, until lines are dropped.
const PATIENCE: u16 = 10;

/// The numbers of named system calls; without names, of all that have one.
///
/// # Errors
/// `syscall "x" not found`.
pub fn numbers(wanted: &[String]) -> Result<BTreeSet<u32>> {
    let number = |name: &str| native_number(name).filter(|n| *n < SYSCALLS);
    if wanted.is_empty() {
        return Ok(names().filter_map(number).collect());
    }
    let found = wanted.iter().map(|name| {
        number(name).ok_or_else(|| {
            Error::invalid_argument(format!(
                "syscall {name:?} not found: this machine's kernel has no such call"
            ))
        })
    });
    found.collect()
}

/// What has to be looked at for system calls with these numbers.
pub fn plan(calls: &BTreeSet<u32>) -> Plan {
    let set = |all: &[&str], wanted: &[&str]| {
        let found = all.iter().enumerate().filter(|(_, field)| wanted.contains(field));
        found.fold(Fields::default(), |set, (n, _)| set.with(n))
    };
    let context = set(&CONTEXT, &["time", "thread_id", "container_id", "process_name"]);
    let mut plan = Plan::default();
    for number in calls {
        if let Some(name) = native_name((*number).into()) {
            plan.extra.insert(*number, signatures::extra(name));
        }
        let named = CALLS.iter().position(|call| call.number() == Some(*number));
        for leave in [false, true] {
            let point = named.map_or(Point::Number(*number, leave), |index| Point::Call(index, leave));
            plan.points.insert(point, Wanted { optional: set(point.optional(), &["fd_path"]), context });
        }
    }
    plan
}

/// Names of fields with what the arguments of a call point to, in the order of [`signatures::extra`].
pub(super) const CAPTURED: [&str; 3] = ["captured1", "captured2", "captured3"];

/// The log, as it is told of system calls.
#[derive(Debug)]
pub struct Strace {
    log: OwnedFd,
    /// What is kept back to be written together: whole lines, and how many.
    lines: Vec<u8>,
    count: u64,
    /// The last thing in the log is a part of a line.
    cut: bool,
    /// Calls that have begun and have no line yet, by thread; and whether [`Strace::settle`] saw them already.
    begun: BTreeMap<i64, (Call, bool)>,
    /// Dropped events of which the log tells.
    told: u64,
}

impl Strace {
    /// Takes the log over, whose flags are left as they are: others write into it, too.
    pub fn new(log: OwnedFd) -> Self {
        Self { log, lines: Vec::new(), count: 0, cut: false, begun: BTreeMap::new(), told: 0 }
    }

    /// Tells of a call's beginning or end. Returns how many lines could not be written.
    pub fn tell(&mut self, message: &Message) -> u64 {
        let Some(mut call) = Call::of(message) else { return 0 };
        // One that is there for another call has ended without being seen.
        let before = self.begun.remove(&call.tid).map(|(before, _)| before);
        let (same, other) = match before {
            Some(before) if call.ended && before.name == call.name => (Some(before), None),
            before => (None, before),
        };
        let mut lost = other.map_or(0, |other| self.line(&other));
        if !call.ended {
            self.begun.insert(call.tid, (call, false));
            return lost;
        }
        if let Some(before) = same {
            call.complete(before);
        }
        lost += self.line(&call);
        lost
    }

    /// Writes what is kept back; to be called when all that has happened is told. Calls that have begun before the last time
    /// get their line. `dropped` are the events that nobody could tell. Returns how many lines could not be written.
    pub fn settle(&mut self, dropped: u64) -> u64 {
        let mut lost = 0;
        let waiting: Vec<i64> =
            self.begun.iter().filter(|(_, (_, seen))| *seen).map(|(tid, _)| *tid).collect();
        for (call, _) in waiting.iter().filter_map(|tid| self.begun.remove(tid)).collect::<Vec<_>>() {
            lost += self.line(&call);
        }
        self.begun.values_mut().for_each(|(_, seen)| *seen = true);
        if dropped > self.told {
            self.told = dropped;
            let now = humantime::format_rfc3339_micros(SystemTime::now());
            lost += self.add(&format!("{now} WARN [] strace: {dropped} events are missing until here\n"));
        }
        lost + self.write()
    }

    fn line(&mut self, call: &Call) -> u64 {
        self.add(&call.line())
    }

    fn add(&mut self, line: &str) -> u64 {
        let full = self.lines.len() + line.len() > AT_ONCE;
        let lost = if full { self.write() } else { 0 };
        self.lines.extend(line.bytes());
        self.count += 1;
        lost
    }

    fn write(&mut self) -> u64 {
        let count = std::mem::take(&mut self.count);
        let lines = std::mem::take(&mut self.lines);
        let mut fds = [PollFd::new(self.log.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PATIENCE) {
            _ if lines.is_empty() => 0,
            Ok(1..) => append(&self.log, &lines, count, &mut self.cut),
            _ => count,
        }
    }
}

/// A call that has begun or ended.
#[derive(Debug)]
struct Call {
    name: String,
    /// Nanoseconds since 1970.
    time: i64,
    tid: i64,
    cid: String,
    process: String,
    ended: bool,
    /// Arguments and result.
    fields: Vec<Field>,
}

impl Call {
    fn of(message: &Message) -> Option<Self> {
        let (name, ended) = match message.point {
            Point::Call(index, leave) => (CALLS.get(index)?.name.to_owned(), leave),
            Point::Number(number, leave) => {
                (native_name(number.into()).map_or_else(|| format!("syscall_{number}"), str::to_owned), leave)
            }
            _ => return None,
        };
        let context = message.fields.iter().find(|field| field.name == "context_data");
        let Value::Message(context) = &context?.value else { return None };
        let int = |name| match find(context, name) {
            Some(Value::Int(n)) => *n,
            _ => 0,
        };
        let text = |name| match find(context, name) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        };
        let fields = message.fields.iter().filter(|f| !matches!(f.name, "context_data" | "sysno")).cloned();
        Some(Self {
            name,
            time: int("time_ns"),
            tid: int("thread_id"),
            cid: text("container_id"),
            process: text("process_name"),
            ended,
            fields: fields.collect(),
        })
    }

    /// Takes from its beginning what its end does not tell any more, as the arguments of execve(2), or what close(2) closed.
    fn complete(&mut self, before: Self) {
        let begun = before.fields.iter().filter(|f| CAPTURED.contains(&f.name));
        let missing: Vec<_> = begun.filter(|f| find(&self.fields, f.name).is_none()).cloned().collect();
        self.fields.extend(missing);
        for field in self.fields.iter_mut().filter(|f| unread(f)) {
            if let Some(known) = before.fields.iter().find(|f| f.name == field.name) {
                field.value = known.value.clone();
            }
        }
    }

    /// As the log has it.
    fn line(&self) -> String {
        let since = Duration::from_nanos(self.time.try_into().unwrap_or(0));
        let time = humantime::format_rfc3339_micros(SystemTime::UNIX_EPOCH + since);
        let (cid, tid, process, name) = (&self.cid, self.tid, self.process.escape_debug(), &self.name);
        let (args, end) = (arguments(&self.name, &self.fields), self.ending());
        format!("{time} INFO [{cid}] strace: [{tid}] {process}: {name}({args}){end}\n")
    }

    fn ending(&self) -> String {
        if !self.ended {
            return " <unfinished ...>".to_owned();
        }
        let exit = match find(&self.fields, "exit") {
            Some(Value::Message(exit)) => exit.as_slice(),
            _ => &[],
        };
        let int = |name| match find(exit, name) {
            Some(Value::Int(n)) => *n,
            _ => 0,
        };
        match (int("errorno"), int("result")) {
            (0, result) if i32::try_from(result).is_err() => format!(" = {result:#x}"),
            (0, result) => format!(" = {result}"),
            (number, _) => {
                let errno = Errno::from_raw(number as i32);
                format!(" = -1 {errno:?} ({})", errno.desc())
            }
        }
    }
}

/// The line for a message, if it has one.
#[cfg(any(test, feature = "fuzzing"))]
pub fn line(message: &Message) -> Option<String> {
    Call::of(message).map(|call| call.line())
}

#[cfg(test)]
mod tests;
