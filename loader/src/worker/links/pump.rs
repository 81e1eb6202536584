//! The pump: moves frames between the sandbox's links and the caller's descriptors. One thread for each direction of each
//! channel, which sleeps in the kernel when there is nothing to do, and takes what is there at once when there is.
//!
//! A frame is copied into this process and out of it, and looked at no further than it must be: with peers that take
//! offload headers a packet of 64 KiB passes as it is; for others it is cut into segments that refer to the same bytes.
#![forbid(unsafe_code)]

use super::offload::{self, HEADER_LEN, Header};
use super::peer::{Kind, Peer};
use super::port::Port;
use super::trace::{Trace, Way};
use super::xdp::{self, Rings};
use crate::sys::batch;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, sendmsg};
use nix::sys::uio::writev;
use nix::unistd::read;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Room for the longest frame: a packet of 64 KiB with Ethernet's header and VLAN tags, and the offload header.
const FRAME_MAX: usize = (65_536 + 18 + HEADER_LEN).next_multiple_of(64);
/// Frames that are received in one call: enough to be worth it, few enough to stay in the cache when they are long.
const RECEIVED: usize = 16;
/// Likewise from a tap, whose frames are short unless they have offload headers.
const TAP_RECEIVED: usize = 32;
/// Likewise from rings, whose frames are short: enough for a packet of 64 KiB.
const SMALL_RECEIVED: usize = 64;
const SMALL_FRAME: usize = 4096;
/// Most parts of one message (`UIO_MAXIOV`).
const PARTS: usize = 1024;
/// Room for a stream: several of the longest frames.
const STREAM: usize = 256 << 10;

/// What all channels of a sandbox have in common.
#[derive(Debug, Default)]
pub struct Shared {
    /// Where frames are written about.
    pub trace: Trace,
    /// Frames are dropped instead of being moved.
    pub stopped: AtomicBool,
}

/// One of a link's ports and the descriptor on its other side.
#[derive(Debug)]
pub struct Channel {
    /// Name of the link.
    pub name: String,
    /// Where the sandbox's frames are.
    pub port: Port,
    /// The other side.
    pub peer: Peer,
    /// Channels of the link whose other side is there.
    pub living: Arc<AtomicUsize>,
    /// This channel's is gone.
    pub ended: AtomicBool,
    /// See there.
    pub shared: Arc<Shared>,
}

/// Why a direction came to its end.
type End = String;

/// Frames as they were received: each at the beginning of its chunk of the arena.
pub struct Received {
    arena: Vec<u8>,
    chunk: usize,
    lengths: Vec<usize>,
}

impl Received {
    fn new() -> Self {
        Self::with(RECEIVED, FRAME_MAX)
    }

    fn with(count: usize, chunk: usize) -> Self {
        Self { arena: vec![0; count * chunk], chunk, lengths: Vec::new() }
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Has `fill` put frames there: it gets the arena, the length of its chunks, and where the frames' lengths belong.
    pub fn take(&mut self, fill: impl FnOnce(&mut [u8], usize, &mut Vec<usize>)) {
        fill(&mut self.arena, self.chunk, &mut self.lengths);
    }

    /// Waits for the first frame, and takes those that are there with it.
    fn fill(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.lengths.clear();
        let mut buffers: Vec<_> = self.arena.chunks_mut(self.chunk).map(IoSliceMut::new).collect();
        batch::receive(fd, &mut buffers, &mut self.lengths, 0).map(drop)
    }

    /// Likewise from a descriptor of which each read gives one frame; none at its end.
    fn read(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        self.lengths.clear();
        for (i, buffer) in self.arena.chunks_mut(self.chunk).enumerate() {
            match if i == 0 { read(fd, buffer) } else { batch::read_now(fd, buffer) } {
                Ok(0) => break,
                Ok(n) => self.lengths.push(n),
                Err(e) if i == 0 => return Err(e),
                // There are no more, or they cannot be had without waiting: all this is found out again by the first read.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// What is longer than `header`.
    fn frames(&self, header: usize) -> impl Iterator<Item = &[u8]> + Clone {
        let chunks = self.arena.chunks(self.chunk).zip(&self.lengths).map(|(chunk, n)| &chunk[..*n]);
        chunks.filter(move |frame| frame.len() > header)
    }
}

/// The pieces that frames for the peer consist of: of each a range of `heads` and one of the arena.
#[derive(Default)]
struct Pieces {
    heads: Vec<u8>,
    ranges: Vec<(Range<usize>, Range<usize>)>,
}

impl Pieces {
    fn parts<'a>(&'a self, arena: &'a [u8]) -> impl Iterator<Item = [IoSlice<'a>; 2]> {
        let slice = |head: &Range<usize>, body: &Range<usize>| {
            [IoSlice::new(&self.heads[head.clone()]), IoSlice::new(&arena[body.clone()])]
        };
        self.ranges.iter().map(move |(head, body)| slice(head, body))
    }
}

impl Channel {
    /// Moves frames out of the sandbox until the peer is gone.
    pub fn outward(&self) {
        let mut received = Received::new();
        let mut pieces = Pieces::default();
        loop {
            if let Err(e) = received.fill(self.port.fd()) {
                match e {
                    // The link is down, or has a packet that no offload header can describe.
                    Errno::ENETDOWN | Errno::EINVAL | Errno::EINTR => continue,
                    e => return self.end(e.desc()),
                }
            }
            if self.shared.stopped.load(Ordering::Relaxed) {
                continue;
            }
            self.trace(Way::Out, received.frames(HEADER_LEN).map(|f| &f[HEADER_LEN..]));
            let sent = if self.peer.offload {
                self.send_whole(&received)
            } else {
                self.send_plain(&mut received, &mut pieces)
            };
            if let Err(end) = sent {
                return self.end(&end);
            }
        }
    }

    /// Moves frames into the sandbox until the peer is gone.
    pub fn inward(&self) {
        let end = match self.peer.kind {
            Kind::Stream => self.in_stream(),
            Kind::Tap => self.in_tap(),
            Kind::Xdp => self.in_rings(),
            Kind::Packet | Kind::Messages | Kind::Datagrams => self.in_messages(),
        };
        self.end(&end);
    }

    /// The peer is gone. The programs see it as a cable that is pulled.
    fn end(&self, why: &str) {
        if self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        log::warn!("link {}: its other side is gone: {why}", self.name);
        self.report();
        if self.living.fetch_sub(1, Ordering::Relaxed) == 1
            && let Err(e) = self.port.pull()
        {
            log::warn!("link {}: taking its carrier away: {e}", self.name);
        }
    }

    /// Writes of frames that were lost, where somebody has counted.
    pub fn report(&self) {
        if let Some(losses) = self.peer.rings.as_ref().and_then(|_| xdp::losses(self.peer())) {
            log::info!("link {}: {losses}", self.name);
        }
    }

    fn trace<'a>(&self, way: Way, frames: impl Iterator<Item = &'a [u8]>) {
        if self.shared.trace.active() {
            frames.for_each(|frame| self.shared.trace.frame(&self.name, way, frame));
        }
    }

    fn peer(&self) -> BorrowedFd<'_> {
        self.peer.fd.as_fd()
    }

    /// To a peer that takes offload headers.
    fn send_whole(&self, received: &Received) -> Result<(), End> {
        let mut frames = received.frames(HEADER_LEN).map(|frame| [IoSlice::new(frame)]);
        if self.peer.kind == Kind::Tap {
            return frames.try_for_each(|parts| write_frame(self.peer(), &parts));
        }
        send_all(self.peer(), frames)
    }

    fn send_plain(&self, received: &mut Received, pieces: &mut Pieces) -> Result<(), End> {
        pieces.heads.clear();
        pieces.ranges.clear();
        let Received { arena, chunk, lengths } = received;
        for (i, length) in lengths.iter().enumerate() {
            let start = i * *chunk + HEADER_LEN;
            let Some(header) = Header::parse(&arena[start - HEADER_LEN..]) else { continue };
            let Some(frame) = arena.get_mut(start..start - HEADER_LEN + length) else { continue };
            offload::plain(frame, &header, &mut pieces.heads, |head, body| {
                pieces.ranges.push((head, start + body.start..start + body.end));
            });
        }
        let mut parts = pieces.parts(arena);
        match self.peer.kind {
            Kind::Stream => self.send_stream(parts),
            Kind::Tap => parts.try_for_each(|parts| write_frame(self.peer(), &parts)),
            Kind::Xdp => self.rings()?.send(self.peer(), parts).map_err(|e| e.desc().to_owned()),
            Kind::Packet | Kind::Messages | Kind::Datagrams => send_all(self.peer(), parts),
        }
    }

    fn send_stream<'a>(&self, frames: impl Iterator<Item = [IoSlice<'a>; 2]>) -> Result<(), End> {
        let frames: Vec<_> = frames
            .map(|[head, body]| (((head.len() + body.len()) as u32).to_be_bytes(), head, body))
            .collect();
        for frames in frames.chunks(PARTS / 3) {
            let mut parts: Vec<_> =
                frames.iter().flat_map(|(length, head, body)| [IoSlice::new(length), *head, *body]).collect();
            let mut rest = parts.as_mut_slice();
            while !rest.is_empty() {
                match sendmsg::<()>(self.peer().as_raw_fd(), rest, &[], MsgFlags::MSG_NOSIGNAL, None) {
                    Ok(n) => IoSlice::advance_slices(&mut rest, n),
                    Err(e) => wait_after(e, self.peer(), PollFlags::POLLOUT)?,
                }
            }
        }
        Ok(())
    }

    fn in_messages(&self) -> End {
        let mut received = Received::new();
        let header = if self.peer.offload { HEADER_LEN } else { 0 };
        loop {
            match received.fill(self.peer()) {
                Ok(()) => {}
                // The interface of a packet socket is down, and may come up again; or as above.
                Err(Errno::ENETDOWN | Errno::EINVAL) if self.peer.kind == Kind::Packet => continue,
                Err(e) => match wait_after(e, self.peer(), PollFlags::POLLIN) {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
            }
            if self.peer.kind == Kind::Messages && received.lengths.contains(&0) {
                return "connection closed".to_owned();
            }
            self.deliver(received.frames(header), header);
        }
    }

    fn in_rings(&self) -> End {
        let rings = match self.rings() {
            Ok(rings) => rings,
            Err(end) => return end,
        };
        let mut received = Received::with(SMALL_RECEIVED, SMALL_FRAME);
        loop {
            match rings.receive(self.peer(), &mut received) {
                Ok(()) => self.deliver(received.frames(0), 0),
                Err(e) => return e.desc().to_owned(),
            }
        }
    }

    fn rings(&self) -> Result<&Rings, End> {
        self.peer.rings.as_deref().ok_or_else(|| "no rings".to_owned())
    }

    fn in_tap(&self) -> End {
        let mut received = Received::with(TAP_RECEIVED, FRAME_MAX);
        let header = if self.peer.offload { HEADER_LEN } else { 0 };
        loop {
            match received.read(self.peer()) {
                Ok(()) if received.is_empty() => return "end of file".to_owned(),
                Ok(()) => self.deliver(received.frames(header), header),
                Err(e) => {
                    if let Err(end) = wait_after(e, self.peer(), PollFlags::POLLIN) {
                        return end;
                    }
                }
            }
        }
    }

    fn in_stream(&self) -> End {
        let mut buffer = vec![0; STREAM];
        let mut filled = 0;
        loop {
            match recv(self.peer().as_raw_fd(), &mut buffer[filled..], MsgFlags::empty()) {
                Ok(0) => return "connection closed".to_owned(),
                Ok(n) => filled += n,
                Err(e) => match wait_after(e, self.peer(), PollFlags::POLLIN) {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
            }
            let (frames, used) = match split_stream(&buffer[..filled]) {
                Ok(split) => split,
                Err(end) => return end,
            };
            self.deliver(frames.into_iter(), 0);
            buffer.copy_within(used..filled, 0);
            filled -= used;
        }
    }

    /// Hands frames to the sandbox. `header` is the length of the offload headers that they have.
    fn deliver<'a>(&self, frames: impl Iterator<Item = &'a [u8]> + Clone, header: usize) {
        if self.shared.stopped.load(Ordering::Relaxed) {
            return;
        }
        self.trace(Way::In, frames.clone().map(|frame| &frame[header..]));
        // What the sandbox does not take is lost: it is the peer that decides when the link ends.
        let _ = if header > 0 {
            send_all(self.port.fd(), frames.map(|frame| [IoSlice::new(frame)]))
        } else {
            // Linux leaves checksums to the interface, which an AF_XDP socket takes frames from before that.
            let packets = offload::gather(frames, self.peer.kind == Kind::Xdp);
            send_all(self.port.fd(), packets.iter().map(|packet| packet.parts()))
        };
    }
}

/// The whole frames at the beginning of what came from a stream, and the bytes that they take.
fn split_stream(bytes: &[u8]) -> Result<(Vec<&[u8]>, usize), End> {
    const LONGEST: usize = FRAME_MAX - HEADER_LEN;
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some(length) = bytes[at..].first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > LONGEST {
            return Err(format!("it announced a frame of {length} bytes; one has 1 to {LONGEST}"));
        }
        let Some(frame) = bytes.get(at + 4..at + 4 + length) else { break };
        frames.push(frame);
        at += 4 + length;
    }
    Ok((frames, at))
}

/// Writes one frame to a tap. One that it does not take is lost, as on any cable.
fn write_frame(tap: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<(), End> {
    loop {
        match writev(tap, parts) {
            Err(Errno::EAGAIN) => wait(tap, PollFlags::POLLOUT)?,
            Err(e @ (Errno::EBADFD | Errno::EBADF)) => return Err(e.desc().to_owned()),
            _ => return Ok(()),
        }
    }
}

/// Sends messages, each of some parts; those that the other side does not take are lost.
fn send_all<'a, P>(fd: BorrowedFd<'_>, messages: impl Iterator<Item = P>) -> Result<(), End>
where
    P: IntoIterator<Item = IoSlice<'a>>,
{
    let (mut parts, mut ranges) = (Vec::new(), Vec::new());
    for message in messages {
        let start = parts.len();
        parts.extend(message);
        ranges.push(start..parts.len());
    }
    let mut rest = ranges.as_slice();
    while !rest.is_empty() {
        match batch::send(fd, &parts, rest, 0) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::EAGAIN) => wait(fd, PollFlags::POLLOUT)?,
            Err(Errno::EINTR) => {}
            Err(
                e @ (Errno::EPIPE
                | Errno::ECONNRESET
                | Errno::ECONNREFUSED
                | Errno::ENOTCONN
                | Errno::ENXIO
                | Errno::ENODEV
                | Errno::EBADF),
            ) => return Err(e.desc().to_owned()),
            // Too long for it, its queue is full, its interface is down.
            Err(_) => rest = &rest[1..],
        }
    }
    Ok(())
}

/// After a failed call: waits if it only had nothing to do.
fn wait_after(errno: Errno, fd: BorrowedFd<'_>, events: PollFlags) -> Result<(), End> {
    match errno {
        Errno::EAGAIN => wait(fd, events),
        Errno::EINTR => Ok(()),
        e => Err(e.desc().to_owned()),
    }
}

fn wait(fd: BorrowedFd<'_>, events: PollFlags) -> Result<(), End> {
    match poll(&mut [PollFd::new(fd, events)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e.desc().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn streams_are_split_wherever_they_are_cut(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..20),
            cut: usize,
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect();
            let cut = if bytes.is_empty() { 0 } else { cut % (bytes.len() + 1) };
            let (first, used) = split_stream(&bytes[..cut]).unwrap();
            let (second, rest) = split_stream(&bytes[used..]).unwrap();
            let all: Vec<&[u8]> = first.into_iter().chain(second).collect();
            prop_assert_eq!(all, frames);
            prop_assert_eq!(used + rest, bytes.len());
        }

        #[test]
        fn any_stream_is_fine(bytes: Vec<u8>) {
            if let Ok((frames, used)) = split_stream(&bytes) {
                prop_assert_eq!(frames.iter().map(|f| f.len() + 4).sum::<usize>(), used);
            }
        }
    }

    #[test]
    fn senseless_lengths_end_a_stream() {
        assert!(split_stream(&[0, 0, 0, 0]).unwrap_err().contains("0 bytes"));
        assert!(split_stream(&[0xff; 4]).unwrap_err().contains("4294967295 bytes"));
    }
}
