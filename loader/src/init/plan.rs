//! What the loader tells a new container process, and what it answers.
//!
//! Every new process has a channel to the loader. The loader sends one order; the process sets itself up and
//! answers; a container's init then waits for `Start`. A successful exec closes the channel.
#![forbid(unsafe_code)]

use airlock_wire::api::boot::Namespace;
use serde::{Deserialize, Serialize};

/// Loader to process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Become a container's init. Descriptors: see [`CreateOrder`].
    Create(CreateOrder),
    /// Become an additional process of a container. Descriptors: see [`ExecOrder`].
    Exec(ExecOrder),
    /// Execute the program (after `Create`).
    Start,
}

/// Process to loader.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Set up as ordered. Descriptors: pty master if `console`, seccomp listener if `listener`, the devpts mount if
    /// `devpts`, the container's procfs if `procfs`.
    Ready {
        /// Pid in the container's own pid namespace.
        pid: i32,
        /// A pty master comes with the message.
        console: bool,
        /// A seccomp listener comes with the message.
        listener: bool,
        /// The devpts mount comes with the message.
        devpts: bool,
        /// The newest of the container's mounts (listmount(2)): what is newer was mounted by its programs. 0: unknown.
        newest_mount: u64,
        /// What came from outside: number in the process, device and inode. Nobody else can tell: in a user namespace,
        /// the loader may look at the process only when it has executed its program.
        origin: Vec<(i32, u64, u64)>,
    },
    /// It did not work; the process exits after this.
    Failed(airlock_wire::error::Error),
}

/// Descriptor counts of a message, in the order in which they follow each other.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdLayout {
    /// Files to write "0" to in order to join v1 cgroups.
    pub cgroup_join: u16,
    /// Standard streams (0 or 3).
    pub stdio: u16,
    /// Console donated by the caller (0 or 1).
    pub tty: u16,
    /// devpts mount of the container, for a console of its own (0 or 1).
    pub devpts: u16,
    /// Program to execute (0 or 1).
    pub exec: u16,
    /// Numbers in the container of the passed descriptors, which come next.
    pub pass: Vec<i32>,
    /// Namespaces to join; one descriptor each.
    pub join: Vec<Namespace>,
    /// Pidfd of the container's init, whose namespaces are joined (0 or 1).
    pub init: u16,
    /// Detached mounts: rootfs and gofer mounts.
    pub mounts: u16,
    /// Paths of detached device mounts; one descriptor each.
    pub devices: Vec<String>,
    /// Names of v1 hierarchies with a detached cgroup mount; one descriptor each.
    pub cgroup_mounts: Vec<String>,
}

/// Order to become a container's init.
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateOrder {
    /// Container ID.
    pub cid: String,
    /// OCI spec as JSON.
    pub spec: String,
    /// Bundle path as text, for hooks.
    pub bundle: String,
    /// The root container moves into the sandbox's own mount namespace; others make one.
    pub root: bool,
    /// The container is in a user namespace.
    pub in_userns: bool,
    /// Pure v2 cgroups.
    pub cgroup_v2: bool,
    /// v1 hierarchies by name.
    pub cgroup_names: Vec<String>,
    /// The sandbox's generation ID.
    pub generation: String,
    /// See [`crate::loader::ContainerParts::to_restore`].
    pub to_restore: bool,
    /// What the descriptors are.
    pub fds: FdLayout,
}

/// Order to become an additional process of a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecOrder {
    /// `CLONE_NEW*` flags of the namespaces in which the container differs from the spawner. Entering any other is
    /// superfluous, and forbidden in a user namespace for those that are the host's.
    pub namespaces: i32,
    /// OCI `process` object as JSON.
    pub process: String,
    /// Compiled seccomp program of the container ([`crate::seccomp::Program::to_bytes`]).
    pub seccomp: Option<Vec<u8>>,
    /// Execution domain of the container, for personality(2).
    pub personality: Option<u64>,
    /// What the descriptors are.
    pub fds: FdLayout,
}
