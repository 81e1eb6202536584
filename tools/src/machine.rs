//! The container API for a whole machine: `airlock machine serve`.
//!
//! The server keeps nothing that its clients need: containers are cgroups, and whoever starts the next server sees the
//! same. What ends with a server are the notifications that it writes, and the parenthood of programs that it ran.

#![forbid(unsafe_code)]

mod hosts;
mod tree;

use crate::files::{listen_unix, private_file};
use crate::sandbox::SandboxOptions;
use crate::state::StateDir;
use airlock_controller::container_api::{self, Source};
use airlock_loader::cgroup::tree::Node;
use airlock_loader::container::Process;
use airlock_loader::machine::{Machine, Place, Privileged, Program, Running, Unclaimed, VirtualHosts};
use airlock_loader::sys::process::pidfd_open;
use airlock_loader::sys::spawn::spawn_in;
use airlock_wire::api::airlock::Methods;
use airlock_wire::api::container::status::Code;
use airlock_wire::api::container::{ContainerName, Exec};
use airlock_wire::api::types::{Empty, Json};
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Result};
use airlock_wire::registry::Registry;
use airlock_wire::{MethodInfo, Server, ServerOptions, api};
use hosts::Hosts;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::fstat;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// The name of the socket in the state directory, if no other path is given.
pub const SOCKET: &str = "machine.sock";

/// What is served, and where.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// The root container's place in every hierarchy, absolute; made where it is missing.
    pub cgroup: PathBuf,
    /// The socket; one that is left of a server which has ended is replaced.
    pub socket: PathBuf,
    /// The state directory, which the sandboxes of virtual hosts are in.
    pub states: PathBuf,
    /// Which program becomes such a sandbox.
    pub sandbox: SandboxOptions,
}

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub struct MachineServer {
    listener: UnixListener,
    server: Server,
    /// Nobody else serves this tree.
    _alone: Flock<File>,
}

impl MachineServer {
    /// Opens the tree, clears away what a server that was killed has left of containers that it was making, and listens.
    ///
    /// # Errors
    /// No hierarchy is mounted; another server serves that tree; the socket is in use.
    pub fn listen(options: &MachineOptions) -> Result<Self> {
        let root = tree::open(&options.cgroup)?;
        let alone = lock(&root, &options.socket)?;
        let host = Host::new(StateDir::open(&options.states)?, options.sandbox.clone());
        let machine = Arc::new(Machine::new(root, &options.cgroup.to_string_lossy(), Box::new(host)));
        machine.clear_remains().map_err(|e| e.context("clearing away containers that were not completed"))?;
        let listener = listen_unix(&options.socket)
            .map_err(|e| Error::from(e).context(format!("listen at {}", options.socket.display())))?;
        let mut registry = Registry::new();
        let source: Source = Arc::new(move || Ok(machine.clone()));
        container_api::register(&mut registry, &source);
        registry.on::<Methods>(|_, Empty {}| Ok(Json(methods())));
        Ok(Self { listener, server: Server::new(registry, ServerOptions::default()), _alone: alone })
    }

    /// Answers until it is killed; root and the server's own user may call.
    ///
    /// # Errors
    /// accept(2) fails for another reason than a client that is gone, or a lack of descriptors.
    pub fn serve(&self) -> Result<()> {
        loop {
            self.server.accept(&self.listener)?;
        }
    }
}

/// The methods that a machine answers.
fn methods() -> Vec<MethodInfo> {
    let served = |m: &MethodInfo| m.name.starts_with("Container.") || m.name.starts_with("ContainerApi.");
    api::all_methods().into_iter().filter(|m| served(m) || m.name == "Airlock.Methods").collect()
}

/// Two servers would not know of each other's operations. The file is beside the socket and called after the tree's root, so
/// that it is the same for servers of the same tree whose sockets are in one folder.
fn lock(root: &Node, socket: &Path) -> Result<Flock<File>> {
    let status = fstat(root.core_dir())?;
    let folder = socket.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let path = folder.join(format!("machine-{:x}-{:x}.lock", status.st_dev, status.st_ino));
    let file =
        private_file(&path).map_err(|e| Error::from(e).context(format!("making {}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
        Error::invalid_state(format!(
            "another server serves this tree of cgroups ({}: {})",
            path.display(),
            e.desc()
        ))
    })
}

/// This machine.
#[derive(Debug)]
struct Host {
    running: Arc<Unclaimed>,
    hosts: Hosts,
}

impl Host {
    fn new(states: StateDir, sandbox: SandboxOptions) -> Self {
        let running = Arc::<Unclaimed>::default();
        Self { hosts: Hosts::new(states, sandbox, running.clone()), running }
    }
}

impl Place for Host {
    fn cgroups_of(&self, tid: i32) -> Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{tid}/cgroup"))?)
    }

    fn run(&self, node: &Node, program: Program) -> Result<Running> {
        let Some((path, arguments)) = program.command.split_first() else {
            return Err(Code::InvalidArgument.error("there is no command"));
        };
        let mut command = Command::new(path);
        command.args(arguments).env_clear();
        command.envs(program.env.iter().filter_map(|pair| pair.split_once('=')));
        command.current_dir(if program.cwd.is_empty() { "/" } else { &program.cwd });
        match program.stdio {
            Some([stdin, stdout, stderr]) => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            None => {
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            }
        }
        // The server's own group gets the signals of its terminal.
        command.process_group(0);
        let mut child = spawn_in(command, node.join_files()?).map_err(|e| {
            let why = Error::from(e);
            Code::FailedPrecondition.error(format_args!("executing {path}: {}", why.message))
        })?;
        let pid = child.id().cast_signed();
        let started = pidfd_open(pid).map_err(Error::from).and_then(|pidfd| {
            let process = Arc::new(Process::new(pid, pidfd.try_clone()?)?);
            Ok((process, pidfd))
        });
        let (process, pidfd) = started.inspect_err(|_| {
            // Nobody could wait for it.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        self.running.add(process.clone());
        let reaper = std::thread::Builder::new().name("reaper".to_owned()).stack_size(64 << 10);
        reaper.spawn(move || match child.wait() {
            Ok(status) => process.end(status.into_raw().cast_unsigned()),
            Err(e) => log::error!("waiting for process {pid}: {e}"),
        })?;
        Ok(Running { pid, pidfd })
    }

    fn wait(&self, pid: i32, wait: &dyn Fn(BorrowedFd<'_>) -> Result<()>) -> Result<u32> {
        self.running.wait(pid, wait)
    }

    fn privileged(&self, dir: BorrowedFd<'_>, v2: bool, what: &Privileged) -> Result<()> {
        what.perform(dir, v2)
    }

    fn check_mount(&self, path: &str, hierarchy: &str) -> Result<()> {
        tree::check_mount(path, hierarchy)
    }

    fn init_pid(&self) -> i32 {
        1
    }

    fn hosts(&self) -> Option<&dyn VirtualHosts> {
        Some(&self.hosts)
    }
}

/// Moves this process into a container, and replaces its program by `command`, which `PATH` finds (seed 003, `Exec`).
/// Returns only when that fails; the process may be in the container then.
pub fn exec_in(client: &mut Client, name: &str, command: &[String]) -> Error {
    let Some((program, arguments)) = command.split_first() else {
        return Code::InvalidArgument.error("there is no command");
    };
    if let Err(e) = client.call::<Exec>(&ContainerName { name: name.to_owned() }, &[]) {
        return e;
    }
    let failed = Command::new(program).args(arguments).exec();
    Code::FailedPrecondition.error(format_args!("executing {program}: {failed}"))
}
