//! Forwarded ports against direct connections in the container's network namespace, and against a pump that copies
//! (socat): `cargo bench -p airlock-tests --bench forward` (as root; needs nsenter and socat).
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::{Bundle, State, unique, wait, which};
use airlock_wire::api::container_manager::{PortForward, PortForwardOpts};
use airlock_wire::{Client, Dialect};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SERVER: u16 = 9000;
const COPIED: u16 = 9001;
const BYTES: u64 = 2 << 30;
const ROUND_TRIPS: u32 = 20_000;
const ROUNDS: usize = 9;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    match args.first().map(String::as_str) {
        Some("server") => serve(),
        Some("client") => direct(&args[1], args[2].parse().unwrap()),
        _ => compare(&args),
    }
}

/// Every connection begins with a letter: `s`ink until the end, `e`cho, `f`lood.
fn serve() {
    let listener = TcpListener::bind(("127.0.0.1", SERVER)).unwrap();
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || one(stream));
    }
}

fn one(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 20];
    let mut what = [0];
    stream.read_exact(&mut what)?;
    if what[0] == b'f' {
        loop {
            stream.write_all(&buffer)?;
        }
    }
    let mut heard = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&u64::to_le_bytes(heard)),
            n if what[0] == b'e' => stream.write_all(&buffer[..n])?,
            n => heard += n as u64,
        }
    }
}

/// What is measured over one kind of connection: upload and download in GB/s, the round trip in µs.
fn measure<S: Read + Write>(what: &str, mut connect: impl FnMut() -> S, end: impl Fn(&S)) -> f64 {
    let mut stream = connect();
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    match what {
        "upload" => {
            stream.write_all(b"s").unwrap();
            for _ in 0..BYTES / buffer.len() as u64 {
                stream.write_all(&buffer).unwrap();
            }
            end(&stream);
            let mut heard = [0; 8];
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(u64::from_le_bytes(heard), BYTES);
            BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
        }
        "download" => {
            stream.write_all(b"f").unwrap();
            let mut heard = 0;
            while heard < BYTES {
                heard += stream.read(&mut buffer).unwrap() as u64;
            }
            BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
        }
        "round trip" => {
            stream.write_all(b"e").unwrap();
            let start = Instant::now();
            for _ in 0..ROUND_TRIPS {
                stream.write_all(&[1]).unwrap();
                stream.read_exact(&mut buffer[..1]).unwrap();
            }
            start.elapsed().as_secs_f64() / f64::from(ROUND_TRIPS) * 1e6
        }
        _ => {
            const CONNECTIONS: u32 = 500;
            for n in 0..CONNECTIONS {
                let mut next = if n == 0 { connect() } else { std::mem::replace(&mut stream, connect()) };
                next.write_all(b"ex").unwrap();
                next.read_exact(&mut buffer[..1]).unwrap();
            }
            start.elapsed().as_secs_f64() / f64::from(CONNECTIONS) * 1e6
        }
    }
}

fn direct(what: &str, port: u16) {
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    };
    println!("{}", measure(what, connect, |s| s.shutdown(std::net::Shutdown::Write).unwrap()));
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All, or what is named: `-- connection`.
fn compare(wanted: &[String]) {
    if !airlock_tests::is_root() || which("nsenter").is_none() || which("socat").is_none() {
        return println!("skipped: needs root, nsenter and socat");
    }
    let (state, id) = (State::new(), unique("bench"));
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let pid = state.state(&id)["pid"].to_string();
    let this = std::env::current_exe().unwrap();
    let inside = |program: &str, args: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n", program]).args(args).stderr(Stdio::inherit());
        command
    };
    let this = this.to_str().unwrap();
    let _server = Killed(inside(this, &["server"]).spawn().unwrap());
    let copied =
        [format!("TCP-LISTEN:{COPIED},fork,reuseaddr,nodelay"), format!("TCP:127.0.0.1:{SERVER},nodelay")];
    let _socat = Killed(inside("socat", &["-b1048576", &copied[0], &copied[1]]).spawn().unwrap());
    let mut client = Client::connect(&state.control_socket(&id), Dialect::Binary).unwrap();
    let opts = PortForwardOpts { container_id: id.clone(), port: SERVER, ends_with_connection: false };
    let mut forwarded = || -> Result<UnixStream, String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        client.call::<PortForward>(&opts, &[theirs.as_fd()]).map_err(|e| e.message)?;
        Ok(ours)
    };
    wait::until("the server", || forwarded().ok());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let mut tcp_client = Client::connect(&state.control_socket(&id), Dialect::Binary).unwrap();
    let mut accepted = || {
        let ours = TcpStream::connect(at).unwrap();
        ours.set_nodelay(true).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        tcp_client.call::<PortForward>(&opts, &[theirs.as_fd()]).unwrap();
        ours
    };
    let run = |what: &str, port: u16| -> f64 {
        let out = inside(this, &["client", what, &port.to_string()]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
    };
    println!(
        "| | direct, inside | forwarded, unix socket | forwarded, TCP | socat, inside |\n| --- | --- | --- | --- | --- |"
    );
    for what in ["upload", "download", "round trip", "connection"] {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == what) {
            continue;
        }
        let mut all: [Vec<f64>; 4] = Default::default();
        for _ in 0..ROUNDS {
            all[0].push(run(what, SERVER));
            all[1].push(measure(
                what,
                || forwarded().unwrap(),
                |s| s.shutdown(std::net::Shutdown::Write).unwrap(),
            ));
            all[2].push(measure(what, &mut accepted, |s| s.shutdown(std::net::Shutdown::Write).unwrap()));
            all[3].push(run(what, COPIED));
            std::thread::sleep(Duration::from_millis(50));
        }
        let medians = all.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        let unit = if what.ends_with("load") { "GB/s" } else { "µs" };
        let cells = medians.map(|m| format!("{m:.2} {unit} ({:.2} ×)", m / medians[0]));
        println!("| {what} | {} |", cells.join(" | "));
    }
}
