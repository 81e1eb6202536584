//! `run`: create, start, wait and delete in one.

#![forbid(unsafe_code)]

use super::CreateOptions;
use super::create::Created;
use super::delete::purge;
use super::start::run_poststart;
use crate::console::{Foreground, SignalBlock};
use crate::hooks::{self, HookState};
use crate::podspec::Bundle;
use crate::state::{State, StateDir, Status};
use airlock_wire::api::airlock as api;
use airlock_wire::client::Client;
use airlock_wire::error::Result;
use std::os::fd::AsFd;

/// How a container that was run came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Its wait status; see [`crate::state::exit_code`].
    pub wait_status: i32,
}

/// Starts the poststart hooks of a container that was created with `autostart`, waits for its end while passing on
/// signals (and, with a terminal, keys and output), and deletes it unless `keep` is set.
///
/// `block` must have been made before the container was.
pub fn run_foreground(dir: &StateDir, created: Created, block: SignalBlock, keep: bool) -> Result<Outcome> {
    let Created { state, lock, sandbox, console, supervised } = created;
    // `exec`, `kill` and `delete --force` must be possible while we wait.
    drop(lock);
    let waited = match (sandbox, supervised) {
        (Some(sandbox), _) => run_poststart(dir, &state).and_then(|()| {
            let foreground = Foreground::new(block, console)?;
            let mut client = Some(sandbox.client);
            foreground.wait(sandbox.loader_pidfd.as_fd(), |signo| forward(&mut client, &state.id, signo))?;
            crate::sandbox::reap(sandbox.loader.pid)
        }),
        (None, Some(supervised)) => {
            run_poststart(dir, &state).and_then(|()| supervised.wait(Foreground::new(block, console)?))
        }
        (None, None) => {
            Err(airlock_wire::error::Error::failure("a container without a sandbox was to be run"))
        }
    };
    if keep && waited.is_ok() {
        return waited.map(|wait_status| Outcome { wait_status });
    }
    // `delete --force` may have been faster.
    if let Ok(_lock) = dir.lock(&state.id) {
        // Others may have added to it meanwhile.
        let now = dir.load(&state.id).ok().filter(|now| now.process() == state.process());
        purge(dir, now.as_ref().unwrap_or(&state), true)?;
        let hook_state = HookState::new(&state, Status::Stopped, 0);
        if let Err(e) = hooks::run("poststop", &state.poststop, &hook_state) {
            log::warn!("container {}: {e}", state.id);
        }
    }
    waited.map(|wait_status| Outcome { wait_status })
}

/// Passes a signal on to the container's init. A sandbox that has just ended takes none.
fn forward(client: &mut Option<Client>, id: &str, signo: i32) {
    let Some(connection) = client else { return };
    let args = api::SignalForwardArgs { cid: id.to_owned(), pid: 0, signo };
    if let Err(e) = connection.call::<api::SignalForward>(&args, &[])
        && e.kind == airlock_wire::error::Kind::Disconnected
    {
        *client = None;
    }
}

/// Creates a container with `autostart`, runs its poststart hooks, and leaves it running. When a hook fails, nothing of
/// the container is left.
pub fn run_detached(dir: &StateDir, id: &str, bundle: &Bundle, options: CreateOptions) -> Result<State> {
    let created = super::create(dir, id, bundle, options)?;
    run_poststart(dir, &created.state).inspect_err(|_| {
        if let Err(e) = purge(dir, &created.state, true) {
            log::warn!("undo the making of container {id}: {e}");
        }
    })?;
    Ok(created.state)
}
