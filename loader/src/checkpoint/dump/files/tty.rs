//! Terminals: pseudo terminals of the container's own, `/dev/tty`, and what the console is set to.
#![forbid(unsafe_code)]

use super::Collector;
use crate::checkpoint::state::{FileKind, Id, TtyState};
use crate::sys::files as call;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{fstat, major, minor};
use std::os::fd::{AsFd, BorrowedFd};

/// Majors of pty slaves (devices.txt).
const SLAVES: std::ops::RangeInclusive<u64> = 136..=143;

/// A pty slave's device number.
pub fn is_slave(rdev: u64) -> bool {
    SLAVES.contains(&major(rdev))
}

/// A device number of anything that is a terminal: pty slaves, serial lines, virtual consoles.
pub fn is_terminal(rdev: u64) -> bool {
    is_slave(rdev) || matches!(major(rdev), 4 | 204) || (major(rdev) == 5 && minor(rdev) <= 1)
}

/// The number in the name `/dev/pts/<n>`.
pub fn index_of(rdev: u64) -> u32 {
    ((major(rdev).saturating_sub(*SLAVES.start())) * 256 + minor(rdev)) as u32
}

/// Inode of a slave in its devpts.
pub fn inode_of(rdev: u64) -> u64 {
    u64::from(index_of(rdev)) + 3
}

/// What a terminal is set to; asked of a pty master, it is the slave's settings.
///
/// # Errors
/// `EIO` when it has been hung up, `ENOTTY`.
pub fn settings(fd: BorrowedFd<'_>) -> std::result::Result<TtyState, Errno> {
    let termios = call::ioctl_bytes(fd, call::TERMIOS)?;
    let locked = call::ioctl_bytes(fd, call::LOCKED_TERMIOS)?;
    let size = call::ioctl_bytes(fd, call::WINSIZE)?;
    let word = |at: usize| u16::from_ne_bytes([size[at], size[at + 1]]);
    Ok(TtyState {
        termios: termios.as_slice().into(),
        locked_termios: if locked == [0; 36] { Vec::new().into() } else { locked.as_slice().into() },
        winsize: (word(0), word(2), word(4), word(6)),
        exclusive: call::ioctl_get(fd, call::TIOCGEXCL).is_ok_and(|v| v != 0),
        ..TtyState::default()
    })
}

impl Collector<'_> {
    /// The description of the master of pty `index` of a container.
    pub(super) fn master_of(&self, container: Id, index: u32) -> Option<usize> {
        self.masters.iter().find(|(c, i, _)| (*c, *i) == (container, index)).map(|(.., found)| *found)
    }

    /// Finds the masters of all ptys.
    pub(super) fn find_masters(&mut self) -> Result<()> {
        for index in 0..self.found.len() {
            let raw = &self.found[index].raw;
            if (major(raw.stat.st_rdev), minor(raw.stat.st_rdev)) != (5, 2) || is_path(raw.info.flags) {
                continue;
            }
            let fd = self.open(index)?;
            if let Ok(number) = call::ioctl_get(fd.as_fd(), call::TIOCGPTN) {
                self.masters.push((self.found[index].container, number as u32, index));
            }
        }
        Ok(())
    }

    /// Session and foreground process group of the terminal with that device number, as the container numbers them; 0
    /// for none. Not even a privileged process may ask a terminal's slave for those of other sessions.
    pub(super) fn job_control(&self, rdev: u64) -> (i32, i32) {
        // As in /proc/<pid>/stat.
        let number = (minor(rdev) & 0xff) | (major(rdev) << 8) | ((minor(rdev) & !0xff) << 12);
        for proc in self.ctx.procs.iter().filter(|p| !p.is_zombie()) {
            let Ok(stat) = self.ctx.procfs.stat(proc.task()) else { continue };
            if stat.tty_nr as u32 as u64 == number {
                return (self.local_pid(stat.session), self.local_pid(stat.tpgid));
            }
        }
        (0, 0)
    }

    pub(super) fn describe_master(&mut self, index: usize) -> Result<()> {
        let fd = self.open(index)?;
        let number = match call::ioctl_get(fd.as_fd(), call::TIOCGPTN) {
            Ok(number) => number as u32,
            Err(e) => return Err(Error::from(e).context("asking a pty master for its number")),
        };
        if !matches!(self.found[index].raw.link.as_str(), "/dev/ptmx" | "/dev/pts/ptmx") {
            let link = self.found[index].raw.link.clone();
            self.refuse(index, "terminal", format!("pty master {link:?} is not of the devpts at /dev/pts"));
            return Ok(());
        }
        let get = |request| call::ioctl_get(fd.as_fd(), request);
        let mut tty = settings(fd.as_fd())?;
        tty.sid = get(call::TIOCGSID).map_or(0, |sid| self.local_pid(sid));
        tty.pgrp = get(call::TIOCGPGRP).map_or(0, |pgrp| self.local_pid(pgrp));
        let container = self.found[index].container;
        let (mode, owner) = self.node(container, number).unwrap_or((0o620, (0, 5)));
        let mut polled = [PollFd::new(fd.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO)?;
        let slave_closed = polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP));
        let kind = FileKind::Pty {
            index: number,
            master: true,
            tty,
            packet: get(call::TIOCGPKT).is_ok_and(|v| v != 0),
            locked: get(call::TIOCGPTLCK).is_ok_and(|v| v != 0),
            input: Vec::new().into(),
            hung_up: false,
            slave_closed,
            mode,
            owner,
        };
        self.state(index).kind = kind;
        Ok(())
    }

    /// Mode and owner of a slave's node. (To open the slave instead would change what its master sees.)
    fn node(&self, container: Id, number: u32) -> Option<(u32, (u32, u32))> {
        let init = self.ctx.order.containers.get(container as usize)?.init;
        let fd = self.ctx.procfs.open_inside(init, &format!("/dev/pts/{number}"), OFlag::O_PATH).ok()?;
        let stat = fstat(&fd).ok()?;
        Some((stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid)))
    }

    pub(super) fn describe_slave(&mut self, index: usize) -> Result<()> {
        let (container, rdev) = (self.found[index].container, self.found[index].raw.stat.st_rdev);
        let number = index_of(rdev);
        if self.master_of(container, number).is_some() {
            self.state(index).kind = slave(number, false);
            return Ok(());
        }
        let fd = self.open(index)?;
        if settings(fd.as_fd()).is_ok() {
            let (cid, link) = (self.ctx.cid(container).to_owned(), self.found[index].raw.link.clone());
            let pid = self.ctx.procs.get(self.found[index].process).map_or(0, |p| p.ns_pid);
            self.ctx.warn(format!(
                "process {pid} of container {cid:?} uses the terminal {link} of an exec session, which is not saved: it will find it hung up"
            ));
        }
        self.state(index).kind = slave(number, true);
        Ok(())
    }

    /// `/dev/tty`, which is whatever terminal the opener's session had.
    pub(super) fn describe_controlling(&mut self, index: usize) -> Result<()> {
        let fd = self.open(index)?;
        let container = self.found[index].container;
        let device = call::ioctl_get(fd.as_fd(), call::TIOCGDEV).map(|d| {
            let d = d as u32 as u64;
            nix::sys::stat::makedev((d >> 8) & 0xfff, (d & 0xff) | ((d >> 12) & 0xf_ff00))
        });
        let kind = match device {
            Ok(rdev) if is_slave(rdev) && self.master_of(container, index_of(rdev)).is_some() => {
                FileKind::ControllingTty { index: Some(index_of(rdev)) }
            }
            Ok(rdev) => match self.console(container, rdev) {
                Some((container, stream)) => {
                    let mut tty = settings(fd.as_fd())?;
                    (tty.sid, tty.pgrp) = self.job_control(rdev);
                    FileKind::External { container, stream, tty: Some(tty), reopened: true }
                }
                None => slave(index_of(rdev), true),
            },
            // Hung up.
            Err(_) => slave(0, true),
        };
        self.state(index).kind = kind;
        Ok(())
    }
}

fn slave(index: u32, hung_up: bool) -> FileKind {
    FileKind::Pty {
        index,
        master: false,
        tty: TtyState::default(),
        packet: false,
        locked: false,
        input: Vec::new().into(),
        hung_up,
        slave_closed: false,
        mode: 0,
        owner: (0, 0),
    }
}

fn is_path(flags: i32) -> bool {
    flags & libc::O_PATH != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::makedev;

    #[test]
    fn numbers_of_terminals() {
        assert!(is_slave(makedev(136, 5)) && !is_slave(makedev(5, 2)));
        assert_eq!(index_of(makedev(137, 1)), 257);
        assert_eq!(inode_of(makedev(136, 0)), 3);
        assert!(is_terminal(makedev(4, 1)) && is_terminal(makedev(5, 0)) && !is_terminal(makedev(5, 2)));
        assert!(!is_terminal(makedev(1, 3)));
    }
}
