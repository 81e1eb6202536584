//! The page engine: which pages of a program must be saved, how they get into a pages file, and how they come back.
//!
//! ```text
//! dump     scan ─ runs of pages ─▶ Writer::add ─ units of 64 pages ─▶ read, drop zeros, compare, checksum, pwrite
//!                                                                      └▶ Index (pages_meta.img)
//! restore  Index + pages files ─▶ Chain ─ Layout of an object ─▶ fill: read, check, put into place
//!                                                            └▶ background: the same while the program runs
//! ```
//!
//! Around these: [`shadow`] (the program goes on while its pages are written), [`track`] (only what was written since the
//! last image is looked at), [`descriptor`] (a userfaultfd of another process, which fill, background and track work with).
//!
//! Page data is page-aligned in a file of its own or in a section of the statefile; [`Index`] says what lies where. An
//! image may build upon a parent image, whose index and pages are needed to read it ([`Chain`]).
//!
//! # Why these mechanisms
//! Measured on 2 cores of an AMD EPYC (Zen 4), Linux 6.18, 256 MB on tmpfs, best rates in GB/s with 1 / 2 threads and the
//! processor time that 1 GB takes; `cp` of the same file there 2.1 GB/s (470 ms):
//!
//! | dump, 4 KiB pages | 1 | 2 | ms/GB |
//! | --- | --- | --- | --- |
//! | process_vm_readv into a mapping of the file | 1.2 | 2.3 | 850 |
//! | the same, populated before (`MADV_POPULATE_WRITE`) | 1.2 | 2.3 | 870 |
//! | **process_vm_readv into a buffer, pwrite** | 1.8 | 2.7 | 570 |
//! | `/proc/pid/mem` into a buffer, pwrite | 1.6 | 2.6 | 620 |
//! | pwrite made by the program itself | 2.7 | 2.7 | 380 |
//! | vmsplice and splice, made by the program itself | 2.3 | – | 460 |
//! | any of these after fallocate(2) | ± 5 % | −15 % | |
//!
//! A new page of a mapped file is zeroed and faulted before it is written, which costs more than the second copy and the
//! inode's lock do. Calls of the program itself save one copy, but nobody could look at the pages on the way (zeros,
//! checksums), and its descriptors and limits would matter.
//!
//! | restore | 4 KiB pages | huge pages |
//! | --- | --- | --- |
//! | process_vm_writev | 1.8 / 3.5 (550) | **3.5 / 6.2 (250)** |
//! | **UFFDIO_COPY from outside** | **2.5 / 4.8 (400)** | makes small pages |
//! | pread made by the program itself | 1.6 / 1.6 (630) | 3.6 / 3.8 (270) |
//!
//! UFFDIO_COPY neither zeroes nor faults, needs no mmap lock beyond the mapping's own, and can write where the program
//! cannot. Reading the file into a buffer instead of mapping it costs 70 ms/GB; a mapping could kill us (SIGBUS) where the
//! file is cut or the disk fails, and what was checked is in the buffer, whatever happens to the file.
//!
//! Checksums of single pages (XXH3) cost 40 ms/GB: faults are answered with pages that were checked.
//!
//! # What comes of it
//! `examples/pages.rs` on the same machine, 2 threads, medians, checksums and index included, when nobody else was at work:
//!
//! | | 256 MB | 1 GB |
//! | --- | --- | --- |
//! | dump, small / huge pages, × the rate of `cp` | 1.25 / 1.28 | 1.13 / 1.08 |
//! | restore, likewise | 1.63 / 2.46 | 1.72 / see below |
//! | background, small pages: program runs / all pages in | | 1.4 ms / 350 ms (3.1 GB/s) |
//! | shadow, × a bare fork of such a process (27 ms and 0.7 ms then) | | 1.1 |
//! | 1 % written since the parent image: found, written, armed again | | 27 ms, 1.04 % of the full image |
//!
//! On this virtual machine a fresh huge page costs 2.5 ms of zeroing (probably since the host backs it anew): 1 GB in
//! huge pages came at 0.6 to 4.3 GB/s, depending on what memory the kernel had at hand. Small pages are mostly used again
//! before they are given back.
#![forbid(unsafe_code)]

mod ahead;
pub mod background;
mod chain;
mod compare;
pub mod descriptor;
mod fill;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(test)]
mod hugetlb_tests;
mod index;
mod layout;
mod memory;
mod parallel;
mod pool;
#[cfg(test)]
mod roundtrip_tests;
mod scan;
#[cfg(test)]
mod scan_tests;
pub mod shadow;
#[cfg(test)]
mod shadow_tests;
mod sums;
#[cfg(test)]
mod testing;
pub mod track;
#[cfg(test)]
mod track_tests;
mod unit;
pub mod working_set;
mod writer;

pub use chain::{Chain, Image};
pub use compare::{Compared, compare};
pub use fill::{Filled, Target, fill, fill_file, wants_descriptor};
pub use index::{Entry, Index, Place};
pub use layout::{Layout, Piece, Source};
pub use memory::Memory;
pub use scan::{Run, RunKind, scan};
pub use sums::SumKind;
pub use writer::{Content, Known, Like, Options, Stats, Task, Writer};

/// Bytes of a page. Huge pages are counted in these too.
pub const PAGE: u64 = 4096;
/// Bytes of a transparent huge page.
pub const HUGE: u64 = 2 << 20;
/// Pages that are read, compressed and written in one piece.
pub const UNIT: u64 = 64;

/// What pages belong to. The number is an index into the vectors of `state::SandboxState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// An address space (`mms`); positions are addresses.
    Memory(u32),
    /// A memory object (`shmems`); positions are offsets.
    Shared(u32),
    /// The content of a file (`files`); positions are offsets.
    File(u32),
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory(n) => write!(f, "address space {n}"),
            Self::Shared(n) => write!(f, "memory object {n}"),
            Self::File(n) => write!(f, "file {n}"),
        }
    }
}

/// A range of an address space that is looked through: one mapping, or a part of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// First address, page-aligned.
    pub start: u64,
    /// Address after the last, page-aligned.
    pub end: u64,
    /// Transparent huge pages are in it, or wanted.
    pub huge: bool,
    /// Page size in bytes when it is of hugetlbfs, else 4096 (or 0).
    pub page_size: u64,
    /// Something else than zeros shows where it has no page of its own: the file of a private mapping. Its pages of
    /// zeros are stored.
    pub backed: bool,
    /// Pages of the file below belong to the content too (the file will not be there).
    pub file_pages: bool,
}

impl Range {
    /// True for mappings of hugetlbfs.
    pub fn hugetlb(&self) -> bool {
        self.page_size > PAGE
    }
}
