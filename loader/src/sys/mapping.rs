//! Shared mappings of files that cannot be written otherwise (hugetlbfs).

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Mutex;

/// A file of hugetlbfs, mapped shared: huge pages for all of it are reserved as long as this lives, so that no access can
/// fail.
#[derive(Debug)]
pub struct HugeFile {
    start: usize,
    len: usize,
    /// Writers from several threads, one at a time: the content is nobody's reference.
    lock: Mutex<()>,
}

impl HugeFile {
    /// Maps the first `len` bytes (a multiple of the file's page size).
    ///
    /// # Errors
    /// `ENOMEM` when there are not enough huge pages; `EINVAL` for another kind of file or length.
    pub fn map(file: BorrowedFd<'_>, len: u64) -> Result<Self, Errno> {
        /// `HUGETLBFS_MAGIC`.
        const HUGETLBFS: i64 = 0x9584_58f6;
        let fs = nix::sys::statfs::fstatfs(file)?;
        let len = usize::try_from(len).ok().filter(|len| *len > 0).ok_or(Errno::EINVAL)?;
        // Elsewhere a page may be missing when it is touched, which would be the end of this process.
        if fs.filesystem_type().0 as i64 != HUGETLBFS {
            return Err(Errno::EINVAL);
        }
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice; it touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { start: start as usize, len, lock: Mutex::new(()) })
    }

    /// Writes `content` at `offset`.
    ///
    /// # Errors
    /// `EFBIG` behind the end.
    pub fn write(&self, offset: u64, content: &[u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let end = offset.checked_add(content.len()).filter(|end| *end <= self.len);
        if end.is_none() {
            return Err(Errno::EFBIG);
        }
        let _one = self.lock.lock();
        // SAFETY: the range lies in the mapping, which lives as long as `self` and is backed by reserved huge pages; no
        // reference to it exists, and the lock keeps other writers of this process away.
        unsafe {
            let to = (self.start + offset) as *mut u8;
            std::ptr::copy_nonoverlapping(content.as_ptr(), to, content.len());
        }
        Ok(())
    }
}

impl Drop for HugeFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.len) };
    }
}
