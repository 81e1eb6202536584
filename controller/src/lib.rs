//! The named handlers of a sandbox, one file a receiver. They check arguments, call the loader, and put its errors
//! into the words of the interface they implement.
#![forbid(unsafe_code)]

mod airlock;
mod cgroups;
mod checkpoint;
pub mod container_api;
mod container_manager;
mod debug;
mod events;
mod filesystems;
mod forward;
mod fs;
mod lifecycle;
mod logging;
pub mod metrics;
mod network;
mod proc;
mod profile;
mod supervisor;
mod trace;
mod usage;

use airlock_loader::loader::Loader;
use airlock_wire::registry::Registry;
use std::sync::Arc;

/// Runs `airlock boot` with the handlers of this crate; see [`airlock_loader::boot::stage_main`]. Does not return.
pub fn boot_main() -> ! {
    airlock_loader::boot::stage_main(handlers)
}

/// The method table of a sandbox.
pub fn handlers(loader: &Arc<Loader>) -> Registry {
    let mut registry = Registry::new();
    container_manager::register(&mut registry, loader);
    checkpoint::register(&mut registry, loader);
    filesystems::register(&mut registry, loader);
    forward::register(&mut registry, loader);
    fs::register(&mut registry, loader);
    lifecycle::register(&mut registry, loader);
    proc::register(&mut registry, loader);
    profile::register(&mut registry, loader);
    logging::register(&mut registry, loader);
    network::register(&mut registry, loader);
    usage::register(&mut registry, loader);
    metrics::register(&mut registry, loader);
    cgroups::register(&mut registry, loader);
    events::register(&mut registry);
    debug::register(&mut registry, loader);
    trace::register(&mut registry, loader);
    supervisor::register(&mut registry, loader);
    container_api::register_sandbox(&mut registry, loader);
    airlock::register(&mut registry, loader);
    registry
}
