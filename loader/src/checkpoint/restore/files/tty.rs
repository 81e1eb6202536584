//! Pseudo terminals of a container's own, and which session each terminal belongs to.
#![forbid(unsafe_code)]

use super::{Context, Files, file, in_container, name_of, opened, put, reopen};
use crate::checkpoint::remote::fdpass::Pass;
use crate::checkpoint::remote::{Arg, Batch};
use crate::checkpoint::state::{FileKind, Id, TtyState};
use crate::sys::{files as call, ptmx};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{fchown, write};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Both ends of a pty, kept until the programs go on.
#[derive(Debug)]
pub(super) struct Pair {
    pub master: OwnedFd,
    pub slave: Option<OwnedFd>,
    pub exclusive: bool,
    pub locked: bool,
}

/// A pty as the image has it.
#[derive(Debug, Default)]
struct Saved {
    master: Option<Id>,
    slaves: Vec<Id>,
    /// `/dev/tty` that stands for it.
    controlling: Vec<Id>,
    settings: Option<Settings>,
}

#[derive(Debug, Clone)]
struct Settings {
    tty: TtyState,
    packet: bool,
    locked: bool,
    mode: u32,
    owner: (u32, u32),
    slave_closed: bool,
}

/// More than a devpts has by default (kernel.pty.max).
const MOST: u32 = 1 << 16;

impl Files {
    /// Makes the ptys of a container with the numbers that they had.
    pub(super) fn open_ptys(&mut self, ctx: &mut Context, container: Id, ids: &[Id]) -> Result<()> {
        let mut ptys: BTreeMap<u32, Saved> = BTreeMap::new();
        let mut hung_up = Vec::new();
        for id in ids {
            match &file(&ctx.state, *id)?.kind {
                FileKind::Pty { hung_up: true, .. } => hung_up.push(*id),
                FileKind::Pty { index, master: false, .. } => {
                    ptys.entry(*index).or_default().slaves.push(*id)
                }
                FileKind::Pty { index, tty, packet, locked, mode, owner, slave_closed, .. } => {
                    let saved = ptys.entry(*index).or_default();
                    if saved.master.replace(*id).is_some() || *index >= MOST {
                        return Err(Error::invalid_argument(format!(
                            "the statefile is damaged: terminal {index} has two masters, or too high a number"
                        )));
                    }
                    saved.settings = Some(Settings {
                        tty: tty.clone(),
                        packet: *packet,
                        locked: *locked,
                        mode: *mode,
                        owner: *owner,
                        slave_closed: *slave_closed,
                    });
                }
                FileKind::ControllingTty { index: Some(index) } => {
                    ptys.entry(*index).or_default().controlling.push(*id);
                }
                FileKind::ControllingTty { index: None } => hung_up.push(*id),
                _ => {}
            }
        }
        if let Some((index, _)) = ptys.iter().find(|(_, p)| p.settings.is_none()) {
            return Err(Error::invalid_argument(format!(
                "the statefile is damaged: terminal {index} has no master"
            )));
        }
        if !ptys.is_empty() {
            self.make_ptys(ctx, container, ptys)?;
        }
        for id in hung_up {
            let fd = in_container(ctx, container, libc::CLONE_NEWNS, || {
                let master = open_master(libc::O_RDWR)?;
                ptmx::unlock(master.as_fd())?;
                Ok(ptmx::peer(master.as_fd())?)
            })?;
            put(ctx, id, fd)?;
        }
        Ok(())
    }

    fn make_ptys(&mut self, ctx: &mut Context, container: Id, ptys: BTreeMap<u32, Saved>) -> Result<()> {
        let numbers: Vec<u32> = ptys.keys().copied().collect();
        let masters = in_container(ctx, container, libc::CLONE_NEWNS, || open_masters(&numbers))?;
        for ((index, saved), (number, master)) in ptys.into_iter().zip(masters) {
            if number != index {
                ctx.warn(format!(
                    "/dev/pts/{index} is taken in the new container: the terminal is /dev/pts/{number} now"
                ));
            }
            let Some(settings) = saved.settings else { continue };
            let in_use = !saved.slaves.is_empty() || !saved.controlling.is_empty() || settings.slave_closed;
            let slave = if in_use { Some(set_up(&master, &settings)?) } else { None };
            set_settings(master.as_fd(), &settings.tty)
                .map_err(|e| Error::from(e).context(format!("setting up terminal {index}")))?;
            if settings.packet {
                call::ioctl_set(master.as_fd(), call::TIOCPKT, 1)?;
            }
            if let Some(slave) = &slave {
                for id in saved.slaves.iter().chain(&saved.controlling) {
                    let flags = file(&ctx.state, *id)?.flags;
                    let fd = reopen(
                        ctx.procfs.root(),
                        slave.as_fd(),
                        flags & (libc::O_ACCMODE | libc::O_NONBLOCK),
                    )
                    .map_err(|e| Error::from(e).context(name_of(&ctx.state, *id)))?;
                    put(ctx, *id, fd)?;
                }
            }
            if let Some(id) = saved.master {
                put(ctx, id, master.try_clone()?)?;
            }
            let (exclusive, locked) = (settings.tty.exclusive, settings.locked);
            self.ptys.insert((container, index), Pair { master, slave, exclusive, locked });
        }
        Ok(())
    }

    /// Puts into terminals what waited to be read, and closes slaves that were closed.
    pub(super) fn fill_ptys(&mut self, ctx: &Context) -> Result<()> {
        for ((container, index), pair) in &mut self.ptys {
            let mut closed = false;
            for state in ctx.state.files.iter().filter(|f| f.container == *container) {
                let FileKind::Pty { index: i, master, input, slave_closed, hung_up: false, .. } = &state.kind
                else {
                    continue;
                };
                if i != index {
                    continue;
                }
                closed |= *slave_closed;
                if let Some(slave) = pair.slave.as_ref().filter(|_| !input.is_empty()) {
                    fill(pair.master.as_fd(), slave.as_fd(), *master, input)
                        .map_err(|e| Error::from(e).context(format!("what waited in terminal {index}")))?;
                }
            }
            if closed {
                pair.slave = None;
            }
        }
        Ok(())
    }

    /// Gives each terminal to the session that it belonged to, and puts the right process group into the foreground.
    pub(super) fn sessions(&self, ctx: &mut Context) -> Result<()> {
        let mut wanted: Vec<(Id, i32, i32, OwnedFd)> = Vec::new();
        for (state, id) in ctx.state.files.iter().zip(0..) {
            let (container, tty, fd) = match &state.kind {
                FileKind::External { container, tty: Some(tty), .. } => (*container, tty, opened(ctx, id)),
                FileKind::Pty { index, master: true, tty, .. } => {
                    let pair = self.ptys.get(&(state.container, *index));
                    (state.container, tty, pair.and_then(|p| p.slave.as_ref()).map(AsFd::as_fd))
                }
                _ => continue,
            };
            let Some(fd) = fd.filter(|fd| tty.sid != 0 && call::ioctl_bytes(*fd, call::TERMIOS).is_ok())
            else {
                continue;
            };
            if !wanted.iter().any(|(c, sid, ..)| (*c, *sid) == (container, tty.sid)) {
                wanted.push((container, tty.sid, tty.pgrp, fd.try_clone_to_owned()?));
            }
        }
        for (container, sid, pgrp, fd) in wanted {
            take_session(ctx, container, sid, pgrp, fd.as_fd())
                .map_err(|e| e.context(format!("giving session {sid} its terminal")))?;
        }
        Ok(())
    }
}

/// Has the leader of session `sid` take the terminal.
fn take_session(ctx: &mut Context, container: Id, sid: i32, pgrp: i32, tty: BorrowedFd<'_>) -> Result<()> {
    let leader = ctx.procs.iter_mut().flatten().find(|p| p.container == container && p.ns_pid == sid);
    let Some(proc) = leader.filter(|p| !p.threads.is_empty()) else {
        ctx.warn(format!("session {sid} has no leader any more, and its terminal belongs to nobody now"));
        return Ok(());
    };
    let (Some(channel), Some(mut link)) =
        (ctx.channels.get(container as usize).and_then(Option::as_ref), proc.link)
    else {
        return Err(Error::failure("the session's leader has no channel for descriptors"));
    };
    let (tracee, region) = proc.injector()?;
    let number = link.number.saturating_add(1);
    channel.send(tracee, &region, &mut link, &[Pass { fd: tty, number, cloexec: true }])?;
    let mut batch = Batch::new();
    let take = batch.call(libc::SYS_ioctl, [number.into(), libc::TIOCSCTTY.into(), Arg::NULL]);
    let group = batch.data(&pgrp.to_ne_bytes());
    let foreground =
        (pgrp != 0).then(|| batch.call(libc::SYS_ioctl, [number.into(), libc::TIOCSPGRP.into(), group]));
    batch.call(libc::SYS_close, [number.into()]);
    let ran = batch.run(tracee, &region)?;
    proc.link = Some(link);
    ran.get(take)?;
    match foreground.map(|call| ran.result(call)) {
        // Its members had all ended.
        Some(Err(Errno::ESRCH | Errno::EPERM)) => {
            ctx.warn(format!("the foreground process group {pgrp} of a terminal is no more"));
            Ok(())
        }
        Some(Err(e)) => Err(e.into()),
        _ => Ok(()),
    }
}

fn open_master(access: i32) -> Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(access) | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    openat(AT_FDCWD, "/dev/pts/ptmx", flags, Mode::empty())
        .or_else(|_| openat(AT_FDCWD, "/dev/ptmx", flags, Mode::empty()))
        .map_err(|e| Error::from(e).context("opening /dev/ptmx of the container"))
}

/// Opens masters until all those numbers (ascending) were had; what comes between is given back. A number that is taken
/// is replaced by another.
fn open_masters(numbers: &[u32]) -> Result<Vec<(u32, OwnedFd)>> {
    let mut others = Vec::new();
    let mut found: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    let highest = numbers.last().copied().unwrap_or(0);
    let mut latest = None;
    // The lowest free number is always next.
    while numbers.iter().any(|n| !found.contains_key(n)) && latest.is_none_or(|n| n <= highest) {
        let master = open_master(libc::O_RDWR)?;
        let number = call::ioctl_get(master.as_fd(), call::TIOCGPTN)? as u32;
        latest = Some(number);
        if numbers.contains(&number) {
            found.insert(number, master);
        } else {
            others.push((number, master));
        }
    }
    numbers
        .iter()
        .map(|n| match found.remove(n) {
            Some(master) => Ok((*n, master)),
            None => match others.pop() {
                Some(other) => Ok(other),
                None => {
                    let master = open_master(libc::O_RDWR)?;
                    Ok((call::ioctl_get(master.as_fd(), call::TIOCGPTN)? as u32, master))
                }
            },
        })
        .collect()
}

/// Opens the slave and gives its node the owner that it had.
fn set_up(master: &OwnedFd, settings: &Settings) -> Result<OwnedFd> {
    ptmx::unlock(master.as_fd())?;
    let slave = ptmx::peer(master.as_fd())?;
    fchown(&slave, Some(settings.owner.0.into()), Some(settings.owner.1.into()))?;
    fchmod(&slave, Mode::from_bits_truncate(settings.mode & 0o7777))?;
    Ok(slave)
}

/// Asked of a master, these are the slave's.
fn set_settings(master: BorrowedFd<'_>, tty: &TtyState) -> std::result::Result<(), Errno> {
    if let Ok(termios) = tty.termios.0.as_slice().try_into() {
        call::ioctl_set_bytes(master, call::SET_TERMIOS, termios)?;
    }
    if let Ok(locked) = tty.locked_termios.0.as_slice().try_into() {
        call::ioctl_set_bytes(master, call::SET_LOCKED_TERMIOS, locked)?;
    }
    let mut size = [0; 8];
    let (rows, columns, x, y) = tty.winsize;
    for (to, from) in size.chunks_exact_mut(2).zip([rows, columns, x, y]) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    call::ioctl_set_bytes(master, call::SET_WINSIZE, &size)
}

/// `c_oflag`, `c_lflag` and `c_cc` in `struct termios2`.
const INPUT_FLAGS: std::ops::Range<usize> = 0..4;
const OUTPUT_FLAGS: std::ops::Range<usize> = 4..8;
const LOCAL_FLAGS: std::ops::Range<usize> = 12..16;
const CHARACTERS: std::ops::Range<usize> = 17..36;

/// Settings under which bytes pass as they are. Lines stay lines, as far as they were: a half-typed one stays so.
fn plain(termios: &[u8; 44]) -> [u8; 44] {
    let mut plain = *termios;
    plain[INPUT_FLAGS].fill(0);
    plain[OUTPUT_FLAGS].fill(0);
    let local = u32::from_ne_bytes([termios[12], termios[13], termios[14], termios[15]]) & libc::ICANON;
    plain[LOCAL_FLAGS].copy_from_slice(&local.to_ne_bytes());
    // _POSIX_VDISABLE: no character means anything.
    plain[CHARACTERS].fill(0);
    plain
}

/// Writes `data` into a pty for its master to read (`to_master`), or for its slave.
///
/// # Errors
/// The kernel's; `EAGAIN` when there is no room.
pub fn fill(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    to_master: bool,
    data: &[u8],
) -> std::result::Result<(), Errno> {
    let termios = call::ioctl_bytes(master, call::TERMIOS)?;
    let packet = call::ioctl_get(master, call::TIOCGPKT)?;
    if packet != 0 {
        // A change of settings would be told to whoever reads packets.
        call::ioctl_set(master, call::TIOCPKT, 0)?;
    }
    call::ioctl_set_bytes(master, call::SET_TERMIOS, &plain(&termios))?;
    let result = if to_master { write_all(slave, data) } else { type_in(master, slave, data) };
    call::ioctl_set_bytes(master, call::SET_TERMIOS, &termios)?;
    if packet != 0 {
        call::ioctl_set(master, call::TIOCPKT, packet)?;
    }
    result
}

/// Puts input into a slave, and waits until it is there: what the kernel still has on the way is treated by the settings
/// of the moment in which it arrives.
fn type_in(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, data: &[u8]) -> std::result::Result<(), Errno> {
    let mut rest = data;
    while let Some((byte, tail)) = rest.split_first() {
        // CAP_SYS_ADMIN in the initial user namespace.
        match call::ioctl_set_byte(slave, call::TIOCSTI, *byte) {
            Ok(()) => rest = tail,
            Err(Errno::EPERM | Errno::EIO) if rest.len() == data.len() => break,
            Err(e) => return Err(e),
        }
    }
    if rest.is_empty() {
        return Ok(());
    }
    let lines = data.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    write_all(master, data)?;
    let deadline = Instant::now() + PATIENCE;
    while call::ioctl_get(slave, call::FIONREAD)? < lines as i32 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    // To ask for input where there is none makes the kernel bring what is on its way.
    poll(&mut [PollFd::new(slave, PollFlags::POLLIN)], PollTimeout::ZERO)?;
    if lines > 0 && lines < data.len() {
        // Nothing tells when the half line behind whole ones is there.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How long the kernel may take to move a few kilobytes.
const PATIENCE: Duration = Duration::from_millis(500);

fn write_all(end: BorrowedFd<'_>, data: &[u8]) -> std::result::Result<(), Errno> {
    let mut rest = data;
    while !rest.is_empty() {
        match write(end, rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_had_again_and_gaps_are_given_back() {
        let first = open_masters(&[]).unwrap();
        assert!(first.is_empty());
        let base = {
            let probe = open_master(libc::O_RDWR).unwrap();
            call::ioctl_get(probe.as_fd(), call::TIOCGPTN).unwrap() as u32
        };
        // Other tests may take numbers meanwhile: high ones are free.
        let wanted = [base + 40, base + 43];
        let got = open_masters(&wanted).unwrap();
        for ((number, fd), wanted) in got.iter().zip(wanted) {
            assert_eq!(*number, wanted);
            assert_eq!(call::ioctl_get(fd.as_fd(), call::TIOCGPTN), Ok(wanted as i32));
        }
        let again = open_masters(&[base + 40]).unwrap();
        assert_ne!(again[0].0, base + 40);
    }
}
