//! What a network card does for Linux, for peers that take plain frames only: cuts large TCP packets into segments and
//! completes checksums on the way out, puts segments together again on the way in. A system call for each packet costs
//! far more than either.
//!
//! Frames are those of tap devices, with an offload header before each (`struct virtio_net_hdr`, VIRTIO 1.3 section
//! 5.1.6, the legacy form in native byte order). Everything here is hostile input: what cannot be understood goes on as
//! it is, or is dropped.
#![forbid(unsafe_code)]

use std::io::IoSlice;
use std::ops::Range;

/// Bytes of an offload header.
pub const HEADER_LEN: usize = 10;
/// The checksum is to be completed.
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Beside a kind: the packet carries congestion marks.
const GSO_ECN: u8 = 0x80;

const ETHERNET: usize = 14;
const ETH_IPV4: [u8; 2] = [0x08, 0x00];
const ETH_IPV6: [u8; 2] = [0x86, 0xdd];
const ETH_VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_MIN: usize = 20;
const UDP_HEADER: usize = 8;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;
/// Longest headers of a frame: Ethernet with two VLAN tags, IP with options, TCP with options.
const HEADERS_MAX: usize = ETHERNET + 8 + 60 + 60;
/// Longest packet that an IP header can describe.
const PACKET_MAX: usize = 65_535;
/// Connections that are put together at the same time.
const GROUPS: usize = 8;

/// An offload header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    headers: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    /// Reads the header before a frame; `None` when there are too few bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [flags, gso_type, rest @ ..] = bytes.first_chunk::<HEADER_LEN>()?;
        let word = |i: usize| u16::from_ne_bytes([rest[i], rest[i + 1]]);
        Some(Self {
            flags: *flags,
            gso_type: *gso_type,
            headers: word(0),
            gso_size: word(2),
            csum_start: word(4),
            csum_offset: word(6),
        })
    }

    /// The header of a frame whose checksum of TCP or UDP is still that of the pseudo header, as Linux hands it to
    /// interfaces that complete it. A complete one is that as well once in 65536 times, which does no harm: the checksum
    /// of such a packet is just not looked at.
    fn of_incomplete(frame: &[u8]) -> Option<Self> {
        let (ip, v6) = network_layer(frame)?;
        let head = frame.get(ip..ip + if v6 { IPV6 } else { IPV4 })?;
        let (protocol, transport, end) = if v6 {
            (head[6], ip + IPV6, ip + IPV6 + word16(head, 4))
        } else if word16(head, 6) & 0x3fff == 0 {
            (head[9], ip + usize::from(head[0] & 15) * 4, ip + word16(head, 2))
        } else {
            return None;
        };
        let at = match protocol {
            TCP => 16,
            UDP => 6,
            _ => return None,
        };
        let addresses = if v6 { &head[8..40] } else { &head[12..20] };
        let length = end.checked_sub(transport).filter(|_| end <= frame.len())?;
        let pseudo = fold(pseudo_header(addresses, protocol, length)).to_ne_bytes();
        let field = frame.get(transport..end)?.get(at..at + 2)?;
        (field == pseudo).then_some(Self {
            flags: NEEDS_CSUM,
            csum_start: transport as u16,
            csum_offset: at as u16,
            ..Self::default()
        })
    }

    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..2].copy_from_slice(&[self.flags, self.gso_type]);
        for (i, word) in
            [self.headers, self.gso_size, self.csum_start, self.csum_offset].into_iter().enumerate()
        {
            bytes[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Adds `bytes` to an Internet checksum (RFC 1071) that is not folded yet, as 16-bit words in native order.
fn sum(bytes: &[u8], start: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = start;
    // Fewer than 2^32 words of 32 bits each: no overflow. The compiler does several at once.
    for block in words.chunks(1 << 16) {
        total += block.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum::<u64>();
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The bytes of the checksum field for what sums up to `total`.
fn checksum(total: u64) -> [u8; 2] {
    (!fold(total)).to_ne_bytes()
}

/// Part of a checksum: addresses, protocol and length, which TCP and UDP cover beside themselves.
fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    let mut words = [0u8; 8];
    words[..4].copy_from_slice(&(length as u32).to_be_bytes());
    words[7] = protocol;
    sum(&words, sum(addresses, 0))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}

fn word16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Where the network layer's header begins, behind VLAN tags; `None` for what is not IP.
fn network_layer(frame: &[u8]) -> Option<(usize, bool)> {
    let mut at = ETHERNET;
    loop {
        let kind: [u8; 2] = frame.get(at - 2..at)?.try_into().ok()?;
        match kind {
            ETH_IPV4 => return Some((at, false)),
            ETH_IPV6 => return Some((at, true)),
            kind if ETH_VLAN.contains(&kind) && at < ETHERNET + 8 => at += 4,
            _ => return None,
        }
    }
}

/// Makes a frame from a tap one that anybody understands. `add` gets the frames that it comes to, each as a range of
/// `heads`, to which headers are appended, and a range of `frame`. Nothing is added for a frame that makes no sense.
pub fn plain(
    frame: &mut [u8],
    header: &Header,
    heads: &mut Vec<u8>,
    mut add: impl FnMut(Range<usize>, Range<usize>),
) {
    let gso = header.gso_type & !GSO_ECN;
    if gso == GSO_NONE {
        let at = usize::from(header.csum_start) + usize::from(header.csum_offset);
        if header.flags & NEEDS_CSUM != 0 {
            let Some(covered) = frame.get(usize::from(header.csum_start)..) else { return };
            let mut value = checksum(sum(covered, 0));
            if value == [0, 0] {
                // Zero would say that UDP has none; for TCP both mean the same.
                value = [0xff, 0xff];
            }
            put(frame, at, &value);
        }
        return add(heads.len()..heads.len(), 0..frame.len());
    }
    if matches!(gso, GSO_TCPV4 | GSO_TCPV6 | GSO_UDP) {
        let _ = segments(frame, header, gso == GSO_UDP, heads, &mut add);
    }
}

/// Cuts a TCP packet, or what a program has handed over as one packet for many UDP datagrams. `None` when it is not what
/// its header says.
fn segments(
    frame: &[u8],
    header: &Header,
    udp: bool,
    heads: &mut Vec<u8>,
    add: &mut impl FnMut(Range<usize>, Range<usize>),
) -> Option<()> {
    let (ip, v6) = network_layer(frame)?;
    let transport = usize::from(header.csum_start);
    let size = usize::from(header.gso_size);
    let least = transport + if udp { UDP_HEADER } else { TCP_MIN };
    if transport < ip + if v6 { IPV6 } else { IPV4 } || frame.len() < least || size == 0 {
        return None;
    }
    let end = if udp { least } else { transport + usize::from(frame[transport + 12] >> 4) * 4 };
    if end < least || end > frame.len() || end > HEADERS_MAX {
        return None;
    }
    let addresses = if v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    let id = word16(frame, ip + 4) as u16;
    let (protocol, checksum_at) = if udp { (UDP, transport + 6) } else { (TCP, transport + 16) };
    let mut at = end;
    let mut number = 0u16;
    loop {
        let body = at..frame.len().min(at + size);
        let last = body.end == frame.len();
        let start = heads.len();
        heads.extend_from_slice(&frame[..end]);
        let head = &mut heads[start..];
        let length = end - transport + body.len();
        if v6 {
            put(head, ip + 4, &((length + transport - ip - IPV6) as u16).to_be_bytes());
        } else {
            put(head, ip + 2, &((length + transport - ip) as u16).to_be_bytes());
            put(head, ip + 4, &id.wrapping_add(number).to_be_bytes());
            put(head, ip + 10, &[0, 0]);
            let value = checksum(sum(&head[ip..transport], 0));
            put(head, ip + 10, &value);
        }
        if udp {
            put(head, transport + 4, &(length as u16).to_be_bytes());
        } else {
            let sequence = word32(frame, transport + 4).wrapping_add((at - end) as u32);
            put(head, transport + 4, &sequence.to_be_bytes());
            let not_first = if number > 0 { CWR } else { 0 };
            let not_last = if last { 0 } else { FIN | PSH };
            head[transport + 13] &= !not_first & !not_last;
        }
        put(head, checksum_at, &[0, 0]);
        let covered = sum(&head[transport..], pseudo_header(&frame[addresses.clone()], protocol, length));
        let mut value = checksum(sum(&frame[body.clone()], covered));
        if value == [0, 0] {
            // Zero would say that UDP has none; for TCP both mean the same.
            value = [0xff, 0xff];
        }
        put(head, checksum_at, &value);
        add(start..heads.len(), body.clone());
        if last {
            return Some(());
        }
        at = body.end;
        number = number.wrapping_add(1);
    }
}

/// A TCP segment that may be put together with others.
struct Segment<'a> {
    frame: &'a [u8],
    v6: bool,
    /// Where the TCP header begins; the IP header is right behind Ethernet's.
    tcp: usize,
    /// Where the data begins, and where the packet ends: there may be padding behind it.
    data: Range<usize>,
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let (ip, v6) = network_layer(frame)?;
        let fixed = ip + if v6 { IPV6 } else { IPV4 };
        if ip != ETHERNET || frame.len() < fixed + TCP_MIN {
            return None;
        }
        let end = if v6 {
            if frame[ip + 6] != TCP {
                return None;
            }
            fixed + word16(frame, ip + 4)
        } else {
            // No options, no fragments.
            if frame[ip] != 0x45 || frame[ip + 9] != TCP || word16(frame, ip + 6) & 0x3fff != 0 {
                return None;
            }
            ip + word16(frame, ip + 2)
        };
        let data = fixed + usize::from(frame[fixed + 12] >> 4) * 4;
        let flags = frame[fixed + 13];
        if data < fixed + TCP_MIN || data >= end || end > frame.len() || flags & !PSH != ACK {
            return None;
        }
        Some(Self { frame, v6, tcp: fixed, data: data..end })
    }

    fn addresses(&self) -> &'a [u8] {
        if self.v6 { &self.frame[ETHERNET + 8..self.tcp] } else { &self.frame[ETHERNET + 12..self.tcp] }
    }

    fn sequence(&self) -> u32 {
        word32(self.frame, self.tcp + 4)
    }

    fn pushes(&self) -> bool {
        self.frame[self.tcp + 13] & PSH != 0
    }

    fn body(&self) -> &'a [u8] {
        &self.frame[self.data.clone()]
    }

    fn same_connection(&self, other: &Self) -> bool {
        let ports = |s: &Self| word32(s.frame, s.tcp);
        self.v6 == other.v6 && ports(self) == ports(other) && self.addresses() == other.addresses()
    }

    /// All that must be equal in the headers of what is put together is.
    fn same_headers(&self, other: &Self) -> bool {
        // What counts packets and bytes may differ: length, identification and checksum of IP; sequence, flags (which
        // were looked at) and checksum of TCP.
        let ip: &[Range<usize>] = if self.v6 { &[0..4, 6..8] } else { &[0..2, 6..10] };
        let tcp = [8..13, 14..16, 18..self.data.start - self.tcp];
        self.data.start == other.data.start
            && self.frame[..ETHERNET] == other.frame[..ETHERNET]
            && ip.iter().all(|r| {
                self.frame[ETHERNET + r.start..ETHERNET + r.end]
                    == other.frame[ETHERNET + r.start..ETHERNET + r.end]
            })
            && tcp.iter().all(|r| {
                self.frame[self.tcp + r.start..self.tcp + r.end]
                    == other.frame[self.tcp + r.start..self.tcp + r.end]
            })
    }

    /// Its checksums are right: put together, nobody would see that one was not. With `partial`, one that is to be
    /// completed yet is as good.
    fn is_sound(&self, partial: bool) -> bool {
        let covered = &self.frame[self.tcp..self.data.end];
        let ip = self.v6 || fold(sum(&self.frame[ETHERNET..self.tcp], 0)) == 0xffff;
        let pseudo = pseudo_header(self.addresses(), TCP, covered.len());
        ip && (partial && covered[16..18] == fold(pseudo).to_ne_bytes()
            || fold(sum(covered, pseudo)) == 0xffff)
    }
}

/// Segments of one connection, one behind the other.
struct Group<'a> {
    first: Segment<'a>,
    more: Vec<&'a [u8]>,
    length: usize,
    next: u32,
    /// The last one says that the data shall be delivered at once.
    pushes: bool,
    /// Nothing can follow.
    full: bool,
    /// See [`gather`].
    partial: bool,
}

impl<'a> Group<'a> {
    fn new(first: Segment<'a>, partial: bool) -> Self {
        let length = first.data.len();
        let next = first.sequence().wrapping_add(length as u32);
        let full = first.pushes() || !first.is_sound(partial);
        Self { first, more: Vec::new(), length, next, pushes: false, full, partial }
    }

    /// Takes `segment` in if it is what comes next.
    fn take(&mut self, segment: &Segment<'a>) -> bool {
        let size = self.first.data.len();
        let body = segment.body();
        let fits = !self.full
            && segment.sequence() == self.next
            && body.len() <= size
            && self.first.data.start - ETHERNET + self.length + body.len() <= PACKET_MAX
            && self.first.same_headers(segment)
            && segment.is_sound(self.partial);
        if fits {
            self.more.push(body);
            self.length += body.len();
            self.next = self.next.wrapping_add(body.len() as u32);
            self.pushes = segment.pushes();
            self.full = body.len() < size || self.pushes;
        }
        fits
    }

    fn finish(self) -> Packet<'a> {
        let Self { first, mut more, length, pushes, partial, .. } = self;
        if more.is_empty() {
            return Packet::plain(first.frame, partial);
        }
        let mut head = [0; HEADER_LEN].to_vec();
        head.extend_from_slice(&first.frame[..first.data.start]);
        let frame = &mut head[HEADER_LEN..];
        let (ip, tcp) = (ETHERNET, first.tcp);
        let transport = frame.len() - tcp + length;
        if first.v6 {
            put(frame, ip + 4, &(transport as u16).to_be_bytes());
        } else {
            put(frame, ip + 2, &((transport + IPV4) as u16).to_be_bytes());
            put(frame, ip + 10, &[0, 0]);
            let value = checksum(sum(&frame[ip..tcp], 0));
            put(frame, ip + 10, &value);
        }
        if pushes {
            frame[tcp + 13] |= PSH;
        }
        let partial = fold(pseudo_header(first.addresses(), TCP, transport));
        put(frame, tcp + 16, &partial.to_ne_bytes());
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: if first.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            headers: frame.len() as u16,
            gso_size: first.data.len() as u16,
            csum_start: tcp as u16,
            csum_offset: 16,
        };
        put(&mut head, 0, &header.encode());
        more.insert(0, first.body());
        Packet { head, bodies: more }
    }
}

/// A frame in parts, with its offload header.
#[derive(Debug)]
pub struct Packet<'a> {
    head: Vec<u8>,
    bodies: Vec<&'a [u8]>,
}

impl<'a> Packet<'a> {
    fn plain(frame: &'a [u8], partial: bool) -> Self {
        let header = if partial { Header::of_incomplete(frame) } else { None };
        Self { head: header.map_or(Vec::new(), |h| h.encode().to_vec()), bodies: vec![frame] }
    }

    /// Its parts, for a system call that gathers them.
    pub fn parts(&self) -> impl Iterator<Item = IoSlice<'_>> {
        let head = if self.head.is_empty() { &NO_OFFLOAD } else { self.head.as_slice() };
        std::iter::once(IoSlice::new(head)).chain(self.bodies.iter().map(|body| IoSlice::new(body)))
    }
}

/// The header of a frame that is as it is.
const NO_OFFLOAD: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// Puts TCP segments together. Those of one connection stay in their order, in packets that have an offload header each.
/// With `partial` the frames come from where Linux has not completed checksums yet.
pub fn gather<'a>(frames: impl Iterator<Item = &'a [u8]>, partial: bool) -> Vec<Packet<'a>> {
    let mut done = Vec::new();
    let mut groups: Vec<Group<'a>> = Vec::new();
    for frame in frames {
        let Some(segment) = Segment::parse(frame) else {
            // It may end, or begin, one of the connections.
            done.extend(groups.drain(..).map(Group::finish));
            done.push(Packet::plain(frame, partial));
            continue;
        };
        if let Some(i) = groups.iter().position(|g| g.first.same_connection(&segment)) {
            if groups[i].take(&segment) {
                continue;
            }
            done.push(groups.remove(i).finish());
        } else if groups.len() == GROUPS {
            done.push(groups.remove(0).finish());
        }
        groups.push(Group::new(segment, partial));
    }
    done.extend(groups.into_iter().map(Group::finish));
    done
}

#[cfg(test)]
mod tests;
