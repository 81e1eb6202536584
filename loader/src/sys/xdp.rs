//! AF_XDP sockets (Documentation/networking/af_xdp.rst): frames of one queue of an interface, taken before Linux'
//! network sees them and sent past it, through rings and memory that are shared with the kernel.
//!
//! Whoever else holds the socket can map the same rings. So what is in them is looked at as any other input, and frames
//! are copied in and out: nothing of ours refers to the shared memory.

use super::bpf::{Result, bpf, owned, raw};
use super::net;
use super::tracing::{Hook, MapKind, Refused, create_map, load, set};
use nix::errno::Errno;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes that the kernel leaves free before a frame that it has received (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: u32 = 256;

/// How many frames, each of how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Room for one frame: 2048 or 4096; what comes in may be [`HEADROOM`] shorter.
    pub frame: u32,
    /// Frames that may wait to be taken; a power of two.
    pub receive: u32,
    /// Frames that may wait to be sent; a power of two.
    pub send: u32,
}

/// What the kernel has counted on a socket, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that were lost, too long for their room for instance.
    pub dropped: u64,
    /// Frames that were lost because nobody took the ones before.
    pub full: u64,
    /// Frames that could not be sent because their descriptors made no sense.
    pub invalid: u64,
}

/// A mapping of this process; unmapped when it is dropped.
#[derive(Debug)]
struct Mapping {
    start: usize,
    len: usize,
}

impl Mapping {
    fn new(len: usize, flags: i32, fd: i32, offset: i64) -> Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice; it touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { start: start as usize, len })
    }

    fn word(&self, at: usize) -> Result<&AtomicU32> {
        if !at.is_multiple_of(4) || at.checked_add(4).is_none_or(|end| end > self.len) {
            return Err(Errno::EPROTO);
        }
        // SAFETY: an aligned word inside the mapping, which lives as long as `self` and is only ever accessed as atomics;
        // any bits are a number.
        Ok(unsafe { &*((self.start + at) as *const AtomicU32) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.len) };
    }
}

/// One of the four rings. Of its two positions one is ours to write, the other the kernel's.
#[derive(Debug)]
struct Ring {
    map: Mapping,
    producer: usize,
    consumer: usize,
    entries: usize,
    /// 64-bit words of an entry.
    words: usize,
    size: u32,
    /// Our position.
    ours: u32,
}

impl Ring {
    fn map(
        fd: BorrowedFd<'_>,
        page: u64,
        offsets: &libc::xdp_ring_offset,
        size: u32,
        words: usize,
    ) -> Result<Self> {
        let [producer, consumer, entries] =
            [offsets.producer, offsets.consumer, offsets.desc].map(|at| at as usize);
        let len = entries + size as usize * words * 8;
        let map = Mapping::new(len, libc::MAP_SHARED, fd.as_raw_fd(), page as i64)?;
        map.word(producer)?;
        map.word(consumer)?;
        if !entries.is_multiple_of(8) {
            return Err(Errno::EPROTO);
        }
        Ok(Self { map, producer, consumer, entries, words, size, ours: 0 })
    }

    fn position(&self, at: usize) -> u32 {
        self.map.word(at).map_or(self.ours, |word| word.load(Ordering::Acquire))
    }

    fn publish(&self, at: usize) {
        if let Ok(word) = self.map.word(at) {
            word.store(self.ours, Ordering::Release);
        }
    }

    /// Entries that the kernel has put there and we have not taken.
    fn filled(&self) -> u32 {
        self.position(self.producer).wrapping_sub(self.ours).min(self.size)
    }

    /// Entries that we may put there.
    fn free(&self) -> u32 {
        self.size.saturating_sub(self.ours.wrapping_sub(self.position(self.consumer)))
    }

    fn slot(&self, word: usize) -> &AtomicU64 {
        let index = (self.ours & (self.size - 1)) as usize * self.words + word;
        // SAFETY: entries begin at a multiple of 8 in a mapping of `size` of them, and `size` is a power of two: an aligned
        // word inside the mapping, which lives as long as `self`; entries are only ever accessed as atomics.
        unsafe { &*((self.map.start + self.entries + index * 8) as *const AtomicU64) }
    }

    fn address(&self) -> u64 {
        self.slot(0).load(Ordering::Relaxed)
    }

    fn put(&self, word: usize, value: u64) {
        self.slot(word).store(value, Ordering::Relaxed);
    }

    fn next(&mut self) {
        self.ours = self.ours.wrapping_add(1);
    }
}

/// Memory that both directions have their frames in: first those to receive into, then those to send.
#[derive(Debug)]
struct Frames {
    memory: Mapping,
    sizes: Sizes,
}

impl Frames {
    fn border(&self) -> usize {
        self.sizes.receive as usize * self.sizes.frame as usize
    }

    /// Copies `to.len()` bytes out.
    fn read(&self, at: usize, to: &mut [u8]) {
        debug_assert!(at + to.len() <= self.border());
        if at.checked_add(to.len()).is_some_and(|end| end <= self.border()) {
            // SAFETY: the range was just checked; it is in the mapping, which lives as long as `self` and to which no
            // reference exists. The kernel writes to a frame only while it is in the fill ring; should another holder of
            // the socket have put it there, the bytes copied are whatever they are.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    (self.memory.start + at) as *const u8,
                    to.as_mut_ptr(),
                    to.len(),
                );
            }
        }
    }

    /// Copies `from` in.
    fn write(&self, at: usize, from: &[u8]) {
        debug_assert!(at >= self.border() && at + from.len() <= self.memory.len);
        if at >= self.border() && at.checked_add(from.len()).is_some_and(|end| end <= self.memory.len) {
            // SAFETY: the range was just checked; it is in the mapping, which lives as long as `self` and to which no
            // reference exists. The kernel only reads there.
            unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr(), (self.memory.start + at) as *mut u8, from.len());
            }
        }
    }
}

/// The receiving direction of a socket.
#[derive(Debug)]
pub struct Receiver {
    frames: Arc<Frames>,
    rx: Ring,
    fill: Ring,
}

/// The sending direction of a socket.
#[derive(Debug)]
pub struct Sender {
    frames: Arc<Frames>,
    tx: Ring,
    completion: Ring,
    /// Where frames are that can be used.
    free: Vec<u64>,
}

/// Gives a fresh socket its memory and rings. It carries frames once it is bound, and receives those that an XDP program
/// redirects to it.
///
/// # Errors
/// `EBUSY`: it has memory already; `EINVAL`: it is bound already; `ENOBUFS`: more locked memory than allowed
/// (`RLIMIT_MEMLOCK`); `ENOPROTOOPT`: no AF_XDP socket.
pub fn open(fd: BorrowedFd<'_>, sizes: Sizes) -> Result<(Receiver, Sender)> {
    let frame = sizes.frame as usize;
    let total = (sizes.receive as usize + sizes.send as usize) * frame;
    let memory = Mapping::new(total, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
    // `struct xdp_umem_reg_v1`, which every kernel knows.
    let mut register = (memory.start as u64).to_ne_bytes().to_vec();
    register.extend((memory.len as u64).to_ne_bytes());
    register.extend(sizes.frame.to_ne_bytes());
    register.extend(0u32.to_ne_bytes());
    net::set(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &register)?;
    for (name, size) in [
        (libc::XDP_UMEM_FILL_RING, sizes.receive),
        (libc::XDP_UMEM_COMPLETION_RING, sizes.send),
        (libc::XDP_RX_RING, sizes.receive),
        (libc::XDP_TX_RING, sizes.send),
    ] {
        net::set(fd, libc::SOL_XDP, name, &size.to_ne_bytes())?;
    }
    let offsets = ring_offsets(fd)?;
    let map = |page, offsets, size, words| Ring::map(fd, page, offsets, size, words);
    let mut fill = map(libc::XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, sizes.receive, 1)?;
    let completion = map(libc::XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, sizes.send, 1)?;
    let rx = map(libc::XDP_PGOFF_RX_RING as u64, &offsets.rx, sizes.receive, 2)?;
    let tx = map(libc::XDP_PGOFF_TX_RING as u64, &offsets.tx, sizes.send, 2)?;
    for i in 0..u64::from(sizes.receive) {
        fill.put(0, i * frame as u64);
        fill.next();
    }
    fill.publish(fill.producer);
    let frames = Arc::new(Frames { memory, sizes });
    let first = frames.border() as u64;
    let free = (0..u64::from(sizes.send)).map(|i| first + i * frame as u64).collect();
    Ok((Receiver { frames: frames.clone(), rx, fill }, Sender { frames, tx, completion, free }))
}

fn ring_offsets(fd: BorrowedFd<'_>) -> Result<libc::xdp_mmap_offsets> {
    let mut bytes = [0u8; size_of::<libc::xdp_mmap_offsets>()];
    let len = net::get(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, &mut bytes)?;
    if len != bytes.len() {
        // Linux before 5.4.
        return Err(Errno::ENOPROTOOPT);
    }
    // SAFETY: the structure consists of 64-bit numbers alone, of which `bytes` has as many; any bits are numbers.
    Ok(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// Binds a socket that has its rings to queue `queue` of the interface with index `interface`, in the network namespace
/// that the socket was made in.
///
/// # Errors
/// `ENODEV`; `EINVAL`: no such queue, or bound already; `EBUSY`: another socket has the queue.
pub fn bind(fd: BorrowedFd<'_>, interface: u32, queue: u32) -> Result<()> {
    let mut address = (libc::AF_XDP as u16).to_ne_bytes().to_vec();
    address.extend(0u16.to_ne_bytes());
    for word in [interface, queue, 0] {
        address.extend(word.to_ne_bytes());
    }
    net::bind(fd, &address)
}

/// What was counted on a socket.
///
/// # Errors
/// `ENOPROTOOPT`: no AF_XDP socket.
pub fn statistics(fd: BorrowedFd<'_>) -> Result<Statistics> {
    let mut bytes = [0u8; size_of::<libc::xdp_statistics>()];
    net::get(fd, libc::SOL_XDP, libc::XDP_STATISTICS, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    let word = |i: usize| words.get(i).map_or(0, |w| u64::from_ne_bytes(*w));
    Ok(Statistics { dropped: word(0) + word(1), full: word(3), invalid: word(2) })
}

impl Receiver {
    /// Copies frames that are there into `arena`, each to the beginning of a piece of `piece` bytes, and gives the kernel
    /// their room back. `lengths` gets the length of each; what is longer than a piece is cut.
    pub fn take(&mut self, arena: &mut [u8], piece: usize, lengths: &mut Vec<usize>) {
        lengths.clear();
        let room = u64::from(self.frames.sizes.frame);
        let filled = self.rx.filled() as usize;
        for to in arena.chunks_exact_mut(piece).take(filled) {
            let (at, rest) = (self.rx.address(), self.rx.slot(1).load(Ordering::Relaxed));
            self.rx.next();
            // `struct xdp_desc`: the length comes before the options.
            let [a, b, c, d, ..] = rest.to_ne_bytes();
            let len = u64::from(u32::from_ne_bytes([a, b, c, d]));
            let start = at & !(room - 1);
            let inside = start < self.frames.border() as u64 && at - start + len <= room;
            if !inside || self.fill.free() == 0 {
                continue;
            }
            let to = &mut to[..piece.min(len as usize)];
            self.frames.read(at as usize, to);
            lengths.push(to.len());
            self.fill.put(0, start);
            self.fill.next();
        }
        self.rx.publish(self.rx.consumer);
        self.fill.publish(self.fill.producer);
    }
}

impl Sender {
    /// Puts a frame, given in parts, among those to be sent by [`Sender::kick`]. False when there is no room.
    /// One that is longer than a frame may be is left out.
    pub fn put(&mut self, parts: &[IoSlice<'_>]) -> bool {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > self.frames.sizes.frame as usize {
            return true;
        }
        if self.free.is_empty() {
            self.reclaim();
        }
        if self.tx.free() == 0 {
            return false;
        }
        let Some(at) = self.free.pop() else { return false };
        let mut to = at as usize;
        for part in parts {
            self.frames.write(to, part);
            to += part.len();
        }
        let [a, b, c, d] = (len as u32).to_ne_bytes();
        self.tx.put(0, at);
        self.tx.put(1, u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]));
        self.tx.next();
        true
    }

    /// Takes the room of frames back that were sent.
    fn reclaim(&mut self) {
        let room = u64::from(self.frames.sizes.frame);
        let (first, end) = (self.frames.border() as u64, self.frames.memory.len as u64);
        for _ in 0..self.completion.filled() {
            let at = self.completion.address() & !(room - 1);
            self.completion.next();
            if (first..end).contains(&at) && self.free.len() < self.frames.sizes.send as usize {
                self.free.push(at);
            }
        }
        self.completion.publish(self.completion.consumer);
    }

    /// Has the kernel send what was put; it goes on with what it did not get done when it is called again.
    ///
    /// # Errors
    /// `EAGAIN`: there is more to be sent; `ENOBUFS`: it has no memory just now; `ENETDOWN`: the interface is down;
    /// `ENXIO`: the socket is not bound (any more).
    pub fn kick(&mut self, fd: BorrowedFd<'_>) -> Result<()> {
        self.tx.publish(self.tx.producer);
        net::send(fd, &[], &[], 0).map(drop)
    }
}

/// What an interface needs for an AF_XDP socket to receive its frames: a program that redirects the frames of each queue
/// to the socket which a map has for it. Frames of other queues go their way. The attachment ends when `link` is closed.
#[derive(Debug)]
pub struct Redirect {
    /// The program.
    pub program: OwnedFd,
    /// The map, from queue to socket.
    pub map: OwnedFd,
    /// The attachment.
    pub link: OwnedFd,
}

/// Queues that a [`Redirect`] has room for.
const QUEUES: u32 = 64;

impl Redirect {
    /// Attaches to interface `interface` of the calling thread's network namespace; with `generic` as any interface can,
    /// else as the kernel thinks best.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`; `EBUSY`: another program is there.
    pub fn attach(interface: u32, generic: bool) -> std::result::Result<Self, Refused> {
        const BPF_LINK_CREATE: i32 = 28;
        const BPF_XDP: u32 = 37;
        const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
        /// The part of `union bpf_attr` for `BPF_LINK_CREATE`.
        #[repr(C)]
        struct LinkAttr {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
        }
        let refused = |errno| Refused { errno, why: String::new() };
        let map = create_map(MapKind::Sockets, 4, 4, QUEUES).map_err(refused)?;
        let map_number = u64::from(raw(map.as_fd()));
        let program = [
            0x0000_0000_0010_1261,                    // r2 = ctx->rx_queue_index
            0x0000_0000_0000_1118 | map_number << 32, // r1 = map, in two instructions
            0,
            0x0000_0002_0000_03b7, // r3 = XDP_PASS, where the map has none
            0x0000_0033_0000_0085, // r0 = bpf_redirect_map(r1, r2, r3)
            0x0000_0000_0000_0095, // return r0
        ];
        let program = load(&program, Hook::Xdp, "airlock_xdp")?;
        let flags = if generic { XDP_FLAGS_SKB_MODE } else { 0 };
        let mut attr =
            LinkAttr { program: raw(program.as_fd()), target: interface, attach_type: BPF_XDP, flags };
        let link = bpf(BPF_LINK_CREATE, &mut attr).map(owned).map_err(refused)?;
        Ok(Self { program, map, link })
    }

    /// Gives `socket` the frames of a queue.
    ///
    /// # Errors
    /// `E2BIG`: a queue that there is no room for; `EOPNOTSUPP`: no AF_XDP socket.
    pub fn to(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<()> {
        set(self.map.as_fd(), &queue.to_ne_bytes(), &raw(socket).to_ne_bytes())
    }
}

/// A socket that has nothing yet.
///
/// # Errors
/// `EAFNOSUPPORT`: a kernel without AF_XDP; `EPERM` without `CAP_NET_RAW`.
pub fn socket() -> Result<OwnedFd> {
    net::socket(libc::AF_XDP, libc::SOCK_RAW, 0)
}

#[cfg(test)]
mod tests;
