//! `metric-server`: the metrics of all sandboxes of a state directory over HTTP, for Prometheus to scrape.
//!
//! It answers `GET /metrics` (and `/` with a hint), one request a connection. Whoever can connect is taken for hostile:
//! few connections at once, little time, short requests, and however many ask, the sandboxes are asked once a second.

use super::{CONTENT_TYPE, Metrics, SANDBOX};
use crate::client::{Airlock, connect};
use crate::files::listen_unix;
use airlock_wire::api::metrics::{Data, Export, ExportOpts, Metric, Number, Snapshot};
use airlock_wire::client::Dialect;
use airlock_wire::error::{Error, Kind, Result};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest request, headers and all, in bytes.
const MAX_REQUEST: usize = 8 << 10;
/// The most headers of a request.
const MAX_HEADERS: usize = 64;
/// Connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may take to send its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a sandbox may take to answer.
const SANDBOX_LIMIT: Duration = Duration::from_secs(5);
/// Sandboxes that are asked at the same time.
const PARALLEL: usize = 8;
/// How long an answer may be given again.
const FRESH: Duration = Duration::from_secs(1);

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT` with numbers; port 0 has the kernel choose.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = String;

    /// `127.0.0.1:9090`, `[::1]:9090`, `:9090` (which is `127.0.0.1:9090`), `/a/path` or `unix:/a/path`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Self::Unix(path.into()));
        }
        let with_host = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.to_owned() };
        with_host.replacen("localhost:", "127.0.0.1:", 1).parse().map(Self::Tcp).map_err(|_| {
            format!(
                "{text:?} is no address: use NUMBER.NUMBER.NUMBER.NUMBER:PORT, [IPV6]:PORT, :PORT or /PATH"
            )
        })
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A server that listens and does not answer yet.
pub struct MetricServer {
    listener: Listener,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for MetricServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetricServer").finish_non_exhaustive()
    }
}

struct Shared {
    airlock: Airlock,
    prefix: String,
    connections: AtomicUsize,
    /// The newest text, and when it was made.
    last: Mutex<Option<(Instant, Arc<String>)>>,
}

impl MetricServer {
    /// Listens. A unix socket is made for its owner only; one that is left of a server which has ended is replaced.
    ///
    /// # Errors
    /// The address is in use, or cannot be had.
    pub fn listen(airlock: Airlock, address: &Address, prefix: String) -> Result<Self> {
        let listener = match address {
            Address::Tcp(address) => Listener::Tcp(
                TcpListener::bind(address)
                    .map_err(|e| Error::from(e).context(format!("listen at {address}")))?,
            ),
            Address::Unix(path) => Listener::Unix(
                listen_unix(path)
                    .map_err(|e| Error::from(e).context(format!("listen at {}", path.display())))?,
            ),
        };
        let shared = Shared { airlock, prefix, connections: AtomicUsize::new(0), last: Mutex::default() };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Where it listens, with the port that the kernel chose; empty for a unix socket.
    pub fn url(&self) -> String {
        match &self.listener {
            Listener::Tcp(tcp) => tcp.local_addr().map(|a| format!("http://{a}/metrics")).unwrap_or_default(),
            Listener::Unix(_) => String::new(),
        }
    }

    /// Answers until it is killed.
    ///
    /// # Errors
    /// accept(2) fails for another reason than a client that is gone, or a lack of descriptors.
    pub fn serve(&self) -> Result<()> {
        loop {
            let accepted = match &self.listener {
                Listener::Tcp(tcp) => tcp.accept().map(|(stream, _)| Stream::Tcp(stream)),
                Listener::Unix(unix) => unix.accept().map(|(stream, _)| Stream::Unix(stream)),
            };
            match accepted {
                Ok(stream) => self.take(stream),
                Err(e) => match e.raw_os_error() {
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    // Those who are served now give some back.
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    _ => return Err(Error::from(e).context("accept a connection")),
                },
            }
        }
    }

    fn take(&self, stream: Stream) {
        let shared = self.shared.clone();
        if shared.connections.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
            log::warn!("metric server: {MAX_CONNECTIONS} connections are open, one more is closed");
            return;
        }
        let serve = move || {
            if let Err(e) = shared.answer(stream) {
                log::debug!("metric server: {e}");
            }
            shared.connections.fetch_sub(1, Ordering::AcqRel);
        };
        if std::thread::Builder::new().name("scrape".to_owned()).spawn(serve).is_err() {
            self.shared.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn limit(&self, left: Duration) -> io::Result<()> {
        let left = Some(left.max(Duration::from_millis(1)));
        match self {
            Self::Tcp(s) => s.set_read_timeout(left).and_then(|()| s.set_write_timeout(left)),
            Self::Unix(s) => s.set_read_timeout(left).and_then(|()| s.set_write_timeout(left)),
        }
    }
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(buffer),
            Self::Unix(s) => s.read(buffer),
        }
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.write(bytes),
            Self::Unix(s) => s.write(bytes),
        }
    }
}

/// What a request comes to.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    /// `GET` or `HEAD` of a path; the second with `true`.
    Get(String, bool),
    /// Another method.
    Other,
}

/// Reads a request's head; `None` when more bytes are needed.
fn parse(bytes: &[u8]) -> std::result::Result<Option<Request>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(bytes)?.is_partial() {
        return Ok(None);
    }
    let path = request.path.unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default().to_owned();
    Ok(Some(match request.method {
        Some("GET") => Request::Get(path, false),
        Some("HEAD") => Request::Get(path, true),
        _ => Request::Other,
    }))
}

impl Shared {
    fn answer(&self, mut stream: Stream) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let request = read_request(&mut stream, deadline)?;
        let plain = "text/plain; charset=utf-8";
        let (status, kind, body, head) = match request {
            Some(Request::Get(path, head)) => match path.as_str() {
                "/metrics" => match self.text() {
                    Ok(text) => ("200 OK", CONTENT_TYPE, text, head),
                    Err(e) => ("503 Service Unavailable", plain, Arc::new(format!("{e}\n")), head),
                },
                "/" => ("200 OK", plain, Arc::new("airlock: metrics are at /metrics\n".to_owned()), head),
                _ => ("404 Not Found", plain, Arc::new("try /metrics\n".to_owned()), head),
            },
            Some(Request::Other) => {
                ("405 Method Not Allowed", plain, Arc::new("use GET\n".to_owned()), false)
            }
            None => ("400 Bad Request", plain, Arc::new("that is no HTTP request\n".to_owned()), false),
        };
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        if !head {
            answer.push_str(&body);
        }
        write_all(&mut stream, answer.as_bytes(), Instant::now() + PATIENCE)
    }

    /// The metrics of all sandboxes, at most a second old. Whoever asks meanwhile waits for the same text.
    fn text(&self) -> Result<Arc<String>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, text)) = &*last
            && when.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let text = Arc::new(all(&self.airlock, &self.prefix)?.to_text()?);
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

/// Reads until the head of a request is complete; `None` for what is none.
fn read_request(stream: &mut Stream, deadline: Instant) -> Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(Kind::Timeout, "a client did not send its request in time"));
        }
        stream.limit(left)?;
        let n = match stream.read(&mut buffer) {
            Ok(0) => return Err(Error::new(Kind::Disconnected, "a client hung up")),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        bytes.extend_from_slice(&buffer[..n]);
        match parse(&bytes) {
            Ok(Some(request)) => return Ok(Some(request)),
            Ok(None) if bytes.len() <= MAX_REQUEST => {}
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

fn write_all(stream: &mut Stream, mut bytes: &[u8], deadline: Instant) -> Result<()> {
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::new(Kind::Timeout, "a client did not take its answer in time"));
        }
        stream.limit(left)?;
        match stream.write(bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// What all live sandboxes of a state directory answer, with the label `sandbox`, and for each whether it answered.
///
/// # Errors
/// The state directory cannot be read.
pub fn all(airlock: &Airlock, prefix: &str) -> Result<Metrics> {
    let sandboxes: Vec<String> = airlock
        .states()
        .list()?
        .into_iter()
        .filter(|id| airlock.states().load(id).is_ok_and(|s| !s.is_subcontainer() && s.loader.is_alive()))
        .collect();
    let mut metrics = Metrics::default();
    for some in sandboxes.chunks(PARALLEL) {
        let answers: Vec<Result<Snapshot>> = std::thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|id| scope.spawn(|| ask(airlock, id))).collect();
            let joined = asked.into_iter().map(std::thread::ScopedJoinHandle::join);
            joined.map(|a| a.unwrap_or_else(|_| Err(Error::failure("asking it panicked")))).collect()
        });
        for (id, answer) in some.iter().zip(answers) {
            let up = answer.is_ok();
            match answer {
                Ok(snapshot) => metrics.add(snapshot, prefix, &[(SANDBOX, id)]),
                Err(e) => log::warn!("metrics of sandbox {id:?}: {e}"),
            }
            metrics.add(own(up), prefix, &[(SANDBOX, id)]);
        }
    }
    Ok(metrics)
}

/// What the server itself says of a sandbox.
fn own(up: bool) -> Snapshot {
    let help = "1 if the sandbox answered, 0 if it lives and did not.";
    let metric = Metric { name: "airlock_up".to_owned(), kind: Metric::GAUGE, help: help.to_owned() };
    let value = Some(Number::of(up.into()));
    Snapshot { data: vec![Data { metric, value, ..Data::default() }], ..Snapshot::default() }
}

/// Asks one sandbox for all its metrics.
fn ask(airlock: &Airlock, id: &str) -> Result<Snapshot> {
    let mut client = connect(&airlock.states().control_socket(id), Dialect::Binary)?;
    client.set_timeout(Some(SANDBOX_LIMIT))?;
    Ok(client.call::<Export>(&ExportOpts::default(), &[])?.value.0.snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |text: &str| match text.parse() {
            Ok(Address::Tcp(address)) => address.to_string(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(tcp(":9090"), "127.0.0.1:9090");
        assert_eq!(tcp("localhost:0"), "127.0.0.1:0");
        assert_eq!(tcp("[::1]:5"), "[::1]:5");
        for path in ["/run/m.sock", "unix:/run/m.sock"] {
            assert_eq!(path.parse(), Ok(Address::Unix("/run/m.sock".into())));
        }
        for bad in ["", "9090", "host:1", "unix:relative", "127.0.0.1", "127.0.0.1:99999"] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests() {
        let get = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(parse(get).unwrap(), Some(Request::Get("/metrics".to_owned(), false)));
        assert_eq!(parse(&get[..get.len() - 1]).unwrap(), None);
        assert_eq!(parse(b"POST / HTTP/1.0\r\n\r\n").unwrap(), Some(Request::Other));
        assert!(parse(b"\x16\x03\x01").is_err());
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(parse(many.as_bytes()).is_err());
    }
}
