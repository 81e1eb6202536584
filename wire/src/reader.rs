//! Reads messages of either dialect off a stream, with as few system calls as possible: it takes whatever has
//! arrived, and keeps for the next call what is behind the message.
//!
//! Which descriptors belong to which message follows from unix(7): a recvmsg(2) never reads past bytes that came with
//! descriptors, so those bytes are the last ones it returned. A sender puts descriptors on the first byte of a message
//! and starts one message with each sendmsg(2); so they belong to the last message that starts in what was returned.

#![forbid(unsafe_code)]

use crate::binary::{self, FrameKind, HEADER_LEN, Header, MAX_FDS};
use crate::client::Dialect;
use crate::error::{Error, Kind, Result};
use crate::json::{self, Scan};
use crate::scm;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

/// Memory that a connection takes for reading at first.
const INITIAL: usize = 4 << 10;
/// More than this is given back after a long message.
const KEEP: usize = 64 << 10;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Json,
    Binary(FrameKind),
}

impl Shape {
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Self::Json => Dialect::Json,
            Self::Binary(_) => Dialect::Binary,
        }
    }
}

/// A message that was received; its body is still in the [`Reader`].
#[derive(Debug)]
pub(crate) struct Message {
    pub shape: Shape,
    body: Range<usize>,
    pub fds: Vec<OwnedFd>,
}

/// Descriptors that one recvmsg(2) returned, with the range of bytes that it returned.
#[derive(Debug)]
struct Group {
    bytes: Range<usize>,
    fds: Vec<OwnedFd>,
}

/// Reads one stream's messages.
#[derive(Debug)]
pub(crate) struct Reader {
    buf: Vec<u8>,
    /// Everything before this was handed out.
    at: usize,
    groups: Vec<Group>,
    max_body: usize,
}

/// How far the message that is being read has come.
#[derive(Debug, Default)]
struct Progress {
    /// Its first byte is there, at `Reader::at`.
    started: bool,
    /// Where to go on looking for the end of a JSON message.
    scanned: usize,
    scan: Scan,
    /// How many bytes are probably missing.
    missing: usize,
}

/// A complete message in the buffer: what it is, its body, and its header if it has one.
type Complete = (Shape, Range<usize>, Option<Header>);

impl Reader {
    /// A reader that refuses bodies longer than `max_body` bytes.
    pub(crate) fn new(max_body: usize) -> Self {
        Self { buf: Vec::new(), at: 0, groups: Vec::new(), max_body }
    }

    /// The body of a message that [`Reader::next`] returned last.
    pub(crate) fn body(&self, message: &Message) -> &[u8] {
        self.buf.get(message.body.clone()).unwrap_or_default()
    }

    /// The dialect of the message that is being read, as far as its first byte tells.
    pub(crate) fn dialect(&self) -> Option<Dialect> {
        match *self.buf.get(self.at)? {
            b'{' => Some(Dialect::Json),
            first if first == binary::MAGIC[0] => Some(Dialect::Binary),
            _ => None,
        }
    }

    /// What was read, but not handed out yet. Empty between the calls of a peer that waits for replies.
    pub(crate) fn has_leftover(&self) -> bool {
        self.buf[self.at..].iter().any(|b| !json::is_space(*b))
    }

    /// Blocks until a message is complete; `None` when the peer closed the stream between messages.
    ///
    /// # Errors
    /// `Protocol` and `Disconnected`: the stream is of no further use, and all descriptors are closed with the reader.
    pub(crate) fn next(&mut self, stream: &UnixStream) -> Result<Option<Message>> {
        let mut progress = Progress::default();
        loop {
            if !progress.started {
                self.at += self.buf[self.at..].iter().take_while(|b| json::is_space(**b)).count();
                progress.started = self.at < self.buf.len();
                progress.scanned = self.at;
            }
            if let Some((shape, body, header)) = self.complete(&mut progress)? {
                let fds = self.take_fds(body.end, shape.dialect())?;
                if let Some(header) = header {
                    header.check_fds(&fds)?;
                }
                self.at = body.end;
                return Ok(Some(Message { shape, body, fds }));
            }
            self.drop_late(progress.started)?;
            self.make_room(&mut progress);
            let before = self.buf.len();
            let mut fds = Vec::new();
            let got = scm::recv_with_fds(stream, &mut self.buf, usize::MAX, &mut fds)?;
            if !fds.is_empty() {
                self.groups.push(Group { bytes: before..before + got, fds });
            }
            match (got, progress.started) {
                (0, false) => return Ok(None),
                (0, true) => {
                    return Err(Error::new(
                        Kind::Disconnected,
                        "the peer closed the connection inside a message",
                    ));
                }
                _ => {}
            }
        }
    }

    /// Looks whether the message at `at` is complete.
    fn complete(&self, progress: &mut Progress) -> Result<Option<Complete>> {
        let rest = &self.buf[self.at..];
        match rest.first() {
            None => Ok(None),
            Some(b'{') => {
                let too_deep = |_| protocol(format!("JSON nested deeper than {}", json::MAX_DEPTH));
                let end = progress.scan.feed(&self.buf[progress.scanned..]).map_err(too_deep)?;
                let body = self.at..end.map_or(self.buf.len(), |n| progress.scanned + n);
                progress.scanned = body.end;
                progress.missing = body.len();
                if body.len() > self.max_body {
                    return Err(protocol(format!("a message is longer than {} bytes", self.max_body)));
                }
                Ok(end.map(|_| (Shape::Json, body, None)))
            }
            Some(first) if *first == binary::MAGIC[0] => {
                let Some(header) = rest.first_chunk::<HEADER_LEN>() else { return Ok(None) };
                let header = Header::decode(header, self.max_body)?;
                let body = self.at + HEADER_LEN..self.at + HEADER_LEN + header.body;
                progress.missing = body.end.saturating_sub(self.buf.len());
                Ok((progress.missing == 0).then_some((Shape::Binary(header.kind), body, Some(header))))
            }
            Some(_) => Err(protocol("not a message of either dialect: it starts with neither { nor 0xA1")),
        }
    }

    /// Gives up the bytes of messages that were handed out, and makes room for more. Memory grows with what has
    /// arrived, not with what a header promises.
    fn make_room(&mut self, progress: &mut Progress) {
        if self.at > 0 {
            self.buf.drain(..self.at);
            for group in &mut self.groups {
                group.bytes =
                    group.bytes.start.saturating_sub(self.at)..group.bytes.end.saturating_sub(self.at);
            }
            progress.scanned -= self.at;
            self.at = 0;
            if self.buf.capacity() > KEEP && self.buf.len() < INITIAL {
                self.buf.shrink_to(INITIAL);
            }
        }
        if self.buf.capacity() == self.buf.len() {
            self.buf.reserve(progress.missing.clamp(INITIAL, binary::CHUNK.max(self.buf.len())));
        }
    }

    /// The descriptors of the message that starts at `at` and ends at `end`.
    fn take_fds(&mut self, end: usize, dialect: Dialect) -> Result<Vec<OwnedFd>> {
        let mut own = Vec::new();
        let start = self.at;
        for group in std::mem::take(&mut self.groups) {
            let behind = self.buf.get(end..group.bytes.end).unwrap_or_default();
            if behind.iter().any(|b| !json::is_space(*b)) {
                // Another message starts in the same bytes.
                self.groups.push(group);
            } else if on_time(&group, start, dialect)? {
                if own.is_empty() { own = group.fds } else { own.extend(group.fds) }
            }
        }
        Ok(own)
    }

    /// Closes descriptors that belong to no message, so that they cannot pile up: what came with white space, and
    /// what came after the start of a message that is still incomplete.
    fn drop_late(&mut self, started: bool) -> Result<()> {
        if !started {
            self.groups.clear();
        }
        let Some(dialect) = self.dialect() else { return Ok(()) };
        let start = self.at;
        for group in std::mem::take(&mut self.groups) {
            if on_time(&group, start, dialect)? {
                self.groups.push(group);
            }
        }
        match self.groups.iter().map(|g| g.fds.len()).sum::<usize>() > MAX_FDS {
            true => Err(protocol(format!("more than {MAX_FDS} descriptors in a message"))),
            false => Ok(()),
        }
    }
}

/// Tells whether a group belongs to the message that starts at `start` and reaches at least to the group's end.
///
/// gVisor does not see descriptors that come later than a JSON message's first byte: they are closed. In the binary
/// dialect, where further groups may ride on the header, any later ones are an error.
fn on_time(group: &Group, start: usize, dialect: Dialect) -> Result<bool> {
    match dialect {
        _ if group.bytes.start <= start => Ok(true),
        Dialect::Json => Ok(false),
        Dialect::Binary if group.bytes.start < start + HEADER_LEN => Ok(true),
        Dialect::Binary => Err(binary::late_descriptors()),
    }
}

fn protocol(why: impl Into<String>) -> Error {
    Error::new(Kind::Protocol, why)
}

#[cfg(test)]
mod tests;
