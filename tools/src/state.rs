//! The state directory: what one command leaves for the next.
//!
//! `<root>/<id>/` (0700) holds `state.json`, `config.json` (a copy: the bundle may vanish), `lock`, `exit.json` and, for
//! the root container of a sandbox, `control.sock`; files are 0600. A directory appears complete (made under a
//! temporary name, then renamed) and disappears the same way, so that a command that is killed at any step leaves
//! either a container that the next command understands, or a temporary directory that names its dead maker.

#![forbid(unsafe_code)]

use crate::files::{bind_listener, connect_stream, private_file, unique, write_atomically, write_private};
use crate::process::ProcessId;
use airlock_wire::api::airlock as api;
use airlock_wire::client::{Client, Dialect};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest container id: a cgroup named `airlock-<id>` must fit a file name.
const MAX_ID: usize = 240;
/// A state file larger than this is not one of ours.
const MAX_STATE: u64 = 16 << 20;
/// Between two looks at a lock that somebody else holds.
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// How long a sandbox process may take to end after it has closed its control socket.
const CLOSING: Duration = Duration::from_secs(5);
/// A sandbox that lives answers at once; one that is stuck must not hold up `list`.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// A folder of container states, the `--root` of the command line.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// How far `create` has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The command that makes the container is at work, or died at it.
    Creating {
        /// That command's process.
        by: ProcessId,
    },
    /// The container was made; the sandbox knows the rest.
    Created,
}

/// What `state` and `list` call a container's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is at work.
    Creating,
    /// Made, waiting for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended, or never came to life.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// What the state directory remembers of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The container's id.
    pub id: String,
    /// The sandbox it lives in: its own id for a root container.
    pub sandbox_id: String,
    /// `ociVersion` of its configuration.
    pub oci_version: String,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The root filesystem's directory, absolute.
    pub rootfs: PathBuf,
    /// The OCI pid: the loader of a root container, the proxy of a subcontainer; 0 while there is none.
    pub pid: i32,
    /// When that process started, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub pid_start: u64,
    /// The sandbox process: the same as the pid for a root container.
    pub loader: ProcessId,
    /// When the container was made, RFC 3339 in UTC.
    pub created: String,
    /// Name of the user that made it.
    pub owner: String,
    /// The configuration's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The container's process has a terminal.
    pub terminal: bool,
    /// Its cgroups.
    pub cgroup: crate::cgroups::Manager,
    /// Directories on the host that hold its overlay layers.
    #[serde(default)]
    pub filestores: Vec<PathBuf>,
    /// What it has taken from the network namespace that its configuration names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<crate::container::Taken>,
    /// Overlay over root filesystem and mounts that it was made with, in gVisor's form.
    #[serde(default)]
    pub overlay: Option<String>,
    /// What `start` restores it from, instead of starting it.
    #[serde(default)]
    pub restore: Option<crate::container::restore::RestoreOptions>,
    /// What the host keeps for domains of the sandbox, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub domains: BTreeMap<String, DomainFiles>,
    /// Hooks to run once the program is started.
    pub poststart: Vec<Hook>,
    /// Hooks to run once the container is deleted.
    pub poststop: Vec<Hook>,
    /// How far its making has come.
    pub phase: Phase,
}

/// What the host keeps for a domain ([`crate::supervisor`]).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DomainFiles {
    /// Its cgroups.
    pub cgroup: crate::cgroups::Manager,
    /// Directories on the host that hold its overlay layers.
    #[serde(default)]
    pub filestores: Vec<PathBuf>,
}

impl DomainFiles {
    /// Removes all of it, with processes that are left.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn remove(&self) -> Result<()> {
        self.cgroup.kill_all()?;
        self.cgroup.remove()?;
        crate::gofer::remove_filestores(&self.filestores)
    }
}

/// A container's last words, written by the loader (by the proxy for a subcontainer).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The container's id.
    pub id: String,
    /// Wait status, as waitpid(2) gives it.
    pub status: i32,
    /// Why it ended, for people; empty for an ordinary exit.
    #[serde(default)]
    pub reason: String,
    /// When, RFC 3339 in UTC.
    #[serde(default)]
    pub time: String,
    /// Who sent the signal that it ended by, if that was asked of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed_by: Option<api::Killer>,
}

impl ExitRecord {
    /// The exit code as a shell counts it: the code, or 128 + the signal.
    pub fn code(&self) -> i32 {
        exit_code(self.status)
    }
}

/// A wait status as a shell's exit code: the code, or 128 + the signal.
pub fn exit_code(wait_status: i32) -> i32 {
    match wait_status & 0x7f {
        0 => (wait_status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

/// Holds a container's lock until it is dropped; the kernel releases it when the process dies.
#[derive(Debug)]
pub struct Lock {
    _flock: Flock<File>,
}

impl State {
    /// The process that the pid file names.
    pub fn process(&self) -> ProcessId {
        ProcessId { pid: self.pid, start: self.pid_start }
    }

    /// True for a container that lives in another container's sandbox.
    pub fn is_subcontainer(&self) -> bool {
        self.id != self.sandbox_id
    }
}

/// Refuses what cannot be a container's id: anything but 1 to 240 letters, digits, `_`, `+`, `-` and `.`, not
/// beginning with a dot.
pub fn check_id(id: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-' | b'.');
    if id.is_empty() {
        return Err(Error::invalid_argument("container id is empty: give the container a name"));
    }
    if id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(good) {
        return Err(Error::invalid_argument(format!(
            "invalid container id {id:?}: use at most {MAX_ID} letters, digits, '_', '+', '-' and '.', not beginning \
             with '.'"
        )));
    }
    Ok(())
}

/// What callers know a stopped container by.
pub(crate) fn not_running(id: &str) -> Error {
    Error::invalid_state(format!("container {id:?}: container not running"))
}

fn missing(id: &str) -> Error {
    Error::no_such_entity(format!("container {id:?}: container does not exist"))
}

fn taken(id: &str) -> Error {
    Error::invalid_state(format!(
        "container with given ID already exists: {id}: choose another id or delete that container first"
    ))
}

impl StateDir {
    /// `error`, or that container `id` exists if it does by now: then it is in the way.
    pub(crate) fn or_taken(&self, id: &str, error: Error) -> Error {
        if self.exists(id) { taken(id) } else { error }
    }

    /// Opens `root`, making it (0700) with its parents where it is missing.
    pub fn open(root: &Path) -> Result<Self> {
        let text = |e: std::io::Error, what: &str| {
            Error::from(e).context(format!("state directory {}: {what}", root.display()))
        };
        match std::fs::metadata(root) {
            Ok(m) if m.is_dir() => {}
            Ok(_) => return Err(Error::invalid_argument(format!("{} is not a directory", root.display()))),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(root)
                    .and_then(|()| std::fs::set_permissions(root, Permissions::from_mode(0o700)))
                    .map_err(|e| text(e, "cannot make it"))?;
            }
            Err(e) => return Err(text(e, "cannot open it")),
        }
        let root = std::path::absolute(root).map_err(|e| text(e, "cannot resolve it"))?;
        Ok(Self { root })
    }

    /// The folder itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of container `id`.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Where the control socket of a sandbox is.
    pub fn control_socket(&self, sandbox_id: &str) -> PathBuf {
        self.dir(sandbox_id).join("control.sock")
    }

    /// Where a container's last words are written.
    pub fn exit_file(&self, id: &str) -> PathBuf {
        self.dir(id).join("exit.json")
    }

    /// The ids of all containers, sorted. Clears away what dead commands left half-made.
    pub fn list(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        let entries = std::fs::read_dir(&self.root)
            .map_err(|e| Error::from(e).context(format!("list {}", self.root.display())))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::from(e).context(format!("list {}", self.root.display())))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Some(maker) = temporary_maker(&name) {
                if !maker.is_alive() {
                    // Another command may be at the same; whoever comes second finds nothing.
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            } else if check_id(&name).is_ok() && entry.file_type().is_ok_and(|t| t.is_dir()) {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// True if there is a container `id`, whatever its state.
    pub fn exists(&self, id: &str) -> bool {
        check_id(id).is_ok() && self.dir(id).is_dir()
    }

    /// Loads a container's state. Fails with `container does not exist` when there is none.
    pub fn load(&self, id: &str) -> Result<State> {
        check_id(id)?;
        let path = self.dir(id).join("state.json");
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file
                .take(MAX_STATE)
                .read_to_string(&mut text)
                .map_err(|e| Error::from(e).context(format!("read {}", path.display())))?,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(missing(id));
            }
            Err(e) => return Err(Error::from(e).context(format!("open {}", path.display()))),
        };
        let state: State = serde_json::from_str(&text).map_err(|e| {
            Error::failure(format!(
                "{} is damaged ({e}): remove the container with `delete --force {id}`",
                path.display()
            ))
        })?;
        if state.id != id || check_id(&state.sandbox_id).is_err() {
            return Err(Error::failure(format!(
                "{} describes container {:?}: remove it with `delete --force {id}`",
                path.display(),
                state.id
            )));
        }
        Ok(state)
    }

    /// Takes the lock of container `id`, waiting for whoever holds it. Fails with `container does not exist` when there
    /// is no such container, also when it goes away meanwhile.
    pub fn lock(&self, id: &str) -> Result<Lock> {
        self.take_lock(id, || Ok(FlockArg::LockExclusive))?.ok_or_else(|| missing(id))
    }

    /// As [`StateDir::lock`], but gives up after `limit`: `None`.
    pub fn lock_within(&self, id: &str, limit: Duration) -> Result<Option<Lock>> {
        let end = Instant::now() + limit;
        let mut first = true;
        self.take_lock(id, || {
            // The kernel wakes nobody at a deadline: whoever has one must look again and again.
            if !std::mem::take(&mut first) {
                std::thread::sleep(LOCK_PAUSE);
            }
            if Instant::now() < end { Ok(FlockArg::LockExclusiveNonblock) } else { Err(()) }
        })
    }

    /// Tries to take the lock in the way that `how` says each time; `None` when it says to stop.
    fn take_lock(
        &self,
        id: &str,
        mut how: impl FnMut() -> std::result::Result<FlockArg, ()>,
    ) -> Result<Option<Lock>> {
        check_id(id)?;
        let path = self.dir(id).join("lock");
        loop {
            let mut file = match OpenOptions::new().append(true).create(true).mode(0o600).open(&path) {
                Ok(file) => file,
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Err(missing(id));
                }
                Err(e) => return Err(Error::from(e).context(format!("open {}", path.display()))),
            };
            let flock = loop {
                let Ok(arg) = how() else { return Ok(None) };
                match Flock::lock(file, arg) {
                    Ok(flock) => break flock,
                    Err((back, Errno::EINTR | Errno::EWOULDBLOCK)) => file = back,
                    Err((_, e)) => return Err(Error::from(e).context(format!("lock {}", path.display()))),
                }
            };
            // A `delete` that held the lock may have removed the file that we now hold; then this lock guards nothing.
            let mine = flock.metadata().map_err(|e| Error::from(e).context("lock"))?;
            match std::fs::metadata(&path) {
                Ok(now) if now.ino() == mine.ino() && now.dev() == mine.dev() => {
                    return Ok(Some(Lock { _flock: flock }));
                }
                _ => continue,
            }
        }
    }

    /// Makes the directory of a new container, with `state` in it, and returns its lock: nobody can see the container
    /// before both are there. Fails when the id is taken, except by the remains of a `create` that died
    /// ([`Error::kind`] is then `InvalidState`; the caller removes them and tries again).
    pub fn create(&self, state: &State) -> Result<Lock> {
        check_id(&state.id)?;
        let temporary = self.root.join(temporary_name("new")?);
        let text = |e: std::io::Error| Error::from(e).context(format!("make {}", temporary.display()));
        DirBuilder::new().mode(0o700).create(&temporary).map_err(text)?;
        let made = (|| {
            std::fs::set_permissions(&temporary, Permissions::from_mode(0o700)).map_err(text)?;
            let file = private_file(&temporary.join("lock")).map_err(text)?;
            let flock = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, e)| Error::from(e).context("lock"))?;
            write_private(&temporary.join("state.json"), &encode(state)?).map_err(text)?;
            nix::fcntl::renameat2(
                nix::fcntl::AT_FDCWD,
                &temporary,
                nix::fcntl::AT_FDCWD,
                &self.dir(&state.id),
                nix::fcntl::RenameFlags::RENAME_NOREPLACE,
            )
            .map_err(|e| match e {
                Errno::EEXIST => taken(&state.id),
                e => Error::from(e).context(format!("make {}", self.dir(&state.id).display())),
            })?;
            Ok(Lock { _flock: flock })
        })();
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&temporary);
        }
        made
    }

    /// Replaces a container's state (temporary name, then rename). The caller holds the lock.
    pub fn save(&self, state: &State) -> Result<()> {
        let path = self.dir(&state.id).join("state.json");
        write_atomically(&path, &encode(state)?, 0o600)
    }

    /// Keeps a copy of the container's configuration.
    pub fn save_config(&self, id: &str, config: &[u8]) -> Result<()> {
        let path = self.dir(id).join("config.json");
        write_private(&path, config).map_err(|e| Error::from(e).context(format!("write {}", path.display())))
    }

    /// The copy of the container's configuration, as text.
    pub fn config(&self, id: &str) -> Result<String> {
        let path = self.dir(id).join("config.json");
        let mut text = String::new();
        File::open(&path)
            .and_then(|f| f.take(MAX_STATE).read_to_string(&mut text))
            .map_err(|e| Error::from(e).context(format!("read {}", path.display())))?;
        Ok(text)
    }

    /// Removes everything of a container at once. The caller holds the lock. Fine when there is nothing.
    pub fn remove(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let temporary = self.root.join(temporary_name("del")?);
        match std::fs::rename(self.dir(id), &temporary) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::from(e).context(format!("remove {}", self.dir(id).display()))),
        }
        std::fs::remove_dir_all(&temporary)
            .map_err(|e| Error::from(e).context(format!("remove {}", temporary.display())))
    }

    /// The container's last words, if it has spoken them.
    pub fn exit_record(&self, id: &str) -> Result<Option<ExitRecord>> {
        check_id(id)?;
        let path = self.exit_file(id);
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file
                .take(MAX_STATE)
                .read_to_string(&mut text)
                .map_err(|e| Error::from(e).context(format!("read {}", path.display())))?,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::from(e).context(format!("open {}", path.display()))),
        };
        // Empty or cut off: the writer was killed before or while it wrote.
        Ok(serde_json::from_str(&text).ok())
    }

    /// Makes the exit file of container `id`, opened for writing.
    pub(crate) fn make_exit_file(&self, id: &str) -> Result<File> {
        let path = self.exit_file(id);
        private_file(&path).map_err(|e| Error::from(e).context(format!("make {}", path.display())))
    }

    /// Makes the listening control socket of a sandbox, 0600, also where the path is longer than a socket address.
    pub(crate) fn bind_control_socket(&self, sandbox_id: &str) -> Result<UnixListener> {
        let path = self.control_socket(sandbox_id);
        bind_listener(&path).map_err(|e| Error::from(e).context(format!("bind {}", path.display())))
    }

    /// Connects to the control socket of the sandbox that the container lives in (binary dialect).
    pub fn connect(&self, state: &State) -> Result<Client> {
        let path = self.control_socket(&state.sandbox_id);
        let stream = connect_stream(&path)
            .map_err(|e| Error::from(e).context(format!("connect to sandbox at {}", path.display())))?;
        Ok(Client::from_stream(stream, Dialect::Binary))
    }

    /// The container's status: its sandbox is asked if it lives; a container whose `create` died counts as stopped.
    pub fn status(&self, state: &State) -> Result<Status> {
        if let Phase::Creating { by } = &state.phase {
            return Ok(if by.is_alive() { Status::Creating } else { Status::Stopped });
        }
        if !state.loader.is_alive() {
            return Ok(Status::Stopped);
        }
        self.ask_status(state)
            .or_else(|e| if self.has_ended(state, &e) { Ok(Status::Stopped) } else { Err(e) })
    }

    /// True when `error`, met while talking to the sandbox that the container lives in, is that the container has ended:
    /// it may have done so since anybody looked, and a sandbox that is just ending has closed its socket already. Waits
    /// a few seconds for the end of one that has hung up.
    pub fn has_ended(&self, state: &State, error: &Error) -> bool {
        !state.loader.is_alive()
            || self.last_words(state)
            || (error.kind == Kind::Disconnected && state.loader.wait(Some(CLOSING)).unwrap_or_default())
    }

    /// What to tell of a failed conversation with a container's sandbox: `error`, or that the container has ended.
    pub fn or_ended(&self, state: &State, error: Error) -> Error {
        if self.has_ended(state, &error) { not_running(&state.id) } else { error }
    }

    /// Asks the sandbox for a container's status. A container that the sandbox does not know is gone.
    fn ask_status(&self, state: &State) -> Result<Status> {
        let mut client = self.connect(state)?;
        client.set_timeout(Some(STATUS_LIMIT))?;
        let info = match client.call::<api::Info>(&api::ContainerId { cid: state.id.clone() }, &[]) {
            Ok(reply) => reply.value,
            Err(e) if e.kind == Kind::NoSuchEntity => return Ok(Status::Stopped),
            Err(e) => {
                return Err(e.context(format!("ask sandbox {} for container {}", state.sandbox_id, state.id)));
            }
        };
        match info.status.as_str() {
            "creating" => Ok(Status::Creating),
            "created" => Ok(Status::Created),
            "running" => Ok(Status::Running),
            "paused" => Ok(Status::Paused),
            "stopped" => Ok(Status::Stopped),
            other => {
                Err(Error::new(Kind::Protocol, format!("sandbox {} says status {other:?}", state.sandbox_id)))
            }
        }
    }

    fn last_words(&self, state: &State) -> bool {
        self.exit_record(&state.id).ok().flatten().is_some()
    }
}

fn encode(state: &State) -> Result<Vec<u8>> {
    serde_json::to_vec(state).map_err(|e| Error::failure(format!("encode state of {}: {e}", state.id)))
}

/// `.<kind>-<pid>-<start>-<n>`: names its maker, so that others can tell whether that still lives.
fn temporary_name(kind: &str) -> Result<String> {
    let me = ProcessId::current()?;
    Ok(format!(".{kind}-{}-{}-{}", me.pid, me.start, unique()))
}

/// Who made a temporary directory of that name; `None` if it is none of ours.
fn temporary_maker(name: &str) -> Option<ProcessId> {
    let rest = name.strip_prefix(".new-").or_else(|| name.strip_prefix(".del-"))?;
    let mut parts = rest.split('-');
    let (pid, start) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(ProcessId { pid, start })
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
