//! Workers: processes that the spawner forks for one job each, privileged as the spawner is and without the loader's
//! seccomp filter.
//!
//! The loader gave up what it does not need before it served its first call. Whatever takes more — entering a container's
//! namespaces, reading kernel stacks — is a [`Task`]: typed, sent with its descriptors to a fresh worker, answered once.
//! A task that goes on after its answer (a pump, a tracer) returns it with [`Done::then`] and ends when the loader closes
//! its end of the channel. A worker that dies takes nothing with it: the loader reads the end of the channel as a failure.
//!
//! One file a task. The checkpoint's agent ([`crate::checkpoint::agent`]) is the same idea with a longer conversation.
#![forbid(unsafe_code)]

mod cgroup;
mod connect;
mod cpu_profile;
mod domain_mounts;
mod filesystems;
mod kernel_stacks;
pub mod links;
mod mounts;
mod name_addresses;
pub(crate) mod procfs_dump;
mod read;
mod trace;
pub mod upper;
mod user_stacks;

pub use cgroup::CgroupWork;
pub use connect::{Connector, Dial};
pub use cpu_profile::{CpuProfile, Sampled};
pub use domain_mounts::DomainMounts;
pub use filesystems::{Captured, RestoreFilesystems, SaveFilesystems};
pub use kernel_stacks::KernelStacks;
pub use links::Links;
pub use mounts::{Filesystem, Mount, Unmount};
pub use name_addresses::NameAddresses;
pub use procfs_dump::{ProcfsDump, ProcfsDumped};
pub use read::ReadFiles;
pub use trace::{TraceRequest, TraceSession, Traced};
pub use upper::TarUpper;
pub use user_stacks::UserStacks;

use crate::checkpoint::agent::open_procfs;
use crate::procfs::ProcFs;
use crate::sys::process;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// A piece of work with its argument. Descriptors travel beside it, in the order that the task documents.
pub trait Task: Into<Job> {
    /// The answer.
    type Reply: Serialize + DeserializeOwned + Send + 'static;

    /// Does it, in the worker, which is single-threaded at the start and has an empty root; [`crate::checkpoint::inside`]
    /// enters a container.
    ///
    /// # Errors
    /// Whatever the caller shall hear.
    fn run(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<Done<Self::Reply>>;
}

/// The rest of a task that goes on after its answer.
pub type Then = Box<dyn FnOnce(&Worker) -> Result<()>>;

/// What a task came to.
pub struct Done<T> {
    /// The answer.
    pub reply: T,
    /// Descriptors that go with it.
    pub fds: Vec<OwnedFd>,
    /// What goes on afterwards, until the channel's other end is closed.
    pub then: Option<Then>,
}

impl<T> Done<T> {
    /// An answer, and the end.
    pub fn with(reply: T) -> Self {
        Self { reply, fds: Vec::new(), then: None }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Done<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Done").field("reply", &self.reply).field("goes_on", &self.then.is_some()).finish()
    }
}

/// The worker's own view of itself.
#[derive(Debug)]
pub struct Worker {
    /// To the loader; readable when the loader says more, at its end when the loader does not want the work any more.
    pub channel: UnixStream,
    /// procfs of the sandbox's pid namespace.
    pub procfs: ProcFs,
}

/// Makes [`Job`] of the tasks there are.
macro_rules! jobs {
    ($($task:ident),+ $(,)?) => {
        /// Every task there is.
        #[derive(Debug, Serialize, Deserialize)]
        pub enum Job {
            $(
                #[doc = concat!("See [`", stringify!($task), "`].")]
                $task($task),
            )+
        }

        $(impl From<$task> for Job {
            fn from(task: $task) -> Self {
                Self::$task(task)
            }
        })+

        impl Job {
            fn answer(self, worker: &Worker, fds: Vec<OwnedFd>) -> Result<()> {
                match self {
                    $(Self::$task(task) => answer(worker, task, fds),)+
                }
            }
        }
    };
}

jobs! {
    CgroupWork,
    Connector,
    CpuProfile,
    DomainMounts,
    KernelStacks,
    Links,
    Mount,
    NameAddresses,
    ProcfsDump,
    ReadFiles,
    RestoreFilesystems,
    SaveFilesystems,
    TarUpper,
    TraceSession,
    Unmount,
    UserStacks,
}

/// Takes the descriptors that came with a task.
///
/// # Errors
/// There are more or fewer of them.
fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Result<[OwnedFd; N]> {
    fds.try_into().map_err(|fds: Vec<_>| {
        Error::invalid_argument(format!("{} descriptors came for a worker that needs {N}", fds.len()))
    })
}

/// Entry point of a worker; returns only by ending the process.
pub fn main(channel: UnixStream) -> ! {
    process::set_name(c"airlock-worker");
    process::reset_signals();
    // Containers cannot look at it anyway; this keeps its memory out of cores as well.
    let _ = process::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    process::exit_now(i32::from(serve(channel).is_err()))
}

fn serve(channel: UnixStream) -> Result<()> {
    let (job, fds) = binary::recv::<Job>(&channel)?;
    let worker = match open_procfs() {
        Ok(root) => Worker { channel, procfs: ProcFs::new(root) },
        Err(e) => return binary::send(&channel, &Err::<(), Error>(e.context("a worker's procfs")), &[]),
    };
    job.answer(&worker, fds)
}

fn answer<T: Task>(worker: &Worker, task: T, fds: Vec<OwnedFd>) -> Result<()> {
    match task.run(worker, fds) {
        Ok(Done { reply, fds, then }) => {
            let refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            binary::send(&worker.channel, &Ok::<_, Error>(reply), &refs)?;
            drop(fds);
            then.map_or(Ok(()), |then| then(worker))
        }
        Err(e) => binary::send(&worker.channel, &Err::<T::Reply, _>(e), &[]),
    }
}
