//! Bundles of busybox, made anew for each test.
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A bundle directory.
pub struct Bundle {
    dir: tempfile::TempDir,
}

impl Bundle {
    /// A busybox rootfs and a config that runs `args`.
    pub fn new(args: &[&str]) -> Self {
        Self::with(args, |_| {})
    }

    /// As [`Bundle::new`]; `edit` may change the config.
    pub fn with(args: &[&str], edit: impl FnOnce(&mut Value)) -> Self {
        let bundle = Self { dir: tempfile::tempdir().unwrap() };
        let rootfs = bundle.rootfs();
        for dir in ["bin", "proc", "dev", "sys", "tmp", "etc", "root", "usr/bin"] {
            std::fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        let busybox = crate::which("busybox")
            .expect("busybox is installed: the test should have said need!(\"busybox\")");
        copy_program(&busybox, &rootfs.join("bin/busybox"));
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
        std::fs::set_permissions(rootfs.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::set_permissions(bundle.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = default_config(args);
        edit(&mut config);
        bundle.write_config(&config);
        bundle
    }

    pub fn write_config(&self, config: &Value) {
        std::fs::write(self.path().join("config.json"), serde_json::to_vec_pretty(config).unwrap()).unwrap();
    }

    pub fn config(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path().join("config.json")).unwrap()).unwrap()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path as text, for command lines.
    pub fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }
}

/// Copies a program, by way of another process: what this one has open for writing is inherited for a moment by whatever
/// other tests start at the same time, and cannot be executed that long (ETXTBSY).
pub fn copy_program(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp")
        .args(["--preserve=timestamps,mode", "--"])
        .args([from, to])
        .status()
        .unwrap();
    assert!(copied.success(), "cp {} {}", from.display(), to.display());
}

/// Makes an executable file of `text`; see [`copy_program`].
pub fn write_program(path: &Path, text: &str) {
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), text).unwrap();
    copy_program(source.path(), path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "echo", "sleep", "true", "false", "id", "ps", "mount", "umount", "hostname", "date",
    "dd", "md5sum", "wc", "head", "tail", "kill", "touch", "mkdir", "rm", "ln", "cp", "mv", "stat", "env",
    "pwd", "grep", "readlink", "find", "test", "printf", "seq", "tty", "stty", "nice", "ulimit", "umask",
    "chmod", "chown", "mknod", "nc", "ip", "ifconfig", "usleep", "yes", "tr", "cut", "sort", "awk", "sed",
    "df", "sync", "unshare", "setsid", "dmesg", "sysctl", "ipcs", "timeout", "od", "hexdump", "xargs",
    "mkfifo", "realpath", "dirname", "basename",
];

/// What `runc spec` writes, without a terminal and with a writable root.
pub fn default_config(args: &[&str]) -> Value {
    let caps = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin:/usr/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps, "ambient": caps},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "airlock-test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
            ],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
