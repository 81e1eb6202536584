//! Checkpoint and restore.
//!
//! A sandbox is saved and revived by an [`agent`]: a process that the spawner forks for this alone. See
//! `docs/CHECKPOINT.md` for what is supported and how images are laid out, and `docs/ARCHITECTURE.md` for the way of a
//! page and of a descriptor.

pub mod agent;
pub mod clocks;
pub mod content;
pub mod dump;
pub mod filesystems;
pub mod image;
pub mod inet;
pub mod inside;
pub mod ipc;
pub mod machine;
pub mod mountinfo;
pub mod order;
pub mod pages;
pub mod remote;
pub mod restore;
pub mod specs;
pub mod state;
pub mod sysctl;
mod watch;
