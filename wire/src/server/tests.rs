use super::*;
use crate::api::types::Empty;
use crate::client::{Client, Dialect, Reply};
use crate::error::Kind;
use crate::registry::Call;
use crate::testing::{LeakCheck, assert_same_files, borrow, files, pair};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc;

mod hostile;

crate::methods! {
    receiver "Test";
    /// Does nothing.
    Null: Empty => Empty;
    /// Gives back what it got.
    Echo: String => String;
    /// Gives back every descriptor.
    Bounce: Empty => u32, fds "in: any; out: the same";
    /// Gives back this many copies of the first descriptor.
    Copies: u32 => Empty, fds "in: one; out: copies";
    /// Fails.
    Fail: String => Empty;
    /// Panics.
    Panic: Empty => Empty;
    /// Waits for the first descriptor.
    Wait: Empty => u32, fds "in: one";
    /// Takes a structure that holds any JSON.
    Spec: crate::api::airlock::ExecRequest => bool;
    /// Takes a descriptor twice.
    Greedy: Empty => Empty, fds "in: one";
}

const BOTH: [Dialect; 2] = [Dialect::Json, Dialect::Binary];

/// A server of the methods above; `waiting` hears of each `Wait` call that has begun.
fn server(options: ServerOptions) -> (Server, mpsc::Receiver<()>) {
    let (began, waiting) = mpsc::channel();
    let mut registry = Registry::new();
    registry.on::<Null>(|_, _| Ok(Empty {}));
    registry.on::<Echo>(|_, text| Ok(text));
    registry.on::<Bounce>(|call, _| {
        let fds = call.take_fds();
        let n = fds.len() as u32;
        fds.into_iter().for_each(|fd| call.reply_fd(fd));
        Ok(n)
    });
    registry.on::<Copies>(|call, n| {
        let fd = call.take_fd(0)?;
        for _ in 0..n {
            call.reply_fd(fd.try_clone()?);
        }
        Ok(Empty {})
    });
    registry.on::<Fail>(|call, why| {
        let fd = call.take_fd(0);
        fd.into_iter().for_each(|fd| call.reply_fd(fd));
        Err(Error::no_such_entity(why))
    });
    registry.on::<Panic>(|_, _| panic!("on purpose"));
    registry.on::<Wait>(move |call: &mut Call<'_>, _| {
        let fd = call.take_fd(0)?;
        began.send(()).map_err(|e| Error::failure(e.to_string()))?;
        call.wait_readable(fd.as_fd())?;
        Ok(7)
    });
    registry.on::<Spec>(|_, arg| Ok(arg.process.0.is_some()));
    registry.on::<Greedy>(|call, _| {
        call.take_fd(0)?;
        call.take_fd(0)?;
        Ok(Empty {})
    });
    (Server::new(registry, options), waiting)
}

fn connected(dialect: Dialect) -> (Server, Client, mpsc::Receiver<()>) {
    let (server, waiting) = server(ServerOptions::default());
    let client = client(&server, dialect);
    (server, client, waiting)
}

fn client(server: &Server, dialect: Dialect) -> Client {
    let (ours, theirs) = pair();
    server.serve_stream(theirs).unwrap();
    Client::from_stream(ours, dialect)
}

/// Blocks until the server has no connection left; fails after a while.
fn settle(server: &Server) {
    let conns = lock(&server.shared.conns);
    let (conns, timeout) = server
        .shared
        .ended
        .wait_timeout_while(conns, Duration::from_secs(60), |conns| !conns.open.is_empty())
        .unwrap();
    assert!(!timeout.timed_out(), "connections left: {:?}", conns.open);
}

#[test]
fn connections_without_a_thread_wait_for_one_that_stands_by() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions::default());
    let open = |stream: UnixStream| {
        let peer = scm::peer_cred(&stream).unwrap();
        server.shared.open(stream, peer).unwrap()
    };
    let (ours, theirs) = pair();
    assert!(!open(theirs).wait_for_a_thread(), "nobody stands by");
    let mut closed = Client::from_stream(ours, Dialect::Json);
    assert_eq!(closed.call::<Null>(&Empty {}, &[]).unwrap_err().kind, Kind::Disconnected);

    let standing = std::thread::spawn({
        let server = server.clone();
        move || server.stand_by()
    });
    while lock(&server.shared.overflow).threads == 0 {
        std::thread::yield_now();
    }
    // One after the other, and the second waits until the first has hung up.
    let (first, one) = pair();
    let (second, two) = pair();
    assert!(open(one).wait_for_a_thread());
    assert!(open(two).wait_for_a_thread());
    for stream in [first, second] {
        let mut client = Client::from_stream(stream, Dialect::Binary);
        assert_eq!(client.call::<Echo>(&"here".to_owned(), &[]).unwrap().value, "here");
    }
    server.stop(Duration::from_secs(5));
    standing.join().unwrap();
    assert_eq!(server.connections(), 0);
}

#[test]
fn a_registry_lists_its_methods() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions::default());
    let mut declared = Vec::new();
    visit(&mut declared);
    declared.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(server.shared.registry().methods(), declared);
}

#[test]
fn calls_in_both_dialects() {
    let _leaks = LeakCheck::new();
    for dialect in BOTH {
        let (server, mut client, _waiting) = connected(dialect);
        client.call::<Null>(&Empty {}, &[]).unwrap();
        let long = "x<é>\"\\\n".repeat(100_000);
        for text in ["", "hello", long.as_str()] {
            assert_eq!(client.call::<Echo>(&text.to_owned(), &[]).unwrap().value, text);
        }
        assert_eq!(server.connections(), 1);
        drop(client);
        settle(&server);
    }
}

#[test]
fn descriptors_travel_both_ways() {
    let _leaks = LeakCheck::new();
    for (dialect, most) in [(Dialect::Json, 128), (Dialect::Binary, 512)] {
        let (server, mut client, _waiting) = connected(dialect);
        for n in [0, 1, 3, 127, 128, 129, 256, 257, 384, 385, 511, 512] {
            let sent = files(n);
            let result = client.call::<Bounce>(&Empty {}, &borrow(&sent));
            if n > most {
                assert_eq!(result.unwrap_err().message, "too many files");
                continue;
            }
            let Reply { value, fds } = result.unwrap();
            assert_eq!(value as usize, n);
            assert_same_files(&sent, &fds);
        }
        let one = files(1);
        let fds = |n: u32, client: &mut Client| client.call::<Copies>(&n, &borrow(&one)).map(|r| r.fds.len());
        assert_eq!(fds(most as u32, &mut client), Ok(most));
        assert_eq!(fds(most as u32 + 1, &mut client).unwrap_err().message, "too many files");
        assert_eq!(fds(2, &mut client), Ok(2), "the connection goes on");
        drop(client);
        settle(&server);
    }
}

#[test]
fn errors_keep_the_connection_and_close_descriptors() {
    let _leaks = LeakCheck::new();
    for dialect in BOTH {
        let (server, mut client, _waiting) = connected(dialect);
        let given = files(2);
        let e = client.call::<Fail>(&"no such thing \"x\"".into(), &borrow(&given)).unwrap_err();
        assert_eq!(e.message, "no such thing \"x\"");
        assert_eq!(e.kind, if dialect == Dialect::Binary { Kind::NoSuchEntity } else { Kind::Failure });
        let e = client.call::<Panic>(&Empty {}, &borrow(&given)).unwrap_err();
        assert_eq!(e.message, "the handler of Test.Panic panicked: on purpose; the sandbox goes on");
        assert_eq!(e.kind, if dialect == Dialect::Binary { Kind::Panic } else { Kind::Failure });
        let e = client.call::<Greedy>(&Empty {}, &borrow(&given)).unwrap_err();
        assert!(e.message.contains("index 0 is named twice"), "{e}");
        let e = client.call::<Greedy>(&Empty {}, &[]).unwrap_err();
        assert!(e.message.contains("no descriptor with index 0: 0 came"), "{e}");
        let e = client.call::<crate::api::debug::Stacks>(&Default::default(), &borrow(&given)).unwrap_err();
        assert_eq!((e.kind, e.message.as_str()), (Kind::UnknownMethod, "unknown method"));
        assert_eq!(client.call::<Echo>(&"still there".into(), &[]).unwrap().value, "still there");
        drop(client);
        settle(&server);
    }
}

#[test]
fn dialects_alternate_on_one_connection() {
    let _leaks = LeakCheck::new();
    let (server, mut client, _waiting) = connected(Dialect::Binary);
    for i in 0..10 {
        let text = format!("{i}");
        assert_eq!(client.call::<Echo>(&text, &[]).unwrap().value, text);
        let fds = files(2);
        let reply = client.call_raw("Test.Bounce", &serde_json::Value::Null, &borrow(&fds)).unwrap();
        assert_eq!(reply.value, 2);
        assert_same_files(&fds, &reply.fds);
    }
    drop(client);
    settle(&server);
}

#[test]
fn a_client_that_hangs_up_ends_its_blocked_call() {
    let _leaks = LeakCheck::new();
    for dialect in BOTH {
        let (server, mut caller, waiting) = connected(dialect);
        let handle = caller.stream().try_clone().unwrap();
        let event = files(1);
        let result = std::thread::scope(|scope| {
            let call = scope.spawn(|| caller.call::<Wait>(&Empty {}, &borrow(&event)));
            waiting.recv().unwrap();
            handle.shutdown(Shutdown::Both).unwrap();
            call.join().unwrap()
        });
        assert_eq!(result.unwrap_err().kind, Kind::Disconnected);
        settle(&server);
    }
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_reply() {
    let _leaks = LeakCheck::new();
    let (server, waiting) = server(ServerOptions::default());
    let (mut ours, theirs) = pair();
    server.serve_stream(theirs).unwrap();
    let event = files(1);
    let request = br#"{"method":"Test.Wait","arg":null}"#;
    crate::scm::send_with_fds(&ours, request, &borrow(&event)).unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    waiting.recv().unwrap();
    nix::unistd::write(&event[0], &1u64.to_ne_bytes()).unwrap();
    let mut reply = String::new();
    ours.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, r#"{"success":true,"err":"","result":7}"#);
    settle(&server);
}

#[test]
fn stop_closes_idle_connections_and_lets_calls_finish() {
    let _leaks = LeakCheck::new();
    for dialect in BOTH {
        let (server, mut busy, waiting) = connected(dialect);
        let mut idle = client(&server, dialect);
        idle.call::<Null>(&Empty {}, &[]).unwrap();
        let mut half = client(&server, dialect);
        half.stream().write_all(b"{\"method\"").unwrap();
        let event = files(1);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| busy.call::<Wait>(&Empty {}, &borrow(&event)));
            waiting.recv().unwrap();
            let stop = scope.spawn(|| server.stop(Duration::from_secs(60)));
            // The idle ones are closed while the busy one is not.
            for closed in [idle.stream(), half.stream()] {
                assert_eq!(std::io::Read::read(&mut &*closed, &mut [0]).unwrap_or(0), 0);
            }
            assert_eq!(server.serve_stream(pair().0).unwrap_err().kind, Kind::InvalidState);
            assert!(!stop.is_finished());
            nix::unistd::write(&event[0], &1u64.to_ne_bytes()).unwrap();
            assert_eq!(call.join().unwrap().unwrap().value, 7);
            stop.join().unwrap();
        });
        assert_eq!(server.connections(), 0);
        assert_eq!(busy.call::<Null>(&Empty {}, &[]).unwrap_err().kind, Kind::Disconnected);
        drop(half.call::<Null>(&Empty {}, &[]));
    }
}

#[test]
fn stop_cuts_calls_off_after_the_grace_period() {
    let _leaks = LeakCheck::new();
    let (server, mut client, waiting) = connected(Dialect::Binary);
    let event = files(1);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| client.call::<Wait>(&Empty {}, &borrow(&event)));
        waiting.recv().unwrap();
        server.stop(Duration::from_millis(10));
        assert_eq!(call.join().unwrap().unwrap_err().kind, Kind::Disconnected);
    });
    settle(&server);
}

#[test]
fn handlers_can_be_replaced_while_connections_stay() {
    let _leaks = LeakCheck::new();
    let (server, mut client, _waiting) = connected(Dialect::Json);
    client.call::<Null>(&Empty {}, &[]).unwrap();
    let mut registry = Registry::new();
    registry.on::<Echo>(|_, text| Ok(text + "!"));
    assert_eq!(registry.methods().iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["Test.Echo"]);
    server.replace_registry(registry);
    assert_eq!(client.call::<Echo>(&"a".into(), &[]).unwrap().value, "a!");
    assert_eq!(client.call::<Null>(&Empty {}, &[]).unwrap_err().kind, Kind::UnknownMethod);
}

#[test]
fn connections_are_limited_and_listening_works() {
    let _leaks = LeakCheck::new();
    let path = std::env::temp_dir().join(format!("airlock-wire-server-{}.sock", std::process::id()));
    let listener = crate::addr::bind(&path).unwrap();
    let (server, _waiting) = server(ServerOptions { max_connections: 1, ..ServerOptions::default() });
    let connect = || {
        let client = Client::connect(&path, Dialect::Binary).unwrap();
        server.accept(&listener).unwrap();
        client
    };
    let mut first = connect();
    first.call::<Null>(&Empty {}, &[]).unwrap();
    let mut second = connect();
    assert_eq!(second.call::<Null>(&Empty {}, &[]).unwrap_err().kind, Kind::Disconnected);
    first.call::<Null>(&Empty {}, &[]).unwrap();
    drop(first);
    settle(&server);
    connect().call::<Null>(&Empty {}, &[]).unwrap();
    settle(&server);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn peers_are_known_by_their_user() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions { allowed_uids: vec![7], ..ServerOptions::default() });
    let own = nix::unistd::geteuid().as_raw();
    let allowed = |uid| server.allowed(&PeerCred { pid: 1, uid, gid: 0 });
    assert!(allowed(0) && allowed(own) && allowed(7));
    assert!(!allowed(own + 8) && !allowed(65534));
    let peer = scm::peer_cred(&pair().0).unwrap();
    assert_eq!((peer.pid, peer.uid), (std::process::id() as i32, own));
}

/// Lowers this process's limit so that no descriptor is free; restores it when dropped.
struct NoFreeDescriptor(u64, u64);

impl NoFreeDescriptor {
    fn new() -> Self {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // The lowest free number is what the next descriptor would get; all below it are taken.
        let next = files(1)[0].as_raw_fd() as u64;
        setrlimit(Resource::RLIMIT_NOFILE, next, hard).unwrap();
        Self(soft, hard)
    }
}

impl Drop for NoFreeDescriptor {
    fn drop(&mut self) {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, self.0, self.1).unwrap();
    }
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let _leaks = LeakCheck::new();
    let path = std::env::temp_dir().join(format!("airlock-wire-emfile-{}.sock", std::process::id()));
    let listener = crate::addr::bind(&path).unwrap();
    let (server, _waiting) = server(ServerOptions::default());
    let waiting_client = UnixStream::connect(&path).unwrap();
    let (mut ours, theirs) = pair();
    server.serve_stream(theirs).unwrap();
    let event = files(1);
    {
        let _none = NoFreeDescriptor::new();
        server.accept(&listener).unwrap();
        assert_eq!((&waiting_client).read(&mut [0]).unwrap(), 0, "refused, not left in the queue");
        crate::scm::send_with_fds(&ours, br#"{"method":"Test.Bounce","arg":null}"#, &borrow(&event)).unwrap();
        let mut reply = String::new();
        ours.read_to_string(&mut reply).unwrap();
        assert!(reply.contains("RLIMIT_NOFILE is reached"), "{reply}");
    }
    settle(&server);
    let mut client = Client::connect(&path, Dialect::Binary).unwrap();
    server.accept(&listener).unwrap();
    client.call::<Null>(&Empty {}, &[]).unwrap();
    drop(client);
    settle(&server);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn serve_blocking_returns_when_the_peer_hangs_up() {
    let _leaks = LeakCheck::new();
    let (server, _waiting) = server(ServerOptions::default());
    let (ours, theirs) = pair();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve_blocking(theirs));
        let mut client = Client::from_stream(ours, Dialect::Binary);
        client.call::<Null>(&Empty {}, &[]).unwrap();
        drop(client.into_stream());
        serving.join().unwrap().unwrap();
    });
}
