//! `Lifecycle`: gVisor's older life cycle interface.

use crate::container_manager::killer;
use airlock_loader::container::State;
use airlock_loader::loader::{DeliveryMode, Loader};
use airlock_wire::api::lifecycle::{
    GetExitStatus, IsContainerRunning, Pause, Reap, Resume, Shutdown, SignalContainer, StartContainer,
    StartContainerArgs,
};
use airlock_wire::api::types::Empty;
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::Registry;
use std::sync::Arc;

/// The limits of getrlimit(2), as gVisor calls them.
const LIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

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
    registry.on::<SignalContainer>(move |call, args| {
        let id = &args.container_id;
        let container = l.container(id);
        match container.as_ref().map(|c| c.state()) {
            Ok(state) if state.runs() => {}
            Ok(State::Stopped) => return Err(Error::invalid_state(format!("{id} container not running"))),
            _ => return Err(Error::invalid_state(format!("container {id} not started"))),
        }
        container?.asked(killer::<SignalContainer>(call, args.signo));
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
    registry.on::<Shutdown>(move |call, Empty {}| {
        l.root()?.asked(killer::<Shutdown>(call, libc::SIGKILL));
        // The sandbox ends as its root container ends.
        l.signal(l.id(), 0, libc::SIGKILL, DeliveryMode::Process).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<StartContainer>(move |call, args| start_container(&l, call.fd_count(), &args));
}

/// Checks as gVisor does, and then refuses as runsc's sandboxes do, which give this method no mounts to work with.
fn start_container(loader: &Loader, fds: usize, args: &StartContainerArgs) -> Result<u32> {
    let id = &args.container_id;
    if fds != args.donated_fds.len() {
        return Err(Error::invalid_argument(format!(
            "FilePayload.Files and DonatedFDs must have same number of elements ({fds} != {})",
            args.donated_fds.len()
        )));
    }
    if let Some(limit) = args.limits.keys().find(|name| !LIMITS.contains(&name.as_str())) {
        return Err(Error::invalid_argument(format!("unknown limit {limit:?}")));
    }
    if loader.container(id).is_ok() {
        return Err(Error::invalid_state(format!("container id: {id} already exists")));
    }
    Err(Error::unsupported(format!(
        "mount namespace is nil for {id}: make containers with containerManager.CreateSubcontainer and StartSubcontainer"
    )))
}
