//! A consumer of gVisor's remote sink, written from its description: a SOCK_SEQPACKET socket, a handshake, messages with a
//! header of eight bytes. It shares no code with airlock.
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// One that shakes hands, on a thread, with every peer that comes.
pub struct Consumer {
    dir: tempfile::TempDir,
    peers: Receiver<OwnedFd>,
}

/// A connection.
pub struct Peer(OwnedFd);

/// A message: its header, and its fields by number.
#[derive(Debug)]
pub struct Told {
    pub kind: u16,
    pub dropped: u32,
    fields: Vec<(u64, Field)>,
}

#[derive(Debug)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Consumer {
    pub fn new() -> Self {
        Self::answering(&[8, 1])
    }

    /// One that answers the handshake with these bytes.
    pub fn answering(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&dir.path().join("sink")).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let (bytes, (comes, peers)) = (bytes.to_vec(), channel());
        // accept(2) is the same for all kinds.
        let listener = UnixListener::from(listener);
        std::thread::spawn(move || {
            for peer in listener.incoming() {
                let peer = OwnedFd::from(peer.unwrap());
                let mut hello = [0; 16];
                let n = recv(peer.as_raw_fd(), &mut hello, MsgFlags::empty()).unwrap();
                assert_eq!(hello[..n], [8, 1], "Handshake{{version: 1}}");
                // Who only tests our patience may be gone.
                let _ = send(peer.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL);
                setsockopt(&peer, sockopt::ReceiveTimeout, &TimeVal::new(60, 0)).unwrap();
                if comes.send(peer).is_err() {
                    return;
                }
            }
        });
        Self { dir, peers }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("sink")
    }

    /// The file of a session that tells this consumer.
    pub fn config(&self, points: Value, mut sink: Value) -> String {
        sink["endpoint"] = json!(self.path());
        let session = json!({"trace_session": {
            "name": "Default", "points": points, "sinks": [{"name": "remote", "config": sink}],
        }});
        let path = self.dir.path().join("config.json");
        std::fs::write(&path, session.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The next peer that has come.
    pub fn accept(&self) -> Peer {
        Peer(self.peers.recv_timeout(Duration::from_secs(60)).unwrap())
    }
}

impl Peer {
    /// The next message; `None` at the end.
    pub fn receive(&mut self) -> Option<Told> {
        self.take(MsgFlags::empty())
    }

    /// The next message, if there is one.
    pub fn try_receive(&mut self) -> Option<Told> {
        self.take(MsgFlags::MSG_DONTWAIT)
    }

    fn take(&mut self, flags: MsgFlags) -> Option<Told> {
        let mut buffer = vec![0; 256 << 10];
        let n = match recv(self.0.as_raw_fd(), &mut buffer, flags) {
            Ok(0) => return None,
            Err(nix::errno::Errno::EAGAIN) if flags.contains(MsgFlags::MSG_DONTWAIT) => return None,
            Ok(n) => n,
            Err(e) => panic!("receiving an event: {e}"),
        };
        let message = &buffer[..n];
        let header = u16::from_ne_bytes([message[0], message[1]]);
        assert_eq!(header, 8, "size of the header");
        Some(Told {
            kind: u16::from_ne_bytes([message[2], message[3]]),
            dropped: u32::from_ne_bytes(message[4..8].try_into().unwrap()),
            fields: fields(&message[8..]),
        })
    }
}

impl Told {
    fn all(&self, number: u64) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(move |(n, _)| *n == number).map(|(_, field)| field)
    }

    pub fn number(&self, number: u64) -> Option<u64> {
        self.all(number).find_map(|f| if let Field::Number(n) = f { Some(*n) } else { None })
    }

    pub fn texts(&self, number: u64) -> Vec<String> {
        let text = |f: &Field| match f {
            Field::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Field::Number(n) => panic!("field {number} is the number {n}"),
        };
        self.all(number).map(text).collect()
    }

    pub fn text(&self, number: u64) -> String {
        self.texts(number).into_iter().next().unwrap_or_default()
    }

    pub fn message(&self, number: u64) -> Told {
        match self.all(number).next() {
            Some(Field::Bytes(bytes)) => Told { kind: 0, dropped: 0, fields: fields(bytes) },
            other => panic!("field {number} is {other:?}"),
        }
    }
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            2 => {
                let len = varint(&mut bytes) as usize;
                let (content, rest) = bytes.split_at(len);
                bytes = rest;
                Field::Bytes(content.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, field));
    }
    all
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut n = 0;
    for shift in (0..).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    n
}
