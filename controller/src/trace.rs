//! `containerManager`, as far as it looks on: procfs dumps and trace sessions.
#![forbid(unsafe_code)]

use airlock_loader::loader::Loader;
use airlock_wire::api::container_manager::ProcfsDump;
use airlock_wire::api::types::{Empty, Json, List};
use airlock_wire::registry::Registry;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<ProcfsDump>(move |_, Empty {}| Ok(Json(List(l.procfs_dump()?))));
}
