//! `--network takeover`: a network namespace as CNI leaves it, whose addresses the sandbox gets, with a peer on the other
//! side of a bridge.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_loader::sys::xdp;
use airlock_tests::network::{
    ADDRESSES, ECHO, MAC, Netns, PEER, assert_echoes, assert_echoes_on, assert_serves,
};
use airlock_tests::wait::until;
use airlock_tests::{Bundle, State, need, skip, unique};
use serde_json::{Value, json};
use std::io::{Read, Write};

/// A host with a bridge, and a namespace behind one of its ports, with addresses and routes as the plug-ins `bridge` and
/// `host-local` make them.
struct Cni {
    host: Netns,
    pod: Netns,
}

impl Cni {
    fn new() -> Self {
        let (host, pod) = (Netns::new(), Netns::new());
        host.ip("link add cni0 type bridge");
        host.address("cni0");
        let hardware = MAC.map(|byte| format!("{byte:02x}")).join(":");
        host.ip(&format!(
            "link add veth0 mtu 1450 type veth peer name eth0 address {hardware} mtu 1450 netns {}",
            pod.0
        ));
        host.ip("link set veth0 master cni0 up");
        pod.ip("link set eth0 up");
        pod.ip(&format!("addr add {}/24 brd + dev eth0", ADDRESSES[0]));
        pod.ip(&format!("addr add {}/64 dev eth0 nodad", ADDRESSES[1]));
        pod.ip(&format!("route add default via {} dev eth0 proto static", PEER[0]));
        pod.ip(&format!("route add default via {} dev eth0 proto static", PEER[1]));
        pod.ip("route add 192.0.2.0/24 via 10.77.0.9 dev eth0 proto static mtu 1300");
        pod.ip("route add 198.51.100.1 dev eth0 proto static");
        pod.ip("neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        Self { host, pod }
    }

    fn edit(&self) -> impl FnOnce(&mut Value) {
        let path = self.pod.path();
        move |config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|n| n["type"] != "network");
            namespaces.push(json!({"type": "network", "path": path}));
        }
    }

    fn has_addresses(&self) -> bool {
        self.shown().iter().any(|line| line.contains(" inet"))
    }

    /// What the namespace has, as `ip` tells it.
    fn shown(&self) -> Vec<String> {
        [
            "-o addr show dev eth0 scope global",
            "-4 route",
            "-6 route show dev eth0 proto static",
            "neigh show nud permanent",
        ]
        .iter()
        .flat_map(|what| {
            let words = what.split(' ');
            let out = self.pod.command("ip").args(words).output().unwrap();
            let text = String::from_utf8(out.stdout).unwrap();
            text.lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>()
        })
        .collect()
    }
}

const LOOK: &str = "ip addr show eth0; ip route; ip -6 route; ip neigh";

/// What is to be seen in the sandbox.
#[track_caller]
fn assert_has_all(shown: &str) {
    for expected in [
        "mtu 1450",
        "link/ether 02:00:00:00:07:02",
        "inet 10.77.0.2/24",
        "inet6 fd77::2/64",
        "default via 10.77.0.1 dev eth0",
        "default via fd77::1 dev eth0",
        "192.0.2.0/24 via 10.77.0.9 dev eth0",
        "198.51.100.1 dev eth0",
        "10.77.0.9 dev eth0 lladdr 02:00:00:00:00:09",
    ] {
        assert!(shown.contains(expected), "{expected} is missing in:\n{shown}");
    }
}

fn works(options: &[&str]) {
    let cni = Cni::new();
    let before = cni.shown();
    let (state, id) = (State::new(), unique("taken"));
    let bundle = Bundle::with(&["sh", "-c", ECHO], cni.edit());
    state.detached(&[options, &["create", "-b", bundle.text(), &id]].concat());
    // Nobody answers until the program runs, and then it is the sandbox.
    assert!(!cni.has_addresses());
    state.ok(["start", &id]);
    assert_has_all(&state.ok(["exec", &id, "sh", "-c", LOOK]));
    for address in ADDRESSES {
        assert!(cni.host.pings(address), "{address} does not answer a ping");
        assert_echoes(&cni.host, address);
    }
    assert_serves(&cni.host, |command| state.ok(["exec", &id, "sh", "-c", command]));
    let spec = state.ok(["exec", &id, "readlink", "/proc/self/ns/net"]);
    let theirs = cni.pod.command("readlink").arg("/proc/self/ns/net").output().unwrap();
    assert_ne!(spec.trim(), String::from_utf8_lossy(&theirs.stdout).trim());

    state.ok(["delete", "--force", &id]);
    assert_eq!(cni.shown(), before);
    assert!(cni.host.pings(ADDRESSES[0]) && cni.host.pings(ADDRESSES[1]));
}

#[test]
fn addresses_go_to_the_sandbox_and_come_back() {
    need!("busybox", "ip", "ping");
    works(&["--network", "takeover"]);
}

#[test]
fn by_an_af_xdp_socket() {
    need!("busybox", "ip", "ping");
    if xdp::socket().is_err() {
        skip!("this kernel has no AF_XDP");
    }
    works(&["--network=takeover", "-EXPERIMENTAL-xdp=ns"]);
}

#[test]
fn with_several_channels_and_rules_of_address_translation() {
    need!("busybox", "ip", "iptables-legacy");
    let cni = Cni::new();
    let mut rule = cni.pod.command("iptables-legacy");
    rule.args("-t nat -A PREROUTING -p tcp --dport 77 -j REDIRECT --to-ports 7".split(' '));
    if !rule.output().unwrap().status.success() {
        skip!("this kernel lacks iptables' legacy table nat");
    }
    let (state, id) = (State::new(), unique("taken"));
    let bundle = Bundle::with(&["sh", "-c", ECHO], cni.edit());
    let options = ["--network=takeover", "--num-network-channels=4", "--reproduce-nat"];
    state.detached(&[&options[..], &["run", "--detach", "-b", bundle.text(), &id]].concat());
    for port in [77, 7, 77, 7] {
        assert_echoes_on(&cni.host, ADDRESSES[0], port);
    }
}

#[test]
fn a_connection_goes_on_after_a_checkpoint_and_a_restore() {
    need!("busybox", "ip", "ping");
    let cni = Cni::new();
    let (state, id, images) = (State::new(), unique("taken"), tempfile::tempdir().unwrap());
    let bundle = Bundle::with(&["sh", "-c", ECHO], cni.edit());
    let takeover = ["--network", "takeover"];
    state.detached(&[&takeover[..], &["run", "--detach", "-b", bundle.text(), &id]].concat());
    let stream = || std::net::TcpStream::connect((ADDRESSES[0], 7)).ok();
    let mut stream = cni.host.inside(|| until("the echo server", stream));
    let mut echoes = |text: &[u8]| {
        stream.write_all(text).unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, text);
    };
    echoes(b"before");
    let image = images.path().to_str().unwrap();
    state.ok(["checkpoint", "--tcp-established", "--image-path", image, &id]);
    state.ok(["delete", &id]);
    let id = unique("taken");
    let restore =
        ["restore", "--detach", "--tcp-established", "-b", bundle.text(), "--image-path", image, &id];
    state.detached(&[&takeover[..], &restore].concat());
    echoes(b"after");
    assert_has_all(&state.ok(["exec", &id, "sh", "-c", LOOK]));
    assert_echoes(&cni.host, ADDRESSES[1]);
    state.ok(["delete", "--force", &id]);
    assert!(cni.has_addresses());
}

#[test]
fn a_run_finds_them_from_the_start_and_the_containers_of_a_pod_share_them() {
    need!("busybox", "ip", "ping");
    let cni = Cni::new();
    let before = cni.shown();
    let state = State::new();
    let bundle = Bundle::with(&["sh", "-c", LOOK], cni.edit());
    assert_has_all(&state.ok(["run", "--network", "takeover", "-b", bundle.text(), &unique("taken")]));
    // It has ended: all is as it was.
    assert_eq!(cni.shown(), before);

    let sandbox = unique("taken");
    let bundle = Bundle::with(&["sleep", "1000"], cni.edit());
    state.detached(&["--network", "takeover", "run", "--detach", "-b", bundle.text(), &sandbox]);
    let of_pod = Bundle::with(&["sh", "-c", LOOK], |config| {
        cni.edit()(config);
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": sandbox,
        });
    });
    assert_has_all(&state.ok(["--network", "takeover", "run", "-b", of_pod.text(), &unique("taken")]));
    assert!(!cni.has_addresses());
    // CNI may remove the namespace first.
    drop(cni);
    state.ok(["delete", "--force", &sandbox]);
}

#[test]
fn what_cannot_be_taken_over_stays_as_it_is() {
    need!("busybox", "ip", "ping");
    let state = State::new();
    let fails = |cni: &Cni, options: &[&str], command: &str, expected: &str| {
        let before = cni.shown();
        let bundle = Bundle::with(&[command], cni.edit());
        let told = state.fails([options, &["run", "-b", bundle.text(), &unique("taken")]].concat());
        assert!(told.contains(expected), "{expected:?} is missing in {told:?}");
        assert_eq!(cni.shown(), before);
    };
    let cni = Cni::new();
    let takeover = ["--network", "takeover"];
    fails(&cni, &takeover, "no-such-program", "no-such-program");
    fails(&cni, &[&takeover[..], &["--EXPERIMENTAL-xdp", "redirect:eth0"]].concat(), "true", "'off' or 'ns'");
    cni.pod.ip("link add more type veth peer name less");
    cni.pod.ip("link set more up");
    cni.pod.ip("addr add 10.78.0.2/24 dev more");
    fails(
        &cni,
        &[&takeover[..], &["--EXPERIMENTAL-xdp=ns"]].concat(),
        "true",
        "interfaces eth0, more have addresses",
    );
    cni.pod.ip("tuntap add mode tun name ends");
    cni.pod.ip("link set ends up");
    cni.pod.ip("addr add 10.79.0.2/24 dev ends");
    fails(&cni, &takeover, "true", "interface ends does not carry Ethernet's frames");

    // The caller's own namespace.
    let bundle = Bundle::with(&["true"], |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "network");
        namespaces.push(json!({"type": "network", "path": "/proc/self/ns/net"}));
    });
    let told = state.fails(["--network", "takeover", "run", "-b", bundle.text(), &unique("taken")]);
    assert!(told.contains("the caller's own network namespace"), "{told}");
    // Nothing to take over: a new namespace.
    let bundle = Bundle::with(&["ip", "addr"], |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "network");
    });
    let shown = state.ok(["--network", "takeover", "run", "-b", bundle.text(), &unique("taken")]);
    assert!(shown.contains("127.0.0.1/8") && !shown.contains("\n2:"), "{shown}");
}
