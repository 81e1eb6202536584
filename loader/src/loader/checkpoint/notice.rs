//! Something that happens once, and those who wait for it.
#![forbid(unsafe_code)]

use airlock_wire::error::Result;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

/// Says once how something went; whoever comes later hears it as well.
#[derive(Debug)]
pub struct Notice {
    outcome: OnceLock<Result<()>>,
    // Readable for ever once the outcome is there: waiters poll it together with their client.
    ready: EventFd,
}

impl Notice {
    /// # Errors
    /// When there is no descriptor left.
    pub(in crate::loader) fn new() -> Result<Self> {
        let ready = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { outcome: OnceLock::new(), ready })
    }

    pub(in crate::loader) fn set(&self, outcome: Result<()>) {
        if self.outcome.set(outcome).is_ok() {
            let _ = self.ready.write(1);
        }
    }

    /// How it went, once that is known.
    pub fn outcome(&self) -> Option<Result<()>> {
        self.outcome.get().cloned()
    }

    /// Becomes readable when the outcome is there, and stays so.
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}
