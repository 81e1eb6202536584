//! What a domain is made of.
#![forbid(unsafe_code)]

use super::outlet::Outlet;
use super::{Config, Domain, MAX_DOMAINS, Source, State, filters, logs};
use crate::cgroup::leaf_name;
use crate::container::lock;
use crate::loader::checkpoint::NAME_ANNOTATION;
use crate::loader::{ContainerParts, Loader};
use crate::oci::validate::validate;
use crate::worker::DomainMounts;
use airlock_wire::api::supervisor::{
    Capabilities, CgroupProfile, ConfigureRequest, ExecUser, Hook, Mount, ProfileName, Topic,
};
use airlock_wire::api::types::{GoferMountConf, Json, List};
use airlock_wire::error::{Error, Kind, Result};
use oci_spec::runtime::{Capability, Spec};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};

/// The smallest quota that the kernel takes is 1 ms in a period of [`super::run::PERIOD`].
const LEAST_CPU: f64 = 0.01;
/// More processors than any machine has.
const MOST_CPU: f64 = 65_536.0;

impl Loader {
    /// Gives a domain a spec with what its parent opened for it.
    ///
    /// # Errors
    /// [`Kind::InvalidState`] when it exists and has not stopped; an invalid name or spec.
    pub fn define_domain(&self, name: &str, spec: &str, bundle: String, parts: ContainerParts) -> Result<()> {
        let parsed: Spec =
            serde_json::from_str(spec).map_err(|e| Error::new(Kind::Serde, format!("spec: {e}")))?;
        validate(&parsed).map_err(|e| Error::invalid_argument(e.to_string()))?;
        if parts.mounts.is_empty() {
            return Err(Error::invalid_argument("no descriptor came for the root filesystem of the domain"));
        }
        let spec = serde_json::from_str(spec).map_err(|e| Error::new(Kind::Serde, format!("spec: {e}")))?;
        self.begin_domain(name, Some(Source { spec, bundle, parts }), Config::default()).map(drop)
    }

    /// Completes or changes the configuration of a domain; `fds` come for its mounts and topics.
    ///
    /// # Errors
    /// [`Kind::InvalidState`] when it runs; what is wrong with which field; mounts that cannot be made.
    pub fn configure_domain(&self, request: ConfigureRequest, mut fds: Vec<OwnedFd>) -> Result<()> {
        let name = request.domain.clone();
        check_name(&name)?;
        let configured = match self.supervisor().domain(&name) {
            Ok(domain) => {
                let inner = lock(&domain.inner);
                match inner.state() {
                    State::Configured => Some((inner.config.clone(), inner.source.is_some())),
                    State::Stopped => None,
                    state => return Err(domain.wrong("configured", state)),
                }
            }
            Err(_) => None,
        };
        let roots = request.mounts.iter().filter(|m| is_root(m)).count();
        match (&configured, roots) {
            (None, 0) => {
                return Err(Error::invalid_argument(format!(
                    "domain {name:?} was not defined and has no root: give one of the mounts the destination \"/\", or call \
                     Supervisor.Define first"
                )));
            }
            (Some(_), 1..) | (None, 2..) => {
                return Err(Error::invalid_argument(format!(
                    "domain {name:?} has more than one root (destination \"/\")"
                )));
            }
            _ => {}
        }
        let config = merge(configured.map(|(config, _)| config).unwrap_or_default(), &request)?;
        let topics = check_topics(&request.log_topics, fds.len(), request.mounts.len())?;
        let for_topics = fds.split_off(fds.len() - topics.len());
        let mounts = self.make_mounts(&request.mounts, &fds)?;
        drop(fds);
        let mut outlets = BTreeMap::new();
        for (topic, fd) in topics.into_iter().zip(for_topics) {
            let outlet = Outlet::new("log-topic", fd, logs::tell_loss());
            outlets.insert(
                topic,
                Arc::new(outlet.map_err(|e| e.context(format!("log topic {}", word(topic))))?),
            );
        }
        let domain = match roots {
            0 => {
                let domain = self.supervisor().domain(&name)?;
                let mut inner = lock(&domain.inner);
                if inner.state != State::Configured {
                    let state = inner.state;
                    return Err(domain.wrong("configured", state));
                }
                inner.config = config;
                drop(inner);
                domain
            }
            _ => self.begin_domain(&name, None, config)?,
        };
        let mut inner = lock(&domain.inner);
        inner.logs.extend(outlets);
        let source = inner.source.get_or_insert_with(plain);
        for (mount, fd) in request.mounts.iter().zip(mounts) {
            add(source, mount, fd)?;
        }
        Ok(())
    }

    /// Makes a domain that is configured, in place of one that has stopped.
    fn begin_domain(&self, name: &str, source: Option<Source>, config: Config) -> Result<Arc<Domain>> {
        check_name(name)?;
        let mut domains = lock(&self.supervisor().domains);
        if let Some(domain) = domains.get(name) {
            let inner = lock(&domain.inner);
            let state = inner.state();
            if state != State::Stopped || inner.container.is_some() {
                return Err(Error::invalid_state(format!(
                    "domain {name:?} exists: it is {}{}",
                    state.name(),
                    if state == State::Stopped {
                        ", and has to be cleared away with Supervisor.Stop"
                    } else {
                        ""
                    }
                )));
            }
        } else if domains.len() >= MAX_DOMAINS {
            // Those that are over are remembered for whoever asks, as long as there is room.
            let over = domains.iter().find(|(_, d)| lock(&d.inner).state == State::Stopped);
            let over = over.map(|(name, _)| name.clone());
            let over = over.ok_or_else(|| {
                Error::failure(format!("{MAX_DOMAINS} domains are as many as there may be"))
            })?;
            domains.remove(&over);
        }
        let inner = super::Inner { source, config, ..super::Inner::default() };
        let domain =
            Arc::new(Domain { name: name.to_owned(), inner: Mutex::new(inner), settled: Condvar::new() });
        domains.insert(name.to_owned(), domain.clone());
        Ok(domain)
    }

    /// Detached mounts for `mounts`, of what the parent has opened or else of what the parent domain has.
    pub(super) fn make_mounts(&self, mounts: &[Mount], donated: &[OwnedFd]) -> Result<Vec<OwnedFd>> {
        if mounts.is_empty() {
            return Ok(Vec::new());
        }
        let task = DomainMounts { mounts: Json(mounts.to_vec()), donated: !donated.is_empty() };
        let mut fds: Vec<_> = donated.iter().map(AsFd::as_fd).collect();
        let parent = match donated {
            // It waits for its own start when the sandbox is being restored, and has its mounts then, too.
            [] => Some(
                self.root()?
                    .init()
                    .filter(|init| init.status().is_none())
                    .ok_or_else(|| Error::invalid_state("the parent domain has no process"))?,
            ),
            _ => None,
        };
        fds.extend(parent.iter().map(|init| init.pidfd()));
        let ((), made, _) = self.work(task, &fds).map_err(super::as_failure)?;
        if made.len() != mounts.len() {
            return Err(Error::failure("the worker for mounts has lost some of them"));
        }
        Ok(made)
    }
}

fn check_name(name: &str) -> Result<()> {
    leaf_name(name).map(drop).map_err(|_| {
        Error::invalid_argument(format!(
            "domain {name:?}: a name has 1 to 247 of the characters A-Z a-z 0-9 _ + - ."
        ))
    })
}

fn is_root(mount: &Mount) -> bool {
    mount.destination() == "/"
}

fn word(topic: Topic) -> &'static str {
    match topic {
        Topic::None => "\"\"",
        Topic::Runtime => "runtime",
        Topic::RuntimeExtension => "runtime_extension",
    }
}

fn check_topics(topics: &List<Topic>, fds: usize, mounts: usize) -> Result<Vec<Topic>> {
    let distinct: BTreeSet<_> = topics.iter().copied().collect();
    if distinct.len() != topics.len() || distinct.contains(&Topic::None) {
        return Err(Error::invalid_argument("log_topics names a topic twice, or an empty one"));
    }
    let for_mounts = fds.checked_sub(topics.len());
    if for_mounts != Some(0) && for_mounts != Some(mounts) {
        return Err(Error::invalid_argument(format!(
            "{fds} descriptors came: want {} for log topics, and none or {mounts} for mounts",
            topics.len()
        )));
    }
    Ok(topics.to_vec())
}

/// Checks what a request says and puts it over what was configured before.
fn merge(mut config: Config, request: &ConfigureRequest) -> Result<Config> {
    for mount in request.mounts.iter() {
        let destination = mount.destination();
        if !destination.starts_with('/') || destination.contains('\0') {
            return Err(Error::invalid_argument(format!(
                "mount: its destination {destination:?} is not absolute"
            )));
        }
        if matches!(mount, Mount::Drive(drive) if drive.fs_type.is_empty()) {
            return Err(Error::invalid_argument(format!("mount {destination:?}: a drive needs fs_type")));
        }
    }
    if let Some(capabilities) = &request.capabilities {
        oci_capabilities(capabilities)?;
        config.capabilities = Some(capabilities.clone());
    }
    if let Some(profile) = filters::profile(&request.seccomp_filters)? {
        config.seccomp = Some(profile);
    }
    if let Some(profiles) = request.cgroup_profiles {
        check_profile("throttled", profiles.throttled)?;
        check_profile("unthrottled", profiles.unthrottled)?;
        config.profiles = Some(profiles);
    }
    if !request.start_profile.is_none() {
        config.start_profile = request.start_profile;
    }
    if config.start_profile != ProfileName::None && config.profiles.is_none() {
        return Err(Error::invalid_argument("start_profile: the domain has no cgroup_profiles"));
    }
    config.exec_user = request.exec_user.or(config.exec_user);
    for hook in request.additional_start_hooks.iter() {
        check_hook(hook, &config.hooks)?;
        config.hooks.push(hook.clone());
    }
    Ok(config)
}

fn check_profile(name: &str, profile: CgroupProfile) -> Result<()> {
    let cpu = profile.cpu_limit;
    if cpu != 0.0 && !(LEAST_CPU..=MOST_CPU).contains(&cpu) {
        return Err(Error::invalid_argument(format!(
            "cgroup_profiles.{name}.cpu_limit is {cpu}: want processors, from {LEAST_CPU} to {MOST_CPU}, or 0 for no limit"
        )));
    }
    if i64::try_from(profile.memory_limit_bytes).is_err() {
        return Err(Error::invalid_argument(format!(
            "cgroup_profiles.{name}.memory_limit_bytes is {}: more than the kernel counts",
            profile.memory_limit_bytes
        )));
    }
    Ok(())
}

fn check_hook(hook: &Hook, others: &[Hook]) -> Result<()> {
    let name = &hook.name;
    if name.is_empty() || others.iter().any(|other| other.name == *name) {
        return Err(Error::invalid_argument(format!(
            "start hook {name:?}: a name is needed, and a unique one"
        )));
    }
    if !hook.path.starts_with('/') {
        return Err(Error::invalid_argument(format!(
            "start hook {name:?}: its path {:?} is not absolute",
            hook.path
        )));
    }
    super::process::environment(hook.env.as_ref())
        .map(drop)
        .map_err(|e| e.context(format!("start hook {name:?}")))
}

/// The sets as the OCI spec writes them.
///
/// # Errors
/// A name that is no capability.
pub(super) fn oci_capabilities(sets: &Capabilities) -> Result<Value> {
    let set = |which: &str, names: &List<String>| -> Result<Value> {
        let full = names.iter().map(|name| {
            let upper = name.to_uppercase();
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            serde_json::from_value::<Capability>(json!(full)).map(|_| full).map_err(|_| {
                Error::invalid_argument(format!("capabilities.{which}: {name:?} is no capability"))
            })
        });
        Ok(json!(full.collect::<Result<Vec<_>>>()?))
    };
    Ok(json!({
        "ambient": set("ambient", &sets.ambient)?,
        "bounding": set("bounding", &sets.bounding)?,
        "effective": set("effective", &sets.effective)?,
        "inheritable": set("inheritable", &sets.inheritable)?,
        "permitted": set("permitted", &sets.permitted)?,
    }))
}

/// What a domain begins with that nobody has defined: its root comes as a mount.
fn plain() -> Source {
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["-"], "cwd": "/"},
        "root": {"path": "/"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                            "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    Source { spec, bundle: String::new(), parts: ContainerParts::default() }
}

/// Adds a mount that is ready to be attached: to the container's init it is a bind whose source the parent has opened.
fn add(source: &mut Source, mount: &Mount, fd: OwnedFd) -> Result<()> {
    if is_root(mount) {
        source.parts.mounts.insert(0, fd);
        return Ok(());
    }
    let spec = source.spec.as_object_mut();
    let mounts = spec.map(|spec| spec.entry("mounts")).map(|entry| entry.or_insert_with(|| json!([])));
    let mounts = mounts.and_then(Value::as_array_mut);
    let mounts = mounts.ok_or_else(|| Error::failure("the spec's mounts are no list"))?;
    mounts.push(json!({
        "destination": mount.destination(), "type": "bind", "source": mount.source(), "options": ["bind"],
    }));
    source
        .parts
        .confs
        .resize(source.parts.mounts.len(), GoferMountConf { lower: 1, ..GoferMountConf::default() });
    source.parts.confs.push(GoferMountConf { lower: 1, ..GoferMountConf::default() });
    source.parts.mounts.push(fd);
    Ok(())
}

impl Source {
    /// The spec of the domain's container: that of its definition with the idle init for a program, in a pid namespace of
    /// its own.
    pub(super) fn container_spec(&self, name: &str, config: &Config) -> Value {
        let mut spec = self.spec.clone();
        let own = &self.spec["process"];
        let mut process = json!({
            "user": user(own, config.exec_user),
            "args": [super::idle::NAME],
            "cwd": "/",
            "noNewPrivileges": true,
        });
        if let Some(score) = own.get("oomScoreAdj") {
            process["oomScoreAdj"] = score.clone();
        }
        spec["process"] = process;
        if !spec["linux"].is_object() {
            spec["linux"] = json!({});
        }
        if let Some(seccomp) = &config.seccomp {
            spec["linux"]["seccomp"] = seccomp.clone();
        }
        let namespaces = spec["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let mut kept: Vec<Value> = namespaces.into_iter().filter(|n| n["type"] != "pid").collect();
        kept.push(json!({"type": "pid"}));
        // By this it is found in an image.
        if spec["annotations"][NAME_ANNOTATION].is_null() {
            spec["annotations"][NAME_ANNOTATION] = json!(name);
        }
        if !kept.iter().any(|n| n["type"] == "mount") {
            kept.push(json!({"type": "mount"}));
        }
        spec["linux"]["namespaces"] = json!(kept);
        spec
    }
}

/// The `process.user` of a domain's processes.
pub(super) fn user(process: &Value, exec_user: Option<ExecUser>) -> Value {
    let mut user = match process.get("user") {
        Some(user) if user.is_object() => user.clone(),
        _ => json!({"uid": 0, "gid": 0}),
    };
    let Some(exec_user) = exec_user else { return user };
    if let Some(uid) = exec_user.uid {
        user["uid"] = json!(uid);
        // They were those of the other one.
        user["additionalGids"] = json!([]);
    }
    if let Some(gid) = exec_user.gid {
        user["gid"] = json!(gid);
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlock_wire::api::supervisor::{BindMount, CgroupProfiles, DriveMount};

    fn request() -> ConfigureRequest {
        ConfigureRequest { domain: "d".to_owned(), ..ConfigureRequest::default() }
    }

    fn why(change: impl FnOnce(&mut ConfigureRequest)) -> String {
        let mut request = request();
        change(&mut request);
        merge(Config::default(), &request).unwrap_err().message
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bind = |to: &str| Mount::Bind(BindMount { destination: to.to_owned(), ..BindMount::default() });
        assert!(why(|r| r.mounts.0.push(bind("x"))).contains("\"x\" is not absolute"));
        assert!(
            why(|r| r
                .mounts
                .0
                .push(Mount::Drive(DriveMount { destination: "/d".to_owned(), ..DriveMount::default() })))
            .contains("needs fs_type")
        );
        let sets = Capabilities { bounding: vec!["FLY".to_owned()].into(), ..Capabilities::default() };
        assert!(
            why(|r| r.capabilities = Some(sets)).contains("capabilities.bounding: \"FLY\" is no capability")
        );
        assert!(why(|r| r.start_profile = ProfileName::Throttled).contains("has no cgroup_profiles"));
        for cpu_limit in [-1.0, 0.001, f64::NAN, f64::INFINITY, 1e9] {
            let unthrottled = CgroupProfile { cpu_limit, memory_limit_bytes: 0 };
            let profiles = CgroupProfiles { unthrottled, ..CgroupProfiles::default() };
            assert!(
                why(|r| r.cgroup_profiles = Some(profiles)).contains("unthrottled.cpu_limit"),
                "{cpu_limit}"
            );
        }
        let throttled = CgroupProfile { cpu_limit: 0.0, memory_limit_bytes: u64::MAX };
        let profiles = CgroupProfiles { throttled, ..CgroupProfiles::default() };
        assert!(why(|r| r.cgroup_profiles = Some(profiles)).contains("throttled.memory_limit_bytes"));
        let hook =
            |name: &str, path: &str| Hook { name: name.to_owned(), path: path.to_owned(), ..Hook::default() };
        assert!(why(|r| r.additional_start_hooks.0.push(hook("", "/h"))).contains("name"));
        assert!(why(|r| r.additional_start_hooks.0.push(hook("h", "h"))).contains("not absolute"));
        assert!(
            why(|r| r.additional_start_hooks.0 = vec![hook("h", "/h"), hook("h", "/i")]).contains("unique")
        );
    }

    #[test]
    fn a_later_configuration_completes_an_earlier_one() {
        let profiles = Some(CgroupProfiles::default());
        let user = Some(ExecUser { uid: Some(5), gid: None });
        let first = ConfigureRequest { cgroup_profiles: profiles, exec_user: user, ..request() };
        let config = merge(Config::default(), &first).unwrap();
        let second = ConfigureRequest { start_profile: ProfileName::Unthrottled, ..request() };
        let config = merge(config, &second).unwrap();
        assert_eq!((config.profiles, config.exec_user), (profiles, user));
        assert_eq!(config.start_profile, ProfileName::Unthrottled);
    }

    #[test]
    fn descriptors_are_for_mounts_and_topics() {
        let topics = |list: &[Topic]| List(list.to_vec());
        let both = topics(&[Topic::Runtime, Topic::RuntimeExtension]);
        assert_eq!(check_topics(&both, 2, 3).unwrap().len(), 2);
        assert_eq!(check_topics(&both, 5, 3).unwrap().len(), 2);
        for fds in [0, 1, 3, 4, 6] {
            assert!(check_topics(&both, fds, 3).is_err(), "{fds}");
        }
        assert!(check_topics(&topics(&[Topic::Runtime, Topic::Runtime]), 2, 0).is_err());
        assert!(check_topics(&topics(&[Topic::None]), 1, 0).is_err());
    }

    #[test]
    fn a_domains_container_is_its_spec_with_an_idle_init() {
        let mut source = plain();
        source.spec["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
        source.spec["linux"]["namespaces"] = json!([{"type": "pid", "path": "/proc/1/ns/pid"}]);
        let config = Config { exec_user: Some(ExecUser { uid: Some(1), gid: None }), ..Config::default() };
        let spec = source.container_spec("d", &config);
        assert_eq!(spec["process"]["user"], json!({"uid": 1, "gid": 8, "additionalGids": []}));
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "pid"}, {"type": "mount"}]));
        let parsed: Spec = serde_json::from_value(spec).unwrap();
        validate(&parsed).unwrap();
    }
}
