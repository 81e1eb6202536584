//! Booting: from the donated message to a serving loader. See `docs/ARCHITECTURE.md`.
#![forbid(unsafe_code)]

mod fdtable;
mod hold;
pub(crate) mod logging;
mod run;
mod stage;

pub use fdtable::FdTable;
pub use stage::stage_main;

use crate::loader::Loader;
use airlock_wire::error::{Error, Kind, Result};
use airlock_wire::registry::Registry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Makes the named handlers of a loader: the controller's part in booting.
pub type Handlers = fn(&Arc<Loader>) -> Registry;

/// Runs a part of booting; a panic becomes an error, so that the parent hears of it.
fn guarded<T>(part: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(part)).unwrap_or_else(|panic| {
        let why = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Err(Error::new(Kind::Panic, format!("the sandbox panicked while it was being made: {why}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told() {
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
        let e = guarded::<()>(|| panic!("no {}", "luck")).unwrap_err();
        assert!(e.kind == Kind::Panic && e.message.contains("no luck"), "{e}");
    }
}
