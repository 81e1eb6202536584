//! Work that needs mounts to be attached somewhere, without anybody seeing it.

#![forbid(unsafe_code)]

use airlock_loader::sys::mount::{self, Propagation};
use airlock_wire::error::{Error, Result};
use nix::sched::{CloneFlags, unshare};

/// Runs `work` in a thread with a mount namespace of its own, a private copy of the caller's. Mounts that are attached
/// there vanish with it; what file systems have taken from them stays.
pub(super) fn in_private_namespace<R: Send>(work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS)
                .map_err(|e| Error::from(e).context("private mount namespace"))?;
            mount::set_root_propagation(Propagation::Private, true)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Error::failure("a helper thread panicked")))
    })
}
