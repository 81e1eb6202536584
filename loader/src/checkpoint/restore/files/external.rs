//! Descriptors that came from outside: what the restorer gave takes the place of what there was.
#![forbid(unsafe_code)]

use super::{Context, file, in_container, name_of, reopen};
use crate::checkpoint::remote::fdpass::Pass;
use crate::checkpoint::remote::{Arg, Batch};
use crate::checkpoint::state::{FileKind, Id, SandboxState, TtyState};
use crate::sys::files as call;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, open as open_file};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Standard streams are always there; passed descriptors need not be.
const STANDARD: std::ops::RangeInclusive<i32> = 0..=2;
const TIOCNOTTY: u64 = 0x5422;
const SIG_IGN: u64 = 1;

/// The new description for one that came from outside; none for others.
pub(super) fn open(ctx: &mut Context, id: Id) -> Result<Option<OwnedFd>> {
    let state = file(&ctx.state, id)?;
    let flags = state.flags;
    let FileKind::External { container, stream, reopened, ref tty } = state.kind else { return Ok(None) };
    let tty = tty.clone();
    let Some(fd) = ctx.externals.get(&(container, stream)).map(OwnedFd::try_clone).transpose()? else {
        if STANDARD.contains(&stream) {
            return Err(Error::invalid_argument(format!("no descriptor was given for stream {stream}")));
        }
        let name = name_of(&ctx.state, id);
        ctx.warn(format!(
            "nothing was passed for descriptor {stream} of the container: {name} is /dev/null now"
        ));
        return in_container(ctx, ctx.state.files[id as usize].container, libc::CLONE_NEWNS, || {
            let access = OFlag::from_bits_retain(flags & libc::O_ACCMODE) | OFlag::O_CLOEXEC;
            Ok(Some(open_file("/dev/null", access, Mode::empty())?))
        });
    };
    let is_terminal = call::ioctl_bytes(fd.as_fd(), call::TERMIOS).is_ok();
    match &tty {
        Some(_) if !is_terminal && wants_terminal(&ctx.state, container) => {
            return Err(Error::invalid_argument(
                "the container had a terminal, and is restored without one: give it one with --console-socket",
            ));
        }
        None if is_terminal && needs_terminal(ctx, container) && !wants_terminal(&ctx.state, container) => {
            return Err(Error::invalid_argument(
                "the container had no terminal, and is restored with one: leave out --console-socket and process.terminal",
            ));
        }
        Some(settings) if is_terminal => set_terminal(fd.as_fd(), settings)?,
        _ => {}
    }
    let fd = match reopened {
        // Some things cannot be opened twice; then the one description has to do.
        true => {
            reopen(ctx.procfs.root(), fd.as_fd(), flags & (libc::O_ACCMODE | super::SETTABLE)).unwrap_or(fd)
        }
        false => fd,
    };
    // Other flags may be those of somebody outside; but a program that expects not to wait must not.
    let now = call::fcntl(fd.as_fd(), libc::F_GETFL, 0)?;
    if (now ^ flags) & libc::O_NONBLOCK != 0 && now & libc::O_PATH == 0 {
        call::fcntl(fd.as_fd(), libc::F_SETFL, now ^ libc::O_NONBLOCK)?;
    }
    Ok(Some(fd))
}

fn terminal_in(spec: &str) -> bool {
    let spec: serde_json::Value = serde_json::from_str(spec).unwrap_or_default();
    spec.pointer("/process/terminal").and_then(serde_json::Value::as_bool).unwrap_or(false)
}

/// The saved container had a terminal of its own.
fn wants_terminal(state: &SandboxState, container: Id) -> bool {
    state.containers.get(container as usize).is_some_and(|c| terminal_in(&c.spec))
}

/// The waiting container has one.
fn needs_terminal(ctx: &Context, container: Id) -> bool {
    ctx.order.containers.iter().any(|c| c.image == container && terminal_in(&c.spec))
}

/// Gives a terminal the settings that it had; its size stays, since that is somebody's window.
fn set_terminal(fd: BorrowedFd<'_>, settings: &TtyState) -> Result<()> {
    if let Ok(termios) = settings.termios.0.as_slice().try_into() {
        call::ioctl_set_bytes(fd, call::SET_TERMIOS, termios)
            .map_err(|e| Error::from(e).context("setting up the terminal"))?;
    }
    Ok(())
}

/// Takes the terminal away from a waiting init whose container's terminal belonged to another session, or to none. The
/// kernel sends SIGHUP with it, which must not wait for the restored program.
pub(super) fn let_go_of_terminal(ctx: &mut Context, container: Id) -> Result<()> {
    let init = ctx.state.containers.get(container as usize).map_or(0, |c| c.init);
    let kept = ctx.state.files.iter().any(|f| {
        matches!(&f.kind, FileKind::External { container: c, tty: Some(t), .. } if *c == container && t.sid == init)
    });
    let Some(tty) = ctx.externals.get(&(container, 0)).filter(|_| !kept) else { return Ok(()) };
    let index = container as usize;
    let (Some(Some(stub)), Some(Some(channel))) = (ctx.stubs.get_mut(index), ctx.channels.get(index)) else {
        return Ok(());
    };
    if ctx.procfs.stat(stub.tracee.tid())?.tty_nr == 0 {
        return Ok(());
    }
    let number = stub.link.number.saturating_add(1);
    let pass = [Pass { fd: tty.as_fd(), number, cloexec: true }];
    channel.send(&mut stub.tracee, &stub.region, &mut stub.link, &pass)?;
    let action =
        |handler: u64| -> Vec<u8> { [handler, 0, 0, 0].iter().flat_map(|w| w.to_ne_bytes()).collect() };
    let mut batch = Batch::new();
    let (ignore, default) = (batch.data(&action(SIG_IGN)), batch.data(&action(0)));
    let set = |batch: &mut Batch, to: Arg| {
        batch.must(libc::SYS_rt_sigaction, [libc::SIGHUP.into(), to, Arg::NULL, 8u64.into()])
    };
    set(&mut batch, ignore);
    batch.must(libc::SYS_ioctl, [number.into(), TIOCNOTTY.into()]);
    set(&mut batch, default);
    batch.must(libc::SYS_close, [number.into()]);
    batch
        .run(&mut stub.tracee, &stub.region)?
        .check()
        .map_err(|e| e.context("taking the terminal from a waiting init"))
}
