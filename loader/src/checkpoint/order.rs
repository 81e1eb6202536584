//! What the loader asks of an agent, and what the agent tells meanwhile.
//!
//! One order a life: [`Order::Dump`] or [`Order::Restore`]. Messages go over a socket of the two alone.
#![forbid(unsafe_code)]

use super::state::Refusal;
use airlock_wire::error::Error;
use serde::{Deserialize, Serialize};

/// Loader to agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Save the sandbox. Descriptors: statefile; then pages metadata and pages, as [`DumpOrder::have_pages_file`] says;
    /// then, for each container in order, those of its upper layers ([`DumpContainer::upper`]).
    Dump(DumpOrder),
    /// Make the waiting inits what a statefile says. Descriptors: statefile; pages metadata and pages; a
    /// `/dev/userfaultfd` as the flags of [`RestoreOrder`] say; at the end, for each container in order, those of its
    /// upper layers on a disk ([`RestoreContainer::on_disk`]).
    Restore(RestoreOrder),
    /// Answer to [`Event::Interrupted`], [`Event::Detaching`]: freezers are as they have to be. After a restore on demand
    /// ([`RestoreOrder::on_demand`]): bring in all pages.
    Continue,
    /// Answer to [`Event::Saved`]: end the containers, or let them go on.
    Release {
        /// End them.
        kill: bool,
    },
}

/// How to save.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpOrder {
    /// What is saved; the root container first.
    pub containers: Vec<DumpContainer>,
    /// Pages go into files of their own.
    pub have_pages_file: bool,
    /// The containers go on afterwards: pages are written from a copy-on-write shadow.
    pub resume: bool,
    /// Only find out what could not be saved.
    pub dry_run: bool,
    /// Keyed checksum.
    pub key: Option<Vec<u8>>,
    /// The caller's metadata.
    pub metadata: Vec<(String, String)>,
    /// `none`, `lz4`, `zstd`, `flate-best-speed`.
    pub compression: String,
    /// Write pages with O_DIRECT.
    pub direct: bool,
    /// Keep connections that leave the sandbox.
    pub tcp_established: bool,
    /// Unix sockets connected to the outside are made anew by path.
    pub ext_unix_sk: bool,
    /// Save file locks.
    pub file_locks: bool,
    /// Pre-dump: save memory only, keep running, track changes.
    pub pre_dump: bool,
    /// A parent image is given: store only pages that changed since. Descriptors follow: parent's statefile, pages metadata, pages.
    pub parent: bool,
    /// Images that the parent builds upon: for each, pages metadata and pages follow, nearest first.
    pub ancestors: u32,
    /// Since when writes are tracked; if it is since the parent, pages that were not written need not be looked at.
    pub tracked: Option<Tracked>,
    /// Containers that are paused: tell before stopping and before letting go.
    pub paused: bool,
    /// Containers live in namespaces whose owner is not the initial user namespace.
    pub in_userns: bool,
    /// What the supervisor knows of its domains, for the metadata; empty without any.
    pub supervisor: String,
}

/// A container to save.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpContainer {
    /// ID.
    pub cid: String,
    /// Name for matching at restore.
    pub name: String,
    /// OCI spec as JSON text.
    pub spec: String,
    /// Pid of its init in the sandbox's pid namespace.
    pub init: i32,
    /// Roots of exec sessions, pids in the sandbox's namespace; they and their descendants are left out.
    pub execs: Vec<i32>,
    /// Named processes of a domain, pids in the sandbox's namespace: they are saved, with their descendants, and have the init
    /// for a parent after a restore.
    pub adopted: Vec<i32>,
    /// Descriptors that came from outside: number in the init at its start, device, inode.
    pub origin: Vec<(i32, u64, u64)>,
    /// It has a pid namespace of its own; otherwise it shares the root container's.
    pub own_pid_namespace: bool,
    /// The newest mount that its init made (listmount(2)); newer ones are its programs'. 0: unknown.
    pub newest_mount: u64,
    /// Upper layers of overlays, whose descriptors come with the order: path of the overlay mount each.
    pub upper: Vec<String>,
    /// Which of `upper` are on a disk (the descriptor is that of the directory that holds the layer) rather than in
    /// memory (the layer itself, or the copy of a single file).
    pub on_disk: Vec<bool>,
}

/// How to restore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreOrder {
    /// The waiting containers, in the order of the image's.
    pub containers: Vec<RestoreContainer>,
    /// Pages are in files of their own, whose descriptors come.
    pub have_pages_file: bool,
    /// A `/dev/userfaultfd` comes.
    pub have_device_file: bool,
    /// Run first, bring pages later.
    pub background: bool,
    /// With `background`: bring in only what the programs ask for, until told otherwise with [`Order::Continue`].
    pub on_demand: bool,
    /// Keyed checksum.
    pub key: Option<Vec<u8>>,
    /// Keep connections that leave the sandbox.
    pub tcp_established: bool,
    /// Parent images come: pairs of pages metadata and pages, nearest first.
    pub parents: u32,
    /// Behind them comes the file that records the working set ([`super::pages::working_set`]).
    pub working_set: bool,
    /// See [`DumpOrder::in_userns`].
    pub in_userns: bool,
}

/// A container that waits to be restored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreContainer {
    /// ID in this sandbox.
    pub cid: String,
    /// Index of the container in the image.
    pub image: u32,
    /// Pid of its waiting init in the sandbox's pid namespace.
    pub init: i32,
    /// Descriptors that came from outside, as numbered in the waiting init.
    pub origin: Vec<i32>,
    /// It has a pid namespace of its own.
    pub own_pid_namespace: bool,
    /// OCI spec as JSON text.
    pub spec: String,
    /// Upper layers of overlays: path of the overlay mount each.
    pub upper: Vec<String>,
    /// Which of `upper` are on a disk; their descriptors come last of all with the order.
    pub on_disk: Vec<bool>,
}

/// Writes that are tracked from one checkpoint to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// Since this image was made.
    pub image: [u8; 16],
    /// By whom the descriptors were made, in the sandbox's pid namespace; in their order.
    pub processes: Vec<i32>,
}

/// Agent to loader.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// A line for the sandbox's log.
    Log {
        /// `log::Level` as a number, 1 (error) to 5 (trace).
        level: u8,
        /// Text.
        text: String,
    },
    /// Tasks were told to stop. Frozen ones do once they are thawed; answered with [`Order::Continue`].
    Interrupted,
    /// All tasks have stopped; answered with [`Order::Continue`].
    Stopped,
    /// Tasks are about to go on. Those that were frozen have to be frozen again; answered with [`Order::Continue`].
    Detaching,
    /// How far it is.
    Progress(Progress),
    /// Cannot be done; nothing was disturbed.
    Refused(Vec<Refusal>),
    /// All is told that a dry run can tell.
    DryRun(Report),
    /// The program runs again (with `resume`); pages are still being written.
    Resumed {
        /// How long it stood still.
        pause_us: u64,
    },
    /// What tracked writes so far is to be handed over: the kernel has one count at a time. Answered with
    /// [`Order::Continue`] and the descriptors of [`DumpOrder::tracked`], in its order.
    Untrack,
    /// The image is complete; answered with [`Order::Release`]. Descriptors that track writes from now on may come along,
    /// to be kept until [`Event::Untrack`].
    Saved(Report),
    /// A descriptor to be kept until all pages are in: as long as it is open, a program whose pages still follow waits for
    /// them instead of finding zeros, should the agent die. Whoever closes it kills the program first.
    Keep {
        /// By which [`Event::Forget`] names it: the agent's number for it, as long as it has it.
        number: i32,
    },
    /// What is kept under this number need not be kept any more.
    Forget {
        /// See [`Event::Keep`].
        number: i32,
    },
    /// The restored program runs. With `background` pages are still on their way, and [`Event::PagesIn`] follows.
    Restored(Report),
    /// All pages are there.
    PagesIn(Report),
    /// It did not work. Dump: the containers go on unharmed. Restore: the containers are dead.
    Failed(Error),
}

/// How far a dump or restore is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: String,
    /// Pages moved so far.
    pub pages: u64,
    /// Pages in all, as far as known.
    pub total: u64,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Pages stored or brought back.
    pub pages: u64,
    /// Pages that were not stored because they are zero.
    pub zero_pages: u64,
    /// Pages that are in a parent image.
    pub parent_pages: u64,
    /// Bytes written or read.
    pub bytes: u64,
    /// How long the program stood still, microseconds.
    pub pause_us: u64,
    /// Phases and their durations, microseconds.
    pub phases: Vec<(String, u64)>,
    /// What was left out, in words.
    pub warnings: Vec<String>,
    /// CPU time that the restored processes had used when they were saved, nanoseconds.
    pub saved_cpu_ns: u64,
    /// Wall time since the saved processes were started, nanoseconds.
    pub saved_wall_ns: u64,
    /// Since when writes are tracked, if they are.
    pub tracked: Option<Tracked>,
    /// Inits whose pid in the sandbox's namespace has changed: (container ID, pid).
    pub moved: Vec<(String, i32)>,
}
