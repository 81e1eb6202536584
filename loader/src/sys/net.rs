//! Sockets of any family by number, with addresses and options as bytes: a checkpoint has to save and make again what
//! no typed interface knows.
//!
//! Thin: each function is one system call, and errors are the kernel's. Nothing blocks unless the socket does.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

/// Room for any address (`struct sockaddr_storage`).
const ADDRESS_MAX: usize = 128;

/// One instruction of a classic BPF program, as the kernel keeps it (`struct sock_filter`).
pub type Instruction = [u8; 8];

/// Makes a socket (socket(2)), close-on-exec and not blocking.
///
/// # Errors
/// `EAFNOSUPPORT`, `EPROTONOSUPPORT`, `EPERM`, …
pub fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::socket(family, kind, protocol) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a packet socket (packet(7)) with all frames of the interface with index `interface` of the calling thread's network
/// namespace, headers and all.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW; `ENODEV`, `ENETDOWN`.
pub fn packet_socket(interface: u32) -> Result<OwnedFd> {
    // No protocol yet: nothing comes from other interfaces meanwhile.
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    // struct sockaddr_ll: family, protocol, interface.
    let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
    address.extend((libc::ETH_P_ALL as u16).to_be_bytes());
    address.extend(interface.to_ne_bytes());
    address.resize(20, 0);
    bind(socket.as_fd(), &address)?;
    Ok(socket)
}

/// Reads an option into `buffer`; returns its length.
///
/// # Errors
/// `ENOPROTOOPT` where there is no such option.
pub fn get(fd: BorrowedFd<'_>, level: i32, name: i32, buffer: &mut [u8]) -> Result<usize> {
    let mut len = buffer.len() as libc::socklen_t;
    // SAFETY: `buffer` is writable for `len` bytes, and `len` outlives the call.
    Errno::result(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut len)
    })?;
    Ok((len as usize).min(buffer.len()))
}

/// Reads an option that is an `int`.
///
/// # Errors
/// As [`get`].
pub fn get_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32> {
    let mut bytes = [0u8; 4];
    get(fd, level, name, &mut bytes)?;
    Ok(i32::from_ne_bytes(bytes))
}

/// Sets an option.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<()> {
    // SAFETY: `value` is readable for its length. Options whose value holds pointers are not set through this.
    Errno::result(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t)
    })
    .map(drop)
}

/// Sets an option that is an `int`.
///
/// # Errors
/// As [`set`].
pub fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<()> {
    set(fd, level, name, &value.to_ne_bytes())
}

/// The classic BPF program attached to the socket; empty if there is none.
///
/// # Errors
/// `EACCES`: it is an eBPF program.
pub fn filter(fd: BorrowedFd<'_>) -> Result<Vec<Instruction>> {
    let mut count: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel only tells how many instructions there are.
    Errno::result(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            std::ptr::null_mut(),
            &raw mut count,
        )
    })?;
    let mut program = vec![[0u8; 8]; count as usize];
    if program.is_empty() {
        return Ok(program);
    }
    // SAFETY: this option counts in instructions, and there is room for as many as `count` says.
    Errno::result(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            program.as_mut_ptr().cast(),
            &raw mut count,
        )
    })?;
    program.truncate(count as usize);
    Ok(program)
}

/// Attaches a classic BPF program, instead of what is attached.
///
/// # Errors
/// `EPERM`: the filter is locked (SO_LOCK_FILTER); `EINVAL`: the program is none.
pub fn attach_filter(fd: BorrowedFd<'_>, program: &[Instruction]) -> Result<()> {
    // `struct sock_filter` wants to be aligned.
    let mut code: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let len = u16::try_from(code.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: code.as_mut_ptr() };
    // SAFETY: `program` points to `len` instructions; both outlive the call.
    Errno::result(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Takes the attached program away.
///
/// # Errors
/// `ENOENT`: there is none; `EPERM`: it is locked.
pub fn detach_filter(fd: BorrowedFd<'_>) -> Result<()> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
}

/// Binds to an address (`sockaddr` bytes).
///
/// # Errors
/// Those of bind(2).
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: `address` is readable for its length.
    Errno::result(unsafe {
        libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t)
    })
    .map(drop)
}

/// Connects to an address (`sockaddr` bytes).
///
/// # Errors
/// Those of connect(2), `EINPROGRESS` among them.
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> Result<()> {
    // SAFETY: `address` is readable for its length.
    Errno::result(unsafe {
        libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t)
    })
    .map(drop)
}

/// listen(2).
///
/// # Errors
/// `EADDRINUSE`, `EINVAL`, …
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> Result<()> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// Takes a connection from the queue; it is close-on-exec and not blocking.
///
/// # Errors
/// `EAGAIN`: none is there (on a socket that does not block).
pub fn accept(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null pointers say that the address is not wanted.
    let new = Errno::result(unsafe {
        libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
    })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// shutdown(2).
///
/// # Errors
/// `ENOTCONN`.
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> Result<()> {
    // SAFETY: no pointers.
    Errno::result(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// The socket's own address, as bytes.
///
/// # Errors
/// `ENOTSOCK`.
pub fn local(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    name(fd, libc::getsockname)
}

/// The peer's address, as bytes.
///
/// # Errors
/// `ENOTCONN`.
pub fn remote(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    name(fd, libc::getpeername)
}

type Namer = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn name(fd: BorrowedFd<'_>, call: Namer) -> Result<Vec<u8>> {
    let mut bytes = vec![0u8; ADDRESS_MAX];
    let mut len = bytes.len() as libc::socklen_t;
    // SAFETY: getsockname(2) and getpeername(2) write at most `len` bytes.
    Errno::result(unsafe { call(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut len) })?;
    bytes.truncate(len as usize);
    Ok(bytes)
}

/// What [`receive`] got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// Bytes that were written to the buffer; with MSG_TRUNC the datagram's whole length.
    pub len: usize,
    /// Sender, as bytes; empty if there is none.
    pub from: Vec<u8>,
    /// MSG_* of the answer.
    pub flags: i32,
}

/// recvmsg(2) without ancillary data; MSG_DONTWAIT is added.
///
/// # Errors
/// `EAGAIN` when there is nothing.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> Result<Received> {
    let mut from = vec![0u8; ADDRESS_MAX];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = from.as_mut_ptr().cast();
    message.msg_namelen = from.len() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    // SAFETY: `message` points to buffers that are writable for the lengths it names, and all outlive the call.
    let len = Errno::result(unsafe {
        libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags | libc::MSG_DONTWAIT)
    })? as usize;
    from.truncate(message.msg_namelen as usize);
    Ok(Received { len, from, flags: message.msg_flags })
}

/// Sends, to `address` if it is not empty; MSG_DONTWAIT and MSG_NOSIGNAL are added. Returns how much was taken.
///
/// # Errors
/// `EAGAIN` when there is no room.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], address: &[u8], flags: i32) -> Result<usize> {
    let (to, len) =
        if address.is_empty() { (std::ptr::null(), 0) } else { (address.as_ptr(), address.len()) };
    // SAFETY: `bytes` and `address` are readable for their lengths.
    Errno::result(unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            to.cast(),
            len as libc::socklen_t,
        )
    })
    .map(|n| n as usize)
}

fn ask_int(fd: BorrowedFd<'_>, request: u64) -> Result<u32> {
    let mut value: i32 = 0;
    // SAFETY: the requests that this is used with write one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut value) })?;
    Ok(value as u32)
}

/// Bytes that can be read (SIOCINQ); of a datagram socket the length of the first datagram.
///
/// # Errors
/// `EINVAL` for a listener.
pub fn unread(fd: BorrowedFd<'_>) -> Result<u32> {
    ask_int(fd, libc::FIONREAD)
}

/// Bytes in the send queue (SIOCOUTQ); of a stream those that were not acknowledged yet.
///
/// # Errors
/// `EINVAL` for a listener.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> Result<u32> {
    ask_int(fd, libc::TIOCOUTQ)
}

/// Bytes of a stream's send queue that were never sent (SIOCOUTQNSD).
///
/// # Errors
/// `EINVAL` for a listener.
pub fn unsent(fd: BorrowedFd<'_>) -> Result<u32> {
    const SIOCOUTQNSD: u64 = 0x894b;
    ask_int(fd, SIOCOUTQNSD)
}

/// The network namespace that the socket is in (SIOCGSKNS).
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN there.
pub fn namespace(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCGSKNS: u64 = 0x894c;
    // SAFETY: the request takes no argument.
    let ns = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCGSKNS as _) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(ns) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_come_back_as_they_were_attached() {
        let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        assert_eq!(filter(fd.as_fd()), Ok(vec![]));
        assert_eq!(detach_filter(fd.as_fd()), Err(Errno::ENOENT));
        // ld #7; ret a
        let program = [[0, 0, 0, 0, 7, 0, 0, 0], [0x16, 0, 0, 0, 0, 0, 0, 0]];
        attach_filter(fd.as_fd(), &program).unwrap();
        assert_eq!(filter(fd.as_fd()).unwrap(), program);
        detach_filter(fd.as_fd()).unwrap();
        assert_eq!(attach_filter(fd.as_fd(), &[[0xff; 8]]), Err(Errno::EINVAL));
    }

    #[test]
    fn datagrams_and_names() {
        let (a, b) = (
            socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap(),
            socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap(),
        );
        let any = [2u8, 0, 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        bind(a.as_fd(), &any).unwrap();
        bind(b.as_fd(), &any).unwrap();
        let (at, from) = (local(a.as_fd()).unwrap(), local(b.as_fd()).unwrap());
        assert_eq!(remote(b.as_fd()), Err(Errno::ENOTCONN));
        assert_eq!(receive(a.as_fd(), &mut [0; 4], 0), Err(Errno::EAGAIN));
        assert_eq!(send(b.as_fd(), b"hello", &at, 0), Ok(5));
        let mut buffer = [0u8; 3];
        let peeked = receive(a.as_fd(), &mut buffer, libc::MSG_PEEK | libc::MSG_TRUNC).unwrap();
        assert_eq!((peeked.len, &peeked.from, &buffer), (5, &from, b"hel"));
        assert_eq!(unread(a.as_fd()), Ok(5));
        connect(b.as_fd(), &at).unwrap();
        assert_eq!(remote(b.as_fd()).unwrap(), at);
        assert!(get_int(a.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_INET));
    }
}
