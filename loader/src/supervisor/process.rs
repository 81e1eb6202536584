//! Named processes of domains.
#![forbid(unsafe_code)]

use super::logs::{self, Source};
use super::outlet::Outlet;
use super::{Config, Domain, Named, State, Wait, define, run};
use crate::cgroup::files::{Dir, Files};
use crate::container::{Container, Process, lock};
use crate::loader::{ExecRequest as Request, Loader};
use crate::sys::process;
use airlock_wire::api::supervisor::{EventData, ExecRequest, Format, KillRequest, TerminateRequest, Topic};
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The longest name of a process, in bytes.
const MAX_NAME: usize = 255;
/// Descriptors that a process can get besides its standard streams.
const MAX_EXTRA: usize = 500;

/// What a process gets besides its program.
struct Streams {
    stdio: Vec<OwnedFd>,
    pass: Vec<(i32, OwnedFd)>,
    /// Number of the descriptor for messages.
    messages: Option<i32>,
    logs: Option<(Arc<Outlet>, Vec<Source>)>,
}

impl Loader {
    /// Executes a named process; `fds` come for its streams, then as extra files. Returns once its program runs.
    ///
    /// # Errors
    /// Unknown domain; it does not run, or has a process of that name; the program cannot be executed.
    pub fn exec_in_domain(&self, request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<()> {
        let domain = self.supervisor().domain(&request.domain)?;
        check(request)?;
        let (container, config, outlet) = reserve(&domain, request)?;
        let executed = self.execute(&domain, &container, &config, outlet, request, fds);
        let mut inner = lock(&domain.inner);
        inner.executing -= 1;
        domain.settled.notify_all();
        let process = match executed {
            Ok(process) => process,
            Err(e) => {
                inner.processes.by_name.remove(&request.name);
                // Not the domain or process is missing: the program.
                return Err(super::as_failure(e));
            }
        };
        match process.status() {
            // Its end came before its name was known.
            Some(status) => {
                inner.processes.end(&request.name, process.ns_pid(), status);
                container.forget_process(process.ns_pid(), &process);
                self.supervisor()
                    .hub
                    .tell(&domain.name, || EventData::termination(&domain.name, &request.name, status));
            }
            None => {
                inner.processes.by_pid.insert(process.pid, request.name.clone());
                inner.processes.by_name.insert(request.name.clone(), Named::Running(process));
            }
        }
        Ok(())
    }

    fn execute(
        &self,
        domain: &Domain,
        container: &Container,
        config: &Config,
        outlet: Option<Arc<Outlet>>,
        request: &ExecRequest,
        fds: Vec<OwnedFd>,
    ) -> Result<Arc<Process>> {
        let init = container.init().ok_or_else(|| domain.wrong("used", State::Stopped))?;
        let null = self.null_of(init.pid)?;
        let streams = streams(request, fds, null, outlet)?;
        let mut env = environment(request.env.as_ref())?;
        if let Some(number) = streams.messages {
            env.retain(|entry| !entry.starts_with(&format!("{}=", logs::MESSAGE_VARIABLE)));
            env.push(format!("{}={number}", logs::MESSAGE_VARIABLE));
        }
        let process = process_json(&lock(&domain.inner).base, config, request, env)?;
        let exec = Request {
            process: process.to_string(),
            stdio: streams.stdio,
            tty: None,
            pass: streams.pass,
            exec: None,
            cgroup: None,
        };
        // Before the program runs, so that no thread is missing for what it writes.
        if let Some((outlet, sources)) = streams.logs {
            logs::pump(sources, outlet)?;
        }
        Ok(self.exec(&container.cid, exec)?.process)
    }

    /// Sends SIGTERM to the process group of a named process. One that has ended needs none.
    ///
    /// # Errors
    /// Unknown domain or process.
    pub fn terminate_in_domain(&self, request: &TerminateRequest) -> Result<()> {
        let domain = self.supervisor().domain(&request.domain)?;
        match named(&domain, &request.name)? {
            Named::Running(process) => signal_group(&process, libc::SIGTERM),
            Named::Starting | Named::Ended(..) => Ok(()),
        }
    }

    /// Sends SIGKILL to the process group of a named process and waits for its end.
    ///
    /// # Errors
    /// Unknown domain or process; the deadline is not in the future, or passes first.
    pub fn kill_in_domain(&self, request: &KillRequest, wait: Wait<'_>) -> Result<()> {
        let domain = self.supervisor().domain(&request.domain)?;
        named(&domain, &request.name)?;
        let until = run::until(request.deadline)?;
        let process = match named(&domain, &request.name)? {
            Named::Running(process) => process,
            Named::Ended(..) => return Ok(()),
            Named::Starting => {
                return Err(Error::invalid_state(format!("process {:?} is being executed", request.name)));
            }
        };
        signal_group(&process, libc::SIGKILL)?;
        release(&domain, &process);
        while process.status().is_none() {
            if !wait(process.ended(), until)? {
                return Err(Error::failure(format!(
                    "the deadline has passed, and process {:?} of domain {:?} has not ended",
                    request.name, request.domain
                )));
            }
        }
        Ok(())
    }
}

/// Takes the name; from then on the domain is not frozen until [`super::Inner::executing`] is 0 again.
fn reserve(domain: &Domain, request: &ExecRequest) -> Result<(Arc<Container>, Config, Option<Arc<Outlet>>)> {
    let mut inner = lock(&domain.inner);
    let state = inner.state();
    let container = inner.container.clone().filter(|_| state.runs());
    let container = container.ok_or_else(|| domain.wrong("used", state))?;
    if inner.processes.by_name.contains_key(&request.name) {
        return Err(Error::invalid_state(format!(
            "domain {:?} has a process {:?} already: names are used once",
            request.domain, request.name
        )));
    }
    let outlet = match request.logging.managed.topic {
        Topic::None => None,
        topic => Some(inner.logs.get(&topic).cloned().ok_or_else(|| {
            Error::invalid_argument(format!(
                "log_config: no descriptor was given for the topic with Supervisor.Configure (log_topics): {}",
                json!(topic)
            ))
        })?),
    };
    inner.processes.by_name.insert(request.name.clone(), Named::Starting);
    inner.executing += 1;
    Ok((container, inner.config.clone(), outlet))
}

fn named(domain: &Domain, name: &str) -> Result<Named> {
    let found = lock(&domain.inner).processes.by_name.get(name).cloned();
    found.ok_or_else(|| Error::no_such_entity(format!("domain {:?} has no process {name:?}", domain.name)))
}

fn check(request: &ExecRequest) -> Result<()> {
    let name = &request.name;
    if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
        return Err(Error::invalid_argument(format!(
            "process {name:?}: a name has 1 to {MAX_NAME} bytes, none of them a control character"
        )));
    }
    if request.path.is_empty() {
        return Err(Error::invalid_argument(format!("process {name:?}: its path is empty")));
    }
    Ok(())
}

/// Sends a signal to the group that a process leads. One that is gone needs none.
pub(super) fn signal_group(process: &Process, signo: i32) -> Result<()> {
    if process.status().is_some() {
        return Ok(());
    }
    match process::pidfd_send_signal_group(process.pidfd(), signo) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(Errno::EINVAL) => {
            // Before Linux 6.9. The number is that of the group as long as its leader was not reaped.
            match Signal::try_from(signo).and_then(|signal| killpg(Pid::from_raw(process.pid), signal)) {
                Ok(()) | Err(Errno::ESRCH) => Ok(()),
                Err(e) => Err(e.into()),
            }
        }
        Err(e) => Err(e.into()),
    }
}

/// In a frozen cgroup of v1 a killed process dies only when it is thawed: takes it out, to where nothing is frozen.
fn release(domain: &Domain, process: &Process) {
    let (state, container) = {
        let inner = lock(&domain.inner);
        (inner.state, inner.container.clone())
    };
    let container = container.filter(|_| matches!(state, State::Frozen | State::Freezing));
    let Some(cgroup) = container.as_ref().and_then(|c| c.cgroup.get()) else { return };
    if cgroup.leaf_is_v2() {
        return;
    }
    let above = openat(cgroup.leaf(), "..", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let moved = above.and_then(|above| {
        Dir(std::os::fd::AsFd::as_fd(&above)).write("cgroup.procs", &process.pid.to_string())
    });
    if let Err(e) = moved {
        log::warn!("process {} of domain {:?} dies when that is thawed: {e}", process.pid, domain.name);
    }
}

/// `NAME=VALUE` for each variable.
///
/// # Errors
/// A name that is empty or has `=` in it; a NUL.
pub(super) fn environment(variables: Option<&BTreeMap<String, String>>) -> Result<Vec<String>> {
    let each = variables.into_iter().flatten().map(|(name, value)| {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid_argument(format!("environment: {name:?} cannot be set")));
        }
        Ok(format!("{name}={value}"))
    });
    each.collect()
}

/// Sorts a call's descriptors, and makes pipes for what is logged.
fn streams(
    request: &ExecRequest,
    fds: Vec<OwnedFd>,
    null: OwnedFd,
    outlet: Option<Arc<Outlet>>,
) -> Result<Streams> {
    let count = fds.len();
    let mut fds = fds.into_iter();
    let mut given = |wanted: bool| match wanted {
        false => Ok(None),
        true => fds.next().map(Some).ok_or_else(|| {
            Error::invalid_argument(format!("{count} descriptors came, too few for stdout and stderr"))
        }),
    };
    let mut out = [given(request.stdout)?, given(request.stderr)?];
    let mut pass: Vec<(i32, OwnedFd)> = (3..).zip(fds).collect();
    if pass.len() > MAX_EXTRA {
        return Err(Error::invalid_argument(format!("more than {MAX_EXTRA} extra files")));
    }
    let formats = &request.logging.managed.formats;
    let (mut messages, mut logged) = (None, None);
    if let Some(outlet) = outlet {
        let mut sources = Vec::new();
        if formats.is_empty() || formats.contains(&Format::Line) {
            for stream in out.iter_mut().filter(|stream| stream.is_none()) {
                let (reader, writer) = std::io::pipe()?;
                sources.push(Source::Lines(reader));
                *stream = Some(writer.into());
            }
        }
        if formats.contains(&Format::Message) {
            let (reader, writer) = std::io::pipe()?;
            let number = 3 + pass.len() as i32;
            sources.push(Source::Messages(reader));
            pass.push((number, writer.into()));
            messages = Some(number);
        }
        logged = (!sources.is_empty()).then_some((outlet, sources));
    }
    let [stdout, stderr] = out;
    let or_null = |fd: Option<OwnedFd>| fd.map_or_else(|| null.try_clone(), Ok);
    let stdio = vec![null.try_clone()?, or_null(stdout)?, or_null(stderr)?];
    Ok(Streams { stdio, pass, messages, logs: logged })
}

/// The OCI `process` of a named process: what the domain's spec says of its processes, with what was configured.
fn process_json(base: &Value, config: &Config, request: &ExecRequest, env: Vec<String>) -> Result<Value> {
    let inside = |path: &str| if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let path = inside(&request.path);
    let mut args = vec![path];
    args.extend(request.args.iter().cloned());
    let mut process = json!({
        "terminal": false,
        "user": define::user(base, config.exec_user),
        "args": args,
        "env": env,
        "cwd": inside(request.cwd.as_deref().unwrap_or("/")),
    });
    for kept in ["capabilities", "rlimits", "noNewPrivileges", "oomScoreAdj", "scheduler", "ioPriority"] {
        if let Some(value) = base.get(kept) {
            process[kept] = value.clone();
        }
    }
    if let Some(capabilities) = &config.capabilities {
        process["capabilities"] = define::oci_capabilities(capabilities)?;
    }
    let parsed = serde_json::from_value(process.clone())
        .map_err(|e| Error::invalid_argument(format!("process {:?}: {e}", request.name)))?;
    crate::oci::validate::validate_process(&parsed)
        .map_err(|e| e.context(format!("process {:?}", request.name)))?;
    Ok(process)
}
