//! userfaultfd(2): pages put into an address space from outside, faults answered, writes tracked.
//!
//! A descriptor belongs to the address space of the task that made it; all of these calls work on that space, whoever
//! makes them.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// Flag of userfaultfd(2): only faults of user code are reported, which anybody may ask for (Linux 5.11).
pub const USER_MODE_ONLY: u64 = 1;
/// `USERFAULTFD_IOC_NEW` of `/dev/userfaultfd` (Linux 6.1): the argument is the flags of userfaultfd(2).
pub const IOC_NEW: u64 = 0xaa00;

/// The child of a fork gets a descriptor of its own, and [`Event::Fork`] tells.
pub const FEATURE_EVENT_FORK: u64 = 1 << 1;
/// [`Event::Remap`] is told.
pub const FEATURE_EVENT_REMAP: u64 = 1 << 2;
/// [`Event::Remove`] is told.
pub const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// [`Event::Unmap`] is told.
pub const FEATURE_EVENT_UNMAP: u64 = 1 << 6;
/// Writes to protected pages lift the protection, and nobody is asked (Linux 6.7).
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// Mode of [`register`]: missing pages are faults.
pub const MODE_MISSING: u64 = 1;
/// Mode of [`register`]: writes to protected pages are faults (or lift the protection, [`FEATURE_WP_ASYNC`]).
pub const MODE_WP: u64 = 2;

const API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
const UFFDIO_WAKE: u64 = 0x8010_aa02;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
/// Mode of `UFFDIO_WRITEPROTECT`: nobody is woken.
const WRITEPROTECT_DONTWAKE: u64 = 2;

/// What a descriptor reports.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page at `address`; `write` if it wants to write, `protected` if it is there and
    /// write-protected.
    Fault {
        /// Page-aligned.
        address: u64,
        /// It is a write.
        write: bool,
        /// The page is write-protected, not missing.
        protected: bool,
    },
    /// The process forked; this descriptor is the child's.
    Fork(OwnedFd),
    /// mremap(2) moved a mapping.
    Remap {
        /// From here.
        from: u64,
        /// To here.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// Pages were given up (`MADV_DONTNEED`, `MADV_FREE`, `MADV_REMOVE`).
    Remove {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
    },
    /// A range was unmapped.
    Unmap {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
    },
    /// Something that this code did not ask for.
    Unknown(u8),
}

/// Room for messages of [`read`].
#[derive(Debug, Clone)]
pub struct Messages(Vec<[u8; MESSAGE]>);

/// `sizeof(struct uffd_msg)`.
const MESSAGE: usize = 32;

impl Messages {
    /// For `n` messages at a time.
    pub fn new(n: usize) -> Self {
        Self(vec![[0; MESSAGE]; n.max(1)])
    }
}

/// Makes a descriptor of the calling process' own address space (userfaultfd(2)), close-on-exec and non-blocking.
///
/// # Errors
/// `EPERM` without [`USER_MODE_ONLY`] and privilege, `ENOSYS`, `EINVAL` (flag not known).
pub fn create(flags: u64) -> Result<OwnedFd> {
    let flags = flags as i32 | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: no pointers are passed.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })? as RawFd;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the descriptor usable, with exactly these features. Once for each.
///
/// # Errors
/// `EINVAL` when a feature is not known, or when it was done before; `EPERM` for [`FEATURE_EVENT_FORK`] without
/// privilege.
pub fn enable(uffd: BorrowedFd<'_>, features: u64) -> Result<()> {
    let mut arg = [API, features, 0u64];
    // SAFETY: a struct uffdio_api is three u64.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API as _, arg.as_mut_ptr()) }).map(drop)
}

/// Registers a range of whole pages, of one mapping or several.
///
/// # Errors
/// `EINVAL` when nothing is mapped there or a mapping cannot be registered, `EBUSY` when another descriptor has it,
/// `ENOMEM`, `ESRCH` when the address space is gone.
pub fn register(uffd: BorrowedFd<'_>, start: u64, len: u64, mode: u64) -> Result<()> {
    let mut arg = [start, len, mode, 0u64];
    // SAFETY: a struct uffdio_register is four u64; the range is of the descriptor's address space, and registering
    // changes no content.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER as _, arg.as_mut_ptr()) }).map(drop)
}

/// Ends the registration of a range; waiting faults are woken.
///
/// # Errors
/// As [`register`].
pub fn unregister(uffd: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let mut arg = [start, len];
    // SAFETY: a struct uffdio_range is two u64.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_UNREGISTER as _, arg.as_mut_ptr()) })
        .map(drop)
}

/// Wakes the threads that wait for pages of this range: they look again.
///
/// # Errors
/// `EINVAL` for a range that makes no sense.
pub fn wake(uffd: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let mut arg = [start, len];
    // SAFETY: a struct uffdio_range is two u64.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_WAKE as _, arg.as_mut_ptr()) }).map(drop)
}

/// Puts pages with this content at `to`, where none must be yet, and wakes who waits for them. Returns how many bytes
/// were put there, with the errno that ended it if that was not all.
///
/// Errors: `EEXIST` (a page is there), `EAGAIN` (the address space is being changed: an event must be read first),
/// `ENOENT` (nothing is mapped, or not registered), `ESRCH` (the address space is gone), `ENOMEM`.
pub fn copy(uffd: BorrowedFd<'_>, to: u64, content: &[u8]) -> (usize, Option<Errno>) {
    // struct uffdio_copy: dst, src, len, mode, copy.
    let mut arg = [to, content.as_ptr() as u64, content.len() as u64, 0, 0];
    // SAFETY: five u64; the kernel only reads `content`, and writes to pages that did not exist before, in the
    // address space of the descriptor.
    let r = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_COPY as _, arg.as_mut_ptr()) };
    outcome(r, arg[4] as i64, content.len())
}

/// Puts pages of zeros there, as [`copy`].
pub fn zero(uffd: BorrowedFd<'_>, to: u64, len: usize) -> (usize, Option<Errno>) {
    // struct uffdio_zeropage: start, len, mode, zeropage.
    let mut arg = [to, len as u64, 0, 0];
    // SAFETY: four u64; see `copy`.
    let r = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_ZEROPAGE as _, arg.as_mut_ptr()) };
    outcome(r, arg[3] as i64, len)
}

/// Whether the address space is no more: its processes have ended or executed another program. `at` is any page of it
/// that is not registered with [`MODE_WP`], where nothing is changed.
pub fn is_gone(uffd: BorrowedFd<'_>, at: u64, len: u64) -> bool {
    // struct uffdio_writeprotect: start, len, mode. It looks for the address space before it looks for a registration.
    let mut arg = [at, len, WRITEPROTECT_DONTWAKE];
    // SAFETY: three u64; without the mode to protect, and without such a registration, no page is changed.
    let r = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_WRITEPROTECT as _, arg.as_mut_ptr()) };
    r != 0 && Errno::last() == Errno::ESRCH
}

fn outcome(r: i32, done: i64, len: usize) -> (usize, Option<Errno>) {
    if r == 0 {
        return (len, None);
    }
    // The field is a byte count or a negated errno, which for a short count is EAGAIN.
    (usize::try_from(done).unwrap_or(0).min(len), Some(Errno::last()))
}

/// Reads what the descriptor has to report, without waiting; empty when there is nothing.
///
/// # Errors
/// `EINVAL` when the descriptor was not enabled.
pub fn read(uffd: BorrowedFd<'_>, room: &mut Messages) -> Result<Vec<Event>> {
    let len = room.0.len() * MESSAGE;
    // SAFETY: the buffer is `len` bytes long, arrays of bytes without padding.
    let n = unsafe { libc::read(uffd.as_raw_fd(), room.0.as_mut_ptr().cast(), len) };
    let n = match Errno::result(n) {
        Ok(n) => n as usize / MESSAGE,
        Err(Errno::EAGAIN | Errno::EINTR) => 0,
        Err(e) => return Err(e),
    };
    Ok(room.0.iter().take(n).map(decode).collect())
}

fn decode(message: &[u8; MESSAGE]) -> Event {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    match message[0] {
        0x12 => {
            let flags = word(8);
            Event::Fault { address: word(16) & !0xfff, write: flags & 1 != 0, protected: flags & 2 != 0 }
        }
        0x13 => {
            let fd = word(8) as u32 as RawFd;
            // SAFETY: reading a fork event installs a fresh descriptor in this process, and this is its number. The
            // message was just written by the kernel and is decoded once.
            Event::Fork(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        0x14 => Event::Remap { from: word(8), to: word(16), len: word(24) },
        0x15 => Event::Remove { start: word(8), end: word(16) },
        0x16 => Event::Unmap { start: word(8), end: word(16) },
        other => Event::Unknown(other),
    }
}
