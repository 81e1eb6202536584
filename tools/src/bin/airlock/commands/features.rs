//! `features`: what this build recognises and what this kernel offers (OCI runtime spec 1.2, `features.md`).

#![forbid(unsafe_code)]

use crate::OCI_VERSION;
use crate::cli::FeaturesArgs;
use crate::global::Global;
use crate::output;
use airlock_loader::sys::mount;
use airlock_wire::error::Result;
use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

const HOOKS: &[&str] =
    &["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Every option that [`airlock_loader::oci::mounts::parse_options`] knows.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

/// capabilities(7), in the order of their numbers.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const ACTIONS: &[&str] = &[
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
];

const OPERATORS: &[&str] = &[
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

/// Architectures whose calls a filter covers; others are accepted and have no effect on this machine.
const ARCHS: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];

/// Filter flags and the kernel that brought each (seccomp(2)). Filters are installed before there are threads, so
/// that TSYNC has nothing to do.
const SECCOMP_FLAGS: &[(&str, (u32, u32))] = &[
    ("SECCOMP_FILTER_FLAG_TSYNC", (3, 17)),
    ("SECCOMP_FILTER_FLAG_LOG", (4, 14)),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", (4, 17)),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", (5, 19)),
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: &'static [&'static str],
    mount_options: &'static [&'static str],
    linux: Linux,
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: &'static [&'static str],
    capabilities: &'static [&'static str],
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Switch,
    selinux: Switch,
    intel_rdt: Switch,
    mount_extensions: MountExtensions,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: &'static [&'static str],
    operators: &'static [&'static str],
    archs: &'static [&'static str],
    known_flags: Vec<&'static str>,
    supported_flags: Vec<&'static str>,
}

#[derive(Serialize)]
struct Switch {
    enabled: bool,
}

#[derive(Serialize)]
struct MountExtensions {
    idmap: Switch,
}

/// Prints the features as JSON.
pub fn run(_global: &Global, _args: FeaturesArgs) -> Result<ExitCode> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    output::print_json(&features(kernel_version(&release))).map(|()| ExitCode::SUCCESS)
}

fn features(kernel: (u32, u32)) -> Features {
    Features {
        oci_version_min: "1.0.0",
        oci_version_max: OCI_VERSION,
        hooks: HOOKS,
        mount_options: MOUNT_OPTIONS,
        linux: Linux {
            namespaces: NAMESPACES,
            capabilities: CAPABILITIES,
            cgroup: Cgroup { v1: true, v2: true, systemd: true, systemd_user: false, rdma: true },
            seccomp: Seccomp {
                enabled: true,
                actions: ACTIONS,
                operators: OPERATORS,
                archs: ARCHS,
                known_flags: SECCOMP_FLAGS.iter().map(|(name, _)| *name).collect(),
                supported_flags: SECCOMP_FLAGS
                    .iter()
                    .filter(|(_, since)| kernel >= *since)
                    .map(|(name, _)| *name)
                    .collect(),
            },
            apparmor: Switch { enabled: false },
            selinux: Switch { enabled: false },
            intel_rdt: Switch { enabled: false },
            mount_extensions: MountExtensions { idmap: Switch { enabled: true } },
        },
        annotations: mechanisms(kernel),
    }
}

/// Which of several ways to the same end this kernel allows. What cannot be tried (without root) is left out.
fn mechanisms(kernel: (u32, u32)) -> BTreeMap<&'static str, String> {
    let found = [
        ("io.airlock.version", Some(env!("CARGO_PKG_VERSION"))),
        ("io.airlock.cgroup", cgroup_layout()),
        ("io.airlock.overlay-layers", overlay_layers(kernel)),
        ("io.airlock.erofs-images", erofs_images()),
        // What runc calls it, and callers look for.
        ("org.opencontainers.runc.checkpoint.enabled", Some("true")),
        ("io.airlock.checkpoint-pages", Some(if kernel >= (6, 7) { "pagemap-scan" } else { "pagemap" })),
        ("io.airlock.restore-background", Some(userfaultfd())),
    ];
    found.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned()))).collect()
}

fn cgroup_layout() -> Option<&'static str> {
    let is_v2 = |path: &str| statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if !Path::new("/sys/fs/cgroup").is_dir() {
        None
    } else if is_v2("/sys/fs/cgroup") {
        Some("v2")
    } else if is_v2("/sys/fs/cgroup/unified") {
        Some("hybrid")
    } else {
        Some("v1")
    }
}

/// How overlayfs takes its layers: by descriptor (Linux 6.13; of mounts that are attached nowhere, 6.15), one path a
/// layer (6.7), or all in one text.
fn overlay_layers(kernel: (u32, u32)) -> Option<&'static str> {
    let overlay = match mount::fsopen("overlay") {
        Ok(overlay) => overlay,
        Err(e) => return missing(e.errno),
    };
    let directory = File::open("/").ok()?;
    if mount::fsconfig_fd(overlay.as_fd(), "lowerdir+", directory.as_fd()).is_ok() {
        return Some(if kernel >= (6, 15) { "detached-descriptors" } else { "descriptors" });
    }
    let one = mount::fsconfig_string(overlay.as_fd(), "lowerdir+", "/");
    Some(if one.is_ok() { "paths" } else { "text" })
}

/// Whether erofs reads an image file itself (Linux 6.12) or needs a loop device: it is offered a file that is no image,
/// and finds that out only if it reads files.
fn erofs_images() -> Option<&'static str> {
    let erofs = match mount::fsopen("erofs") {
        Ok(erofs) => erofs,
        Err(e) => return missing(e.errno),
    };
    let tried = mount::fsconfig_string(erofs.as_fd(), "source", "/proc/self/exe")
        .and_then(|()| mount::fsconfig_flag(erofs.as_fd(), "ro"))
        .and_then(|()| mount::fsconfig_create(erofs.as_fd()));
    Some(match tried {
        Err(e) if e.errno == Errno::ENOTBLK => "loop-device",
        _ => "file",
    })
}

/// How memory is brought to programs that run already: through the device (Linux 6.1), which an unprivileged sandbox can
/// be given, or by the system call alone.
fn userfaultfd() -> &'static str {
    if Path::new("/dev/userfaultfd").exists() { "device" } else { "system-call" }
}

/// A file system that the kernel lacks; `None` if we may just not ask.
fn missing(errno: Errno) -> Option<&'static str> {
    (errno == Errno::ENODEV).then_some("unavailable")
}

/// Major and minor number of a kernel release; zeros for what cannot be read.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlock_loader::oci::mounts::parse_options;
    use std::str::FromStr;

    #[test]
    fn what_is_listed_is_understood() {
        for option in MOUNT_OPTIONS {
            assert!(parse_options(&[(*option).to_owned()]).data.is_empty(), "{option} is not understood");
        }
        assert!(!parse_options(&["nonsense".to_owned()]).data.is_empty());
        assert!(MOUNT_OPTIONS.is_sorted());
        for name in CAPABILITIES {
            let word = name.strip_prefix("CAP_").unwrap();
            assert!(oci_spec::runtime::Capability::from_str(word).is_ok(), "{name}");
        }
        assert_eq!(CAPABILITIES.len(), 41);
        for (list, parse) in [
            (
                ACTIONS,
                (|t| serde_json::from_str::<oci_spec::runtime::LinuxSeccompAction>(t).is_ok())
                    as fn(&str) -> bool,
            ),
            (OPERATORS, |t| serde_json::from_str::<oci_spec::runtime::LinuxSeccompOperator>(t).is_ok()),
            (ARCHS, |t| serde_json::from_str::<oci_spec::runtime::Arch>(t).is_ok()),
            (NAMESPACES, |t| serde_json::from_str::<oci_spec::runtime::LinuxNamespaceType>(t).is_ok()),
        ] {
            for name in list {
                assert!(parse(&format!("\"{name}\"")), "{name}");
            }
        }
    }

    #[test]
    fn the_kernel_decides_what_is_supported() {
        assert_eq!(kernel_version("6.18.0-rc3+"), (6, 18));
        assert_eq!(kernel_version("5.15.0-generic"), (5, 15));
        assert_eq!(kernel_version("odd"), (0, 0));
        let old = features((5, 15));
        assert!(!old.linux.seccomp.supported_flags.contains(&"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"));
        let now = features((6, 18));
        assert!(now.linux.seccomp.supported_flags.contains(&"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"));
        for value in now.annotations.values() {
            assert!(!value.is_empty());
        }
    }

    #[test]
    fn engines_can_read_it() {
        let text = serde_json::to_string(&features((6, 18))).unwrap();
        let read: oci_spec::runtime::Features = serde_json::from_str(&text).unwrap();
        assert_eq!(read.oci_version_max(), OCI_VERSION);
        assert_eq!(read.hooks().as_ref().unwrap().len(), 6);
    }
}
