//! Round trips of the protocol against bare socket ping-pongs: `cargo bench -p airlock-tests --bench wire`.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::bench::{Times, report};
use airlock_wire::api::types::Empty;
use airlock_wire::scm;
use airlock_wire::{Client, Dialect, Registry, Server, ServerOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

airlock_wire::methods! {
    receiver "Bench";
    /// Does nothing.
    Null: Empty => Empty;
    /// Sends the descriptors back.
    Mirror: Empty => Empty, fds "in and out: any";
}

const ROUNDS: usize = 20_000;

fn time(name: &str, mut once: impl FnMut()) -> Times {
    for _ in 0..200 {
        once();
    }
    let mut sorted: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            once();
            start.elapsed()
        })
        .collect();
    sorted.sort_unstable();
    Times { name: name.to_owned(), sorted }
}

fn server() -> Server {
    let mut registry = Registry::new();
    registry.on::<Null>(|_, Empty {}| Ok(Empty {}));
    registry.on::<Mirror>(|call, Empty {}| {
        for fd in call.take_fds() {
            call.reply_fd(fd);
        }
        Ok(Empty {})
    });
    Server::new(registry, ServerOptions::default())
}

/// Request and reply as long as a null call's in the binary dialect.
const REQUEST: usize = 16 + 1 + "Bench.Null".len();
const REPLY: usize = 16;

fn ping_pong() -> Times {
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while theirs.read(&mut buffer).is_ok_and(|n| n > 0) {
            let _ = theirs.write_all(&buffer[..REPLY]);
        }
    });
    let mut buffer = [0; 256];
    time("raw socketpair ping-pong of the same size", || {
        ours.write_all(&buffer[..REQUEST]).unwrap();
        ours.read_exact(&mut buffer[..REPLY]).unwrap();
    })
}

fn ping_pong_fds(fds: &[OwnedFd]) -> Times {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut buffer = Vec::with_capacity(256);
        let mut got = Vec::new();
        while scm::recv_with_fds(&theirs, &mut buffer, 256, &mut got).is_ok_and(|n| n > 0) {
            let refs: Vec<_> = got.iter().map(AsFd::as_fd).collect();
            let _ = scm::send_with_fds(&theirs, &[0; REPLY], &refs);
            buffer.clear();
            got.clear();
        }
    });
    let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let (mut buffer, mut got) = (Vec::with_capacity(256), Vec::new());
    time("raw SCM_RIGHTS ping-pong, 3 descriptors each way", || {
        scm::send_with_fds(&ours, &[0; REQUEST], &refs).unwrap();
        scm::recv_with_fds(&ours, &mut buffer, 256, &mut got).unwrap();
        assert_eq!(got.len(), 3);
        buffer.clear();
        got.clear();
    })
}

fn main() {
    let server = server();
    let connect = |dialect| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        server.serve_stream(theirs).unwrap();
        Client::from_stream(ours, dialect)
    };
    let mut binary = connect(Dialect::Binary);
    let mut json = connect(Dialect::Json);
    let null = [
        time("null call, binary", || drop(binary.call::<Null>(&Empty {}, &[]).unwrap())),
        ping_pong(),
        time("null call, JSON", || drop(json.call::<Null>(&Empty {}, &[]).unwrap())),
    ];
    report("Null call, one connection", &null);

    let fds: Vec<OwnedFd> = (0..3).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
    let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let with_fds = [
        time("call with 3 descriptors each way, binary", || {
            assert_eq!(binary.call::<Mirror>(&Empty {}, &refs).unwrap().fds.len(), 3);
        }),
        ping_pong_fds(&fds),
        time("call with 3 descriptors each way, JSON", || {
            assert_eq!(json.call::<Mirror>(&Empty {}, &refs).unwrap().fds.len(), 3);
        }),
    ];
    report("Call with 3 descriptors each way", &with_fds);
}
