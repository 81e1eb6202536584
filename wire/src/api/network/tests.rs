#![allow(clippy::single_range_in_vec_init)]
use super::*;
use crate::{codec, json};
use proptest::prelude::*;

fn read(text: &str) -> Result<CreateLinksAndRoutesArgs> {
    json::from_slice(text.as_bytes())
}

/// As gVisor's command line of August 2026 sends it.
const MASTER: &str = r#"{"LoopbackLinks":[{"Name":"lo","Addresses":[{"Address":"127.0.0.1","PrefixLen":8}],
    "Routes":[{"Destination":{"IP":"127.0.0.0","Mask":"/wAAAA=="},"Gateway":"","MTU":0}],"GVisorGRO":false}],
    "FDBasedLinks":[{"Name":"eth0","InterfaceIndex":2,"MTU":1500,"Addresses":[{"Address":"10.1.0.2","PrefixLen":24}],
    "Routes":null,"GSOMaxSize":65536,"GVisorGSOEnabled":false,"GVisorGRO":false,"TXChecksumOffload":false,
    "RXChecksumOffload":true,"LinkAddress":"AgAAAAAB","QDisc":1,"TBFRate":0,"TBFBurst":0,
    "Neighbors":[{"IP":"10.1.0.1","HardwareAddr":"AgAAAAAC"}],"NumChannels":1,"ProcessorsPerChannel":0,
    "IsPacket":[true],"PreConfigured":false}],"XDPLinks":null,
    "Defaultv4Gateway":{"Route":{"Destination":{"IP":"0.0.0.0","Mask":"AAAAAA=="},"Gateway":"10.1.0.1","MTU":0},"Name":"eth0"},
    "Defaultv6Gateway":{"Route":{"Destination":{"IP":"","Mask":null},"Gateway":"","MTU":0},"Name":""},"PCAP":false,
    "LogPackets":false,"NATBlob":false,"PauseExternalNetworking":false,"AllowConnectedOnSave":false,"IsRestore":false}"#;

#[test]
fn gvisors_messages_are_read_and_written_back() {
    let args = read(MASTER).unwrap();
    assert_eq!(args.fd_based_links[0].addresses[0].address, Ip(Some("10.1.0.2".parse().unwrap())));
    assert_eq!(args.fd_based_links[0].link_address.0, [2, 0, 0, 0, 0, 1]);
    assert_eq!(args.default_v4_gateway.route.destination.prefix().unwrap().unwrap().1, 0);
    assert!(args.default_v6_gateway.route.is_empty() && !args.default_v4_gateway.route.is_empty());
    let loopback = &args.loopback_links[0].routes[0].destination;
    assert_eq!(*loopback, IpNet::new("127.0.0.0".parse().unwrap(), 8));
    let mut text = Vec::new();
    json::encode(&args, &mut text).unwrap();
    let tidy: String = MASTER.split_whitespace().collect();
    let written = String::from_utf8(text).unwrap();
    // Go writes an unset mask as null, which we read, and an empty one as empty text.
    assert_eq!(written, tidy.replace(r#""Mask":null"#, r#""Mask":"""#));
    let old =
        r#"{"FDBasedLinks":[{"Name":"e","GvisorGSOEnabled":true,"GvisorGROTimeout":5,"NumChannels":2}]}"#;
    assert!(read(old).unwrap().fd_based_links[0].gvisor_gso_enabled);
}

#[test]
fn what_is_no_address_is_told() {
    let text = r#"{"FDBasedLinks":[{"Addresses":[{"Address":"10.1"}]}]}"#;
    assert!(read(text).unwrap_err().message.contains("invalid IP address: 10.1"));
    let mapped = r#"{"FDBasedLinks":[{"Addresses":[{"Address":"::ffff:1.2.3.4"}]}]}"#;
    assert_eq!(
        read(mapped).unwrap().fd_based_links[0].addresses[0].address.0,
        Some("1.2.3.4".parse().unwrap())
    );
    let net = |ip: &str, mask: &[u8]| IpNet { ip: Ip(ip.parse().ok()), mask: Base64(mask.to_vec()) }.prefix();
    assert_eq!(net("", &[]).unwrap(), None);
    assert_eq!(net("10.0.0.0", &[255, 0, 0, 0]).unwrap().unwrap().1, 8);
    let mapped: Vec<u8> = [[0xff; 12].as_slice(), &[255, 255, 0, 0]].concat();
    assert_eq!(net("10.0.0.0", &mapped).unwrap().unwrap().1, 16);
    for (ip, mask) in [
        ("10.0.0.0", &[255, 0][..]),
        ("10.0.0.0", &[]),
        ("", &[255; 4]),
        ("fe80::", &[255; 4]),
        ("10.0.0.0", &[255, 0, 255, 0]),
    ] {
        assert!(net(ip, mask).unwrap_err().message.starts_with("no network"), "{ip} {mask:?}");
    }
}

#[test]
fn descriptors_are_counted_as_gvisor_counts_them() {
    let link = |name: &str, channels| FdBasedLink {
        name: name.to_owned(),
        num_channels: channels,
        ..FdBasedLink::default()
    };
    let xdp = |bind| XdpLink { bind, num_channels: 1, ..XdpLink::default() };
    let mut args = CreateLinksAndRoutesArgs {
        fd_based_links: vec![link("a", 2), link("b", 1)].into(),
        pcap: true,
        ..Default::default()
    };
    let layout = args.layout(4).unwrap();
    assert_eq!((layout.fd_based, layout.pcap), (vec![0..2, 3..4], Some(2)));
    for wrong in [0, 3, 5, usize::MAX] {
        let told = args.layout(wrong).unwrap_err().message;
        assert_eq!(
            told,
            format!(
                "args.FilePayload.Files has {wrong} FDs but we need 4 entries based on FDBasedLinks, XDPLinks, and PCAP"
            )
        );
    }
    let told = |count| args.check_sufficient(count).map_err(|e| e.message);
    assert_eq!(told(1), Err("insufficient FDs provided for link \"a\"".to_owned()));
    assert_eq!(told(3), Err("insufficient FDs provided for link \"b\"".to_owned()));
    assert_eq!(told(4), Ok(()));
    args.nat_blob = true;
    assert_eq!(args.layout(5).unwrap().nat, Some(4));
    args.xdp_links = vec![xdp(0)].into();
    assert!(args.layout(5).unwrap_err().message.starts_with("received both fdbased and XDP links"));
    args.fd_based_links = List::default();
    assert_eq!(
        args.layout(6).unwrap(),
        LinkLayout { xdp: vec![0..4], pcap: Some(4), nat: Some(5), fd_based: vec![] }
    );
    args.xdp_links = vec![xdp(1)].into();
    assert_eq!(args.layout(3).unwrap().xdp, [0..1]);
    args.xdp_links = vec![xdp(2)].into();
    assert_eq!(args.layout(3).unwrap_err().message, "unknown bind value: 2");
    args.xdp_links = vec![xdp(0), xdp(0)].into();
    assert_eq!(args.layout(3).unwrap_err().message, "XDP only supports one link device, but got 2");
    for channels in [0, -1, 65, i32::MAX] {
        let args = CreateLinksAndRoutesArgs {
            fd_based_links: vec![link("a", channels)].into(),
            ..Default::default()
        };
        assert!(args.layout(1).unwrap_err().message.contains("NumChannels"), "{channels}");
    }
}

prop_compose! {
    fn any_link()(name in ".{0,20}", mtu: i32, qdisc: i32, channels: i32, mac: Vec<u8>, ip: Option<IpAddr>,
                  mask: Vec<u8>, prefix_len: i32, packet: Vec<bool>, rate: u64) -> FdBasedLink {
        let ip = Ip(ip.map(|ip| ip.to_canonical()));
        let route = Route { destination: IpNet { ip, mask: Base64(mask) }, gateway: ip, mtu: 7 };
        FdBasedLink {
            name, mtu, qdisc, num_channels: channels, link_address: Base64(mac.clone()), tbf_rate: rate,
            addresses: vec![IpWithPrefix { address: ip, prefix_len }].into(), routes: vec![route].into(),
            neighbors: vec![Neighbor { ip, hardware_addr: Base64(mac) }].into(), is_packet: packet.into(),
            ..FdBasedLink::default()
        }
    }
}

proptest! {
    #[test]
    fn arguments_survive_both_dialects(links in proptest::collection::vec(any_link(), 0..4), pcap: bool, bind: i32,
                                       count in 0usize..300) {
        let xdp = XdpLink { bind, ..XdpLink::default() };
        let args = CreateLinksAndRoutesArgs {
            fd_based_links: links.into(), xdp_links: vec![xdp].into(), pcap, ..Default::default()
        };
        let mut text = Vec::new();
        json::encode(&args, &mut text).unwrap();
        prop_assert_eq!(&json::from_slice::<CreateLinksAndRoutesArgs>(&text).unwrap(), &args);
        let mut bytes = Vec::new();
        codec::encode_into(&args, &mut bytes).unwrap();
        prop_assert_eq!(&codec::decode::<CreateLinksAndRoutesArgs>(&bytes).unwrap(), &args);
        drop(args.check_sufficient(count));
        if let Ok(layout) = args.layout(count) {
            prop_assert!(layout.fd_based.iter().all(|r| r.end <= count));
        }
    }

    #[test]
    fn networks_keep_their_prefix(ip: IpAddr, bits in 0u8..=128) {
        let ip = ip.to_canonical();
        let bits = if ip.is_ipv4() { bits.min(32) } else { bits };
        prop_assert_eq!(IpNet::new(ip, bits).prefix().unwrap(), Some((ip, bits)));
    }
}
