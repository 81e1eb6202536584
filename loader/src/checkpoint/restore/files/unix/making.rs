//! Sockets made in the order that their connections need.
#![forbid(unsafe_code)]

use super::names;
use crate::checkpoint::state::{Id, SocketState, UnixSocket};
use crate::sys::{net, process, unix};
use airlock_wire::error::{Error, Result};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// SECBIT_NO_SETUID_FIXUP: a change of ids leaves capabilities alone.
const NO_SETUID_FIXUP: u64 = 4;
/// How many connections a listener that stands in takes.
const BACKLOG: i32 = 8;

type Wanted<'a> = (Id, &'a SocketState, &'a UnixSocket);

/// What was made.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub sockets: BTreeMap<Id, OwnedFd>,
    /// Other ends that belong to nobody.
    pub others: BTreeMap<Id, OwnedFd>,
    pub warnings: Vec<String>,
}

/// Makes sockets, on a thread that is in the container's mount and network namespaces.
pub(super) struct Maker<'a> {
    wanted: &'a [Wanted<'a>],
    names: &'a BTreeMap<Id, String>,
    made: Made,
}

impl<'a> Maker<'a> {
    pub(super) fn new(
        procfs: BorrowedFd<'a>,
        wanted: &'a [Wanted<'a>],
        names: &'a BTreeMap<Id, String>,
    ) -> Result<Self> {
        let mut inodes = std::collections::BTreeSet::new();
        for (_, socket, _) in wanted {
            let kind = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].contains(&socket.kind);
            if !inodes.insert(socket.inode) || !kind {
                return Err(Error::invalid_argument("the statefile is damaged: unix sockets"));
            }
        }
        nix::unistd::fchdir(procfs)?;
        // Whom the other end sees as its peer is whoever this thread is; the thread ends when the sockets are made.
        let _ = process::prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0, 0, 0);
        Ok(Self { wanted, names, made: Made::default() })
    }

    pub(super) fn done(self) -> Made {
        self.made
    }

    pub(super) fn all(&mut self) -> Result<()> {
        let wanted = self.wanted;
        // Listeners first: others connect to them.
        for one in wanted.iter().filter(|(_, s, _)| s.listen.is_some()) {
            self.listener(*one).map_err(|e| self.named(one.0, e))?;
        }
        for one in wanted {
            if !self.made.sockets.contains_key(&one.0) {
                self.make(*one).map_err(|e| self.named(one.0, e))?;
            }
        }
        for (id, socket, unix) in wanted.iter().filter(|(_, s, _)| s.listen.is_some()) {
            let inodes = unix.pending.clone();
            self.pending(*id, socket, unix, &inodes).map_err(|e| self.named(*id, e))?;
        }
        Ok(())
    }

    fn named(&self, id: Id, e: Error) -> Error {
        e.context(format!("the unix socket of {}", self.names.get(&id).map_or("nobody", String::as_str)))
    }

    fn find(&self, inode: u64) -> Option<Wanted<'a>> {
        self.wanted.iter().copied().find(|(_, s, _)| inode != 0 && s.inode == inode)
    }

    fn new_socket(kind: i32) -> Result<OwnedFd> {
        Ok(net::socket(libc::AF_UNIX, kind, 0)?)
    }

    /// Runs `work` as the user who had done it, as far as that can be told from outside.
    fn acting<T>(unix: &UnixSocket, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (_, uid, gid) = unix.peer_creds;
        let become_other = (uid, gid) != (0, 0) && crate::sys::files::act_as(uid, gid).is_ok();
        let result = work();
        if become_other {
            crate::sys::files::act_as(0, 0)?;
        }
        result
    }

    fn listener(&mut self, (id, socket, unix): Wanted<'a>) -> Result<()> {
        let fd = Self::new_socket(socket.kind)?;
        names::bind(fd.as_fd(), socket, unix)?;
        let backlog = i32::try_from(socket.listen.unwrap_or(0)).unwrap_or(i32::MAX);
        // There has to be room for those who wait, whatever the backlog is now.
        let room = i32::try_from(unix.pending.len()).unwrap_or(i32::MAX).saturating_add(BACKLOG);
        Self::acting(unix, || Ok(net::listen(fd.as_fd(), backlog.max(room))?))?;
        self.made.sockets.insert(id, fd);
        Ok(())
    }

    fn make(&mut self, one: Wanted<'a>) -> Result<()> {
        let (id, socket, unix) = one;
        let peer = self.find(unix.peer);
        if unix.connecting_to != 0 {
            let fd = Self::new_socket(socket.kind)?;
            if socket.local.len() > 2 {
                names::bind(fd.as_fd(), socket, unix)?;
            }
            self.made.sockets.insert(id, fd);
            return Ok(());
        }
        if socket.kind == libc::SOCK_DGRAM {
            return self.datagram(one, peer);
        }
        if unix.external {
            let fd = Self::new_socket(socket.kind)?;
            net::connect(fd.as_fd(), &socket.remote).map_err(|e| {
                Error::from(e).context(format!("connecting it to {} again", names::show(&socket.remote)))
            })?;
            self.made.sockets.insert(id, fd);
            return Ok(());
        }
        match peer {
            Some(other) if other.2.peer == socket.inode => {
                let (a, b) = self.connection(one, Some(other))?;
                self.made.sockets.insert(id, a);
                self.made.sockets.insert(other.0, b);
            }
            Some(_) => {
                return Err(Error::invalid_argument("the statefile is damaged: peers of unix sockets"));
            }
            None if is_connected(socket) => {
                let (own, other) = self.connection(one, None)?;
                self.made.sockets.insert(id, own);
                self.made.others.insert(id, other);
            }
            None => {
                let fd = Self::new_socket(socket.kind)?;
                if socket.local.len() > 2 {
                    names::bind(fd.as_fd(), socket, unix)?;
                }
                self.made.sockets.insert(id, fd);
            }
        }
        Ok(())
    }

    /// Both ends of a connection, `one`'s first.
    fn connection(&mut self, one: Wanted<'a>, other: Option<Wanted<'a>>) -> Result<(OwnedFd, OwnedFd)> {
        let local = |w: Wanted<'a>| Some(w).filter(|w| w.1.local.len() > 2);
        let others_name = other.map_or(one.1.remote.0.as_slice(), |o| o.1.local.0.as_slice());
        // The end that was accepted has its listener's name.
        let listener = |name: &[u8]| {
            self.wanted
                .iter()
                .find(|(_, s, _)| {
                    s.listen.is_some() && s.kind == one.1.kind && s.local.0 == name && name.len() > 2
                })
                .copied()
        };
        let (by_one, by_other) = (listener(&one.1.local), listener(others_name));
        if local(one).is_none() && others_name.len() <= 2 {
            return Self::acting(one.2, || Ok(unix::pair(one.1.kind)?));
        }
        // `one` was accepted, unless its name is its own and the other's a listener's.
        let one_accepted = local(one).is_some() && (by_other.is_none() || by_one.is_some());
        let (accepted_name, standing) =
            if one_accepted { (one.1.local.0.as_slice(), by_one) } else { (others_name, by_other) };
        let client = Self::new_socket(one.1.kind)?;
        let client_is = if one_accepted { other } else { Some(one) };
        if let Some((_, socket, unix)) = client_is.and_then(local) {
            names::bind(client.as_fd(), socket, unix)?;
        } else if one_accepted && other.is_none() && others_name.len() > 2 {
            let _ = names::bind_anywhere(client.as_fd(), others_name);
        }
        // What the accepted end is told of its peer is who connects.
        let creds = if one_accepted { one.2 } else { other.map_or(one.2, |o| o.2) };
        let accepted = match standing {
            Some((id, socket, _)) => {
                let fd =
                    self.made.sockets.get(&id).ok_or_else(|| Error::failure("its listener was not made"))?;
                let reach = names::Reach::to(fd.as_fd(), &socket.local)?;
                Self::acting(creds, || Ok(net::connect(client.as_fd(), &reach.address)?))?;
                net::accept(fd.as_fd())?
            }
            None => match Self::stand_in(one.1.kind, accepted_name, &client, creds) {
                Ok(accepted) => accepted,
                Err(e) => {
                    self.made.warnings.push(format!(
                        "{}: a unix socket has lost the name {}: {e}",
                        self.names.get(&one.0).map_or("nobody", String::as_str),
                        names::show(accepted_name)
                    ));
                    return Ok(unix::pair(one.1.kind)?);
                }
            },
        };
        Ok(if one_accepted { (accepted, client) } else { (client, accepted) })
    }

    /// A connection through a listener that is there for this alone.
    fn stand_in(kind: i32, name: &[u8], client: &OwnedFd, creds: &UnixSocket) -> Result<OwnedFd> {
        let listener = Self::new_socket(kind)?;
        names::bind_anywhere(listener.as_fd(), name)?;
        net::listen(listener.as_fd(), 1)?;
        let reach = names::Reach::to(listener.as_fd(), name)?;
        Self::acting(creds, || Ok(net::connect(client.as_fd(), &reach.address)?))?;
        Ok(net::accept(listener.as_fd())?)
    }

    fn datagram(&mut self, (id, socket, unix): Wanted<'a>, peer: Option<Wanted<'a>>) -> Result<()> {
        if let Some((other, theirs, their_unix)) = peer
            && their_unix.peer == socket.inode
            && other != id
            && (socket.local.len() <= 2 || theirs.local.len() <= 2)
        {
            let (a, b) = Self::acting(unix, || Ok(unix::pair(socket.kind)?))?;
            for (fd, s, u) in [(&a, socket, unix), (&b, theirs, their_unix)] {
                if s.local.len() > 2 {
                    names::bind(fd.as_fd(), s, u)?;
                }
            }
            self.made.sockets.insert(id, a);
            self.made.sockets.insert(other, b);
            return Ok(());
        }
        // One whose other end was closed: it still has what that one sent.
        if peer.is_none() && socket.local.len() <= 2 && !socket.queue.is_empty() {
            let (own, other) = unix::pair(socket.kind)?;
            self.made.sockets.insert(id, own);
            self.made.others.insert(id, other);
            return Ok(());
        }
        let fd = Self::new_socket(socket.kind)?;
        if socket.local.len() > 2 {
            names::bind(fd.as_fd(), socket, unix)?;
        }
        self.made.sockets.insert(id, fd);
        Ok(())
    }

    /// Connects those who wait to be accepted, in their order.
    fn pending(&mut self, id: Id, socket: &SocketState, unix: &UnixSocket, inodes: &[u64]) -> Result<()> {
        for inode in inodes {
            let Some((client, _, theirs)) = self.find(*inode) else { continue };
            let (Some(fd), Some(listener)) = (self.made.sockets.get(&client), self.made.sockets.get(&id))
            else {
                return Err(Error::failure("a client was not made"));
            };
            let reach = names::Reach::to(listener.as_fd(), &socket.local)?;
            Self::acting(theirs, || Ok(net::connect(fd.as_fd(), &reach.address)?))?;
        }
        if let (Some(fd), Some(backlog)) = (self.made.sockets.get(&id), socket.listen) {
            Self::acting(unix, || Ok(net::listen(fd.as_fd(), i32::try_from(backlog).unwrap_or(i32::MAX))?))?;
        }
        Ok(())
    }
}

/// It was connected, and the other end is closed.
fn is_connected(socket: &SocketState) -> bool {
    // getpeername(2) tells at least the family then.
    !socket.remote.is_empty()
}
