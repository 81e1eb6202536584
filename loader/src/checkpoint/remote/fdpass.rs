//! Descriptors put into a traced task: sent over a socket and received by an injected recvmsg(2), then moved to the
//! numbers where the task must have them.
//!
//! One channel serves a whole tree: its far end is made in the first task, and tasks made from that one inherit it by
//! fork. They all share the one queue, which is sound because a message is sent only when its receiver is about to run.
#![forbid(unsafe_code)]

use super::{Arg, Batch, Ran, Region, Tracee, procfs};
use crate::sys::{process, ptrace};
use airlock_wire::error::{Error, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Descriptors in one message; the kernel takes 253.
const AT_ONCE: usize = 250;

/// This process' end of a channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A task's end: its number there. A task made by fork has its parent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Descriptor number in the task.
    pub number: i32,
}

/// A descriptor and what it shall be in the task.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// The descriptor, which stays the caller's. The task gets the same open file description.
    pub fd: BorrowedFd<'a>,
    /// Its number in the task. What the task has there is closed.
    pub number: i32,
    /// Whether the task's descriptor is closed on exec.
    pub cloexec: bool,
}

/// Takes a duplicate (close-on-exec) of descriptor `number` of the process that thread `tid` belongs to.
///
/// # Errors
/// `EBADF` when it has no such descriptor.
pub fn take(tid: i32, number: i32) -> Result<OwnedFd> {
    let taken = process::pidfd_open(tid).or_else(|e| {
        // Only the leader of a thread group has a pidfd.
        let leader = procfs::status_field(tid, "Tgid").and_then(|v| v.parse().ok());
        leader.filter(|l| *l != tid).map_or(Err(e), process::pidfd_open)
    });
    taken.and_then(|pidfd| ptrace::pidfd_getfd(pidfd.as_fd(), number)).map_err(|e| {
        super::errno(e).context(format!("take descriptor {number} of {}", procfs::describe(tid)))
    })
}

impl Channel {
    /// Makes a channel to `t`.
    ///
    /// # Errors
    /// When the task cannot make a socket pair (its limit of open files).
    pub fn open(t: &mut Tracee, region: &Region) -> Result<(Self, Link)> {
        let mut batch = Batch::new();
        let pair = batch.space(8);
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        batch.must(libc::SYS_socketpair, [libc::AF_UNIX.into(), kind.into(), Arg::NULL, pair]);
        let ran = batch.run(t, region)?;
        ran.check()?;
        let (ours, theirs) = (ran.int(pair), ran.int(pair.at(4)));
        let taken = take(t.tid(), ours);
        t.syscall(libc::SYS_close, [ours as u64, 0, 0, 0, 0, 0])??;
        Ok((Self(taken?), Link { number: theirs }))
    }

    /// Puts descriptors into `t`. `link` changes when its number is wanted for one of them.
    ///
    /// # Errors
    /// When a number is given twice or is beyond the task's limit of open files, or the task cannot receive.
    pub fn send(&self, t: &mut Tracee, region: &Region, link: &mut Link, fds: &[Pass<'_>]) -> Result<()> {
        let mut sorted: Vec<&Pass<'_>> = fds.iter().collect();
        // The kernel hands out the lowest free numbers in order, so that most need not be moved.
        sorted.sort_by_key(|pass| pass.number);
        let wanted: BTreeSet<i32> = sorted.iter().map(|pass| pass.number).collect();
        if wanted.len() != sorted.len() || wanted.first().is_some_and(|n| *n < 0) {
            return Err(Error::invalid_argument("a descriptor number is negative or given twice"));
        }
        if wanted.contains(&link.number) {
            self.move_link(t, region, link, &wanted)?;
        }
        for part in sorted.chunks(AT_ONCE) {
            self.send_part(t, region, *link, part).map_err(|e| {
                e.context(format!("put {} descriptors into {}", part.len(), procfs::describe(t.tid())))
            })?;
        }
        Ok(())
    }

    fn move_link(
        &self,
        t: &mut Tracee,
        region: &Region,
        link: &mut Link,
        wanted: &BTreeSet<i32>,
    ) -> Result<()> {
        let above = wanted.last().map_or(0, |n| n.saturating_add(1));
        let mut batch = Batch::new();
        let dup = |batch: &mut Batch, min: i32| {
            batch.call(libc::SYS_fcntl, [link.number.into(), libc::F_DUPFD_CLOEXEC.into(), min.into()])
        };
        let high = dup(&mut batch, above);
        // Where the limit of open files forbids that, any number that is not wanted will do.
        let gap = (0..).find(|n| !wanted.contains(n) && *n != link.number).unwrap_or(0);
        let low = dup(&mut batch, gap);
        let ran = batch.run(t, region)?;
        let number = match (ran.result(high), ran.result(low)) {
            (Ok(n), other) => {
                if let Ok(spare) = other {
                    t.syscall(libc::SYS_close, [spare, 0, 0, 0, 0, 0])??;
                }
                n
            }
            (Err(_), Ok(n)) if !wanted.contains(&(n as i32)) => n,
            _ => {
                ran.get(high)?;
                0
            }
        };
        t.syscall(libc::SYS_close, [link.number as u64, 0, 0, 0, 0, 0])??;
        link.number = number as i32;
        Ok(())
    }

    fn send_part(&self, t: &mut Tracee, region: &Region, link: Link, part: &[&Pass<'_>]) -> Result<()> {
        let raw: Vec<RawFd> = part.iter().map(|pass| pass.fd.as_raw_fd()).collect();
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&raw)],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        let numbers = receive(t, region, link, part.len())?;
        let moves: Vec<Move> = numbers
            .iter()
            .zip(part)
            .map(|(from, pass)| Move { from: *from, to: pass.number, cloexec: pass.cloexec })
            .collect();
        let batch = place(&moves);
        if batch.is_empty() {
            return Ok(());
        }
        batch.run(t, region)?.check()
    }
}

impl Link {
    /// Closes the task's end.
    ///
    /// # Errors
    /// When the call cannot be made.
    pub fn close(self, t: &mut Tracee) -> Result<()> {
        t.syscall(libc::SYS_close, [self.number as u64, 0, 0, 0, 0, 0])??;
        Ok(())
    }
}

/// Receives the message that was just sent; returns the numbers that its descriptors got.
fn receive(t: &mut Tracee, region: &Region, link: Link, count: usize) -> Result<Vec<i32>> {
    const HEADER: usize = 16; // cmsghdr: length, level, type
    let mut batch = Batch::new();
    let byte = batch.space(1);
    let mut iovec = [0u8; 16];
    iovec[8] = 1;
    let iovec = batch.data(&iovec);
    batch.pointer(iovec, byte);
    let room = (HEADER + 4 * count).next_multiple_of(8);
    let control = batch.space(room);
    // msghdr: name, its length, iovec, their number, control, its length, flags
    let header: Vec<u8> =
        [0u64, 0, 0, 1, 0, room as u64, 0].iter().flat_map(|w: &u64| w.to_ne_bytes()).collect();
    let header = batch.data(&header);
    batch.pointer(header.at(16), iovec);
    batch.pointer(header.at(32), control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    batch.must(libc::SYS_recvmsg, [link.number.into(), header, flags.into()]);
    let ran = batch.run(t, region)?;
    ran.check()?;
    let numbers = parse_rights(&ran, control);
    if ran.int(header.at(48)) & libc::MSG_CTRUNC != 0 || numbers.len() != count {
        return Err(Error::failure(format!(
            "it received {} of {count}: its limit of open files (RLIMIT_NOFILE) is too low",
            numbers.len()
        )));
    }
    Ok(numbers)
}

fn parse_rights(ran: &Ran, control: Arg) -> Vec<i32> {
    let length = ran.word(control) as usize;
    let rights = ran.int(control.at(8)) == libc::SOL_SOCKET && ran.int(control.at(12)) == libc::SCM_RIGHTS;
    let bytes = if rights { ran.output(control.at(16), length.saturating_sub(16)) } else { &[] };
    bytes.chunks_exact(4).filter_map(|b| b.try_into().ok()).map(i32::from_ne_bytes).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    from: i32,
    to: i32,
    cloexec: bool,
}

/// Calls that move descriptors (all close-on-exec at first) to their numbers at once: none is overwritten before it has
/// been moved away.
fn place(moves: &[Move]) -> Batch {
    let mut batch = Batch::new();
    let mut left: Vec<(Move, Arg)> = Vec::new();
    for m in moves {
        if m.from != m.to {
            left.push((*m, m.from.into()));
        } else if !m.cloexec {
            batch.must(libc::SYS_fcntl, [m.to.into(), libc::F_SETFD.into(), Arg::NULL]);
        }
    }
    let above = moves.iter().map(|m| m.from.max(m.to)).max().unwrap_or(0).saturating_add(1);
    while !left.is_empty() {
        let taken: BTreeSet<i32> = left.iter().map(|(m, _)| m.from).collect();
        let free = left.iter().position(|(m, _)| !taken.contains(&m.to));
        if let Some(at) = free {
            let (m, source) = left.swap_remove(at);
            let flags = if m.cloexec { libc::O_CLOEXEC } else { 0 };
            batch.must(libc::SYS_dup3, [source, m.to.into(), flags.into()]);
            batch.must(libc::SYS_close, [source]);
        } else if let Some((m, source)) = left.last_mut() {
            // A ring: one steps aside.
            let aside = batch.must(libc::SYS_fcntl, [*source, libc::F_DUPFD_CLOEXEC.into(), above.into()]);
            batch.must(libc::SYS_close, [*source]);
            *source = aside.into();
            m.from = -1;
        }
    }
    batch
}
