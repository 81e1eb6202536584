//! Unix sockets: who is connected to whom, names, what waits to be read and to be accepted.
#![forbid(unsafe_code)]

pub mod diag;
mod queue;

use super::{Collector, Place, path, scan};
use crate::checkpoint::inside;
use crate::checkpoint::state::{FileKind, Id, SocketMessage, SocketState, UnixSocket};
use crate::sys::files as call;
use crate::sys::{net, process};
use airlock_wire::error::{Error, Result};
use diag::Entry;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Offset of the name in an address.
const FAMILY: usize = 2;

/// The tables of the containers' network namespaces, by inode.
pub(super) type Table = HashMap<u64, Entry>;

/// The path in an address, as it was given to bind(2); none for unnamed and abstract ones.
pub(super) fn path_in(address: &[u8]) -> Option<&[u8]> {
    let name = address.get(FAMILY..)?;
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    (end > 0).then(|| &name[..end])
}

impl Collector<'_> {
    pub(super) fn describe_socket(&mut self, index: usize) -> Result<()> {
        let fd = self.open(index)?;
        let family = net::get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN)
            .map_err(|e| Error::from(e).context("asking a socket for its family"))?;
        if family == libc::AF_UNIX {
            return self.describe_unix(index, &fd);
        }
        match self.sockets.inspect(&self.ctx.procfs, fd.as_fd()) {
            Ok(socket) => self.state(index).kind = FileKind::Socket(socket),
            Err(refusal) => self.refuse(index, &refusal.kind, refusal.what),
        }
        Ok(())
    }

    /// Reads the tables of all network namespaces that containers have.
    fn unix_table(&mut self) -> Result<&Table> {
        if self.unix.is_none() {
            let mut table = Table::new();
            let mut seen: Vec<std::ffi::OsString> = Vec::new();
            for container in &self.ctx.order.containers {
                let link = format!("{}/ns/net", container.init);
                let ns = nix::fcntl::readlinkat(self.ctx.procfs.root(), link.as_str())?;
                if seen.contains(&ns) {
                    continue;
                }
                seen.push(ns);
                let init = process::pidfd_open(container.init)?;
                table.extend(inside::run(init.as_fd(), libc::CLONE_NEWNET, diag::table)?);
            }
            self.unix = Some(table);
        }
        self.unix.as_ref().ok_or_else(|| Error::failure("no table of unix sockets"))
    }

    /// The entry of a socket, wherever it was made.
    fn unix_entry(&mut self, inode: u64, fd: BorrowedFd<'_>) -> Result<Option<Entry>> {
        if let Some(entry) = self.unix_table()?.get(&inode) {
            return Ok(Some(entry.clone()));
        }
        let Ok(ns) = net::namespace(fd) else { return Ok(None) };
        let other = inside::run(ns.as_fd(), libc::CLONE_NEWNET, diag::table)?;
        let table = self.unix.get_or_insert_default();
        table.extend(other);
        Ok(table.get(&inode).cloned())
    }

    fn describe_unix(&mut self, index: usize, fd: &OwnedFd) -> Result<()> {
        let inode = self.found[index].raw.stat.st_ino;
        let Some(entry) = self.unix_entry(inode, fd.as_fd())? else {
            let what =
                "a unix socket of a network namespace that no container has and that cannot be entered";
            self.refuse(index, "socket", what);
            return Ok(());
        };
        let kind = net::get_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE)?;
        let listening = entry.state == diag::LISTEN;
        let stat = self.found[index].raw.stat;
        let mut socket = SocketState {
            family: libc::AF_UNIX,
            kind,
            inode,
            options: self.options.changed(fd.as_fd(), (libc::AF_UNIX, kind, 0), false),
            local: net::local(fd.as_fd()).unwrap_or_default().into(),
            remote: net::remote(fd.as_fd()).unwrap_or_default().into(),
            listen: listening.then_some(entry.backlog),
            shutdown: entry.shutdown,
            owner: (stat.st_uid, stat.st_gid),
            ..SocketState::default()
        };
        let mut unix = UnixSocket { peer: entry.peer, pending: entry.waiting, ..UnixSocket::default() };
        let mut creds = [0u8; 12];
        if net::get(fd.as_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, &mut creds) == Ok(12) {
            let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| creds[at + i]));
            unix.peer_creds = (self.local_pid(word(0) as i32), word(4), word(8));
        }
        self.bound_file(index, fd, &socket, &mut unix)?;
        if kind == libc::SOCK_DGRAM || entry.state == diag::ESTABLISHED {
            socket.queue = self.unread(index, fd, kind)?;
        }
        socket.unix = Some(unix);
        self.state(index).kind = FileKind::Socket(socket);
        self.unix_sockets.insert(inode, index);
        Ok(())
    }

    /// Finds the file that a socket is bound to.
    fn bound_file(
        &mut self,
        index: usize,
        fd: &OwnedFd,
        socket: &SocketState,
        unix: &mut UnixSocket,
    ) -> Result<()> {
        if path_in(&socket.local).is_none() {
            return Ok(());
        }
        let (container, process) = (self.found[index].container, self.found[index].process);
        let Some(init) = self.ctx.order.containers.get(container as usize).map(|c| c.init) else {
            return Ok(());
        };
        let file = call::ioctl_open(fd.as_fd(), call::SIOCUNIXFILE)
            .map_err(|e| Error::from(e).context("asking a unix socket for its file (needs CAP_NET_ADMIN)"))?;
        let Some(raw) = scan::look_at_own(&self.ctx.procfs, init, &[file.as_fd()])?.pop() else {
            return Ok(());
        };
        let reachable = raw.reachable();
        if !reachable && !raw.link.ends_with(" (deleted)") {
            let pid = self.ctx.procs.get(process).map_or(0, |p| p.ns_pid);
            self.ctx.warn(format!(
                "the socket {} of process {pid} cannot be reached by that path, and nobody will be able to connect to it",
                raw.link
            ));
        }
        let described = path::describe(raw.link.strip_suffix(" (deleted)").unwrap_or(&raw.link), &raw.stat);
        (unix.path, unix.mode, unix.owner) = (Some(described.path), described.mode & 0o7777, described.owner);
        unix.unlinked = !reachable;
        Ok(())
    }

    /// What waits to be read; descriptors in it become descriptions like all others.
    fn unread(&mut self, index: usize, fd: &OwnedFd, kind: i32) -> Result<Vec<SocketMessage>> {
        let pieces = queue::peek(fd.as_fd(), kind)?;
        let (process, container) = (self.found[index].process, self.found[index].container);
        let init = self.ctx.order.containers.get(container as usize).map_or(0, |c| c.init);
        let mut messages = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let mut files: Vec<Id> = Vec::with_capacity(piece.fds.len());
            if !piece.fds.is_empty() {
                let refs: Vec<BorrowedFd<'_>> = piece.fds.iter().map(AsFd::as_fd).collect();
                let raws = scan::look_at_own(&self.ctx.procfs, init, &refs)?;
                for (fd, mut raw) in piece.fds.into_iter().zip(raws) {
                    raw.fd = -1;
                    let found = self.register(Place::Own(fd), raw, process, container)?;
                    files.push(self.found[found].id);
                }
            }
            messages.push(SocketMessage {
                from: piece.from.into(),
                data: piece.data.into(),
                files,
                creds: piece.creds.map(|(pid, uid, gid)| (self.local_pid(pid), uid, gid)),
            });
        }
        Ok(messages)
    }

    fn unix_state(&mut self, index: usize) -> Option<&mut SocketState> {
        match &mut self.state(index).kind {
            FileKind::Socket(socket) if socket.unix.is_some() => Some(socket),
            _ => None,
        }
    }

    /// Sees to the other ends, now that all are known.
    pub(super) fn complete_unix(&mut self) -> Result<()> {
        let listeners: Vec<usize> = self.unix_sockets.values().copied().collect();
        let mut waiting: HashMap<u64, u64> = HashMap::new();
        for index in listeners {
            let Some(socket) = self.unix_state(index) else { continue };
            let inode = socket.inode;
            let Some(pending) = socket.unix.as_mut().map(|u| std::mem::take(&mut u.pending)) else {
                continue;
            };
            let (saved, strangers): (Vec<u64>, Vec<u64>) =
                pending.into_iter().partition(|i| self.unix_sockets.contains_key(i));
            if !strangers.is_empty() {
                self.ctx.warn(format!(
                    "{} connections from outside the sandbox that wait to be accepted by a unix socket will be broken",
                    strangers.len()
                ));
            }
            waiting.extend(saved.iter().map(|client| (*client, inode)));
            if let Some(unix) = self.unix_state(index).and_then(|s| s.unix.as_mut()) {
                unix.pending = saved;
            }
        }
        let mut all: Vec<(u64, usize)> =
            self.unix_sockets.iter().map(|(inode, index)| (*inode, *index)).collect();
        all.sort_unstable();
        for (inode, index) in all {
            self.complete_one(index, waiting.get(&inode).copied())?;
        }
        Ok(())
    }

    fn complete_one(&mut self, index: usize, listener: Option<u64>) -> Result<()> {
        let Some(socket) = self.unix_state(index) else { return Ok(()) };
        let (kind, shutdown, named) = (socket.kind, socket.shutdown, path_in(&socket.remote).is_some());
        let (peer, listens) = (socket.unix.as_ref().map_or(0, |u| u.peer), socket.listen.is_some());
        let inode = socket.inode;
        if let Some(listener) = listener {
            if let Some(unix) = socket.unix.as_mut() {
                unix.connecting_to = listener;
            }
            let fd = self.open(index)?;
            if call::ioctl_get(fd.as_fd(), call::SIOCOUTQ).is_ok_and(|n| n > 0) {
                self.refuse(
                    index,
                    "connection that is not accepted yet",
                    "data was sent over it that nobody but the program that accepts it can read; try again a moment later",
                );
            }
            return Ok(());
        }
        let connected = self.unix_table()?.get(&inode).is_some_and(|e| e.state == diag::ESTABLISHED);
        let lost = match peer {
            _ if listens => false,
            // Closed, or waiting in the queue of a listener that is not ours.
            0 => connected && kind != libc::SOCK_DGRAM && shutdown != 3,
            peer => !self.unix_sockets.contains_key(&peer),
        };
        if !lost {
            return Ok(());
        }
        if peer != 0 && self.excluded_has(&format!("socket:[{peer}]")) {
            let pid = self.ctx.procs.get(self.found[index].process).map_or(0, |p| p.ns_pid);
            self.ctx.warn(format!(
                "a unix socket of process {pid} leads to an exec session, which is not saved: its other end will be closed"
            ));
            return Ok(());
        }
        // A datagram socket just sends to a path, and whoever is there then gets it: syslog, systemd's notifications.
        if named && (kind == libc::SOCK_DGRAM || self.ctx.order.ext_unix_sk) {
            if let Some(unix) = self.unix_state(index).and_then(|s| s.unix.as_mut()) {
                unix.external = true;
            }
            return Ok(());
        }
        let hint = if named { " (with --ext-unix-sk it would be connected anew)" } else { "" };
        self.refuse(
            index,
            "socket to the outside",
            format!("the other end of unix socket {inode} is in no process of the sandbox{hint}"),
        );
        Ok(())
    }
}
