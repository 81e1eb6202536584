//! All containers below one state directory, and what can be asked of them: the operations of the command line as a
//! library, by calls to the sandboxes and not by running programs.
//!
//! [`Airlock`] has the operations that gVisor's client of the runsc command line has (`pkg/shim/runsc`), with the same
//! meaning. Making, running and deleting containers is [`crate::container`]'s work; the methods here forward to it.

#![forbid(unsafe_code)]

mod events;
mod forward;
mod inside;
mod socket;
mod top;

pub use events::{Event, Events, Stats};
pub use forward::{Forwarder, Forwarding, LocalAddress, PortMapping};
pub use inside::MountRequest;
pub use socket::connect;
pub use top::Top;

use crate::container::checkpoint::{self, CheckpointOptions};
use crate::container::restore::RestoreOptions;
use crate::container::{self, CreateOptions, DeleteOptions, ExecOptions, Executed, ForkOptions, ProxyMode};
use crate::podspec::Bundle;
use crate::sandbox::reap;
use crate::state::{State, StateDir, Status, exit_code, not_running};
use airlock_wire::api::airlock::{ContainerId, Killer, PauseContainer, ResumeContainer};
use airlock_wire::api::checkpoint::Report;
use airlock_wire::api::container_manager as cm;
use airlock_wire::api::types::Empty;
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::{Error, Kind, Result};
use airlock_wire::method::Method;
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a sandbox may take to answer a call that does not wait for anything.
const PROMPT: Duration = Duration::from_secs(30);
/// How long the sandbox process may take to end after its root container has.
const LAST_BREATH: Duration = Duration::from_secs(10);
/// What a container's last words give as the reason when its program ended by itself.
const EXITED: &str = "exited";
/// Exit code of a container that ended without a word: nothing but SIGKILL does that.
const KILLED: i32 = 128 + libc::SIGKILL;

/// A container as `state` prints it: the state of the OCI runtime specification, with runc's additions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Version of the specification that its configuration follows.
    pub oci_version: String,
    /// Its id.
    pub id: String,
    /// The pid that stands for it on the host; 0 once it has stopped.
    pub pid: i32,
    /// What it is doing.
    pub status: Status,
    /// Its bundle, absolute.
    pub bundle: PathBuf,
    /// Its root filesystem, absolute.
    pub rootfs: PathBuf,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Annotations of its configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The user that made it.
    pub owner: String,
    /// Why it has stopped, if not by itself: `signal N`, `oom`, `checkpointed`, or what failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Who had it killed, if that was asked of its sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed_by: Option<Killer>,
}

/// Which processes a signal is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KillTarget {
    /// The container's first process.
    #[default]
    Init,
    /// All processes of the container.
    All,
    /// The process with this pid in the root container's pid namespace, or one that exec answered.
    Pid(i32),
}

/// Which process to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitTarget {
    /// The container's first process.
    #[default]
    Init,
    /// A process by its pid in the container's pid namespace.
    Pid(i32),
    /// A process by its pid in the root container's pid namespace.
    RootPid(i32),
}

/// All containers below one state directory (the `--root` of the command line).
///
/// It holds no state but the directory's path: what other programs do to the containers is seen at the next call.
/// Every call may block for as long as the sandbox works at it; those that wait say so.
#[derive(Debug)]
pub struct Airlock {
    states: StateDir,
}

impl Airlock {
    /// Uses the state directory `root`, which is made (0700) where it is missing.
    ///
    /// # Errors
    /// It cannot be made, or is not a directory.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self { states: StateDir::open(root)? })
    }

    /// The state directory.
    pub fn states(&self) -> &StateDir {
        &self.states
    }

    /// The ids of all containers, sorted.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>> {
        self.states.list()
    }

    /// All containers, by id. One that is deleted meanwhile is left out; one whose state is damaged is listed as
    /// stopped, so that it can be found and deleted.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn list(&self) -> Result<Vec<Container>> {
        let mut containers = Vec::new();
        for id in self.states.list()? {
            match self.state(&id) {
                Ok(container) => containers.push(container),
                Err(e) if e.kind == Kind::NoSuchEntity => {}
                Err(_) => containers.push(Container {
                    oci_version: String::new(),
                    id,
                    pid: 0,
                    status: Status::Stopped,
                    bundle: PathBuf::new(),
                    rootfs: PathBuf::new(),
                    created: String::new(),
                    annotations: BTreeMap::new(),
                    owner: String::new(),
                    reason: String::new(),
                    killed_by: None,
                }),
            }
        }
        Ok(containers)
    }

    /// A container's state.
    ///
    /// # Errors
    /// `container does not exist`; its state is damaged; its sandbox lives but does not answer.
    pub fn state(&self, id: &str) -> Result<Container> {
        let state = self.states.load(id)?;
        let status = self.states.status(&state)?;
        let (reason, killed_by) = match status {
            Status::Stopped => {
                let record = self.states.exit_record(id).ok().flatten();
                record.map(|r| (r.reason, r.killed_by)).unwrap_or_default()
            }
            _ => Default::default(),
        };
        Ok(Container {
            killed_by,
            reason: if reason == EXITED { String::new() } else { reason },
            pid: if status == Status::Stopped { 0 } else { state.pid },
            status,
            oci_version: state.oci_version,
            id: state.id,
            bundle: state.bundle,
            rootfs: state.rootfs,
            created: state.created,
            annotations: state.annotations,
            owner: state.owner,
        })
    }

    /// Connects to the control socket of the sandbox that container `id` lives in, to call any of its methods.
    ///
    /// # Errors
    /// `container does not exist`; its sandbox has ended.
    pub fn connect(&self, id: &str, dialect: Dialect) -> Result<Client> {
        let state = self.states.load(id)?;
        connect(&self.states.control_socket(&state.sandbox_id), dialect)
            .map_err(|e| self.states.or_ended(&state, e))
            .map_err(|e| e.context(format!("container {id:?}: its sandbox does not answer")))
    }

    /// Creates container `id` of a bundle; its program waits for [`Airlock::start`]. The sandbox process (for a
    /// container in another's sandbox: a small process that stands for it) becomes a child of this one;
    /// [`Airlock::wait`] and [`Airlock::delete`] reap it. Whatever `options` says of it, that small process is made
    /// by executing `airlock proxy`, so that callers may have threads.
    ///
    /// # Errors
    /// `container with given ID already exists`; the bundle is malformed or asks for what cannot be done. Nothing is left
    /// behind then.
    pub fn create(&self, id: &str, bundle: &Bundle, options: CreateOptions) -> Result<()> {
        let options = CreateOptions { proxy: ProxyMode::Execute, ..options };
        container::create(&self.states, id, bundle, options).map(drop)
    }

    /// Runs the program of a created container; returns once it is executed.
    ///
    /// # Errors
    /// `container does not exist`; it is not in the state `created`; the program cannot be executed.
    pub fn start(&self, id: &str) -> Result<()> {
        container::start(&self.states, id)
    }

    /// Creates a container, starts it, waits for its end and deletes it. Returns its exit code, or 128 + the signal that
    /// ended it.
    ///
    /// # Errors
    /// As the four operations; the container is deleted all the same.
    pub fn run(&self, id: &str, bundle: &Bundle, options: CreateOptions) -> Result<i32> {
        self.create(id, bundle, options)?;
        let code = self.start(id).and_then(|()| self.wait(id, WaitTarget::Init));
        let deleted = self.delete(id, DeleteOptions { force: true });
        code.and_then(|code| deleted.map(|()| code))
    }

    /// Saves the sandbox of container `id`, which is its root container, into the directory `image`. It ends, with exit code
    /// 0, unless `options` say that it goes on.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; what cannot be saved, all of it at once. The container goes on
    /// then, and the directory has no image.
    pub fn checkpoint(&self, id: &str, image: &Path, options: &CheckpointOptions) -> Result<Report> {
        checkpoint::checkpoint(&self.states, id, image, options, None)
    }

    /// Creates container `id` of a bundle, as [`Airlock::create`] does, and restores it from an image.
    ///
    /// # Errors
    /// As [`Airlock::create`]; what is wrong with the image. Nothing is left behind then.
    pub fn restore(
        &self,
        id: &str,
        bundle: &Bundle,
        options: CreateOptions,
        restore: RestoreOptions,
    ) -> Result<()> {
        let options = CreateOptions { proxy: ProxyMode::Execute, ..options };
        container::restore::restore(&self.states, id, bundle, options, restore).map(drop)
    }

    /// Makes new sandboxes of the state that container `id` is in; see [`container::fork`]. Each is a child of this
    /// process, as with [`Airlock::create`]. `create` gives the options of each. Returns their ids.
    ///
    /// # Errors
    /// As [`Airlock::checkpoint`] and [`Airlock::restore`]; none of the forks is left then.
    pub fn fork(
        &self,
        id: &str,
        new_id: &str,
        options: ForkOptions,
        create: impl Fn(&str) -> Result<CreateOptions> + Sync,
    ) -> Result<Vec<String>> {
        let made = container::fork(&self.states, id, new_id, options, create)?;
        Ok(made.into_iter().map(|state| state.id).collect())
    }

    /// Executes a further process in a container. With `options.detach` it returns at once, and the process that stands
    /// for the new one is a child of this one, to be reaped by the caller; without, it waits for the end.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; the program cannot be executed.
    pub fn exec(&self, id: &str, options: ExecOptions) -> Result<Executed> {
        let detached = options.detach;
        // Signals of this process are not ours to pass on: a library waits for a child.
        let options = ExecOptions { detach: true, proxy: ProxyMode::Execute, ..options };
        match container::exec(&self.states, id, options)? {
            Executed::Detached(process) if !detached => reap(process.pid).map(Executed::Ended),
            executed => Ok(executed),
        }
    }

    /// Deletes a container: a stopped one, or with `force` any; then a missing one is no error either.
    ///
    /// # Errors
    /// `container does not exist`; it runs; something of it cannot be removed.
    pub fn delete(&self, id: &str, options: DeleteOptions) -> Result<()> {
        let state = self.states.load(id).ok();
        if let Some(state) = state.as_ref().filter(|state| options.force && !state.is_subcontainer()) {
            // A zombie child of ours would keep its pid namespace, and with it the cgroup, from going away.
            state.loader.kill_and_wait(LAST_BREATH)?;
            reap_child(state.loader.pid);
        }
        container::delete(&self.states, id, options)?;
        // A container whose making was cut short may have left a living process there.
        if let Some(state) = state.filter(|state| !state.process().is_alive()) {
            reap_child(state.pid);
        }
        Ok(())
    }

    /// Sends `signal` (0 to 64; 0 only checks that the process exists).
    ///
    /// # Errors
    /// `container does not exist`; `container not running` when it has stopped; no such process.
    pub fn kill(&self, id: &str, signal: i32, target: KillTarget) -> Result<()> {
        let state = self.alive(id)?;
        let (mode, pid) = match target {
            KillTarget::Init => (0, 0),
            KillTarget::All => (1, 0),
            KillTarget::Pid(pid) => (0, pid),
        };
        let args = cm::SignalArgs { cid: state.id.clone(), signo: signal, pid, mode };
        match self.call::<cm::Signal>(&state, &args) {
            Err(_) if self.states.status(&state).is_ok_and(|s| s == Status::Stopped) => Err(not_running(id)),
            result => result.map(drop),
        }
    }

    /// Suspends all processes of a container. Returns once none of them runs.
    ///
    /// # Errors
    /// `container does not exist`; it neither runs nor waits for its start.
    pub fn pause(&self, id: &str) -> Result<()> {
        let _lock = self.states.lock(id)?;
        let state = self.states.load(id)?;
        match self.states.status(&state)? {
            Status::Created | Status::Running => self.call::<PauseContainer>(&state, &named(id)).map(drop),
            Status::Paused => Err(Error::invalid_state(format!("container {id:?} is paused already"))),
            Status::Creating | Status::Stopped => Err(not_running(id)),
        }
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// `container does not exist`; `container not paused`.
    pub fn resume(&self, id: &str) -> Result<()> {
        let _lock = self.states.lock(id)?;
        let state = self.states.load(id)?;
        match self.states.status(&state)? {
            Status::Paused => self.call::<ResumeContainer>(&state, &named(id)).map(drop),
            Status::Stopped => Err(not_running(id)),
            _ => Err(Error::invalid_state(format!("container {id:?}: container not paused"))),
        }
    }

    /// Waits until a container (or one process of it) has ended. Returns its exit code, or 128 + the signal that ended
    /// it. Works before and after the end, any number of times, until the container is deleted.
    ///
    /// # Errors
    /// `container does not exist`; no such process.
    pub fn wait(&self, id: &str, target: WaitTarget) -> Result<i32> {
        let state = self.states.load(id)?;
        let args = match target {
            WaitTarget::Init => return self.wait_init(&state),
            WaitTarget::Pid(pid) => cm::WaitPidArgs { pid, cid: state.id.clone() },
            // The root container's pid namespace is the one that the pid counts in.
            WaitTarget::RootPid(pid) => cm::WaitPidArgs { pid, cid: state.sandbox_id.clone() },
        };
        if self.states.status(&state)? == Status::Stopped {
            return Err(not_running(id));
        }
        let waited =
            self.states.connect(&state).and_then(|mut client| client.call::<cm::WaitPID>(&args, &[]));
        let reply = waited.map_err(|e| self.states.or_ended(&state, e))?;
        Ok(exit_code(reply.value.cast_signed()))
    }

    /// Waits for the next checkpoint of the sandbox that a container lives in.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; that the checkpoint failed, and why.
    pub fn wait_checkpoint(&self, id: &str) -> Result<()> {
        let state = self.alive(id)?;
        self.states.connect(&state)?.call::<cm::WaitCheckpoint>(&Empty {}, &[]).map(drop)
    }

    /// Saves filesystems of a sandbox into the folder `image`; see [`container::filesystems::fscheckpoint`].
    ///
    /// # Errors
    /// As that.
    pub fn fscheckpoint(
        &self,
        id: &str,
        image: &Path,
        paths: Vec<cm::FsPath>,
        leave_running: bool,
    ) -> Result<()> {
        container::filesystems::fscheckpoint(&self.states, id, image, paths, leave_running)
    }

    /// Waits for the next filesystem checkpoint of the sandbox that a container lives in.
    ///
    /// # Errors
    /// As [`Airlock::wait_checkpoint`].
    pub fn wait_fscheckpoint(&self, id: &str) -> Result<()> {
        let state = self.alive(id)?;
        self.states.connect(&state)?.call::<cm::WaitFSCheckpoint>(&Empty {}, &[]).map(drop)
    }

    /// Waits until a container's filesystems are restored; returns at once if they are.
    ///
    /// # Errors
    /// `container does not exist`; `filesystem restore is not enabled`; that the restore failed, and why.
    pub fn wait_fsrestore(&self, id: &str) -> Result<()> {
        let state = self.states.load(id)?;
        let args = cm::WaitFsRestoreArgs { cid: state.id.clone() };
        self.states.connect(&state)?.call::<cm::WaitFSRestore>(&args, &[]).map(drop)
    }

    /// Waits until the sandbox that a container lives in is restored with all its memory; returns at once if it is.
    ///
    /// # Errors
    /// `container does not exist`; it is not being restored; that the restore failed, and why.
    pub fn wait_restore(&self, id: &str) -> Result<()> {
        let state = self.states.load(id)?;
        self.states.connect(&state)?.call::<cm::WaitRestore>(&Empty {}, &[]).map(drop)
    }

    fn wait_init(&self, state: &State) -> Result<i32> {
        if self.states.status(state)? == Status::Creating {
            return Err(Error::invalid_state(format!("container {:?} is still being created", state.id)));
        }
        let asked = if state.loader.is_alive() {
            let waited =
                self.states.connect(state).and_then(|mut client| client.call::<cm::Wait>(&state.id, &[]));
            Some(waited.map(|reply| exit_code(reply.value.cast_signed())))
        } else {
            None
        };
        // The sandbox ends with its root container; whoever waited for that may delete at once.
        let gone = state.is_subcontainer() || state.loader.wait(Some(LAST_BREATH))?;
        if gone && !state.is_subcontainer() {
            reap_child(state.loader.pid);
        }
        match asked {
            Some(Ok(code)) => Ok(code),
            Some(Err(e)) if !gone || !self.states.has_ended(state, &e) => Err(e),
            _ => Ok(self.states.exit_record(&state.id)?.map_or(KILLED, |record| record.code())),
        }
    }

    /// The pids of all processes of a container, as this process sees them, ascending. Empty when it has stopped.
    ///
    /// # Errors
    /// `container does not exist`; its cgroup cannot be read.
    pub fn ps(&self, id: &str) -> Result<Vec<i32>> {
        let state = self.states.load(id)?;
        if self.states.status(&state)? == Status::Stopped {
            return Ok(Vec::new());
        }
        let mut pids = state.cgroup.procs()?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// The process table of a container, as `ps -ef` has it.
    ///
    /// # Errors
    /// As [`Airlock::ps`].
    pub fn top(&self, id: &str) -> Result<Top> {
        Ok(top::table(&self.ps(id)?))
    }

    /// Resource usage of a container.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; its cgroup cannot be read.
    pub fn stats(&self, id: &str) -> Result<Stats> {
        events::stats(&self.alive(id)?)
    }

    /// Resource usage every `interval`, an event for each out-of-memory kill, and how the container ended, which is the last
    /// one. The first comes at once; the iterator blocks for the next.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`.
    pub fn events(&self, id: &str, interval: Duration) -> Result<Events> {
        let states = StateDir::open(self.states.root())?;
        let name = id.to_owned();
        let last_words = move || states.exit_record(&name).ok().flatten();
        Events::new(self.alive(id)?, interval, Box::new(last_words))
    }

    /// Changes the resource limits of a container; what `resources` does not name stays as it is.
    ///
    /// # Errors
    /// `container does not exist`; `container not running`; the kernel refuses a value.
    pub fn update(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let _lock = self.states.lock(id)?;
        let state = self.alive(id)?;
        state.cgroup.update(resources)?;
        self.states.save(&state)
    }

    /// The state of a container that has not stopped.
    fn alive(&self, id: &str) -> Result<State> {
        let state = self.states.load(id)?;
        match self.states.status(&state)? {
            Status::Creating | Status::Stopped => Err(not_running(id)),
            _ => Ok(state),
        }
    }

    /// Calls a method that does not wait for anything.
    fn call<M: Method>(&self, state: &State, arg: &M::Arg) -> Result<M::Reply> {
        let answered = self.states.connect(state).and_then(|mut client| {
            client.set_timeout(Some(PROMPT))?;
            client.call::<M>(arg, &[])
        });
        answered.map(|reply| reply.value).map_err(|e| self.states.or_ended(state, e))
    }
}

/// Reaps `pid`, which has ended or is about to, if it is a child of this process. Its first thread may be gone before the
/// others are, so that this waits.
fn reap_child(pid: i32) {
    if pid > 0 {
        // ECHILD: it is somebody else's.
        while waitpid(Pid::from_raw(pid), None) == Err(Errno::EINTR) {}
    }
}

fn named(id: &str) -> ContainerId {
    ContainerId { cid: id.to_owned() }
}
