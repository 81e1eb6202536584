//! `Lifecycle`: gVisor's older life cycle interface.

use airlock_loader::container::State;
use airlock_loader::loader::{DeliveryMode, Loader};
use airlock_wire::api::lifecycle::{
    GetExitStatus, IsContainerRunning, Pause, Reap, Resume, Shutdown, SignalContainer,
};
use airlock_wire::api::types::Empty;
use airlock_wire::error::Error;
use airlock_wire::registry::Registry;
use std::sync::Arc;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<Pause>(move |_, Empty {}| l.pause().map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<Resume>(move |_, Empty {}| l.resume().map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<IsContainerRunning>(move |_, args| {
        Ok(l.container(&args.container_id).is_ok_and(|c| c.state().runs()))
    });
    let l = loader.clone();
    registry.on::<GetExitStatus>(move |_, args| {
        let id = &args.container_id;
        let missing =
            || Error::no_such_entity(format!("container {id:?} doesn't exist, or has not been started"));
        let container = l.container(id).map_err(|_| missing())?;
        let init = container
            .init()
            .filter(|_| container.state().runs() || container.state() == State::Stopped)
            .ok_or_else(missing)?;
        init.status().ok_or_else(|| Error::invalid_state(format!("container {id:?} hasn't exited yet")))
    });
    let l = loader.clone();
    registry.on::<SignalContainer>(move |_, args| {
        let id = &args.container_id;
        let state = l.container(id).map(|c| c.state());
        match state {
            Ok(state) if state.runs() => {}
            Ok(State::Stopped) => return Err(Error::invalid_state(format!("{id} container not running"))),
            _ => return Err(Error::invalid_state(format!("container {id} not started"))),
        }
        let mode = if args.signal_all { DeliveryMode::All } else { DeliveryMode::Process };
        l.signal(id, 0, args.signo, mode).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<Reap>(move |_, args| {
        let id = &args.container_id;
        let container =
            l.container(id).map_err(|_| Error::no_such_entity(format!("no container with id {id:?}")))?;
        match container.state() {
            State::Stopped if container.root => Ok(Empty {}),
            State::Stopped => l.destroy(id).map(|()| Empty {}),
            _ => Err(Error::invalid_state(format!("container {id:?} hasn't exited yet"))),
        }
    });
    let l = loader.clone();
    registry.on::<Shutdown>(move |_, Empty {}| {
        // The sandbox ends as its root container ends.
        l.signal(l.id(), 0, libc::SIGKILL, DeliveryMode::Process).map(|()| Empty {})
    });
}
