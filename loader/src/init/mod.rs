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

use crate::seccomp;
use crate::sys::{misc, process};
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{LinuxPersonalityDomain, Process, Spec};
use plan::{Answer, Order};
use std::os::fd::{BorrowedFd, OwnedFd};
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

/// Installs a filter that notifies a listener, and takes it away; any other filter stays, to be installed later.
///
/// The listener has to be with its owner before the first call that asks it, so the filter has to be there before
/// the loader hears that the process is ready.
fn install_with_listener(
    filter: &mut Option<seccomp::Program>,
    process: &Process,
) -> Result<Option<OwnedFd>> {
    let Some(notifying) = filter.take_if(|filter| filter.needs_listener) else { return Ok(None) };
    if process.no_new_privileges().unwrap_or(false) {
        process::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)?;
    }
    notifying.install().map_err(|e| Error::from(e).context("loading seccomp filter"))
}

fn install(filter: Option<&seccomp::Program>) -> Result<()> {
    match filter {
        Some(filter) => {
            filter.install().map(drop).map_err(|e| Error::from(e).context("loading seccomp filter"))
        }
        None => Ok(()),
    }
}

/// Makes `tty` the controlling terminal, of that many rows and columns (0: as it is).
fn take_terminal(tty: BorrowedFd<'_>, (rows, columns): (u16, u16)) -> Result<()> {
    misc::set_controlling_terminal(tty).map_err(|e| {
        let hint = match e {
            nix::errno::Errno::ENOTTY => " (what was donated is no terminal)",
            nix::errno::Errno::EPERM => " (another session has it)",
            _ => "",
        };
        Error::from(e).context(format!("taking the controlling terminal{hint}"))
    })?;
    if (rows, columns) != (0, 0) {
        misc::set_window_size(tty, rows, columns)
            .map_err(|e| Error::from(e).context("process.consoleSize"))?;
    }
    Ok(())
}

/// `linux.personality` as personality(2) takes it.
pub(crate) fn personality_of(spec: &Spec) -> Option<u64> {
    let personality = spec.linux().as_ref()?.personality().as_ref()?;
    Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

fn apply_personality(domain: Option<u64>) -> Result<()> {
    domain.map_or(Ok(()), |domain| {
        misc::personality(domain).map_err(|e| Error::from(e).context("linux.personality"))
    })
}
