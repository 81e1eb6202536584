//! What a configuration asks of the parent side: where the container belongs, which namespaces it joins, its id maps.

#![forbid(unsafe_code)]

use crate::sandbox::IdMaps;
use crate::state::check_id;
use crate::sys;
use airlock_loader::oci::compat;
use airlock_loader::oci::namespaces::joined;
use airlock_wire::api::boot::Namespace;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, Spec};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A `config.json` larger than this is refused, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A network that a command line asks for (runsc's `--network`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The namespace that the configuration names by path, else a new one.
    Sandbox,
    /// The namespace that the configuration names by path, else the caller's.
    Host,
    /// A new namespace, with a loopback interface only.
    None,
}

/// A bundle: its directory and its configuration.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The directory, absolute.
    pub path: PathBuf,
    /// The configuration's text, which the sandbox reads again.
    pub text: String,
    /// The configuration.
    pub spec: Spec,
    /// The root filesystem's directory, absolute.
    pub rootfs: PathBuf,
}

impl Bundle {
    /// Reads `config.json` of the bundle at `path`. The configuration is not validated yet.
    pub fn load(path: &Path) -> Result<Self> {
        let path = std::fs::canonicalize(path)
            .map_err(|e| Error::from(e).context(format!("bundle {}", path.display())))?;
        let text = read_bounded(&path.join("config.json"))?;
        Self::from_text(path, text)
    }

    /// A bundle whose configuration the caller has at hand. `path` must be absolute; relative paths in the
    /// configuration start there.
    pub fn from_text(path: PathBuf, text: String) -> Result<Self> {
        let (text, spec) = compat::parse_spec(text).map_err(|e| {
            Error::invalid_argument(format!(
                "{}: not an OCI configuration: {e}",
                path.join("config.json").display()
            ))
        })?;
        let rootfs = spec.root().as_ref().map(|root| path.join(root.path())).unwrap_or_default();
        Ok(Self { path, text, spec, rootfs })
    }

    /// The bundle with the network that a command line asks for.
    ///
    /// # Errors
    /// The configuration is none any more, which does not happen.
    pub fn with_network(self, network: Option<Network>) -> Result<Self> {
        let Some(network) = network else { return Ok(self) };
        let bad = |e: serde_json::Error| Error::failure(format!("change the configuration's network: {e}"));
        // As a tree, so that nothing is lost that our types do not know.
        let mut config: serde_json::Value = serde_json::from_str(&self.text).map_err(bad)?;
        let pointer = config.pointer_mut("/linux/namespaces").and_then(serde_json::Value::as_array_mut);
        // Without a list a configuration has no mount namespace, and is refused later.
        let Some(namespaces) = pointer else { return Ok(self) };
        let is_network = |n: &serde_json::Value| n["type"] == "network";
        let by_path = |n: &serde_json::Value| n["path"].as_str().is_some_and(|path| !path.is_empty());
        match network {
            Network::None => namespaces.retain(|n| !is_network(n)),
            Network::Host => namespaces.retain(|n| !is_network(n) || by_path(n)),
            Network::Sandbox => {}
        }
        if network != Network::Host && !namespaces.iter().any(is_network) {
            namespaces.push(serde_json::json!({"type": "network"}));
        }
        Self::from_text(self.path, serde_json::to_string(&config).map_err(bad)?)
    }

    /// The bundle with a new network namespace, whatever it names.
    pub(crate) fn with_new_network(&self) -> Result<Self> {
        self.clone().with_network(Some(Network::None))
    }

    /// True if the container's process wants a terminal.
    pub fn terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false)
    }
}

/// Reads a regular file of at most 16 MiB. Never blocks on a FIFO or device that a bundle may have in its place.
pub fn read_bounded(path: &Path) -> Result<String> {
    let text = |e: std::io::Error| Error::from(e).context(format!("read {}", path.display()));
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(text)?;
    let metadata = file.metadata().map_err(text)?;
    if !metadata.is_file() {
        return Err(Error::invalid_argument(format!("{} is not a regular file", path.display())));
    }
    if metadata.len() > MAX_CONFIG {
        return Err(Error::invalid_argument(format!(
            "{} has {} bytes: at most {MAX_CONFIG} are allowed",
            path.display(),
            metadata.len()
        )));
    }
    let mut bytes = String::with_capacity(metadata.len() as usize + 1);
    file.take(MAX_CONFIG).read_to_string(&mut bytes).map_err(text)?;
    Ok(bytes)
}

/// Where a container belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// It is the root container of a new sandbox.
    Sandbox,
    /// It joins the sandbox of that id.
    Pod(String),
}

/// The annotations through which containerd's and CRI-O's Kubernetes plugins say that a container belongs to a pod:
/// the container's type, and the id of the pod's sandbox.
const POD_ANNOTATIONS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// Reads a container's place from its annotations. No annotations: a sandbox of its own.
pub fn placement(spec: &Spec, id: &str) -> Result<Placement> {
    let none = HashMap::new();
    let annotations = spec.annotations().as_ref().unwrap_or(&none);
    for (kind, sandbox) in POD_ANNOTATIONS {
        match annotations.get(kind).map(String::as_str) {
            None => {}
            Some("sandbox") => return Ok(Placement::Sandbox),
            Some("container") => {
                let sandbox_id = annotations.get(sandbox).ok_or_else(|| {
                    Error::invalid_argument(format!(
                        "annotation {kind} is \"container\" but {sandbox} is missing"
                    ))
                })?;
                check_id(sandbox_id).map_err(|e| e.context(format!("annotation {sandbox}")))?;
                if sandbox_id == id {
                    return Err(Error::invalid_argument(format!(
                        "annotation {sandbox} names the container itself: a container's sandbox is another one"
                    )));
                }
                return Ok(Placement::Pod(sandbox_id.clone()));
            }
            Some(other) => {
                return Err(Error::invalid_argument(format!(
                    "annotation {kind} is {other:?}: use \"sandbox\" or \"container\""
                )));
            }
        }
    }
    Ok(Placement::Sandbox)
}

/// True if podman made the configuration. Its pods may be mere groups without a sandbox (`--infra=false`): their
/// containers name the pod, which is no container, and share nothing.
pub fn sandbox_is_optional(spec: &Spec) -> bool {
    let manager = spec.annotations().as_ref().and_then(|a| a.get("io.container.manager"));
    manager.is_some_and(|m| m == "libpod")
}

/// Our name, the `CLONE_NEW*` flag and the file in `/proc/<pid>/ns` of a namespace kind.
fn kind_of(kind: LinuxNamespaceType) -> (Namespace, i32, &'static str) {
    match kind {
        LinuxNamespaceType::User => (Namespace::User, libc::CLONE_NEWUSER, "user"),
        LinuxNamespaceType::Mount => (Namespace::Mount, libc::CLONE_NEWNS, "mnt"),
        LinuxNamespaceType::Pid => (Namespace::Pid, libc::CLONE_NEWPID, "pid"),
        LinuxNamespaceType::Network => (Namespace::Network, libc::CLONE_NEWNET, "net"),
        LinuxNamespaceType::Ipc => (Namespace::Ipc, libc::CLONE_NEWIPC, "ipc"),
        LinuxNamespaceType::Uts => (Namespace::Uts, libc::CLONE_NEWUTS, "uts"),
        LinuxNamespaceType::Cgroup => (Namespace::Cgroup, libc::CLONE_NEWCGROUP, "cgroup"),
        // CLONE_NEWTIME; the libc crate lacks it for some targets.
        LinuxNamespaceType::Time => (Namespace::Time, 0x80, "time"),
    }
}

fn namespaces(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux().as_ref().and_then(|l| l.namespaces().as_deref()).unwrap_or_default()
}

/// Opens the namespaces that the configuration gives by path, and makes sure that each is of the kind it is said to be.
/// The user namespace comes first: joining the others may need its rights.
pub fn open_namespaces(spec: &Spec) -> Result<Vec<(Namespace, OwnedFd)>> {
    let mut opened = Vec::new();
    for namespace in namespaces(spec) {
        let Some(path) = joined(namespace) else { continue };
        let (name, flag, _) = kind_of(namespace.typ());
        opened
            .push((name, open_namespace(path, flag).map_err(|e| e.context(format!("{name:?} namespace")))?));
    }
    opened.sort_by_key(|(name, _)| *name != Namespace::User);
    Ok(opened)
}

fn open_namespace(path: &Path, flag: i32) -> Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| Error::from(e).context(format!("open {}", path.display())))?;
    match sys::namespace_type(file.as_fd()) {
        Ok(kind) if kind == flag => Ok(file.into()),
        Ok(_) => Err(Error::invalid_argument(format!("{} is a namespace of another kind", path.display()))),
        Err(_) => Err(Error::invalid_argument(format!("{} is not a namespace", path.display()))),
    }
}

/// Opens the namespaces that a container of a pod joins beyond what it shares with its sandbox anyway: those of
/// `/proc/<loader>/ns` are left out. So is the pid namespace, of the loader or of the root container, whose processes are
/// `root`: that it is given by path says to the sandbox that the container shares the pod's.
///
/// # Errors
/// As [`open_namespaces`]; a pid namespace that is not the pod's.
pub fn open_pod_namespaces(spec: &Spec, loader: i32, root: &[i32]) -> Result<Vec<(Namespace, OwnedFd)>> {
    let mut opened = open_namespaces(spec)?;
    let mut kept = Vec::new();
    for (name, fd) in opened.drain(..) {
        let file = match name {
            Namespace::Network => "net",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
            Namespace::User => "user",
            Namespace::Pid => "pid",
            Namespace::Mount | Namespace::Cgroup | Namespace::Time => {
                kept.push((name, fd));
                continue;
            }
        };
        let theirs = std::fs::metadata(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)));
        let is_of = |pid: i32| {
            let ours = std::fs::metadata(format!("/proc/{pid}/ns/{file}"));
            matches!((&ours, &theirs), (Ok(a), Ok(b)) if a.ino() == b.ino() && a.dev() == b.dev())
        };
        match name {
            _ if is_of(loader) => {}
            Namespace::Pid if root.iter().any(|pid| is_of(*pid)) => {}
            Namespace::Pid => {
                return Err(Error::unsupported(format!(
                    "linux.namespaces: the pid namespace by path is not the pod's (/proc/{loader}/ns/pid): a container of \
                     a pod shares that one, or has one of its own"
                )));
            }
            _ => kept.push((name, fd)),
        }
    }
    Ok(kept)
}

/// True if the configuration has no pid namespace at all: the container shares the caller's.
pub fn host_pid(spec: &Spec) -> bool {
    !namespaces(spec).iter().any(|n| n.typ() == LinuxNamespaceType::Pid)
}

/// For a user namespace that is joined, the mappings that it has: the container's files are opened for them. `None` when
/// none is joined, or the configuration says them.
///
/// # Errors
/// They are not to be had: a path tells them only if it is `/proc/<pid>/ns/user`.
pub fn with_joined_mappings(bundle: &Bundle) -> Result<Option<Bundle>> {
    let user = namespaces(&bundle.spec).iter().find(|n| n.typ() == LinuxNamespaceType::User);
    let (Some(path), Some(linux)) = (user.and_then(joined), bundle.spec.linux()) else { return Ok(None) };
    if linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()) {
        return Ok(None);
    }
    let process = path.parent().and_then(Path::parent).filter(|_| path.ends_with("ns/user"));
    let process = process.filter(|p| p.parent() == Some(Path::new("/proc"))).ok_or_else(|| {
        Error::invalid_argument(format!(
            "linux.uidMappings, linux.gidMappings: say which mappings the user namespace {} has, which \
             linux.namespaces joins",
            path.display()
        ))
    })?;
    let mut bundle = bundle.clone();
    if let Some(linux) = bundle.spec.linux_mut() {
        linux.set_uid_mappings(Some(read_map(&process.join("uid_map"))?));
        linux.set_gid_mappings(Some(read_map(&process.join("gid_map"))?));
    }
    Ok(Some(bundle))
}

/// Reads a file of the form of `/proc/<pid>/uid_map`.
fn read_map(path: &Path) -> Result<Vec<LinuxIdMapping>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::from(e).context(format!("read {}", path.display())))?;
    let bad = || Error::failure(format!("{} is not to be understood: {text:?}", path.display()));
    let line = |line: &str| {
        let numbers: Option<Vec<u32>> = line.split_ascii_whitespace().map(|n| n.parse().ok()).collect();
        let [inside, outside, size] = numbers?[..] else { return None };
        LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(size).build().ok()
    };
    text.lines().map(|l| line(l).ok_or_else(bad)).collect()
}

/// The id maps of the user namespace that the configuration asks to make; `None` when it asks for none.
pub fn id_maps(spec: &Spec) -> Result<Option<IdMaps>> {
    if !namespaces(spec).iter().any(|n| n.typ() == LinuxNamespaceType::User && joined(n).is_none()) {
        return Ok(None);
    }
    let linux = spec.linux().as_ref();
    let uids = map_text("uidMappings", linux.and_then(|l| l.uid_mappings().as_deref()))?;
    let gids = map_text("gidMappings", linux.and_then(|l| l.gid_mappings().as_deref()))?;
    Ok(Some(IdMaps { uids, gids }))
}

fn map_text(name: &str, mappings: Option<&[LinuxIdMapping]>) -> Result<String> {
    let mappings = mappings.unwrap_or_default();
    if mappings.is_empty() {
        return Err(Error::invalid_argument(format!(
            "linux.{name}: a new user namespace needs at least one mapping"
        )));
    }
    Ok(mappings.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlock_wire::error::Kind;

    fn spec(extra: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2","root":{{"path":"rootfs"}}{extra}}}"#))
            .unwrap()
    }

    #[test]
    fn annotations_place_a_container() {
        assert_eq!(placement(&spec(""), "c").unwrap(), Placement::Sandbox);
        for (kind, sandbox) in POD_ANNOTATIONS {
            let with =
                |k: &str, s: &str| spec(&format!(r#","annotations":{{"{kind}":"{k}","{sandbox}":"{s}"}}"#));
            assert_eq!(placement(&with("sandbox", "pod"), "pod").unwrap(), Placement::Sandbox);
            assert_eq!(placement(&with("container", "pod"), "c").unwrap(), Placement::Pod("pod".into()));
            for (k, s, id) in [("container", "../x", "c"), ("container", "c", "c"), ("other", "pod", "c")] {
                assert_eq!(placement(&with(k, s), id).unwrap_err().kind, Kind::InvalidArgument, "{k} {s}");
            }
            let alone = spec(&format!(r#","annotations":{{"{kind}":"container"}}"#));
            assert!(placement(&alone, "c").unwrap_err().message.contains(sandbox));
        }
    }

    #[test]
    fn only_podman_has_pods_without_a_sandbox() {
        assert!(sandbox_is_optional(&spec(r#","annotations":{"io.container.manager":"libpod"}"#)));
        assert!(!sandbox_is_optional(&spec(r#","annotations":{"io.container.manager":"cri-o"}"#)));
        assert!(!sandbox_is_optional(&spec("")));
    }

    #[test]
    fn namespaces_are_checked() {
        let with = |kind: &str, path: &str| {
            spec(&format!(r#","linux":{{"namespaces":[{{"type":"{kind}","path":"{path}"}}]}}"#))
        };
        let joined = open_namespaces(&with("network", "/proc/self/ns/net")).unwrap();
        assert_eq!(joined[0].0, Namespace::Network);
        assert!(
            open_namespaces(&with("network", "/proc/self/ns/ipc"))
                .unwrap_err()
                .message
                .contains("another kind")
        );
        assert!(
            open_namespaces(&with("network", "/dev/null")).unwrap_err().message.contains("not a namespace")
        );
        assert_eq!(open_namespaces(&with("ipc", "/nonexistent")).unwrap_err().kind, Kind::NoSuchEntity);
        assert!(open_namespaces(&with("ipc", "")).unwrap().is_empty());
        assert!(host_pid(&with("ipc", "")));
        assert!(!host_pid(&with("pid", "")));
    }

    #[test]
    fn a_pod_shares_what_its_sandbox_has() {
        let me = std::process::id() as i32;
        let text = format!(
            r#","linux":{{"namespaces":[{{"type":"network","path":"/proc/{me}/ns/net"}},{{"type":"pid","path":"/proc/{me}/ns/pid"}}]}}"#
        );
        assert!(open_pod_namespaces(&spec(&text), me, &[]).unwrap().is_empty());
        let mut init = std::process::Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sleep", "1000"])
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", init.id());
        let other = loop {
            let pid = std::fs::read_to_string(&children).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse::<i32>() {
                break pid;
            }
        };
        let text = format!(r#","linux":{{"namespaces":[{{"type":"pid","path":"/proc/{other}/ns/pid"}}]}}"#);
        assert!(open_pod_namespaces(&spec(&text), me, &[me, other]).unwrap().is_empty());
        let error = open_pod_namespaces(&spec(&text), me, &[me]).unwrap_err();
        assert!(error.message.contains("not the pod's"), "{error}");
        init.kill().unwrap();
        init.wait().unwrap();
    }

    #[test]
    fn id_maps_become_text() {
        let text = r#","linux":{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":100000,"size":65536}],"gidMappings":[{"containerID":0,"hostID":7,"size":1},{"containerID":1,"hostID":9,"size":2}]}"#;
        let maps = id_maps(&spec(text)).unwrap().unwrap();
        assert_eq!(maps, IdMaps { uids: "0 100000 65536\n".into(), gids: "0 7 1\n1 9 2\n".into() });
        assert!(id_maps(&spec(r#","linux":{"namespaces":[{"type":"user"}]}"#)).is_err());
        assert_eq!(id_maps(&spec("")).unwrap(), None);
    }

    #[test]
    fn mappings_of_a_joined_user_namespace_are_found_or_asked_for() {
        let bundle = |path: &str, more: &str| {
            let text = format!(
                r#"{{"ociVersion":"1.0.2","linux":{{"namespaces":[{{"type":"user","path":"{path}"}}]{more}}}}}"#
            );
            Bundle::from_text("/".into(), text).unwrap()
        };
        let found = with_joined_mappings(&bundle("/proc/self/ns/user", "")).unwrap().unwrap();
        let lines: Vec<String> = std::fs::read_to_string("/proc/self/uid_map")
            .unwrap()
            .lines()
            .map(|l| l.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let linux = found.spec.linux().as_ref().unwrap();
        let ours: Vec<String> = linux
            .uid_mappings()
            .iter()
            .flatten()
            .map(|m| format!("{} {} {}", m.container_id(), m.host_id(), m.size()))
            .collect();
        assert_eq!(ours, lines);
        let said = r#","uidMappings":[{"containerID":0,"hostID":1,"size":1}]"#;
        assert!(with_joined_mappings(&bundle("/proc/self/ns/user", said)).unwrap().is_none());
        assert!(with_joined_mappings(&bundle("", "")).unwrap().is_none());
        let error = with_joined_mappings(&bundle("/run/userns/x", "")).unwrap_err();
        assert!(error.message.contains("linux.uidMappings"), "{error}");
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("config.json");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(Bundle::load(dir.path()).unwrap_err().message.contains("not a regular file"));
        std::fs::remove_file(&fifo).unwrap();
        let file = std::fs::File::create(&fifo).unwrap();
        file.set_len(MAX_CONFIG + 1).unwrap();
        assert!(Bundle::load(dir.path()).unwrap_err().message.contains("at most"));
        std::fs::write(&fifo, "[1]").unwrap();
        assert!(Bundle::load(dir.path()).unwrap_err().message.contains("not an OCI configuration"));
        assert_eq!(Bundle::load(&dir.path().join("no")).unwrap_err().kind, Kind::NoSuchEntity);
    }
}
