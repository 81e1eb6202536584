use super::*;
use crate::testing::{LeakCheck, assert_same_files, borrow, files, pair};

/// The framing is part of the protocol: these bytes are in docs/WIRE.md.
#[test]
fn the_framing_is_fixed() {
    let _leaks = LeakCheck::new();
    let (ours, mut theirs) = pair();
    let fds = files(2);
    send(&ours, "hi", &borrow(&fds)).unwrap();
    drop(ours);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut theirs, &mut bytes).unwrap();
    assert_eq!(bytes, b"\xA1alk\x01\x04\x02\x00\x03\x00\x00\x00\x00\x00\x00\x00\x02hi");
}

#[test]
fn frames_of_every_size_and_number_of_descriptors() {
    let _leaks = LeakCheck::new();
    for n in [0, 1, 128, 129, 256, 257, 384, 385, 512] {
        for length in [0, 1, 40 << 10, 3 << 20] {
            let (ours, theirs) = pair();
            let (body, fds) = (vec![7; length], files(n));
            let frame = std::thread::scope(|scope| {
                scope.spawn(|| {
                    send_frame(&ours, FrameKind::Reply, &body, &borrow(&fds)).unwrap();
                    send(&ours, &n, &[]).unwrap();
                });
                let frame = recv_frame(&theirs, Limits::default()).unwrap();
                assert_eq!(recv::<usize>(&theirs).unwrap().0, n, "the second frame is untouched");
                frame
            });
            assert_eq!((frame.kind, frame.body.len()), (FrameKind::Reply, length));
            assert_same_files(&fds, &frame.fds);
        }
    }
    let (ours, _theirs) = pair();
    assert_eq!(send(&ours, &0, &borrow(&files(513))).unwrap_err().message, "too many files");
}

#[test]
fn what_breaks_the_rules_is_refused_and_closed() {
    let _leaks = LeakCheck::new();
    let fds = files(3);
    let receive = |sent: usize, patch: &[(usize, u8)], limits: Limits| {
        let (ours, theirs) = pair();
        let mut out = Vec::new();
        begin(&mut out);
        out.push(0);
        finish(&mut out, FrameKind::Message, 3).unwrap();
        patch.iter().for_each(|(at, value)| out[*at] = *value);
        scm::send_with_fds(&ours, &out, &borrow(&fds[..sent])).unwrap();
        drop(ours);
        recv_frame(&theirs, limits).map(|f| f.fds.len())
    };
    let limits = Limits::default();
    assert_eq!(receive(3, &[], limits), Ok(3));
    let refused = [
        (receive(2, &[], limits), "declares 3 descriptors, but 2 came"),
        (receive(0, &[], limits), "declares 3 descriptors, but 0 came"),
        (receive(3, &[(6, 0)], limits), "declares 0 descriptors, but 3 came"),
        (receive(3, &[], Limits { max_fds: 2, ..limits }), "more than 2 descriptors"),
        (receive(3, &[], Limits { max_body: 0, ..limits }), "at most 0 are allowed"),
        (receive(3, &[(0, b'{')], limits), "not a message of either dialect"),
        (receive(3, &[(7, 3)], limits), "declares 771 descriptors"),
    ];
    for (result, why) in refused {
        let e = result.unwrap_err();
        assert_eq!(e.kind, Kind::Protocol);
        assert!(e.message.contains(why), "{e}");
    }
    assert_eq!(receive(3, &[(8, 2)], limits).unwrap_err().kind, Kind::Disconnected);
    let (ours, theirs) = pair();
    send_frame(&ours, FrameKind::Request, b"", &[]).unwrap();
    assert_eq!(recv::<()>(&theirs).unwrap_err().kind, Kind::Protocol);
    drop(ours);
    assert_eq!(recv::<()>(&theirs).unwrap_err().kind, Kind::Disconnected);
}

#[test]
fn descriptors_with_the_body_are_refused() {
    let _leaks = LeakCheck::new();
    let (ours, theirs) = pair();
    let header = header(FrameKind::Message, 1, 0).unwrap();
    scm::send_with_fds(&ours, &header, &[]).unwrap();
    scm::send_with_fds(&ours, b"x", &borrow(&files(1))).unwrap();
    assert_eq!(recv_frame(&theirs, Limits::default()).unwrap_err(), late_descriptors());
}
