//! The programs that the kernel runs for a session: assembled here, for the session's points and for the kernel that runs.
#![forbid(unsafe_code)]

mod asm;
mod btf;
mod kernel;
mod probes;
mod program;
pub mod record;

pub use btf::{Btf, Kind};
pub use kernel::Kernel;
pub use probes::{Capture, ENTRY, Needs, Probe, SYSCALLS, Scope, SyscallEntry, assemble, survey};
pub use program::Maps;
