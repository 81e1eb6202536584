//! Looking on while a sandbox runs: procfs dumps and trace sessions, by our own tools and by gVisor's.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "trace/consumer.rs"]
mod consumer;
#[path = "trace/procfs.rs"]
mod procfs;
#[path = "trace/sessions.rs"]
mod sessions;

use airlock_tests::{Bundle, State, unique};

/// A sandbox whose root container runs.
struct Sandbox {
    state: State,
    bundle: Bundle,
    id: String,
}

impl Sandbox {
    fn start(args: &[&str]) -> Self {
        Self::of(Bundle::new(args))
    }

    fn of(bundle: Bundle) -> Self {
        let (state, id) = (State::new(), unique("trace"));
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Self { state, bundle, id }
    }
}

/// Why this kernel does not let us trace, if so.
fn untraceable() -> Option<String> {
    match airlock_loader::sys::tracing::kernel_types() {
        Ok(_) => None,
        Err(e) => Some(format!("needs BPF with the kernel's types: {e}")),
    }
}
