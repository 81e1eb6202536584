//! User-space stacks of other processes: unwound with the tables of the files that they have mapped, and named by the
//! symbols in them.
//!
//! | item | is |
//! | --- | --- |
//! | [`maps`] | a process' memory map |
//! | [`elf`] | unwind tables and function names of one file |
//! | [`Files`] | files that were looked at, by device and inode |
//! | [`Space`] | one address space: walks stacks |
//! | [`names`] | addresses in words |
//!
//! Runs in workers, which may open what a process has mapped. Everything that is read — memory, files, maps of
//! just-in-time compilers — is the container's own and hostile: it is bounded and checked, a stack has at most
//! [`MAX_FRAMES`] frames, and [`limit_effort`] ends a worker that is kept busy by tables that never come to an end.
#![forbid(unsafe_code)]

pub mod elf;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod maps;
pub mod names;
mod space;

pub use elf::Files;
pub use names::Names;
pub use space::{Frame, Space, Where};

use crate::sys::task;
use std::time::Duration;

/// Frames kept of one stack, the innermost.
pub const MAX_FRAMES: usize = 256;

/// Has the kernel end this process once it has used `more` of processor time. Unwind tables are programs of a kind
/// (DWARF expressions), and those of a container need not end.
pub fn limit_effort(more: Duration) {
    let seconds = more.as_secs().max(1);
    // A worker is young: what it has used so far does not count.
    if let Err(e) = task::set_rlimit(0, libc::RLIMIT_CPU, (seconds, seconds + 1)) {
        log::debug!("limiting a worker's processor time: {e}");
    }
}
