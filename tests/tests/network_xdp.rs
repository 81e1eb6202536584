//! Links on AF_XDP sockets, with real peers and XDP programs on their interfaces.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_loader::sys::xdp;
use airlock_tests::network::{
    ADDRESSES, ECHO, Netns, Sandbox, assert_works, link, links, read_capture, whole, xdp_links,
};
use airlock_tests::urpc::Caller;
use airlock_tests::wait::until;
use airlock_tests::{need, skip};
use serde_json::json;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A peer whose cable's other end is `link`, for AF_XDP; `None` where the kernel has none.
fn peer() -> Option<Netns> {
    xdp::socket().ok()?;
    let peer = Netns::new();
    peer.veth();
    Some(peer)
}

fn all(socket: OwnedFd, redirect: xdp::Redirect) -> Vec<OwnedFd> {
    let xdp::Redirect { program, map, link } = redirect;
    vec![socket, program, map, link]
}

const CREATE: &str = "Network.CreateLinksAndRoutes";

#[test]
fn a_socket_that_the_sandbox_binds() {
    need!("busybox", "ip", "ping");
    let Some(peer) = peer() else { skip!("this kernel has no AF_XDP") };
    let sandbox = Sandbox::new(ECHO);
    let (socket, redirect) = peer.xdp_socket("link", false);
    let args = xdp_links(peer.index("link"), 0);
    sandbox.set(&args, &all(socket, redirect));
    assert_eq!(sandbox.json().ok("containerManager.GetNetworkConfig", &json!(null), &[]), json!(args));
    sandbox.start();
    assert_works(&sandbox, &peer);
    let counted =
        sandbox.exec("cat /sys/class/net/eth0/statistics/rx_bytes /sys/class/net/eth0/statistics/tx_bytes");
    let counted: Vec<u64> = counted.lines().map(|l| l.parse().unwrap()).collect();
    assert!(counted.len() == 2 && counted.iter().all(|bytes| *bytes > 2_000_000), "{counted:?}");
    // The interface goes: the link loses its carrier, the sandbox goes on.
    peer.ip("link delete peer");
    until("the carrier to go", || (sandbox.carrier() == "0").then_some(()));
    assert_eq!(sandbox.state.status(&sandbox.id), "running");
}

/// Where the program runs before the driver's own way of it, packets are as large as Linux makes them: the peer cuts them.
#[test]
fn a_socket_that_the_caller_binds_afterwards_on_an_interface_without_xdp_of_its_own() {
    need!("busybox", "ip", "ping");
    let Some(peer) = peer() else { skip!("this kernel has no AF_XDP") };
    peer.ip("link set dev peer gso_max_segs 1");
    let sandbox = Sandbox::new(ECHO);
    let capture = tempfile::tempfile().unwrap();
    let (socket, redirect) = peer.xdp_socket("link", true);
    let mut args = xdp_links(0, 1);
    args.pcap = true;
    let fds = [socket.as_fd(), capture.as_fd()];
    sandbox.json().ok(CREATE, &json!(args), &fds);
    sandbox.start();
    // Nobody has bound it: what the sandbox sends is lost.
    sandbox.exec("ping -c 1 -W 1 10.77.0.1 && exit 1; exit 0");
    xdp::bind(socket.as_fd(), peer.index("link"), 0).unwrap();
    assert_works(&sandbox, &peer);
    let frames = read_capture(&mut &*whole(&capture));
    assert!(frames.iter().any(|f| f.len() > 1000) && frames.iter().all(|f| f.len() <= 65_550));
    drop(redirect);
    let out = peer.command("ping").args(["-c", "1", "-W", "1", ADDRESSES[0]]).output().unwrap();
    assert!(!out.status.success(), "frames still come, without a program that redirects them");
}

#[test]
fn what_is_wrong_is_told() {
    need!("busybox", "ip");
    let Some(peer) = peer() else { skip!("this kernel has no AF_XDP") };
    let sandbox = Sandbox::new("sleep 1000");
    let index = peer.index("link");
    let (socket, redirect) = peer.xdp_socket("link", false);
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let fails = |args: &serde_json::Value, fds: &[BorrowedFd<'_>], expected: &str| {
        for mut caller in Caller::both(&sandbox.state.control_socket(&sandbox.id)) {
            let told = caller.fails(CREATE, args, fds);
            assert!(told.contains(expected), "{expected:?} is missing in {told:?}");
        }
    };
    let (program, map, link_fd) = (redirect.program.as_fd(), redirect.map.as_fd(), redirect.link.as_fd());
    let (sock, nothing) = (socket.as_fd(), null.as_fd());
    let good = json!(xdp_links(index, 0));
    fails(&good, &[sock], "has 1 FDs but we need 4 entries");
    fails(
        &good,
        &[nothing, program, map, link_fd],
        "link \"eth0\": the first descriptor is no AF_XDP socket",
    );
    fails(&good, &[sock, map, program, link_fd], "the program is none of XDP's");
    fails(&good, &[sock, program, nothing, link_fd], "the map is none of XDP's");
    fails(&good, &[sock, program, map, nothing], "the link is none of XDP's");
    fails(&json!(links(link())), &[sock], "an AF_XDP socket: that belongs to XDPLinks");
    // One that has got its rings elsewhere.
    let used = peer.inside(|| xdp::socket().unwrap());
    let rings = xdp::open(used.as_fd(), xdp::Sizes { frame: 2048, receive: 8, send: 8 }).unwrap();
    fails(&good, &[used.as_fd(), program, map, link_fd], "the socket has memory or rings already");
    drop(rings);
    // An interface that is not there. The socket has its rings then: each try takes a new one.
    for mut caller in Caller::both(&sandbox.state.control_socket(&sandbox.id)) {
        let new = peer.inside(|| xdp::socket().unwrap());
        let told = caller.fails(CREATE, &json!(xdp_links(4711, 0)), &[new.as_fd(), program, map, link_fd]);
        assert!(told.contains("binding the AF_XDP socket to interface 4711"), "{told}");
    }
    // Nothing is left of all that failed.
    sandbox.json().ok(CREATE, &good, &[sock, program, map, link_fd]);
    sandbox.start();
    assert_eq!(sandbox.carrier(), "1");
}
