use super::*;
use crate::scm::send_with_fds;
use crate::testing::{LeakCheck, assert_same_files, borrow, files, pair};
use nix::sys::socket::{MsgFlags, recv};
use std::net::Shutdown;
use std::os::fd::AsRawFd;

const A: &[u8] = br#"{"method":"A","arg":null}"#;
const B: &[u8] = br#"{"method":"B","arg":"}{"}"#;

fn frame(body: &[u8], fds: usize) -> Vec<u8> {
    let mut out = Vec::new();
    binary::begin(&mut out);
    out.extend_from_slice(body);
    binary::finish(&mut out, FrameKind::Request, fds).unwrap();
    out
}

fn next(reader: &mut Reader, stream: &UnixStream) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let message = reader.next(stream)?;
    Ok(message.map(|m| (reader.body(&m).to_vec(), m.fds)))
}

/// Reads until the stream ends.
fn all(stream: &UnixStream, max_body: usize) -> Result<Vec<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut reader = Reader::new(max_body);
    let mut messages = Vec::new();
    while let Some(message) = next(&mut reader, stream)? {
        messages.push(message);
    }
    Ok(messages)
}

#[test]
fn descriptors_belong_to_the_message_they_were_sent_with() {
    let _leaks = LeakCheck::new();
    let fds = files(3);
    let (none, one, two) = (&fds[..0], &fds[..1], &fds[1..]);
    let binary = (frame(b"C", 0), frame(b"D", 1), frame(b"E", 2));
    let scripts: Vec<Vec<(&[u8], &[OwnedFd])>> = vec![
        vec![(A, none), (B, one)],
        vec![(A, one), (B, none)],
        vec![(A, one), (B, two), (A, none)],
        vec![(A, none), (&binary.1, one), (B, two), (&binary.0, none), (&binary.2, two), (A, none), (B, one)],
        vec![(&binary.2, two), (&binary.1, one), (&binary.0, none)],
    ];
    for script in scripts {
        let (sender, receiver) = pair();
        for (bytes, fds) in &script {
            send_with_fds(&sender, bytes, &borrow(fds)).unwrap();
        }
        drop(sender);
        let messages = all(&receiver, 1000).unwrap();
        assert_eq!(messages.len(), script.len());
        for ((body, received), (bytes, sent)) in messages.iter().zip(&script) {
            assert!(bytes.ends_with(body));
            assert_same_files(sent, received);
        }
    }
}

/// Sends `bytes` in two parts, the second only after the reader has taken the first.
fn send_in_two(sender: &UnixStream, receiver: &UnixStream, bytes: &[u8], cut: usize, fds: &[OwnedFd]) {
    send_with_fds(sender, &bytes[..cut], &borrow(fds)).unwrap();
    while recv(receiver.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok() {
        std::thread::yield_now();
    }
    send_with_fds(sender, &bytes[cut..], &[]).unwrap();
}

#[test]
fn messages_may_be_cut_anywhere() {
    let _leaks = LeakCheck::new();
    let fds = files(2);
    for bytes in [B.to_vec(), frame(b"body", 2)] {
        for cut in 1..bytes.len() {
            let (sender, receiver) = pair();
            std::thread::scope(|scope| {
                let reading = scope.spawn(|| next(&mut Reader::new(1000), &receiver));
                send_in_two(&sender, &receiver, &bytes, cut, &fds);
                let (body, received) = reading.join().unwrap().unwrap().unwrap();
                assert!(bytes.ends_with(&body), "cut at {cut}");
                assert_same_files(&fds, &received);
            });
        }
    }
}

#[test]
fn a_stream_that_ends_inside_a_message_is_disconnected() {
    let _leaks = LeakCheck::new();
    let fds = files(1);
    for bytes in [B.to_vec(), frame(b"body", 1)] {
        for cut in 1..bytes.len() {
            let (sender, receiver) = pair();
            send_with_fds(&sender, &bytes[..cut], &borrow(&fds)).unwrap();
            drop(sender);
            assert_eq!(all(&receiver, 1000).unwrap_err().kind, Kind::Disconnected, "cut at {cut}");
        }
    }
}

#[test]
fn memory_follows_what_has_arrived() {
    let _leaks = LeakCheck::new();
    let mut promise = frame(b"", 0);
    promise[8..12].copy_from_slice(&(16u32 << 20).to_le_bytes());
    let (sender, receiver) = pair();
    send_with_fds(&sender, &promise, &[]).unwrap();
    sender.shutdown(Shutdown::Write).unwrap();
    let mut reader = Reader::new(16 << 20);
    assert_eq!(reader.next(&receiver).unwrap_err().kind, Kind::Disconnected);
    assert!(reader.buf.capacity() <= 2 * binary::CHUNK, "{}", reader.buf.capacity());
    assert_eq!(Reader::new((16 << 20) - 1).next(&resend(&promise)).unwrap_err().kind, Kind::Protocol);
}

fn resend(bytes: &[u8]) -> UnixStream {
    let (sender, receiver) = pair();
    send_with_fds(&sender, bytes, &[]).unwrap();
    receiver
}

#[test]
fn memory_of_a_long_message_is_given_back() {
    let _leaks = LeakCheck::new();
    let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(3 << 20));
    let (sender, receiver) = pair();
    let mut reader = Reader::new(4 << 20);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send_with_fds(&sender, text.as_bytes(), &[]).unwrap();
            send_with_fds(&sender, A, &[]).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(next(&mut reader, &receiver).unwrap().unwrap().0, text.as_bytes());
        assert!(reader.buf.capacity() < 8 << 20);
        assert_eq!(next(&mut reader, &receiver).unwrap().unwrap().0, A);
        assert!(next(&mut reader, &receiver).unwrap().is_none());
    });
    assert!(reader.buf.capacity() <= KEEP, "{}", reader.buf.capacity());
}

#[test]
fn late_descriptors_break_a_binary_stream() {
    let _leaks = LeakCheck::new();
    let fds = files(1);
    let bytes = frame(b"body", 1);
    for (first, rest) in [(16, &bytes[16..]), (18, &bytes[18..])] {
        let (sender, receiver) = pair();
        send_with_fds(&sender, &bytes[..first], &[]).unwrap();
        send_with_fds(&sender, rest, &borrow(&fds)).unwrap();
        drop(sender);
        // One recvmsg(2) returns both parts: the descriptors might as well have come with the first byte.
        let read = all(&receiver, 1000);
        assert!(read.as_ref().is_ok_and(|m| m[0].1.len() == 1), "{read:?}");
        let (sender, receiver) = pair();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| all(&receiver, 1000));
            send_with_fds(&sender, &bytes[..first], &[]).unwrap();
            while recv(receiver.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).is_ok() {
                std::thread::yield_now();
            }
            send_with_fds(&sender, rest, &borrow(&fds)).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
            assert_eq!(reading.join().unwrap().unwrap_err().kind, Kind::Protocol);
        });
    }
}
