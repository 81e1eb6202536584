//! The methods and their types, one module a receiver.
//!
//! Names, fields and results are gVisor's where gVisor has the method (August 2026, with the older spellings
//! accepted); [`airlock`] holds what only airlock has.

pub mod airlock;
pub mod boot;
pub mod cgroups;
pub mod checkpoint;
pub mod container;
pub mod container_manager;
pub mod debug;
pub mod events;
pub mod fs;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod network;
pub mod proc;
pub mod procfs;
pub mod profile;
pub mod state;
pub mod supervisor;
pub mod trace;
pub mod types;
pub mod usage;

use crate::method::{MethodInfo, Visitor};

/// Shows every method that this crate declares to `visitor`, receiver by receiver.
pub fn visit_methods(visitor: &mut impl Visitor) {
    container_manager::visit(visitor);
    fs::visit(visitor);
    lifecycle::visit(visitor);
    proc::visit(visitor);
    profile::visit(visitor);
    logging::visit(visitor);
    network::visit(visitor);
    state::visit(visitor);
    usage::visit(visitor);
    metrics::visit(visitor);
    cgroups::visit(visitor);
    events::visit(visitor);
    debug::visit(visitor);
    container::api::visit(visitor);
    container::visit(visitor);
    airlock::visit(visitor);
    supervisor::visit(visitor);
}

/// Every method that this crate declares, receiver by receiver.
pub fn all_methods() -> Vec<MethodInfo> {
    let mut all = Vec::new();
    visit_methods(&mut all);
    all
}
