//! Virtual hosts of a machine: containers of airlock whose cgroups are containers of the tree.
//!
//! Their states are in the state directory with those of other containers. A program that runs in one is started by the
//! container API of the sandbox itself, so it does not end with this server.

#![forbid(unsafe_code)]

use crate::container::host::{CAPABILITIES, MASKED, READ_ONLY, system_mounts};
use crate::container::{self, CreateOptions, DeleteOptions, ProxyMode};
use crate::podspec::Bundle;
use crate::sandbox::SandboxOptions;
use crate::state::{State, StateDir};
use airlock_loader::container::Process;
use airlock_loader::machine::{Program, Running, Unclaimed, VirtualHosts};
use airlock_loader::procfs::parse_nspid;
use airlock_loader::supervisor::idle;
use airlock_wire::api::container::spec::{FdPolicy, RunSpec};
use airlock_wire::api::container::status::Code;
use airlock_wire::api::container::{Run, RunArgs, Wait, WaitArgs};
use airlock_wire::api::types::Json;
use airlock_wire::client::Client;
use airlock_wire::error::{Error, Kind, Result};
use serde_json::json;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// Ids of their sandboxes begin with it.
const PREFIX: &str = "host-";
/// The annotation that names the container's cgroup.
const CGROUP: &str = "dev.airlock.virtual-host";
/// How long a sandbox may take to start a program.
const ANSWER: Duration = Duration::from_secs(30);
/// No pid is above it (proc_sys_kernel(5), `pid_max`).
const MAX_PID: i32 = 1 << 22;
/// What an init that does nothing is called.
const IDLE: &str = "airlock-init";
const STACK: usize = 128 << 10;

/// The virtual hosts in a state directory.
#[derive(Debug)]
pub(super) struct Hosts {
    dir: StateDir,
    sandbox: SandboxOptions,
    /// Where `Wait` finds programs.
    running: Arc<Unclaimed>,
    /// Programs that had ended before their pid could be seen.
    short: AtomicI32,
}

/// The id of the sandbox of a cgroup: any server finds it again.
fn id_of(cgroup: &str) -> String {
    let hash = blake3::hash(cgroup.as_bytes()).to_hex();
    format!("{PREFIX}{}", hash.get(..16).unwrap_or_default())
}

/// What there is to be executed, and is not.
fn unmet(e: Error) -> Error {
    match e.kind {
        Kind::NoSuchEntity | Kind::Permission => Code::FailedPrecondition.error(e.message),
        _ => e,
    }
}

impl Hosts {
    pub(super) fn new(dir: StateDir, sandbox: SandboxOptions, running: Arc<Unclaimed>) -> Self {
        Self { dir, sandbox, running, short: AtomicI32::new(0) }
    }

    /// The state of a virtual host whose sandbox runs.
    fn alive(&self, cgroup: &str) -> Result<State> {
        let ended = || {
            Code::FailedPrecondition.error(format_args!(
                "the init of virtual host {cgroup} has ended; destroy the container, and create it again"
            ))
        };
        let state = self.dir.load(&id_of(cgroup)).map_err(|e| match e.kind {
            Kind::NoSuchEntity => ended(),
            _ => e,
        })?;
        if state.loader.is_alive() { Ok(state) } else { Err(ended()) }
    }

    /// Answers what a program's status is, once it has ended.
    fn watch(mut client: Client, inside: i32, process: Arc<Process>) -> Result<()> {
        client.set_timeout(None)?;
        let waiter = std::thread::Builder::new().name("waiter".to_owned()).stack_size(STACK);
        waiter.spawn(move || {
            let status = match client.call::<Wait>(&WaitArgs { pid: inside }, &[]) {
                Ok(reply) => reply.value,
                // The sandbox has ended, which kills all that is in it.
                Err(e) => {
                    log::debug!("process {}: {e}", process.pid);
                    libc::SIGKILL.cast_unsigned()
                }
            };
            process.end(status);
        })?;
        Ok(())
    }
}

impl VirtualHosts for Hosts {
    fn create(&self, cgroup: &str, rootfs: Option<&Path>, init: &[String]) -> Result<()> {
        self.remove(cgroup)?;
        let root = rootfs.unwrap_or(Path::new("/"));
        if !root.is_dir() {
            return Err(Code::FailedPrecondition
                .error(format_args!("filesystem.rootfs: {} is no directory", root.display())));
        }
        let options = CreateOptions {
            exec: if init.is_empty() { Some(idle::program()?) } else { None },
            proxy: ProxyMode::Execute,
            sandbox: self.sandbox.clone(),
            ..CreateOptions::default()
        };
        let bundle = bundle(cgroup, root, init)?;
        let created = container::create(&self.dir, &id_of(cgroup), &bundle, options).map_err(unmet)?;
        let Some(sandbox) = created.sandbox else { return Ok(()) };
        let reaper = std::thread::Builder::new().name("reaper".to_owned()).stack_size(STACK);
        reaper.spawn(move || {
            // Whoever removes it may be faster.
            if let Err(e) = sandbox.wait() {
                log::debug!("waiting for sandbox {}: {e}", sandbox.loader.pid);
            }
        })?;
        Ok(())
    }

    fn start(&self, cgroup: &str) -> Result<()> {
        container::start(&self.dir, &id_of(cgroup)).map_err(unmet)
    }

    fn run(&self, cgroup: &str, program: Program) -> Result<Running> {
        let state = self.alive(cgroup)?;
        let mut client = self.dir.connect(&state)?;
        client.set_timeout(Some(ANSWER))?;
        let policy = if program.stdio.is_some() { FdPolicy::Inherit } else { FdPolicy::Detached };
        let args = RunArgs {
            name: "/".to_owned(),
            command: program.command,
            spec: RunSpec { fd_policy: Some(policy), ..RunSpec::default() },
            env: program.env,
            cwd: program.cwd,
        };
        let fds: Vec<BorrowedFd<'_>> = program.stdio.iter().flatten().map(OwnedFd::as_fd).collect();
        let mut reply = client.call::<Run>(&Json(args), &fds)?;
        let pidfd = reply.fds.pop().ok_or_else(|| Error::failure("the sandbox answered without a pidfd"))?;
        let pid = match pid_of(&pidfd)? {
            pid @ 1.. => pid,
            // It has ended and was reaped. Its number is for Wait alone, and is no other process'.
            _ => MAX_PID + 1 + self.short.fetch_add(1, Ordering::Relaxed) % MAX_PID,
        };
        let process = Arc::new(Process::new(pid, pidfd.try_clone()?)?);
        Self::watch(client, reply.value.pid, process.clone())?;
        self.running.add(process);
        Ok(Running { pid, pidfd })
    }

    fn init_pid(&self, cgroup: &str) -> Result<i32> {
        let state = self.alive(cgroup)?;
        let depth = nspid(state.loader.pid).len() + 1;
        let is_init = |pid: &i32| {
            let ids = nspid(*pid);
            ids.len() == depth && ids.last() == Some(&1)
        };
        state.cgroup.procs()?.into_iter().find(is_init).ok_or_else(|| {
            Code::FailedPrecondition.error(format_args!("the init of virtual host {cgroup} is ending"))
        })
    }

    fn remove(&self, cgroup: &str) -> Result<()> {
        container::delete(&self.dir, &id_of(cgroup), DeleteOptions { force: true })
    }

    fn all(&self) -> Result<Vec<String>> {
        let ids = self.dir.list()?.into_iter().filter(|id| id.starts_with(PREFIX));
        // A container that somebody has called so has no such annotation.
        Ok(ids.filter_map(|id| self.dir.load(&id).ok()?.annotations.remove(CGROUP)).collect())
    }
}

/// The pid of what a pidfd is of, as this process sees it; not above 0 when it was reaped.
fn pid_of(pidfd: &OwnedFd) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text =
        std::fs::read_to_string(&path).map_err(|e| Error::from(e).context(format!("reading {path}")))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.ok_or_else(|| Error::failure("the sandbox answered with a descriptor that is no pidfd"))
}

/// The pids of a process in its namespaces, from ours on; none when it has ended.
fn nspid(pid: i32) -> Vec<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("NSpid:")).map(parse_nspid).unwrap_or_default()
}

/// The configuration of a virtual host. The machine's limits are in its cgroup already; its network is the machine's.
fn bundle(cgroup: &str, root: &Path, init: &[String]) -> Result<Bundle> {
    let idle = [IDLE.to_owned()];
    let kinds = ["pid", "ipc", "uts", "mount"];
    let config = json!({
        "ociVersion": "1.2.1",
        "root": {"path": root, "readonly": false},
        "process": {
            "args": if init.is_empty() { &idle } else { init },
            "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "mounts": system_mounts(),
        "annotations": {CGROUP: cgroup},
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": kinds.map(|kind| json!({"type": kind})),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    let text = serde_json::to_string(&config)
        .map_err(|e| Error::failure(format!("encode the configuration: {e}")))?;
    Bundle::from_text(PathBuf::from("/"), text)
}
