//! `create`: a container up to the point where only its program is missing.

#![forbid(unsafe_code)]

use crate::cli::{ContainerArgs, ContainerNetwork, CreateArgs, GlobalArgs, ImageArgs};
use crate::global::Global;
use airlock::container::restore::RestoreOptions;
use airlock::container::{self, CreateOptions, Stdio, Takeover, passed};
use airlock::podspec::Bundle;
use airlock::sandbox::SandboxOptions;
use airlock::state::StateDir;
use airlock::trace;
use airlock_wire::error::{Error, Result};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

/// Log level of a sandbox whose debug log is asked for: everything but traces.
const DEBUG: u8 = 4;

/// Creates the container and leaves it waiting for `start`.
pub fn run(global: &Global, args: CreateArgs) -> Result<ExitCode> {
    let dir = StateDir::open(&global.root)?;
    let bundle = bundle(global, &args.container)?;
    let options = CreateOptions {
        restore: args.image.options(),
        filesystems: args.image.fs_restore_image_path.clone(),
        ..options(global, &args.container)?
    };
    container::create(&dir, &args.container.id, &bundle, options)?;
    Ok(ExitCode::SUCCESS)
}

/// The bundle, with the network that the command line asks for.
pub fn bundle(global: &Global, args: &ContainerArgs) -> Result<Bundle> {
    Bundle::load(&args.bundle)?.with_network(network(global, args).map(Into::into))
}

fn network(global: &Global, args: &ContainerArgs) -> Option<ContainerNetwork> {
    args.network.or(global.args.network)
}

fn takeover(global: &Global, args: &ContainerArgs) -> Option<Takeover> {
    let GlobalArgs { xdp, num_network_channels, reproduce_nat, .. } = global.args;
    let how = Takeover { by: xdp, channels: num_network_channels, nat: reproduce_nat };
    (network(global, args) == Some(ContainerNetwork::Takeover)).then_some(how)
}

impl ImageArgs {
    /// What the container is restored from, if it is.
    pub fn options(&self) -> Option<RestoreOptions> {
        self.image_path.as_ref().map(|image| RestoreOptions {
            // `start` may be called in another folder.
            image: std::path::absolute(image).unwrap_or_else(|_| image.clone()),
            background: self.background,
            key_file: self.key_file.as_ref().map(|f| std::path::absolute(f).unwrap_or_else(|_| f.clone())),
            ..RestoreOptions::default()
        })
    }
}

/// This program itself becomes the sandbox.
pub fn this_program() -> SandboxOptions {
    SandboxOptions { airlock_binary: Some("/proc/self/exe".into()) }
}

/// What the options that `create` and `run` share come to.
pub fn options(global: &Global, args: &ContainerArgs) -> Result<CreateOptions> {
    let listen = passed::listen_fds();
    let log = global.open_debug_log(&args.id)?;
    let user_log = match &args.user_log {
        None => None,
        Some(path) => Some(
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(|e| Error::from(e).context(format!("--user-log {}", path.display())))?,
        ),
    };
    Ok(CreateOptions {
        stdio: Some(Stdio::inherit()?),
        console_socket: args.console_socket.clone(),
        pidfd_socket: args.pidfd_socket.clone(),
        pid_file: args.pid_file.clone(),
        pass: passed::collect(listen, args.preserve_fds, &args.pass_fd)?,
        listen_fds: listen,
        exec: passed::program(args.exec_fd)?,
        log_level: if log.is_some() { DEBUG } else { 0 },
        log: log.map(Into::into),
        profile: global.args.profile,
        panic_log: global.open_panic_log(&args.id)?.map(Into::into),
        user_log: user_log.map(Into::into),
        systemd_cgroup: global.args.systemd_cgroup,
        trace: args.pod_init_config.as_deref().map(pod_init_config).transpose()?,
        takeover: takeover(global, args),
        overlay: args.overlay2.clone(),
        sandbox: this_program(),
        ..CreateOptions::default()
    })
}

/// The session of a pod's init file, with its sinks opened.
fn pod_init_config(path: &Path) -> Result<trace::Session> {
    trace::read_config(path, false)
        .and_then(trace::open_sinks)
        .map_err(|e| e.context(format!("--pod-init-config {}", path.display())))
}
