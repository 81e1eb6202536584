//! What surrounds the processes: containers, clocks, machine, filesystems, IPC, network.
#![forbid(unsafe_code)]

use super::{Bytes, Id};
use serde::{Deserialize, Serialize};

/// A container of the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// ID at the dump.
    pub cid: String,
    /// Name by which it is found at restore: annotation `io.kubernetes.cri.container-name`, or `__no_name_<n>`.
    pub name: String,
    /// OCI spec as JSON text.
    pub spec: String,
    /// Pid of its init in its pid namespace.
    pub init: i32,
    /// How long its init had lived, nanoseconds.
    pub age_ns: u64,
    /// Index of the container whose pid namespace it lives in; its own: its own index.
    pub pid_namespace: Id,
    /// It has a terminal.
    pub terminal: bool,
    /// Host name and domain name at the dump.
    pub hostname: String,
    /// Domain name.
    pub domainname: String,
    /// Mounts it sees.
    pub mounts: Vec<MountState>,
    /// Its network namespace.
    pub network: Option<Id>,
    /// Index of the container whose IPC namespace it shares (usually the root container).
    pub ipc_owner: Id,
}

/// A mount as in mountinfo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountState {
    /// Mount ID at the dump.
    pub id: u64,
    /// Parent's mount ID.
    pub parent: u64,
    /// Path as the container sees it.
    pub path: String,
    /// Root of the mount within its filesystem.
    pub root: String,
    /// Filesystem type.
    pub fstype: String,
    /// Source.
    pub source: String,
    /// Mount options.
    pub options: String,
    /// Superblock options.
    pub super_options: String,
    /// Propagation fields.
    pub propagation: String,
    /// major:minor.
    pub device: (u32, u32),
    /// The container's program made it itself: it is mounted anew at restore.
    pub own: bool,
}

/// Clocks, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clocks {
    /// CLOCK_REALTIME.
    pub realtime_ns: i64,
    /// CLOCK_MONOTONIC as the containers saw it.
    pub monotonic_ns: i64,
    /// CLOCK_BOOTTIME as the containers saw it.
    pub boottime_ns: i64,
}

/// What the image was made on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub arch: String,
    /// CPU features that programs may have found and use (flags of /proc/cpuinfo), sorted.
    pub cpu_features: Vec<String>,
    /// XCR0: which register sets exist.
    pub xcr0: u64,
    /// Size of an XSTATE area.
    pub xstate_size: u64,
    /// Page size.
    pub page_size: u64,
    /// The vdso: size of its mappings and digest of its code.
    pub vdso_digest: String,
    /// CPUs.
    pub cpus: u32,
}

/// A filesystem whose content travels in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilesystemState {
    /// Container.
    pub container: Id,
    /// Mount point as the container sees it.
    pub path: String,
    /// `tmpfs`, `overlay-memory` (upper layer), `mqueue`.
    pub kind: String,
    /// Section of the statefile that holds the content; none: outside, with `digest` to check.
    pub section: Option<u32>,
    /// What identifies content that stays outside (upper layer on disk).
    pub digest: String,
    /// Files and bytes, for reports.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// SysV IPC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpcState {
    /// Segments: contents in the page index under the `shmems` entry.
    pub segments: Vec<IpcSegment>,
    /// Semaphore sets.
    pub semaphores: Vec<IpcSemaphores>,
    /// Message queues.
    pub queues: Vec<IpcQueue>,
    /// POSIX message queues.
    pub posix_queues: Vec<PosixQueue>,
    /// Limits of the IPC namespaces: container whose it is, name (sysctl), value.
    pub limits: Vec<(Id, String, String)>,
}

/// Ownership common to SysV objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpcPerm {
    /// The kernel's id, which programs keep.
    pub id: i32,
    /// Key.
    pub key: i32,
    /// Owner.
    pub owner: (u32, u32),
    /// Creator.
    pub creator: (u32, u32),
    /// Mode.
    pub mode: u32,
    /// Container whose IPC namespace it is in.
    pub container: Id,
}

/// A shared memory segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpcSegment {
    /// Ownership.
    pub perm: IpcPerm,
    /// Size, bytes.
    pub size: u64,
    /// Contents.
    pub shmem: Id,
}

/// A semaphore set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpcSemaphores {
    /// Ownership.
    pub perm: IpcPerm,
    /// Values.
    pub values: Vec<u16>,
    /// SEM_UNDO adjustments by process: (pid, values).
    pub undo: Vec<(i32, Vec<i16>)>,
}

/// A message queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpcQueue {
    /// Ownership.
    pub perm: IpcPerm,
    /// `msg_qbytes`.
    pub max_bytes: u64,
    /// Messages: type and data.
    pub messages: Vec<(i64, Bytes)>,
}

/// A POSIX message queue (mq_overview(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PosixQueue {
    /// Container whose IPC namespace it is in.
    pub container: Id,
    /// Name, without a slash.
    pub name: Bytes,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub owner: (u32, u32),
    /// Messages it may hold.
    pub max_messages: i64,
    /// Longest message, bytes.
    pub message_size: i64,
    /// Messages, in the order in which they are received: priority and data.
    pub messages: Vec<(u32, Bytes)>,
}

/// A network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkState {
    /// Made by the sandbox (its loopback is set up anew) rather than joined or the host's.
    pub own: bool,
    /// Sockets that leave it are connections to the outside.
    pub interfaces: Vec<NetInterface>,
    /// net.* sysctls that differ from a fresh namespace: (name, value).
    pub sysctls: Vec<(String, String)>,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetInterface {
    /// Name.
    pub name: String,
    /// Index.
    pub index: u32,
    /// IFF_*.
    pub flags: u32,
    /// Addresses with prefix length, as text.
    pub addresses: Vec<String>,
    /// MTU.
    pub mtu: u32,
}
