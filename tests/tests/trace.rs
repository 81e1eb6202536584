//! Looking on while a sandbox runs: procfs dumps and trace sessions, by our own tools and by gVisor's.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "trace/procfs.rs"]
mod procfs;

use airlock_tests::{Bundle, State, unique};

/// A sandbox whose root container runs.
struct Sandbox {
    state: State,
    _bundle: Bundle,
    id: String,
}

impl Sandbox {
    fn start(args: &[&str]) -> Self {
        Self::of(Bundle::new(args))
    }

    fn of(bundle: Bundle) -> Self {
        let (state, id) = (State::new(), unique("trace"));
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Self { state, _bundle: bundle, id }
    }
}
