//! `Define`: a domain from a bundle.

#![forbid(unsafe_code)]

use super::Supervisor;
use crate::cgroups::Manager;
use crate::container::beside;
use crate::gofer::{self, PodMounts};
use crate::podspec::{self, Bundle};
use crate::sandbox::FdList;
use crate::state::{DomainFiles, State, StateDir, check_id};
use airlock_wire::api::boot::ContainerFds;
use airlock_wire::api::supervisor as api;
use airlock_wire::api::types::SpecJson;
use airlock_wire::error::{Error, Result};

/// How a domain is defined.
#[derive(Debug, Clone, Default)]
pub struct DefineOptions {
    /// Overlay over root filesystem and mounts, in gVisor's form (`root:memory`).
    pub overlay: Option<String>,
    /// `cgroupsPath` is in systemd's form.
    pub systemd_cgroup: bool,
}

impl Supervisor<'_> {
    /// Gives a domain the root filesystem, mounts, limits and users of a bundle, whose program is not run. Its cgroup is the
    /// one that the bundle names, or beside the sandbox's, called `<sandbox>.<domain>`; it goes when the sandbox is deleted.
    ///
    /// # Errors
    /// `invalid_state`: the domain exists; a name that cannot be part of a cgroup's; the bundle is malformed or asks for what
    /// cannot be done. Nothing is left behind then.
    pub fn define(&self, domain: &str, bundle: &Bundle, options: &DefineOptions) -> Result<()> {
        let name = format!("{}.{domain}", self.sandbox);
        check_id(&name).map_err(|e| e.context(format!("domain {domain:?}")))?;
        airlock_loader::oci::validate::validate(&bundle.spec)?;
        airlock_loader::oci::validate::validate_host(&bundle.spec)?;
        let mapped = podspec::with_joined_mappings(bundle)?;
        let bundle = mapped.as_ref().unwrap_or(bundle);
        let _lock = self.states.lock(&self.sandbox)?;
        let mut state = self.running()?;
        let known = self.domains()?.into_iter().find(|d| d.domain == domain);
        if let Some(known) = known.filter(|d| d.state != "stopped") {
            return Err(Error::invalid_state(format!(
                "domain {domain:?} exists already, and is {}: choose another name, or stop it",
                known.state
            )));
        }
        // What an earlier one of this name has left.
        remove(self.states, &mut state, domain)?;
        let place = bundle.spec.linux().as_ref().and_then(|l| l.cgroups_path().clone());
        let place = match place.filter(|p| !p.as_os_str().is_empty()) {
            Some(place) => place,
            None => beside_sandbox(self.states, &self.sandbox, &name, options.systemd_cgroup)?.into(),
        };
        let cgroup = Manager::plan_path(&name, Some(&place), options.systemd_cgroup)
            .map_err(|e| e.context(format!("domain {domain:?}")))?;
        // Recorded first, so that it is found whatever happens.
        state.domains.insert(domain.to_owned(), DomainFiles { cgroup, filestores: Vec::new() });
        self.states.save(&state)?;
        self.donate(domain, bundle, options, &mut state).inspect_err(|_| {
            if let Err(e) = remove(self.states, &mut state, domain) {
                log::warn!("undo the definition of domain {domain}: {e}");
            }
        })
    }

    fn donate(
        &self,
        domain: &str,
        bundle: &Bundle,
        options: &DefineOptions,
        state: &mut State,
    ) -> Result<()> {
        let mut fds = FdList::default();
        let root = state.cgroup.procs()?;
        let join = podspec::open_pod_namespaces(&bundle.spec, state.loader.pid, &root)?;
        let mut donated = ContainerFds {
            join: join.into_iter().map(|(kind, fd)| (kind, fds.push(fd))).collect(),
            ..ContainerFds::default()
        };
        let files = state.domains.entry(domain.to_owned()).or_default();
        donated.cgroup = files.cgroup.make(&bundle.spec, &mut fds, false)?;
        let mounts = gofer::open(bundle, &options.overlay, Some(PodMounts::default()), &mut fds)?;
        files.filestores = mounts.cleanup;
        self.states.save(state)?;
        donated.gofer = mounts.gofer;
        donated.devices = mounts.devices;
        donated.filestores = mounts.filestores;
        let args = api::DefineArgs {
            domain: domain.to_owned(),
            spec: SpecJson(Some(bundle.text.clone())),
            bundle: bundle.path.to_string_lossy().into_owned(),
            fds: donated,
            gofer_mount_confs: mounts.confs,
        };
        self.call::<api::Define>(&args, &fds.as_fds()).map(drop)
    }
}

/// Where a domain's cgroup goes that is named nowhere.
fn beside_sandbox(states: &StateDir, sandbox: &str, name: &str, systemd: bool) -> Result<String> {
    let root = Bundle::from_text(states.dir(sandbox), states.config(sandbox)?)?;
    let place = root.spec.linux().as_ref().and_then(|l| l.cgroups_path().clone()).unwrap_or_default();
    Ok(match place.to_str() {
        None | Some("") if systemd => format!(":airlock:{name}"),
        None | Some("") => format!("/{name}"),
        Some(place) => beside(place, name, systemd),
    })
}

/// Removes what the host keeps for a domain that does not run.
fn remove(states: &StateDir, state: &mut State, domain: &str) -> Result<()> {
    let Some(files) = state.domains.remove(domain) else { return Ok(()) };
    files.remove()?;
    states.save(state)
}
