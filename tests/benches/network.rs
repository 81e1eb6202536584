//! Links of sandboxes, by what their other side is, against a bare veth pair between two network namespaces:
//! `cargo bench -p airlock-tests --bench network` (as root).
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_loader::sys::tap::{IFF_NO_PI, IFF_VNET_HDR};
use airlock_loader::sys::xdp;
use airlock_tests::network::{ADDRESSES, Netns, PEER, Sandbox, in_namespace, link, links, xdp_links};
use airlock_tests::{bench, wait};
use airlock_wire::api::network::FdBasedLink;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const ROUNDS: usize = 7;
/// How long a transfer is measured.
const TRANSFER: Duration = Duration::from_millis(400);
const ROUND_TRIPS: u32 = 2000;
const PORT: u16 = 9000;
const BUFFER: usize = 256 << 10;

fn main() {
    bench::run(&[("network", all)]);
}

/// Two network namespaces and what connects them; all of it goes with this.
struct Setup {
    name: &'static str,
    /// The sandbox's side, where the server is, and the other one.
    server: PathBuf,
    client: PathBuf,
    _kept: (Vec<Netns>, Vec<Sandbox>),
}

fn path_of(sandbox: &Sandbox) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", sandbox.state.state(&sandbox.id)["pid"]))
}

/// Two namespaces with a pair of devices between them.
fn veth() -> Setup {
    let (peer, other) = (Netns::new(), Netns::new());
    peer.ip(&format!("link add peer type veth peer name eth0 netns {}", other.0));
    peer.address("peer");
    other.ip(&format!("addr add {}/24 dev eth0", ADDRESSES[0]));
    other.ip("link set eth0 up");
    Setup { name: "veth", server: other.path(), client: peer.path(), _kept: (vec![peer, other], vec![]) }
}

/// A sandbox with a link whose other side is `fds`, in the namespace `peer`.
fn linked(name: &'static str, peer: Netns, link: FdBasedLink, fds: &[OwnedFd]) -> Setup {
    let sandbox = Sandbox::new("sleep 100000");
    sandbox.set(&links(link), fds);
    sandbox.start();
    Setup { name, server: path_of(&sandbox), client: peer.path(), _kept: (vec![peer], vec![sandbox]) }
}

fn packet(name: &'static str, channels: i32) -> Setup {
    let peer = Netns::new();
    peer.veth();
    let sockets: Vec<_> = (0..channels).map(|_| peer.packet_socket("link")).collect();
    linked(name, peer, FdBasedLink { num_channels: channels, ..link() }, &sockets)
}

fn tap(name: &'static str, flags: u16) -> Setup {
    let peer = Netns::new();
    let tap = peer.tap("peer", IFF_NO_PI | flags);
    peer.address("peer");
    linked(name, peer, link(), &[tap])
}

fn af_xdp() -> Setup {
    let peer = Netns::new();
    peer.veth();
    let (socket, xdp::Redirect { program, map, link }) = peer.xdp_socket("link", false);
    let sandbox = Sandbox::new("sleep 100000");
    sandbox.set(&xdp_links(peer.index("link"), 0), &[socket, program, map, link]);
    sandbox.start();
    Setup {
        name: "AF_XDP",
        server: path_of(&sandbox),
        client: peer.path(),
        _kept: (vec![peer], vec![sandbox]),
    }
}

/// Two sandboxes, each other's peers: two pumps.
fn sockets(name: &'static str, kind: SockType) -> Setup {
    let (a, b) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (server, client) = (Sandbox::new("sleep 100000"), Sandbox::new("sleep 100000"));
    server.set(&links(link()), &[a]);
    let mut other = link();
    other.link_address.0[5] += 1;
    for (address, peer) in other.addresses.0.iter_mut().zip(PEER) {
        address.address = peer.parse::<std::net::IpAddr>().unwrap().into();
    }
    let args = airlock_wire::api::network::CreateLinksAndRoutesArgs {
        fd_based_links: vec![other].into(),
        ..Default::default()
    };
    client.set(&args, &[b]);
    server.start();
    client.start();
    let (at, from) = (path_of(&server), path_of(&client));
    Setup { name, server: at, client: from, _kept: (vec![], vec![server, client]) }
}

/// Every connection begins with a letter: `s`ink, `f`lood, else an echo.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || one(stream));
    }
}

fn one(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER];
    let mut what = [0];
    stream.read_exact(&mut what)?;
    let start = Instant::now();
    match what[0] {
        b's' => {
            let bytes = count(&mut stream, &mut buffer);
            stream.write_all(&rate(start, bytes).to_le_bytes())
        }
        b'f' => {
            while start.elapsed() < TRANSFER {
                stream.write_all(&buffer)?;
            }
            Ok(())
        }
        _ => loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => stream.write_all(&buffer[..n])?,
            }
        },
    }
}

/// Bytes until the end.
fn count(stream: &mut TcpStream, buffer: &mut [u8]) -> u64 {
    let mut total = 0;
    while let Ok(n @ 1..) = stream.read(buffer) {
        total += n as u64;
    }
    total
}

fn rate(start: Instant, bytes: u64) -> f64 {
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// One figure, in the client's namespace: GB/s, or µs.
fn measure(what: &str) -> f64 {
    let mut stream = TcpStream::connect((ADDRESSES[0], PORT)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; BUFFER];
    let start = Instant::now();
    match what {
        "into the sandbox" => {
            stream.write_all(b"s").unwrap();
            while start.elapsed() < TRANSFER {
                stream.write_all(&buffer).unwrap();
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut heard = [0; 8];
            stream.read_exact(&mut heard).unwrap();
            f64::from_le_bytes(heard)
        }
        "out of the sandbox" => {
            stream.write_all(b"f").unwrap();
            rate(start, count(&mut stream, &mut buffer))
        }
        _ => {
            stream.write_all(b"e").unwrap();
            for _ in 0..ROUND_TRIPS {
                stream.write_all(&[1]).unwrap();
                stream.read_exact(&mut buffer[..1]).unwrap();
            }
            start.elapsed().as_secs_f64() / f64::from(ROUND_TRIPS) * 1e6
        }
    }
}

fn all() {
    let mut setups = vec![
        veth(),
        packet("packet socket", 1),
        packet("packet sockets, 2", 2),
        tap("tap, offload headers", IFF_VNET_HDR),
        tap("tap, plain", 0),
        sockets("seqpacket, two pumps", SockType::SeqPacket),
        sockets("stream, two pumps", SockType::Stream),
    ];
    if xdp::socket().is_ok() {
        setups.push(af_xdp());
    }
    for setup in &setups {
        let listener = in_namespace(&setup.server, || TcpListener::bind(("0.0.0.0", PORT)).unwrap());
        std::thread::spawn(move || serve(&listener));
        in_namespace(&setup.client, || {
            wait::until(setup.name, || TcpStream::connect((ADDRESSES[0], PORT)).ok());
        });
    }
    println!("\nload average before: {}\n", bench::load());
    println!("| | {} |", setups.iter().map(|s| s.name).collect::<Vec<_>>().join(" | "));
    println!("|{}", " --- |".repeat(setups.len() + 1));
    for what in ["into the sandbox", "out of the sandbox", "round trip"] {
        let mut figures = vec![Vec::new(); setups.len()];
        for round in 0..=ROUNDS {
            for (setup, figures) in setups.iter().zip(&mut figures) {
                let figure = in_namespace(&setup.client, || measure(what));
                // The first one finds neighbours and fills caches.
                if round > 0 {
                    figures.push(figure);
                }
            }
        }
        let medians: Vec<f64> = figures
            .into_iter()
            .map(|mut all| {
                all.sort_by(f64::total_cmp);
                all[all.len() / 2]
            })
            .collect();
        let unit = if what == "round trip" { "µs" } else { "GB/s" };
        let cells = medians.iter().map(|m| format!("{m:.2} {unit} ({:.2} ×)", m / medians[0]));
        println!("| {what} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}
