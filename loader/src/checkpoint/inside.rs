//! Looking at things as a container sees them.
//!
//! The agent's own root is an empty directory. A thread of it can have another one: threads share the root and the
//! current directory only until one of them asks for its own.
#![forbid(unsafe_code)]

use crate::sys::{process, task};
use airlock_wire::error::{Error, Result};
use std::os::fd::BorrowedFd;

/// Runs `work` on a new thread that is in namespaces of the process behind `target` (a pidfd): `namespaces` are
/// `CLONE_NEW*`. With `CLONE_NEWNS`, `/` and the current directory are the root of the container's mount namespace, and
/// `work` may change both. Descriptors are those of the whole process. Blocks until `work` is done.
///
/// # Errors
/// `EPERM` when the namespaces cannot be entered, `ESRCH` when the process is gone, and what `work` answers.
pub fn run<T: Send>(
    target: BorrowedFd<'_>,
    namespaces: i32,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    on_thread(|| {
        if namespaces & libc::CLONE_NEWNS != 0 {
            process::unshare(libc::CLONE_FS)?;
        }
        process::setns(target, namespaces)
            .map_err(|e| Error::from(e).context("entering a container's namespaces"))?;
        work()
    })
}

/// Runs `work` on a new thread that has a descriptor table of its own, a copy of the process': what `work` opens, moves
/// or closes there changes nothing here. It must not hand descriptors out.
///
/// # Errors
/// `EMFILE`, `ENOMEM`, and what `work` answers.
pub fn with_own_table<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_thread(|| {
        process::unshare(libc::CLONE_FILES)?;
        work()
    })
}

/// Lets this process have as many descriptors as it may: it holds those of all containers at once. Answers how many.
pub fn many_descriptors() -> u64 {
    const ENOUGH: u64 = 1 << 20;
    let Ok((soft, hard)) = task::rlimit(0, libc::RLIMIT_NOFILE) else { return ENOUGH };
    if soft < ENOUGH && task::set_rlimit(0, libc::RLIMIT_NOFILE, (ENOUGH, hard.max(ENOUGH))).is_err() {
        // Without CAP_SYS_RESOURCE.
        let _ = task::set_rlimit(0, libc::RLIMIT_NOFILE, (hard.min(ENOUGH), hard));
    }
    task::rlimit(0, libc::RLIMIT_NOFILE).map_or(ENOUGH, |(soft, _)| soft)
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, work).map_err(|e| {
            Error::from(e).context("starting a thread of the agent (is the pids limit reached?)")
        })?;
        thread.join().unwrap_or_else(|_| Err(Error::failure("a thread of the agent panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    use std::os::fd::{AsFd, AsRawFd};

    #[test]
    fn another_root_does_not_reach_the_caller() {
        let me = process::pidfd_open(std::process::id() as i32).unwrap();
        let before = std::env::current_dir().unwrap();
        let inside = run(me.as_fd(), libc::CLONE_NEWNS, || Ok(std::env::current_dir()?)).unwrap();
        assert_eq!(inside, std::path::Path::new("/"));
        assert_eq!(std::env::current_dir().unwrap(), before);
    }

    #[test]
    fn another_table_does_not_reach_the_caller() {
        let fd = open("/dev/null", OFlag::O_RDONLY, Mode::empty()).unwrap();
        with_own_table(|| {
            crate::sys::files::close_number(fd.as_raw_fd());
            Ok(())
        })
        .unwrap();
        assert!(nix::sys::stat::fstat(&fd).is_ok());
    }

    #[test]
    fn what_goes_wrong_inside_comes_back() {
        let me = process::pidfd_open(std::process::id() as i32).unwrap();
        let error = run::<()>(me.as_fd(), 0x1, || Ok(())).unwrap_err();
        assert!(error.message.contains("namespaces"), "{error}");
        assert!(with_own_table::<()>(|| Err(Error::failure("no"))).unwrap_err().message.contains("no"));
    }
}
