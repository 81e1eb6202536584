//! Additional processes in running containers.
#![forbid(unsafe_code)]

use super::Loader;
use crate::cgroup::Cgroup;
use crate::container::{Container, Process, State, lock};
use crate::init::personality_of;
use crate::init::plan::{Answer, ExecOrder, FdLayout, Order};
use crate::seccomp;
use crate::spawner::{Placement, Role};
use airlock_wire::binary;
use airlock_wire::error::{Error, Kind, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Ended processes whose status nobody fetched are kept up to this number for each container.
const MAX_UNCLAIMED: usize = 1024;

/// A process to be executed in a container.
#[derive(Debug)]
pub struct ExecRequest {
    /// OCI `process` object as JSON text.
    pub process: String,
    /// stdin, stdout, stderr; empty with a terminal.
    pub stdio: Vec<OwnedFd>,
    /// Console replica; without one a terminal comes from the container's devpts.
    pub tty: Option<OwnedFd>,
    /// Passed descriptors by number in the container.
    pub pass: Vec<(i32, OwnedFd)>,
    /// Program to execute.
    pub exec: Option<OwnedFd>,
    /// Where it runs instead of the container's own cgroup.
    pub cgroup: Option<Cgroup>,
}

/// A process that was executed.
#[derive(Debug)]
pub struct Executed {
    /// The process.
    pub process: Arc<Process>,
    /// pty master of its terminal.
    pub console: Option<OwnedFd>,
    /// Seccomp user-notification listener, when the container's profile asks one. The process waits at the first call
    /// that it decides on, which may be before the program is executed: hand it on at once. Dropped, those calls fail
    /// with `ENOSYS`.
    pub listener: Option<OwnedFd>,
}

impl Loader {
    /// Executes a process in container `cid`, which may be created or running. Returns when it is executed; with a
    /// seccomp listener, when it is about to be (what fails after that ends the process with exit status 255).
    ///
    /// # Errors
    /// `container "X" not found` / `has stopped`; the process' own failure, in the words of
    /// [`crate::init::identity::Program::resolve`].
    pub fn exec(&self, cid: &str, request: ExecRequest) -> Result<Executed> {
        self.work.wait_open();
        let container = self.container(cid)?;
        let (state, init) = {
            let life = lock(&container.life);
            (life.state, life.init.clone())
        };
        let init = match (state, init) {
            (state, Some(init)) if state == State::Created || state.runs() => init,
            (State::Stopped, _) => {
                return Err(Error::invalid_state(format!("container {cid:?} has stopped")));
            }
            _ => return Err(Error::invalid_state(format!("container {cid:?} not started"))),
        };
        let cgroup = request.cgroup.as_ref().or(container.cgroup.get());
        let placement = Placement {
            new_pid_namespace: false,
            pid_namespace_of: (!self.config.shared_pid_namespace).then(|| init.pidfd()),
            into_cgroup: cgroup.and_then(Cgroup::v2_dir),
            role: Role::Container,
        };
        let seccomp = self.seccomp_program(&container)?;
        let mut fds = cgroup.map(Cgroup::join_fd).transpose()?.unwrap_or_default();
        let (process, channel) = self.spawner_fork(&container, placement, false)?;
        let devpts = container.devpts.get().map(OwnedFd::try_clone).transpose()?;
        let layout = FdLayout {
            cgroup_join: fds.len() as u16,
            stdio: request.stdio.len() as u16,
            tty: u16::from(request.tty.is_some()),
            devpts: u16::from(devpts.is_some()),
            exec: u16::from(request.exec.is_some()),
            pass: request.pass.iter().map(|(n, _)| *n).collect(),
            init: 1,
            ..FdLayout::default()
        };
        fds.extend(request.stdio);
        fds.extend(request.tty);
        fds.extend(devpts);
        fds.extend(request.exec);
        fds.extend(request.pass.into_iter().map(|(_, fd)| fd));
        let personality = container.spec.get().and_then(personality_of);
        // A restored container has clocks of its own.
        let restored = matches!(container.state(), State::Restored | State::RestoringStarted);
        let clocks = if restored { libc::CLONE_NEWTIME } else { 0 };
        let order = Order::Exec(ExecOrder {
            namespaces: container.namespaces.get().copied().unwrap_or(libc::CLONE_NEWNS) | clocks,
            process: request.process,
            seccomp,
            personality,
            fds: layout,
        });
        let outcome = (|| {
            let mut refs: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            refs.push(init.pidfd());
            binary::send(&channel, &order, &refs)?;
            let (pid, has_console, has_listener, out) = match binary::recv::<Answer>(&channel)? {
                (Answer::Ready { pid, console, listener, .. }, out) => (pid, console, listener, out),
                (Answer::Failed(e), _) => return Err(e),
            };
            process.set_ns_pid(pid);
            if !has_listener {
                wait_for_exec(&channel)?;
            }
            let mut life = lock(&container.life);
            forget_oldest_unclaimed(&mut life.execs);
            life.execs.insert(pid, process.clone());
            let mut out = out.into_iter();
            let console = if has_console { out.next() } else { None };
            Ok((console, if has_listener { out.next() } else { None }))
        })();
        match outcome {
            Ok((console, listener)) => {
                container.executed.fetch_add(1, Ordering::Relaxed);
                Ok(Executed { process, console, listener })
            }
            Err(e) => {
                let _ = process.signal(libc::SIGKILL);
                Err(if e.kind == Kind::Disconnected {
                    Error::invalid_state(format!("container {cid:?} has stopped"))
                } else {
                    e
                })
            }
        }
    }

    /// The container's seccomp program for exec'd processes, compiled at the first need.
    fn seccomp_program(&self, container: &Container) -> Result<Option<Vec<u8>>> {
        if let Some(program) = container.seccomp.get() {
            return Ok(program.clone());
        }
        let profile = container.spec.get().and_then(|s| s.linux().as_ref()?.seccomp().as_ref());
        let program = profile
            .map(|p| seccomp::compile(p, &seccomp::Options::default()))
            .transpose()
            .map_err(|e| Error::invalid_argument(e.to_string()))?
            .map(|p| p.to_bytes());
        Ok(container.seccomp.get_or_init(|| program).clone())
    }
}

/// Waits until the process behind `channel` has executed its program, or says why not.
fn wait_for_exec(channel: &UnixStream) -> Result<()> {
    match binary::recv::<Answer>(channel) {
        // Closed on exec.
        Err(e) if e.kind == Kind::Disconnected => Ok(()),
        Err(e) => Err(e),
        Ok((Answer::Failed(e), _)) => Err(e),
        Ok((Answer::Ready { .. }, _)) => Err(Error::failure("the new process answered out of turn")),
    }
}

fn forget_oldest_unclaimed(execs: &mut std::collections::HashMap<i32, Arc<Process>>) {
    if execs.len() < MAX_UNCLAIMED {
        return;
    }
    if let Some(pid) = execs.iter().filter(|(_, p)| p.status().is_some()).map(|(pid, _)| *pid).min() {
        execs.remove(&pid);
    }
}
