//! `containerManager.PortForward`.

use airlock_loader::loader::{Forwarded, Loader};
use airlock_wire::api::container_manager::{PortForward, PortForwardOpts};
use airlock_wire::api::types::Empty;
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::{Call, Dependent, Registry};
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<PortForward>(move |call, opts| port_forward(&l, call, &opts));
}

fn port_forward(loader: &Loader, call: &mut Call<'_>, opts: &PortForwardOpts) -> Result<Empty> {
    if call.fd_count() != 1 {
        return Err(Error::invalid_argument("stream FD is required for port forward"));
    }
    let forwarded = loader.port_forward(&opts.container_id, opts.port, call.take_fd(0)?)?;
    if opts.ends_with_connection {
        call.ends_with_connection(Box::new(Forwarding(forwarded)));
    }
    Ok(Empty {})
}

struct Forwarding(Forwarded);

impl Dependent for Forwarding {
    fn has_ended(&self) -> bool {
        self.0.has_ended()
    }
    fn hung_up(&self) {
        self.0.end();
    }
}
