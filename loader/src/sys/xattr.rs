//! Extended attributes of open files (xattr(7)).

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Largest name list and largest value that the kernel has.
const MAX: usize = 65536;

/// The names of the attributes of `fd`; none where the file system has no attributes.
///
/// # Errors
/// Those of flistxattr(2).
pub fn list(fd: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    // SAFETY: asking for the size only, with a null buffer of length 0.
    let size = unsafe { libc::flistxattr(fd.as_raw_fd(), std::ptr::null_mut(), 0) };
    match Errno::result(size) {
        Ok(0) | Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        result => result?,
    };
    let mut buffer = vec![0u8; MAX];
    // SAFETY: the buffer is writable for the length that is passed.
    let size = unsafe { libc::flistxattr(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(Errno::result(size)? as usize);
    Ok(buffer.split(|b| *b == 0).filter(|n| !n.is_empty()).filter_map(|n| CString::new(n).ok()).collect())
}

/// The value of attribute `name` of `fd`.
///
/// # Errors
/// Those of fgetxattr(2).
pub fn get(fd: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0u8; MAX];
    // SAFETY: `name` is a C string and the buffer is writable for the length that is passed.
    let size =
        unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(Errno::result(size)? as usize);
    Ok(buffer)
}

/// Sets attribute `name` of `fd`.
///
/// # Errors
/// Those of fsetxattr(2): `EOPNOTSUPP`, `EPERM`, `ENOSPC`.
pub fn set(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: `name` is a C string and `value` is readable for the length that is passed.
    let ret =
        unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(ret).map(drop)
}
