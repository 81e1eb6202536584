//! The methods and their types, one module a receiver.
//!
//! Names, fields and results are gVisor's where gVisor has the method (August 2026, with the older spellings
//! accepted); [`airlock`] holds what only airlock has.

pub mod airlock;
pub mod boot;
pub mod checkpoint;
pub mod container_manager;
pub mod debug;
pub mod lifecycle;
pub mod logging;
pub mod proc;
pub mod procfs;
pub mod state;
pub mod types;
pub mod usage;

use crate::method::MethodInfo;

/// Every method that this crate declares, receiver by receiver.
pub fn all_methods() -> Vec<MethodInfo> {
    let mut all = container_manager::methods();
    all.extend(lifecycle::methods());
    all.extend(proc::methods());
    all.extend(logging::methods());
    all.extend(state::methods());
    all.extend(usage::methods());
    all.extend(debug::methods());
    all.extend(airlock::methods());
    all
}
