//! Pages in a task through which batches run.
#![forbid(unsafe_code)]

use super::arch::{BLOB, BLOB_GADGET};
use super::inject::Gadget;
use super::{Tracee, procfs};
use crate::sys::ptrace;
use airlock_wire::error::{Error, Result};

/// Size of the page that holds the code.
const CODE: u64 = 4096;
/// Bytes before the data: the save block, and an entry of a table that is used when a single call loses its tracer.
pub(super) const HEADER: u64 = 256;
const SPARE_ENTRY: u64 = 160;

/// Pages mapped into a task's address space: one with code, which can be executed but not written, and data pages.
///
/// It belongs to the address space: all threads of a process can run batches through it, one at a time, and a child
/// made by fork has it too, at the same address. It is not unmapped when dropped. The mapping may merge with a
/// neighbour in `/proc/<pid>/maps`: read that file first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Address of the first page.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Region {
    /// Bytes of data pages of [`Region::map`]; a few of them are its own.
    pub const DATA: u64 = 32 * 4096;

    /// Maps a region with [`Region::DATA`] bytes for data: at `at`, where nothing may be mapped yet, or where the kernel
    /// likes.
    ///
    /// # Errors
    /// When the task cannot map it (`EEXIST`: something is there; `ENOMEM`: its limits).
    pub fn map(t: &mut Tracee, at: Option<u64>) -> Result<Self> {
        Self::map_sized(t, at, Self::DATA)
    }

    /// As [`Region::map`], with room for `data` bytes (rounded up to pages). A batch that does not fit is cut into
    /// several runs, but each single call must fit with all that it points at.
    ///
    /// # Errors
    /// As [`Region::map`].
    pub fn map_sized(t: &mut Tracee, at: Option<u64>, data: u64) -> Result<Self> {
        let failed = |e: Error, t: &Tracee| {
            e.context(format!("map {data} bytes of work space into {}", procfs::describe(t.tid)))
        };
        let len = data
            .checked_add(CODE + 4095)
            .map(|len| len & !4095)
            .ok_or_else(|| failed(Error::invalid_argument("the size is out of range"), t))?;
        let fixed = if at.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed) as u64;
        // Executable from the start and never writable: a program may have forbidden itself everything else
        // (PR_SET_MDWE). The code gets in by ptrace, which may write to any private page.
        let prot = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        let base = t
            .syscall(libc::SYS_mmap, [at.unwrap_or(0), len, prot, flags, u64::MAX, 0])?
            .map_err(|e| failed(e.into(), t))?;
        let region = Self { base, len };
        if at.is_some_and(|at| at != base) {
            // Kernels before 4.17 take the flag for a hint.
            region.unmap(t)?;
            return Err(failed(Error::failure("something is mapped at that address"), t));
        }
        let filled = region.fill(t).map_err(|e| failed(e, t));
        if filled.is_err() && !t.over {
            region.unmap(t)?;
        }
        filled.map(|()| region)
    }

    fn fill(self, t: &mut Tracee) -> Result<()> {
        // The file may not be there, or not be for this; words are written one by one otherwise, each for 3 us.
        if t.mem.write_forced(self.base, BLOB).is_err() {
            for (i, bytes) in BLOB.chunks(8).enumerate() {
                let mut word = [0; 8];
                word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                ptrace::poke(t.tid, self.base + 8 * i as u64, u64::from_ne_bytes(word))?;
            }
        }
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        t.syscall(libc::SYS_mprotect, [self.header(), self.len - CODE, prot, 0, 0, 0])??;
        t.gadget = Some(self.gadget());
        Ok(())
    }

    /// Address of the data: what a batch, and `clone3`, write to. 256 bytes into the first data page.
    pub fn data(self) -> u64 {
        self.header() + HEADER
    }

    /// Bytes of data.
    pub fn data_len(self) -> u64 {
        self.len.saturating_sub(CODE + HEADER)
    }

    /// Address of the save block.
    pub(super) fn header(self) -> u64 {
        self.base + CODE
    }

    /// Address of an entry that belongs to no table.
    pub(super) fn spare_entry(self) -> u64 {
        self.header() + SPARE_ENTRY
    }

    /// Unmaps it.
    ///
    /// # Errors
    /// When the call cannot be made.
    pub fn unmap(self, t: &mut Tracee) -> Result<()> {
        // The call instruction may well be the one in the region: nothing after it is ever executed, unless this process
        // dies at that moment. So rather one from elsewhere.
        t.gadget = None;
        t.syscall(libc::SYS_munmap, [self.base, self.len, 0, 0, 0, 0])??;
        Ok(())
    }

    /// The instruction for single calls.
    pub(super) fn gadget(self) -> Gadget {
        Gadget { at: self.base + BLOB_GADGET, region: Some(self) }
    }
}
