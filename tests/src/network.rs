//! Network namespaces with real peers in them, and the descriptors that a caller donates for links to them.
use crate::urpc::Caller;
use crate::wait::until;
use crate::{Bundle, State, unique};
use airlock_loader::sys::{net, tap, xdp};
use airlock_wire::api::network::{
    CreateLinksAndRoutesArgs, DefaultRoute, FdBasedLink, Ip, IpNet, IpWithPrefix, Neighbor, Route, XdpLink,
};
use airlock_wire::api::types::Base64;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Hardware address of the sandbox's end.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 7, 2];
/// The sandbox's addresses, and the peer's.
pub const ADDRESSES: [&str; 2] = ["10.77.0.2", "fd77::2"];
pub const PEER: [&str; 2] = ["10.77.0.1", "fd77::1"];

/// A network namespace with a name, as `ip netns` makes it; deleted at the end.
pub struct Netns(pub String);

impl Netns {
    pub fn new() -> Self {
        let this = Self(unique("airlock-net").replace("airlock-net-", "al"));
        run(&["ip", "netns", "add", &this.0]);
        this.ip("link set lo up");
        this
    }

    /// `ip -n <this> <command>`.
    #[track_caller]
    pub fn ip(&self, command: &str) {
        let words: Vec<&str> = ["ip", "-n", &self.0].into_iter().chain(command.split_whitespace()).collect();
        run(&words);
    }

    /// A command to be run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// Runs `work` on a thread inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_namespace(&self.path(), work)
    }

    /// A pair of veth devices inside: `peer` with [`PEER`]'s addresses, and `link` without any.
    pub fn veth(&self) {
        self.ip("link add peer type veth peer name link");
        self.address("peer");
        self.ip("link set dev link up");
        // Nothing of its own on the end that is the sandbox's.
        self.ip("addr flush dev link");
    }

    /// Gives interface `name` the peer's addresses.
    pub fn address(&self, name: &str) {
        self.ip(&format!("addr add {}/24 dev {name}", PEER[0]));
        self.ip(&format!("addr add {}/64 dev {name} nodad", PEER[1]));
        self.ip(&format!("link set dev {name} up"));
    }

    /// A packet socket on interface `name`.
    pub fn packet_socket(&self, name: &str) -> OwnedFd {
        self.inside(|| net::packet_socket(nix::net::if_::if_nametoindex(name).unwrap()).unwrap())
    }

    /// A new AF_XDP socket, and what brings it the frames of interface `name`.
    pub fn xdp_socket(&self, name: &str, generic: bool) -> (OwnedFd, xdp::Redirect) {
        self.inside(|| {
            let socket = xdp::socket().unwrap();
            let redirect = xdp::Redirect::attach(self.index(name), generic).unwrap();
            redirect.to(0, socket.as_fd()).unwrap();
            (socket, redirect)
        })
    }

    /// The index of interface `name`.
    pub fn index(&self, name: &str) -> u32 {
        self.inside(|| nix::net::if_::if_nametoindex(name).unwrap())
    }

    /// A tap called `name`, with the flags added.
    pub fn tap(&self, name: &str, flags: u16) -> OwnedFd {
        self.inside(|| {
            let tun: OwnedFd = File::options().read(true).write(true).open("/dev/net/tun").unwrap().into();
            tap::create(tun.as_fd(), name, tap::IFF_TAP | flags).unwrap();
            tun
        })
    }

    /// A macvtap of interface `name` with [`MAC`]; `None` where the kernel has none.
    pub fn macvtap(&self, name: &str) -> Option<OwnedFd> {
        let hardware = MAC.map(|byte| format!("{byte:02x}")).join(":");
        let add = format!("link add link {name} name macvtap0 address {hardware} type macvtap mode bridge");
        let added = Command::new("ip").args(["-n", &self.0]).args(add.split(' ')).output().unwrap();
        if !added.status.success() {
            return None;
        }
        // It drops what is sent to groups that nobody on it has joined, those by which IPv6 finds neighbours among them.
        self.ip("link set macvtap0 up allmulticast on");
        let shown = self.command("sh").args(["-c", "cat /sys/class/net/macvtap0/tap*/dev"]).output().unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        let (major, minor) = text.trim().split_once(':').unwrap();
        let device = nix::sys::stat::makedev(major.parse().unwrap(), minor.parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("tap");
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
        Some(self.inside(|| File::options().read(true).write(true).open(&node).unwrap().into()))
    }

    /// True if `address` answers a ping within a few seconds.
    pub fn pings(&self, address: &str) -> bool {
        let out = self.command("ping").args(["-c", "1", "-W", "5", "-n", address]).output().unwrap();
        out.status.success()
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run(&["ip", "netns", "delete", &self.0]);
    }
}

/// Runs `work` on a thread in the network namespace at `path`.
pub fn in_namespace<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(path).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[track_caller]
fn run(words: &[&str]) {
    let out = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn ip(text: &str) -> Ip {
    Ip(Some(text.parse().unwrap()))
}

pub fn network(text: &str) -> IpNet {
    let (address, bits) = text.split_once('/').unwrap();
    IpNet::new(address.parse::<IpAddr>().unwrap(), bits.parse().unwrap())
}

/// A link `eth0` with [`ADDRESSES`].
pub fn link() -> FdBasedLink {
    FdBasedLink {
        name: "eth0".to_owned(),
        mtu: 1500,
        addresses: vec![
            IpWithPrefix { address: ip(ADDRESSES[0]), prefix_len: 24 },
            IpWithPrefix { address: ip(ADDRESSES[1]), prefix_len: 64 },
        ]
        .into(),
        link_address: Base64(MAC.to_vec()),
        num_channels: 1,
        ..FdBasedLink::default()
    }
}

/// One link, with default gateways.
pub fn links(link: FdBasedLink) -> CreateLinksAndRoutesArgs {
    let gateway = |to: &str, via: &str| DefaultRoute {
        route: Route { destination: network(to), gateway: ip(via), mtu: 0 },
        name: link.name.clone(),
    };
    CreateLinksAndRoutesArgs {
        default_v4_gateway: gateway("0.0.0.0/0", PEER[0]),
        default_v6_gateway: gateway("::/0", PEER[1]),
        fd_based_links: vec![link].into(),
        ..CreateLinksAndRoutesArgs::default()
    }
}

/// The same interface on an AF_XDP socket of interface `index`, which the sandbox binds (0) or the caller (1).
pub fn xdp_links(index: u32, bind: i32) -> CreateLinksAndRoutesArgs {
    let FdBasedLink { name, mtu, addresses, link_address, .. } = link();
    let interface_index = index.cast_signed();
    let xdp = XdpLink {
        name,
        mtu,
        addresses,
        link_address,
        interface_index,
        bind,
        num_channels: 1,
        ..XdpLink::default()
    };
    CreateLinksAndRoutesArgs {
        xdp_links: vec![xdp].into(),
        fd_based_links: Default::default(),
        ..links(link())
    }
}

pub fn neighbor(address: &str, mac: [u8; 6]) -> Neighbor {
    Neighbor { ip: ip(address), hardware_addr: Base64(mac.to_vec()) }
}

/// All of a file, from its beginning.
pub fn whole(file: &File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut file = file.try_clone().unwrap();
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The frames of a capture file (pcap(5), little-endian).
pub fn read_capture(bytes: &mut &[u8]) -> Vec<Vec<u8>> {
    fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, rest) = bytes.split_at(n);
        *bytes = rest;
        head
    }
    let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap());
    let header = take(bytes, 24);
    assert_eq!((word(&header[..4]), word(&header[20..])), (0xa1b2_c3d4, 1));
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let record = take(bytes, 16);
        frames.push(take(bytes, word(&record[8..12]) as usize).to_vec());
        assert!(word(&record[12..]) as usize >= frames.last().unwrap().len());
    }
    frames
}

/// What md5sum(1) says of `bytes`.
pub fn md5(bytes: &[u8]) -> String {
    use std::io::Write;
    let mut child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap().to_owned()
}

/// A container that answers TCP on port 7, created and not started.
pub struct Sandbox {
    pub state: State,
    pub id: String,
    pub bundle: Bundle,
}

/// An echo server for both IP versions.
pub const ECHO: &str = "nc -ll -p 7 -e cat";

impl Sandbox {
    pub fn new(script: &str) -> Self {
        Self::with(script, &[], |_| {})
    }

    pub fn with(script: &str, global: &[&str], edit: impl FnOnce(&mut Value)) -> Self {
        let (state, id) = (State::new(), unique("net"));
        let bundle = Bundle::with(&["sh", "-c", script], edit);
        state.detached(&[global, &["create", "-b", bundle.text(), &id]].concat());
        Self { state, id, bundle }
    }

    pub fn json(&self) -> Caller {
        Caller::json(&self.state.control_socket(&self.id))
    }

    #[track_caller]
    pub fn set(&self, args: &CreateLinksAndRoutesArgs, fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.json().ok("containerManager.SetNetworkArgs", &json!(args), &fds);
    }

    #[track_caller]
    pub fn start(&self) {
        self.state.ok(["start", &self.id]);
    }

    #[track_caller]
    pub fn exec(&self, command: &str) -> String {
        self.state.ok(["exec", &self.id, "sh", "-c", command])
    }

    /// Runs `work` on a thread in its network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let pid = self.state.state(&self.id)["pid"].as_i64().unwrap();
        in_namespace(Path::new(&format!("/proc/{pid}/ns/net")), work)
    }

    pub fn carrier(&self) -> String {
        self.exec("cat /sys/class/net/eth0/carrier").trim().to_owned()
    }
}

/// Sends a text to the sandbox's echo server and takes it back.
#[track_caller]
pub fn assert_echoes(peer: &Netns, address: &str) {
    assert_echoes_on(peer, address, 7);
}

/// Likewise on another port.
#[track_caller]
pub fn assert_echoes_on(peer: &Netns, address: &str, port: u16) {
    let text: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let echoed = peer.inside(|| {
        let mut stream = until("the echo server", || std::net::TcpStream::connect((address, port)).ok());
        let mut reader = stream.try_clone().unwrap();
        let length = text.len();
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut back = vec![0; length];
                reader.read_exact(&mut back).unwrap();
                back
            });
            stream.write_all(&text).unwrap();
            reading.join().unwrap()
        })
    });
    assert!(echoed == text, "{address}: what came back differs");
}

/// Pings, TCP in both directions, and both IP versions between the sandbox, which runs [`ECHO`], and its peer.
#[track_caller]
pub fn assert_works(sandbox: &Sandbox, peer: &Netns) {
    for address in ADDRESSES {
        assert!(peer.pings(address), "{address} does not answer a ping");
        assert_echoes(peer, address);
    }
    // And from the inside out.
    assert_serves(peer, |command| sandbox.exec(command));
}

/// A program inside, which `exec` runs by a shell, hears from the peer.
#[track_caller]
pub fn assert_serves(peer: &Netns, exec: impl FnOnce(&str) -> String) {
    let listener = peer.inside(|| std::net::TcpListener::bind(format!("{}:9", PEER[0])).unwrap());
    let serving = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(b"hello from the peer").unwrap();
        from.ip().to_string()
    });
    assert_eq!(exec(&format!("nc {} 9 < /dev/null", PEER[0])), "hello from the peer");
    assert_eq!(serving.join().unwrap(), ADDRESSES[0]);
}

/// A process that is killed and reaped at the end.
pub struct Running(pub std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// socat(1) with a tap of the peer's addresses on one side and `socket` on the other: a frame for each message.
pub fn socat(peer: &Netns, socket: OwnedFd) -> Running {
    let mut command = peer.command("socat");
    command.args(["-b", "65536", "TUN,tun-type=tap,tun-name=peer,iff-no-pi,iff-up", "STDIO"]);
    command.stdin(Stdio::from(socket.try_clone().unwrap())).stdout(Stdio::from(socket));
    let running = Running(command.spawn().unwrap());
    until("socat's tap", || {
        peer.command("ip").args(["link", "show", "peer"]).output().unwrap().status.success().then_some(())
    });
    peer.address("peer");
    running
}
