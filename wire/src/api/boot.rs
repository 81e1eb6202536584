//! The boot message: what a parent donates to a new sandbox (seed: gVisor's `boot.Args`).
//!
//! Binary dialect only; it travels once, on the socketpair that is the stage's standard input. Descriptors are
//! named by index into the message's descriptor list, never by number.

use super::trace::SessionConfig;
use super::types::{FdMapping, GoferMountConf, Json, SpecJson};
use serde::{Deserialize, Serialize};

/// Index into the descriptors that came with the message. Each index may be used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fd(pub u16);

/// A namespace kind, in the words of the OCI runtime spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// user(7) namespace.
    User,
    /// mount namespace.
    Mount,
    /// pid namespace (of the container; the sandbox's own is always new unless `host_pid`).
    Pid,
    /// network namespace.
    Network,
    /// IPC namespace.
    Ipc,
    /// UTS namespace.
    Uts,
    /// cgroup namespace.
    Cgroup,
    /// time namespace.
    Time,
}

/// Cgroup hierarchies of one container, opened by the parent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupFds {
    /// True for a pure v2 tree: `dirs` has then exactly two entries, [`CgroupFds::V2_LEAF`] and
    /// [`CgroupFds::V2_LIMITS`].
    pub v2: bool,
    /// The cgroup's directory in each hierarchy.
    pub dirs: Vec<CgroupDir>,
    /// Detached mounts for the container's `/sys/fs/cgroup`.
    ///
    /// v1: of `dirs`, in their order, and only when the spec mounts cgroups without a new cgroup namespace. v2: one
    /// for each cgroup mount of the spec, in spec order, with a cgroup namespace too: of the container's cgroup,
    /// where its limits are, if the spec mounts it read-only; else of the leaf, so that the container does not write
    /// to its own limits. Without any, a container with a new cgroup namespace gets a mount of its leaf.
    pub mounts: Vec<Fd>,
}

impl CgroupFds {
    /// In a pure v2 tree, the name of the directory with the container's processes and nothing else
    /// (`<cgroup>/airlock-<cid>`): to list, freeze and kill. It has no controllers.
    pub const V2_LEAF: &'static str = "leaf";
    /// In a pure v2 tree, the name of the container's cgroup itself: limits, device program, statistics. The
    /// sandbox's own processes are in that of the root container.
    pub const V2_LIMITS: &'static str = "limits";
}

/// One hierarchy's directory of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDir {
    /// As the hierarchy is called below `/sys/fs/cgroup` (`cpu,cpuacct`, `freezer`, `systemd`); in a pure v2 tree
    /// [`CgroupFds::V2_LEAF`] or [`CgroupFds::V2_LIMITS`].
    pub name: String,
    /// The directory, opened `O_DIRECTORY`. For v1 `freezer` (for `unified` where there is no v1 freezer) and v2
    /// `leaf` this is the container's leaf (`airlock-<cid>`), for all others the container's cgroup itself.
    pub dir: Fd,
    /// The file through which a process of the *sandbox* joins the container's cgroup, not its leaf (v1 `tasks` or v2
    /// `cgroup.procs`), opened for writing; only in the boot message, and for v2 with `limits`. (v1 `freezer`: of the
    /// directory above the leaf.)
    pub join: Option<Fd>,
}

/// Everything a container needs besides its name: shared by the boot message (root container) and
/// `Airlock.PrepareSubcontainer`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerFds {
    /// stdin, stdout, stderr; empty when the spec asks for a terminal.
    pub stdio: Vec<Fd>,
    /// Detached mounts: the rootfs, then one for each mount of the spec that
    /// `airlock_loader::oci::mounts::needs_gofer` names, in spec order.
    pub gofer: Vec<Fd>,
    /// What is behind overlay upper layers, in the order of the overlaid entries of the `GoferMountConf` list: for
    /// `Memory` the upper layer's directory, which a checkpoint reads; for `Self` and `Anon` the directory on the host
    /// (the parent has already built the overlay).
    pub filestores: Vec<Fd>,
    /// Device nodes for `/dev` as detached mounts, path and descriptor: given when the container is in a user
    /// namespace and cannot `mknod`.
    pub devices: Vec<(String, Fd)>,
    /// Cgroup directories.
    pub cgroup: CgroupFds,
    /// Namespaces to join, given by path in the spec.
    pub join: Vec<(Namespace, Fd)>,
    /// User-supplied descriptors: `host` is the index in this message's descriptor list.
    pub pass: Vec<FdMapping>,
    /// The program to execute, instead of `process.args[0]` looked up in the rootfs.
    pub exec: Option<Fd>,
    /// Console to use instead of one from the container's own devpts (a pty replica).
    pub tty: Option<Fd>,
}

/// A trace session with what its parent has opened for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceFds {
    /// The session.
    pub config: Json<SessionConfig>,
    /// One for each sink that needs one, in their order.
    pub fds: Vec<Fd>,
}

/// Arguments of a new sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BootArgs {
    /// The sandbox ID, which is also the root container's ID.
    pub id: String,
    /// The root container's spec.
    pub spec: SpecJson,
    /// The bundle directory, as text (for hooks and `state`, never opened).
    pub bundle: String,
    /// Descriptors of the root container.
    pub fds: ContainerFds,
    /// How the gofer mounts were made; `[0]` is the rootfs.
    pub gofer_mount_confs: Vec<GoferMountConf>,
    /// Detached mounts that containers of the pod share, by the name of the mount hint; the loader keeps them and gives
    /// them out (`Airlock.SharedMounts`).
    pub shared_mounts: Vec<(String, Fd)>,
    /// A trace session that there is before the root container starts.
    pub trace: Option<TraceFds>,
    /// The listening control socket.
    pub listener: Option<Fd>,
    /// The loader writes the root container's last words there as one JSON object
    /// `{"id","status","reason","time"}` just before it exits.
    pub exit_file: Option<Fd>,
    /// Debug log of the loader (append).
    pub log: Option<Fd>,
    /// Log level: 0 off, 1 error … 5 trace.
    pub log_level: u8,
    /// The loader can be profiled (`Profile.*`), and remembers its allocations for that.
    pub profile: bool,
    /// Panics of the loader are written there.
    pub panic_log: Option<Fd>,
    /// User log (what the container's runtime tells its owner).
    pub user_log: Option<Fd>,
    /// The airlock binary itself, read-only: symbols for `debug.Stacks`.
    pub self_exe: Option<Fd>,
    /// The pid namespace is the parent's own (the spec has no pid namespace).
    pub host_pid: bool,
    /// Start the root container as soon as it is created (`run`), without waiting for `StartRoot`.
    pub autostart: bool,
    /// The root container will be restored: its program need not be there any more.
    pub to_restore: bool,
    /// After the namespaces exist, wait for an `Airlock.Continue` call on this socket before the container is
    /// made (the parent runs `prestart` and `createRuntime` hooks meanwhile).
    pub hold: bool,
    /// User ids that may call, besides root and the loader's own.
    pub allowed_uids: Vec<u32>,
    /// Grace period for calls in flight at exit, in milliseconds.
    pub stop_grace_ms: u64,
}

/// The stage's and the loader's answers on the boot socket, in this order: `Stage`, (`MapIds` is a question to
/// the parent when the sandbox makes a user namespace), `Held` when asked, `Ready` or `Failed`.
/// After `Ready` the socket is an ordinary control connection (binary dialect).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootReply {
    /// The stage is in its new user namespace; the parent writes the id maps of `pid` and answers one byte.
    MapIds {
        /// The stage's pid as the parent sees it is known to the parent already; this is for checking.
        pid: i32,
    },
    /// Loader and spawner exist. `loader_pid` is in the parent's pid namespace.
    Stage {
        /// Pid of the loader: the OCI pid.
        loader_pid: i32,
    },
    /// Namespaces exist; hooks may run. Answer with an `Airlock.Continue` request.
    Held,
    /// The root container is created (or, with `autostart`, started). Descriptors with this message: the pty
    /// master if the spec has a terminal and no `tty` was donated; then the seccomp listener if the profile has one.
    Ready {
        /// The init's pid in the sandbox's pid namespace.
        init_pid: i32,
        /// A pty master is the first descriptor.
        has_console: bool,
        /// A seccomp listener is the last descriptor.
        has_seccomp_listener: bool,
    },
    /// Nothing is left of the sandbox but this.
    Failed(crate::error::Error),
}
