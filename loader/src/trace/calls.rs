//! System calls that have points of their own: what is taken when they begin and end, and what is told of them.
#![forbid(unsafe_code)]

use super::bpf::{Capture, SyscallEntry};
use super::wire::{Field, Value};
use crate::seccomp::syscalls;
use Capture::{Address, AddressOut, Bytes, None as Nothing, Text, Texts};

/// A call, with the values that a record has of it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Arguments.
    pub args: [u64; 6],
    /// The result, once it has ended: negative for an error.
    pub result: Option<i64>,
    /// Path of its descriptor, if asked for.
    pub fd_path: Option<String>,
    /// What the arguments point to: the item for each capture, several for [`Capture::Texts`].
    pub captured: Vec<(usize, &'a [u8])>,
    /// The environment is wanted.
    pub envv: bool,
}

/// Fields of a message beyond the context, the result and the number.
type Tell = fn(&Seen<'_>) -> Vec<Field>;

/// A system call with a message of its own.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// The type of its message (gVisor's `MessageType`).
    pub message: u16,
    /// The argument that is a descriptor with a path.
    fd: Option<u8>,
    /// What is taken at its beginning, and at its end.
    entering: [Capture; 3],
    leaving: [Capture; 3],
    /// What is told.
    pub tell: Tell,
}

impl Call {
    /// Its number, where the architecture has it.
    pub fn number(&self) -> Option<u32> {
        syscalls::native_number(self.name)
    }

    /// What it tells if asked, in gVisor's order.
    pub fn optional(&self) -> &'static [&'static str] {
        match (self.name, self.fd.is_some() || self.name == "creat") {
            ("execve", _) => &["envv"],
            ("execveat", _) => &["fd_path", "envv"],
            (_, true) => &["fd_path"],
            _ => &[],
        }
    }

    /// What the programs have to take.
    pub fn entry(&self, fd_path: bool) -> SyscallEntry {
        SyscallEntry {
            fd: self.fd.filter(|_| fd_path),
            entering: self.entering,
            leaving: self.leaving,
            ..SyscallEntry::default()
        }
    }
}

impl Seen<'_> {
    fn int(&self, n: usize) -> Value {
        Value::Int(i64::from(self.args[n] as i32))
    }

    /// The full width, as gVisor has descriptors in its 64-bit fields.
    fn fd(&self, n: usize) -> Value {
        self.int(n)
    }

    fn long(&self, n: usize) -> Value {
        Value::Int(self.args[n] as i64)
    }

    fn uint(&self, n: usize) -> Value {
        Value::Uint(u64::from(self.args[n] as u32))
    }

    fn word(&self, n: usize) -> Value {
        Value::Uint(self.args[n])
    }

    fn item(&self, capture: usize) -> Option<&[u8]> {
        self.captured.iter().find(|(n, _)| *n == capture).map(|(_, item)| *item)
    }

    fn text(&self, capture: usize) -> Value {
        Value::Text(self.item(capture).map(text_of).unwrap_or_default())
    }

    fn bytes(&self, capture: usize) -> Value {
        Value::Bytes(self.item(capture).unwrap_or_default().to_vec())
    }

    fn texts(&self, capture: usize) -> Value {
        Value::Texts(
            self.captured.iter().filter(|(n, _)| *n == capture).map(|(_, item)| text_of(item)).collect(),
        )
    }

    fn word_in(&self, capture: usize, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(*self.item(capture)?.get(8 * at..)?.first_chunk()?))
    }

    fn int_in(&self, capture: usize, at: usize) -> Value {
        let int =
            self.item(capture).and_then(|i| i.get(4 * at..)?.first_chunk()).map(|b| i32::from_ne_bytes(*b));
        Value::Int(int.unwrap_or(0).into())
    }

    /// `struct rlimit`, if it was given.
    fn limit(&self, number: u32, name: &'static str, capture: usize) -> Option<Field> {
        let (cur, max) = (self.word_in(capture, 0)?, self.word_in(capture, 1)?);
        let fields = vec![Field::new(1, "cur", Value::Uint(cur)), Field::new(2, "max", Value::Uint(max))];
        Some(Field::new(number, name, Value::Message(fields)))
    }

    /// `struct itimerspec`, if it was given.
    fn timer(&self, number: u32, name: &'static str, capture: usize) -> Option<Field> {
        let time = |at: usize| -> Option<Value> {
            let (sec, nsec) = (self.word_in(capture, at)?, self.word_in(capture, at + 1)?);
            Some(Value::Message(vec![
                Field::new(1, "sec", Value::Int(sec as i64)),
                Field::new(2, "nsec", Value::Int(nsec as i64)),
            ]))
        };
        let fields = vec![Field::new(1, "interval", time(0)?), Field::new(2, "value", time(2)?)];
        Some(Field::new(number, name, Value::Message(fields)))
    }
}

/// A text with or without its terminating zero; what is not UTF-8 is replaced.
pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// Fields from the fourth on, from pairs of a name and a value.
macro_rules! fields {
    ($seen:ident: $($number:literal $name:literal $value:expr),* $(,)?) => {
        vec![$(Field::new($number, $name, $value)),*]
    };
}

fn fd_path(seen: &Seen<'_>) -> Value {
    Value::Text(seen.fd_path.clone().unwrap_or_default())
}

/// For [`Value`]s that a call does not have: the same in both encodings as nothing.
const NO: Value = Value::Int(0);

/// `AT_FDCWD`, for calls that have no descriptor where their kin do.
const HERE: Value = Value::Int(libc::AT_FDCWD as i64);

fn at_fd(seen: &Seen<'_>) -> Vec<Field> {
    fields!(seen: 4 "fd" seen.fd(0), 5 "fd_path" fd_path(seen))
}

fn io(seen: &Seen<'_>, count: u64, offset: Option<u64>, flags: u64) -> Vec<Field> {
    let mut fields = at_fd(seen);
    fields.extend([
        Field::new(6, "count", Value::Uint(count)),
        Field::new(7, "has_offset", Value::Bool(offset.is_some())),
        Field::new(8, "offset", Value::Int(offset.unwrap_or(0) as i64)),
        Field::new(9, "flags", Value::Uint(u64::from(flags as u32))),
    ]);
    fields
}

fn plain_io(seen: &Seen<'_>) -> Vec<Field> {
    io(seen, seen.args[2], None, 0)
}

fn positioned_io(seen: &Seen<'_>) -> Vec<Field> {
    io(seen, seen.args[2], Some(seen.args[3]), 0)
}

fn flagged_io(seen: &Seen<'_>) -> Vec<Field> {
    // An offset of -1 stands for the file's own.
    io(seen, seen.args[2], Some(seen.args[3]).filter(|offset| *offset != u64::MAX), seen.args[5])
}

fn connect(seen: &Seen<'_>) -> Vec<Field> {
    let mut fields = at_fd(seen);
    fields.push(Field::new(6, "address", seen.bytes(0)));
    fields
}

fn accept(seen: &Seen<'_>, flags: Value) -> Vec<Field> {
    let mut fields = connect(seen);
    fields.push(Field::new(7, "flags", flags));
    fields
}

fn listen(seen: &Seen<'_>) -> Vec<Field> {
    let mut fields = at_fd(seen);
    fields.push(Field::new(6, "backlog", seen.int(1)));
    fields
}

fn execve(seen: &Seen<'_>, fd: Value, flags: Value) -> Vec<Field> {
    let envv = if seen.envv { seen.texts(2) } else { Value::Texts(Vec::new()) };
    fields!(seen: 4 "fd" fd, 5 "fd_path" fd_path(seen), 6 "pathname" seen.text(0), 7 "argv" seen.texts(1),
        8 "envv" envv, 9 "flags" flags)
}

fn mmap(seen: &Seen<'_>) -> Vec<Field> {
    fields!(seen: 4 "fd" seen.fd(4), 5 "fd_path" fd_path(seen), 6 "addr" seen.word(0), 7 "length" seen.word(1),
        8 "prot" seen.uint(2), 9 "flags" seen.uint(3), 10 "offset" seen.long(5))
}

fn set_id(seen: &Seen<'_>) -> Vec<Field> {
    fields!(seen: 4 "id" seen.uint(0))
}

fn set_ids(seen: &Seen<'_>) -> Vec<Field> {
    fields!(seen: 4 "rid" seen.uint(0), 5 "eid" seen.uint(1), 6 "sid" seen.uint(2))
}

fn pipe(seen: &Seen<'_>, flags: Value) -> Vec<Field> {
    let (reader, writer) =
        if seen.result.is_some() { (seen.int_in(0, 0), seen.int_in(0, 1)) } else { (NO, NO) };
    fields!(seen: 4 "flags" flags, 5 "reader" reader, 6 "writer" writer)
}

fn dup(seen: &Seen<'_>, new: Value, flags: Value) -> Vec<Field> {
    fields!(seen: 4 "old_fd" seen.int(0), 5 "new_fd" new, 6 "fd_path" fd_path(seen), 7 "flags" flags)
}

fn signalfd(seen: &Seen<'_>, flags: Value) -> Vec<Field> {
    let set = Value::Uint(seen.word_in(0, 0).unwrap_or(0));
    fields!(seen: 4 "fd" seen.int(0), 5 "fd_path" fd_path(seen), 6 "sigset" set, 7 "flags" flags)
}

fn open(seen: &Seen<'_>, fd: Value, flags: Value, mode: Value) -> Vec<Field> {
    fields!(seen: 4 "fd" fd, 5 "fd_path" fd_path(seen), 6 "pathname" seen.text(0), 7 "flags" flags, 8 "mode" mode)
}

fn socket(seen: &Seen<'_>) -> Vec<Field> {
    fields!(seen: 4 "domain" seen.int(0), 5 "type" seen.int(1), 6 "protocol" seen.int(2))
}

const NONE: [Capture; 3] = [Nothing; 3];
const fn one(capture: Capture) -> [Capture; 3] {
    [capture, Nothing, Nothing]
}

/// `$name message fd entering leaving tell`.
macro_rules! calls {
    ($($name:literal $message:literal $fd:expr, $entering:expr, $leaving:expr, $tell:expr;)+) => {
        /// All of them.
        pub static CALLS: &[Call] = &[
            $(Call { name: $name, message: $message, fd: $fd, entering: $entering, leaving: $leaving, tell: $tell },)+
        ];
    };
}

#[rustfmt::skip]
calls! {
    "read"              9  Some(0), NONE, NONE, plain_io;
    "write"             34 Some(0), NONE, NONE, plain_io;
    "open"              7  None, one(Text(0)), one(Text(0)), |s| open(s, HERE, s.uint(1), s.uint(2));
    "close"             8  Some(0), NONE, NONE, at_fd;
    "mmap"              36 Some(4), NONE, NONE, mmap;
    "pread64"           9  Some(0), NONE, NONE, positioned_io;
    "pwrite64"          34 Some(0), NONE, NONE, positioned_io;
    "readv"             9  Some(0), NONE, NONE, plain_io;
    "writev"            34 Some(0), NONE, NONE, plain_io;
    "pipe"              17 None, NONE, one(Bytes(0, 8)), |s| pipe(s, NO);
    "dup"               19 Some(0), NONE, NONE, |s| dup(s, Value::Int(s.result.unwrap_or(0).max(0)), NO);
    "dup2"              19 Some(0), NONE, NONE, |s| dup(s, s.int(1), NO);
    "socket"            12 None, NONE, NONE, socket;
    "connect"           10 Some(0), one(Address(1)), one(Address(1)), connect;
    "accept"            25 Some(0), NONE, one(AddressOut(1)), |s| accept(s, NO);
    "bind"              24 Some(0), one(Address(1)), one(Address(1)), connect;
    "listen"            37 Some(0), NONE, NONE, listen;
    "socketpair"        33 None, NONE, one(Bytes(3, 8)), |s| {
        let mut fields = socket(s);
        fields.extend([Field::new(7, "socket1", s.int_in(0, 0)), Field::new(8, "socket2", s.int_in(0, 1))]);
        fields
    };
    "clone"             23 None, NONE, NONE, |s| fields!(s: 4 "flags" s.word(0), 5 "stack" s.word(1),
        6 "new_tid" s.word(2), 7 "tls" s.word(if cfg!(target_arch = "x86_64") { 4 } else { 3 }));
    "fork"              29 None, NONE, NONE, |_| Vec::new();
    "vfork"             29 None, NONE, NONE, |_| Vec::new();
    "execve"            11 None, [Text(0), Texts(1), Texts(2)], NONE, |s| execve(s, HERE, NO);
    "fcntl"             18 Some(0), NONE, NONE, |s| fields!(s: 4 "fd" s.int(0), 5 "fd_path" fd_path(s),
        6 "cmd" s.int(1), 7 "args" s.long(2));
    "creat"             7  None, one(Text(0)), one(Text(0)), |s| open(s, HERE,
        Value::Uint((libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64), s.uint(1));
    "chdir"             13 None, one(Text(0)), one(Text(0)), |s| fields!(s: 4 "fd" HERE, 6 "pathname" s.text(0));
    "fchdir"            13 Some(0), NONE, NONE, at_fd;
    "ptrace"            38 None, NONE, NONE, |s| fields!(s: 4 "request" s.long(0), 5 "pid" s.int(1));
    "setuid"            14 None, NONE, NONE, set_id;
    "setgid"            14 None, NONE, NONE, set_id;
    "setsid"            14 None, NONE, NONE, |_| Vec::new();
    "setresuid"         15 None, NONE, NONE, set_ids;
    "setresgid"         15 None, NONE, NONE, set_ids;
    "chroot"            21 None, one(Text(0)), one(Text(0)), |s| fields!(s: 4 "pathname" s.text(0));
    "inotify_init"      30 None, NONE, NONE, |_| Vec::new();
    "inotify_add_watch" 31 Some(0), one(Text(1)), one(Text(1)), |s| fields!(s: 4 "fd" s.int(0),
        5 "fd_path" fd_path(s), 6 "pathname" s.text(0), 7 "mask" s.uint(2));
    "inotify_rm_watch"  32 Some(0), NONE, NONE, |s| fields!(s: 4 "fd" s.int(0), 5 "fd_path" fd_path(s),
        6 "wd" s.int(1));
    "openat"            7  Some(0), one(Text(1)), one(Text(1)), |s| open(s, s.fd(0), s.uint(2), s.uint(3));
    "signalfd"          20 Some(0), one(Bytes(1, 8)), one(Bytes(1, 8)), |s| signalfd(s, NO);
    "timerfd_create"    26 None, NONE, NONE, |s| fields!(s: 4 "clock_id" s.int(0), 5 "flags" s.int(1));
    "eventfd"           22 None, NONE, NONE, |s| fields!(s: 4 "val" s.int(0));
    "timerfd_settime"   27 Some(0), one(Bytes(2, 32)), [Bytes(2, 32), Bytes(3, 32), Nothing], |s| {
        let mut fields = at_fd(s);
        fields.push(Field::new(6, "flags", s.int(1)));
        fields.extend(s.timer(7, "new_value", 0));
        fields.extend(s.timer(8, "old_value", 1));
        fields
    };
    "timerfd_gettime"   28 Some(0), NONE, one(Bytes(1, 32)), |s| {
        let mut fields = at_fd(s);
        fields.extend(s.timer(6, "cur_value", 0));
        fields
    };
    "accept4"           25 Some(0), NONE, one(AddressOut(1)), |s| accept(s, s.int(3));
    "signalfd4"         20 Some(0), one(Bytes(1, 8)), one(Bytes(1, 8)), |s| signalfd(s, s.int(3));
    "eventfd2"          22 None, NONE, NONE, |s| fields!(s: 4 "val" s.int(0), 5 "flags" s.uint(1));
    "dup3"              19 Some(0), NONE, NONE, |s| dup(s, s.int(1), s.uint(2));
    "pipe2"             17 None, NONE, one(Bytes(0, 8)), |s| pipe(s, s.uint(1));
    "inotify_init1"     30 None, NONE, NONE, |s| fields!(s: 4 "flags" s.int(0));
    "preadv"            9  Some(0), NONE, NONE, positioned_io;
    "pwritev"           34 Some(0), NONE, NONE, positioned_io;
    "prlimit64"         16 None, one(Bytes(2, 16)), [Bytes(2, 16), Bytes(3, 16), Nothing], |s| {
        let mut fields = fields!(s: 4 "pid" s.int(0), 5 "resource" s.long(1));
        fields.extend(s.limit(6, "new_limit", 0));
        fields.extend(s.limit(7, "old_limit", 1));
        fields
    };
    "execveat"          11 Some(0), [Text(1), Texts(2), Texts(3)], NONE, |s| execve(s, s.fd(0), s.uint(4));
    "preadv2"           9  Some(0), NONE, NONE, flagged_io;
    "pwritev2"          34 Some(0), NONE, NONE, flagged_io;
}
