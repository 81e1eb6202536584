//! The sandbox: boots from one donated message, makes containers, keeps them, and ends as its root container ended.
//!
//! See `docs/ARCHITECTURE.md` for the processes. Only [`sys`] contains unsafe code.

pub mod boot;
pub mod cgroup;
pub mod checkpoint;
pub mod container;
pub mod forward;
pub mod hook;
pub mod init;
pub mod loader;
pub mod machine;
pub mod netlink;
pub mod oci;
pub mod procfs;
pub mod profile;
pub mod seccomp;
pub mod spawner;
pub mod stacks;
pub mod supervisor;
pub mod symbols;
pub mod sys;
pub mod trace;
pub mod worker;
