//! perf_event_open(2): samples of what threads do, in rings that the kernel writes and this process reads.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

type Result<T> = std::result::Result<T, Errno>;

/// `PERF_SAMPLE_*`: what is in a sample, in this order.
pub const SAMPLE_TID: u64 = 1 << 1;
/// The call chain, here of the kernel only.
pub const SAMPLE_CALLCHAIN: u64 = 1 << 5;
/// Registers of user space: those of [`REGISTERS`].
pub const SAMPLE_REGS_USER: u64 = 1 << 12;
/// A piece of the user-space stack.
pub const SAMPLE_STACK_USER: u64 = 1 << 13;
/// `PERF_REG_X86_BP`, `_SP` and `_IP`; sampled in this order.
pub const REGISTERS: u64 = 1 << 6 | 1 << 7 | 1 << 8;

/// Sizes and kinds of `struct perf_event_attr` that are used here.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

/// How to sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Processor time between two samples, in nanoseconds.
    pub period: u64,
    /// Bytes of user-space stack in each sample, a multiple of 8 below 64 KiB.
    pub stack: u32,
    /// Sample in the kernel too, with its call chain (needs CAP_PERFMON or `perf_event_paranoid` below 2).
    pub kernel: bool,
}

mod flag {
    pub const INHERIT: u64 = 1 << 1;
    pub const EXCLUDE_KERNEL: u64 = 1 << 5;
    pub const EXCLUDE_HV: u64 = 1 << 6;
    pub const COMM: u64 = 1 << 9;
    pub const EXCLUDE_CALLCHAIN_USER: u64 = 1 << 22;
    pub const COMM_EXEC: u64 = 1 << 24;
}

/// Opens a clock that samples thread `tid` while it runs on processor `cpu`, and every thread and process that it makes from
/// now on. The clock is the kernel's own (`PERF_COUNT_SW_CPU_CLOCK`): it needs no counters of the processor.
///
/// # Errors
/// `ESRCH`; `EACCES`/`EPERM` without the right to; `ENOENT`/`ENOSYS` in a kernel without it; `EMFILE`.
pub fn open(tid: i32, cpu: i32, sampling: Sampling) -> Result<OwnedFd> {
    const SOFTWARE: u32 = 1;
    const CPU_CLOCK: u64 = 0;
    const FD_CLOEXEC: u64 = 1 << 3;
    let privilege = match sampling.kernel {
        true => 0,
        false => flag::EXCLUDE_KERNEL,
    };
    let chain = if sampling.kernel { SAMPLE_CALLCHAIN } else { 0 };
    let attributes = Attributes {
        kind: SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: CPU_CLOCK,
        sample_period: sampling.period,
        sample_type: SAMPLE_TID | chain | SAMPLE_REGS_USER | SAMPLE_STACK_USER,
        flags: flag::INHERIT
            | flag::EXCLUDE_HV
            | flag::COMM
            | flag::COMM_EXEC
            | flag::EXCLUDE_CALLCHAIN_USER
            | privilege,
        wakeup_events: 1,
        sample_regs_user: REGISTERS,
        sample_stack_user: sampling.stack,
        ..Attributes::default()
    };
    // SAFETY: the kernel reads `size` bytes of `attributes`, which outlives the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, tid, cpu, -1, FD_CLOEXEC) };
    let fd = Errno::result(fd)? as RawFd;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the samples of `event` go into the ring of `into`, which must be of the same processor.
///
/// # Errors
/// `EINVAL` when it is not.
pub fn redirect(event: BorrowedFd<'_>, into: BorrowedFd<'_>) -> Result<()> {
    const SET_OUTPUT: libc::c_ulong = 0x2405;
    // SAFETY: the request takes a descriptor's number.
    Errno::result(unsafe { libc::ioctl(event.as_raw_fd(), SET_OUTPUT as _, into.as_raw_fd()) }).map(drop)
}

/// The ring that the kernel writes the samples of one processor into.
#[derive(Debug)]
pub struct Ring {
    event: OwnedFd,
    base: *mut u8,
    length: usize,
    data: usize,
}

const PAGE: usize = 4096;
/// Where `struct perf_event_mmap_page` has the kernel's and our position.
const HEAD: usize = 1024;
const TAIL: usize = 1032;

impl Ring {
    /// Maps the ring of `event`, with room for `pages` (a power of two) of 4 KiB.
    ///
    /// # Errors
    /// `EPERM` beyond what may be locked (`perf_event_mlock_kb`); `ENOMEM`; `EINVAL`.
    pub fn new(event: OwnedFd, pages: usize) -> Result<Self> {
        let length = (1 + pages) * PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { event, base: base.cast(), length, data: pages * PAGE })
    }

    /// The event whose ring it is; readable when there is something new.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the first page of the mapping has aligned 64-bit words at these offsets, which kernel and process access
        // atomically; it lives as long as `self`.
        unsafe { &*self.base.add(offset).cast::<AtomicU64>() }
    }

    /// Takes out the next record (`struct perf_event_header` and what follows it) into `record`; false when there is none.
    pub fn take(&mut self, record: &mut Vec<u8>) -> bool {
        const HEADER: u64 = 8;
        let head = self.word(HEAD).load(Ordering::Acquire);
        let tail = self.word(TAIL).load(Ordering::Relaxed);
        record.clear();
        if head.wrapping_sub(tail) < HEADER {
            return false;
        }
        self.copy(tail, HEADER as usize, record);
        let size = u64::from(u16::from_ne_bytes([record[6], record[7]]));
        if size < HEADER || size > head.wrapping_sub(tail) {
            // Never, by the interface; going on from here would be reading garbage.
            self.word(TAIL).store(head, Ordering::Release);
            return false;
        }
        self.copy(tail + HEADER, (size - HEADER) as usize, record);
        self.word(TAIL).store(tail + size, Ordering::Release);
        true
    }

    fn copy(&self, from: u64, length: usize, to: &mut Vec<u8>) {
        let at = from as usize % self.data;
        let first = length.min(self.data - at);
        for (start, length) in [(at, first), (0, length - first)] {
            // SAFETY: `start + length` is at most `data`, which is mapped behind the first page; the kernel does not write
            // there before the tail has passed.
            to.extend_from_slice(unsafe { std::slice::from_raw_parts(self.base.add(PAGE + start), length) });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_is_sampled() {
        let tid = crate::sys::misc::gettid();
        let sampling = Sampling { period: 1_000_000, stack: 1024, kernel: false };
        let cpus = std::thread::available_parallelism().unwrap().get() as i32;
        let mut rings = Vec::new();
        for cpu in 0..cpus {
            match open(tid, cpu, sampling) {
                Ok(event) => rings.push(Ring::new(event, 64).unwrap()),
                // A container or a hardened kernel.
                Err(Errno::EACCES | Errno::EPERM | Errno::ENOSYS) => {
                    return eprintln!("SKIPPED: no perf events");
                }
                Err(e) => panic!("{e}"),
            }
        }
        let (mut record, mut samples, mut sum) = (Vec::new(), 0, 0u64);
        // Until the clock has ticked, however long that takes.
        while samples == 0 {
            sum = (0..100_000u64).fold(sum, |s, i| s ^ std::hint::black_box(i));
            for ring in &mut rings {
                while ring.take(&mut record) {
                    samples += usize::from(record[0] == 9);
                    assert_eq!(usize::from(u16::from_ne_bytes([record[6], record[7]])), record.len());
                }
            }
        }
    }
}
