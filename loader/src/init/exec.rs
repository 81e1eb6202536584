//! An additional process of a running container (`exec`).
#![forbid(unsafe_code)]

use super::fds::{self, OrderFds};
use super::identity::{self, Program};
use super::plan::{Answer, ExecOrder};
use super::{Outcome, mounts, paths};
use crate::seccomp;
use crate::sys::process;
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use oci_spec::runtime::Process;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

pub(super) fn run(channel: UnixStream, order: ExecOrder, fds: Vec<OwnedFd>) -> Outcome {
    match prepare(&order, fds) {
        Ok(mut ready) => {
            let (channel, passed) = fds::place(channel, &mut ready.exec, ready.stdio, ready.pass)?;
            let outcome = (|| {
                if let Some(size) = ready.console_size {
                    super::take_terminal(ready.tty_after_place.as_fd(), size)?;
                }
                identity::apply_affinity(ready.affinity.final_cpus.as_ref())?;
                identity::apply_limits(&ready.process)?;
                let program = Program::resolve(&ready.process, ready.exec.take())?;
                let listener = super::install_with_listener(&mut ready.seccomp, &ready.process)?;
                Ok((program, listener))
            })();
            let (program, listener) = match outcome {
                Ok(ready) => ready,
                Err(e) => return Err((channel, e)),
            };
            let answer = Answer::Ready {
                pid: nix::unistd::getpid().as_raw(),
                console: ready.master.is_some(),
                listener: listener.is_some(),
                devpts: false,
                newest_mount: 0,
                origin: Vec::new(),
            };
            let out: Vec<_> = [&ready.master, &listener].into_iter().flatten().map(AsFd::as_fd).collect();
            if let Err(e) = binary::send(&channel, &answer, &out) {
                return Err((channel, e));
            }
            drop((ready.master, listener));
            let filter = ready.seccomp;
            let error = program.execute(&passed, || super::install(filter.as_ref()));
            Err((channel, error))
        }
        Err(e) => Err((channel, e)),
    }
}

struct Affinity {
    final_cpus: Option<String>,
}

struct Prepared {
    process: Process,
    exec: Option<OwnedFd>,
    stdio: Vec<OwnedFd>,
    pass: Vec<(i32, OwnedFd)>,
    /// Set when the process has a terminal: rows and columns, 0 for "as it is".
    console_size: Option<(u16, u16)>,
    tty_after_place: OwnedFd,
    master: Option<OwnedFd>,
    affinity: Affinity,
    seccomp: Option<seccomp::Program>,
}

fn prepare(order: &ExecOrder, fds: Vec<OwnedFd>) -> Result<Prepared> {
    let process: Process =
        serde_json::from_str(&order.process).map_err(|e| Error::invalid_argument(format!("process: {e}")))?;
    let mut fds = OrderFds::take(&order.fds, fds)?;
    nix::unistd::setsid()?;
    let affinity = process.exec_cpu_affinity().as_ref();
    identity::apply_affinity(affinity.and_then(|a| a.initial().as_ref()))?;
    let final_cpus = affinity.and_then(|a| a.cpu_affinity_final().clone());
    fds::join_cgroups(&fds.cgroup_join)?;
    let init = fds.init.take().ok_or_else(|| Error::failure("no init to enter"))?;
    process::setns(init.as_fd(), order.namespaces)
        .map_err(|e| Error::from(e).context("entering the container's namespaces (has it just stopped?)"))?;
    drop(init);
    if process.oom_score_adj().is_some() {
        super::write_oom_score(&paths::ProcHandle::open()?, process.oom_score_adj())?;
    }
    super::apply_personality(order.personality)?;
    let terminal = process.terminal().unwrap_or(false);
    let mut master = None;
    let mut stdio = fds.stdio;
    if terminal {
        let tty = match (fds.tty, fds.devpts) {
            (Some(tty), _) => tty,
            (None, Some(devpts)) => {
                let (m, peer) = mounts::open_console(devpts.as_fd())?;
                master = Some(m);
                peer
            }
            (None, None) => {
                return Err(Error::invalid_argument(
                    "a terminal is wanted, but the container has no devpts mount and no terminal was donated",
                ));
            }
        };
        stdio = vec![tty.try_clone()?, tty.try_clone()?, tty];
    }
    let size = process.console_size();
    let console_size = terminal.then(|| size.map_or((0, 0), |s| (s.height() as u16, s.width() as u16)));
    let tty_after_place = match stdio.first() {
        Some(fd) => fd.try_clone()?,
        None => {
            let null = null_device()?;
            stdio = vec![null.try_clone()?, null.try_clone()?, null.try_clone()?];
            null
        }
    };
    let seccomp = order
        .seccomp
        .as_deref()
        .map(seccomp::Program::from_bytes)
        .transpose()
        .map_err(|e| Error::failure(format!("seccomp program: {e}")))?;
    Ok(Prepared {
        process,
        exec: fds.exec,
        stdio,
        pass: fds.pass,
        console_size,
        tty_after_place,
        master,
        affinity: Affinity { final_cpus },
        seccomp,
    })
}

/// The container's `/dev/null`, for a process without standard streams; nothing else that may be in its place.
fn null_device() -> Result<OwnedFd> {
    let open_as = |flags: OFlag| -> Result<OwnedFd> {
        let found = open("/dev/null", flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let found =
            found.map_err(|e| Error::from(e).context("no standard streams were given: opening /dev/null"))?;
        let status = fstat(&found)?;
        let null = paths::type_of(&status) == SFlag::S_IFCHR && status.st_rdev == makedev(1, 3);
        if null {
            Ok(found)
        } else {
            Err(Error::invalid_state("no standard streams were given: /dev/null is none"))
        }
    };
    // What is something else is not even opened; nor is what comes in its place kept.
    open_as(OFlag::O_PATH)?;
    open_as(OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
}
