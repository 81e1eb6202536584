//! Booting: from the donated message to a serving loader. See `docs/ARCHITECTURE.md`.
#![forbid(unsafe_code)]

mod fdtable;
mod hold;
mod logging;
mod run;
mod stage;

pub use fdtable::FdTable;
pub use stage::stage_main;

use crate::loader::Loader;
use airlock_wire::registry::Registry;
use std::sync::Arc;

/// Makes the named handlers of a loader: the controller's part in booting.
pub type Handlers = fn(&Arc<Loader>) -> Registry;
