//! `create`: a container up to the point where only its program is missing.

#![forbid(unsafe_code)]

use super::exec::{send_pidfd, write_pid_file};
use super::filesystems::FsImage;
use super::making::{self, Answered, Making, Sockets};
use super::restore::Source;
use super::{CreateOptions, check_terminal, pidns, pod, takeover};
use crate::cgroups::Manager;
use crate::hooks::{self, HookState};
use crate::podspec::{self, Bundle, Placement};
use crate::process::ProcessId;
use crate::proxy::Supervised;
use crate::sandbox::{BootEvents, BootRequest, Booted, FdList, Stage, protected_binary};
use crate::state::{Lock, Phase, State, StateDir, Status, check_id};
use airlock_wire::api::boot::{BootArgs, TraceFds};
use airlock_wire::api::types::{Json, SpecJson};
use airlock_wire::error::Result;
use std::os::fd::{AsFd, OwnedFd};

/// Grace period for calls in flight when a sandbox ends, in milliseconds (gVisor's default).
const STOP_GRACE_MS: u64 = 15_000;

/// A container that was made.
#[derive(Debug)]
pub struct Created {
    /// Its state, as the state directory has it.
    pub state: State,
    /// Its lock; dropped, other commands may act on it.
    pub lock: Lock,
    /// The sandbox, if it was made for this container: the loader is a child of this process.
    pub sandbox: Option<Booted>,
    /// The terminal's master, for a caller that is attached.
    pub console: Option<OwnedFd>,
    /// The init of a subcontainer whose caller is attached: it has no proxy.
    pub supervised: Option<Supervised>,
}

/// Creates container `id` of `bundle`: a sandbox with it as its root container, or a container in the sandbox that its
/// annotations name.
///
/// On error everything is undone: process, cgroup, state directory.
pub fn create(dir: &StateDir, id: &str, bundle: &Bundle, options: CreateOptions) -> Result<Created> {
    check_id(id)?;
    airlock_loader::oci::validate::validate(&bundle.spec)?;
    airlock_loader::oci::validate::validate_host(&bundle.spec)?;
    check_terminal(bundle.terminal(), !options.attached, options.console_socket.is_some())?;
    let mapped = podspec::with_joined_mappings(bundle)?;
    let bundle = mapped.as_ref().unwrap_or(bundle);
    match podspec::placement(&bundle.spec, id)? {
        Placement::Sandbox => create_sandbox(dir, id, bundle, options),
        Placement::Pod(sandbox_id)
            if podspec::sandbox_is_optional(&bundle.spec) && !dir.exists(&sandbox_id) =>
        {
            create_sandbox(dir, id, bundle, options)
        }
        Placement::Pod(sandbox_id) => pod::create(dir, id, &sandbox_id, bundle, options),
    }
}

fn create_sandbox(dir: &StateDir, id: &str, bundle: &Bundle, mut options: CreateOptions) -> Result<Created> {
    let taking = options.takeover.map(|how| takeover::prepare(bundle, how)).transpose()?.flatten();
    let (taking, own_network) = taking.unzip();
    let bundle = own_network.as_ref().unwrap_or(bundle);
    let spec = &bundle.spec;
    let source = Source::of(&mut options)?;
    let restores = source.is_some() || options.restore.is_some();
    let filesystems = options.filesystems.as_deref().map(FsImage::open).transpose()?;
    let mut sockets = Sockets::connect(&options, spec)?;
    let id_maps = podspec::id_maps(spec)?;
    let mut join = podspec::open_namespaces(spec)?;
    pidns::prefer_containers(dir, &mut join)?;
    let manager = Manager::plan(spec, id, options.systemd_cgroup).map_err(|e| dir.or_taken(id, e))?;
    let mut state = making::first_state(id, id, bundle, manager)?;
    state.overlay.clone_from(&options.overlay);
    state.taken = taking.as_ref().map(takeover::Prepared::taken);
    if source.is_none() {
        state.restore = options.restore.take();
    }
    let mut making = Making::begin(dir, state)?;

    // The child starts up while we open what it will need.
    let binary = protected_binary(&options.sandbox)?;
    let stage = Stage::start(binary.as_fd(), id)?;

    let mut fds = FdList::default();
    let mut donated = making::donate_common(&mut fds, bundle.terminal(), &mut options, join)?;
    donated.cgroup = making.state.cgroup.make(spec, &mut fds, true)?;
    let mounts = making.donate_mounts(bundle, &mut options, &mut fds, &mut donated, None)?;
    // What the program is to find has to be there first.
    let waits = sockets.has_agent() || filesystems.is_some() || taking.is_some();
    let hold = making::early_hooks(spec).iter().any(|(_, hooks)| !hooks.is_empty());
    let args = BootArgs {
        id: id.to_owned(),
        spec: SpecJson(Some(making::config_text(bundle, &options)?)),
        bundle: bundle.path.to_string_lossy().into_owned(),
        fds: donated,
        gofer_mount_confs: mounts.confs,
        shared_mounts: mounts.shared,
        trace: options.trace.take().map(|session| TraceFds {
            config: Json(session.config),
            fds: session.fds.into_iter().map(|fd| fds.push(fd)).collect(),
        }),
        listener: Some(fds.push(dir.bind_control_socket(id)?)),
        exit_file: Some(fds.push(dir.make_exit_file(id)?)),
        log: options.log.take().map(|fd| fds.push(fd)),
        log_level: options.log_level,
        profile: options.profile,
        panic_log: options.panic_log.take().map(|fd| fds.push(fd)),
        user_log: options.user_log.take().map(|fd| fds.push(fd)),
        self_exe: Some(fds.push(binary)),
        host_pid: podspec::host_pid(spec),
        autostart: options.autostart && !restores && !waits,
        to_restore: restores,
        hold,
        allowed_uids: std::mem::take(&mut options.allowed_uids),
        stop_grace_ms: STOP_GRACE_MS,
    };
    let request = BootRequest { args, fds, id_maps };
    let mut events = Events { dir, making: &mut making, bundle };
    let mut booted = stage.boot(request, &mut events)?;

    let answered =
        Answered { console: booted.console.take(), seccomp_listener: booted.seccomp_listener.take() };
    let late_start = options.autostart && !restores && waits;
    let console = sockets.deliver(&making.state, booted.loader.pid, answered)?;
    if let Some(image) = filesystems {
        image.restore(&mut booted.client, id)?;
    }
    if let Some(taking) = taking {
        taking.give(&mut booted.client, restores)?;
    }
    if late_start {
        pod::start(dir, &making.state)?;
    }
    if let Some(source) = source {
        source.restore(&mut booted.client)?;
    }
    send_pidfd(sockets.pidfd.take(), booted.loader)?;
    making.state.phase = Phase::Created;
    making.save()?;
    if let Some(path) = &options.pid_file {
        write_pid_file(path, booted.loader.pid)?;
    }
    let (state, lock) = making.finish()?;
    Ok(Created { state, lock, sandbox: Some(booted), console, supervised: None })
}

/// What we do while the sandbox boots.
struct Events<'a, 'b> {
    dir: &'a StateDir,
    making: &'a mut Making<'b>,
    bundle: &'a Bundle,
}

impl BootEvents for Events<'_, '_> {
    fn sent(&mut self) -> Result<()> {
        self.dir.save_config(&self.making.state.id, self.bundle.text.as_bytes())
    }

    fn loader(&mut self, loader: ProcessId) -> Result<()> {
        let state = &mut self.making.state;
        (state.loader, state.pid, state.pid_start) = (loader, loader.pid, loader.start);
        // If we are killed from here on, the next command knows what to kill.
        self.making.save()
    }

    fn held(&mut self, loader: ProcessId) -> Result<()> {
        let state = HookState::new(&self.making.state, Status::Creating, loader.pid);
        making::early_hooks(&self.bundle.spec)
            .iter()
            .try_for_each(|(kind, list)| hooks::run(kind, list, &state))
    }
}
