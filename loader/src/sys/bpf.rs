//! bpf(2), as far as device programs of v2 cgroups need it; tracing has its part in [`super::tracing`].

use nix::errno::Errno;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub(super) type Result<T> = std::result::Result<T, Errno>;

pub(super) const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
pub(super) const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_PROG_QUERY: i32 = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// Bytes of a program's name, with the terminating zero (`BPF_OBJ_NAME_LEN`).
pub(super) const NAME_LEN: usize = 16;
/// Where `name` is in `struct bpf_prog_info`.
const INFO_NAME_OFFSET: usize = 64;

// The leading parts of `union bpf_attr` (linux/bpf.h) for each command; the kernel takes what is missing as zero.

#[repr(C)]
#[derive(Default)]
pub(super) struct ProgramAttr {
    pub prog_type: u32,
    pub insn_cnt: u32,
    pub insns: u64,
    pub license: u64,
    pub log_level: u32,
    pub log_size: u32,
    pub log_buf: u64,
    pub kern_version: u32,
    pub prog_flags: u32,
    pub prog_name: [u8; NAME_LEN],
    pub prog_ifindex: u32,
    pub expected_attach_type: u32,
    pub prog_btf_fd: u32,
    pub func_info_rec_size: u32,
    pub func_info: u64,
    pub func_info_cnt: u32,
    pub line_info_rec_size: u32,
    pub line_info: u64,
    pub line_info_cnt: u32,
    pub attach_btf_id: u32,
    pub attach_prog_fd: u32,
    pub padding: u32,
}

#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
    padding: u32,
}

#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct IdAttr {
    pub id: u32,
    pub next_id: u32,
    pub open_flags: u32,
    pub padding: u32,
}

#[repr(C)]
pub(super) struct InfoAttr {
    pub bpf_fd: u32,
    pub info_len: u32,
    pub info: u64,
}

/// bpf(2) with `attr`, whose pointers must be valid for what the command reads and writes there.
pub(super) fn bpf<T>(command: i32, attr: &mut T) -> Result<i32> {
    // SAFETY: `attr` is a live `repr(C)` value of the given size, laid out as the command's part of `union bpf_attr`;
    // the callers below keep the buffers it points to alive and as long as they say.
    let r = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr).cast::<c_void>(), size_of::<T>())
    };
    Errno::result(r).map(|r| r as i32)
}

/// A program's name, cut to 15 bytes. It is for lists only.
pub(super) fn name_of(name: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    for (to, from) in bytes.iter_mut().take(NAME_LEN - 1).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

pub(super) fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned it to us; nobody else owns it. It is close-on-exec by itself.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// Loads a device program (`BPF_PROG_TYPE_CGROUP_DEVICE`) of encoded instructions. `name` is cut to 15 bytes.
///
/// # Errors
/// `EPERM` without capabilities, `EINVAL` or `EACCES` when the verifier rejects it, `E2BIG` when it is too long.
pub fn load_cgroup_device(program: &[u64], name: &str) -> Result<OwnedFd> {
    // For helper functions, of which the program calls none.
    let license = c"Apache-2.0";
    let mut attr = ProgramAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_name: name_of(name),
        ..ProgramAttr::default()
    };
    bpf(BPF_PROG_LOAD, &mut attr).map(owned)
}

/// Attaches a device program to a v2 cgroup beside the others that are there, or in the place of `replace`
/// (Linux 5.6). The attachment ends with the cgroup.
///
/// # Errors
/// `EPERM`; `EBADF` when `cgroup` is no v2 cgroup; `ENOENT` when `replace` is not attached there.
pub fn attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replace.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replace.map_or(0, raw),
        padding: 0,
    };
    bpf(BPF_PROG_ATTACH, &mut attr).map(drop)
}

/// Detaches one device program from a v2 cgroup.
///
/// # Errors
/// `ENOENT` when it is not attached there.
pub fn detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
        padding: 0,
    };
    bpf(BPF_PROG_DETACH, &mut attr).map(drop)
}

/// Ids of the device programs attached to exactly this v2 cgroup (at most 64, the kernel's limit).
///
/// # Errors
/// `EPERM`, `EBADF`.
pub fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = vec![0u32; 64];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        padding: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// Opens a program by its id.
///
/// # Errors
/// `ENOENT` when it is gone, `EPERM` without `CAP_SYS_ADMIN`.
pub fn program_by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = IdAttr { id, next_id: 0, open_flags: 0, padding: 0 };
    bpf(BPF_PROG_GET_FD_BY_ID, &mut attr).map(owned)
}

/// The name that a program was loaded with.
///
/// # Errors
/// As bpf(2) `BPF_OBJ_GET_INFO_BY_FD`.
pub fn program_name(program: BorrowedFd<'_>) -> Result<String> {
    let mut info = [0u8; INFO_NAME_OFFSET + NAME_LEN];
    let mut attr =
        InfoAttr { bpf_fd: raw(program), info_len: info.len() as u32, info: info.as_mut_ptr() as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let name = info.get(INFO_NAME_OFFSET..).unwrap_or_default();
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}
