//! `Usage`: memory of a sandbox.

use super::types::Empty;
use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "Usage", from "gVisor pkg/sentry/control/usage.go; seed 001";
    /// Memory usage of the whole sandbox by category, in bytes.
    Collect: MemoryUsageOpts => MemoryUsage;
    /// Hands out a page of live figures, which is kept up to date for as long as somebody has it open or mapped.
    UsageFD: UsageFdOpts => Empty, fds "out: the page (see `UsagePage`), then the kernel's own file with the memory in use (`memory.current` or `memory.usage_in_bytes`), as text", errors "`unsupported version requested: n`";
    /// Gives memory back that can be had again: the containers' page cache, and free memory of the loader. Refused on
    /// kernels that cannot reclaim (v2 before Linux 5.19).
    Reduce: ReduceOpts => Empty, blocks "with `wait` until the kernel has reclaimed what it can";
    /// How long the containers' processes that live now have waited for reads from disks: JSON text
    /// `{"ReadWait":{"/":ns},"ReadWait9P":{"/":0}}`. Needs the kernel's pressure or delay accounting, else it is 0.
    GetFileIoStats: Empty => String;
}

/// Argument of [`UsageFD`] (gVisor's `control.MemoryUsageFileOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageFdOpts {
    /// Must be 1.
    #[serde(rename = "Version")]
    pub version: u64,
}

/// Argument of [`Reduce`] (gVisor's `control.UsageReduceOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReduceOpts {
    /// Return when the memory is free; otherwise at once.
    pub wait: bool,
    /// Leave the loader's own memory alone.
    pub do_not_gc: bool,
}

/// The page that [`UsageFD`] hands out: unsigned 64-bit numbers in the machine's byte order. gVisor's readers know the
/// first one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsagePage {
    /// Bytes of files that are mapped.
    pub mapped: u64,
    /// Odd while the page is being written: read it before and after the rest, and again if it is odd or has changed.
    pub sequence: u64,
    /// When it was written, nanoseconds since 1970.
    pub time: u64,
    /// Bytes of memory in use.
    pub total: u64,
    /// Bytes of anonymous memory.
    pub anonymous: u64,
    /// Bytes of page cache that is neither mapped nor tmpfs.
    pub page_cache: u64,
    /// Bytes in memory file systems and shared memory.
    pub tmpfs: u64,
    /// Bytes that are none of these: the kernel's on the sandbox's behalf.
    pub system: u64,
    /// Processor time, nanoseconds.
    pub cpu: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Processes that the OOM killer killed.
    pub oom_kills: u64,
}

impl UsagePage {
    /// Length of the file in bytes; what follows the numbers is 0.
    pub const SIZE: u64 = 4096;
    /// How often it is written while somebody has it, in milliseconds.
    pub const INTERVAL_MS: u64 = 100;
    const COUNT: usize = 11;

    /// The page's beginning.
    pub fn to_bytes(self) -> Vec<u8> {
        let Self {
            mapped,
            sequence,
            time,
            total,
            anonymous,
            page_cache,
            tmpfs,
            system,
            cpu,
            pids,
            oom_kills,
        } = self;
        let all: [u64; Self::COUNT] =
            [mapped, sequence, time, total, anonymous, page_cache, tmpfs, system, cpu, pids, oom_kills];
        all.iter().flat_map(|n| n.to_ne_bytes()).collect()
    }

    /// Reads a page's beginning; `None` when it is too short, or is being written just now.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.chunks_exact(8).filter_map(|c| c.try_into().ok().map(u64::from_ne_bytes));
        let mut next = || numbers.next();
        let page = Self {
            mapped: next()?,
            sequence: next()?,
            time: next()?,
            total: next()?,
            anonymous: next()?,
            page_cache: next()?,
            tmpfs: next()?,
            system: next()?,
            cpu: next()?,
            pids: next()?,
            oom_kills: next()?,
        };
        page.sequence.is_multiple_of(2).then_some(page)
    }
}

/// Argument of [`Collect`] (gVisor's `control.MemoryUsageOpts`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUsageOpts {
    /// Break the total down by category instead of putting it under `unknown`; takes longer.
    #[serde(rename = "Full")]
    pub full: bool,
}

/// Result of [`Collect`] (gVisor's `control.MemoryUsage`); all in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUsage {
    /// Memory that is not broken down.
    #[serde(rename = "Unknown")]
    pub unknown: u64,
    /// The sandbox's own and the kernel's on its behalf.
    #[serde(rename = "System")]
    pub system: u64,
    /// Anonymous memory.
    #[serde(rename = "Anonymous")]
    pub anonymous: u64,
    /// Page cache.
    #[serde(rename = "PageCache")]
    pub page_cache: u64,
    /// Mapped files.
    #[serde(rename = "Mapped")]
    pub mapped: u64,
    /// Memory file systems.
    #[serde(rename = "Tmpfs")]
    pub tmpfs: u64,
    /// Always 0; gVisor's field.
    #[serde(rename = "Ramdiskfs")]
    pub ramdiskfs: u64,
    /// The sum of all.
    #[serde(rename = "Total")]
    pub total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let page = UsagePage { mapped: 1, sequence: 2, time: 3, oom_kills: 11, ..UsagePage::default() };
        let bytes = page.to_bytes();
        assert_eq!(bytes[..8], 1u64.to_ne_bytes());
        assert_eq!(UsagePage::from_bytes(&bytes), Some(page));
        assert_eq!(UsagePage::from_bytes(&bytes[1..]), None);
        assert_eq!(UsagePage::from_bytes(&UsagePage { sequence: 3, ..page }.to_bytes()), None);
    }
}
