//! The binary dialect: a fixed header, then a body that [`codec`] encodes.
//!
//! Besides calls it carries single messages ([`send`], [`recv`]) for channels between airlock's own processes, such as
//! the boot socket. These functions read exactly one frame and not a byte more, so that a stream may change hands
//! between frames.

#![forbid(unsafe_code)]

use crate::codec;
use crate::error::{Error, Kind, Result};
use crate::scm;
use serde::{Serialize, de::DeserializeOwned};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The first bytes of every frame. The first one cannot start a JSON text.
pub const MAGIC: [u8; 4] = [0xA1, b'a', b'l', b'k'];
/// The version of the framing and of the bodies' encoding.
pub const VERSION: u8 = 1;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 16;
/// Most descriptors of one frame.
pub const MAX_FDS: usize = 4 * scm::GROUP;
/// Longest body that is accepted unless a limit says otherwise, in bytes.
pub const DEFAULT_MAX_BODY: usize = 16 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A call: the method's name, then its argument.
    Request = 1,
    /// A call's result.
    Reply = 2,
    /// A call's [`Error`].
    Error = 3,
    /// A message that is not part of a call.
    Message = 4,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: FrameKind,
    pub fds: usize,
    pub body: usize,
}

impl Header {
    /// `None` when there are more descriptors or bytes than the header can count.
    fn encode(self) -> Option<[u8; HEADER_LEN]> {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        bytes[6..8].copy_from_slice(&u16::try_from(self.fds).ok()?.to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::try_from(self.body).ok()?.to_le_bytes());
        Some(bytes)
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_LEN], max_body: usize) -> Result<Self> {
        let bad = |why: String| Err(Error::new(Kind::Protocol, why));
        let [m0, m1, m2, m3, version, kind, f0, f1, b0, b1, b2, b3, rest @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return bad("not a message of either dialect".to_owned());
        }
        if version != VERSION {
            return bad(format!(
                "the peer speaks version {version} of the binary dialect, this end version {VERSION}"
            ));
        }
        let kind = match kind {
            1 => FrameKind::Request,
            2 => FrameKind::Reply,
            3 => FrameKind::Error,
            4 => FrameKind::Message,
            n => return bad(format!("unknown kind of frame: {n}")),
        };
        if rest != [0; 4] {
            return bad("the header's reserved bytes are not zero".to_owned());
        }
        let fds = usize::from(u16::from_le_bytes([f0, f1]));
        if fds > MAX_FDS {
            return bad(format!("a frame declares {fds} descriptors; at most {MAX_FDS} are allowed"));
        }
        let body = usize::try_from(u32::from_le_bytes([b0, b1, b2, b3])).unwrap_or(usize::MAX);
        if body > max_body {
            return bad(format!("a frame declares {body} bytes; at most {max_body} are allowed"));
        }
        Ok(Self { kind, fds, body })
    }

    /// Compares the declared number of descriptors with what came.
    pub(crate) fn check_fds(self, fds: &[OwnedFd]) -> Result<()> {
        if fds.len() == self.fds {
            return Ok(());
        }
        Err(Error::new(
            Kind::Protocol,
            format!("a frame declares {} descriptors, but {} came with it", self.fds, fds.len()),
        ))
    }
}

/// Starts a frame in an empty buffer: leaves room for the header, to be filled in by [`finish`].
pub(crate) fn begin(out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; HEADER_LEN]);
}

/// Fills in the header of a frame that [`begin`] started.
pub(crate) fn finish(out: &mut [u8], kind: FrameKind, fds: usize) -> Result<()> {
    let header = header(kind, out.len().saturating_sub(HEADER_LEN), fds)?;
    if let Some(room) = out.first_chunk_mut() {
        *room = header;
    }
    Ok(())
}

fn header(kind: FrameKind, body: usize, fds: usize) -> Result<[u8; HEADER_LEN]> {
    if fds > MAX_FDS {
        return Err(scm::too_many_files());
    }
    Header { kind, fds, body }
        .encode()
        .ok_or_else(|| Error::invalid_argument(format!("{body} bytes are too long for a frame")))
}

/// Sends the start of a frame, at least its header. Groups of descriptors beyond the first ride on the header's
/// second byte and so on; the last group's sendmsg(2) also carries all remaining bytes.
pub(crate) fn send_start(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let (mut bytes, mut fds) = (bytes, fds);
    while fds.len() > scm::GROUP {
        let (group, rest) = fds.split_at(scm::GROUP);
        let (byte, tail) = bytes.split_at(1);
        scm::send_with_fds(stream, byte, group)?;
        (bytes, fds) = (tail, rest);
    }
    scm::send_with_fds(stream, bytes, fds)
}

/// Sends one frame; the caller keeps its descriptors. Blocks while the peer's buffer is full.
///
/// # Errors
/// `InvalidArgument` for more than [`MAX_FDS`] descriptors or a body of 4 GiB; `Disconnected` when the peer is gone.
/// After an error the stream is of no further use unless nothing was sent.
pub fn send_frame(stream: &UnixStream, kind: FrameKind, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let header = header(kind, body.len(), fds.len())?;
    // One system call for ordinary bodies; copying a long one would cost more than a second call.
    if body.len() <= 32 << 10 {
        let mut frame = Vec::with_capacity(HEADER_LEN + body.len());
        frame.extend_from_slice(&header);
        frame.extend_from_slice(body);
        return send_start(stream, &frame, fds);
    }
    send_start(stream, &header, fds)?;
    scm::send_all(stream, body)
}

/// A frame that was received; owns its descriptors.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// The body.
    pub body: Vec<u8>,
    /// The descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Limits on what is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest body in bytes.
    pub max_body: usize,
    /// Most descriptors of one frame, up to [`MAX_FDS`].
    pub max_fds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_body: DEFAULT_MAX_BODY, max_fds: MAX_FDS }
    }
}

/// Receives one frame, blocking until it is complete. Memory is taken as bytes arrive, never on the header's word.
///
/// # Errors
/// `Disconnected` when the peer is gone; `Protocol` when it breaks the rules, after which the stream is of no further
/// use. All descriptors that came are closed then.
pub fn recv_frame(stream: &UnixStream, limits: Limits) -> Result<Frame> {
    let mut fds = Vec::new();
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    let header = loop {
        if let Some(header) = bytes.first_chunk() {
            break Header::decode(header, limits.max_body)?;
        }
        let missing = HEADER_LEN - bytes.len();
        read(stream, &mut bytes, missing, &mut fds)?;
        if fds.len() > limits.max_fds.min(MAX_FDS) {
            return Err(Error::new(
                Kind::Protocol,
                format!("more than {} descriptors in a frame", limits.max_fds),
            ));
        }
    };
    header.check_fds(&fds)?;
    bytes.clear();
    let mut late = Vec::new();
    while bytes.len() < header.body {
        let missing = header.body - bytes.len();
        if bytes.capacity() == bytes.len() {
            bytes.reserve(missing.min(CHUNK));
        }
        read(stream, &mut bytes, missing, &mut late)?;
        if !late.is_empty() {
            return Err(late_descriptors());
        }
    }
    Ok(Frame { kind: header.kind, body: bytes, fds })
}

/// How much memory is taken at least for a long body, before more of it has arrived.
pub(crate) const CHUNK: usize = 64 << 10;

pub(crate) fn late_descriptors() -> Error {
    Error::new(Kind::Protocol, "descriptors came behind the header of a frame")
}

fn read(stream: &UnixStream, bytes: &mut Vec<u8>, max: usize, fds: &mut Vec<OwnedFd>) -> Result<()> {
    match scm::recv_with_fds(stream, bytes, max, fds)? {
        0 => Err(Error::new(Kind::Disconnected, "the peer closed the connection")),
        _ => Ok(()),
    }
}

/// Sends one value as a frame of kind [`FrameKind::Message`]; errors as [`send_frame`]'s, and `Serde`.
pub fn send<T: Serialize + ?Sized>(stream: &UnixStream, value: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut out = Vec::with_capacity(256);
    begin(&mut out);
    codec::encode_into(value, &mut out)?;
    finish(&mut out, FrameKind::Message, fds.len())?;
    send_start(stream, &out, fds)
}

/// Receives one value and its descriptors; errors as [`recv_frame`]'s, and `Serde` (the stream stays usable then).
pub fn recv<T: DeserializeOwned>(stream: &UnixStream) -> Result<(T, Vec<OwnedFd>)> {
    let frame = recv_frame(stream, Limits::default())?;
    if frame.kind != FrameKind::Message {
        return Err(Error::new(
            Kind::Protocol,
            format!("a {:?} frame came where a message was due", frame.kind),
        ));
    }
    Ok((codec::decode(&frame.body)?, frame.fds))
}

#[cfg(test)]
mod tests;
