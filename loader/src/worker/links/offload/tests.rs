#![allow(clippy::cloned_ref_to_slice_refs)]
use super::*;
use proptest::prelude::*;

/// The checksum as RFC 1071 describes it, word by word.
fn simple(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut total: u32 = 0;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A TCP packet with right checksums.
fn packet(v6: bool, flags: u8, sequence: u32, port: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let length = 32 + body.len();
    if v6 {
        frame.extend(ETH_IPV6);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((length as u16).to_be_bytes());
        frame.extend([TCP, 64]);
        frame.extend([0xfd; 16].iter().chain(&[0xfe; 16]));
    } else {
        frame.extend(ETH_IPV4);
        frame.extend([0x45, 0]);
        frame.extend(((length + 20) as u16).to_be_bytes());
        frame.extend([0, 7, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let value = !simple(&[&frame[14..34]]);
        put(&mut frame, 24, &value.to_be_bytes());
    }
    let tcp = frame.len();
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80]);
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 9, 0x80, flags, 1, 0, 0, 0, 0, 0]);
    frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    frame.extend(body);
    let value = !simple(&[&pseudo(&frame, tcp), &frame[tcp..]]);
    put(&mut frame, tcp + 16, &value.to_be_bytes());
    frame
}

fn pseudo(frame: &[u8], tcp: usize) -> Vec<u8> {
    let addresses = if frame[12] == 0x86 { &frame[22..54] } else { &frame[26..34] };
    [addresses, &((frame.len() - tcp) as u32).to_be_bytes(), &[0, 0, 0, TCP]].concat()
}

#[track_caller]
fn assert_sound(frame: &[u8]) {
    let tcp = if frame[12] == 0x86 { 54 } else { 34 };
    assert_eq!(simple(&[&pseudo(frame, tcp), &frame[tcp..]]), 0xffff, "TCP checksum");
    if tcp == 34 {
        assert_eq!(simple(&[&frame[14..34]]), 0xffff, "IP checksum");
        assert_eq!(word16(frame, 16), frame.len() - 14);
    } else {
        assert_eq!(word16(frame, 18), frame.len() - 54);
    }
}

fn cut(frame: &[u8], header: &Header) -> Vec<Vec<u8>> {
    let (mut frame, mut heads, mut ranges) = (frame.to_vec(), Vec::new(), Vec::new());
    plain(&mut frame, header, &mut heads, |head, body| ranges.push((head, body)));
    ranges.into_iter().map(|(head, body)| [&heads[head], &frame[body]].concat()).collect()
}

fn put_together(frames: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    gathered(frames, false)
}

fn gathered(frames: &[Vec<u8>], partial: bool) -> Vec<(Header, Vec<u8>)> {
    let whole = |packet: &Packet<'_>| {
        let bytes = packet.parts().flat_map(|p| p.to_vec()).collect::<Vec<u8>>();
        (Header::parse(&bytes).unwrap(), bytes[HEADER_LEN..].to_vec())
    };
    gather(frames.iter().map(Vec::as_slice), partial).iter().map(whole).collect()
}

#[test]
fn a_checksum_is_completed() {
    let right = packet(false, ACK, 1, 5, b"hello");
    let mut open = right.clone();
    let partial = simple(&[&pseudo(&right, 34)]);
    put(&mut open, 34 + 16, &partial.to_be_bytes());
    let header = Header { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Header::default() };
    assert_eq!(cut(&open, &header), std::slice::from_ref(&right));
    // Without the flag, nothing is touched.
    assert_eq!(cut(&open, &Header::default()), [open.clone()]);
    // Beyond the end there is nothing to complete.
    let wild = Header { csum_start: 9999, ..header };
    assert_eq!(cut(&open, &wild), Vec::<Vec<u8>>::new());
    assert_eq!(cut(&open, &Header { csum_offset: 9999, ..header }).len(), 1);
}

/// What Linux hands to an interface that completes checksums.
fn incomplete(mut frame: Vec<u8>) -> Vec<u8> {
    let tcp = if frame[12] == 0x86 { 54 } else { 34 };
    let partial = simple(&[&pseudo(&frame, tcp)]);
    put(&mut frame, tcp + 16, &partial.to_be_bytes());
    frame
}

#[test]
fn checksums_that_are_to_be_completed_yet_are_told() {
    for v6 in [false, true] {
        let tcp = if v6 { 54 } else { 34 };
        let right = packet(v6, ACK | PSH, 1, 5, b"hello");
        let open = incomplete(right.clone());
        let header = Header { flags: NEEDS_CSUM, csum_start: tcp, csum_offset: 16, ..Header::default() };
        assert_eq!(gathered(std::slice::from_ref(&open), true), [(header, open.clone())]);
        assert_eq!(cut(&open, &header), std::slice::from_ref(&right));
        // Complete ones, and those of peers that complete them, stay as they are.
        for (frame, partial) in [(&right, true), (&open, false)] {
            assert_eq!(gathered(std::slice::from_ref(frame), partial), [(Header::default(), frame.clone())]);
        }
        // Segments go together whether they are complete or not.
        let frames: Vec<_> = (0..4).map(|i| packet(v6, ACK, 1 + 5 * i, 5, b"hello")).collect();
        let mixed = frames
            .iter()
            .enumerate()
            .map(|(i, f)| if i % 2 == 0 { incomplete(f.clone()) } else { f.clone() });
        let mixed: Vec<_> = mixed.collect();
        let [(header, whole)] = gathered(&mixed, true).try_into().unwrap();
        // But for the numbers of IPv4's packets, which go up.
        let of_tcp =
            |frames: &[Vec<u8>]| frames.iter().map(|f| f[usize::from(tcp)..].to_vec()).collect::<Vec<_>>();
        assert_eq!(of_tcp(&cut(&whole, &header)), of_tcp(&frames));
        assert_eq!(gathered(&mixed, false).len(), 4);
    }
}

#[test]
fn what_is_not_what_it_says_is_dropped() {
    let frame = packet(false, ACK, 1, 5, &[1; 3000]);
    let good = Header { flags: 1, gso_type: 1, gso_size: 1000, csum_start: 34, csum_offset: 16, headers: 66 };
    assert_eq!(cut(&frame, &good).len(), 3);
    for bad in [
        Header { gso_size: 0, ..good },
        Header { csum_start: 20, ..good },
        Header { csum_start: 65_000, ..good },
        Header { gso_type: 3, ..good },
    ] {
        assert!(cut(&frame, &bad).is_empty(), "{bad:?}");
    }
    assert!(cut(&frame[..40], &good).is_empty());
    assert!(cut(&[], &good).is_empty());
}

#[test]
fn datagrams_of_udp_are_cut() {
    let mut frame = packet(false, ACK, 1, 5, &[]);
    frame.truncate(34);
    frame[23] = UDP;
    frame.extend([0, 5, 0, 7, 0, 0, 0, 0]);
    frame.extend((0..2500).map(|i| i as u8));
    let header =
        Header { flags: 1, gso_type: GSO_UDP, gso_size: 1200, csum_start: 34, csum_offset: 6, headers: 42 };
    let parts = cut(&frame, &header);
    assert_eq!(parts.iter().map(|p| word16(p, 38) - 8).collect::<Vec<_>>(), [1200, 1200, 100]);
    for part in &parts {
        let mut pseudo = pseudo(part, 34);
        pseudo[15] = UDP;
        assert_eq!(simple(&[&pseudo, &part[34..]]), 0xffff);
        assert_eq!(simple(&[&part[14..34]]), 0xffff);
    }
    let body: Vec<u8> = parts.iter().flat_map(|p| p[42..].to_vec()).collect();
    assert_eq!(body, frame[42..]);
}

#[test]
fn flags_are_of_the_first_or_the_last() {
    let frame = packet(true, ACK | PSH | FIN | CWR, u32::MAX - 5, 5, &[1; 2500]);
    let header = Header {
        flags: 1,
        gso_type: 4 | GSO_ECN,
        gso_size: 1000,
        csum_start: 54,
        csum_offset: 16,
        headers: 86,
    };
    let parts = cut(&frame, &header);
    let flags: Vec<u8> = parts.iter().map(|p| p[54 + 13]).collect();
    assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
    let numbers: Vec<u32> = parts.iter().map(|p| word32(p, 58)).collect();
    assert_eq!(numbers, [u32::MAX - 5, 994, 1994]);
    parts.iter().for_each(|p| assert_sound(p));
}

#[test]
fn only_what_belongs_together_is_put_together() {
    let one = packet(false, ACK, 0, 5, &[1; 1000]);
    let two = packet(false, ACK, 1000, 5, &[2; 1000]);
    let other = packet(false, ACK, 0, 6, &[3; 1000]);
    let count = |frames: &[Vec<u8>]| put_together(frames).len();
    assert_eq!(count(&[one.clone(), other.clone(), two.clone()]), 2);
    // A gap, a change of the window, a wrong checksum, a flag, an end of the data.
    assert_eq!(count(&[one.clone(), packet(false, ACK, 1001, 5, &[2; 1000])]), 2);
    let mut damaged = two.clone();
    damaged[100] ^= 1;
    assert_eq!(count(&[one.clone(), damaged]), 2);
    assert_eq!(count(&[one.clone(), packet(false, ACK | FIN, 1000, 5, &[2; 1000])]), 2);
    let pushed = packet(false, ACK | PSH, 1000, 5, &[2; 1000]);
    let third = packet(false, ACK, 2000, 5, &[2; 1000]);
    let out = put_together(&[one.clone(), pushed, third.clone()]);
    assert_eq!(out.len(), 2);
    assert_eq!(out[0].1[34 + 13], ACK | PSH);
    let small = packet(false, ACK, 1000, 5, &[2; 10]);
    assert_eq!(count(&[one.clone(), small, packet(false, ACK, 1010, 5, &[2; 1000])]), 2);
    // What is not TCP keeps its place.
    let arp = [&[0xff; 12][..], &[8, 6], &[0; 46]].concat();
    let out = put_together(&[one.clone(), two.clone(), arp.clone(), third]);
    assert_eq!(out.len(), 3);
    assert_eq!(out[1], (Header::default(), arp));
    // Padding of short frames is no data.
    let mut padded = packet(false, ACK, 0, 5, b"x");
    padded.extend([0; 20]);
    let out = put_together(&[padded.clone(), packet(false, ACK, 1, 5, b"y")]);
    assert_eq!(&out[0].1[66..], b"xy");
    // One that stands alone is left as it is.
    assert_eq!(put_together(std::slice::from_ref(&one)), [(Header::default(), one)]);
}

#[test]
fn a_packet_does_not_outgrow_its_length_field() {
    let frames: Vec<_> = (0..100).map(|i| packet(true, ACK, i * 1400, 5, &[1; 1400])).collect();
    let out = put_together(&frames);
    assert_eq!(out.iter().map(|(_, f)| f.len() - 86).sum::<usize>(), 140_000);
    assert!(out.iter().all(|(_, f)| f.len() - 14 <= PACKET_MAX) && out.len() == 3);
}

proptest! {
    #[test]
    fn cutting_and_putting_together_are_inverse(v6: bool, length in 1usize..60_000, size in 500u16..9000, sequence: u32) {
        let body: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        let whole = packet(v6, ACK | PSH, sequence, 5, &body);
        let header = Header {
            flags: 1, gso_type: if v6 { 4 } else { 1 }, gso_size: size,
            csum_start: if v6 { 54 } else { 34 }, csum_offset: 16, headers: 0,
        };
        let parts = cut(&whole, &header);
        prop_assert_eq!(parts.len(), length.div_ceil(size.into()));
        parts.iter().for_each(|p| assert_sound(p));
        let out = put_together(&parts);
        prop_assert_eq!(out.len(), 1);
        let (header, frame) = &out[0];
        let body_at = if v6 { 86 } else { 66 };
        prop_assert_eq!(&frame[body_at..], body.as_slice());
        if parts.len() > 1 {
            // It is as the kernel would have handed it to us.
            let again = cut(frame, header);
            prop_assert_eq!(again, parts);
        }
    }

    #[test]
    fn any_bytes_are_fine(frames: Vec<Vec<u8>>, header: [u8; HEADER_LEN], tail: Vec<u8>) {
        let header = Header::parse(&header).unwrap();
        prop_assert_eq!(Header::parse(&header.encode()), Some(header));
        // A good beginning gets bad input further.
        let mut near = packet(false, ACK, 1, 2, &tail);
        for (i, byte) in tail.iter().enumerate() {
            if let Some(b) = near.get_mut(12 + i * 3) { *b ^= byte & 0x11; }
        }
        cut(&near, &header);
        frames.iter().for_each(|f| drop(cut(f, &header)));
        let count: usize = frames.iter().map(Vec::len).sum();
        let out = put_together(&frames);
        prop_assert!(out.iter().map(|(_, f)| f.len()).sum::<usize>() <= count);
        put_together(&[near.clone(), near.clone()]);
        for frames in [&frames, &vec![near.clone(), near]] {
            let out = gathered(frames, true);
            prop_assert!(out.iter().map(|(_, f)| f.len()).sum::<usize>() <= frames.iter().map(Vec::len).sum());
            // Whatever is said of a frame, it can be completed.
            out.iter().for_each(|(header, frame)| assert!(!cut(frame, header).is_empty() || frame.is_empty()));
        }
    }
}
