//! Another task's memory.
#![forbid(unsafe_code)]

use super::procfs;
use crate::sys::ptrace;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// Reads and writes the memory of one task. Usable from any thread of this process (unlike `Tracee`), as long as the
/// task is traced: the number cannot mean another task then.
#[derive(Debug)]
pub struct Mem {
    tid: i32,
    file: OnceLock<File>,
}

impl Mem {
    /// Memory of task `tid`, a thread id in this process' pid namespace.
    pub fn new(tid: i32) -> Self {
        Self { tid, file: OnceLock::new() }
    }

    /// Fills `buffer` from `addr` on. Pages must be readable by the task itself; see [`Mem::read_forced`].
    ///
    /// # Errors
    /// When a page is missing or unreadable (nothing is to be expected of `buffer` then), or the task has ended.
    pub fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        let n = ptrace::read_memory(self.tid, addr, buffer)
            .or_else(|e| self.by_file(e, |file| file.read_at(buffer, addr)))
            .map_err(|e| self.error("read", addr, buffer.len(), e))?;
        match n == buffer.len() {
            true => Ok(()),
            false => Err(self.error("read", addr + n as u64, buffer.len() - n, Errno::EFAULT)),
        }
    }

    /// Reads as much as there is from `addr` on; 0 when not even the first byte can be read.
    ///
    /// # Errors
    /// When the task has ended.
    pub fn read_some(&self, addr: u64, buffer: &mut [u8]) -> Result<usize> {
        match ptrace::read_memory(self.tid, addr, buffer) {
            Err(Errno::EFAULT) => Ok(0),
            other => other.map_err(|e| self.error("read", addr, buffer.len(), e)),
        }
    }

    /// `len` bytes from `addr` on.
    ///
    /// # Errors
    /// As [`Mem::read`].
    pub fn bytes(&self, addr: u64, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        self.read(addr, &mut buffer)?;
        Ok(buffer)
    }

    /// The 64-bit word at `addr`.
    ///
    /// # Errors
    /// As [`Mem::read`].
    pub fn word(&self, addr: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.read(addr, &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// As [`Mem::read`], but also where the task itself may not read (through `/proc/<tid>/mem`).
    ///
    /// # Errors
    /// When nothing is mapped there, or the task has ended.
    pub fn read_forced(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        self.file()?.read_exact_at(buffer, addr).map_err(|e| {
            Error::from(e).context(format!("read {} bytes at {addr:#x} of task {}", buffer.len(), self.tid))
        })
    }

    /// Writes `bytes` at `addr`. Pages must be writable by the task itself; see [`Mem::write_forced`].
    ///
    /// # Errors
    /// When a page is missing or not writable (a part may have been written then), or the task has ended.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        let n = ptrace::write_memory(self.tid, addr, bytes)
            .or_else(|e| self.by_file(e, |file| file.write_at(bytes, addr)))
            .map_err(|e| self.error("write", addr, bytes.len(), e))?;
        match n == bytes.len() {
            true => Ok(()),
            false => Err(self.error("write", addr + n as u64, bytes.len() - n, Errno::EFAULT)),
        }
    }

    /// As [`Mem::write`], but also where the task itself may not write (private mappings only). A kernel may be told
    /// to forbid this (`proc_mem.force_override=never`).
    ///
    /// # Errors
    /// When nothing is mapped there, or the task has ended.
    pub fn write_forced(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        self.file()?.write_all_at(bytes, addr).map_err(|e| {
            Error::from(e).context(format!("write {} bytes at {addr:#x} of task {}", bytes.len(), self.tid))
        })
    }

    /// `/proc/<tid>/mem`, open for reading and writing: for many or large accesses. It stays bound to the address space
    /// that the task had when this was first called.
    ///
    /// # Errors
    /// When it cannot be opened: no procfs (see [`super::use_procfs`]), the task has ended, or permissions.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        self.file().map(File::as_fd)
    }

    /// What is denied now (a process that has changed its user, in a user namespace) may be done with what was opened
    /// before, see [`Mem::descriptor`].
    fn by_file(&self, e: Errno, act: impl FnOnce(&File) -> std::io::Result<usize>) -> nix::Result<usize> {
        let file = self.file.get().filter(|_| e == Errno::EPERM).ok_or(e)?;
        act(file).map_err(|_| e)
    }

    fn file(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = procfs::open(&format!("{}/mem", self.tid), true)?;
        Ok(self.file.get_or_init(|| file))
    }

    fn error(&self, what: &str, addr: u64, len: usize, e: Errno) -> Error {
        super::errno(e).context(format!("{what} {len} bytes at {addr:#x} of task {}", self.tid))
    }
}
