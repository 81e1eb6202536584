//! `containerManager`, as far as it looks on: procfs dumps and trace sessions.
#![forbid(unsafe_code)]

use airlock_loader::loader::Loader;
use airlock_wire::api::container_manager::{
    CreateTraceSession, DeleteTraceSession, ListTraceSessions, ProcfsDump,
};
use airlock_wire::api::trace::CreateTraceSessionArgs;
use airlock_wire::api::types::{Empty, Json, List};
use airlock_wire::registry::Registry;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<ProcfsDump>(move |_, Empty {}| Ok(Json(List(l.procfs_dump()?))));
    let l = loader.clone();
    registry.on::<CreateTraceSession>(move |call, Json(CreateTraceSessionArgs { config, force })| {
        l.create_trace_session(config, force, call.take_fds()).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<DeleteTraceSession>(move |_, name| l.delete_trace_session(&name).map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<ListTraceSessions>(move |_, Empty {}| Ok(Json(List(l.trace_sessions()))));
}
