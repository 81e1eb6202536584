//! `Events`: refused by name.

use airlock_wire::api::events::AttachDebugEmitter;
use airlock_wire::error::Error;
use airlock_wire::registry::Registry;

pub(crate) fn register(registry: &mut Registry) {
    registry.on::<AttachDebugEmitter>(|_, _| {
        Err(Error::unsupported(
            "AttachDebugEmitter is not supported: 'airlock events' tells what happens to a container, and a trace session what its processes do",
        ))
    });
}
