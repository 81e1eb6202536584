//! `containerManager`: gVisor's interface to containers and their processes.

use airlock_loader::container::{Container, Process, State};
use airlock_loader::loader::{ContainerParts, DeliveryMode, ExecRequest, Loader};
use airlock_wire::api::airlock::Killer;
use airlock_wire::api::container_manager::{
    ContainerRuntimeState, CreateSubcontainer, DestroySubcontainer, Event, EventOut, ExecArgs, ExecuteAsync,
    Pause, Processes, Resume, RuntimeState, Signal, SignalArgs, StartArgs, StartRoot, StartSubcontainer,
    Wait, WaitPID, WaitPidArgs,
};
use airlock_wire::api::types::{Empty, Json, List};
use airlock_wire::error::{Error, Kind, Result};
use airlock_wire::method::Method;
use airlock_wire::registry::{Call, Registry};
use oci_spec::runtime::Spec;
use serde_json::json;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What gVisor's `Wait` answers for a container that could not be restored.
const RESTORE_FAILED: u32 = 1;

pub(crate) fn register(registry: &mut Registry, loader: &Arc<Loader>) {
    let l = loader.clone();
    registry.on::<StartRoot>(move |_, _cid| start_root(&l));
    let l = loader.clone();
    registry.on::<Processes>(move |_, cid| Ok(List(l.processes(&cid)?)));
    let l = loader.clone();
    registry.on::<CreateSubcontainer>(move |call, args| {
        let mut fds = call.take_fds();
        if fds.len() > 1 {
            return Err(Error::invalid_argument("start arguments must have at most 1 files for TTY"));
        }
        l.reserve(&args.cid, fds.pop())?;
        Ok(Empty {})
    });
    let l = loader.clone();
    registry.on::<StartSubcontainer>(move |call, args| start_subcontainer(&l, call, args));
    let l = loader.clone();
    registry.on::<DestroySubcontainer>(move |call, cid| {
        if let Ok(container) = l.container(&cid)
            && !container.root
        {
            container.asked(killer::<DestroySubcontainer>(call, libc::SIGKILL));
        }
        l.destroy(&cid).map(|()| Empty {})
    });
    let l = loader.clone();
    registry.on::<ExecuteAsync>(move |call, args| Ok(execute(&l, call, &args)?.ns_pid()));
    let l = loader.clone();
    registry.on::<Signal>(move |call, args| signal(&l, call, &args));
    let l = loader.clone();
    registry.on::<Wait>(move |call, cid| wait(&l, call, &cid));
    let l = loader.clone();
    registry.on::<WaitPID>(move |call, args| wait_pid(&l, call, &args));
    let l = loader.clone();
    registry.on::<Pause>(move |_, Empty {}| l.pause().map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<Resume>(move |_, Empty {}| l.resume().map(|()| Empty {}));
    let l = loader.clone();
    registry.on::<Event>(move |_, cid| event(&l, &cid).map(Json));
    let l = loader.clone();
    registry.on::<ContainerRuntimeState>(move |_, cid| Ok(runtime_state(&l, &cid)));
}

fn start_root(loader: &Loader) -> Result<Empty> {
    let root = loader.root()?;
    if root.state() != State::Created {
        return Err(Error::invalid_state(format!(
            "sandbox is not in created state, cannot start root container: state={}",
            root.state().name()
        )));
    }
    loader.start(&root).map_err(|e| e.context("starting sandbox"))?;
    Ok(Empty {})
}

/// What a subcontainer is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Its program is executed.
    Start,
    /// It is restored with its sandbox.
    Restore,
}

fn start_subcontainer(loader: &Arc<Loader>, call: &mut Call<'_>, args: StartArgs) -> Result<Empty> {
    if loader.is_collecting() {
        return crate::checkpoint::restore_subcontainer(loader, call, args);
    }
    let container = prepare_subcontainer(loader, call, args, Verb::Start)?;
    loader.start(&container)?;
    Ok(Empty {})
}

/// Sets a reserved container up from gVisor's arguments and descriptors.
pub(crate) fn prepare_subcontainer(
    loader: &Loader,
    call: &mut Call<'_>,
    args: StartArgs,
    verb: Verb,
) -> Result<Arc<Container>> {
    let mut text =
        args.spec.0.clone().ok_or_else(|| Error::invalid_argument("start arguments missing spec"))?;
    if args.conf.0.is_none() {
        return Err(Error::invalid_argument("start arguments missing config"));
    }
    if args.cid.is_empty() {
        return Err(Error::invalid_argument("start argument missing container ID"));
    }
    let root = loader.root()?;
    if verb == Verb::Start && !root.state().runs() {
        return Err(Error::invalid_state(format!(
            "sandbox is not in started state, cannot start subcontainer: state={}",
            root.state().name()
        )));
    }
    let parse = |text: &str| -> Result<Spec> {
        serde_json::from_str(text).map_err(|e| Error::new(Kind::Serde, format!("start arguments: Spec: {e}")))
    };
    let mut spec = parse(&text)?;
    if let Some(changed) = with_cgroup_namespace(&spec, &text) {
        text = changed;
        spec = parse(&text)?;
    }
    airlock_loader::oci::validate::validate(&spec).map_err(|e| Error::invalid_argument(e.to_string()))?;
    let terminal = spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
    let layout = args.layout(terminal, call.fd_count()).map_err(|mut e| {
        if verb == Verb::Restore {
            e.message = e.message.replacen("start arguments", "restore arguments", 1);
        }
        e
    })?;
    let container = loader
        .container(&args.cid)
        .map_err(|_| Error::no_such_entity(format!("trying to start a deleted container {:?}", args.cid)))?;
    if terminal && !container.has_tty() {
        return Err(Error::invalid_argument(
            "terminal enabled but no TTY provided. Did you set --console-socket on create?",
        ));
    }
    if layout.rootfs_upper_tar.is_some() {
        return Err(Error::unsupported(match verb {
            Verb::Start => {
                "StartSubcontainer: IsRootfsUpperTarFilePresent: a tar of the upper layer cannot be applied; unpack it into the donated rootfs"
            }
            Verb::Restore => "rootfs upper tar file is not supported during restore",
        }));
    }
    let take = |call: &mut Call<'_>, range: std::ops::Range<usize>| -> Result<Vec<OwnedFd>> {
        range.map(|i| call.take_fd(i)).collect()
    };
    let parts = ContainerParts {
        stdio: take(call, layout.stdio)?,
        mounts: take(call, layout.gofer)?,
        to_restore: verb == Verb::Restore,
        ..ContainerParts::default()
    };
    loader.prepare(&container, text, spec, "", parts)?;
    Ok(container)
}

/// gVisor's calls donate no cgroups, whose mounts gVisor emulates. A container that wants to see its cgroups sees them
/// through a namespace of its own.
fn with_cgroup_namespace(spec: &Spec, text: &str) -> Option<String> {
    let wants = spec
        .mounts()
        .iter()
        .flatten()
        .any(|m| m.typ().as_deref().is_some_and(|kind| matches!(kind, "cgroup" | "cgroup2")));
    let has = spec
        .linux()
        .as_ref()
        .and_then(|l| l.namespaces().as_ref())
        .is_some_and(|all| all.iter().any(|n| n.typ() == oci_spec::runtime::LinuxNamespaceType::Cgroup));
    if !wants || has {
        return None;
    }
    let mut tree: serde_json::Value = serde_json::from_str(text).ok()?;
    let linux = tree.as_object_mut()?.entry("linux").or_insert_with(|| json!({}));
    let namespaces = linux.as_object_mut()?.entry("namespaces").or_insert_with(|| json!([]));
    namespaces.as_array_mut()?.push(json!({"type": "cgroup"}));
    Some(tree.to_string())
}

/// Executes a process from gVisor's arguments and the message's descriptors.
pub(crate) fn execute(loader: &Loader, call: &mut Call<'_>, args: &ExecArgs) -> Result<Arc<Process>> {
    let layout = args.layout(call.fd_count())?;
    let (container, _) = loader.running(&args.container_id).or_else(|e| {
        // Created containers may be entered too, as with any OCI runtime.
        let container = loader.container(&args.container_id)?;
        match (container.state(), container.init()) {
            (State::Created, Some(init)) => Ok((container, init)),
            _ => Err(e),
        }
    })?;
    let exec = layout.program.map(|i| call.take_fd(i)).transpose()?;
    let mut stdio = Vec::new();
    let mut pass = Vec::new();
    let mut mapped = layout
        .guest
        .iter()
        .enumerate()
        .map(|(i, guest)| Ok((*guest, call.take_fd(i)?)))
        .collect::<Result<Vec<_>>>()?;
    mapped.sort_by_key(|(guest, _)| *guest);
    for (guest, fd) in mapped {
        if guest == stdio.len() as i32 && guest < 3 { stdio.push(fd) } else { pass.push((guest, fd)) }
    }
    while stdio.len() < 3 {
        // What the caller did not give is an end that nobody writes to or reads from.
        stdio.push(std::os::unix::net::UnixStream::pair()?.0.into());
    }
    let tty = args.stdio_is_pty.then(|| stdio[0].try_clone()).transpose()?;
    let request = ExecRequest {
        process: process_json(args, &container).to_string(),
        stdio,
        tty,
        pass,
        exec,
        cgroup: None,
    };
    let executed = loader.exec(&args.container_id, request).map_err(|e| gvisor_exec_error(args, e))?;
    Ok(executed.process)
}

/// gVisor's arguments as an OCI `process`. Limits are those of the container.
fn process_json(args: &ExecArgs, container: &Container) -> serde_json::Value {
    let mut argv = args.argv.clone();
    if !args.filename.is_empty() {
        match argv.first_mut() {
            Some(first) => first.clone_from(&args.filename),
            None => argv.push(args.filename.clone()),
        }
    }
    let names = |bits: u64| -> Vec<String> {
        (0..64)
            .filter(|n| bits & (1 << n) != 0)
            .filter_map(airlock_loader::init::identity::capability_name)
            .collect()
    };
    let capabilities = args.capabilities.map(|c| {
        json!({
            "bounding": names(c.bounding), "effective": names(c.effective), "permitted": names(c.permitted),
            "inheritable": names(c.inheritable), "ambient": names(c.ambient),
        })
    });
    let own = container.process_spec();
    let mut process = json!({
        "terminal": args.stdio_is_pty,
        "user": {"uid": args.kuid, "gid": args.kgid, "additionalGids": args.extra_kgids},
        "args": argv,
        "env": args.envv,
        "cwd": if args.working_directory.is_empty() { "/" } else { &args.working_directory },
        "noNewPrivileges": args.no_new_privileges || own.is_some_and(|p| p.no_new_privileges().unwrap_or(false)),
        "rlimits": own.and_then(|p| p.rlimits().clone()),
    });
    if let Some(capabilities) = capabilities {
        process["capabilities"] = capabilities;
    }
    process
}

/// gVisor says `failed to load /path: no such file or directory`.
fn gvisor_exec_error(args: &ExecArgs, error: Error) -> Error {
    let program = if args.filename.is_empty() { args.argv.first() } else { Some(&args.filename) };
    match (error.kind, program) {
        (Kind::NoSuchEntity, Some(p)) if error.message.starts_with("exec") => {
            Error::new(Kind::NoSuchEntity, format!("failed to load {p}: no such file or directory"))
        }
        (Kind::Permission, Some(p)) if error.message.starts_with("exec") => {
            Error::new(Kind::Permission, format!("failed to load {p}: permission denied"))
        }
        _ => error,
    }
}

/// The client of `call`, which asks for a signal by method `M`.
pub(crate) fn killer<M: Method>(call: &Call<'_>, signal: i32) -> Killer {
    let peer = call.peer();
    Killer { uid: peer.uid, pid: peer.pid, by: M::NAME.to_owned(), signal }
}

fn signal(loader: &Loader, call: &Call<'_>, args: &SignalArgs) -> Result<Empty> {
    args.delivery()?;
    let mode = DeliveryMode::from_number(args.mode.into())
        .ok_or_else(|| Error::invalid_argument(format!("unknown signal delivery mode {}", args.mode)))?;
    if args.pid == 0
        && let Ok(container) = loader.container(&args.cid)
    {
        container.asked(killer::<Signal>(call, args.signo));
    }
    loader.signal(&args.cid, args.pid, args.signo, mode)?;
    Ok(Empty {})
}

/// Blocks until `process` has ended or the client hangs up.
pub(crate) fn wait_for(call: &Call<'_>, process: &Process) -> Result<u32> {
    loop {
        if let Some(status) = process.status() {
            return Ok(status);
        }
        call.wait_readable(process.ended())?;
    }
}

fn wait(loader: &Loader, call: &Call<'_>, cid: &str) -> Result<u32> {
    let container = loader.container(cid)?;
    if container.state() == State::RestoringUnstarted {
        // Whether it can be restored shows in the state.
        let _ = crate::checkpoint::wait_notice(call, &*loader.restored()?);
        if call.client_gone() {
            return Err(Error::new(Kind::Disconnected, "the client is gone"));
        }
    }
    match (container.state(), container.init()) {
        (State::RestoreFailed, _) => Ok(RESTORE_FAILED),
        (state, Some(init)) if state.runs() || state == State::Stopped => wait_for(call, &init),
        _ => Err(Error::invalid_state(format!("container {cid:?} not started"))),
    }
}

fn wait_pid(loader: &Loader, call: &Call<'_>, args: &WaitPidArgs) -> Result<u32> {
    let WaitPidArgs { pid, cid } = args;
    let context = |e: Error| e.context(format!("waiting for PID {pid}"));
    if *pid <= 0 {
        return Err(Error::invalid_argument(format!("PID ({pid}) must be positive")));
    }
    let container = loader.container(cid).map_err(context)?;
    if let Some(process) = container.process(*pid) {
        let status = wait_for(call, &process)?;
        container.forget_process(*pid, &process);
        return Ok(status);
    }
    // Not one of ours: its end can be seen, and since Linux 6.15 its status too.
    let foreign = loader.open_in_namespace(&container, *pid).map_err(|e| match e.kind {
        Kind::NoSuchEntity => context(Error::no_such_entity("no such process")),
        _ => e,
    })?;
    call.wait_readable(std::os::fd::AsFd::as_fd(&foreign))?;
    airlock_loader::sys::process::exit_status(std::os::fd::AsFd::as_fd(&foreign)).map_err(|_| {
        context(Error::unsupported(
            "it has ended, but this kernel does not tell how (PIDFD_GET_INFO of Linux 6.15)",
        ))
    })
}

pub(crate) fn runtime_state(loader: &Loader, cid: &str) -> RuntimeState {
    match loader.container(cid).map(|c| c.state()) {
        Ok(State::Creating | State::Created | State::RestoringUnstarted) => RuntimeState::Creating,
        Ok(State::Started | State::RestoringStarted | State::Restored) => RuntimeState::Running,
        Ok(State::Stopped | State::RestoreFailed) | Err(_) => RuntimeState::Stopped,
    }
}

fn event(loader: &Loader, cid: &str) -> Result<EventOut> {
    // runsc of 2022 sends null: the sandbox's root container is meant.
    let id = if cid.is_empty() { loader.id() } else { cid };
    let container = loader.container(id)?;
    let stats = container.cgroup()?.stats()?;
    let mut out =
        EventOut { event: crate::usage::event_of(loader, &container, cid, &stats), ..EventOut::default() };
    for container in loader.containers() {
        if let Ok(cgroup) = container.cgroup()
            && let Ok(stats) = cgroup.stats()
        {
            out.container_usage.insert(container.cid.clone(), crate::usage::cpu_total(&stats));
        }
    }
    Ok(out)
}
