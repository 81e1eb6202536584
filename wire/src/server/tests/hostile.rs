//! Peers that break the rules: they are told why if that is possible, disconnected, and leave nothing behind.

use super::*;
use crate::binary::{self, FrameKind};
use crate::json;

/// Sends raw bytes, closes the sending side, and returns everything that comes back.
fn exchange(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let (mut ours, theirs) = pair();
    server.serve_stream(theirs).unwrap();
    // The server may hang up before it has read everything.
    drop(ours.write_all(bytes));
    drop(ours.shutdown(Shutdown::Write));
    let mut back = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = ours.read(&mut chunk) {
        back.extend_from_slice(&chunk[..n]);
    }
    settle(server);
    back
}

#[test]
fn broken_json_gets_an_answer_and_the_connection_is_closed() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions { max_body: 1000, ..ServerOptions::default() });
    let good = br#"{"method":"Test.Null","arg":null}"#;
    let ok = br#"{"success":true,"err":"","result":{}}"#;
    let say = |bytes: &[u8]| String::from_utf8(exchange(&server, bytes)).unwrap();
    assert_eq!(
        say(&[b" \n", good.as_slice(), b"\n\n", good, b" "].concat()),
        String::from_utf8([ok, &ok[..]].concat()).unwrap()
    );
    for (bad, why) in [
        (&b"{\"method\":}"[..], "expected value"),
        (b"{]", "at line 1"),
        (
            br#"{"method":5,"arg":null}"#,
            "json: cannot unmarshal number into Go struct field clientCall.method of type string",
        ),
        (&b"{\"a\":".repeat(200), "nested deeper than 127"),
        (&b"[".repeat(5), ""),
        (b"GET / HTTP/1.1\r\n\r\n", ""),
        (b"{\"method\":\"Test.Null\"", ""),
        (&[b"{\"method\":\"".as_slice(), &[b'x'; 2000]].concat(), "longer than 1000 bytes"),
    ] {
        let said = say(&[bad, good].concat());
        match why {
            "" => assert_eq!(said, ""),
            why => {
                assert!(
                    said.starts_with(r#"{"success":false,"err":""#) && said.ends_with(r#","result":null}"#),
                    "{said}"
                );
                assert!(said.contains(why), "{said}");
                assert_eq!(said.matches("success").count(), 1, "{said}");
            }
        }
    }
    for (request, answer) in [
        (r#"{"method":"Test.Null"}"#, "unexpected end of JSON input"),
        (r#"{"arg":null}"#, "unknown method"),
        (r#"{}"#, "unknown method"),
        (r#"{"method":null,"arg":1}"#, "unknown method"),
        (r#"{"method":"Test.Echo","arg":7}"#, "json: cannot unmarshal number into Go value of type string"),
    ] {
        let expected = format!(r#"{{"success":false,"err":"{answer}","result":null}}"#);
        assert_eq!(
            say(format!("{request}{}", String::from_utf8_lossy(good)).as_bytes()),
            expected + r#"{"success":true,"err":"","result":{}}"#
        );
    }
    assert_eq!(
        say(br#"{"ARG":"x","Method":"Test.Echo","new":[1,{}]}"#),
        r#"{"success":true,"err":"","result":"x"}"#
    );
}

#[test]
fn the_deepest_json_fits_on_a_connections_stack() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions::default());
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |n| open.repeat(n) + "0" + &close.repeat(n);
        let request = |n| format!(r#"{{"method":"Test.Spec","arg":{{"process":{}}}}}"#, nested(n));
        let answer = exchange(&server, request(json::MAX_DEPTH - 2).as_bytes());
        assert_eq!(answer, br#"{"success":true,"err":"","result":true}"#);
        let answer = exchange(&server, request(json::MAX_DEPTH - 1).as_bytes());
        assert!(answer.starts_with(br#"{"success":false"#));
    }
}

#[test]
fn broken_frames_get_an_answer_and_the_connection_is_closed() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions { max_body: 1000, ..ServerOptions::default() });
    let frame = |patch: &[(usize, u8)], body: &[u8]| {
        let mut out = Vec::new();
        binary::begin(&mut out);
        out.extend_from_slice(body);
        binary::finish(&mut out, FrameKind::Request, 0).unwrap();
        patch.iter().for_each(|(at, value)| out[*at] = *value);
        out
    };
    for (bytes, why) in [
        (frame(&[(1, b'x')], b""), "not a message of either dialect"),
        (frame(&[(4, 2)], b""), "version 2"),
        (frame(&[(5, 9)], b""), "unknown kind of frame: 9"),
        (frame(&[(5, 2)], b""), "Reply frame came where a request was due"),
        (frame(&[(15, 1)], b""), "reserved bytes"),
        (frame(&[(6, 1)], b""), "declares 1 descriptors, but 0 came"),
        (frame(&[(7, 255)], b""), "declares 65280 descriptors"),
        (frame(&[(11, 255)], b""), "at most 1000 are allowed"),
        (frame(&[], b""), "method name"),
        (frame(&[], &[200, b'x']), "method name"),
        (frame(&[], &[2, 0xff, 0xff]), "method name"),
    ] {
        let back = exchange(&server, &bytes);
        let header = binary::Header::decode(back.first_chunk().unwrap(), 1000).unwrap();
        assert_eq!(header.kind, FrameKind::Error);
        let e: Error = crate::codec::decode(&back[16..]).unwrap();
        assert_eq!(e.kind, Kind::Protocol);
        assert!(e.message.contains(why), "{e}");
    }
    let mut body = Vec::new();
    crate::codec::encode_into("Test.Echo", &mut body).unwrap();
    for arg in [&[][..], &[5, b'x'], &[1, b'x', 0], &[253, 255, 255, 255, 255, 255, 255, 255, 127]] {
        let back = exchange(&server, &frame(&[], &[&body, arg].concat()));
        let e: Error = crate::codec::decode(&back[16..]).unwrap();
        assert_eq!(e.kind, Kind::Serde, "{e}");
    }
}

#[test]
fn a_flood_of_descriptors_is_refused_and_nothing_leaks() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions::default());
    let flood = files(128);
    for first in [&b"{"[..], &binary::MAGIC[..1]] {
        let (mut ours, theirs) = pair();
        server.serve_stream(theirs).unwrap();
        let mut sent = crate::scm::send_with_fds(&ours, first, &borrow(&flood));
        for _ in 0..100 {
            if sent.is_err() {
                break;
            }
            sent = crate::scm::send_with_fds(&ours, b" ", &borrow(&flood));
        }
        drop(ours.shutdown(Shutdown::Write));
        drop(ours.read(&mut [0; 1000]));
        settle(&server);
    }
    // Descriptors with white space between calls, and with the tail of a call, belong to nothing.
    let (mut ours, theirs) = pair();
    server.serve_stream(theirs).unwrap();
    crate::scm::send_with_fds(&ours, b"\n", &borrow(&flood)).unwrap();
    crate::scm::send_with_fds(&ours, br#"{"method":"Test.Bou"#, &borrow(&flood[..1])).unwrap();
    crate::scm::send_with_fds(&ours, br#"nce","arg":null}"#, &borrow(&flood)).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut reply = String::new();
    ours.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, r#"{"success":true,"err":"","result":1}"#);
    settle(&server);
}

#[test]
fn truncated_descriptors_are_a_protocol_error() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions::default());
    let many = files(129);
    let raw: Vec<i32> = many.iter().map(AsRawFd::as_raw_fd).collect();
    for first in [&br#"{"method":"Test.Bounce","arg":null}"#[..], &binary::MAGIC] {
        let (mut ours, theirs) = pair();
        server.serve_stream(theirs).unwrap();
        sendfd::SendWithFd::send_with_fd(&ours, first, &raw).unwrap();
        let mut back = Vec::new();
        drop(ours.read_to_end(&mut back));
        assert!(!String::from_utf8_lossy(&back).contains("true"), "{back:?}");
        settle(&server);
    }
}
