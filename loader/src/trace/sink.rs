//! To whom it is told.
//!
//! No sink holds the containers up: what one cannot take is dropped, counted, and told with the next.
#![forbid(unsafe_code)]

use super::config::{Retries, SinkPlan};
use super::message::Message;
use super::strace::Strace;
use super::wire;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockType, getsockopt, send, sockopt};
use nix::unistd::write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Bytes of gVisor's header: its own length (u16), the message's type (u16), the number of messages that were dropped
/// (u32, wraps), in the machine's byte order.
pub const HEADER: usize = 8;
/// Lines are written together, up to about this many bytes.
const TOGETHER: usize = 64 << 10;

/// A sink that is told.
#[derive(Debug)]
pub struct Sink {
    kind: Kind,
    /// Messages that it did not get.
    dropped: u64,
}

#[derive(Debug)]
enum Kind {
    Null,
    Remote { socket: OwnedFd, retries: Retries, buffer: Vec<u8> },
    File { file: OwnedFd, lines: Vec<u8>, count: u64, cut: bool },
    Log(Strace),
}

impl Sink {
    /// Takes its descriptor over: the connected socket of a remote sink, the file of a file sink. Both are set not to
    /// block.
    ///
    /// # Errors
    /// `creating event sink: …`: it is missing, or cannot be what the sink needs.
    pub fn new(plan: &SinkPlan, fd: Option<OwnedFd>) -> Result<Self> {
        let kind = match plan {
            SinkPlan::Null => Ok(Kind::Null),
            SinkPlan::Remote(retries) => remote(*retries, fd),
            SinkPlan::File => file(fd),
        };
        Ok(Self { kind: kind.map_err(|e| e.context("creating event sink"))?, dropped: 0 })
    }

    /// The sandbox's log, which gets system calls as lines.
    pub fn log(log: OwnedFd) -> Self {
        Self { kind: Kind::Log(Strace::new(log)), dropped: 0 }
    }

    /// Messages that it did not get.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Counts messages as dropped that nobody could make.
    pub fn miss(&mut self, count: u64) {
        self.dropped += count;
    }

    /// Whether it does anything with messages.
    pub fn listens(&self) -> bool {
        !matches!(self.kind, Kind::Null)
    }

    /// Tells it a message.
    pub fn tell(&mut self, message: &Message) {
        match &mut self.kind {
            Kind::Null => {}
            Kind::Remote { socket, retries, buffer } => {
                buffer.clear();
                buffer.extend((HEADER as u16).to_ne_bytes());
                buffer.extend(message.kind.to_ne_bytes());
                buffer.extend((self.dropped as u32).to_ne_bytes());
                wire::protobuf(&message.fields, buffer);
                if !deliver(socket, buffer, *retries) {
                    self.dropped += 1;
                }
            }
            Kind::Log(strace) => self.dropped += strace.tell(message),
            Kind::File { lines, count, .. } => {
                lines.extend(b"{\"point\":");
                wire::json_text(&message.point.name(), lines);
                wire::json(&message.fields, false, lines);
                lines.extend(b"}\n");
                *count += 1;
                if lines.len() >= TOGETHER {
                    self.flush();
                }
            }
        }
    }

    /// Writes what is kept back.
    pub fn flush(&mut self) {
        match &mut self.kind {
            Kind::File { file, lines, count, cut } => {
                let missed = append(file, lines, *count, cut);
                self.dropped += missed;
                lines.clear();
                *count = 0;
            }
            Kind::Log(strace) => self.dropped += strace.settle(self.dropped),
            Kind::Null | Kind::Remote { .. } => {}
        }
    }
}

fn remote(retries: Retries, fd: Option<OwnedFd>) -> Result<Kind> {
    // gVisor's words for a session whose parent has not connected.
    let socket = fd.ok_or_else(|| Error::invalid_argument("remote sink requires an endpoint"))?;
    if getsockopt(&socket, sockopt::SockType) != Ok(SockType::SeqPacket) {
        return Err(Error::invalid_argument(
            "the descriptor of a remote sink has to be a connected socket of type SOCK_SEQPACKET",
        ));
    }
    Ok(Kind::Remote { socket, retries, buffer: Vec::new() })
}

fn file(fd: Option<OwnedFd>) -> Result<Kind> {
    let file = fd.ok_or_else(|| Error::invalid_argument("a file sink requires a file"))?;
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_PATH) || flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err(Error::invalid_argument("the descriptor of a file sink has to be open for writing"));
    }
    fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(Kind::File { file, lines: Vec::new(), count: 0, cut: false })
}

/// Sends one message; false if it was not possible in time.
fn deliver(socket: &OwnedFd, message: &[u8], retries: Retries) -> bool {
    let mut pause = retries.backoff;
    let mut left = retries.times;
    loop {
        match send(socket.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return true,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if left > 0 => {
                std::thread::sleep(pause);
                pause = pause.saturating_mul(2).min(retries.max);
                left -= 1;
            }
            Err(_) => return false,
        }
    }
}

/// Appends lines; returns how many of them did not get there. `cut` is whether the last thing there is a part of a line.
pub(super) fn append(file: &OwnedFd, lines: &[u8], count: u64, cut: &mut bool) -> u64 {
    /// How long a reader may take who is at it.
    const PATIENCE: Duration = Duration::from_millis(10);
    if lines.is_empty() {
        return 0;
    }
    if *cut {
        match write(file, b"\n") {
            Ok(1) => *cut = false,
            _ => return count,
        }
    }
    let mut written = 0;
    while let Some(rest) = lines.get(written..).filter(|rest| !rest.is_empty()) {
        match write(file, rest) {
            Ok(n) => written += n,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO);
                if !matches!(poll(&mut fds, timeout), Ok(1..)) {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    let done = lines.get(..written).unwrap_or_default();
    *cut = done.last().is_some_and(|b| *b != b'\n');
    count - done.iter().filter(|b| **b == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::super::points::Point;
    use super::super::wire::{Field, Value};
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, recv, socketpair};
    use std::io::{Read, Seek};

    fn message(text: &str) -> Message {
        let fields = vec![Field::new(2, "pathname", Value::Text(text.to_owned()))];
        Message { kind: 7, point: Point::Clone, fields }
    }

    fn seqpacket() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn retries(times: u32) -> SinkPlan {
        let (backoff, max) = (Duration::from_micros(1), Duration::from_micros(10));
        SinkPlan::Remote(Retries { times, backoff, max })
    }

    #[test]
    fn what_is_dropped_is_told_with_the_next() {
        let (ours, theirs) = seqpacket();
        let mut sink = Sink::new(&retries(2), Some(ours)).unwrap();
        let mut sent = 0;
        while sink.dropped() < 3 {
            sink.tell(&message("x"));
            sent += 1;
        }
        let mut buffer = [0; 64];
        let mut receive = || {
            let n = recv(theirs.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap();
            buffer[..n].to_vec()
        };
        assert_eq!(receive(), [8, 0, 7, 0, 0, 0, 0, 0, 0x12, 1, b'x']);
        for _ in 1..sent - 3 {
            receive();
        }
        sink.tell(&message("x"));
        assert_eq!(receive()[..8], [8, 0, 7, 0, 3, 0, 0, 0]);
        drop(theirs);
        sink.tell(&message("x"));
        assert_eq!(sink.dropped(), 4, "the peer is gone");
    }

    #[test]
    fn messages_that_are_too_long_are_dropped() {
        let (ours, _theirs) = seqpacket();
        let mut sink = Sink::new(&retries(0), Some(ours)).unwrap();
        sink.tell(&message(&"x".repeat(4 << 20)));
        assert_eq!(sink.dropped(), 1);
    }

    #[test]
    fn lines_are_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(&SinkPlan::File, Some(file.try_clone().unwrap().into())).unwrap();
        sink.tell(&message("a\"\n"));
        sink.tell(&message("b"));
        sink.flush();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        let expected = "{\"point\":\"sentry/clone\",\"pathname\":\"a\\\"\\n\"}\n{\"point\":\"sentry/clone\",\"pathname\":\"b\"}\n";
        assert_eq!(text, expected);
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn a_reader_who_stops_gets_whole_lines_again_later() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut sink = Sink::new(&SinkPlan::File, Some(writer)).unwrap();
        let mut told = 0;
        while sink.dropped() == 0 {
            sink.tell(&message(&"x".repeat(999)));
            sink.flush();
            told += 1;
        }
        let mut reader = std::fs::File::from(reader);
        let mut got = vec![0; 1 << 20];
        let n = reader.read(&mut got).unwrap();
        sink.tell(&message("again"));
        sink.flush();
        let dropped = sink.dropped();
        drop(sink);
        let mut rest = got[..n].to_vec();
        reader.read_to_end(&mut rest).unwrap();
        let text = String::from_utf8(rest).unwrap();
        let whole =
            text.lines().filter(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()).count() as u64;
        assert_eq!(whole + dropped, told + 1);
        assert!(text.ends_with("\n") && text.contains("again"));
    }

    #[test]
    fn wrong_descriptors_are_refused() {
        let error = |plan: &SinkPlan, fd| Sink::new(plan, fd).unwrap_err().message;
        assert_eq!(error(&retries(0), None), "creating event sink: remote sink requires an endpoint");
        let null = || Some(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        assert!(error(&retries(0), null()).contains("SOCK_SEQPACKET"));
        assert!(error(&SinkPlan::File, null()).contains("open for writing"));
        assert!(error(&SinkPlan::File, None).contains("requires a file"));
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(error(&retries(0), Some(stream.into())).contains("SOCK_SEQPACKET"));
        assert_eq!(Sink::new(&SinkPlan::Null, None).unwrap().dropped(), 0);
    }
}
