//! The mount system calls of Linux 5.2 and later (open_tree(2), move_mount(2), fsopen(2), mount_setattr(2), …), and
//! the older ones that still have no successor.
//!
//! Everything works on descriptors: a *detached mount* is a descriptor whose mount is in no mount namespace yet; it
//! dissolves when its last descriptor is closed without having been attached.

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag};
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// The mount is read-only, whatever its superblock is.
pub const MOUNT_ATTR_RDONLY: u64 = 0x01;
/// Set-id bits and file capabilities count for nothing.
pub const MOUNT_ATTR_NOSUID: u64 = 0x02;
/// Device nodes cannot be opened.
pub const MOUNT_ATTR_NODEV: u64 = 0x04;
/// Programs cannot be executed.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x08;
/// Mask of the access time field, which holds one of the three values below.
pub const MOUNT_ATTR__ATIME: u64 = 0x70;
/// Access times are updated relative to the modification time (the kernel's default).
pub const MOUNT_ATTR_RELATIME: u64 = 0x00;
/// Access times are not updated.
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// Access times are always updated.
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
/// Access times of directories are not updated.
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
/// Owners are mapped through the user namespace in [`MountAttr::userns`]. Linux 5.12.
pub const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
/// Symbolic links are not followed. Linux 5.14.
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// [`open_tree`]: make a detached copy instead of a plain `O_PATH` descriptor.
pub const OPEN_TREE_CLONE: u32 = 1;
/// Include the whole tree of mounts below ([`open_tree`], [`mount_setattr`]).
pub const AT_RECURSIVE: u32 = libc::AT_RECURSIVE as u32;
/// The path is empty and the descriptor itself is meant.
pub const AT_EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
/// Do not follow a symbolic link in the last component.
pub const AT_SYMLINK_NOFOLLOW: u32 = libc::AT_SYMLINK_NOFOLLOW as u32;

const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSPICK_CLOEXEC: u32 = 1;
const FSPICK_EMPTY_PATH: u32 = 8;

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_PATH: u32 = 3;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;

/// How mount events travel between a mount and its copies (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Propagation {
    /// Neither in nor out.
    Private,
    /// Both in and out.
    Shared,
    /// In, not out.
    Slave,
    /// Private, and cannot be bind mounted.
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Shared => libc::MS_SHARED,
            Self::Slave => libc::MS_SLAVE,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// What [`mount_setattr`] changes.
#[derive(Debug, Default, Clone, Copy)]
pub struct MountAttr<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear; has to hold [`MOUNT_ATTR__ATIME`] when `set` names an access time mode.
    pub clear: u64,
    /// New propagation, if any.
    pub propagation: Option<Propagation>,
    /// User namespace for [`MOUNT_ATTR_IDMAP`].
    pub userns: Option<BorrowedFd<'a>>,
}

/// A file system context call that failed: the call, the error number, and what the kernel wrote into the
/// context's message log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FsError {
    /// The error number.
    pub errno: Errno,
    /// The step: `fsopen tmpfs`, `size=x`, `create`, …
    pub step: String,
    /// The kernel's own words; empty when it had none.
    pub log: String,
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, std::io::Error::from(self.errno))?;
        if self.log.is_empty() { Ok(()) } else { write!(f, " (kernel: {})", self.log) }
    }
}

impl From<FsError> for airlock_wire::error::Error {
    fn from(e: FsError) -> Self {
        Self { message: e.to_string(), ..e.errno.into() }
    }
}

type FsResult<T> = std::result::Result<T, FsError>;

fn owned(ret: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(ret)? as RawFd;
    // SAFETY: the system call succeeded and returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// open_tree(2), always close-on-exec. `flags`: [`OPEN_TREE_CLONE`], [`AT_RECURSIVE`], [`AT_EMPTY_PATH`],
/// [`AT_SYMLINK_NOFOLLOW`].
///
/// # Errors
/// `ENOENT`, `EINVAL` (for a clone: the mount is not in the caller's mount namespace, or is unbindable), `EPERM`.
pub fn open_tree<P: ?Sized + NixPath>(dir: BorrowedFd<'_>, path: &P, flags: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC as u32;
    path.with_nix_path(|path| {
        // SAFETY: `path` is a C string that outlives the call.
        owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
    })?
}

/// A detached copy of the mount that `fd` lies on, with `fd` as its root. The submounts come along if `recursive`.
///
/// # Errors
/// As [`open_tree`].
pub fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let recursive = if recursive { AT_RECURSIVE } else { 0 };
    open_tree(fd, c"", OPEN_TREE_CLONE | AT_EMPTY_PATH | recursive)
}

/// Attaches the mount `mount` on the file or directory `target`. No path is involved.
///
/// # Errors
/// `ENOTDIR` (a directory and a file meet), `EINVAL` (the target is not in the caller's mount namespace), `ENOENT`
/// (the target was removed), `EPERM`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    move_mount(mount, c"", target, c"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
}

/// Attaches the mount `mount` on a path. Only for paths that no container controls.
///
/// # Errors
/// As [`attach`].
pub fn attach_at<P: ?Sized + NixPath>(mount: BorrowedFd<'_>, path: &P) -> Result<()> {
    path.with_nix_path(|path| move_mount(mount, c"", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH))?
}

fn move_mount(
    from: BorrowedFd<'_>,
    from_path: &CStr,
    to: BorrowedFd<'_>,
    to_path: &CStr,
    flags: u32,
) -> Result<()> {
    // SAFETY: both paths are C strings that outlive the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            from_path.as_ptr(),
            to.as_raw_fd(),
            to_path.as_ptr(),
            flags,
        )
    };
    Errno::result(ret).map(drop)
}

/// mount_setattr(2) on the mount of `fd` (and those below it, if `recursive`). `fd` has to be the mount's root.
///
/// # Errors
/// `EINVAL` (not a mount's root, unknown attribute), `EPERM` (an attribute is locked, or the file system cannot be
/// idmapped by this caller), `EBUSY` (writers keep it from becoming read-only).
pub fn mount_setattr(fd: BorrowedFd<'_>, attr: &MountAttr<'_>, recursive: bool) -> Result<()> {
    setattr_at(fd, c"", attr, AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 })
}

/// Sets the propagation of the mount at the caller's root directory and of everything below it.
///
/// # Errors
/// `EINVAL` when the root directory is not the root of a mount of this mount namespace.
pub fn set_root_propagation(propagation: Propagation, recursive: bool) -> Result<()> {
    let attr = MountAttr { propagation: Some(propagation), ..Default::default() };
    setattr_at(AT_FDCWD, c"/", &attr, if recursive { AT_RECURSIVE } else { 0 })
}

fn setattr_at(dir: BorrowedFd<'_>, path: &CStr, attr: &MountAttr<'_>, flags: u32) -> Result<()> {
    #[repr(C)]
    struct Kernel {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let arg = Kernel {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation.map_or(0, Propagation::bits),
        userns_fd: attr.userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: `arg` has the layout of struct mount_attr (version 0), its size is passed, and both outlive the call.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const arg,
            size_of::<Kernel>(),
        )
    };
    Errno::result(ret).map(drop)
}

/// fsopen(2): a context for a new superblock of file system `name`.
///
/// # Errors
/// `ENODEV` when the kernel does not have the file system, `EPERM`.
pub fn fsopen(name: &str) -> FsResult<OwnedFd> {
    let fail = |errno| FsError { errno, step: format!("file system {name:?}"), log: String::new() };
    let text = CString::new(name).map_err(|_| fail(Errno::EINVAL))?;
    // SAFETY: `text` is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, text.as_ptr(), FSOPEN_CLOEXEC) }).map_err(fail)
}

/// fspick(2): a context for changing the superblock behind the mount root `mount`.
///
/// # Errors
/// `EINVAL` when `mount` is not a mount's root, `EPERM`.
pub fn fspick(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the path is a static C string.
    owned(unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), flags) })
}

fn fsconfig(fs: BorrowedFd<'_>, cmd: u32, key: Option<&str>, value: Option<&CStr>, aux: i32) -> FsResult<()> {
    let fail = |errno| {
        let step = match (key, value) {
            (Some(key), Some(value)) => format!("{key}={}", value.to_string_lossy()),
            (Some(key), None) => key.to_owned(),
            _ if cmd == FSCONFIG_CMD_RECONFIGURE => "reconfigure".to_owned(),
            _ => "create".to_owned(),
        };
        FsError { errno, step, log: context_log(fs) }
    };
    let key = key.map(CString::new).transpose().map_err(|_| fail(Errno::EINVAL))?;
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: `key` and `value` are null or C strings that outlive the call; the kernel only reads them.
    let ret = unsafe {
        libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), cmd, pointer(key.as_deref()), pointer(value), aux)
    };
    Errno::result(ret).map(drop).map_err(fail)
}

/// Sets a parameter without a value (`ro`, `nodiscard`).
///
/// # Errors
/// `EINVAL` when the file system does not know it.
pub fn fsconfig_flag(fs: BorrowedFd<'_>, key: &str) -> FsResult<()> {
    fsconfig(fs, FSCONFIG_SET_FLAG, Some(key), None, 0)
}

/// Sets a parameter to a text of at most 255 bytes (the kernel's limit).
///
/// # Errors
/// `EINVAL` when the file system does not know it or does not like the value, or the value is too long.
pub fn fsconfig_string(fs: BorrowedFd<'_>, key: &str, value: &str) -> FsResult<()> {
    let text = CString::new(value).map_err(|_| FsError {
        errno: Errno::EINVAL,
        step: format!("{key}={value:?}"),
        log: String::new(),
    })?;
    fsconfig(fs, FSCONFIG_SET_STRING, Some(key), Some(&text), 0)
}

/// Sets a parameter to a path, which the kernel resolves at once, relative to `dir`.
///
/// # Errors
/// `EINVAL` when the parameter takes no path, and the errors of the path's resolution.
pub fn fsconfig_path<P: ?Sized + NixPath>(
    fs: BorrowedFd<'_>,
    key: &str,
    dir: BorrowedFd<'_>,
    path: &P,
) -> FsResult<()> {
    path.with_nix_path(|path| fsconfig(fs, FSCONFIG_SET_PATH, Some(key), Some(path), dir.as_raw_fd()))
        .unwrap_or_else(|errno| Err(FsError { errno, step: key.to_owned(), log: String::new() }))
}

/// Sets a parameter to a descriptor, which is only borrowed.
///
/// # Errors
/// `EINVAL` when the parameter takes no descriptor (overlay layers: before Linux 6.13).
pub fn fsconfig_fd(fs: BorrowedFd<'_>, key: &str, fd: BorrowedFd<'_>) -> FsResult<()> {
    fsconfig(fs, FSCONFIG_SET_FD, Some(key), None, fd.as_raw_fd())
}

/// Makes the superblock.
///
/// # Errors
/// Whatever the file system answers, with its message.
pub fn fsconfig_create(fs: BorrowedFd<'_>) -> FsResult<()> {
    fsconfig(fs, FSCONFIG_CMD_CREATE, None, None, 0)
}

/// Applies the parameters to the superblock that was picked with [`fspick`].
///
/// # Errors
/// Whatever the file system answers, with its message.
pub fn fsconfig_reconfigure(fs: BorrowedFd<'_>) -> FsResult<()> {
    fsconfig(fs, FSCONFIG_CMD_RECONFIGURE, None, None, 0)
}

/// fsmount(2): a detached mount of the context's superblock with `MOUNT_ATTR_*` `attrs`.
///
/// # Errors
/// `EPERM` for proc and sysfs in a user namespace that cannot see all of another instance.
pub fn fsmount(fs: BorrowedFd<'_>, attrs: u64) -> FsResult<OwnedFd> {
    // SAFETY: no pointers are passed.
    let ret = unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, attrs as u32) };
    owned(ret).map_err(|errno| FsError { errno, step: "fsmount".to_owned(), log: context_log(fs) })
}

/// Reads the messages that the kernel left in a context; each is a letter (e, w, i), a space and a text.
fn context_log(fs: BorrowedFd<'_>) -> String {
    let mut log = String::new();
    let mut buffer = [0u8; 1024];
    // The kernel keeps at most eight messages.
    for _ in 0..8 {
        let Ok(n) = nix::unistd::read(fs, &mut buffer) else { break };
        let text = String::from_utf8_lossy(&buffer[..n]);
        let text = text.trim_end();
        let text = text.strip_prefix(['e', 'w', 'i']).map_or(text, str::trim_start);
        if !log.is_empty() {
            log.push_str("; ");
        }
        log.push_str(text);
    }
    log
}

/// openat2(2), always close-on-exec. A resolution that the kernel could not finish because the tree changed under
/// it is tried again a bounded number of times.
///
/// # Errors
/// `EXDEV`, `ELOOP` (a resolve rule was broken), `EAGAIN` (the tree would not stand still), `ENOSYS` (before Linux
/// 5.6, or filtered), and those of open(2).
pub fn openat2<P: ?Sized + NixPath>(
    dir: BorrowedFd<'_>,
    path: &P,
    flags: OFlag,
    mode: u32,
    resolve: ResolveFlag,
) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(nix::sys::stat::Mode::from_bits_truncate(mode))
        .resolve(resolve);
    let mut tries = 0;
    loop {
        match nix::fcntl::openat2(dir, path, how) {
            Err(Errno::EAGAIN) if tries < 128 => tries += 1,
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// The identity of the mount that `fd` lies on (`STATX_MNT_ID`), and whether `fd` is that mount's root.
///
/// # Errors
/// `ENOSYS` before Linux 5.8.
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<(u64, bool)> {
    // SAFETY: an all-zero statx is a valid value of the type.
    let mut buffer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a static C string and `buffer` outlives the call.
    let ret = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            libc::STATX_MNT_ID,
            &raw mut buffer,
        )
    };
    Errno::result(ret)?;
    if buffer.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(Errno::ENOSYS);
    }
    Ok((buffer.stx_mnt_id, buffer.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0))
}

/// `struct mnt_id_req` (listmount(2), statmount(2)), in its first form.
#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
}

impl MountRequest {
    fn new(mount: u64, param: u64) -> Self {
        Self { size: size_of::<Self>() as u32, spare: 0, mount, param }
    }
}

/// All mounts of the calling thread's mount namespace but its root, newer than `after`, the oldest first. These numbers
/// are never used again while the machine runs; mountinfo has others ([`mountinfo_id`]).
///
/// # Errors
/// `ENOSYS` before Linux 6.8.
pub fn mounts_after(after: u64) -> Result<Vec<u64>> {
    const SYS_LISTMOUNT: i64 = 458;
    /// Everything below the root.
    const LSMT_ROOT: u64 = u64::MAX;
    let mut all: Vec<u64> = Vec::new();
    let mut last = after;
    loop {
        let request = MountRequest::new(LSMT_ROOT, last);
        let mut page = [0u64; 128];
        // SAFETY: `request` has the kernel's layout and `page` is writable for the number of elements that is passed.
        let count = Errno::result(unsafe {
            libc::syscall(SYS_LISTMOUNT, &raw const request, page.as_mut_ptr(), page.len(), 0)
        })? as usize;
        let page = &page[..count.min(page.len())];
        all.extend(page.iter().filter(|id| **id > after));
        match page.last() {
            Some(id) if page.len() == 128 && *id > last => last = *id,
            _ => return Ok(all),
        }
    }
}

/// The newest mount of the calling thread's mount namespace.
///
/// # Errors
/// As [`mounts_after`].
pub fn newest_mount() -> Result<u64> {
    Ok(mounts_after(0)?.into_iter().max().unwrap_or(0))
}

/// What mountinfo calls the mount that listmount(2) calls `mount`.
///
/// # Errors
/// `ENOENT`: it is gone; `ENOSYS` before Linux 6.8.
pub fn mountinfo_id(mount: u64) -> Result<u64> {
    const SYS_STATMOUNT: i64 = 457;
    const STATMOUNT_MNT_BASIC: u64 = 2;
    /// `mnt_id_old` of `struct statmount`.
    const OLD_ID: usize = 56;
    let request = MountRequest::new(mount, STATMOUNT_MNT_BASIC);
    let mut answer = [0u8; 1024];
    // SAFETY: `request` has the kernel's layout and `answer` is writable for the length that is passed.
    Errno::result(unsafe {
        libc::syscall(SYS_STATMOUNT, &raw const request, answer.as_mut_ptr(), answer.len(), 0)
    })?;
    let bytes = [answer[OLD_ID], answer[OLD_ID + 1], answer[OLD_ID + 2], answer[OLD_ID + 3]];
    Ok(u32::from_ne_bytes(bytes).into())
}

/// pivot_root(2) with the current directory as new root and as the place of the old one, which lies on top of the
/// new one afterwards and can be unmounted there.
///
/// # Errors
/// `EINVAL` when the current directory is no mount's root, propagation is shared, or the root is the initramfs.
pub fn pivot_to_current_directory() -> Result<()> {
    nix::unistd::pivot_root(".", ".")
}

/// umount2(2) with `MNT_DETACH` of what is on top of the current directory.
///
/// # Errors
/// `EINVAL` when nothing is mounted there or it is locked.
pub fn detach_current_directory() -> Result<()> {
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)
}

/// The classic mount(2), for what the newer calls cannot express (option texts above 255 bytes).
///
/// # Errors
/// Those of mount(2).
pub fn classic_mount(source: &str, target: BorrowedFd<'_>, kind: &str, data: &str) -> Result<()> {
    let target = format!("/proc/self/fd/{}", target.as_fd().as_raw_fd());
    nix::mount::mount(Some(source), target.as_str(), Some(kind), nix::mount::MsFlags::empty(), Some(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::paths::testing;

    #[test]
    fn newer_mounts_are_found() {
        if !testing::root_or_skip("newer_mounts_are_found") {
            return;
        }
        testing::in_namespace(|| {
            let before = match newest_mount() {
                Err(Errno::ENOSYS) => return eprintln!("SKIPPED newer_mounts_are_found: needs Linux 6.8"),
                result => result.unwrap(),
            };
            assert_eq!(mounts_after(before), Ok(vec![]));
            let dir = tempfile::tempdir().unwrap();
            let none: Option<&str> = None;
            nix::mount::mount(Some("x"), dir.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), none)
                .unwrap();
            let new = mounts_after(before).unwrap();
            assert_eq!(new.len(), 1);
            let fd = nix::fcntl::open(dir.path(), nix::fcntl::OFlag::O_PATH, nix::sys::stat::Mode::empty())
                .unwrap();
            assert_eq!(mountinfo_id(new[0]), Ok(mount_id(fd.as_fd()).unwrap().0));
            assert!(mounts_after(0).unwrap().len() > 1);
            drop(fd);
            nix::mount::umount(dir.path()).unwrap();
        });
    }
}
