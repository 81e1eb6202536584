//! A container over the host's own files, for `do`: no image, no bundle.

#![forbid(unsafe_code)]

use crate::gofer::{self, GoferOptions, Medium, Opened, Overlay};
use crate::podspec::Bundle;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{Mount, Spec};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Places of which a sandbox has its own, so that the host's are not to be seen there.
const OWN: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Places whose own file systems are not taken over from the host: sockets of its services, other users' files.
const PRIVATE: [&str; 2] = ["/run", "/tmp"];

/// Capabilities of root in the sandbox: what programs of a distribution expect, nothing that reaches the host.
pub(crate) const CAPABILITIES: [&str; 12] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// What of the system nobody in a sandbox is to see.
pub(crate) const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// What of the system nobody in a sandbox is to change.
pub(crate) const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The entries of a configuration for file systems of the kernel, of which a sandbox has its own.
pub(crate) fn system_mounts() -> Vec<Value> {
    let mount = |place: &str, kind: &str, options: &[&str]| json!({"destination": place, "type": kind, "source": kind, "options": options});
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}

/// A command to be run over the host's files, which it can read; what it writes goes to memory.
#[derive(Debug, Clone, Default)]
pub struct HostCommand {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// Folder that becomes `/`; empty for the host's own root.
    pub root: PathBuf,
    /// Working folder; without one the caller's.
    pub cwd: Option<PathBuf>,
    /// Environment, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Shares the caller's network; otherwise there is a loopback device only.
    pub host_network: bool,
    /// Folders or files of the host to bind: source, place, read-only.
    pub volumes: Vec<(PathBuf, PathBuf, bool)>,
    /// User and group id.
    pub user: (u32, u32),
    /// Gives the command a terminal.
    pub terminal: bool,
}

impl HostCommand {
    /// Makes a bundle of it, and opens the mounts that go with it (for [`super::CreateOptions::mounts`]).
    ///
    /// # Errors
    /// A path that does not exist; whatever forbids to mount the host's files (needs root).
    pub fn prepare(&self) -> Result<(Bundle, Opened)> {
        let whole_host = self.root.as_os_str().is_empty() || self.root == Path::new("/");
        let mut binds: Vec<Mount> = Vec::new();
        for (source, place, read_only) in &self.volumes {
            binds.push(bind(source, place, *read_only)?);
        }
        let cwd = match &self.cwd {
            Some(cwd) => cwd.clone(),
            None => {
                let own = std::env::current_dir().map_err(|e| Error::from(e).context("working folder"))?;
                self.place_of(own, whole_host, &mut binds)?
            }
        };
        let overlay = Overlay { medium: Medium::Memory, size: None };
        let (mut opened, host) = if whole_host {
            let root = gofer::open_host_root(Some(&overlay))?;
            (root.opened, root.mounts)
        } else {
            let spec = self.spec(&cwd, &[])?;
            let options = GoferOptions { overlay: "root:memory".parse()?, ..GoferOptions::default() };
            (gofer::open_all(Path::new("/"), &spec, &options)?, Vec::new())
        };
        if !binds.is_empty() {
            // The binds alone, opened over a root that is not used: they follow the host's own mounts.
            let spec = self.spec(&cwd, &binds)?;
            let more = gofer::open_all(Path::new("/"), &spec, &GoferOptions::default())?;
            opened.mounts.extend(more.mounts);
            opened.confs.extend(more.confs.into_iter().skip(1));
        }
        let all: Vec<Mount> = host.into_iter().chain(binds).collect();
        let text = serde_json::to_string(&self.config(&cwd, &all)?)
            .map_err(|e| Error::failure(format!("encode the configuration: {e}")))?;
        Ok((Bundle::from_text(PathBuf::from("/"), text)?, opened))
    }

    /// Where the caller's working folder is in the sandbox; binds it (to read) if it would not be there.
    fn place_of(&self, cwd: PathBuf, whole_host: bool, binds: &mut Vec<Mount>) -> Result<PathBuf> {
        let root = PathBuf::from("/");
        if !whole_host {
            return Ok(if self.root.join(cwd.strip_prefix("/").unwrap_or(&cwd)).is_dir() {
                cwd
            } else {
                root
            });
        }
        if OWN.iter().any(|own| cwd.starts_with(own)) {
            return Ok(root);
        }
        if PRIVATE.iter().any(|p| cwd.starts_with(p)) && device(&cwd)? != device(&root)? {
            binds.push(bind(&cwd, &cwd, true)?);
        }
        Ok(cwd)
    }

    fn spec(&self, cwd: &Path, binds: &[Mount]) -> Result<Spec> {
        serde_json::from_value(self.config(cwd, binds)?)
            .map_err(|e| Error::failure(format!("build the configuration: {e}")))
    }

    fn config(&self, cwd: &Path, binds: &[Mount]) -> Result<Value> {
        let root = if self.root.as_os_str().is_empty() { Path::new("/") } else { &self.root };
        let root = std::fs::canonicalize(root)
            .map_err(|e| Error::from(e).context(format!("root folder {}", self.root.display())))?;
        let mut mounts = vec![];
        for bind in binds {
            mounts.push(
                serde_json::to_value(bind).map_err(|e| Error::failure(format!("encode a mount: {e}")))?,
            );
        }
        mounts.extend(system_mounts());
        let mut kinds = vec!["pid", "ipc", "uts", "mount"];
        if !self.host_network {
            kinds.push("network");
        }
        let namespaces: Vec<Value> = kinds.into_iter().map(|kind| json!({"type": kind})).collect();
        let full: &[&str] = &CAPABILITIES;
        // As execve(2) has it: nobody but root holds capabilities just so.
        let held = if self.user.0 == 0 { full } else { &[] };
        Ok(json!({
            "ociVersion": "1.2.1",
            "root": {"path": root, "readonly": false},
            "process": {
                "args": self.args,
                "cwd": cwd,
                "env": self.env,
                "terminal": self.terminal,
                "user": {"uid": self.user.0, "gid": self.user.1},
                "capabilities": {"bounding": full, "effective": held, "permitted": held},
                "noNewPrivileges": true,
            },
            "mounts": mounts,
            "linux": {
                "namespaces": namespaces,
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        }))
    }
}

fn device(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::from(e).context(path.display()))?;
    Ok(metadata.dev())
}

fn bind(source: &Path, place: &Path, read_only: bool) -> Result<Mount> {
    let source = std::fs::canonicalize(source)
        .map_err(|e| Error::from(e).context(format!("bind {}", source.display())))?;
    if !place.is_absolute() {
        return Err(Error::invalid_argument(format!("bind to {}: give an absolute path", place.display())));
    }
    let rights = if read_only { "rro" } else { "rw" };
    let value = json!({"destination": place, "type": "bind", "source": source, "options": ["rbind", "rprivate", rights]});
    serde_json::from_value(value).map_err(|e| Error::failure(format!("build a mount: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> HostCommand {
        HostCommand { args: vec!["true".into()], env: vec!["A=1".into()], ..HostCommand::default() }
    }

    #[test]
    fn the_configuration_is_one_that_we_accept() {
        let spec = command().spec(Path::new("/"), &[]).unwrap();
        airlock_loader::oci::validate::validate(&spec).unwrap();
        let kinds =
            |c: &HostCommand| c.config(Path::new("/"), &[]).unwrap()["linux"]["namespaces"].to_string();
        assert!(kinds(&command()).contains("network"));
        assert!(!kinds(&HostCommand { host_network: true, ..command() }).contains("network"));
    }

    #[test]
    fn only_root_holds_capabilities() {
        let caps = |user| {
            let command = HostCommand { user, ..command() };
            command.config(Path::new("/"), &[]).unwrap()["process"]["capabilities"].clone()
        };
        assert_eq!(caps((0, 0))["effective"].as_array().unwrap().len(), CAPABILITIES.len());
        assert!(caps((1, 0))["effective"].as_array().unwrap().is_empty());
        assert!(caps((0, 0)).get("inheritable").is_none());
    }

    #[test]
    fn bad_paths_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(bind(&dir.path().join("no"), Path::new("/x"), true).unwrap_err().message.contains("no"));
        assert!(bind(dir.path(), Path::new("x"), true).unwrap_err().message.contains("absolute"));
        let command = HostCommand { root: dir.path().join("no"), ..command() };
        assert!(command.prepare().unwrap_err().message.contains("root folder"));
    }

    #[test]
    fn the_working_folder_is_there_or_replaced() {
        let mut binds = Vec::new();
        let place = |cwd: &str, binds: &mut Vec<Mount>| command().place_of(cwd.into(), true, binds).unwrap();
        assert_eq!(place("/proc/1", &mut binds), Path::new("/"));
        assert_eq!(place("/usr", &mut binds), Path::new("/usr"));
        assert!(binds.is_empty());
        let dir = tempfile::tempdir().unwrap();
        let other = HostCommand { root: dir.path().to_owned(), ..command() };
        assert_eq!(other.place_of("/usr".into(), false, &mut binds).unwrap(), Path::new("/"));
        std::fs::create_dir(dir.path().join("usr")).unwrap();
        assert_eq!(other.place_of("/usr".into(), false, &mut binds).unwrap(), Path::new("/usr"));
    }
}
