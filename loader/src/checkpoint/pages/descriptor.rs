//! A userfaultfd of another process' address space.
#![forbid(unsafe_code)]

use crate::checkpoint::remote::{Tracee, fdpass};
use crate::sys::uffd;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Pages are put into place while the process does not run ([`super::fill`]).
    Fill,
    /// Faults are answered while it runs ([`super::background`]).
    Faults,
    /// Writes are tracked ([`super::track`]).
    Writes,
}

impl Purpose {
    fn features(self) -> u64 {
        match self {
            Self::Fill => 0,
            Self::Faults => {
                uffd::FEATURE_EVENT_FORK
                    | uffd::FEATURE_EVENT_REMAP
                    | uffd::FEATURE_EVENT_REMOVE
                    | uffd::FEATURE_EVENT_UNMAP
            }
            Self::Writes => uffd::FEATURE_WP_ASYNC,
        }
    }

    /// Only faults of the kernel's own need privilege: reads and writes of system calls into missing pages.
    fn flags(self) -> u64 {
        match self {
            Self::Faults => 0,
            Self::Fill | Self::Writes => uffd::USER_MODE_ONLY,
        }
    }
}

/// Makes a descriptor in the process of `t` and takes it out of there: the process does not have it afterwards.
/// `device` is the number of a descriptor of `/dev/userfaultfd` in the process, by which an unprivileged one may ask for
/// faults of the kernel too ([`Purpose::Faults`]); it stays open.
///
/// `None` when the kernel has no such thing, or does not allow it: there is always another way.
///
/// # Errors
/// The call cannot be injected.
pub fn make(t: &mut Tracee, purpose: Purpose, device: Option<i32>) -> Result<Option<OwnedFd>> {
    let mode = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    let flags = mode | purpose.flags();
    let mut made = match device {
        Some(device) => t.syscall(libc::SYS_ioctl, [device as u64, uffd::IOC_NEW, flags, 0, 0, 0])?,
        None => t.syscall(libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0])?,
    };
    // Linux before 5.11 does not know the flag.
    if made == Err(Errno::EINVAL) && flags != mode {
        made = t.syscall(libc::SYS_userfaultfd, [mode, 0, 0, 0, 0, 0])?;
    }
    let number = match made {
        Ok(number) => number,
        Err(
            e
            @ (Errno::EPERM | Errno::ENOSYS | Errno::EINVAL | Errno::EMFILE | Errno::ENFILE | Errno::ENOTTY),
        ) => {
            log::debug!("process {} gets no userfaultfd: {e}", t.tid());
            return Ok(None);
        }
        Err(e) => return Err(Error::from(e).context(format!("make a userfaultfd of process {}", t.tid()))),
    };
    let taken = fdpass::take(t.tid(), number as i32);
    t.syscall(libc::SYS_close, [number, 0, 0, 0, 0, 0])??;
    let fd = taken?;
    match uffd::enable(fd.as_fd(), purpose.features()) {
        Ok(()) => Ok(Some(fd)),
        // A feature is missing (tracking: before Linux 6.7), or may not be used.
        Err(Errno::EINVAL | Errno::EPERM) => Ok(None),
        Err(e) => Err(Error::new(Kind::Failure, e.desc()).context("enable a userfaultfd")),
    }
}
