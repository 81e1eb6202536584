//! Many messages in one system call (sendmmsg(2), recvmmsg(2)), and scattered ones (readv(2) and its relatives).

use nix::errno::Errno;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};

type Result<T> = std::result::Result<T, Errno>;

fn empty() -> libc::mmsghdr {
    // SAFETY: an all-zero mmsghdr is valid.
    unsafe { std::mem::zeroed() }
}

/// Receives up to one message into each of `buffers`, waiting for the first one only unless `flags` say otherwise.
/// Returns how many came; `lengths` gets the length of each. What does not fit is cut off.
///
/// # Errors
/// Those of recvmmsg(2).
pub fn receive(
    fd: BorrowedFd<'_>,
    buffers: &mut [IoSliceMut<'_>],
    lengths: &mut Vec<usize>,
    flags: i32,
) -> Result<usize> {
    let mut messages = Vec::with_capacity(buffers.len());
    for buffer in buffers.iter_mut() {
        let mut message = empty();
        message.msg_hdr.msg_iov = std::ptr::from_mut(buffer).cast();
        message.msg_hdr.msg_iovlen = 1;
        messages.push(message);
    }
    // SAFETY: each message points to one `IoSliceMut`, which has the layout of an iovec and borrows writable memory; all
    // outlive the call. No timeout is given.
    let count = Errno::result(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as libc::c_uint,
            flags | libc::MSG_WAITFORONE,
            std::ptr::null_mut(),
        )
    })? as usize;
    lengths.clear();
    lengths.extend(messages.iter().take(count).map(|m| m.msg_len as usize));
    Ok(count)
}

/// Reads without waiting (`RWF_NOWAIT`), whatever flags the descriptor has.
///
/// # Errors
/// `EAGAIN`: nothing is there; `EOPNOTSUPP`: this kind of file cannot be read so (taps can since Linux 5.11).
pub fn read_now(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the one part is `buffer`, which is writable for its length and outlives the call. The offset says: none.
    Errno::result(unsafe { libc::preadv2(fd.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) })
        .map(|n| n as usize)
}

/// Sends messages, each of the parts `parts[start..end]` for one of `ranges`; SIGPIPE is not raised. Returns how many were
/// sent.
///
/// # Errors
/// Those of sendmmsg(2), about the first message.
pub fn send(
    fd: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    ranges: &[std::ops::Range<usize>],
    flags: i32,
) -> Result<usize> {
    let mut messages = Vec::with_capacity(ranges.len());
    for range in ranges {
        let slices = parts.get(range.clone()).ok_or(Errno::EINVAL)?;
        let mut message = empty();
        message.msg_hdr.msg_iov = slices.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_iovlen = slices.len() as _;
        messages.push(message);
    }
    // SAFETY: each message points to `IoSlice`s, which have the layout of iovecs and borrow readable memory; all outlive
    // the call, which only reads them.
    Errno::result(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as libc::c_uint,
            flags | libc::MSG_NOSIGNAL,
        )
    })
    .map(|n| n as usize)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn what_is_not_there_is_not_waited_for() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read_now(reader.as_fd(), &mut buffer), Err(Errno::EAGAIN));
        std::io::Write::write_all(&mut writer, b"frame").unwrap();
        assert_eq!((read_now(reader.as_fd(), &mut buffer), &buffer[..5]), (Ok(5), &b"frame"[..]));
        drop(writer);
        assert_eq!(read_now(reader.as_fd(), &mut buffer), Ok(0));
    }

    #[test]
    fn messages_arrive_one_by_one() {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let parts = [IoSlice::new(b"one"), IoSlice::new(b"t"), IoSlice::new(b"wo")];
        assert_eq!(send(a.as_fd(), &parts, &[0..1, 1..3], 0), Ok(2));
        let (mut x, mut y, mut z) = ([0u8; 8], [0u8; 2], [0u8; 8]);
        let mut buffers = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y), IoSliceMut::new(&mut z)];
        let mut lengths = Vec::new();
        assert_eq!(receive(b.as_fd(), &mut buffers, &mut lengths, 0), Ok(2));
        assert_eq!((lengths.as_slice(), &x[..3], &y), (&[3, 2][..], &b"one"[..], b"tw"));
        let none = receive(b.as_fd(), &mut [IoSliceMut::new(&mut z)], &mut lengths, libc::MSG_DONTWAIT);
        assert_eq!(none, Err(Errno::EAGAIN));
        drop(b);
        for (range, error) in [(0..1, Errno::EPIPE), (2..4, Errno::EINVAL)] {
            assert_eq!(send(a.as_fd(), &parts, std::slice::from_ref(&range), 0), Err(error));
        }
    }
}
