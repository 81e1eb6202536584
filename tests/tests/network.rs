//! Links: interfaces of a sandbox whose other side are descriptors of its caller, with real peers in network namespaces
//! that the tests make.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::network::{
    ADDRESSES, ECHO, MAC, Netns, Running, Sandbox, assert_echoes, assert_works, link, links, neighbor, socat,
};
use airlock_tests::urpc::Caller;
use airlock_tests::wait::until;
use airlock_tests::{Bundle, State, need, read_all, unique};
use airlock_wire::api::network::{CreateLinksAndRoutesArgs, FdBasedLink, default_loopback};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

const CREATE: &str = "Network.CreateLinksAndRoutes";

#[test]
fn a_packet_socket_and_all_that_is_said_of_its_link() {
    need!("busybox", "ip", "ping");
    let peer = Netns::new();
    peer.veth();
    let sandbox = Sandbox::new(ECHO);
    let mut link = link();
    link.mtu = 1400;
    link.is_packet = vec![true].into();
    link.qdisc = 2;
    (link.tbf_rate, link.tbf_burst) = (1 << 30, 1 << 20);
    link.neighbors = vec![neighbor("10.77.0.99", [2, 0, 0, 0, 0, 9])].into();
    let mut args = links(link);
    args.loopback_links = vec![default_loopback()].into();
    sandbox.set(&args, &[peer.packet_socket("link")]);
    assert_eq!(sandbox.json().ok("containerManager.GetNetworkConfig", &Value::Null, &[]), json!(args));
    sandbox.start();
    assert_works(&sandbox, &peer);

    let shown = sandbox.exec("ip link show eth0; ip route; ip -6 route; ip neigh; ip addr");
    for expected in [
        "mtu 1400 qdisc tbf",
        "link/ether 02:00:00:00:07:02",
        "default via 10.77.0.1 dev eth0",
        "default via fd77::1 dev eth0",
        "10.77.0.99 dev eth0 lladdr 02:00:00:00:00:09",
        "inet 10.77.0.2/24 brd 10.77.0.255",
        "inet6 fd77::2/64",
        "inet 127.0.0.1/8",
    ] {
        assert!(shown.contains(expected), "{expected} is missing in:\n{shown}");
    }
    // Once started, further arguments are ignored, as in gVisor.
    sandbox.json().ok("containerManager.SetNetworkArgs", &json!(links(args.fd_based_links[0].clone())), &[]);
    assert_eq!(sandbox.json().ok("containerManager.GetNetworkConfig", &Value::Null, &[]), json!(args));
    sandbox.json().ok("Lifecycle.PauseExternalNetworking", &json!({}), &[]);
    let out = peer.command("ping").args(["-c", "1", "-W", "1", ADDRESSES[0]]).output().unwrap();
    assert!(!out.status.success(), "a stopped link lets packets through");
    sandbox.json().ok("Lifecycle.ResumeExternalNetworking", &json!({}), &[]);
    assert!(peer.pings(ADDRESSES[0]));
}

#[test]
fn sockets_whose_messages_are_frames() {
    need!("busybox", "ip", "ping", "socat");
    for kind in [SockType::SeqPacket, SockType::Datagram] {
        let peer = Netns::new();
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let _socat = socat(&peer, theirs);
        let sandbox = Sandbox::new(ECHO);
        sandbox.set(&links(link()), &[ours]);
        sandbox.start();
        assert_works(&sandbox, &peer);
    }
}

#[test]
fn taps_with_and_without_offload_headers() {
    need!("busybox", "ip", "ping");
    use airlock_loader::sys::tap::{IFF_NO_PI, IFF_VNET_HDR};
    for flags in [IFF_NO_PI, IFF_NO_PI | IFF_VNET_HDR] {
        let peer = Netns::new();
        let tap = peer.tap("peer", flags);
        peer.address("peer");
        let sandbox = Sandbox::new(ECHO);
        sandbox.set(&links(link()), &[tap]);
        sandbox.start();
        assert_works(&sandbox, &peer);
    }
}

#[test]
fn several_channels_share_the_connections() {
    need!("busybox", "ip", "ping");
    let peer = Netns::new();
    peer.veth();
    let sandbox = Sandbox::new(ECHO);
    let sockets: Vec<_> = (0..4).map(|_| peer.packet_socket("link")).collect();
    let mut link = link();
    link.num_channels = 4;
    sandbox.set(&links(link), &sockets);
    sandbox.start();
    assert_works(&sandbox, &peer);
    for _ in 0..8 {
        assert_echoes(&peer, ADDRESSES[1]);
    }
}

/// passt is a real peer: it speaks QEMU's framing, and is a router to the host it runs on.
#[test]
fn passt_on_a_stream() {
    need!("busybox", "ip", "passt");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let peer = Netns::new();
    // The network that passt gives a way to: an address on a veth that leads nowhere.
    peer.veth();
    peer.ip("route add default via 10.77.0.99 dev peer");
    let mut command = peer.command("sh");
    let passt = "exec passt --foreground --one-off --fd 3 -a 10.78.0.2 -n 24 -g 10.78.0.1 -i peer --runas 0 3<&0 </dev/null";
    let log = tempfile::tempfile().unwrap();
    command.args(["-c", passt]).stdin(Stdio::from(OwnedFd::from(theirs)));
    command.stdout(Stdio::null()).stderr(log.try_clone().unwrap());
    let passt = Running(command.spawn().unwrap());
    let text = json!({
        "FDBasedLinks": [{"Name": "eth0", "MTU": 1500, "NumChannels": 1,
                          "Addresses": [{"Address": "10.78.0.2", "PrefixLen": 24}]}],
        "Defaultv4Gateway": {"Name": "eth0", "Route": {"Gateway": "10.78.0.1"}},
    });
    let args: CreateLinksAndRoutesArgs = serde_json::from_value(text).unwrap();
    let sandbox = Sandbox::new("sleep 1000");
    sandbox.set(&args, &[ours.into()]);
    sandbox.start();
    // What connects to passt's gateway arrives at the loopback interface of passt's own namespace.
    let body: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    let sum = airlock_tests::network::md5(&body);
    let listener = peer.inside(|| std::net::TcpListener::bind("127.0.0.1:9").unwrap());
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&body).unwrap();
        let _ = stream.read(&mut [0]);
    });
    // Debian's passt of 2023 stops when one side has ended its half: neither does before all is there.
    let fetch = "sleep 1000 | nc 10.78.0.1 9 > /tmp/got";
    sandbox.state.detached(&["exec", "--detach", &sandbox.id, "sh", "-c", fetch]);
    let wanted = format!("{} /tmp/got", 4 * 500_000);
    until(&format!("the data; passt: {}", read_all(log.try_clone().unwrap())), || {
        sandbox.exec("wc -c /tmp/got || true").contains(&wanted).then_some(())
    });
    let got = sandbox.exec("md5sum /tmp/got");
    assert!(got.starts_with(&sum), "{got}; passt: {}", read_all(log));
    drop(passt);
    serving.join().unwrap();
}

#[test]
fn a_capture_and_lines_of_every_packet() {
    need!("busybox", "ip", "ping");
    let peer = Netns::new();
    peer.veth();
    let log = tempfile::NamedTempFile::new().unwrap();
    let global = ["--debug-log", log.path().to_str().unwrap()];
    let sandbox = Sandbox::with("sleep 1000", &global, |_| {});
    let capture = tempfile::tempfile().unwrap();
    let mut args = links(link());
    (args.pcap, args.log_packets) = (true, true);
    sandbox.set(&args, &[peer.packet_socket("link"), capture.try_clone().unwrap().into()]);
    sandbox.start();
    assert!(peer.pings(ADDRESSES[0]));
    let lines = std::fs::read_to_string(log.path()).unwrap();
    for expected in
        ["eth0 recv icmp 10.77.0.1 -> 10.77.0.2 len 98", "eth0 send icmp 10.77.0.2 -> 10.77.0.1 len 98"]
    {
        assert!(lines.contains(expected), "{expected} is missing in:\n{lines}");
    }
    let records = airlock_tests::network::read_capture(&mut &*airlock_tests::network::whole(&capture));
    let icmp = |from: &[u8], to: &[u8]| {
        records.iter().filter(|r| r.get(23) == Some(&1) && r[26..30] == *from && r[30..34] == *to).count()
    };
    assert_eq!((icmp(&[10, 77, 0, 1], &[10, 77, 0, 2]), icmp(&[10, 77, 0, 2], &[10, 77, 0, 1])), (1, 1));
    // The lines can be ended while it runs.
    let change = |on| json!({"SetLogPackets": true, "LogPackets": on});
    sandbox.json().ok("Logging.Change", &change(false), &[]);
    let before = std::fs::read_to_string(log.path()).unwrap().matches("icmp 10.77").count();
    assert!(peer.pings(ADDRESSES[0]));
    sandbox.json().ok("Logging.Change", &change(true), &[]);
    assert_eq!(std::fs::read_to_string(log.path()).unwrap().matches("icmp 10.77").count(), before);
    assert!(peer.pings(ADDRESSES[0]));
    assert_eq!(std::fs::read_to_string(log.path()).unwrap().matches("icmp 10.77").count(), before + 2);
}

#[test]
fn what_is_wrong_is_told_in_gvisors_words() {
    need!("busybox", "ip");
    let peer = Netns::new();
    peer.veth();
    let socket = || peer.packet_socket("link");
    let sandbox = Sandbox::new("sleep 1000");
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let with = |edit: &dyn Fn(&mut CreateLinksAndRoutesArgs)| {
        let mut args = links(link());
        edit(&mut args);
        json!(args)
    };
    type Case<'a> = (Value, usize, &'a str);
    let one = |edit: &dyn Fn(&mut FdBasedLink)| {
        let mut link = link();
        edit(&mut link);
        json!(links(link))
    };
    let cases: Vec<Case<'_>> = vec![
        (
            with(&|_| {}),
            0,
            "args.FilePayload.Files has 0 FDs but we need 1 entries based on FDBasedLinks, XDPLinks, and PCAP",
        ),
        (with(&|_| {}), 2, "args.FilePayload.Files has 2 FDs but we need 1 entries"),
        (with(&|a| a.pcap = true), 1, "has 1 FDs but we need 2 entries"),
        (
            with(&|a| a.default_v4_gateway.name = "eth9".to_owned()),
            1,
            "invalid interface name \"eth9\" for default route",
        ),
        (with(&|a| a.nat_blob = true), 1, "has 1 FDs but we need 2 entries"),
        (with(&|a| a.xdp_links = vec![Default::default()].into()), 1, "received both fdbased and XDP links"),
        (json!({"XDPLinks": [{"Bind": 2}]}), 1, "unknown bind value: 2"),
        (json!({"XDPLinks": [{}, {}]}), 1, "XDP only supports one link device, but got 2"),
        (
            json!({"XDPLinks": [{"Name": "x", "Bind": 1}]}),
            1,
            "link \"x\": the first descriptor is no AF_XDP socket",
        ),
        (
            json!({"XDPLinks": [{"Name": "x", "MTU": 9000, "Bind": 1}]}),
            1,
            "MTU 9000: a frame of an AF_XDP socket",
        ),
        (json!({"XDPLinks": [{"Name": "x"}]}), 1, "has 1 FDs but we need 4 entries"),
        (one(&|l| l.name = "lo".to_owned()), 1, "CreateNICWithOptions(1, _, {Name:lo}) failed"),
        (one(&|l| l.name = "a/b".to_owned()), 1, "CreateNICWithOptions"),
        (one(&|l| l.mtu = 3), 1, "MTU 3"),
        (one(&|l| l.qdisc = 7), 1, "unknown queueing discipline 7"),
        (one(&|l| l.qdisc = 2), 1, "TBFRate"),
        (one(&|l| l.link_address.0 = vec![1; 6]), 1, "LinkAddress"),
        (one(&|l| l.num_channels = 0), 1, "NumChannels"),
        (one(&|l| l.is_packet = vec![false].into()), 1, "IsPacket"),
        (
            one(&|l| l.addresses.0[0].prefix_len = 99),
            1,
            "AddProtocolAddress(1, {Address:10.77.0.2/99}, {}) failed",
        ),
        (one(&|l| l.addresses.0[0].address.0 = None), 1, "AddProtocolAddress(1, {Address:/24}, {}) failed"),
        (
            one(&|l| l.neighbors = vec![neighbor("10.77.0.9", MAC), Default::default()].into()),
            1,
            "failed to SetEntries",
        ),
        (one(&|l| l.routes = vec![Default::default()].into()), 1, "a route without a destination"),
        (
            with(&|a| {
                a.default_v6_gateway.route.gateway =
                    "192.0.2.1".parse().map(|ip| airlock_wire::api::network::Ip(Some(ip))).unwrap()
            }),
            1,
            "other IP version",
        ),
        (with(&|a| a.loopback_links = vec![Default::default()].into()), 1, "one loopback interface"),
    ];
    for (args, count, expected) in &cases {
        let sockets: Vec<OwnedFd> = (0..*count).map(|_| socket()).collect();
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        for mut caller in Caller::both(&sandbox.state.control_socket(&sandbox.id)) {
            let told = caller.fails(CREATE, args, &fds);
            assert!(told.contains(expected), "{expected:?} is missing in {told:?}");
        }
    }
    for mut caller in Caller::both(&sandbox.state.control_socket(&sandbox.id)) {
        let good = json!(links(link()));
        assert!(caller.fails(CREATE, &good, &[null.as_fd()]).contains("neither a socket nor a tap"));
        let set = "containerManager.SetNetworkArgs";
        assert_eq!(caller.fails(set, &Value::Null, &[]), "cannot set nil networkArgs");
        assert_eq!(caller.fails(set, &good, &[]), "insufficient FDs provided for link \"eth0\"");
        let plugin = caller.fails("Network.InitPluginStack", &json!({"InitStr": "x"}), &[null.as_fd()]);
        assert_eq!(plugin, "plugin stack is not registered");
    }
    // Nothing is left of all that failed, and the sandbox's first links are yet to come.
    let mut caller = sandbox.json();
    caller.ok(CREATE, &json!(links(link())), &[socket().as_fd()]);
    sandbox.start();
    assert!(caller.fails(CREATE, &json!(links(link())), &[socket().as_fd()]).contains("made before"));
    let names = sandbox.exec("ls /sys/class/net");
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);

    // In the host's network there is nothing to set up.
    let host = Sandbox::with("sleep 1000", &[], |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "network");
        config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/sys");
    });
    for mut caller in Caller::both(&host.state.control_socket(&host.id)) {
        assert!(caller.fails(CREATE, &json!({}), &[]).contains("unknown method"));
        let told = caller.fails("containerManager.SetNetworkArgs", &json!({}), &[]);
        assert!(told.contains("shares the network namespace"), "{told}");
        let told = [
            caller.fails("Lifecycle.PauseExternalNetworking", &json!({}), &[]),
            caller.fails("Lifecycle.ResumeExternalNetworking", &json!({}), &[]),
        ];
        assert!(told.iter().all(|t| t.contains("network namespace")), "{told:?}");
    }
}

#[test]
fn a_start_fails_with_its_links_and_says_why() {
    need!("busybox", "ip");
    let sandbox = Sandbox::new("sleep 1000");
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    sandbox.set(&links(link()), &[std::fs::File::open("/dev/null").unwrap().into()]);
    let told = sandbox.state.fails(["start", &sandbox.id]);
    assert!(told.contains("neither a socket nor a tap"), "{told}");
    assert_eq!(sandbox.state.status(&sandbox.id), "created");
    // It can be mended.
    sandbox.set(&links(link()), &[ours.into()]);
    sandbox.start();
    assert_eq!(sandbox.carrier(), "1");
    // The peer is gone: that is a cable without a carrier. The sandbox goes on.
    drop(theirs);
    until("the carrier to go", || (sandbox.carrier() == "0").then_some(()));
    assert_eq!(sandbox.state.status(&sandbox.id), "running");
}

#[test]
fn nonsense_from_a_peer_ends_the_link_alone() {
    need!("busybox", "ip");
    let sandbox = Sandbox::new("sleep 1000");
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    sandbox.set(&links(link()), &[ours.into()]);
    sandbox.start();
    theirs.write_all(&[0, 0, 0, 4, 1, 2, 3, 4]).unwrap();
    assert_eq!(sandbox.carrier(), "1");
    theirs.write_all(&[0xff; 64]).unwrap();
    until("the carrier to go", || (sandbox.carrier() == "0").then_some(()));
}

#[test]
fn a_restored_sandbox_gets_links_again() {
    need!("busybox", "ip", "ping");
    let peer = Netns::new();
    peer.veth();
    let sandbox = Sandbox::new(ECHO);
    let mut args = links(link());
    sandbox.set(&args, &[peer.packet_socket("link")]);
    sandbox.start();
    assert_works(&sandbox, &peer);
    let images = tempfile::tempdir().unwrap();
    let image = images.path().to_str().unwrap();
    sandbox.state.ok(["checkpoint", "--image-path", image, &sandbox.id]);
    sandbox.state.ok(["delete", &sandbox.id]);
    assert!(!peer.pings(ADDRESSES[0]));

    args.is_restore = true;
    let id = unique("net");
    sandbox.state.detached(&["create", "-b", sandbox.bundle.text(), "--image-path", image, &id]);
    let restored = Sandbox { id, ..sandbox };
    restored.set(&args, &[peer.packet_socket("link")]);
    restored.start();
    assert_works(&restored, &peer);
    assert_eq!(restored.json().ok("containerManager.GetNetworkConfig", &Value::Null, &[]), json!(args));
}

#[test]
fn nothing_is_left_of_a_sandbox_with_links() {
    need!("busybox", "ip", "ping");
    let peer = Netns::new();
    peer.veth();
    let sandbox = Sandbox::new("sleep 1000");
    let socket = peer.packet_socket("link");
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut args = links(link());
    args.fd_based_links.0.push(FdBasedLink {
        name: "eth1".to_owned(),
        addresses: Default::default(),
        link_address: Default::default(),
        ..link()
    });
    sandbox.set(&args, &[socket, ours.into()]);
    sandbox.start();
    assert!(peer.pings(ADDRESSES[0]));
    sandbox.state.ok(["delete", "--force", &sandbox.id]);
    // The pump's end of the stream is closed with it.
    theirs.set_read_timeout(Some(airlock_tests::wait::LIMIT)).unwrap();
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).unwrap();
    assert!(!peer.pings(ADDRESSES[0]));
}

#[test]
fn the_command_line_chooses_the_network() {
    need!("busybox", "ip");
    // As CNI leaves it: a pair of devices, one end of it in a namespace with a name, with addresses.
    let cni = Netns::new();
    cni.veth();
    let run = |global: &[&str], options: &[&str], namespaces: Value| {
        let (state, id) = (State::new(), unique("network"));
        let bundle = Bundle::with(&["sh", "-c", "readlink /proc/self/ns/net; ip addr"], |config| {
            let all = config["linux"]["namespaces"].as_array_mut().unwrap();
            all.retain(|n| n["type"] != "network");
            all.extend(namespaces.as_array().unwrap().iter().cloned());
            config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/sys");
        });
        state.ok([global, &["run", "-b", bundle.text()], options, &[&id]].concat())
    };
    let own = std::fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap().to_owned();
    let (new, absent) = (json!([{"type": "network"}]), json!([]));
    let joined = json!([{"type": "network", "path": cni.path()}]);
    let has_cni = |out: &str| out.contains("inet 10.77.0.1/24") && out.contains("inet6 fd77::1/64");
    let lo_only = |out: &str| !out.contains(&own) && out.contains("127.0.0.1/8") && !out.contains("\n2:");

    assert!(has_cni(&run(&[], &[], joined.clone())));
    assert!(has_cni(&run(&["--network=sandbox"], &[], joined.clone())));
    assert!(has_cni(&run(&[], &["--network", "host"], joined.clone())));
    assert!(lo_only(&run(&["--network", "none"], &[], joined.clone())));
    assert!(lo_only(&run(&["--network=host"], &["--network=sandbox"], absent.clone())));
    assert!(run(&[], &[], absent.clone()).contains(&own));
    assert!(run(&["-network=host"], &[], new.clone()).contains(&own));
    assert!(lo_only(&run(&[], &[], new)));
}
