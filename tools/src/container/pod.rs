//! `create` of a container in an existing sandbox.

#![forbid(unsafe_code)]

use super::CreateOptions;
use super::create::Created;
use super::exec::{launch, send_pidfd, write_pid_file};
use super::filesystems::FsImage;
use super::making::{self, Answered, Making, Sockets};
use super::restore::{RestoreOptions, write_log};
use crate::cgroups::Manager;
use crate::gofer::{PodMountHints, PodMounts};
use crate::hooks::{self, HookState};
use crate::podspec::{self, Bundle};
use crate::process::ProcessId;
use crate::proxy::{self, Proxy, Supervised, Target};
use crate::sandbox::FdList;
use crate::state::{Phase, StateDir, Status};
use airlock_wire::api::airlock as api;
use airlock_wire::api::boot::Namespace;
use airlock_wire::api::types::{Empty, SpecJson};
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Kind, Result};

/// Creates container `id` in sandbox `sandbox_id`.
pub(super) fn create(
    dir: &StateDir,
    id: &str,
    sandbox_id: &str,
    bundle: &Bundle,
    mut options: CreateOptions,
) -> Result<Created> {
    let spec = &bundle.spec;
    let sandbox = dir.load(sandbox_id).map_err(|e| {
        if e.kind == Kind::NoSuchEntity {
            Error::no_such_entity(format!(
                "sandbox {sandbox_id} of container {id} does not exist below {}: create it first",
                dir.root().display()
            ))
        } else {
            e
        }
    })?;
    if sandbox.is_subcontainer() {
        return Err(Error::invalid_argument(format!(
            "container {id} names {sandbox_id} as its sandbox, which is itself a container of sandbox {}",
            sandbox.sandbox_id
        )));
    }
    if !matches!(dir.status(&sandbox)?, Status::Created | Status::Running) {
        return Err(sandbox_gone(sandbox_id, id));
    }
    let mut sockets = Sockets::connect(&options, spec)?;
    let mut join = podspec::open_pod_namespaces(spec, sandbox.loader.pid, &sandbox.cgroup.procs()?)?;
    if let Some(taken) = &sandbox.taken {
        // The pod's network is what its sandbox has made of it.
        join.retain(|(kind, fd)| *kind != Namespace::Network || !taken.is_from(fd));
    }
    let manager = Manager::plan(spec, id, options.systemd_cgroup).map_err(|e| dir.or_taken(id, e))?;
    let mut state = making::first_state(id, sandbox_id, bundle, manager)?;
    state.loader = sandbox.loader;
    state.overlay.clone_from(&options.overlay);
    state.restore = options.restore.clone().filter(|_| !options.autostart);
    let mut making = Making::begin(dir, state)?;
    dir.save_config(id, bundle.text.as_bytes())?;

    let filesystems = options.filesystems.as_deref().map(FsImage::open).transpose()?;
    let mut fds = FdList::default();
    let mut donated = making::donate_common(&mut fds, bundle.terminal(), &mut options, join)?;
    donated.cgroup = making.state.cgroup.make(spec, &mut fds, false)?;
    let gone = |e| if dir.has_ended(&sandbox, &e) { sandbox_gone(sandbox_id, id) } else { e };
    let mut client = dir.connect(&sandbox).map_err(gone)?;
    let pod = pod_mounts(dir, sandbox_id, &mut client)?;
    let mounts = making.donate_mounts(bundle, &mut options, &mut fds, &mut donated, Some(pod))?;
    let args = api::PrepareArgs {
        cid: id.to_owned(),
        spec: SpecJson(Some(making::config_text(bundle, &options)?)),
        bundle: bundle.path.to_string_lossy().into_owned(),
        fds: donated,
        gofer_mount_confs: mounts.confs,
    };
    let reply = client.call::<api::PrepareSubcontainer>(&args, &fds.as_fds()).map_err(gone)?;
    drop(fds);
    let mut passed = reply.fds;
    let answered = Answered {
        seccomp_listener: if reply.value.has_seccomp_listener { passed.pop() } else { None },
        console: if reply.value.has_console { passed.pop() } else { None },
    };
    // From here on whatever ends this process ends the container as well.
    let target = Target { cid: id.to_owned(), pid: 0 };
    let supervised = Supervised::start(target, client, dir.connect(&making.state)?)?;
    let console = sockets.deliver(&making.state, sandbox.loader.pid, answered)?;
    let (stand_in, supervised) = if options.attached {
        (ProcessId::current()?, Some(supervised))
    } else {
        let proxy = Proxy { supervised, exit_file: Some(dir.make_exit_file(id)?) };
        (launch(proxy, options.proxy, &options.sandbox)?, None)
    };
    (making.state.pid, making.state.pid_start) = (stand_in.pid, stand_in.start);
    let mut finish = |making: &mut Making<'_>| {
        if !options.attached {
            making.state.cgroup.adopt(stand_in.pid)?;
        }
        // The sandbox and its namespaces exist already: its early hooks find them all.
        let hook_state = HookState::new(&making.state, Status::Creating, stand_in.pid);
        making::early_hooks(spec).iter().try_for_each(|(kind, list)| hooks::run(kind, list, &hook_state))?;
        if let Some(image) = &filesystems {
            image.restore(&mut dir.connect(&making.state)?, id)?;
        }
        match &options.restore {
            Some(restore) if options.autostart => restore_container(dir, &making.state, restore)?,
            None if options.autostart => start(dir, &making.state)?,
            _ => {}
        }
        send_pidfd(sockets.pidfd.take(), stand_in)?;
        making.state.phase = Phase::Created;
        making.save()?;
        options.pid_file.as_deref().map_or(Ok(()), |path| write_pid_file(path, stand_in.pid))
    };
    finish(&mut making).inspect_err(|_| {
        if !options.attached {
            // Killed, it takes the container with it.
            proxy::discard(stand_in.pid);
        }
        (making.state.pid, making.state.pid_start) = (0, 0);
    })?;
    let (state, lock) = making.finish()?;
    Ok(Created { state, lock, sandbox: None, console, supervised })
}

fn sandbox_gone(sandbox_id: &str, id: &str) -> Error {
    Error::invalid_state(format!("sandbox {sandbox_id} of container {id} is not running"))
}

/// What the pod's containers share: as the hints of its root container say, and as the sandbox keeps it.
fn pod_mounts(dir: &StateDir, sandbox_id: &str, client: &mut Client) -> Result<PodMounts> {
    let root = Bundle::from_text(dir.dir(sandbox_id), dir.config(sandbox_id)?)?;
    let hints = PodMountHints::from_spec(&root.spec)?;
    if !hints.any_kept() {
        return Ok(PodMounts { hints, ..PodMounts::default() });
    }
    let reply = client.call::<api::SharedMounts>(&Empty {}, &[])?;
    Ok(PodMounts { hints, kept: reply.value.into_iter().zip(reply.fds).collect() })
}

/// Has a container restored with its sandbox, whose own restore said from what.
pub(super) fn restore_container(
    dir: &StateDir,
    state: &crate::state::State,
    options: &RestoreOptions,
) -> Result<()> {
    let mut client = dir.connect(state)?;
    let args = api::ContainerId { cid: state.id.clone() };
    let outcome = client.call::<api::RestoreContainer>(&args, &[]).map(|reply| reply.value);
    if let Some(work) = &options.work_path {
        write_log(work, "restore.log", &outcome);
    }
    outcome.map(drop).map_err(|e| e.context("restore"))
}

/// Has the program of a container executed that this process is making.
pub(super) fn start(dir: &StateDir, state: &crate::state::State) -> Result<()> {
    let mut client = dir.connect(state)?;
    client.call::<api::StartContainer>(&api::ContainerId { cid: state.id.clone() }, &[]).map(drop)
}
