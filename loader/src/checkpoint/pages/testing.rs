//! A process with memory to play with, for tests.

use super::{Memory, PAGE, Range};
use crate::procfs::ProcFs;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Reads statements, runs each, and answers with `r`.
const PRELUDE: &str = r#"
import ctypes, hashlib, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
P = 4096
def check(v):
    if v in (-1, 2**64 - 1):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return v
def anon(n, at=0, flags=0x22):
    return check(libc.mmap(at, n * P, 3, flags | (0x100000 if at else 0), -1, 0))
def filemap(path, n, at=0):
    fd = os.open(path, os.O_RDONLY)
    a = check(libc.mmap(at, n * P, 3, 0x02 | (0x100000 if at else 0), fd, 0))
    os.close(fd)
    return a
def advise(a, n, what): check(libc.madvise(a, n * P, what))
def protect(a, n, prot): check(libc.mprotect(a, n * P, prot))
def unmap(a, n): check(libc.munmap(a, n * P))
def move(a, n, to): return check(libc.mremap(a, n * P, n * P, 3, to))
def page(seed, i): return (seed << 32 | i).to_bytes(8, "little") * 512
def put(a, seed, pages):
    for i in pages:
        ctypes.memmove(a + i * P, page(seed, i), P)
def zero(a, pages):
    for i in pages:
        ctypes.memset(a + i * P, 0, P)
def same(a, seed, pages): return [i for i in pages if ctypes.string_at(a + i * P, P) != page(seed, i)]
def digest(a, n): return hashlib.sha256(ctypes.string_at(a, n * P)).hexdigest()
print("ready", flush=True)
for line in sys.stdin:
    r = ""
    try:
        exec(line.strip())
    except Exception as e:
        r = "failed: %r" % (e,)
    print(r, flush=True)
"#;

pub(in crate::checkpoint::pages) struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    /// `None`, with a message, without python3.
    pub(in crate::checkpoint::pages) fn start() -> Option<Self> {
        let started = Command::new("python3")
            .args(["-c", PRELUDE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = started else {
            eprintln!("skipped: there is no python3");
            return None;
        };
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut program = Self { child, input, output };
        assert_eq!(program.answer(), "ready");
        Some(program)
    }

    pub(in crate::checkpoint::pages) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(in crate::checkpoint::pages) fn memory(&self) -> Memory {
        Memory::open(&procfs(), self.pid()).unwrap()
    }

    pub(in crate::checkpoint::pages) fn send(&mut self, code: &str) {
        writeln!(self.input, "{code}").unwrap();
        self.input.flush().unwrap();
    }

    pub(in crate::checkpoint::pages) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Where answers come from.
    pub(in crate::checkpoint::pages) fn output(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(self.output.get_ref())
    }

    /// Runs a statement; gives what it left in `r`.
    pub(in crate::checkpoint::pages) fn run(&mut self, code: &str) -> String {
        self.send(code);
        let answer = self.answer();
        assert!(!answer.starts_with("failed"), "{code}: {answer}");
        answer
    }

    /// As [`Program::run`], for a number.
    pub(in crate::checkpoint::pages) fn number(&mut self, code: &str) -> u64 {
        self.run(&format!("r = {code}")).parse().unwrap()
    }

    /// Maps so many pages of anonymous memory.
    pub(in crate::checkpoint::pages) fn anon(&mut self, pages: u64) -> Range {
        let start = self.number(&format!("anon({pages})"));
        range(start, pages)
    }

    /// SHA-256 of a range.
    pub(in crate::checkpoint::pages) fn digest(&mut self, range: &Range) -> String {
        self.run(&format!("r = digest({}, {})", range.start, (range.end - range.start) / PAGE))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(in crate::checkpoint::pages) fn procfs() -> ProcFs {
    ProcFs::new(File::open("/proc").unwrap().into())
}

pub(in crate::checkpoint::pages) fn range(start: u64, pages: u64) -> Range {
    Range { start, end: start + pages * PAGE, ..Range::default() }
}
