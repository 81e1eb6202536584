//! What the page tables of a process say (`PAGEMAP_SCAN`, Linux 6.7), what a file has in the page cache (cachestat(2),
//! 6.5), advice to another process (process_madvise(2)).

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

type Result<T> = std::result::Result<T, Errno>;

/// The page was written since it was last write-protected (or is not protected at all).
pub const WRITTEN: u64 = 1 << 1;
/// The page belongs to a file, or is shared memory.
pub const FILE: u64 = 1 << 2;
/// It is in memory.
pub const PRESENT: u64 = 1 << 3;
/// It is swapped out (or a guard, or a marker).
pub const SWAPPED: u64 = 1 << 4;
/// It is the kernel's page of zeros.
pub const PFNZERO: u64 = 1 << 5;
/// It is part of a huge page.
pub const HUGE: u64 = 1 << 6;
/// It is a guard (`MADV_GUARD_INSTALL`). Linux 6.15.
pub const GUARD: u64 = 1 << 8;

/// `PM_SCAN_WP_MATCHING`: write-protect what is reported.
pub const SCAN_WP_MATCHING: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: fail with `EPERM` where a mapping is not registered for asynchronous write-protection.
pub const SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// `struct page_region`: pages `start..end` (addresses) have these categories of those asked for.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// [`WRITTEN`] and so on.
    pub categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Which pages [`scan`] reports, and what it does to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Query {
    /// [`SCAN_WP_MATCHING`], [`SCAN_CHECK_WPASYNC`].
    pub flags: u64,
    /// Categories that a page must have.
    pub all_of: u64,
    /// Categories that a page must not have.
    pub none_of: u64,
    /// Categories of which it must have one (0: no such condition).
    pub any_of: u64,
    /// Categories that are reported.
    pub report: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// One call of `PAGEMAP_SCAN` on an open `/proc/<pid>/pagemap`: fills `regions` from `start` on. Returns how many were
/// filled and the address up to which was looked.
///
/// # Errors
/// `ENOTTY` before Linux 6.7; `EINVAL` when a category is not known to this kernel; `EPERM` as
/// [`SCAN_CHECK_WPASYNC`] says; `ESRCH` when the process is gone.
pub fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    query: &Query,
    regions: &mut [Region],
) -> Result<(usize, u64)> {
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        flags: query.flags,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: query.none_of,
        category_mask: query.all_of | query.none_of,
        category_anyof_mask: query.any_of,
        return_mask: query.report,
        ..ScanArg::default()
    };
    // SAFETY: `arg` is the structure that this request takes, with its size in it; `vec` and `vec_len` describe
    // `regions`, whose elements have the kernel's layout and may hold any bits.
    let n = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arg) };
    let n = Errno::result(n)? as usize;
    Ok((n.min(regions.len()), arg.walk_end))
}

/// How many pages of a file the page cache has, of the bytes `offset..offset + len` (`len` 0: to the end).
///
/// # Errors
/// `ENOSYS` before Linux 6.5; `EOPNOTSUPP` for hugetlbfs.
pub fn cached_pages(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<u64> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = [offset, len];
    let mut stat = [0u64; 5];
    // SAFETY: `range` is a struct cachestat_range (two u64), `stat` a struct cachestat (five u64); flags must be 0.
    let r = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), range.as_ptr(), stat.as_mut_ptr(), 0 as libc::c_uint)
    };
    Errno::result(r).map(|_| stat[0])
}

/// Gives one piece of advice about memory of the process behind `pidfd` (process_madvise(2), Linux 5.10). Only
/// non-destructive advice is allowed: `MADV_COLLAPSE` (25) and the like.
///
/// # Errors
/// `EINVAL` for other advice or no such memory, `ESRCH`, `EPERM`, `ENOSYS`.
pub fn advise(pidfd: BorrowedFd<'_>, start: u64, len: u64, advice: i32) -> Result<u64> {
    let range = libc::iovec { iov_base: start as usize as *mut libc::c_void, iov_len: len as usize };
    // SAFETY: `range` is one iovec whose addresses are of another process; the kernel checks them there.
    let r = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            pidfd.as_raw_fd(),
            &raw const range,
            1usize,
            advice,
            0 as libc::c_uint,
        )
    };
    Errno::result(r).map(|n| n as u64)
}
