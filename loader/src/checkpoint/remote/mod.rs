//! Traced threads, and system calls made inside them.
//!
//! Everything that a checkpoint must know and neither `/proc` nor a pidfd tells, and everything that a restore must
//! build, is done by the tasks themselves: they are stopped with ptrace(2) and made to run system calls. All logic is
//! ordinary Rust in this process; what is put into a task is 329 bytes that run a table of calls ([`arch::BLOB`]).
//!
//! | item | is |
//! | --- | --- |
//! | [`Tracee`] | a thread that this thread traces and that is stopped |
//! | [`Mem`] | a task's memory |
//! | [`Region`] | pages mapped into a task, through which tables of calls run |
//! | [`Batch`], [`Ran`] | such a table, and what came of it |
//! | [`fdpass`] | descriptors put into a task |
//! | [`task_list`] | all threads of a set of processes, stopped |
//!
//! ptrace belongs to the thread that attached, so a [`Tracee`] cannot be sent to another one ([`Mem`] can).
//!
//! When this process dies, the kernel detaches its tracees, and they go on with the registers they have at that moment.
//! Between calls those are their own. In the middle of a call or batch that runs through a region they are ours, but the
//! code there puts them back by itself when it comes to its end without being stopped. Only mapping and unmapping a
//! region (three single calls) are not covered.
//!
//! What it costs (6.18, a virtual machine with two processors): a stop 6 µs when tracer and tracee share a processor, and
//! 15 µs when an idle one has to be woken; so a single call 23 to 50 µs, a batch 22 to 45 µs and 0.25 µs for each of its
//! calls, mapping and unmapping a region 80 to 150 µs, stopping a thread and letting it go 16 to 30 µs (100 threads 2 ms),
//! a fork with its child stopped 170 µs.
//!
//! Errors: `NoSuchEntity` when the thread has ended (or was killed in the middle), `Unsupported` for what can never
//! work (32-bit code, a kernel without the interface), `InvalidState` for a zombie or one that is traced already.
#![forbid(unsafe_code)]

pub mod arch;
mod batch;
mod children;
pub mod fdpass;
mod inject;
mod mem;
mod procfs;
mod ran;
mod region;
mod seize;
mod stop;
pub mod task_list;
mod tracee;

pub use arch::Regs;
pub use batch::{Arg, Batch, CallId};
pub use children::Clone3;
pub use mem::Mem;
pub use procfs::use_procfs;
pub use ran::Ran;
pub use region::Region;
pub use seize::{Options, STOP_TIMEOUT, Seizing};
pub use tracee::{SeccompFilter, Tracee};

use airlock_wire::error::{Error, Kind};
use nix::errno::Errno;

/// An errno of ptrace or of a call about a task, with "it has ended" told apart.
fn errno(e: Errno) -> Error {
    match e {
        Errno::ESRCH | Errno::ECHILD => Error::new(Kind::NoSuchEntity, "it has ended"),
        Errno::EPERM | Errno::EACCES => Error::new(Kind::Permission, e.desc()),
        Errno::ENODEV | Errno::EIO | Errno::ENOSYS => Error::new(Kind::Unsupported, e.desc()),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests;
