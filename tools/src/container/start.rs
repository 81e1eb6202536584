//! `start`: lets the program of a created container run.

#![forbid(unsafe_code)]

use super::pod::restore_container;
use super::restore::Source;
use crate::hooks::{self, HookState};
use crate::state::{State, StateDir, Status};
use airlock_wire::api::airlock as api;
use airlock_wire::api::container_manager::{Signal, SignalArgs};
use airlock_wire::error::{Error, Kind, Result};

/// Starts container `id`; returns once its program is executed and the poststart hooks have run.
///
/// When a poststart hook fails the container is killed and the start has failed; later hooks do not run (OCI runtime.md,
/// lifecycle step 9).
pub fn start(dir: &StateDir, id: &str) -> Result<()> {
    let _lock = dir.lock(id)?;
    let state = dir.load(id)?;
    match dir.status(&state)? {
        Status::Created => {}
        Status::Creating => {
            return Err(Error::invalid_state(format!("container {id} is still being created")));
        }
        Status::Stopped => {
            return Err(Error::invalid_state(format!("cannot start a container that has stopped: {id}")));
        }
        Status::Running | Status::Paused => {
            return Err(Error::invalid_state(format!("cannot start an already running container: {id}")));
        }
    }
    dir.connect(&state)
        .and_then(|mut client| match &state.restore {
            Some(restore) if state.is_subcontainer() => restore_container(dir, &state, restore),
            Some(restore) => Source::open(restore)?.restore(&mut client).map(drop),
            None => {
                let args = api::ContainerId { cid: id.to_owned() };
                client.call::<api::StartContainer>(&args, &[]).map(drop)
            }
        })
        .map_err(|e| {
            // A start that fails says why, and is the container's end: only one that says nothing met another end.
            let e = if e.kind == Kind::Disconnected { dir.or_ended(&state, e) } else { e };
            e.context(format!("start container {id}"))
        })?;
    run_poststart(dir, &state)
}

/// Runs the poststart hooks of a container that has just been started; kills it when one fails.
pub(super) fn run_poststart(dir: &StateDir, state: &State) -> Result<()> {
    let hook_state = HookState::new(state, Status::Running, state.pid);
    hooks::run("poststart", &state.poststart, &hook_state).inspect_err(|_| {
        let killed = dir.connect(state).and_then(|mut client| {
            let args = SignalArgs { cid: state.id.clone(), signo: libc::SIGKILL, ..SignalArgs::default() };
            client.call::<Signal>(&args, &[])
        });
        if let Err(e) = killed {
            log::warn!("kill container {} after a failed hook: {e}", state.id);
        }
    })
}
