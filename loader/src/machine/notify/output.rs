//! Records for a reader that may be slow.
#![forbid(unsafe_code)]

use airlock_wire::api::container::Notification;
use airlock_wire::api::container::status::Code;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It was written.
    Written,
    /// There is no room; it is counted.
    Lost,
    /// Nobody reads any more.
    Gone,
}

/// Where records go.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    socket: bool,
    lost: u64,
    /// The rest of a record of which a socket took a part.
    rest: Vec<u8>,
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Output {
    /// Takes a pipe, a socket or a regular file.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for anything else, or what cannot be written to.
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        let wrong =
            |why: &str| Code::InvalidArgument.error(format_args!("the descriptor for notifications {why}"));
        let kind = SFlag::from_bits_truncate(fstat(&fd)?.st_mode & SFlag::S_IFMT.bits());
        let socket = kind == SFlag::S_IFSOCK;
        if !socket && kind != SFlag::S_IFIFO && kind != SFlag::S_IFREG {
            return Err(wrong("is no pipe, socket or file"));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        match flags & OFlag::O_ACCMODE {
            _ if flags.contains(OFlag::O_PATH) => Err(wrong("cannot be written to")),
            OFlag::O_WRONLY | OFlag::O_RDWR => Ok(Self { fd, socket, lost: 0, rest: Vec::new() }),
            _ => Err(wrong("cannot be written to")),
        }
    }

    /// Writes a record as a line, if that does not block; says in it how many were lost before.
    pub(super) fn send(&mut self, mut record: Notification) -> Sent {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            match self.write(&rest) {
                Ok(()) if self.rest.is_empty() => {}
                Ok(()) | Err(Errno::EAGAIN) => {
                    if self.rest.is_empty() {
                        self.rest = rest;
                    }
                    self.lost += 1;
                    return Sent::Lost;
                }
                Err(_) => return Sent::Gone,
            }
        }
        record.lost = self.lost;
        let Ok(mut line) = serde_json::to_vec(&record) else { return Sent::Gone };
        line.push(b'\n');
        match self.write(&line) {
            Ok(()) => {
                self.lost = 0;
                Sent::Written
            }
            Err(Errno::EAGAIN) => {
                self.lost += 1;
                Sent::Lost
            }
            Err(e) => {
                log::debug!("a notification has no reader: {}", Error::from(e));
                Sent::Gone
            }
        }
    }

    /// Writes it all or nothing; of what a socket took a part, the rest is kept.
    fn write(&mut self, bytes: &[u8]) -> std::result::Result<(), Errno> {
        let written = if self.socket {
            send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?
        } else {
            // A pipe that is ready takes a line (less than PIPE_BUF) as a whole.
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::ZERO)? == 0 {
                return Err(Errno::EAGAIN);
            }
            nix::unistd::write(&self.fd, bytes)?
        };
        self.rest = bytes.get(written..).unwrap_or_default().to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn record() -> Notification {
        Notification {
            notification_id: 7,
            event: "oom".into(),
            status: "OK".into(),
            ..Notification::default()
        }
    }

    #[test]
    fn what_is_lost_is_counted_and_nothing_is_torn() {
        let (pipe_reader, pipe) = std::io::pipe().unwrap();
        let (socket_reader, socket) = std::os::unix::net::UnixStream::pair().unwrap();
        let pairs: [(Box<dyn Read>, OwnedFd); 2] =
            [(Box::new(pipe_reader), pipe.into()), (Box::new(socket_reader), socket.into())];
        for (mut reader, writer) in pairs {
            let mut output = Output::new(writer).unwrap();
            let mut written = 0;
            while output.send(record()) == Sent::Written {
                written += 1;
            }
            for _ in 0..9 {
                assert_eq!(output.send(record()), Sent::Lost);
            }
            let mut text = vec![0; 1 << 20];
            let mut got = reader.read(&mut text).unwrap();
            assert_eq!(output.send(record()), Sent::Written);
            drop(output);
            loop {
                match reader.read(&mut text[got..]).unwrap() {
                    0 => break,
                    n => got += n,
                }
            }
            let text = std::str::from_utf8(&text[..got]).unwrap();
            let records: Vec<Notification> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            assert_eq!(records.len(), written + 1, "{text}");
            assert_eq!(records.last().unwrap().lost, 10);
        }
    }

    #[test]
    fn only_what_can_be_written_to_is_taken() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(Output::new(reader.try_clone().unwrap().into()).is_err());
        assert!(Output::new(std::fs::File::open("/dev/null").unwrap().into()).is_err());
        assert!(Output::new(std::fs::File::open("/").unwrap().into()).is_err());
        let mut output = Output::new(writer.into()).unwrap();
        drop(reader);
        assert_eq!(output.send(record()), Sent::Gone);
    }
}
