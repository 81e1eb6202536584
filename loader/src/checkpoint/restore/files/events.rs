//! eventfd, timerfd, signalfd, epoll and inotify instances, POSIX message queues.
#![forbid(unsafe_code)]

use super::{Context, file, in_container, name_of, opened, put};
use crate::checkpoint::state::{FileKind, Id};
use crate::sys::files::{self as call, Timer};
use airlock_wire::error::{Error, Result};
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// Opens what needs nothing; none for other kinds.
pub(super) fn open(ctx: &Context, id: Id) -> Result<Option<OwnedFd>> {
    Ok(Some(match &file(&ctx.state, id)?.kind {
        FileKind::Eventfd { count, semaphore } => eventfd(*count, *semaphore)?,
        FileKind::Timerfd { clock, .. } => call::timerfd_create(*clock)
            .map_err(|e| Error::from(e).context(format!("making a timerfd of clock {clock}")))?,
        FileKind::Signalfd { mask } => call::signalfd(*mask)?,
        FileKind::Epoll { .. } => call::epoll()?,
        FileKind::Inotify { .. } => call::inotify().map_err(|e| {
            Error::from(e).context("making an inotify instance (fs.inotify.max_user_instances?)")
        })?,
        FileKind::Anon { name } => {
            return Err(Error::unsupported(format!("nothing is known about how to make {name} again")));
        }
        _ => return Ok(None),
    }))
}

fn eventfd(count: u64, semaphore: bool) -> Result<OwnedFd> {
    let first = u32::try_from(count).unwrap_or(u32::MAX);
    let fd = call::eventfd(first, semaphore)?;
    let rest = count - u64::from(first);
    if rest > 0 {
        nix::unistd::write(&fd, &rest.to_ne_bytes())
            .map_err(|e| Error::from(e).context(format!("giving an eventfd the count {count}")))?;
    }
    Ok(fd)
}

/// Opens message queues of a container's IPC namespace.
pub(super) fn open_queues(ctx: &mut Context, container: Id, ids: &[Id]) -> Result<()> {
    let mut wanted = Vec::new();
    for id in ids {
        let state = file(&ctx.state, *id)?;
        if let FileKind::Mqueue { name } = &state.kind {
            let bare = CString::new(name.trim_start_matches('/'))
                .map_err(|_| Error::invalid_argument("the statefile is damaged: name of a message queue"))?;
            wanted.push((*id, bare, state.flags & (libc::O_ACCMODE | libc::O_NONBLOCK)));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let made = in_container(ctx, container, libc::CLONE_NEWIPC, || {
        wanted
            .iter()
            .map(|(id, name, flags)| {
                let fd = call::mqueue_open(name, *flags)
                    .map_err(|e| Error::from(e).context(format!("opening message queue {name:?}")))?;
                Ok((*id, fd))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    for (id, fd) in made {
        put(ctx, id, fd)?;
    }
    Ok(())
}

/// Starts timers: with the time that was left, or at the time of day that they were set to.
pub(super) fn arm(ctx: &Context) -> Result<()> {
    for (state, id) in ctx.state.files.iter().zip(0..) {
        let FileKind::Timerfd { settime_flags, ticks, remaining_ns, interval_ns, expires_ns, .. } =
            state.kind
        else {
            continue;
        };
        let Some(fd) = opened(ctx, id) else { continue };
        let (flags, value) = match expires_ns {
            Some(at) => (settime_flags as i32, at.max(1)),
            // A periodic timer is never disarmed: this one was just about to expire.
            None if remaining_ns == 0 && interval_ns > 0 => (0, 1),
            None => (0, remaining_ns),
        };
        let armed = call::timerfd_settime(fd, flags, Timer { value, interval: interval_ns })
            .and_then(|()| if ticks > 0 { call::timerfd_set_ticks(fd, ticks) } else { Ok(()) });
        armed.map_err(|e| {
            Error::from(e).context(format!("setting the timer of {}", name_of(&ctx.state, id)))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn counters_of_any_size() {
        for count in [0, 7, u64::from(u32::MAX), u64::from(u32::MAX) + 9, u64::MAX - 1] {
            let fd = eventfd(count, false).unwrap();
            let mut bytes = [0; 8];
            match nix::unistd::read(fd.as_fd(), &mut bytes) {
                Ok(_) => assert_eq!(u64::from_ne_bytes(bytes), count),
                Err(e) => assert_eq!((e, count), (nix::errno::Errno::EAGAIN, 0)),
            }
        }
    }
}
