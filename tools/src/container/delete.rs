//! `delete`: everything that belongs to a container goes.

#![forbid(unsafe_code)]

use super::takeover::Taken;
use crate::cgroups::Manager;
use crate::files::connect_stream;
use crate::gofer;
use crate::hooks::{self, HookState};
use crate::process::{ProcessId, wait_ended};
use crate::state::{DomainFiles, Lock, Phase, State, StateDir, Status};
use crate::sys;
use airlock_wire::api::container_manager::DestroySubcontainer;
use airlock_wire::api::lifecycle::Shutdown;
use airlock_wire::api::types::Empty;
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::{Error, Kind, Result};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A killed process that has not ended by then is stuck in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at a cgroup whose processes are ending.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long `delete --force` waits for another command that is at work on the same container.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// How `delete` goes about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Kills the container if it runs; a missing one is no error.
    pub force: bool,
}

/// Deletes container `id`: a stopped one, one that was created and not started, or with `force` any.
///
/// Poststop hooks run last; their failures are only logged.
pub fn delete(dir: &StateDir, id: &str, options: DeleteOptions) -> Result<()> {
    let result = delete_existing(dir, id, options);
    if options.force {
        // What commands that were killed have left half-made goes as well.
        let _ = dir.list();
        if result.as_ref().is_err_and(|e| e.kind == Kind::NoSuchEntity) && !dir.exists(id) {
            return Ok(());
        }
    }
    result
}

fn delete_existing(dir: &StateDir, id: &str, options: DeleteOptions) -> Result<()> {
    let lock = if options.force { force_lock(dir, id)? } else { Some(dir.lock(id)?) };
    let state = match dir.load(id) {
        Ok(state) => state,
        Err(e) if options.force => return remove_unreadable(dir, id, &e),
        Err(e) => return Err(e),
    };
    if !options.force {
        match dir.status(&state)? {
            Status::Stopped | Status::Created => {}
            status => {
                return Err(Error::invalid_state(format!(
                    "cannot delete container {id} that is not stopped: {status}"
                )));
            }
        }
    }
    purge(dir, &state, options.force)?;
    drop(lock);
    let hook_state = HookState::new(&state, Status::Stopped, 0);
    if let Err(e) = hooks::run("poststop", &state.poststop, &hook_state) {
        log::warn!("container {id}: {e}");
    }
    Ok(())
}

/// Waits for another command that is at work on the container, but not for ever: one that makes it and hangs (in a hook,
/// say) is killed, one that does anything else is overtaken.
fn force_lock(dir: &StateDir, id: &str) -> Result<Option<Lock>> {
    match dir.lock_within(id, LOCK_LIMIT) {
        Ok(None) => {}
        Err(e) if e.kind != Kind::NoSuchEntity => {
            log::warn!("{e}");
            return Ok(None);
        }
        other => return other,
    }
    if let Ok(State { phase: Phase::Creating { by }, .. }) = dir.load(id) {
        log::warn!("container {id}: killing process {}, which does not finish creating it", by.pid);
        kill(by)?;
    }
    dir.lock_within(id, LOCK_LIMIT)
}

/// Removes a container whose state nobody can read. Its sandbox, if it has one, can only be found by its socket.
fn remove_unreadable(dir: &StateDir, id: &str, error: &Error) -> Result<()> {
    log::warn!("{error}");
    if let Ok(stream) = connect_stream(&dir.control_socket(id)) {
        let mut client = Client::from_stream(stream, Dialect::Binary);
        let ended =
            client.set_timeout(Some(KILL_LIMIT)).and_then(|()| client.call::<Shutdown>(&Empty {}, &[]));
        if let Err(e) = ended
            && e.kind != Kind::Disconnected
        {
            log::warn!("end the sandbox of container {id}: {e}");
        }
    }
    // Its cgroup follows from its configuration; if that cannot be read either, it is where it is by default.
    let config = dir.config(id).ok().and_then(|text| serde_json::from_str::<Spec>(&text).ok());
    let path = config.as_ref().and_then(|spec| spec.linux().as_ref()?.cgroups_path().as_deref());
    let plan = || Manager::plan_path(id, path, false);
    let removed = (|| {
        // The sandbox may still be on its way out. Its last process leaves the cgroup before it ends.
        let in_use = || match plan().and_then(|cgroup| cgroup.all_procs()) {
            Ok(pids) => !pids.is_empty(),
            Err(e) => e.kind == Kind::InvalidState,
        };
        let end = Instant::now() + KILL_LIMIT;
        while in_use() && Instant::now() < end {
            std::thread::sleep(LOOK_AGAIN);
        }
        // Only now: a plan that was made while somebody was there leaves everything to them.
        let cgroup = plan()?;
        cgroup.kill_all()?;
        cgroup.remove()
    })();
    if let Err(e) = removed {
        log::warn!("container {id}: {e}");
    }
    dir.remove(id)
}

/// Kills and removes everything of a container but runs no hooks. The caller holds the lock. With `force`, a cgroup or
/// an overlay layer that cannot be removed is only logged.
pub fn purge(dir: &StateDir, state: &State, force: bool) -> Result<()> {
    if state.is_subcontainer() {
        end_subcontainer(dir, state)?;
    } else if !kill(state.loader)? {
        return Err(Error::failure(format!(
            "sandbox {} (pid {}) does not end although it was killed: look at /proc/{}/stack",
            state.id, state.loader.pid, state.loader.pid
        )));
    }
    collect(if state.is_subcontainer() { state.process() } else { state.loader });
    let domains = state.domains.values().map(DomainFiles::remove);
    let cgroup = state.cgroup.kill_all().and_then(|()| state.cgroup.remove());
    // Its sockets are closed with the sandbox.
    let network = state.taken.as_ref().map_or(Ok(()), Taken::give_back);
    for result in domains.chain([cgroup, gofer::remove_filestores(&state.filestores), network]) {
        match result {
            Ok(()) => {}
            Err(e) if force => log::warn!("container {}: {e}", state.id),
            Err(e) => return Err(e),
        }
    }
    dir.remove(&state.id)
}

/// Kills a process and waits for its end. True when it has ended.
fn kill(process: ProcessId) -> Result<bool> {
    process.kill_and_wait(KILL_LIMIT)
}

/// Collects a process that has ended, if it is a child of this one that nobody has collected. The kernel keeps a
/// sandbox's pid namespace, and the spawner in the cgroup that is to be removed, as long as the dead loader is there.
fn collect(process: ProcessId) {
    if process.pid == 0 || ProcessId::current().is_ok_and(|own| own == process) {
        return;
    }
    if !ProcessId::of_child(process.pid).is_ok_and(|found| found == process) {
        return;
    }
    // Its first thread has ended, the others may still be at it.
    if let Ok(pidfd) = sys::pidfd_open(process.pid) {
        let _ = wait_ended(pidfd.as_fd(), Some(KILL_LIMIT));
    }
    // Somebody else's child is theirs to collect.
    let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
}

/// Lets the sandbox kill and forget the container; then its proxy ends by itself.
fn end_subcontainer(dir: &StateDir, state: &State) -> Result<()> {
    if state.loader.is_alive() {
        let result = dir.connect(state).and_then(|mut client| {
            client.set_timeout(Some(KILL_LIMIT))?;
            client.call::<DestroySubcontainer>(&state.id, &[])
        });
        match result {
            Ok(_) => {}
            Err(e) if e.kind == Kind::NoSuchEntity => {}
            // The sandbox ended meanwhile, and its containers with it.
            Err(e) if dir.has_ended(state, &e) => {}
            Err(e) => return Err(e.context(format!("destroy container {}", state.id))),
        }
    }
    // The proxy ends as the container ended, which its parent wants to see: it is killed only when it does not.
    let proxy = state.process();
    if ProcessId::current().is_ok_and(|own| own == proxy) {
        // Attached: we stand for the container ourselves.
        return Ok(());
    }
    if !proxy.wait(Some(Duration::from_secs(2)))? {
        kill(proxy)?;
    }
    Ok(())
}
