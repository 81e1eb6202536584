//! What waits in a unix socket's receive queue, descriptors included. It stays there: everything is only peeked at, with
//! an offset (SO_PEEK_OFF) that moves on.
#![forbid(unsafe_code)]

use crate::sys::{net, unix};
use airlock_wire::error::Error;
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// More than the largest message that the largest send buffer lets through is never in one piece.
const CHUNK: usize = 1 << 20;

/// A message, or a piece of a stream.
#[derive(Debug, Default)]
pub struct Piece {
    /// Sender's address.
    pub from: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
    /// Descriptors that came with its first byte.
    pub fds: Vec<OwnedFd>,
    /// Sender's pid, uid, gid, if the socket asks for them.
    pub creds: Option<(i32, u32, u32)>,
}

/// Looks through the queue of `fd`, a socket of type `kind` (SOCK_*).
///
/// # Errors
/// The kernel's.
pub fn peek(fd: BorrowedFd<'_>, kind: i32) -> Result<Vec<Piece>, Error> {
    let during = |e: Errno| Error::from(e).context("looking at what a unix socket has not read yet");
    let before = net::get_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF).map_err(during)?;
    let found = if kind == libc::SOCK_STREAM { stream(fd) } else { packets(fd, kind) };
    net::set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, before).map_err(during)?;
    found.map_err(during)
}

fn seek(fd: BorrowedFd<'_>, offset: usize) -> Result<(), Errno> {
    net::set_int(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset as i32)
}

/// Each look shows the next message.
fn packets(fd: BorrowedFd<'_>, kind: i32) -> Result<Vec<Piece>, Errno> {
    seek(fd, 0)?;
    let mut all = Vec::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let message = match unix::receive(fd, &mut buffer, libc::MSG_PEEK | libc::MSG_TRUNC) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(all),
            // What a broken connection leaves behind is told once.
            Err(Errno::ECONNRESET) => continue,
            Err(e) => return Err(e),
        };
        // The end of a connection cannot be told from an empty message.
        if message.len == 0 && kind == libc::SOCK_SEQPACKET && message.fds.is_empty() {
            return Ok(all);
        }
        let data = buffer.get(..message.len).ok_or(Errno::EMSGSIZE)?.to_vec();
        all.push(Piece { from: message.from, data, fds: message.fds, creds: message.creds });
    }
}

/// A look may run over several messages until one with descriptors, which belong to that one's first byte.
fn stream(fd: BorrowedFd<'_>) -> Result<Vec<Piece>, Errno> {
    let mut all: Vec<Piece> = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    loop {
        seek(fd, offset)?;
        let message = match unix::receive(fd, &mut buffer, libc::MSG_PEEK) {
            Ok(message) if message.len == 0 => return Ok(all),
            Ok(message) => message,
            Err(Errno::EAGAIN | Errno::ECONNRESET) => return Ok(all),
            Err(e) => return Err(e),
        };
        let len = message.len;
        let mut plain = 0;
        if !message.fds.is_empty() {
            seek(fd, offset)?;
            plain = unix::peek_whole(fd, &mut vec![0; len - 1])?;
        }
        if plain > 0 {
            all.push(Piece { data: buffer[..plain].to_vec(), creds: message.creds, ..Piece::default() });
        }
        all.push(Piece {
            data: buffer[plain..len].to_vec(),
            fds: message.fds,
            creds: message.creds,
            ..Piece::default()
        });
        offset += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn send(fd: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        assert_eq!(unix::send(fd.as_fd(), bytes, &[], fds, None), Ok(bytes.len()));
    }

    #[test]
    fn a_stream_is_cut_where_descriptors_come() {
        let (a, b) = unix::pair(libc::SOCK_STREAM).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(&a, b"abc", &[]);
        send(&a, b"def", &[]);
        send(&a, b"ghi", &[null.as_fd(), null.as_fd()]);
        send(&a, b"jkl", &[]);
        send(&a, b"m", &[null.as_fd()]);
        for _ in 0..2 {
            let pieces = peek(b.as_fd(), libc::SOCK_STREAM).unwrap();
            let shape: Vec<(&[u8], usize)> =
                pieces.iter().map(|p| (p.data.as_slice(), p.fds.len())).collect();
            assert_eq!(shape, [(&b"abcdef"[..], 0), (b"ghi", 2), (b"jkl", 0), (b"m", 1)]);
        }
        assert_eq!(net::get_int(b.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF), Ok(-1));
        let mut buffer = [0; 64];
        assert_eq!(unix::receive(b.as_fd(), &mut buffer, 0).unwrap().len, 9);
    }

    #[test]
    fn long_streams_and_closed_ends() {
        let (a, b) = unix::pair(libc::SOCK_STREAM).unwrap();
        let data: Vec<u8> = (0..150_000u32).map(|i| (i / 7) as u8).collect();
        let mut sent = 0;
        while sent < data.len() {
            sent += unix::send(a.as_fd(), &data[sent..], &[], &[], None).unwrap();
        }
        drop(a);
        let all: Vec<u8> =
            peek(b.as_fd(), libc::SOCK_STREAM).unwrap().into_iter().flat_map(|p| p.data).collect();
        assert!(all == data);
    }

    #[test]
    fn each_message_is_seen_with_its_sender() {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (a, b) = unix::pair(kind).unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            for size in [5usize, 100_000, 1] {
                let fds = vec![null.as_fd(); usize::from(size != 5)];
                send(&a, &vec![size as u8; size], &fds);
            }
            for _ in 0..2 {
                let pieces = peek(b.as_fd(), kind).unwrap();
                let shape: Vec<(usize, usize)> = pieces.iter().map(|p| (p.data.len(), p.fds.len())).collect();
                assert_eq!(shape, [(5, 0), (100_000, 1), (1, 1)]);
            }
            drop(a);
            assert_eq!(peek(b.as_fd(), kind).unwrap().len(), 3);
        }
    }
}
