//! `airlock port-forward` with real servers and real clients.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{Bundle, State, need, need_inside, programs, unique, wait};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A container with servers.
struct Servers {
    state: State,
    id: String,
    _bundle: Bundle,
}

impl Servers {
    fn of(bundle: Bundle) -> Self {
        let (state, id) = (State::new(), unique("forward"));
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Self { state, id, _bundle: bundle }
    }

    fn python() -> Self {
        Self::of(programs::host_bundle(&["/usr/bin/python3", "/programs/servers.py"], |_| {}))
    }

    fn forward(&self, args: &[&str]) -> Forward {
        let all = ["port-forward"].into_iter().chain(args.iter().copied());
        let mut child =
            self.state.command(all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Forward { child, out }
    }
}

/// A running `airlock port-forward`.
struct Forward {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Forward {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Reads `Forwarding from 127.0.0.1:L -> R`.
    fn address(&mut self, remote: u16) -> SocketAddr {
        let line = self.line();
        let (at, to) = line.strip_prefix("Forwarding from ").unwrap().split_once(" -> ").unwrap();
        assert_eq!(to, remote.to_string());
        at.parse().unwrap()
    }

    fn finish(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects until the server is there: before that a connection is accepted and closed.
fn until_served(at: SocketAddr) {
    wait::until("the server", || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"?").ok()?;
        (stream.read(&mut [0]).ok()? > 0).then_some(())
    });
}

fn ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn ports_are_forwarded_as_kubectl_does() {
    need_inside!("python3");
    let servers = Servers::python();
    let mut forward = servers.forward(&[&servers.id, ":7001", ":8000"]);
    let echo = forward.address(7001);
    assert_eq!(echo.ip(), Ipv4Addr::LOCALHOST);
    if ipv6() {
        assert_eq!(forward.address(7001), SocketAddr::from((Ipv6Addr::LOCALHOST, echo.port())));
    }
    let web = forward.address(8000);
    until_served(echo);
    // Two hundred clients at once, each with its own conversation.
    let clients: Vec<_> = (0..200u32)
        .map(|n| {
            let mut stream = TcpStream::connect(echo).unwrap();
            stream.set_read_timeout(Some(wait::LIMIT)).unwrap();
            stream.write_all(&n.to_le_bytes().repeat(5000)).unwrap();
            stream
        })
        .collect();
    for (n, mut stream) in (0..).zip(clients) {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        assert!(heard == u32::to_le_bytes(n).repeat(5000), "client {n}");
    }
    let mut stream = TcpStream::connect(web).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.0 200"), "{page}");
    // Connections end with the command.
    let mut open = TcpStream::connect(echo).unwrap();
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();
    drop(forward);
    assert_eq!(open.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn netcat_closes_one_direction_first() {
    need_inside!("python3");
    need!("nc");
    let servers = Servers::python();
    let mut forward = servers.forward(&["--address", "127.0.0.1", &servers.id, ":7001", ":7003"]);
    let echo = forward.address(7001);
    until_served(echo);
    let sum = forward.address(7003);
    let mut nc = Command::new("nc")
        .args(["-N", &sum.ip().to_string(), &sum.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    nc.stdin.take().unwrap().write_all(&[1; 100_000]).unwrap();
    let out = nc.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "100000 100000\n");
}

#[test]
fn redis_answers_through_it() {
    need_inside!("redis-server");
    need!("redis-benchmark", "redis-cli");
    let args =
        ["/usr/bin/redis-server", "--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"];
    let servers = Servers::of(programs::host_bundle(&args, |_| {}));
    let mut forward = servers.forward(&["--address", "127.0.0.1", &servers.id, ":6379"]);
    let at = forward.address(6379).port().to_string();
    let cli = |args: &[&str]| {
        let out = Command::new("redis-cli").args(["-p", &at]).args(args).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    wait::until("redis", || (cli(&["ping"]) == "PONG").then_some(()));
    let out = Command::new("redis-benchmark")
        .args(["-p", &at, "-n", "20000", "-c", "100", "-t", "set,get", "-q", "-d", "1000", "-P", "8"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("GET: "), "{text}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(cli(&["set", "key", "value"]), "OK");
    assert_eq!(cli(&["get", "key"]), "value");
}

#[test]
fn a_unix_socket_is_forwarded_once() {
    need_inside!("python3");
    let servers = Servers::python();
    let mut forward = servers.forward(&["--address", "127.0.0.1", &servers.id, ":7001"]);
    until_served(forward.address(7001));
    let path = servers.state.dir.path().join("stream.sock");
    let listener = UnixListener::bind(&path).unwrap();
    servers.state.ok(["port-forward", "--stream", path.to_str().unwrap(), &servers.id, "7001"]);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    let fails = |args: &[&str]| {
        let all = ["port-forward", "--stream"].into_iter().chain(args.iter().copied());
        servers.state.fails(all)
    };
    let text = fails(&[path.to_str().unwrap(), &servers.id, "81"]);
    assert!(text.contains("connecting endpoint: connection was refused: port 81 of container"), "{text}");
    assert!(fails(&["/no/such", &servers.id, "7001"]).contains("connect to /no/such"));
    assert!(fails(&[path.to_str().unwrap(), &servers.id, "1", "2"]).contains("give one port"));
}

#[test]
fn it_says_what_is_wrong_and_ends_with_the_container() {
    need!("busybox");
    let servers = Servers::of(Bundle::new(&["/bin/sleep", "1000"]));
    let id = servers.id.as_str();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mapping = format!("{port}:80");
    for (args, expected) in [
        (&["nobody", "80"][..], "container does not exist"),
        (&[id, "80:"][..], "invalid port string"),
        (&[id, "65536"], "invalid port string"),
        (&[id], "ID"),
        (&["--address", "example.org", id, ":80"], "no address"),
        (&["--address", "127.0.0.1", id, &mapping], "listen on 127.0.0.1 port"),
    ] {
        let all = ["port-forward"].into_iter().chain(args.iter().copied());
        let text = servers.state.fails(all);
        if args.len() > 1 {
            assert!(text.contains(expected), "{args:?}: {text}");
        }
    }
    let mut forward = servers.forward(&["--address=127.0.0.1", id, ":80"]);
    let at = forward.address(80);
    let mut stream = TcpStream::connect(at).unwrap();
    assert_eq!(forward.line(), format!("Handling connection for {}", at.port()));
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "nobody listens there");
    servers.state.ok(["kill", id, "KILL"]);
    let (code, out, err) = forward.finish();
    assert_eq!((code, out.trim_end()), (Some(0), format!("Container {id:?} stopped. Exiting...").as_str()));
    assert!(err.contains("port 80: ") && err.contains("connection was refused"), "{err}");
    assert!(servers.state.fails(["port-forward", id, ":80"]).contains("container not running"));
}
