//! What the container API needs from where it is served.
#![forbid(unsafe_code)]

use crate::cgroup::delegate;
use crate::cgroup::files::Dir;
use crate::cgroup::resources::devices::{self, Rule};
use crate::cgroup::resources::devices_bpf;
use crate::cgroup::tree::Node;
use airlock_wire::error::Result;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// A program to be run in a container.
#[derive(Debug)]
pub struct Program {
    /// Absolute path and arguments.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// stdin, stdout and stderr; none of them: `/dev/null`, and a session of its own.
    pub stdio: Option<[OwnedFd; 3]>,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    /// As the server sees it.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
}

/// What takes privileges that a sandbox's loader has not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileged {
    /// Rules for devices to be set.
    pub devices: Option<Vec<Rule>>,
    /// Who is to own the directory.
    pub owner: Option<(u32, u32)>,
}

impl Privileged {
    /// Does it to one directory of a container, which has the files of `v2` or of v1's devices.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn perform(&self, dir: BorrowedFd<'_>, v2: bool) -> Result<()> {
        match &self.devices {
            Some(rules) if v2 => devices_bpf::apply(dir, rules)?,
            Some(rules) => devices::apply_v1(&Dir(dir), rules)?,
            None => {}
        }
        self.owner.map_or(Ok(()), |(uid, gid)| delegate(dir, uid, gid, false))
    }
}

/// Where the API is served.
pub trait Place: Debug + Send + Sync {
    /// `/proc/<tid>/cgroup`.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::NoSuchEntity`] when there is no such thread.
    fn cgroups_of(&self, tid: i32) -> Result<String>;

    /// Starts a program in a container.
    ///
    /// # Errors
    /// It cannot be executed.
    fn run(&self, node: &Node, program: Program) -> Result<Running>;

    /// Waits for a program that [`Place::run`] has started, by calling `wait` with a descriptor until it is readable, and
    /// forgets it. The result is its wait status.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::NoSuchEntity`] for another process; what `wait` says.
    fn wait(&self, pid: i32, wait: &dyn Fn(BorrowedFd<'_>) -> Result<()>) -> Result<u32>;

    /// See [`Privileged::perform`].
    ///
    /// # Errors
    /// As that.
    fn privileged(&self, dir: BorrowedFd<'_>, v2: bool, what: &Privileged) -> Result<()>;

    /// Checks that `hierarchy` is mounted at `path`.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: it is not.
    fn check_mount(&self, path: &str, hierarchy: &str) -> Result<()>;

    /// The pid of the system's init, as the server sees it.
    fn init_pid(&self) -> i32;

    /// What makes virtual hosts, where that is possible.
    fn hosts(&self) -> Option<&dyn VirtualHosts>;
}

/// Makes the sandboxes of virtual hosts. Each is named by its container's cgroup, as `/proc/<pid>/cgroup` names that, and is
/// found by it after the server was killed and started again.
pub trait VirtualHosts: Debug + Send + Sync {
    /// Makes the sandbox of a cgroup that exists: with namespaces of its own of pids, IPC, mounts and the host's name,
    /// `rootfs` (absolute; the machine's `/` without) as its root, and an init that is not executed yet: `init`, or one that
    /// does nothing if that is empty. What was left of one with the same name is removed first.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: there is no such directory or init. Call [`Self::remove`] then.
    fn create(&self, cgroup: &str, rootfs: Option<&Path>, init: &[String]) -> Result<()>;

    /// Executes its init.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: it cannot be executed.
    fn start(&self, cgroup: &str) -> Result<()>;

    /// As [`Place::run`], in its namespaces.
    ///
    /// # Errors
    /// As that; `FAILED_PRECONDITION` when its init has ended.
    fn run(&self, cgroup: &str, program: Program) -> Result<Running>;

    /// The pid of its init, as the server sees it.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when that has ended.
    fn init_pid(&self, cgroup: &str) -> Result<i32>;

    /// Kills and removes it, and leaves the cgroup; one that is not there is no error.
    ///
    /// # Errors
    /// It does not end.
    fn remove(&self, cgroup: &str) -> Result<()>;

    /// The cgroups of all, of other trees as well.
    ///
    /// # Errors
    /// As reading a directory.
    fn all(&self) -> Result<Vec<String>>;
}
