//! `Network`, and what `containerManager` and `Lifecycle` have to say of the network.

use airlock_loader::loader::Loader;
use airlock_wire::api::container_manager::{GetNetworkConfig, SetNetworkArgs};
use airlock_wire::api::lifecycle::{PauseExternalNetworking, ResumeExternalNetworking};
use airlock_wire::api::network::{CreateLinksAndRoutes, InitPluginStack};
use airlock_wire::api::types::Empty;
use airlock_wire::error::Error;
use airlock_wire::registry::Registry;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry
        .on::<SetNetworkArgs>(move |call, args| l.set_network_args(args, call.take_fds()).map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<GetNetworkConfig>(move |_, Empty {}| Ok(l.network_config()));
    let l = loader.clone();
    registry.on::<PauseExternalNetworking>(move |_, _| l.stop_links(true).map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<ResumeExternalNetworking>(move |_, _| l.stop_links(false).map(|()| Empty {}));
    // As in gVisor there is nothing to set up in a network that is the host's.
    if !loader.has_own_network() {
        return;
    }
    let l = loader.clone();
    registry.on::<CreateLinksAndRoutes>(move |call, args| {
        l.create_links(args, call.take_fds()).map(|()| Empty {})
    });
    registry.on::<InitPluginStack>(|_, _| Err(Error::unsupported("plugin stack is not registered")));
}
