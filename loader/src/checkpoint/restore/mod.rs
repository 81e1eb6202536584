//! Reviving a sandbox: the order of the steps.
#![forbid(unsafe_code)]

pub mod context;
pub mod mm;
pub mod net;
pub mod spaces;
pub mod stubs;
pub mod thread;
pub mod task;
pub mod tree;
pub mod source;
pub mod plan;

use super::agent::Link;
use super::order::RestoreOrder;
use crate::procfs::ProcFs;
use airlock_wire::error::{Error, Result};
use std::os::fd::OwnedFd;

/// Carries a [`RestoreOrder`] out.
///
/// # Errors
/// What went wrong; the containers are dead.
pub fn run(_link: &Link, _procfs: ProcFs, _order: RestoreOrder, _fds: Vec<OwnedFd>) -> Result<()> {
    Err(Error::unsupported("restore"))
}
