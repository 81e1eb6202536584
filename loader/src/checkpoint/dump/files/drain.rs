//! What waits to be read in terminals: the only thing that cannot be looked at without taking it. It is put back.
#![forbid(unsafe_code)]

use crate::checkpoint::dump::context::Context;
use crate::checkpoint::remote::fdpass;
use crate::checkpoint::restore::files::fill_terminal;
use crate::checkpoint::state::{FileKind, Id};
use crate::sys::{files as call, ptmx};
use airlock_wire::error::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most that is kept: a terminal holds a few pages for each direction.
const MAX: usize = 1 << 20;

/// Takes note of what waits in the containers' ptys. To be called when nothing will be refused any more, while the
/// containers stand still: for a moment, nothing waits there.
///
/// # Errors
/// When a process is gone. What cannot be read is a warning.
pub fn drain(ctx: &mut Context) -> Result<()> {
    let masters: Vec<(Id, Id, u32, bool)> = ctx
        .state
        .files
        .iter()
        .zip(0..)
        .filter_map(|(f, id)| match f.kind {
            FileKind::Pty { index, master: true, locked, .. } => Some((id, f.container, index, locked)),
            _ => None,
        })
        .collect();
    for (id, container, index, locked) in masters {
        let Some((tid, number)) = holder(ctx, id) else { continue };
        let master = fdpass::take(tid, number)?;
        let slaves: Vec<Id> = slaves(ctx, container, index);
        // A slave that nobody has open shows that at the master; to open it would hide it.
        let slave = if locked || slaves.is_empty() { None } else { ptmx::peer(master.as_fd()).ok() };
        let Some(slave) = slave else { continue };
        match take(&master, &slave) {
            Ok((input, output)) => {
                keep(ctx, id, output);
                if let Some(first) = slaves.first() {
                    keep(ctx, *first, input);
                }
            }
            Err(e) => ctx.warn(format!("what waits in terminal {index} could not be read: {e}")),
        }
    }
    Ok(())
}

fn keep(ctx: &mut Context, id: Id, bytes: Vec<u8>) {
    if let Some(FileKind::Pty { input, .. }) = ctx.state.files.get_mut(id as usize).map(|f| &mut f.kind) {
        *input = bytes.into();
    }
}

fn slaves(ctx: &Context, container: Id, index: u32) -> Vec<Id> {
    let is = |kind: &FileKind| matches!(kind, FileKind::Pty { index: i, master: false, hung_up: false, .. } if *i == index);
    ctx.state
        .files
        .iter()
        .zip(0..)
        .filter(|(f, _)| f.container == container && is(&f.kind))
        .map(|(_, id)| id)
        .collect()
}

/// A task that has a description, and its number there.
fn holder(ctx: &Context, id: Id) -> Option<(i32, i32)> {
    ctx.state.processes.iter().zip(&ctx.procs).find_map(|(state, proc)| {
        state.threads.iter().filter(|_| !proc.threads.is_empty()).find_map(|thread| {
            let table = ctx.state.fd_tables.get(thread.fd_table as usize)?;
            let entry = table.fds.iter().find(|e| e.file == id)?;
            let at = proc.ns_tids.iter().position(|t| *t == thread.tid)?;
            Some((proc.threads.get(at)?.tid(), entry.fd))
        })
    })
}

/// What waits for the slave's readers, and for the master's.
fn take(master: &OwnedFd, slave: &OwnedFd) -> std::result::Result<(Vec<u8>, Vec<u8>), Errno> {
    let termios = call::ioctl_bytes(master.as_fd(), call::TERMIOS)?;
    let packet = call::ioctl_get(master.as_fd(), call::TIOCGPKT)?;
    if packet != 0 {
        call::ioctl_set(master.as_fd(), call::TIOCPKT, 0)?;
    }
    // Without lines, half of one can be read too.
    let mut raw = termios;
    raw[12..16].fill(0);
    let input =
        call::ioctl_set_bytes(master.as_fd(), call::SET_TERMIOS, &raw).and_then(|()| all(slave.as_fd()));
    let output = all(master.as_fd());
    call::ioctl_set_bytes(master.as_fd(), call::SET_TERMIOS, &termios)?;
    if packet != 0 {
        call::ioctl_set(master.as_fd(), call::TIOCPKT, packet)?;
    }
    let (input, output) = (input?, output?);
    if !output.is_empty() {
        fill_terminal(master.as_fd(), slave.as_fd(), true, &output)?;
    }
    if !input.is_empty() {
        fill_terminal(master.as_fd(), slave.as_fd(), false, &input)?;
    }
    Ok((input, output))
}

/// Reads until nothing more comes. The kernel moves what does not fit into its buffer a moment later.
fn all(fd: BorrowedFd<'_>) -> std::result::Result<Vec<u8>, Errno> {
    const MOMENT: PollTimeout = PollTimeout::ZERO;
    const AFTER_FULL: u16 = 20;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while bytes.len() < MAX {
        let timeout = if bytes.len() >= 4095 { PollTimeout::from(AFTER_FULL) } else { MOMENT };
        let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
        if poll(&mut polled, timeout)? == 0 || call::ioctl_get(fd, call::FIONREAD)? == 0 {
            return Ok(bytes);
        }
        match read(fd, &mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EIO) => return Ok(bytes),
            Err(e) => return Err(e),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::write;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_NONBLOCK;
        let master = nix::fcntl::open("/dev/ptmx", flags, nix::sys::stat::Mode::empty()).unwrap();
        ptmx::unlock(master.as_fd()).unwrap();
        let slave = ptmx::peer(master.as_fd()).unwrap();
        (master, slave)
    }

    /// What a reader of lines gets.
    fn lines(fd: &OwnedFd) -> Vec<Vec<u8>> {
        crate::sys::files::fcntl(fd.as_fd(), libc::F_SETFL, libc::O_NONBLOCK).unwrap();
        let mut found = Vec::new();
        let mut buffer = [0; 8192];
        while let Ok(n) = read(fd, &mut buffer) {
            found.push(buffer[..n].to_vec());
        }
        found
    }

    fn wait_for(fd: &OwnedFd, count: i32) {
        while call::ioctl_get(fd.as_fd(), call::FIONREAD).unwrap() < count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn lines_half_lines_and_output_are_seen_and_stay() {
        let (master, slave) = pair();
        let typed = b"first\nsecond\nhalf";
        assert_eq!(write(&master, typed), Ok(typed.len()));
        wait_for(&slave, 13);
        // The echo of what was typed, then what is printed.
        wait_for(&master, 7 + 8 + 4);
        assert_eq!(write(&slave, b"to the screen\n"), Ok(14));
        wait_for(&master, 7 + 8 + 4 + 15);
        let before = call::ioctl_bytes(master.as_fd(), call::TERMIOS).unwrap();
        for _ in 0..3 {
            let (input, output) = take(&master, &slave).unwrap();
            assert_eq!(input, typed);
            assert!(output.ends_with(b"to the screen\r\n"), "{output:?}");
            wait_for(&slave, 13);
            wait_for(&master, output.len() as i32);
        }
        assert_eq!(call::ioctl_bytes(master.as_fd(), call::TERMIOS).unwrap(), before);
        // The half line still is one.
        assert_eq!(lines(&slave), [&b"first\n"[..], b"second\n"]);
        assert_eq!(write(&master, b" a line\n"), Ok(8));
        wait_for(&slave, 12);
        assert_eq!(lines(&slave), [b"half a line\n"]);
    }
}
