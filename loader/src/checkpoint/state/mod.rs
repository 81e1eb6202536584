//! What a statefile says of a sandbox: plain data, without behaviour.
//!
//! Serialised as JSON, so that a reader in any language is a few lines, and two images can be compared. Objects that
//! several tasks share (address spaces, descriptor tables, open files, shared memory) are kept once, in vectors of
//! [`SandboxState`], and named by their index there. An image may be forged: whoever reads these types checks each
//! index, length and number before use ([`SandboxState::check`] does so for the indexes).
#![forbid(unsafe_code)]

mod bytes;
mod check;
mod files;
mod memory;
mod sockets;
mod tasks;
mod world;

pub use bytes::Bytes;
pub use files::*;
pub use memory::*;
pub use sockets::*;
pub use tasks::*;
pub use world::*;

pub use airlock_wire::api::checkpoint::Refusal;
use serde::{Deserialize, Serialize};

/// Index into one of the vectors of [`SandboxState`].
pub type Id = u32;

/// Everything that is known of a sandbox at its consistency point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxState {
    /// Containers, the root container first.
    pub containers: Vec<ContainerState>,
    /// Clocks at the consistency point.
    pub clocks: Clocks,
    /// What the image was made on.
    pub machine: Machine,
    /// Processes; a parent is always before its children, a container's init first of its container.
    pub processes: Vec<ProcessState>,
    /// Address spaces.
    pub mms: Vec<MmState>,
    /// Memory that lives in an object of its own: memfd, shared anonymous memory, deleted files, SysV segments.
    pub shmems: Vec<ShmemState>,
    /// Descriptor tables.
    pub fd_tables: Vec<FdTable>,
    /// Open file descriptions (what descriptors refer to).
    pub files: Vec<FileState>,
    /// Current and root directories, umasks.
    pub fs: Vec<FsState>,
    /// Seccomp filter programs.
    pub seccomp_filters: Vec<SeccompFilter>,
    /// SysV IPC and POSIX message queues.
    pub ipc: IpcState,
    /// Filesystems whose content travels in the image.
    pub filesystems: Vec<FilesystemState>,
    /// Network namespaces of the sandbox.
    pub networks: Vec<NetworkState>,
    /// What was left out or will differ after a restore, in words.
    pub warnings: Vec<String>,
}
