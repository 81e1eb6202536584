//! The kernel's table of unix sockets (sock_diag(7)): what no call on a socket itself tells.
#![forbid(unsafe_code)]

use crate::checkpoint::inet::netlink::{Netlink, attributes};
use airlock_wire::error::Result;
use std::collections::HashMap;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// What is shown of a unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// TCP_ESTABLISHED 1, TCP_CLOSE 7, TCP_LISTEN 10.
    pub state: u8,
    /// Inode of the peer; 0: none, or one without a descriptor: closed, or not accepted yet.
    pub peer: u64,
    /// Of a listener: inodes of the sockets that wait for their connection to be accepted, the oldest first.
    pub waiting: Vec<u64>,
    /// Of a listener: its backlog.
    pub backlog: u32,
    /// Shut down: 1 for reading, 2 for writing.
    pub shutdown: u8,
    /// Device and inode of the file it is bound to.
    pub file: Option<(u64, u64)>,
}

/// State of a listener.
pub const LISTEN: u8 = 10;
/// State of one that is connected (a datagram socket is so for ever once it was).
pub const ESTABLISHED: u8 = 1;

/// All unix sockets of the calling thread's network namespace, by inode.
///
/// # Errors
/// The kernel's: `ENOENT` without CONFIG_UNIX_DIAG.
pub fn table() -> Result<HashMap<u64, Entry>> {
    /// Names are read elsewhere: VFS, PEER, ICONS, RQLEN.
    const SHOW: u32 = 2 | 4 | 8 | 16;
    let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
    for word in [u32::MAX, 0, SHOW, 0, 0] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    let answers = Netlink::open(NETLINK_SOCK_DIAG)?.dump(SOCK_DIAG_BY_FAMILY, &request)?;
    Ok(answers.iter().filter_map(|(_, body)| parse(body)).collect())
}

pub(in super::super) fn parse(body: &[u8]) -> Option<(u64, Entry)> {
    const HEADER: usize = 16;
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mut entry = Entry { state: *body.get(2)?, ..Entry::default() };
    let ino = word(body, 4)?;
    for (kind, value) in attributes(body.get(HEADER..)?) {
        match kind & 0x3fff {
            1 => {
                let (ino, dev) = (word(value, 0)?, word(value, 4)?);
                entry.file = Some((super::super::fdinfo::device(u64::from(dev)), u64::from(ino)));
            }
            2 => entry.peer = u64::from(word(value, 0)?),
            3 => {
                entry.waiting =
                    (0..value.len() / 4).filter_map(|i| word(value, 4 * i)).map(u64::from).collect()
            }
            4 => entry.backlog = word(value, 4)?,
            6 => entry.shutdown = *value.first()?,
            _ => {}
        }
    }
    Some((u64::from(ino), entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(fd: impl AsFd) -> u64 {
        nix::sys::stat::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn who_is_connected_to_whom() {
        let (a, b) = UnixStream::pair().unwrap();
        b.shutdown(std::net::Shutdown::Write).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let clients = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
        let table = table().unwrap();
        let (ea, eb) = (&table[&inode(&a)], &table[&inode(&b)]);
        assert_eq!((ea.peer, eb.peer), (inode(&b), inode(&a)));
        assert_eq!((ea.state, ea.shutdown, eb.shutdown), (ESTABLISHED, 1, 2));
        let el = &table[&inode(&listener)];
        assert_eq!((el.state, el.waiting.clone()), (LISTEN, clients.iter().map(inode).collect()));
        assert!(el.backlog > 0);
        assert_eq!(el.file.map(|f| f.1), Some(nix::sys::stat::stat(&path).unwrap().st_ino));
        assert_eq!(table[&inode(&clients[0])].peer, 0);
    }

    proptest! {
        #[test]
        fn hostile_answers_never_panic(body: Vec<u8>) {
            let _ = parse(&body);
        }
    }
}
