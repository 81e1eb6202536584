use super::*;
use crate::netlink::{LinkChange, Netlink};
use crate::sys::process;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::OwnedFd;

const SIZES: Sizes = Sizes { frame: 2048, receive: 64, send: 32 };

fn other(name: &str) -> std::fs::File {
    std::fs::File::open(name).unwrap()
}

/// Interfaces `a` and `b`, each other's other side, in a namespace of a thread of its own.
fn with_pair(work: impl FnOnce(u32, OwnedFd) + Send) {
    if !nix::unistd::geteuid().is_root() || socket().is_err() {
        eprintln!("SKIPPED: needs root and a kernel with AF_XDP");
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            process::unshare(libc::CLONE_NEWNET).unwrap();
            // Frames of nobody but us.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            let mut netlink = Netlink::open().unwrap();
            netlink.add_pair("a", 100, "b", other("/proc/thread-self/ns/net").as_fd()).unwrap();
            let b = netlink.link("b").unwrap().unwrap().index;
            for index in [100, b] {
                netlink.set_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
            }
            let packets = net::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).unwrap();
            let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
            address.extend(0x88b5u16.to_be_bytes());
            address.extend(b.to_ne_bytes());
            address.resize(20, 0);
            net::bind(packets.as_fd(), &address).unwrap();
            work(100, packets);
        });
        thread.join().unwrap();
    });
}

fn wait(fd: BorrowedFd<'_>) {
    let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(10_000u16));
    assert_eq!(ready, Ok(1));
}

/// A frame of the first of the types for experiments (IEEE 802).
fn frame(len: usize, mark: u8) -> Vec<u8> {
    [&[0xff; 6][..], &[2; 6], &[0x88, 0xb5], &vec![mark; len - 14]].concat()
}

#[test]
fn frames_go_both_ways_many_times_around() {
    for generic in [true, false] {
        with_pair(|interface, packets| {
            let xsk = socket().unwrap();
            let redirect = Redirect::attach(interface, generic).unwrap();
            assert_eq!(Redirect::attach(interface, generic).unwrap_err().errno, Errno::EBUSY);
            redirect.to(0, xsk.as_fd()).unwrap();
            assert_eq!(redirect.to(QUEUES, xsk.as_fd()), Err(Errno::E2BIG));
            let (mut receiver, mut sender) = open(xsk.as_fd(), SIZES).unwrap();
            assert_eq!(open(xsk.as_fd(), SIZES).unwrap_err(), Errno::EBUSY);
            assert_eq!(sender.kick(xsk.as_fd()), Err(Errno::ENXIO));
            bind(xsk.as_fd(), interface, 0).unwrap();
            assert!(bind(xsk.as_fd(), interface, 0).is_err());

            let (mut arena, mut lengths, mut buffer) = (vec![0; 4 * 2048], Vec::new(), [0; 2048]);
            for round in 0..5 * SIZES.receive {
                let len = 60 + round as usize;
                let text = frame(len, round as u8);
                net::send(packets.as_fd(), &text, &[], 0).unwrap();
                wait(xsk.as_fd());
                receiver.take(&mut arena, 2048, &mut lengths);
                assert_eq!((lengths.as_slice(), &arena[..len]), (&[len][..], text.as_slice()));
                assert!(sender.put(&[IoSlice::new(&text[..20]), IoSlice::new(&text[20..])]));
                sender.kick(xsk.as_fd()).unwrap();
                wait(packets.as_fd());
                let got = net::receive(packets.as_fd(), &mut buffer, 0).unwrap();
                assert_eq!(&buffer[..got.len], text.as_slice());
            }
            // Too long to be sent: left out. More than fit: told.
            assert!(sender.put(&[IoSlice::new(&[0; 2049])]));
            let fitting = (0..100).filter(|n| sender.put(&[IoSlice::new(&frame(60, *n))])).count();
            assert_eq!(fitting, SIZES.send as usize);
            assert_eq!(statistics(xsk.as_fd()), Ok(Statistics::default()));
        });
    }
}

#[test]
fn what_is_no_socket_of_this_kind_is_told() {
    let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(open(a.as_fd(), SIZES).is_err());
    assert!(statistics(a.as_fd()).is_err());
    assert_eq!(open(other("/dev/null").as_fd(), SIZES).unwrap_err(), Errno::ENOTSOCK);
}
