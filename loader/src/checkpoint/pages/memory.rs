//! The memory of a process that does not run.
#![forbid(unsafe_code)]

use crate::checkpoint::remote::Mem;
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Kind, Result};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

/// Memory of a stopped process (or its shadow), with its page tables. Usable from several threads at once.
#[derive(Debug)]
pub struct Memory {
    pid: i32,
    mem: Mem,
    pagemap: File,
}

impl Memory {
    /// Of process `pid`, a number in the pid namespace that `procfs` shows, which is this process' own.
    ///
    /// # Errors
    /// `NoSuchEntity` when it is gone; permissions.
    pub fn open(procfs: &ProcFs, pid: i32) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let pagemap = openat(procfs.root(), format!("{pid}/pagemap").as_str(), flags, Mode::empty())
            .map_err(|e| Error::from(e).context(format!("open the page tables of process {pid}")))?;
        Ok(Self { pid, mem: Mem::new(pid), pagemap: pagemap.into() })
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its contents.
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// `/proc/<pid>/pagemap`.
    pub fn pagemap(&self) -> BorrowedFd<'_> {
        self.pagemap.as_fd()
    }

    pub(super) fn pagemap_file(&self) -> &File {
        &self.pagemap
    }

    /// Fills `buffer` from `addr` on, also where the program itself may not read.
    pub(super) fn read(&self, addr: u64, buffer: &mut [u8]) -> Result<()> {
        let mut done = self.mem.read_some(addr, buffer)?;
        while done < buffer.len() {
            let at = addr + done as u64;
            // One page by force: behind it, reading goes on the fast way.
            let step = (super::PAGE - at % super::PAGE).min((buffer.len() - done) as u64) as usize;
            let Some(page) = buffer.get_mut(done..done + step) else { break };
            self.mem.read_forced(at, page).map_err(|e| {
                let error = Error::new(Kind::Failure, e.message);
                error.context(format!("page {at:#x} of process {} is mapped but cannot be read", self.pid))
            })?;
            done += step;
            if let Some(rest) = buffer.get_mut(done..).filter(|r| !r.is_empty()) {
                done += self.mem.read_some(addr + done as u64, rest)?;
            }
        }
        Ok(())
    }

    /// Writes `content` at `addr`, also where the program itself may not write.
    pub(super) fn write(&self, addr: u64, content: &[u8]) -> Result<()> {
        match self.mem.write(addr, content) {
            Ok(()) => Ok(()),
            // What was written before the error is written again.
            Err(first) => self.mem.write_forced(addr, content).map_err(|e| match e.kind {
                Kind::NoSuchEntity => e,
                _ => first.context(e),
            }),
        }
    }
}
