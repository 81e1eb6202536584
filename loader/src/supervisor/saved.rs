//! Domains in an image of their sandbox, and what becomes of them when it is restored.
//!
//! Named processes are saved as children of their domain's init. After a restore the spawner is not their parent, so nobody
//! tells the loader of their ends: their pidfds do.
#![forbid(unsafe_code)]

use super::metrics::Baseline;
use super::{Config, Domain, Inner, MAX_DOMAINS, MAX_ENDED, Named, State, Supervisor};
use crate::container::{Container, Process, lock};
use crate::loader::Loader;
use crate::procfs::parse_nspid;
use crate::sys::process;
use airlock_wire::api::supervisor::ProcessInfo;
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What is seen of an end whose status the kernel does not tell (before Linux 6.15): exit status 255.
const UNKNOWN: u32 = 255 << 8;

/// A domain as an image has it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Saved {
    domain: String,
    frozen: bool,
    thawed: bool,
    config: Config,
    /// `process` of its spec.
    base: serde_json::Value,
    processes: Vec<ProcessInfo>,
}

fn parse(text: &str) -> Result<Vec<Saved>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let bad = |why: String| Error::new(Kind::Serde, format!("the image's domains of the supervisor: {why}"));
    let saved: Vec<Saved> = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let names: BTreeSet<_> = saved.iter().map(|d| d.domain.as_str()).collect();
    if names.len() != saved.len() || names.len() > MAX_DOMAINS {
        return Err(bad("a name is there twice, or there are too many".to_owned()));
    }
    for domain in &saved {
        let names: BTreeSet<_> = domain.processes.iter().map(|p| p.name.as_str()).collect();
        let pids: Vec<_> = domain.processes.iter().filter(|p| p.status.is_none()).map(|p| p.pid).collect();
        let distinct: BTreeSet<_> = pids.iter().collect();
        if names.len() != domain.processes.len()
            || distinct.len() != pids.len()
            || pids.iter().any(|pid| *pid <= 1)
        {
            return Err(bad(format!("processes of {:?} cannot be told apart", domain.domain)));
        }
    }
    Ok(saved)
}

/// Checks what an image says of domains, before anything is restored.
///
/// # Errors
/// It cannot be read, or contradicts itself.
pub(crate) fn check(text: &str) -> Result<()> {
    parse(text).map(drop)
}

impl Supervisor {
    /// What an image has to know of domains, as text; empty without one that runs.
    ///
    /// # Errors
    /// A domain is just being started, frozen, thawed or stopped.
    pub(crate) fn snapshot(&self) -> Result<String> {
        let domains: Vec<_> = lock(&self.domains).values().cloned().collect();
        let mut saved = Vec::new();
        for domain in domains {
            let mut info = domain.info();
            let inner = lock(&domain.inner);
            match inner.state() {
                State::Started | State::Thawed | State::Frozen => {}
                State::Configured | State::Stopped => continue,
                state => {
                    return Err(Error::invalid_state(format!(
                        "domain {:?} is {}: wait for that",
                        domain.name,
                        state.name()
                    )));
                }
            }
            info.processes.retain(|p| p.pid > 0);
            saved.push(Saved {
                domain: domain.name.clone(),
                frozen: inner.state() == State::Frozen,
                thawed: inner.state() == State::Thawed,
                config: inner.config.clone(),
                base: inner.base.clone(),
                processes: info.processes,
            });
        }
        if saved.is_empty() {
            return Ok(String::new());
        }
        serde_json::to_string(&saved).map_err(|e| Error::failure(format!("the domains: {e}")))
    }

    /// Pids in the sandbox of the named processes of container `cid` that run.
    pub(crate) fn named_pids(&self, cid: &str) -> BTreeSet<i32> {
        self.domain(cid)
            .map(|domain| lock(&domain.inner).processes.by_pid.keys().copied().collect())
            .unwrap_or_default()
    }
}

impl Loader {
    /// Makes the domains of an image known whose containers have been restored, and follows their named processes. A domain
    /// whose container has another ID than the domain's name now is an ordinary container.
    ///
    /// # Errors
    /// No descriptor or thread is left to follow them.
    pub(crate) fn revive_domains(self: &Arc<Self>, text: &str) -> Result<()> {
        let mut followed = Vec::new();
        for saved in parse(text)? {
            let Ok(container) = self.container(&saved.domain) else {
                log::warn!("domain {:?} of the image has no container of that ID here", saved.domain);
                continue;
            };
            let (name, frozen) = (saved.domain.clone(), saved.frozen);
            followed.extend(self.revive(saved, &container)?);
            if frozen {
                self.pause_container(&name, true)?;
            }
        }
        if followed.is_empty() {
            return Ok(());
        }
        let loader = self.clone();
        let thread = std::thread::Builder::new().name("restored".to_owned()).stack_size(128 << 10);
        thread
            .spawn(move || loader.follow(followed))
            .map(drop)
            .map_err(|e| Error::from(e).context("starting a thread to follow restored processes"))
    }

    fn revive(&self, saved: Saved, container: &Arc<Container>) -> Result<Vec<(String, Arc<Process>)>> {
        let domain = {
            let mut domains = lock(&self.supervisor().domains);
            let new = || {
                Arc::new(Domain {
                    name: saved.domain.clone(),
                    inner: Mutex::new(Inner::default()),
                    settled: Condvar::new(),
                })
            };
            domains.entry(saved.domain.clone()).or_insert_with(new).clone()
        };
        let mut pids = BTreeMap::new();
        for pid in self.pids_of(container)? {
            let nspid = self.procfs().status_field(pid, "NSpid").ok().flatten().unwrap_or_default();
            if let Some(own) = parse_nspid(&nspid).last() {
                pids.insert(*own, pid);
            }
        }
        let cycle = Baseline::begin(self, container);
        let mut followed = Vec::new();
        let mut inner = lock(&domain.inner);
        inner.state = match (saved.frozen, saved.thawed) {
            (true, _) => State::Frozen,
            (_, true) => State::Thawed,
            _ => State::Started,
        };
        // One that was configured here, to be restored, keeps what was said of it here.
        if inner.container.is_none() {
            inner.config = saved.config;
            inner.base = saved.base;
        }
        inner.container = Some(container.clone());
        inner.cycle = cycle;
        for ProcessInfo { name, pid, status } in saved.processes.into_iter().take(MAX_ENDED) {
            let alive = pids.get(&pid).filter(|_| status.is_none()).copied();
            let Some(here) = alive else {
                inner.processes.end(&name, pid, status.unwrap_or(UNKNOWN));
                continue;
            };
            let process = Arc::new(Process::new(here, process::pidfd_open(here)?)?);
            process.set_ns_pid(pid);
            inner.processes.by_pid.insert(here, name.clone());
            inner.processes.by_name.insert(name, Named::Running(process.clone()));
            followed.push((domain.name.clone(), process));
        }
        Ok(followed)
    }

    /// Waits for the ends of restored processes and tells them.
    fn follow(&self, mut followed: Vec<(String, Arc<Process>)>) {
        while !followed.is_empty() {
            let mut fds: Vec<_> =
                followed.iter().map(|(_, process)| PollFd::new(process.pidfd(), PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return log::error!("following restored processes: {e}"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            let mut ready = ready.into_iter();
            let mut early = false;
            followed.retain(|(cid, process)| {
                if ready.next() != Some(true) {
                    return true;
                }
                let status = match process::exit_status(process.pidfd()) {
                    Ok(status) => status,
                    // It has ended and is not reaped: its status is there in a moment.
                    Err(Errno::ENODATA) => {
                        early = true;
                        return true;
                    }
                    Err(e) => {
                        log::warn!(
                            "process {} of domain {cid:?} has ended; how is not known: {e}",
                            process.ns_pid()
                        );
                        UNKNOWN
                    }
                };
                process.end(status);
                self.supervisor().process_ended(cid, process, status);
                false
            });
            if early {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_itself_is_refused() {
        let domain = |processes: &str| format!(r#"[{{"domain":"d","processes":[{processes}]}}]"#);
        check("").unwrap();
        check(&domain(r#"{"name":"a","pid":2},{"name":"b","pid":3,"status":0},{"name":"c","pid":3}"#))
            .unwrap();
        for bad in [
            "{}".to_owned(),
            r#"[{"domain":"d"},{"domain":"d"}]"#.to_owned(),
            domain(r#"{"name":"a","pid":2},{"name":"a","pid":3}"#),
            domain(r#"{"name":"a","pid":2},{"name":"b","pid":2}"#),
            domain(r#"{"name":"a","pid":1}"#),
            domain(r#"{"name":"a","pid":-5}"#),
            r#"[{"config":{"profiles":5}}]"#.to_owned(),
        ] {
            assert_eq!(check(&bad).unwrap_err().kind, Kind::Serde, "{bad}");
        }
    }
}
