//! Sockets are made, saved, and made again in another network namespace, all in this process.
#![allow(clippy::unwrap_used)]

use super::Sockets;
use crate::checkpoint::dump;
use crate::checkpoint::inet::address;
use crate::checkpoint::inet::repair::{Info, state};
use crate::checkpoint::inet::testing::in_netns;
use crate::checkpoint::order::{DumpContainer, DumpOrder, RestoreContainer, RestoreOrder};
use crate::checkpoint::restore;
use crate::checkpoint::state::{ContainerState, FileKind, FileState, SandboxState, SocketState, TcpPeer};
use crate::procfs::ProcFs;
use crate::sys::{misc, net, process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const OWN: &str = r#"{"ociVersion":"1.0.2","linux":{"namespaces":[{"type":"network"}]}}"#;

fn procfs() -> ProcFs {
    ProcFs::new(std::fs::File::open("/proc").unwrap().into())
}

/// What a dump of these sockets says. `after` runs before the containers would go on.
struct Saved {
    state: SandboxState,
    refusals: Vec<String>,
    sockets: dump::net::Sockets,
}

fn save(fds: &[BorrowedFd<'_>], tcp_established: bool) -> Saved {
    let container =
        DumpContainer { cid: "c".into(), spec: OWN.into(), init: misc::gettid(), ..DumpContainer::default() };
    let order = DumpOrder { containers: vec![container], tcp_established, ..DumpOrder::default() };
    let mut ctx = dump::context::Context::new(order, procfs(), Vec::new());
    ctx.state.containers.push(ContainerState::default());
    let mut sockets = dump::net::Sockets::new(&mut ctx).unwrap();
    let mut refusals = Vec::new();
    for fd in fds {
        match sockets.inspect(&procfs(), *fd) {
            Ok(socket) => {
                ctx.state.files.push(FileState { kind: FileKind::Socket(socket), ..FileState::default() })
            }
            Err(refusal) => refusals.push(format!("{}: {}", refusal.kind, refusal.what)),
        }
    }
    sockets.link(&mut ctx);
    sockets.settle(&mut ctx);
    // Through the image.
    let text = serde_json::to_string(&ctx.state).unwrap();
    Saved { state: serde_json::from_str(&text).unwrap(), refusals, sockets }
}

fn revive(state: SandboxState, tcp_established: bool) -> (Vec<OwnedFd>, Vec<String>) {
    let container = RestoreContainer { cid: "c".into(), init: misc::gettid(), ..RestoreContainer::default() };
    let order = RestoreOrder { containers: vec![container], tcp_established, ..RestoreOrder::default() };
    let files = state.files.len() as u32;
    let mut ctx = restore::context::Context::new(order, procfs(), state);
    let sockets = Sockets::make(&mut ctx).unwrap();
    let fds = (0..files).map(|f| sockets.get(f).unwrap().try_clone_to_owned().unwrap()).collect();
    sockets.finish(&mut ctx).unwrap();
    (fds, ctx.warnings)
}

fn new_netns() {
    process::unshare(libc::CLONE_NEWNET).unwrap();
    misc::loopback_up().unwrap();
}

fn socket(state: &SandboxState, file: usize) -> &SocketState {
    match &state.files[file].kind {
        FileKind::Socket(s) => s,
        _ => panic!("no socket"),
    }
}

fn stream(fd: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    stream.set_write_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    stream
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(2000u16)).unwrap() > 0
}

/// Everything that can be read until the end.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    data
}

fn text(mut stream: &TcpStream, len: usize) -> String {
    let mut data = vec![0; len];
    stream.read_exact(&mut data).unwrap();
    String::from_utf8(data).unwrap()
}

/// Connected sockets: a listener, a client, and its accepted end.
fn connected(at: &str) -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind(at).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    (listener, client, server)
}

#[test]
fn a_connection_goes_on_with_data_on_its_way_both_ways() {
    in_netns("a_connection_goes_on_with_data_on_its_way_both_ways", || {
        for at in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            new_netns();
            let (listener, mut client, mut server) = connected(at);
            client.set_nodelay(true).unwrap();
            client.write_all(b"question").unwrap();
            server.write_all(b"answer").unwrap();
            let before = (listener.local_addr().unwrap(), client.local_addr().unwrap());
            let saved = save(&[listener.as_fd(), client.as_fd(), server.as_fd()], false);
            assert_eq!(saved.refusals, Vec::<String>::new());
            saved.sockets.release(false);
            // The original goes on unharmed.
            assert_eq!(text(&server, 8), "question");
            client.write_all(b"more").unwrap();
            assert_eq!(text(&server, 4), "more");
            assert_eq!(text(&client, 6), "answer");

            new_netns();
            let (fds, warnings) = revive(saved.state, false);
            assert_eq!(warnings, Vec::<String>::new());
            let mut fds = fds.into_iter();
            let listener = TcpListener::from(fds.next().unwrap());
            let (mut client, mut server) = (stream(fds.next().unwrap()), stream(fds.next().unwrap()));
            assert_eq!((listener.local_addr().unwrap(), client.local_addr().unwrap()), before);
            assert_eq!(client.peer_addr().unwrap(), before.0);
            assert!(client.nodelay().unwrap() && !server.nodelay().unwrap());
            assert_eq!(text(&server, 8), "question");
            assert_eq!(text(&client, 6), "answer");
            for _ in 0..3 {
                let data = vec![b'x'; 300_000];
                client.write_all(&data).unwrap();
                assert_eq!(text(&server, data.len()).len(), data.len());
                server.write_all(b"ok").unwrap();
                assert_eq!(text(&client, 2), "ok");
            }
            // New connections are taken too.
            listener.set_nonblocking(false).unwrap();
            drop(TcpStream::connect(before.0).unwrap());
            assert_eq!(rest(&listener.accept().unwrap().0), b"");
            drop(client);
            assert_eq!(rest(&server), b"");
        }
    });
}

#[test]
fn full_queues_arrive_whole() {
    in_netns("full_queues_arrive_whole", || {
        let (_listener, client, server) = connected("127.0.0.1:0");
        // Until neither end takes any more: the reader's window is closed, and much is unsent.
        let fill = |stream: &TcpStream, byte: u8| {
            stream.set_nonblocking(true).unwrap();
            let mut sent = 0;
            let block: Vec<u8> = (0..65536usize).map(|i| (i / 7) as u8 ^ byte).collect();
            while let Ok(n) = (&*stream).write(&block[sent % block.len()..]) {
                sent += n;
            }
            (sent, block)
        };
        let ((to_server, one), (to_client, two)) = (fill(&client, 1), fill(&server, 2));
        assert!(to_server > 500_000, "{to_server}");
        let saved = save(&[client.as_fd(), server.as_fd()], false);
        let tcp = socket(&saved.state, 0).tcp.as_ref().unwrap();
        assert!(tcp.unsent > 0 && tcp.peer == TcpPeer::Inside);
        saved.sockets.release(false);

        new_netns();
        let (fds, warnings) = revive(saved.state, false);
        assert_eq!(warnings, Vec::<String>::new());
        let mut fds = fds.into_iter();
        let (client, server) = (stream(fds.next().unwrap()), stream(fds.next().unwrap()));
        let check = |stream: &TcpStream, len: usize, block: &[u8]| {
            let mut data = vec![0; len];
            let mut all = stream;
            all.read_exact(&mut data).unwrap();
            assert!(data.iter().enumerate().all(|(i, b)| *b == block[i % block.len()]));
        };
        check(&server, to_server, &one);
        check(&client, to_client, &two);
        client.set_nonblocking(true).unwrap();
        assert_eq!((&client).read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn half_closed_connections_stay_half_closed() {
    in_netns("half_closed_connections_stay_half_closed", || {
        let (_l, mut client, mut server) = connected("127.0.0.1:0");
        client.write_all(b"last words").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.write_all(b"still").unwrap();
        let (_l2, client2, server2) = connected("127.0.0.1:0");
        client2.shutdown(Shutdown::Write).unwrap();
        server2.shutdown(Shutdown::Write).unwrap();
        let saved = save(&[client.as_fd(), server.as_fd(), client2.as_fd(), server2.as_fd()], false);
        let states: Vec<u8> = (0..4).map(|i| socket(&saved.state, i).tcp.as_ref().unwrap().state).collect();
        assert_eq!(states[..2], [state::FIN_WAIT2, state::CLOSE_WAIT]);
        saved.sockets.release(false);
        new_netns();
        let (fds, _) = revive(saved.state, false);
        // The acknowledgement of a FIN may take its time.
        let now = |i: usize| Info::of(fds[i].as_fd()).unwrap().state;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while [now(0), now(1)] != states[..2] {
            assert!(std::time::Instant::now() < deadline, "{} {} {states:?}", now(0), now(1));
            std::thread::yield_now();
        }
        let mut fds = fds.into_iter();
        let (client, mut server) = (stream(fds.next().unwrap()), stream(fds.next().unwrap()));
        assert_eq!(rest(&server), b"last words");
        assert_eq!(text(&client, 5), "still");
        server.write_all(b" here").unwrap();
        drop(server);
        assert_eq!(rest(&client), b" here");
        assert_eq!((&client).write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        for fd in fds {
            assert_eq!(rest(&stream(fd)), b"");
        }
    });
}

#[test]
fn connections_that_wait_to_be_accepted_wait_again() {
    in_netns("connections_that_wait_to_be_accepted_wait_again", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(at).unwrap()).collect();
        for (i, mut client) in clients.iter().enumerate().skip(1) {
            client.write_all(format!("hello {i}").as_bytes()).unwrap();
        }
        clients[2].shutdown(Shutdown::Write).unwrap();
        let before: Vec<SocketAddr> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
        let mut fds = vec![listener.as_fd()];
        fds.extend(clients.iter().map(AsFd::as_fd));
        let saved = save(&fds, false);
        assert_eq!(saved.refusals, Vec::<String>::new());
        for i in 1..4 {
            assert_eq!(socket(&saved.state, i).tcp.as_ref().unwrap().peer, TcpPeer::Waiting);
        }
        saved.sockets.release(false);
        let check = |listener: &TcpListener, clients: &[TcpStream]| {
            listener.set_nonblocking(false).unwrap();
            for (i, client) in clients.iter().enumerate() {
                let (mut server, from) = listener.accept().unwrap();
                assert_eq!((from, client.local_addr().unwrap()), (before[i], before[i]));
                if i > 0 {
                    assert_eq!(text(&server, 7), format!("hello {i}"));
                }
                if i == 2 {
                    assert_eq!(rest(&server), b"");
                }
                server.write_all(b"welcome").unwrap();
                assert_eq!(text(client, 7), "welcome");
            }
        };
        // Neither the original nor what comes back has noticed.
        check(&listener, &clients);
        new_netns();
        let (fds, warnings) = revive(saved.state, false);
        assert_eq!(warnings, Vec::<String>::new());
        let mut fds = fds.into_iter();
        let listener = TcpListener::from(fds.next().unwrap());
        let clients: Vec<_> = fds.map(stream).collect();
        check(&listener, &clients);
    });
}

#[test]
fn ends_that_nobody_holds_are_closed_again() {
    in_netns("ends_that_nobody_holds_are_closed_again", || {
        let (_listener, mut client, server) = connected("127.0.0.1:0");
        client.write_all(b"bye").unwrap();
        drop(client);
        let saved = save(&[server.as_fd()], false);
        assert_eq!(socket(&saved.state, 0).tcp.as_ref().unwrap().peer, TcpPeer::Closed);
        saved.sockets.release(false);
        new_netns();
        let (fds, _) = revive(saved.state, false);
        let mut server = stream(fds.into_iter().next().unwrap());
        assert_eq!(rest(&server), b"bye");
        let _ = server.write(b"anybody?");
        // The answer to that is RST.
        let broken = (0..100).any(|_| {
            std::thread::yield_now();
            server.write(b"?").is_err()
        });
        assert!(broken);
    });
}

#[test]
fn connections_to_the_outside_break_in_the_copy_and_with_the_original() {
    in_netns("connections_to_the_outside_break_in_the_copy_and_with_the_original", || {
        let (_listener, mut client, mut outside) = connected("127.0.0.1:0");
        outside.write_all(b"received before").unwrap();
        assert!(readable(client.as_fd()));
        let saved = save(&[client.as_fd()], false);
        assert_eq!(socket(&saved.state, 0).tcp.as_ref().unwrap().peer, TcpPeer::Outside);
        assert!(saved.state.warnings[0].contains("--tcp-established"), "{:?}", saved.state.warnings);
        // It goes on...
        client.write_all(b"x").unwrap();
        assert_eq!(text(&outside, 1), "x");
        // ... until it ends: the peer hears of it at once.
        saved.sockets.release(true);
        drop(client);
        assert_eq!(outside.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

        new_netns();
        let local = address::parse(&socket(&saved.state, 0).local).unwrap();
        let (fds, warnings) = revive(saved.state, false);
        assert!(warnings[0].contains("broken"), "{warnings:?}");
        let mut client = stream(fds.into_iter().next().unwrap());
        assert_eq!(client.local_addr().unwrap(), local);
        assert_eq!(text(&client, 15), "received before");
        assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(client.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        // Its address is free.
        TcpListener::bind(local).unwrap();
    });
}

#[test]
fn connections_to_the_outside_are_kept_if_asked_for() {
    in_netns("connections_to_the_outside_are_kept_if_asked_for", || {
        let (_listener, mut client, mut outside) = connected("127.0.0.1:0");
        client.write_all(b"abc").unwrap();
        assert_eq!(text(&outside, 3), "abc");
        let saved = save(&[client.as_fd()], true);
        // Nothing is acknowledged from here on.
        outside.write_all(b"while it was away").unwrap();
        let unread = net::unread(client.as_fd()).unwrap();
        assert_eq!(unread, 0);
        saved.sockets.release(true);
        drop(client);
        let (fds, warnings) = revive(saved.state, true);
        assert_eq!(warnings, Vec::<String>::new());
        let mut client = stream(fds.into_iter().next().unwrap());
        assert_eq!(text(&client, 17), "while it was away");
        client.write_all(b"back").unwrap();
        assert_eq!(text(&outside, 4), "back");
    });
}

fn ip(args: &str) {
    let status = std::process::Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// A peer in another network namespace: what arrives while nobody has the connection must not be answered.
#[test]
fn kept_connections_survive_what_their_peers_say_meanwhile() {
    let name = "kept_connections_survive_what_their_peers_say_meanwhile";
    if std::process::Command::new("ip").arg("-V").output().is_err() {
        return eprintln!("SKIPPED {name}: needs ip");
    }
    in_netns(name, || {
        let here = misc::gettid();
        let (say, hear) = std::sync::mpsc::channel::<&str>();
        let (tell, told) = std::sync::mpsc::channel::<String>();
        let peer = std::thread::spawn(move || {
            new_netns();
            ip(&format!("link add v0 type veth peer name v1 netns {here}"));
            ip("addr add 10.9.0.1/24 dev v0");
            ip("link set v0 up");
            let listener = TcpListener::bind("10.9.0.1:700").unwrap();
            tell.send("listening".to_owned()).unwrap();
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            for word in hear {
                match word.strip_prefix("expect ") {
                    Some(expected) => tell.send(text(&stream, expected.len())).unwrap(),
                    None => stream.write_all(word.as_bytes()).unwrap(),
                }
            }
        });
        assert_eq!(told.recv().unwrap(), "listening");
        ip("addr add 10.9.0.2/24 dev v1");
        ip("link set v1 up");
        let mut client = TcpStream::connect("10.9.0.1:700").unwrap();
        client.write_all(b"abc").unwrap();
        say.send("expect abc").unwrap();
        assert_eq!(told.recv().unwrap(), "abc");
        let saved = save(&[client.as_fd()], true);
        saved.sockets.release(true);
        drop(client);
        say.send("anybody there?").unwrap();
        // It arrives, and arrives again, where nobody has the connection.
        let arrived = || {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
            let mut lines = text.lines().filter(|l| l.starts_with("Tcp:"));
            let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
            let at = names.split(' ').position(|n| n == "InSegs").unwrap();
            values.split(' ').nth(at).unwrap().parse::<u64>().unwrap()
        };
        let before = arrived();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while arrived() < before + 2 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let (fds, warnings) = revive(saved.state, true);
        assert_eq!(warnings, Vec::<String>::new());
        let mut client = stream(fds.into_iter().next().unwrap());
        assert_eq!(text(&client, 14), "anybody there?");
        client.write_all(b"yes").unwrap();
        say.send("expect yes").unwrap();
        assert_eq!(told.recv().unwrap(), "yes");
        let rules = std::process::Command::new("ip").args(["rule", "show"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&rules.stdout).contains("blackhole"), "{rules:?}");
        drop(say);
        peer.join().unwrap();
    });
}

#[test]
fn a_kept_connection_goes_on_when_the_containers_do() {
    in_netns("a_kept_connection_goes_on_when_the_containers_do", || {
        let (_listener, mut client, mut outside) = connected("127.0.0.1:0");
        let saved = save(&[client.as_fd()], true);
        outside.write_all(b"meanwhile").unwrap();
        saved.sockets.release(false);
        assert_eq!(text(&client, 9), "meanwhile");
        client.write_all(b"ok").unwrap();
        assert_eq!(text(&outside, 2), "ok");
    });
}

#[test]
fn closed_sockets_say_how_they_ended() {
    in_netns("closed_sockets_say_how_they_ended", || {
        // Ended by the peer's RST, with something to read; ended by both; never connected but bound; fresh.
        let (_l, broken, mut peer) = connected("127.0.0.1:0");
        peer.write_all(b"read me").unwrap();
        assert!(readable(broken.as_fd()));
        net::set(peer.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        drop(peer);
        let (_l2, over, peer) = connected("127.0.0.1:0");
        drop(peer);
        assert_eq!(rest(&over), b"");
        over.shutdown(Shutdown::Write).unwrap();
        let bound = net::socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        net::bind(bound.as_fd(), &address::to_bytes("127.0.0.1:4321".parse().unwrap())).unwrap();
        let fresh = net::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        while Info::of(over.as_fd()).unwrap().state != state::CLOSE {
            std::thread::yield_now();
        }
        let saved = save(&[broken.as_fd(), over.as_fd(), bound.as_fd(), fresh.as_fd()], false);
        assert_eq!(saved.refusals, Vec::<String>::new());
        saved.sockets.release(false);
        let check = |broken: &TcpStream, over: &TcpStream| {
            assert_eq!(text(broken, 7), "read me");
            let mut b = broken;
            assert_eq!(b.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            assert_eq!(rest(over), b"");
            let mut o = over;
            assert_eq!(o.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        };
        check(&broken, &over);
        new_netns();
        let (fds, warnings) = revive(saved.state, false);
        assert_eq!(warnings, Vec::<String>::new());
        let mut fds = fds.into_iter();
        check(&stream(fds.next().unwrap()), &stream(fds.next().unwrap()));
        let bound = fds.next().unwrap();
        assert_eq!(
            address::parse(&net::local(bound.as_fd()).unwrap()),
            Some("127.0.0.1:4321".parse().unwrap())
        );
        net::listen(bound.as_fd(), 5).unwrap();
        let fresh = fds.next().unwrap();
        let v6 = address::to_bytes("[::1]:4322".parse().unwrap());
        net::bind(fresh.as_fd(), &v6).unwrap();
    });
}

#[test]
fn listeners_keep_backlog_options_and_each_others_company() {
    in_netns("listeners_keep_backlog_options_and_each_others_company", || {
        let listen = |at: &str, options: &[(i32, i32, i32)], backlog, protocol| {
            let at: SocketAddr = at.parse().unwrap();
            let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let fd = net::socket(family, libc::SOCK_STREAM, protocol).unwrap();
            for (level, name, value) in options {
                net::set_int(fd.as_fd(), *level, *name, *value).unwrap();
            }
            net::bind(fd.as_fd(), &address::to_bytes(at)).unwrap();
            net::listen(fd.as_fd(), backlog).unwrap();
            fd
        };
        let port = (libc::SOL_SOCKET, libc::SO_REUSEPORT, 1);
        let defer = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
        let only = (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
        let fds = [
            listen("127.0.0.1:80", &[port], 7, 0),
            listen("127.0.0.1:80", &[port], 9, 0),
            listen("0.0.0.0:81", &[defer], 100, 0),
            listen("[::]:81", &[only], 100, 0),
            // What a Go program listens with.
            listen("[::]:82", &[], 11, 262),
        ];
        let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let saved = save(&refs, false);
        assert_eq!(saved.refusals, Vec::<String>::new());
        let state = saved.state.clone();
        saved.sockets.release(false);
        drop(fds);
        new_netns();
        let (fds, warnings) = revive(saved.state, false);
        assert_eq!(warnings, Vec::<String>::new());
        let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let again = save(&refs, false);
        for i in 0..fds.len() {
            let (one, two) = (socket(&state, i), socket(&again.state, i));
            assert_eq!((one.listen, &one.local, one.protocol), (two.listen, &two.local, two.protocol));
            assert_eq!(one.options, two.options, "{i}");
        }
        drop(TcpStream::connect("127.0.0.1:80").unwrap());
        drop(TcpStream::connect("[::1]:82").unwrap());
    });
}

#[test]
fn datagrams_wait_with_their_senders() {
    in_netns("datagrams_wait_with_their_senders", || {
        for (at, from) in
            [("127.0.0.1:53", "127.0.0.1:1053"), ("[::1]:53", "[::1]:1053"), ("0.0.0.0:54", "127.0.0.1:1054")]
        {
            new_netns();
            let receiver = UdpSocket::bind(at).unwrap();
            let sender = UdpSocket::bind(from).unwrap();
            let port: SocketAddr = at.parse().unwrap();
            let to = SocketAddr::new(sender.local_addr().unwrap().ip(), port.port());
            sender.connect(to).unwrap();
            let sent: [&[u8]; 4] = [b"one", b"", b"three", &[7; 60_000]];
            for data in sent {
                sender.send(data).unwrap();
            }
            receiver.set_broadcast(true).unwrap();
            let saved = save(&[receiver.as_fd(), sender.as_fd()], false);
            assert_eq!(saved.refusals, Vec::<String>::new());
            saved.sockets.release(false);
            let check = |receiver: &UdpSocket, sender: &UdpSocket| {
                receiver.set_nonblocking(true).unwrap();
                let mut buffer = vec![0; 70_000];
                for data in sent {
                    let (n, who) = receiver.recv_from(&mut buffer).unwrap();
                    assert_eq!((&buffer[..n], who), (data, sender.local_addr().unwrap()));
                }
                assert_eq!(receiver.recv(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
                sender.send(b"more").unwrap();
                assert!(readable(receiver.as_fd()));
                assert_eq!(receiver.recv(&mut buffer).unwrap(), 4);
                assert!(receiver.broadcast().unwrap() && !sender.broadcast().unwrap());
                assert_eq!(sender.peer_addr().unwrap(), to);
            };
            check(&receiver, &sender);
            new_netns();
            let (fds, warnings) = revive(saved.state, false);
            assert_eq!(warnings, Vec::<String>::new());
            let mut fds = fds.into_iter();
            check(&fds.next().unwrap().into(), &fds.next().unwrap().into());
        }
    });
}

#[test]
fn netlink_packet_and_raw_sockets_are_what_they_were() {
    in_netns("netlink_packet_and_raw_sockets_are_what_they_were", || {
        let packet = net::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0).unwrap();
        let mut at = [0u8; 20];
        at[0] = 17;
        at[2..4].copy_from_slice(&0x0800u16.to_be_bytes());
        at[4] = 1;
        net::bind(packet.as_fd(), &at).unwrap();
        net::set(packet.as_fd(), 263, 1, &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let raw = net::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).unwrap();
        net::set_int(raw.as_fd(), 255, 1, 0x55).unwrap();
        net::connect(raw.as_fd(), &address::to_bytes("127.0.0.1:0".parse().unwrap())).unwrap();
        let netlink = net::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        // Port 4242, RTMGRP_LINK; and a group that has no bit.
        let at = [16u8, 0, 0, 0, 0x92, 0x10, 0, 0, 1, 0, 0, 0];
        net::bind(netlink.as_fd(), &at).unwrap();
        net::set_int(netlink.as_fd(), 270, libc::NETLINK_ADD_MEMBERSHIP, 34).unwrap();
        net::set_int(netlink.as_fd(), 270, libc::NETLINK_EXT_ACK, 1).unwrap();
        let fds = [netlink, packet, raw];
        let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let saved = save(&refs, false);
        assert_eq!(saved.refusals, Vec::<String>::new());
        assert_eq!(socket(&saved.state, 0).groups, [1, 34]);
        let state = saved.state.clone();
        drop(fds);
        new_netns();
        let (fds, warnings) = revive(saved.state, false);
        assert_eq!(warnings, Vec::<String>::new());
        let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let again = save(&refs, false);
        for i in 0..fds.len() {
            let (mut one, mut two) = (socket(&state, i).clone(), socket(&again.state, i).clone());
            (one.inode, two.inode, one.cookie, two.cookie) = (0, 0, 0, 0);
            assert_eq!(one, two);
        }
    });
}

#[test]
fn what_cannot_be_saved_is_named() {
    in_netns("what_cannot_be_saved_is_named", || {
        let mut fds = vec![];
        let mut expected = vec![];
        for (family, kind, protocol, name) in [
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE, "UDP-Lite"),
            (libc::AF_ALG, libc::SOCK_SEQPACKET, 0, "AF_ALG"),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0, "vsock"),
            (44, libc::SOCK_RAW, 0, "XDP"),
        ] {
            // Kernels differ in what they have.
            if let Ok(fd) = net::socket(family, kind, protocol) {
                fds.push(fd);
                expected.push(name);
            }
        }
        let netlink = net::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let mut request = vec![32u8, 0, 0, 0, 18, 0, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0];
        request.resize(32, 0);
        net::send(netlink.as_fd(), &request, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).unwrap();
        fds.push(netlink);
        expected.push("netlink");
        let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let saved = save(&refs, false);
        assert_eq!(saved.refusals.len(), expected.len(), "{:?}", saved.refusals);
        for (text, name) in saved.refusals.iter().zip(expected) {
            assert!(text.contains(name), "{text}");
        }
    });
}

#[test]
fn a_forged_image_is_refused_or_does_no_harm() {
    in_netns("a_forged_image_is_refused_or_does_no_harm", || {
        let (listener, client, server) = connected("127.0.0.1:0");
        let saved = save(&[listener.as_fd(), client.as_fd(), server.as_fd()], false);
        drop((listener, client, server));
        type Forge = fn(&mut SocketState);
        let forgeries: [Forge; 7] = [
            |s| s.family = libc::AF_VSOCK,
            |s| s.tcp = None,
            |s| s.tcp.as_mut().unwrap().unsent = 5,
            |s| s.tcp.as_mut().unwrap().window = vec![1; 3].into(),
            |s| s.options.push((0, 64, vec![0; 4].into())),
            |s| s.local = vec![9; 3].into(),
            |s| s.filter = vec![1; 9].into(),
        ];
        for (i, forge) in forgeries.into_iter().enumerate() {
            new_netns();
            let mut state = saved.state.clone();
            let FileKind::Socket(socket) = &mut state.files[1].kind else { panic!("no socket") };
            forge(socket);
            let container = RestoreContainer { init: misc::gettid(), ..RestoreContainer::default() };
            let order = RestoreOrder { containers: vec![container], ..RestoreOrder::default() };
            let mut ctx = restore::context::Context::new(order, procfs(), state);
            let result = Sockets::make(&mut ctx).and_then(|s| s.finish(&mut ctx));
            assert!(result.is_err() || i == 5, "{i}");
        }
        let none = net::receive(net::socket(2, 2, 0).unwrap().as_fd(), &mut [0], 0);
        assert_eq!(none.unwrap_err(), Errno::EAGAIN);
    });
}
