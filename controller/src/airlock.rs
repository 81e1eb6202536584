//! `Airlock`: what gVisor's interface has no method for; airlock's own command line uses it.

use crate::container_manager::{killer, wait_for};
use airlock_loader::boot::FdTable;
use airlock_loader::container::{Container, Process, State};
use airlock_loader::loader::{ContainerParts, ExecRequest, Loader};
use airlock_wire::api::airlock::{
    ContainerInfo, Exec, ExecReply, Generation, Info, List, Methods, PauseContainer, PrepareArgs,
    PrepareSubcontainer, Prepared, ResumeContainer, SharedMounts, SignalForward, StartContainer, Supervise,
    SuperviseArgs,
};
use airlock_wire::api::types::{Empty, Json};
use airlock_wire::error::{Error, Kind, Result};
use airlock_wire::registry::{Call, Dependent, Registry};
use oci_spec::runtime::Spec;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<PrepareSubcontainer>(move |call, args| prepare(&l, call, args));
    let l = loader.clone();
    registry.on::<StartContainer>(move |_, args| {
        let container = l.container(&args.cid)?;
        if !container.root && l.is_collecting() {
            // What is created while its sandbox is being restored is restored with it.
            return l.restore_container(&container).map(|_| Empty {});
        }
        l.start(&container).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<Supervise>(move |call, args| supervise(&l, call, &args));
    let l = loader.clone();
    registry.on::<Exec>(move |call, args| {
        let mut table = FdTable::new(call.take_fds());
        let parts = ContainerParts::take(&args.fds, &mut table)?;
        let process =
            args.process.0.ok_or_else(|| Error::invalid_argument("Airlock.Exec: process is missing"))?;
        let parsed = serde_json::from_str(&process)
            .map_err(|e| Error::new(Kind::Serde, format!("Airlock.Exec: process: {e}")))?;
        airlock_loader::oci::validate::validate_process(&parsed)?;
        let request = ExecRequest {
            process,
            stdio: parts.stdio,
            tty: parts.tty,
            pass: parts.pass,
            exec: parts.exec,
            cgroup: None,
        };
        let executed = l.exec(&args.cid, request)?;
        // The caller may be gone by now, or go before it supervises the process.
        call.ends_with_connection(Box::new(Executing(Arc::downgrade(&executed.process))));
        let reply = ExecReply {
            pid: executed.process.ns_pid(),
            sandbox_pid: executed.process.pid,
            has_console: executed.console.is_some(),
            has_seccomp_listener: executed.listener.is_some(),
        };
        for fd in [executed.console, executed.listener].into_iter().flatten() {
            call.reply_fd(fd);
        }
        Ok(reply)
    });
    let l = loader.clone();
    registry.on::<Info>(move |_, args| Ok(info(&l, &*l.container(&args.cid)?)));
    let l = loader.clone();
    registry.on::<Generation>(move |_, Empty {}| Ok(l.generation().to_owned()));
    let l = loader.clone();
    registry.on::<List>(move |_, Empty {}| Ok(l.containers().iter().map(|c| info(&l, c)).collect()));
    registry.on::<Methods>(move |_, Empty {}| Ok(Json(airlock_wire::api::all_methods())));
    let l = loader.clone();
    registry.on::<SharedMounts>(move |call, Empty {}| {
        let mut names = Vec::new();
        for (name, mount) in l.shared_mounts() {
            call.reply_fd(mount.try_clone()?);
            names.push(name.clone());
        }
        Ok(names)
    });
    let l = loader.clone();
    registry.on::<SignalForward>(move |call, args| {
        l.forward(&args.cid, args.pid, killer::<SignalForward>(call, args.signo)).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<PauseContainer>(move |_, args| l.pause_container(&args.cid, true).map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<ResumeContainer>(move |_, args| l.pause_container(&args.cid, false).map(|()| Empty {}));
}

/// A process of [`Exec`]. Once nobody remembers it, it has ended.
struct Executing(Weak<Process>);

impl Dependent for Executing {
    fn has_ended(&self) -> bool {
        self.0.upgrade().is_none_or(|process| process.status().is_some())
    }
    fn hung_up(&self) {
        if let Some(process) = self.0.upgrade() {
            let _ = process.signal(libc::SIGKILL);
        }
    }
}

fn prepare(loader: &Loader, call: &mut Call<'_>, args: PrepareArgs) -> Result<Prepared> {
    let root = loader.root()?;
    if !root.state().runs() && root.state() != State::RestoringUnstarted {
        return Err(Error::invalid_state(format!(
            "sandbox is not in started state, cannot create subcontainer: state={}",
            root.state().name()
        )));
    }
    let text =
        args.spec.0.ok_or_else(|| Error::invalid_argument("Airlock.PrepareSubcontainer: spec is missing"))?;
    let spec: Spec =
        serde_json::from_str(&text).map_err(|e| Error::new(Kind::Serde, format!("spec: {e}")))?;
    airlock_loader::oci::validate::validate(&spec).map_err(|e| Error::invalid_argument(e.to_string()))?;
    let mut table = FdTable::new(call.take_fds());
    let mut parts = ContainerParts::take(&args.fds, &mut table)?;
    parts.confs = args.gofer_mount_confs;
    parts.to_restore = loader.is_collecting();
    let container = loader.reserve(&args.cid, None)?;
    match loader.prepare(&container, text, spec, &args.bundle, parts) {
        Ok(prepared) => {
            let reply = Prepared {
                init_pid: prepared.init_pid,
                has_console: prepared.console.is_some(),
                has_seccomp_listener: prepared.listener.is_some(),
            };
            for fd in [prepared.console, prepared.listener].into_iter().flatten() {
                call.reply_fd(fd);
            }
            Ok(reply)
        }
        Err(e) => {
            // An OCI create that failed leaves nothing behind, not even the id.
            let _ = loader.destroy(&args.cid);
            Err(e)
        }
    }
}

fn supervise(loader: &Loader, call: &Call<'_>, args: &SuperviseArgs) -> Result<u32> {
    let container = loader.container(&args.cid)?;
    let process = match args.pid {
        0 => container.init(),
        pid => container.process(pid),
    }
    .ok_or_else(|| Error::no_such_entity(format!("no such process with PID {}", args.pid)))?;
    let status = wait_for(call, &process);
    if status.as_ref().is_err_and(|e| e.kind == Kind::Disconnected) {
        kill(&container, &process);
    }
    container.forget_process(args.pid, &process);
    status
}

/// The supervisor stood for the process, so its end is the process' end.
fn kill(container: &Container, process: &Process) {
    if let Ok(cgroup) = container.cgroup()
        && process.ns_pid() == container.init().map_or(0, |i| i.ns_pid())
    {
        // A frozen container does not die.
        let _ = cgroup.freeze(false);
    }
    let _ = process.signal(libc::SIGKILL);
}

/// What a container does, in OCI's words.
pub(crate) fn status_of(loader: &Loader, container: &Container) -> &'static str {
    match container.state() {
        State::Creating => "creating",
        State::Stopped | State::RestoreFailed => "stopped",
        _ if loader.is_paused(container) => "paused",
        State::Created | State::RestoringUnstarted => "created",
        _ => "running",
    }
}

fn info(loader: &Loader, container: &Container) -> ContainerInfo {
    let status = status_of(loader, container);
    let times = container.times();
    let text =
        |t: Option<SystemTime>| t.map(|t| humantime::format_rfc3339_nanos(t).to_string()).unwrap_or_default();
    let init = container.init();
    ContainerInfo {
        cid: container.cid.clone(),
        status: status.to_owned(),
        init_pid: init.as_ref().map_or(0, |p| p.pid),
        exit_status: init.and_then(|p| p.status()),
        reason: container.reason(),
        killed_by: container.killed_by(),
        created: text(times.created),
        started: text(times.started),
        finished: text(times.finished),
    }
}
