//! Links in all their details: kinds of taps, segmentation, queueing disciplines, address translation.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_loader::sys::iptables;
use airlock_tests::network::{
    ADDRESSES, ECHO, Netns, PEER, Sandbox, assert_echoes_on, assert_works, link, links, socat,
};
use airlock_tests::{need, skip};
use airlock_wire::api::network::FdBasedLink;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::json;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

const CREATE: &str = "Network.CreateLinksAndRoutes";

/// A macvtap hands frames to whoever has opened its device, as libvirt and Kata have it.
#[test]
fn a_macvtap() {
    need!("busybox", "ip", "ping");
    let peer = Netns::new();
    peer.veth();
    let Some(tap) = peer.macvtap("link") else { skip!("this kernel has no macvtap") };
    let sandbox = Sandbox::new(ECHO);
    sandbox.set(&links(link()), &[tap]);
    sandbox.start();
    assert_works(&sandbox, &peer);
}

/// What a program hands over as one packet for many datagrams arrives as these, whether the peer takes large packets or not.
#[test]
fn datagrams_that_the_kernel_is_to_cut() {
    need!("busybox", "ip", "ping", "socat");
    const SIZE: usize = 1200;
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (plain, whole) = (Netns::new(), Netns::new());
    let _socat = socat(&plain, theirs);
    whole.veth();
    for (peer, fd) in [(&plain, ours), (&whole, whole.packet_socket("link"))] {
        let sandbox = Sandbox::new("sleep 1000");
        sandbox.set(&links(link()), &[fd]);
        sandbox.start();
        assert!(peer.pings(ADDRESSES[0]) && peer.pings(ADDRESSES[1]));
        for to in PEER {
            let receiver = peer.inside(|| std::net::UdpSocket::bind((to, 9)).unwrap());
            receiver.set_read_timeout(Some(airlock_tests::wait::LIMIT)).unwrap();
            let text: Vec<u8> = (0..20 * SIZE + 7).map(|i| (i / 100) as u8).collect();
            sandbox.inside(|| {
                let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = std::net::UdpSocket::bind(any).unwrap();
                nix::sys::socket::setsockopt(
                    &socket,
                    nix::sys::socket::sockopt::UdpGsoSegment,
                    &(SIZE as i32),
                )
                .unwrap();
                socket.send_to(&text, (to, 9)).unwrap();
            });
            let mut heard = Vec::new();
            while heard.len() < text.len() {
                let mut buffer = [0; 2 * SIZE];
                let length = receiver.recv(&mut buffer).unwrap();
                assert_eq!(length, SIZE.min(text.len() - heard.len()));
                heard.extend_from_slice(&buffer[..length]);
            }
            assert!(heard == text, "what came differs");
        }
    }
}

/// The rules of a namespace, as gVisor's command line gives them.
fn nat_blob(namespace: &Netns) -> OwnedFd {
    let blob = namespace.inside(|| iptables::read(iptables::socket().unwrap().as_fd(), "nat").unwrap());
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&blob).unwrap();
    reader.into()
}

#[test]
fn rules_of_address_translation() {
    need!("busybox", "ip", "iptables-legacy");
    let (peer, rules) = (Netns::new(), Netns::new());
    peer.veth();
    let rule = |rule: &str| {
        let out =
            rules.command("iptables-legacy").args(["-t", "nat"]).args(rule.split(' ')).output().unwrap();
        out.status.success()
    };
    if !rule("-A PREROUTING -p tcp --dport 77 -j REDIRECT --to-ports 7") {
        skip!("this kernel lacks iptables' legacy table nat");
    }
    assert!(rule("-A OUTPUT -d 192.0.2.53 -p tcp --dport 53 -j DNAT --to-destination 10.77.0.1:9"));
    let sandbox = Sandbox::new(ECHO);
    let mut args = links(link());
    args.nat_blob = true;
    // What the kernel does not understand is refused, and the sandbox's rules stay.
    let mut bad = [0u8; 96];
    bad[..3].copy_from_slice(b"nat");
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&bad).unwrap();
    let socket = peer.packet_socket("link");
    let told = sandbox.json().fails(CREATE, &json!(args), &[socket.as_fd(), reader.as_fd()]);
    assert!(told.contains("NATBlob: setting the rules"), "{told}");

    sandbox.set(&args, &[socket, nat_blob(&rules)]);
    sandbox.start();
    assert_echoes_on(&peer, ADDRESSES[0], 77);
    let listener = peer.inside(|| std::net::TcpListener::bind((PEER[0], 9)).unwrap());
    let serving = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"translated").unwrap());
    assert_eq!(sandbox.exec("nc 192.0.2.53 53 < /dev/null"), "translated");
    serving.join().unwrap();
}

#[test]
fn queueing_disciplines() {
    need!("busybox", "ip", "ping");
    let peer = Netns::new();
    peer.veth();
    for (qdisc, name) in [(0, "qdisc noqueue"), (1, "qdisc pfifo")] {
        let sandbox = Sandbox::new(ECHO);
        sandbox.set(&links(FdBasedLink { qdisc, ..link() }), &[peer.packet_socket("link")]);
        sandbox.start();
        let shown = sandbox.exec("ip link show eth0");
        assert!(shown.contains(name), "{name} is missing in {shown}");
        assert_works(&sandbox, &peer);
    }
}
