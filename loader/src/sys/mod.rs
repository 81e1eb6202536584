//! System calls. The only modules of this crate with unsafe code; everything above speaks `OwnedFd` and `BorrowedFd`.

pub mod backtrace;
pub mod batch;
pub mod bpf;
pub mod files;
pub mod heap;
pub mod idmap;
pub mod ipc;
pub mod loopdev;
pub mod mapping;
pub mod misc;
pub mod mount;
pub mod net;
pub mod pagemap;
pub mod perf;
pub mod process;
pub mod ptmx;
pub mod ptrace;
pub mod random;
pub mod seccomp;
pub mod tap;
pub mod task;
pub mod ticks;
pub mod tracing;
pub mod uffd;
pub mod unix;
pub mod xattr;
