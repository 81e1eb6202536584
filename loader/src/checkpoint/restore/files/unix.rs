//! Unix sockets: names, connections, and what waits in them.
//!
//! All are made by this process. Pairs come from socketpair(2); an end that was accepted has its listener's name, so it
//! is accepted again, from a listener that is put in that place for the moment if the old one is gone. What waited to be
//! read is sent again by the other end, or by somebody with the sender's name.
#![forbid(unsafe_code)]

mod making;
mod names;

use super::{Context, file, in_container, name_of, put};
use crate::checkpoint::inet::options::{self, Room, When};
use crate::checkpoint::state::{FileKind, Id, SandboxState, SocketMessage, SocketState, UnixSocket};
use crate::sys::{net, unix};
use airlock_wire::error::{Error, Result};
use making::Maker;
use names::Reach;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What is kept until all is filled.
#[derive(Debug, Default)]
pub(super) struct Unix {
    /// Other ends that nobody has any more, by the socket that is connected to them. They send what was on its way, and
    /// are closed.
    others: BTreeMap<Id, OwnedFd>,
}

/// The unix sockets among `ids`.
fn sockets<'a>(ctx: &'a Context, ids: &[Id]) -> Result<Vec<(Id, &'a SocketState, &'a UnixSocket)>> {
    let mut all = Vec::new();
    for id in ids {
        if let FileKind::Socket(socket) = &file(&ctx.state, *id)?.kind
            && socket.family == libc::AF_UNIX
        {
            let unix = socket.unix.as_ref();
            let unix =
                unix.ok_or_else(|| Error::invalid_argument("the statefile is damaged: a unix socket"))?;
            all.push((*id, socket, unix));
        }
    }
    Ok(all)
}

impl Unix {
    /// Makes the unix sockets of a container: bound, listening, and connected where that does not need what is sent.
    pub(super) fn open(&mut self, ctx: &mut Context, container: Id, ids: &[Id]) -> Result<()> {
        let wanted = sockets(ctx, ids)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let names: BTreeMap<Id, String> =
            wanted.iter().map(|(id, ..)| (*id, name_of(&ctx.state, *id))).collect();
        let procfs = ctx.procfs.root();
        let made = in_container(ctx, container, libc::CLONE_NEWNS | libc::CLONE_NEWNET, || {
            let mut maker = Maker::new(procfs, &wanted, &names)?;
            maker.all()?;
            Ok(maker.done())
        })?;
        made.warnings.into_iter().for_each(|w| ctx.warn(w));
        for (id, fd) in made.sockets {
            put(ctx, id, fd)?;
        }
        self.others.extend(made.others);
        Ok(())
    }

    /// Sends what waited, then connects datagram sockets (which hear nobody else once they are), shuts down, and sets
    /// options.
    pub(super) fn fill(&mut self, ctx: &mut Context) -> Result<()> {
        for (container, ids) in super::by_container(ctx) {
            let wanted = sockets(ctx, &ids)?;
            if wanted.is_empty() {
                continue;
            }
            let mut warnings = Vec::new();
            let procs = ctx.procs.iter().flatten().filter(|p| p.container == container);
            let pids: BTreeMap<i32, i32> = procs.map(|p| (p.ns_pid, p.pid)).collect();
            let (others, state, files, procfs) = (&self.others, &ctx.state, &ctx.files, ctx.procfs.root());
            in_container(ctx, container, libc::CLONE_NEWNS | libc::CLONE_NEWNET, || {
                nix::unistd::fchdir(procfs)?;
                let (wanted, warnings) = (&wanted, &mut warnings);
                let mut filler = Filler { state, files, pids: &pids, wanted, others, warnings };
                filler.queues()?;
                filler.connect_datagrams()?;
                filler.finish()
            })?;
            warnings.into_iter().for_each(|w| ctx.warn(w));
        }
        self.others.clear();
        Ok(())
    }
}

struct Filler<'a> {
    state: &'a SandboxState,
    /// Descriptions by index.
    files: &'a [Option<OwnedFd>],
    /// Pids of the sandbox's pid namespace by those of the container's.
    pids: &'a BTreeMap<i32, i32>,
    wanted: &'a [(Id, &'a SocketState, &'a UnixSocket)],
    others: &'a BTreeMap<Id, OwnedFd>,
    warnings: &'a mut Vec<String>,
}

impl<'a> Filler<'a> {
    fn opened(&self, id: Id) -> Option<BorrowedFd<'a>> {
        self.files.get(id as usize)?.as_ref().map(AsFd::as_fd)
    }

    fn fd(&self, id: Id) -> Result<BorrowedFd<'a>> {
        self.opened(id).ok_or_else(|| Error::failure(format!("unix socket {id} was not made")))
    }

    /// The other end of a connection: that of the program, or ours.
    fn other_end(&self, id: Id, unix: &UnixSocket) -> Option<BorrowedFd<'a>> {
        let theirs = self.wanted.iter().find(|(_, s, _)| unix.peer != 0 && s.inode == unix.peer);
        theirs.and_then(|(other, ..)| self.opened(*other)).or_else(|| self.others.get(&id).map(AsFd::as_fd))
    }

    fn queues(&mut self) -> Result<()> {
        for (id, socket, unix) in self.wanted {
            let total = socket.queue.iter().map(|m| m.data.len()).sum();
            for message in &socket.queue {
                let sent = self.sender(*id, socket, unix, &message.from).and_then(|sender| {
                    let (from, address) = match &sender {
                        Sender::Other(fd) => (*fd, &[][..]),
                        Sender::Own(fd, to) => (fd.as_fd(), to.address.as_slice()),
                    };
                    let room = Room::make(from, total, 0);
                    let sent = self.send(from, address, message);
                    room.end(from);
                    sent
                });
                sent.map_err(|e| {
                    e.context(format!("what waited in the socket of {}", name_of(self.state, *id)))
                })?;
            }
        }
        Ok(())
    }

    fn send(&self, from: BorrowedFd<'_>, to: &[u8], message: &SocketMessage) -> Result<()> {
        let mut fds = Vec::with_capacity(message.files.len());
        for file in &message.files {
            let fd = self.opened(*file).ok_or_else(|| {
                Error::failure(format!("open file {file}, which was on its way, was not opened"))
            })?;
            fds.push(fd);
        }
        // Senders that are no more, and those that this process may not speak for, are left out.
        let creds = message.creds.and_then(|(pid, uid, gid)| Some((*self.pids.get(&pid)?, uid, gid)));
        let mut rest: &[u8] = &message.data;
        let mut fds = fds.as_slice();
        loop {
            let sent = match unix::send(from, rest, to, fds, creds) {
                Err(Errno::EPERM | Errno::ESRCH) if creds.is_some() => unix::send(from, rest, to, fds, None),
                other => other,
            }
            .map_err(|e| Error::from(e).context(format!("sending {} bytes again", rest.len())))?;
            rest = rest.get(sent..).unwrap_or_default();
            fds = &[];
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Who sends a message to a socket once more.
    fn sender(&self, id: Id, socket: &SocketState, unix: &UnixSocket, from: &[u8]) -> Result<Sender<'a>> {
        let nobody = || Error::failure("there is nobody to send it again");
        let paired = self.others.contains_key(&id) || self.is_pair(socket, unix);
        if socket.kind != libc::SOCK_DGRAM || paired {
            return self.other_end(id, unix).map(Sender::Other).ok_or_else(nobody);
        }
        if !has_name(&socket.local) {
            return Err(nobody());
        }
        let reach = Reach::to(self.fd(id)?, &socket.local)?;
        let is_from = |s: &SocketState| has_name(from) && s.kind == libc::SOCK_DGRAM && s.local.0 == from;
        if let Some((other, ..)) = self.wanted.iter().find(|(_, s, _)| is_from(s)) {
            return Ok(Sender::Own(self.fd(*other)?.try_clone_to_owned()?, reach));
        }
        let fd = net::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
        if has_name(from) {
            // Its name is free, since nobody has it; a path is only shown, so it need not lead anywhere.
            let _ = names::bind_anywhere(fd.as_fd(), from);
        }
        Ok(Sender::Own(fd, reach))
    }

    /// The socket's peer, if it is ours.
    fn peer(&self, unix: &UnixSocket) -> Option<(Id, &'a SocketState, &'a UnixSocket)> {
        self.wanted.iter().copied().find(|(_, s, _)| unix.peer != 0 && s.inode == unix.peer)
    }

    /// It came from socketpair(2): there is no other way to be connected to a socket that has no name.
    fn is_pair(&self, socket: &SocketState, unix: &UnixSocket) -> bool {
        self.peer(unix).is_some_and(|(_, s, u)| {
            u.peer == socket.inode && (!has_name(&socket.local) || !has_name(&s.local))
        })
    }

    /// Connects datagram sockets to the names that they were connected to.
    fn connect_datagrams(&mut self) -> Result<()> {
        let mut left = Vec::new();
        for (id, socket, unix) in self.wanted {
            if socket.kind != libc::SOCK_DGRAM || self.is_pair(socket, unix) || !has_name(&socket.remote) {
                continue;
            }
            match self.peer(unix) {
                Some((other, peer, _)) => left.push((*id, Some(Reach::to(self.fd(other)?, &peer.local)?))),
                None if unix.external => left.push((*id, None)),
                None => {}
            }
        }
        // One that is connected to somebody lets only that one connect to it: try until nothing moves any more.
        loop {
            let before = left.len();
            let mut last = Errno::ENOENT;
            left.retain(|(id, reach)| {
                let remote =
                    self.wanted.iter().find(|(i, ..)| i == id).map_or(&[][..], |(_, s, _)| &s.remote);
                let to = reach.as_ref().map_or(remote, |r| r.address.as_slice());
                let Some(fd) = self.opened(*id) else { return false };
                net::connect(fd, to).inspect_err(|e| last = *e).is_err()
            });
            if left.is_empty() {
                return Ok(());
            }
            if left.len() == before {
                for (id, _) in &left {
                    self.warnings.push(format!(
                        "{}: a datagram socket is not connected any more to what it was ({last})",
                        name_of(self.state, *id)
                    ));
                }
                return Ok(());
            }
        }
    }

    /// Shutdown, owner, options; those that would have been in the way come last.
    fn finish(&mut self) -> Result<()> {
        for (id, socket, _) in self.wanted {
            let fd = self.fd(*id)?;
            let named = |e: Error| e.context(format!("the unix socket of {}", name_of(self.state, *id)));
            if socket.listen.is_none() && socket.shutdown != 0 {
                let how = match socket.shutdown {
                    1 => libc::SHUT_RD,
                    2 => libc::SHUT_WR,
                    _ => libc::SHUT_RDWR,
                };
                match net::shutdown(fd, how) {
                    Ok(()) | Err(Errno::ENOTCONN) => {}
                    Err(e) => return Err(named(e.into())),
                }
            }
            let mut missing = Vec::new();
            options::apply(fd, &socket.options, When::Early, &mut missing)
                .and_then(|()| options::apply(fd, &socket.options, When::Late, &mut missing))
                .map_err(named)?;
            let stat = nix::sys::stat::fstat(fd)?;
            if (stat.st_uid, stat.st_gid) != socket.owner {
                nix::unistd::fchown(fd, Some(socket.owner.0.into()), Some(socket.owner.1.into()))?;
            }
        }
        Ok(())
    }
}

enum Sender<'a> {
    /// The other end of a connection.
    Other(BorrowedFd<'a>),
    /// A datagram socket, and where to send to.
    Own(OwnedFd, Reach),
}

/// An address with more than a family.
fn has_name(address: &[u8]) -> bool {
    address.len() > 2
}
