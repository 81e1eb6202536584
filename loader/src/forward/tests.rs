use super::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

/// What tells that the connection is gone.
struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// A client, a server, and what is between them.
fn forwarded(pump: &Pump) -> (UnixStream, TcpStream, u64, mpsc::Receiver<()>) {
    let (client, near) = UnixStream::pair().unwrap();
    let (far, server) = tcp();
    let (sender, gone) = mpsc::channel();
    let ends: [OwnedFd; 2] = [near.into(), far.into()];
    let id = pump.add(Connection::new(ends, Box::new(Told(sender))).unwrap()).unwrap();
    (client, server, id, gone)
}

#[test]
fn both_directions_carry_everything_and_close_one_after_the_other() {
    let pump = Pump::new().unwrap();
    let (mut client, mut server, _, gone) = forwarded(&pump);
    let sent: Vec<u8> = (0..5_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
    let expected = sent.clone();
    let upload = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        answer
    });
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).unwrap();
    assert!(heard == expected);
    // The other direction is still open.
    heard.reverse();
    server.write_all(&heard).unwrap();
    drop(server);
    assert!(upload.join().unwrap() == heard);
    gone.recv().unwrap();
}

#[test]
fn a_peer_that_vanishes_ends_it() {
    let pump = Pump::new().unwrap();
    // The server never says or hears anything; the client is gone altogether.
    let (mut client, mut server, _, gone) = forwarded(&pump);
    client.write_all(b"last words").unwrap();
    drop(client);
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"last words");
    gone.recv().unwrap();
    // The server is gone while the client writes without end.
    let (mut client, server, _, gone) = forwarded(&pump);
    drop(server);
    while client.write_all(&[0; 1 << 16]).is_ok() {}
    gone.recv().unwrap();
}

#[test]
fn a_connection_is_ended_from_outside_whoever_has_it_open() {
    let pump = Pump::new().unwrap();
    let (client, near) = UnixStream::pair().unwrap();
    let also = near.try_clone().unwrap();
    let (far, mut server) = tcp();
    let (sender, gone) = mpsc::channel();
    let id = pump.add(Connection::new([near.into(), far.into()], Box::new(Told(sender))).unwrap()).unwrap();
    pump.end(id);
    gone.recv().unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    assert_eq!((&client).read(&mut [0]).unwrap(), 0);
    drop(also);
    // It may be ended twice, and the pump begins anew.
    pump.end(id);
    let (mut client, mut server, _, _gone) = forwarded(&pump);
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_reader_that_stands_still_holds_up_nobody_else() {
    let pump = Pump::new().unwrap();
    let (still, mut flooding, _, _gone) = forwarded(&pump);
    flooding.set_nonblocking(true).unwrap();
    while flooding.write(&[1; 1 << 16]).is_ok() {}
    for _ in 0..20 {
        let (mut client, mut server, _, gone) = forwarded(&pump);
        client.write_all(b"ping").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        server.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "ping");
        drop(server);
        gone.recv().unwrap();
    }
    drop(still);
}

#[test]
fn only_connected_streams_are_taken() {
    let refused = |end: OwnedFd| {
        let (other, _) = tcp();
        Connection::new([end, other.into()], Box::new(())).unwrap_err().message
    };
    assert!(refused(std::fs::File::open("/dev/null").unwrap().into()).contains("no socket"));
    assert!(refused(std::os::unix::net::UnixDatagram::unbound().unwrap().into()).contains("another type"));
    assert!(refused(TcpListener::bind("127.0.0.1:0").unwrap().into()).contains("not connected"));
}
