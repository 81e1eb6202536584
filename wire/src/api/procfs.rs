//! What `containerManager.ProcfsDump` tells of a process (gVisor's `runsc/boot/procfs`). Empty texts and lists are left
//! out of the JSON, as Go does.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One process, as proc(5) shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessProcfsDump {
    /// The program, as its container sees it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub exe: String,
    /// Arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Current folder.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    /// Open descriptors.
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "fdlist")]
    pub fds: Vec<FdInfo>,
    /// When the process was made, in nanoseconds since 1970; exact to 10 ms.
    #[serde(skip_serializing_if = "is_zero_i64", rename = "clone_ts")]
    pub start_time: i64,
    /// Root folder.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub root: String,
    /// Limits by their `RLIMIT_` names; `u64::MAX` is unlimited. gVisor tells `RLIMIT_NOFILE` only.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Limit>,
    /// Cgroups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroup: Vec<CgroupEntry>,
    /// From `/proc/<pid>/status`.
    pub status: Status,
    /// From `/proc/<pid>/stat`.
    pub stat: Stat,
    /// Mappings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<Mapping>,
}

/// A descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FdInfo {
    /// Its number.
    pub number: i32,
    /// What it refers to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// `st_mode` of that; 0 when it cannot be told.
    pub mode: u16,
}

/// A resource limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// Soft.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub cur: u64,
    /// Hard.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub max: u64,
}

/// A line of `/proc/<pid>/cgroup` (cgroups(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupEntry {
    /// Hierarchy; 0 is v2's.
    pub hierarchy_id: u32,
    /// Controllers of a v1 hierarchy, with commas between them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub controllers: String,
    /// The cgroup.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// Who a process is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Command name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comm: String,
    /// Pid in the sandbox's pid namespace.
    pub pid: i32,
    /// Parent there.
    pub ppid: i32,
    /// User IDs.
    pub uid: Ids,
    /// Group IDs.
    pub gid: Ids,
    /// Size of the address space in KiB.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub vm_size: u64,
    /// Resident memory in KiB.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub vm_rss: u64,
}

/// User or group IDs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
}

/// Groups that a process belongs to, in the sandbox's pid namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stat {
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
}

/// A line of `/proc/<pid>/maps`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mapping {
    /// Where it is.
    pub address: AddressRange,
    /// What may be done there.
    pub permissions: Access,
    /// `p` for private, `s` for shared.
    pub private: String,
    /// Offset in the file.
    pub offset: u64,
    /// The file's device.
    #[serde(rename = "deviceMajor", skip_serializing_if = "is_zero_u32")]
    pub device_major: u32,
    /// The file's device.
    #[serde(rename = "deviceMinor", skip_serializing_if = "is_zero_u32")]
    pub device_minor: u32,
    /// The file's inode.
    #[serde(skip_serializing_if = "is_zero_u64")]
    pub inode: u64,
    /// The file, or a name like `[heap]`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pathname: String,
}

/// Addresses from `start` up to and without `end`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AddressRange {
    /// First.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
}

/// Permissions of a mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Access {
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
}

fn is_zero_i64(n: &i64) -> bool {
    *n == 0
}

fn is_zero_u64(n: &u64) -> bool {
    *n == 0
}

fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}
