//! Address spaces.
#![forbid(unsafe_code)]

use super::{Bytes, Id};
use serde::{Deserialize, Serialize};

/// An address space.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MmState {
    /// Mappings, ascending, not overlapping.
    pub vmas: Vec<Vma>,
    /// `struct prctl_mm_map` fields.
    pub layout: MmLayout,
    /// Auxiliary vector as in `/proc/pid/auxv`.
    pub auxv: Bytes,
    /// Program (`/proc/pid/exe`).
    pub exe: Option<Id>,
    /// PR_SET_MDWE, memory deny write execute flags.
    pub mdwe: u64,
    /// PR_SET_MEMORY_MERGE.
    pub ksm: bool,
    /// `mlockall` future default flags (MCL_FUTURE 2, MCL_ONFAULT 4), if they can be told.
    pub def_flags: u64,
    /// `/proc/pid/coredump_filter`.
    pub coredump_filter: u64,
    /// AIO contexts (io_setup) whose ring is mapped in this address space.
    pub aio: Vec<AioRing>,
}

/// Boundaries that `/proc` and the heap use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MmLayout {
    /// Code.
    pub code: (u64, u64),
    /// Initialised data.
    pub data: (u64, u64),
    /// Heap: start and current end.
    pub brk: (u64, u64),
    /// Bottom of the stack (start).
    pub stack: u64,
    /// Arguments.
    pub args: (u64, u64),
    /// Environment.
    pub env: (u64, u64),
}

/// A mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// PROT_*.
    pub prot: u32,
    /// MAP_SHARED 1 or MAP_PRIVATE 2.
    pub shared: bool,
    /// MAP_GROWSDOWN.
    pub grows_down: bool,
    /// What is mapped.
    pub kind: VmaKind,
    /// Offset in it, bytes.
    pub offset: u64,
    /// Advice that survives (VmFlags): MADV_* numbers to give again.
    pub advice: Vec<i32>,
    /// mlock'ed (1), on fault (2).
    pub locked: u8,
    /// Protection key.
    pub pkey: i32,
    /// Name (PR_SET_VMA_ANON_NAME).
    pub name: Option<String>,
    /// Page size for hugetlb, else 0.
    pub huge_page_size: u64,
    /// MAP_DROPPABLE: contents may vanish at any time, and are not saved.
    pub droppable: bool,
    /// MAP_NORESERVE.
    pub noreserve: bool,
    /// Sealed (mseal).
    pub sealed: bool,
    /// Guard regions inside: (start, end), MADV_GUARD_INSTALL.
    pub guards: Vec<(u64, u64)>,
}

/// What a mapping maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmaKind {
    /// Private anonymous memory; contents in the page index under the address space.
    #[default]
    Anonymous,
    /// A file, opened as [`super::FileState`] says. Private changed pages are in the page index.
    File(Id),
    /// A memory object ([`super::ShmemState`]); contents in the page index under the object when shared.
    Shmem(Id),
    /// The kernel's `[vdso]`.
    Vdso,
    /// One of the kernel's `[vvar…]` mappings.
    Vvar,
    /// `[vsyscall]` & co.: present in every address space, nothing to do.
    Kernel,
    /// Ring of an AIO context.
    Aio,
}

/// Memory in an object of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShmemState {
    /// What it was.
    pub kind: ShmemKind,
    /// Name: of a memfd, or of a deleted file.
    pub name: String,
    /// Size, bytes.
    pub size: u64,
    /// F_GET_SEALS of a memfd.
    pub seals: i32,
    /// Page size of a hugetlb object, else 0.
    pub huge_page_size: u64,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub owner: (u32, u32),
    /// Device and inode at the dump, by which mappings and descriptors found each other.
    pub identity: (u64, u64),
}

/// Origin of a memory object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShmemKind {
    /// mmap(MAP_SHARED | MAP_ANONYMOUS).
    #[default]
    Anonymous,
    /// memfd_create(2).
    Memfd,
    /// SysV segment: key and shmid are in [`super::IpcState`] under this id.
    SysV {
        /// Segment ID.
        shmid: i32,
    },
}

/// An AIO context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AioRing {
    /// Context ID: the address of its ring.
    pub id: u64,
    /// `nr_events` that makes a ring of this size.
    pub events: u32,
    /// What nobody has fetched yet: entries of 32 bytes (`struct io_event`), the oldest first.
    pub unread: Bytes,
}
