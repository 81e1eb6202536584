//! What runs in a new container process before it executes its program.
//!
//! The process was forked by the spawner (single-threaded, so ordinary Rust is sound here) and talks to the loader
//! over its channel only. It is fully privileged until [`identity::Program::execute`].
#![forbid(unsafe_code)]

mod create;
mod exec;
pub mod fds;
pub mod hooks;
pub mod identity;
pub mod mounts;
pub mod paths;
pub mod plan;
pub mod rootfs;

use crate::sys::process;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use plan::{Answer, Order};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

/// Entry point of a new process; ends by exec or exit.
pub fn main(channel: UnixStream, mount_namespace: BorrowedFd<'_>) -> ! {
    process::set_name(c"airlock-init");
    process::reset_signals();
    // Nobody in the container may look at this process before it has become the container's own.
    let _ = process::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    let error = match binary::recv::<Order>(&channel) {
        Ok((Order::Create(order), fds)) => create::run(channel, mount_namespace, order, fds),
        Ok((Order::Exec(order), fds)) => exec::run(channel, order, fds),
        Ok((Order::Start, _)) => Err((channel, Error::failure("a new process got Start before Create"))),
        // The loader closed the channel: the container is not wanted any more.
        Err(_) => process::exit_now(1),
    };
    let Err((channel, error)) = error;
    let _ = binary::send(&channel, &Answer::Failed(error), &[]);
    // 255 is what an exec that failed is seen to end with.
    process::exit_now(255)
}

/// Setting up ends in exec; what comes back is the channel and the reason for failure.
type Outcome = std::result::Result<std::convert::Infallible, (UnixStream, Error)>;

fn write_oom_score(procfs: &paths::ProcHandle, value: Option<i32>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    procfs
        .write("self/oom_score_adj", value.to_string().as_bytes())
        .map_err(|e| e.context(format!("process.oomScoreAdj {value} (lowering it needs CAP_SYS_RESOURCE)")))
}
