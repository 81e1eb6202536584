//! Messages over unix sockets with what comes along: descriptors and credentials.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

type Result<T> = std::result::Result<T, Errno>;

/// The most descriptors in one message (SCM_MAX_FD).
pub const MAX_RIGHTS: usize = 253;
/// `SCM_PIDFD`: the sender as a pidfd (SO_PASSPIDFD, Linux 6.5).
const SCM_PIDFD: i32 = 4;
const HEADER: usize = size_of::<libc::cmsghdr>();

/// A message.
#[derive(Debug, Default)]
pub struct Message {
    /// Bytes that were written to the buffer; with MSG_TRUNC the datagram's whole length.
    pub len: usize,
    /// Sender's address, as bytes; empty if there is none.
    pub from: Vec<u8>,
    /// Descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Sender's pid, uid, gid, in the caller's namespaces.
    pub creds: Option<(i32, u32, u32)>,
    /// MSG_* of the answer.
    pub flags: i32,
}

/// recvmsg(2) with ancillary data; MSG_DONTWAIT and MSG_CMSG_CLOEXEC are added.
///
/// # Errors
/// `EAGAIN` when there is nothing.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> Result<Message> {
    let mut from = vec![0u8; size_of::<libc::sockaddr_storage>()];
    let mut control = Control([0; CONTROL]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = from.len() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` points to buffers that are writable for the lengths it names, and all outlive the call.
    let len = Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })? as usize;
    from.truncate(message.msg_namelen as usize);
    let mut received = Message { len, from, flags: message.msg_flags, ..Message::default() };
    let filled = (message.msg_controllen as usize).min(control.0.len());
    let mut rest = &control.0[..filled];
    while rest.len() >= HEADER {
        let word = |at: usize| i32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let size = u64::from_ne_bytes(std::array::from_fn(|i| rest[i])) as usize;
        let Some(body) = rest.get(HEADER..size) else { break };
        let number = |at: usize| i32::from_ne_bytes(std::array::from_fn(|i| body[at + i]));
        match (word(8), word(12)) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for at in (0..body.len() / 4).map(|i| i * 4) {
                    // SAFETY: the kernel just made these descriptors for us.
                    received.fds.push(unsafe { OwnedFd::from_raw_fd(number(at)) });
                }
            }
            (libc::SOL_SOCKET, SCM_PIDFD) if body.len() >= 4 && number(0) >= 0 => {
                // SAFETY: as above; nobody wants it.
                drop(unsafe { OwnedFd::from_raw_fd(number(0)) });
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if body.len() >= 12 => {
                received.creds = Some((number(0), number(4) as u32, number(8) as u32));
            }
            _ => {}
        }
        rest = rest.get(size.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(received)
}

/// How many of the next bytes of a stream can be had without the last of the messages that `buffer`, and one byte more,
/// would hold: where that message begins. The bytes are peeked at.
///
/// The kernel copies message by message and gives up one that does not go into the caller's memory, so the byte more is
/// one where no memory is. Asking for fewer bytes instead does not tell messages apart.
///
/// # Errors
/// `EAGAIN` when there is nothing.
pub fn peek_whole(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
    let mut parts = [
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() },
        libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 },
    ];
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes to `buffer`, whose length it is told, and fails to write to address 0.
    match Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) }) {
        Err(Errno::EFAULT) => Ok(0),
        other => other.map(|n| n as usize),
    }
}

/// Room for the largest set of descriptors and the other things that may come along.
const CONTROL: usize = 2048;

/// Control messages are read as words.
#[repr(align(8))]
struct Control([u8; CONTROL]);

/// sendmsg(2) of `bytes` to `address` (empty: the peer), with descriptors and the sender's pid, uid, gid. MSG_DONTWAIT
/// and MSG_NOSIGNAL are added. Returns how much was taken.
///
/// # Errors
/// `EAGAIN` when there is no room; `EPERM` for credentials that the caller may not claim; `ETOOMANYREFS`.
pub fn send(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    address: &[u8],
    fds: &[BorrowedFd<'_>],
    creds: Option<(i32, u32, u32)>,
) -> Result<usize> {
    if fds.len() > MAX_RIGHTS {
        return Err(Errno::EINVAL);
    }
    let mut control = Vec::with_capacity(CONTROL);
    if !fds.is_empty() {
        let numbers: Vec<u8> = fds.iter().flat_map(|fd| RawFd::to_ne_bytes(fd.as_raw_fd())).collect();
        append(&mut control, libc::SCM_RIGHTS, &numbers);
    }
    if let Some((pid, uid, gid)) = creds {
        let words: Vec<u8> = [pid as u32, uid, gid].iter().flat_map(|w| w.to_ne_bytes()).collect();
        append(&mut control, libc::SCM_CREDENTIALS, &words);
    }
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    if !address.is_empty() {
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len() as libc::socklen_t;
    }
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !control.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len() as _;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel only reads; `message` describes buffers that outlive the call.
    Errno::result(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) }).map(|n| n as usize)
}

fn append(control: &mut Vec<u8>, kind: i32, body: &[u8]) {
    control.extend_from_slice(&((HEADER + body.len()) as u64).to_ne_bytes());
    control.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control.extend_from_slice(&kind.to_ne_bytes());
    control.extend_from_slice(body);
    control.resize(control.len().next_multiple_of(8), 0);
}

/// A pair of connected unix sockets (socketpair(2)), close-on-exec, not blocking.
///
/// # Errors
/// The errno of socketpair(2).
pub fn pair(kind: i32) -> Result<(OwnedFd, OwnedFd)> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let mut fds = [-1; 2];
    // SAFETY: `fds` has room for both descriptors.
    Errno::result(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: the kernel just made these descriptors for us.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::fstat;
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_and_credentials_come_along() {
        let (a, b) = pair(libc::SOCK_DGRAM).unwrap();
        crate::sys::net::set_int(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let me = std::process::id() as i32;
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let fds = [null.as_fd(), a.as_fd()];
        assert_eq!(send(a.as_fd(), b"hello", &[], &fds, Some((me, uid, gid))), Ok(5));
        let mut buffer = [0; 16];
        for _ in 0..2 {
            let peeked = receive(b.as_fd(), &mut buffer, libc::MSG_PEEK).unwrap();
            assert_eq!((peeked.len, peeked.fds.len(), peeked.creds), (5, 2, Some((me, uid, gid))));
            assert_eq!(fstat(&peeked.fds[0]).unwrap().st_rdev, fstat(&null).unwrap().st_rdev);
        }
        let got = receive(b.as_fd(), &mut buffer, 0).unwrap();
        assert_eq!((&buffer[..got.len], got.fds.len()), (b"hello".as_slice(), 2));
        assert_eq!(receive(b.as_fd(), &mut buffer, 0).unwrap_err(), Errno::EAGAIN);
    }
}
