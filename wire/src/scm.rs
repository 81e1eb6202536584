//! Descriptors on Unix sockets: sending, receiving, and who is at the other end.
//!
//! The only unsafe code of this crate. Receiving calls recvmsg(2) itself: `sendfd` receives without
//! `MSG_CMSG_CLOEXEC` and hides truncation, and `nix` withholds the descriptors of a truncated message, which are
//! installed all the same and would leak. Sending goes through `nix`: `sendfd` passes no flags, so that a peer that
//! hangs up kills a process that does not ignore `SIGPIPE` (a C program that embeds this, or a fuzzer).

use crate::error::{Error, Kind, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Most descriptors that one sendmsg(2) of ours carries, and that one recvmsg(2) has room for: gVisor's number
/// (the kernel's own limit is 253).
pub const GROUP: usize = 128;

/// Who is at the other end of a Unix socket, as `SO_PEERCRED` (socket(7)) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCred {
    /// Process id in the reader's pid namespace; 0 if it has none there.
    pub pid: i32,
    /// Effective user id when the peer connected, in the reader's user namespace (the overflow id, usually 65534,
    /// if it has none there).
    pub uid: u32,
    /// Effective group id when the peer connected.
    pub gid: u32,
}

/// Asks who is at the other end. For a socketpair(2) that is who made the pair.
pub fn peer_cred(stream: &UnixStream) -> Result<PeerCred> {
    let cred = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
        .map_err(|e| Error::from(e).context("asking a socket for its peer's credentials"))?;
    Ok(PeerCred { pid: cred.pid(), uid: cred.uid(), gid: cred.gid() })
}

/// Sends all of `bytes`, which may not be empty, with `fds` riding on the first byte.
///
/// Blocks while the peer's buffer is full. At most [`GROUP`] descriptors; the caller keeps its own. Raises no
/// `SIGPIPE`.
///
/// # Errors
/// `Disconnected` when the peer is gone, `Timeout` when the socket has a send timeout, `InvalidArgument` for too many
/// descriptors, `Failure` otherwise.
pub fn send_with_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let sent = send_some(stream, bytes, fds)?;
    send_all(stream, &bytes[sent..])
}

/// One send of `fds` and of as many of `bytes` as there is room for; nothing was sent if it fails.
pub(crate) fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    if fds.is_empty() {
        return retry(|| Ok(send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?))
            .map_err(|e| sending(&e));
    }
    let mut raw: [RawFd; GROUP] = [-1; GROUP];
    let raw = raw.get_mut(..fds.len()).ok_or_else(too_many_files)?;
    for (raw, fd) in raw.iter_mut().zip(fds) {
        *raw = fd.as_raw_fd();
    }
    let (data, rights) = ([IoSlice::new(bytes)], [ControlMessage::ScmRights(raw)]);
    retry(|| Ok(sendmsg::<()>(stream.as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None)?))
        .map_err(|e| sending(&e))
}

/// Sends all of `bytes`, which may be empty.
pub(crate) fn send_all(stream: &UnixStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let sent = send_some(stream, bytes, &[])?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Sends what fits without blocking, and no descriptors: for last words to a peer that may not be listening.
pub(crate) fn send_best_effort(stream: &UnixStream, bytes: &[u8]) {
    let sent = send(stream.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    if sent != Ok(bytes.len()) {
        log::debug!("rpc: last words were not sent: {sent:?}");
    }
}

/// The text of gVisor's limit.
pub(crate) fn too_many_files() -> Error {
    Error::invalid_argument("too many files")
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn sending(e: &io::Error) -> Error {
    let kind = match e.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN) => Kind::Disconnected,
        Some(libc::EAGAIN) => Kind::Timeout,
        Some(libc::EBADF) => Kind::InvalidArgument,
        _ => Kind::Failure,
    };
    let hint = match e.raw_os_error() {
        Some(libc::ETOOMANYREFS) => " (too many descriptors in flight: RLIMIT_NOFILE)",
        _ => "",
    };
    Error::new(kind, format!("sending on a control socket: {e}{hint}"))
}

/// Room for one `SCM_RIGHTS` message of [`GROUP`] descriptors, aligned as `cmsghdr` asks.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

// SAFETY: CMSG_SPACE only computes.
const CONTROL_LEN: usize = unsafe { libc::CMSG_SPACE((GROUP * size_of::<RawFd>()) as u32) } as usize;

/// Receives at most `max` bytes into the spare capacity of `buf`, and descriptors into `fds`, which owns them from
/// that moment on and has them close-on-exec.
///
/// Blocks until something arrives; 0 means that the peer closed its side. There must be spare capacity and `max`
/// may not be 0. One call never reads past bytes that came with descriptors (unix(7)), so descriptors belong to the
/// last bytes returned.
///
/// # Errors
/// `Protocol` when descriptors were cut off (more than [`GROUP`], or no free descriptor numbers): all that came with
/// them are closed. `Timeout` when the socket has a receive timeout. `Disconnected` when the peer reset.
pub fn recv_with_fds(
    stream: &UnixStream,
    buf: &mut Vec<u8>,
    max: usize,
    fds: &mut Vec<OwnedFd>,
) -> Result<usize> {
    let len = buf.len();
    let spare = buf.spare_capacity_mut();
    let room = spare.len().min(max);
    if room == 0 {
        return Err(Error::failure("receiving into a buffer without room"));
    }
    let mut control = Control([0; CONTROL_LEN]);
    let mut iov = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: room };
    // SAFETY: msghdr is a C structure for which all zeroes is a valid value.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = CONTROL_LEN as _;
    let got = retry(|| {
        // SAFETY: msg points to one iovec of `room` writable bytes in `buf` and to CONTROL_LEN writable bytes in
        // `control`; both outlive the call and nothing else uses them meanwhile.
        let n = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    })
    .map_err(|e| receiving(&e))?;
    // SAFETY: got ≤ room ≤ spare capacity, and the kernel initialised that many bytes after `len`.
    unsafe { buf.set_len(len + got) };
    let before = fds.len();
    // SAFETY: the kernel filled msg in; its control buffer is still alive.
    unsafe { take_rights(&msg, fds) };
    if msg.msg_flags & libc::MSG_CTRUNC != 0 {
        fds.truncate(before);
        return Err(Error::new(
            Kind::Protocol,
            format!(
                "descriptors were cut off: more than {GROUP} in one message, or RLIMIT_NOFILE is reached"
            ),
        ));
    }
    Ok(got)
}

/// Makes the descriptors in `msg`'s control messages owned.
///
/// # Safety
/// `msg` must come from a recvmsg(2) that succeeded, its control buffer must be alive, and it must be called once.
unsafe fn take_rights(msg: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: as the caller promises; the CMSG macros stay inside msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(msg) };
    while !header.is_null() {
        // SAFETY: the macros return null or a whole header inside the control buffer.
        let cmsg = unsafe { &*header };
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes; CMSG_DATA points behind the header, inside the buffer.
            let (data, overhead) =
                unsafe { (libc::CMSG_DATA(header).cast::<RawFd>(), libc::CMSG_LEN(0) as usize) };
            let count = (cmsg.cmsg_len as usize).saturating_sub(overhead) / size_of::<RawFd>();
            for i in 0..count {
                // SAFETY: the kernel wrote `count` descriptor numbers there, not necessarily aligned, and installed
                // each for this process; nobody else knows them yet.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(i).read_unaligned()) });
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(msg, header) };
    }
}

fn receiving(e: &io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EAGAIN) => Error::new(Kind::Timeout, "no answer on a control socket in the time allowed"),
        Some(libc::ECONNRESET) => {
            Error::new(Kind::Disconnected, "the peer closed the connection without reading all")
        }
        _ => Error::from(io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EIO)))
            .context("receiving on a control socket"),
    }
}
