//! Pipes and FIFOs: who has which end, and what is in them.
#![forbid(unsafe_code)]

use super::{Collector, path};
use crate::checkpoint::state::{Bytes, FileKind};
use crate::sys::files as call;
use airlock_wire::error::Result;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};

/// More than a pipe holds, unless a privileged process made it larger.
const MAX: usize = 64 << 20;

impl Collector<'_> {
    /// `pipe:[…]`; its data and its other end are looked at when all descriptions are known.
    pub(super) fn describe_pipe(&mut self, index: usize) -> Result<()> {
        let fd = self.open(index)?;
        let stat = self.found[index].raw.stat;
        self.state(index).kind = FileKind::Pipe {
            pipe: stat.st_ino,
            write: self.found[index].raw.info.flags & libc::O_ACCMODE == libc::O_WRONLY,
            size: fcntl(&fd, FcntlArg::F_GETPIPE_SZ)? as u32,
            data: Bytes::default(),
            packets: Vec::new(),
            owner: (stat.st_uid, stat.st_gid),
        };
        self.pipes.push(index);
        Ok(())
    }

    pub(super) fn describe_fifo(&mut self, index: usize, reachable: bool) -> Result<()> {
        let fd = self.open(index)?;
        let (stat, link) = (self.found[index].raw.stat, self.found[index].raw.link.clone());
        let name = if reachable { link.as_str() } else { link.strip_suffix(" (deleted)").unwrap_or(&link) };
        self.state(index).kind = FileKind::Fifo {
            file: path::describe(name, &stat),
            pipe: stat.st_ino,
            size: fcntl(&fd, FcntlArg::F_GETPIPE_SZ)? as u32,
            data: Bytes::default(),
            packets: Vec::new(),
            deleted: !reachable,
        };
        self.pipes.push(index);
        Ok(())
    }

    /// Looks at each pipe as a whole.
    pub(super) fn complete_pipes(&mut self) -> Result<()> {
        let mut pipes: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
        for index in std::mem::take(&mut self.pipes) {
            pipes.entry(self.found[index].raw.identity()).or_default().push(index);
        }
        for ends in pipes.into_values() {
            let access = |index: usize| self.found[index].raw.info.flags & libc::O_ACCMODE;
            let reader = ends.iter().copied().find(|i| access(*i) != libc::O_WRONLY);
            let writer = ends.iter().copied().find(|i| access(*i) != libc::O_RDONLY);
            if reader.is_none() || writer.is_none() {
                self.half(&ends, reader.is_some())?;
            }
            let Some(reader) = reader else { continue };
            let packets = ends.iter().any(|i| self.found[*i].raw.info.flags & libc::O_DIRECT != 0);
            let fd = self.open(reader)?;
            let (bytes, lengths) = peek(fd.as_fd(), packets)?;
            if let FileKind::Pipe { data, packets, .. } | FileKind::Fifo { data, packets, .. } =
                &mut self.state(reader).kind
            {
                (*data, *packets) = (bytes.into(), lengths);
            }
        }
        Ok(())
    }

    /// One end is not in any saved process: it is closed, or somebody else has it.
    fn half(&mut self, ends: &[usize], have_reader: bool) -> Result<()> {
        let Some(index) = ends.first().copied() else { return Ok(()) };
        let fd = self.open(index)?;
        let mut polled = [PollFd::new(fd.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO)?;
        let gone = if have_reader { PollFlags::POLLHUP } else { PollFlags::POLLERR };
        let closed = polled[0].revents().is_some_and(|r| r.contains(gone));
        // A FIFO can be opened again by whoever wants to: nothing is lost for ever.
        if closed || matches!(self.state(index).kind, FileKind::Fifo { .. }) {
            return Ok(());
        }
        let link = self.found[index].raw.link.clone();
        if self.excluded_has(&link) {
            let pid = self.ctx.procs.get(self.found[index].process).map_or(0, |p| p.ns_pid);
            self.ctx.warn(format!(
                "{link} of process {pid} leads to an exec session, which is not saved: its other end will be closed"
            ));
            return Ok(());
        }
        for index in ends {
            self.refuse(
                *index,
                "pipe to the outside",
                format!("the other end of {link} is in no process of the sandbox: close it, or pass it again as a standard stream"),
            );
        }
        Ok(())
    }

    /// An exec session, which is left out, has a descriptor with this link.
    pub(super) fn excluded_has(&mut self, link: &str) -> bool {
        if self.excluded.is_none() {
            self.excluded = Some(self.links_of_excluded());
        }
        self.excluded.as_ref().is_some_and(|all| all.contains(link))
    }

    fn links_of_excluded(&self) -> HashSet<String> {
        let procfs = &self.ctx.procfs;
        let mut out: HashSet<i32> =
            self.ctx.order.containers.iter().flat_map(|c| c.execs.iter().copied()).collect();
        let pids = procfs.pids().unwrap_or_default();
        let parents: Vec<(i32, i32)> =
            pids.iter().filter_map(|pid| Some((*pid, procfs.stat(*pid).ok()?.ppid))).collect();
        loop {
            let before = out.len();
            out.extend(
                parents
                    .iter()
                    .filter(|(_, parent)| out.contains(parent))
                    .map(|(pid, _)| *pid)
                    .collect::<Vec<_>>(),
            );
            if out.len() == before {
                break;
            }
        }
        let mut links = HashSet::new();
        for pid in out {
            let dir = format!("{pid}/fd");
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let Ok(mut entries) =
                nix::dir::Dir::openat(procfs.root(), dir.as_str(), flags, nix::sys::stat::Mode::empty())
            else {
                continue;
            };
            for entry in entries.iter().filter_map(std::result::Result::ok) {
                let Ok(name) = entry.file_name().to_str() else { continue };
                let path = format!("{dir}/{name}");
                links.extend(
                    nix::fcntl::readlinkat(procfs.root(), path.as_str())
                        .ok()
                        .and_then(|l| l.into_string().ok()),
                );
            }
        }
        links
    }
}

/// What a pipe holds, and leaves in it: its bytes, and (if asked for) the lengths of its packets.
///
/// # Errors
/// When there cannot be another pipe of that size.
fn peek(pipe: BorrowedFd<'_>, packets: bool) -> Result<(Vec<u8>, Vec<u32>)> {
    if call::ioctl_get(pipe, call::FIONREAD)? == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let size = fcntl(pipe, FcntlArg::F_GETPIPE_SZ)?;
    // One that has grown by a privilege that we lack is full of buffers that are not: as much as goes is tried below.
    let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(size));
    match tee(pipe, &into, MAX, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(_) => {}
        Err(Errno::EAGAIN) => return Ok((Vec::new(), Vec::new())),
        Err(e) => return Err(e.into()),
    }
    let (mut bytes, mut lengths) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; if packets { 64 << 10 } else { 1 << 20 }];
    loop {
        match read(&out, &mut buffer) {
            Ok(0) | Err(Errno::EAGAIN) => break,
            Ok(n) => {
                bytes.extend_from_slice(&buffer[..n]);
                lengths.push(n as u32);
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let held = call::ioctl_get(pipe, call::FIONREAD)? as usize;
    if held != bytes.len() {
        return Err(airlock_wire::error::Error::failure(format!(
            "a pipe holds {held} bytes, of which only {} could be copied",
            bytes.len()
        )));
    }
    Ok((bytes, if packets { lengths } else { Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::write;

    #[test]
    fn looking_leaves_the_data_where_it_is() {
        let (r, w) = pipe2(OFlag::O_NONBLOCK).unwrap();
        assert_eq!(peek(r.as_fd(), false).unwrap(), (vec![], vec![]));
        let data: Vec<u8> = (0..60_000u32).map(|i| i as u8).collect();
        for chunk in data.chunks(977) {
            assert_eq!(write(&w, chunk), Ok(chunk.len()));
        }
        for _ in 0..3 {
            assert_eq!(peek(r.as_fd(), false).unwrap(), (data.clone(), vec![]));
        }
        let mut all = vec![0; 70_000];
        assert_eq!(read(&r, &mut all), Ok(60_000));
        assert_eq!(all[..60_000], data);
    }

    #[test]
    fn packets_keep_their_lengths() {
        let (r, w) = pipe2(OFlag::O_NONBLOCK | OFlag::O_DIRECT).unwrap();
        for n in [5usize, 4096, 1] {
            assert_eq!(write(&w, &vec![n as u8; n]), Ok(n));
        }
        let (bytes, lengths) = peek(r.as_fd(), true).unwrap();
        assert_eq!((bytes.len(), lengths), (4102, vec![5, 4096, 1]));
    }

    #[test]
    fn a_large_pipe_is_copied_whole() {
        let (r, w) = pipe2(OFlag::O_NONBLOCK).unwrap();
        fcntl(&w, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        let data = vec![7; 1 << 20];
        assert_eq!(write(&w, &data), Ok(1 << 20));
        assert_eq!(peek(r.as_fd(), false).unwrap().0, data);
    }
}
