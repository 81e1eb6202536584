//! bpf(2), as far as tracing needs it: maps, programs at tracepoints and kernel functions, the kernel's types, and the
//! ring in which programs leave records.

use super::bpf::{
    BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_LOAD, IdAttr, InfoAttr, NAME_LEN, ProgramAttr, Result, bpf, name_of,
    owned, raw,
};
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_BTF_GET_FD_BY_ID: i32 = 19;
const BPF_BTF_GET_NEXT_ID: i32 = 23;

const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_PROG_TYPE_TRACING: u32 = 26;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// Most bytes that the kernel's types may take; they are some 6 MB.
const MAX_BTF: u32 = 64 << 20;
/// Bytes of the verifier's explanation that are kept.
const LOG_LEN: usize = 1 << 20;
/// What a program is licensed as. The kernel lets only programs with a licence that is compatible with its own read
/// memory; airlock's programs are offered under these two as well (docs/TRACE.md).
const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";

// Parts of `union bpf_attr` (linux/bpf.h).

#[repr(C)]
#[derive(Default)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; NAME_LEN],
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

#[repr(C)]
struct OpenAttr {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    kernel_btf: u32,
}

/// Kinds of maps (`enum bpf_map_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// By any key.
    Hash = 1,
    /// By a number from 0.
    Array = 2,
    /// The same, of each CPU its own.
    PerCpuArray = 6,
    /// AF_XDP sockets by queue.
    Sockets = 17,
    /// Records on their way to one reader; `entries` is its size in bytes, a power of two and of pages.
    RingBuffer = 27,
}

/// Where a program is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// When it is run by [`run_once`].
    Test,
    /// At a tracepoint, by the type ID of its `btf_trace_<name>`.
    Tracepoint(u32),
    /// For every frame that an interface receives (loaded here, attached by [`super::xdp`]).
    Xdp,
}

/// Makes a map. Key and value in bytes; both 0 for a ring.
///
/// # Errors
/// `EPERM` without `CAP_BPF` in the initial user namespace; `ENOMEM`, also at the limit of the caller's memory cgroup.
pub fn create_map(kind: MapKind, key: u32, value: u32, entries: u32) -> Result<OwnedFd> {
    let mut attr = MapAttr {
        map_type: kind as u32,
        key_size: key,
        value_size: value,
        max_entries: entries,
        map_name: *b"airlock\0\0\0\0\0\0\0\0\0",
        ..MapAttr::default()
    };
    bpf(BPF_MAP_CREATE, &mut attr).map(owned)
}

/// Sets an element. `N` and `M` must be the map's sizes of key and value.
///
/// # Errors
/// `E2BIG` when the map is full.
pub fn set<const N: usize, const M: usize>(
    map: BorrowedFd<'_>,
    key: &[u8; N],
    value: &[u8; M],
) -> Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        ..ElementAttr::default()
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes an element. `N` must be the map's size of a key.
///
/// # Errors
/// `ENOENT` when it is not there.
pub fn remove<const N: usize>(map: BorrowedFd<'_>, key: &[u8; N]) -> Result<()> {
    let mut attr = ElementAttr { map_fd: raw(map), key: key.as_ptr() as u64, ..ElementAttr::default() };
    bpf(BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// Reads a number out of an array of `u64` (not per CPU).
///
/// # Errors
/// `ENOENT` behind the end.
pub fn get(map: BorrowedFd<'_>, index: u32) -> Result<u64> {
    let mut value = 0u64;
    let mut attr = ElementAttr {
        map_fd: raw(map),
        key: std::ptr::from_ref(&index) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        ..ElementAttr::default()
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// Why a program was not loaded.
#[derive(Debug)]
pub struct Refused {
    /// The kernel's error: `EPERM` without `CAP_BPF` and `CAP_PERFMON`, `EACCES` and `EINVAL` from the verifier.
    pub errno: Errno,
    /// The last line of the verifier's explanation; may be empty.
    pub why: String,
}

/// Loads a program of encoded instructions. `name` is cut to 15 bytes.
///
/// # Errors
/// See [`Refused`].
pub fn load(program: &[u64], hook: Hook, name: &str) -> std::result::Result<OwnedFd, Refused> {
    const BPF_TRACE_RAW_TP: u32 = 23;
    const BPF_XDP: u32 = 37;
    let (prog_type, expected_attach_type, attach_btf_id) = match hook {
        Hook::Test => (BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0),
        Hook::Tracepoint(id) => (BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP, id),
        Hook::Xdp => (BPF_PROG_TYPE_XDP, BPF_XDP, 0),
    };
    let mut log: Vec<u8> = Vec::new();
    let attempt = |log: &mut Vec<u8>| {
        let mut attr = ProgramAttr {
            prog_type,
            insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
            insns: program.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            prog_name: name_of(name),
            expected_attach_type,
            attach_btf_id,
            ..ProgramAttr::default()
        };
        bpf(BPF_PROG_LOAD, &mut attr).map(owned)
    };
    attempt(&mut log).or_else(|errno| {
        // Once more, for the explanation.
        log = vec![0; LOG_LEN];
        attempt(&mut log).map_err(|_| {
            let text =
                String::from_utf8_lossy(log.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
            let why = text.lines().rev().find(|l| !l.starts_with("processed") && !l.is_empty());
            log::debug!("the verifier on {name}: {text}");
            Refused { errno, why: why.unwrap_or_default().to_owned() }
        })
    })
}

/// Has a program of [`Hook::Tracepoint`] run from now on, until the result is closed.
///
/// # Errors
/// `EPERM`.
pub fn attach(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut attr = OpenAttr { name: 0, prog_fd: raw(program), padding: 0 };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attr).map(owned)
}

/// Runs a program of [`Hook::Test`] in the calling task and returns what it returns.
///
/// # Errors
/// `EPERM`.
pub fn run_once(program: BorrowedFd<'_>) -> Result<u32> {
    let mut attr = TestAttr { prog_fd: raw(program), ..TestAttr::default() };
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}

/// How often a program was not run because it was running on that CPU already.
///
/// # Errors
/// As bpf(2) `BPF_OBJ_GET_INFO_BY_FD`.
pub fn recursion_misses(program: BorrowedFd<'_>) -> Result<u64> {
    /// Where `recursion_misses` is in `struct bpf_prog_info` (Linux 5.12).
    const OFFSET: usize = 208;
    let mut info = [0u8; OFFSET + 8];
    let mut attr =
        InfoAttr { bpf_fd: raw(program), info_len: info.len() as u32, info: info.as_mut_ptr() as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.last_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)))
}

/// The types of the running kernel, in the BPF type format (Documentation/bpf/btf.rst).
///
/// # Errors
/// `ENOENT` when the kernel has none (`CONFIG_DEBUG_INFO_BTF`); `EPERM` without `CAP_SYS_ADMIN`.
pub fn kernel_types() -> Result<Vec<u8>> {
    let mut next = IdAttr::default();
    bpf(BPF_BTF_GET_NEXT_ID, &mut next)?;
    // The kernel's own come first.
    let mut attr = IdAttr { id: next.next_id, ..IdAttr::default() };
    let btf = bpf(BPF_BTF_GET_FD_BY_ID, &mut attr).map(owned)?;
    let mut name = [0u8; 16];
    let mut info =
        BtfInfo { name: name.as_mut_ptr() as u64, name_len: name.len() as u32, ..BtfInfo::default() };
    let ask = |info: &mut BtfInfo| {
        let mut attr = InfoAttr {
            bpf_fd: raw(btf.as_fd()),
            info_len: size_of::<BtfInfo>() as u32,
            info: std::ptr::from_mut(info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)
    };
    ask(&mut info)?;
    if !name.starts_with(b"vmlinux\0") || info.btf_size > MAX_BTF {
        return Err(Errno::ENOENT);
    }
    let mut types = vec![0u8; info.btf_size as usize];
    // The size stays, the rest is asked for again.
    let mut info = BtfInfo { btf: types.as_mut_ptr() as u64, btf_size: info.btf_size, ..BtfInfo::default() };
    ask(&mut info)?;
    Ok(types)
}

/// The reader's side of a [`MapKind::RingBuffer`]: two pages of positions, and the records, mapped twice in a row so that
/// none is cut at the end (Documentation/bpf/ringbuf.rst).
#[derive(Debug)]
pub struct Ring {
    map: OwnedFd,
    /// Where the reader's position is; the kernel's is a page further, then the data.
    start: usize,
    page: usize,
    size: usize,
    /// What has been read.
    position: u64,
}

impl Ring {
    /// Maps a ring of `size` bytes.
    ///
    /// # Errors
    /// `EINVAL` when it is no ring of that size; `ENOMEM`.
    pub fn new(map: OwnedFd, size: usize) -> Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
            .and_then(|n| usize::try_from(n).ok())
            .ok_or(Errno::EINVAL)?;
        let len = 2 * page + 2 * size;
        // The reader's page is to be written, the others may only be read: first the place, then its parts.
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let ring = Self { map, start: start as usize, page, size, position: 0 };
        let parts = [(0, page, libc::PROT_READ | libc::PROT_WRITE), (page, page + 2 * size, libc::PROT_READ)];
        for (offset, len, prot) in parts {
            let (at, flags) =
                ((ring.start + offset) as *mut libc::c_void, libc::MAP_SHARED | libc::MAP_FIXED);
            // SAFETY: replaces a part of the mapping that was just made and that nothing points to yet.
            let mapped =
                unsafe { libc::mmap(at, len, prot, flags, ring.map.as_raw_fd(), offset as libc::off_t) };
            if mapped == libc::MAP_FAILED {
                return Err(Errno::last());
            }
        }
        Ok(ring)
    }

    /// Readable when there are records; only if all earlier ones had been read when the next came.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Hands every record that is there to `take`, which says whether to go on; they are free again afterwards. Returns
    /// the number of records.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> usize {
        const BUSY: u32 = 1 << 31;
        const DISCARD: u32 = 1 << 30;
        const HEADER: u64 = 8;
        let mut records = 0;
        loop {
            // SAFETY: an aligned word of the kernel's page of the mapping, which lives as long as `self`; the kernel
            // writes it atomically.
            let produced =
                unsafe { &*((self.start + self.page) as *const AtomicU64) }.load(Ordering::Acquire);
            if self.position >= produced {
                return records;
            }
            let at = self.start + 2 * self.page + (self.position as usize & (self.size - 1));
            // SAFETY: positions are multiples of 8, so that this is an aligned word in the data, which is mapped twice.
            let header = unsafe { &*(at as *const AtomicU32) }.load(Ordering::Acquire);
            if header & BUSY != 0 {
                return records;
            }
            let len = (header & !(BUSY | DISCARD)) as usize;
            if len > self.size {
                // Never, says the kernel; what follows could not be found.
                return records;
            }
            let mut go_on = true;
            if header & DISCARD == 0 {
                records += 1;
                // SAFETY: the record lies in the data behind its header: at most `size` bytes from a position below
                // `size`, of `2 * size`. The kernel does not touch it until the position says that it is read.
                let bytes = unsafe { std::slice::from_raw_parts((at + HEADER as usize) as *const u8, len) };
                go_on = take(bytes);
            }
            self.position += (len as u64).next_multiple_of(8) + HEADER;
            // SAFETY: an aligned word of the reader's page, which only this reader writes; `&mut self` makes it one.
            unsafe { &*(self.start as *const AtomicU64) }.store(self.position, Ordering::Release);
            if !go_on {
                return records;
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing points into it any more.
        unsafe { libc::munmap(self.start as *mut libc::c_void, 2 * self.page + 2 * self.size) };
    }
}
