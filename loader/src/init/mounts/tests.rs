//! Whole mount trees, built in threads with mount namespaces of their own and read back from mountinfo.
#![allow(clippy::unwrap_used)]

mod files;
mod hostile;
mod userns;

use super::*;
use crate::init::paths::testing::{detached, image, in_namespace, root_or_skip};
use serde_json::{Value, json};
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::rc::Rc;

/// What `runc spec` writes, as far as mounts are concerned.
fn config() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
                "/proc/tty", "/proc/version"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

fn bare(mounts: Value) -> Value {
    json!({"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "mounts": mounts, "linux": {}})
}

fn spec(value: Value) -> Spec {
    serde_json::from_value(value).unwrap()
}

/// Builds in the present thread's namespace.
fn build_here(spec: &Spec, image: &Path, gofer: Vec<OwnedFd>, cgroup: CgroupView) -> Result<Built> {
    build(MountInputs {
        spec,
        rootfs: detached(image),
        gofer,
        devices: Vec::new(),
        cgroup,
        in_userns: false,
        generation: "some-id",
        pre_pivot: Box::new(|| Ok(())),
    })
}

fn plain(spec: &Spec, image: &Path) -> Result<Built> {
    build_here(spec, image, Vec::new(), CgroupView::default())
}

/// mountinfo of the present thread, from a procfs of its own.
fn mountinfo() -> Vec<String> {
    let text = ProcHandle::open().unwrap().read("thread-self/mountinfo").unwrap();
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

/// The mountinfo line of what is on top at `place`.
fn line(place: &str) -> String {
    let lines = mountinfo();
    let found = lines.iter().rfind(|l| l.split(' ').nth(4) == Some(place));
    found.unwrap_or_else(|| panic!("nothing is mounted on {place}: {lines:#?}")).clone()
}

fn mount_options(place: &str) -> String {
    line(place).split(' ').nth(5).unwrap().to_owned()
}

fn is_char(path: &str, major: u64, minor: u64) -> bool {
    let status = fs::symlink_metadata(path).unwrap();
    status.file_type().is_char_device()
        && (nix::sys::stat::major(status.rdev()), nix::sys::stat::minor(status.rdev())) == (major, minor)
}

fn v1_names() -> Vec<String> {
    let Ok(dir) = fs::read_dir("/sys/fs/cgroup") else { return Vec::new() };
    let dirs = dir.filter_map(std::result::Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    dirs.filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[test]
fn the_default_config_gives_the_tree_that_runc_gives() {
    if !root_or_skip("the_default_config_gives_the_tree_that_runc_gives") {
        return;
    }
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let names = if v2 { Vec::new() } else { v1_names() };
    in_namespace(move || {
        let image = image();
        let cgroup = CgroupView { v2, names: names.clone(), mounts: Vec::new(), new_ns: true };
        let built = build_here(&spec(config()), image.path(), Vec::new(), cgroup).unwrap();
        assert!(built.devpts.is_some() && built.procfs.is_some());
        let lines = mountinfo();
        // The root is the only mount without a parent here, and nothing of the old tree is left.
        assert!(
            !lines.iter().any(|l| l.contains("/mnt") || l.split(' ').nth(4).unwrap().starts_with("/tmp"))
        );
        assert!(mount_options("/").starts_with("ro"));
        assert!(mount_options("/proc").starts_with("rw,relatime"), "{}", line("/proc"));
        assert_eq!(mount_options("/dev"), "rw,nosuid");
        assert!(line("/dev").contains("- tmpfs tmpfs rw,size=65536k,mode=755"), "{}", line("/dev"));
        assert!(line("/dev/pts").contains("- devpts devpts rw,gid=5,mode=620,ptmxmode=666"));
        assert!(line("/dev/shm").contains("- tmpfs shm rw,size=65536k"));
        assert_eq!(mount_options("/dev/shm"), "rw,nosuid,nodev,noexec,relatime");
        assert!(line("/dev/mqueue").contains("- mqueue mqueue rw"));
        assert_eq!(mount_options("/sys"), "ro,nosuid,nodev,noexec,relatime");
        assert_eq!(mount_options("/sys/fs/cgroup"), "ro,nosuid,nodev,noexec,relatime");
        for name in &names {
            assert_eq!(mount_options(&format!("/sys/fs/cgroup/{name}")), "ro,nosuid,nodev,noexec,relatime");
        }
        if !v2 {
            assert!(fs::create_dir("/sys/fs/cgroup/new").is_err());
        }
        for (name, major, minor) in DEFAULT_DEVICES {
            assert!(is_char(&format!("/dev/{name}"), major, minor), "{name}");
            assert_eq!(fs::metadata(format!("/dev/{name}")).unwrap().mode() & 0o7777, 0o666);
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            assert_eq!(fs::read_link(Path::new("/dev").join(name)).unwrap(), Path::new(target));
        }
        let id = Path::new("/dev").join(GENERATION);
        assert_eq!(fs::read(&id).unwrap(), b"some-id\n");
        assert_eq!(fs::metadata(&id).unwrap().mode() & 0o7777, 0o444);
        assert!(mount_options("/proc/sys").starts_with("ro"));
        assert_eq!(
            fs::write("/proc/sys/kernel/domainname", "x").unwrap_err().raw_os_error(),
            Some(libc::EROFS)
        );
        // Not every kernel has all of these.
        for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"].map(Path::new) {
            assert!(!path.exists() || is_char(path.to_str().unwrap(), 1, 3), "{}", path.display());
        }
        assert_eq!(fs::symlink_metadata("/dev/core").is_ok(), Path::new("/proc/kcore").exists());
        assert!(is_char("/proc/version", 1, 3));
        assert_eq!(fs::read_dir("/sys/firmware").unwrap().count(), 0);
        assert_eq!(fs::read_dir("/proc/tty").unwrap().count(), 0);
        assert!(fs::write("/proc/tty/x", "").is_err());
        // One file system for all masked directories.
        let device = |p: &str| fs::metadata(p).unwrap().dev();
        assert_eq!(device("/proc/tty"), device("/sys/firmware"));
        assert!(fs::write("/etc/new", "").is_err());
        fs::write("/dev/shm/x", "").unwrap();
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        assert_eq!(fs::canonicalize("/..").unwrap(), Path::new("/"));
    });
}

#[test]
fn a_console_is_made_in_the_containers_devpts_and_bound() {
    if !root_or_skip("a_console_is_made_in_the_containers_devpts_and_bound") {
        return;
    }
    in_namespace(|| {
        let image = image();
        let mut config = config();
        config["process"]["terminal"] = json!(true);
        config["mounts"][1]["options"].as_array_mut().unwrap().push(json!("ro"));
        let built = plain(&spec(config), image.path()).unwrap();
        assert!(mount_options("/dev").starts_with("ro"));
        let devpts = built.devpts.unwrap();
        let (master, peer) = open_console(devpts.as_fd()).unwrap();
        mount_console(peer.as_fd()).unwrap();
        let console = fs::OpenOptions::new().read(true).write(true).open("/dev/console").unwrap();
        assert_eq!(console.metadata().unwrap().rdev(), fs::metadata("/dev/pts/0").unwrap().rdev());
        nix::unistd::write(&console, b"hi\n").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(nix::unistd::read(&master, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"hi\r\n");
        assert!(mount_console(master.as_fd()).is_err(), "a master is no console");
        let proc =
            paths::open_in_root(detached(Path::new("/")).as_fd(), Path::new("proc"), OFlag::O_PATH).unwrap();
        assert!(open_console(proc.as_fd()).is_err());
    });
}

#[test]
fn remounts_change_what_is_there() {
    if !root_or_skip("remounts_change_what_is_there") {
        return;
    }
    in_namespace(|| {
        let image = image();
        let mounts = json!([
            {"destination": "/a", "type": "tmpfs", "options": ["size=4k"]},
            {"destination": "/a", "type": "tmpfs", "options": ["remount", "nosuid", "size=8k"]},
            {"destination": "/a", "type": "bind", "options": ["bind", "remount", "ro"]}
        ]);
        plain(&spec(bare(mounts)), image.path()).unwrap();
        assert_eq!(mount_options("/a"), "ro,nosuid,relatime");
        assert!(line("/a").ends_with("size=8k"), "{}", line("/a"));
        let refused = in_namespace(|| {
            let mounts = json!([{"destination": "/var", "options": ["remount", "ro"]}]);
            plain(&spec(bare(mounts)), self::image().path()).unwrap_err().to_string()
        });
        assert!(refused.contains("nothing mounted there"), "{refused}");
    });
}

#[test]
fn errors_say_what_and_where() {
    if !root_or_skip("errors_say_what_and_where") {
        return;
    }
    for (mount, want) in [
        (json!({"destination": "/", "type": "tmpfs"}), "the destination is the root itself"),
        (json!({"destination": "/x/..", "type": "tmpfs"}), "the destination is the root itself"),
        (json!({"destination": "/x"}), "neither a type nor the option bind"),
        (
            json!({"destination": "/x", "type": "nosuchfs"}),
            "\"/x\" (nosuchfs): file system \"nosuchfs\": No such device",
        ),
        (json!({"destination": "/x", "type": "tmpfs", "options": ["size=z"]}), "size=z: Invalid argument"),
        (
            json!({"destination": "/x", "type": "tmpfs", "options": ["frob"]}),
            "tmpfs: Unknown parameter 'frob'",
        ),
        (json!({"destination": "/proc", "type": "tmpfs"}), "only a procfs can be mounted on /proc"),
        (json!({"destination": "/proc/sys", "type": "tmpfs"}), "inside /proc"),
        (json!({"destination": "/proc/../proc/self/attr", "type": "tmpfs"}), "inside /proc"),
        (json!({"destination": "/etc/passwd", "type": "tmpfs"}), "destination: Not a directory"),
        (
            json!({"destination": "/a", "type": "bind", "source": "/"}),
            "1 mounts from the host, but 0 descriptors",
        ),
        (json!({"destination": "/sys/fs/cgroup", "type": "cgroup2"}), "has to be donated"),
    ] {
        let got = in_namespace(move || {
            plain(&spec(bare(json!([mount]))), image().path()).map(drop).unwrap_err().to_string()
        });
        assert!(got.to_lowercase().contains(&want.to_lowercase()), "{got}\n  lacks: {want}");
    }
    let mixed = in_namespace(|| {
        let mounts = json!([{"destination": "/etc", "type": "bind", "source": "/etc/passwd"}]);
        let gofer = vec![detached(Path::new("/etc/passwd"))];
        build_here(&spec(bare(mounts)), image().path(), gofer, CgroupView::default()).unwrap_err().to_string()
    });
    assert!(mixed.contains("is a directory: the destination is one"), "{mixed}");
}

#[test]
fn only_information_files_of_procfs_can_be_replaced() {
    if !root_or_skip("only_information_files_of_procfs_can_be_replaced") {
        return;
    }
    in_namespace(|| {
        let (image, host) = (image(), tempfile::tempdir().unwrap());
        fs::write(host.path().join("cpuinfo"), "replaced").unwrap();
        std::os::unix::fs::symlink("/proc/sys", image.path().join("alias")).unwrap();
        let mounts = json!([
            {"destination": "/proc", "type": "proc"},
            {"destination": "/proc/cpuinfo", "type": "bind", "source": "x", "options": ["bind"]}
        ]);
        let donated = || vec![detached(&host.path().join("cpuinfo"))];
        build_here(&spec(bare(mounts)), image.path(), donated(), CgroupView::default()).unwrap();
        assert_eq!(fs::read("/proc/cpuinfo").unwrap(), b"replaced");
    });
    let refused = in_namespace(|| {
        let image = image();
        std::os::unix::fs::symlink("/proc/sys", image.path().join("alias")).unwrap();
        let mounts = json!([{"destination": "/proc", "type": "proc"}, {"destination": "/alias/kernel", "type": "tmpfs"}]);
        plain(&spec(bare(mounts)), image.path()).unwrap_err().to_string()
    });
    assert!(refused.contains("into procfs through a symbolic link"), "{refused}");
}

#[test]
fn create_container_hooks_run_before_the_root_changes_and_after_the_mounts() {
    if !root_or_skip("create_container_hooks_run_before_the_root_changes_and_after_the_mounts") {
        return;
    }
    in_namespace(|| {
        let image = image();
        let path = image.path().to_owned();
        let mut config = bare(json!([{"destination": "/new", "type": "tmpfs"}]));
        config["root"]["path"] = json!(path);
        config["hooks"] = json!({"createContainer": [{"path": "/bin/true"}]});
        let spec = spec(config);
        let seen = Rc::new(Cell::new(false));
        let saw = Rc::clone(&seen);
        let built = build(MountInputs {
            spec: &spec,
            rootfs: detached(&path),
            gofer: Vec::new(),
            devices: Vec::new(),
            cgroup: CgroupView::default(),
            in_userns: false,
            generation: "",
            pre_pivot: Box::new(move || {
                fs::write(path.join("new/from-hook"), "").unwrap();
                saw.set(Path::new("/proc/self/exe").exists() && path.join("dev/null").exists());
                Ok(())
            }),
        });
        built.unwrap();
        assert!(seen.get());
        assert!(Path::new("/new/from-hook").exists());
        assert!(!Path::new("/usr/lib").exists(), "the host is out of reach");
    });
}

#[test]
fn rootfs_propagation_is_applied_to_the_new_root() {
    if !root_or_skip("rootfs_propagation_is_applied_to_the_new_root") {
        return;
    }
    for (word, want) in
        [("shared", "shared:"), ("rshared", "shared:"), ("unbindable", "unbindable"), ("private", " - ")]
    {
        let got = in_namespace(move || {
            let mut config = bare(json!([]));
            config["linux"]["rootfsPropagation"] = json!(word);
            plain(&spec(config), image().path()).unwrap();
            line("/")
        });
        assert!(got.contains(want), "{word}: {got}");
    }
    let refused = in_namespace(|| {
        let mut config = bare(json!([]));
        config["linux"]["rootfsPropagation"] = json!("public");
        plain(&spec(config), image().path()).unwrap_err().to_string()
    });
    assert!(refused.contains("public"), "{refused}");
}

#[test]
fn donated_cgroups_are_used_without_a_cgroup_namespace() {
    if !root_or_skip("donated_cgroups_are_used_without_a_cgroup_namespace") {
        return;
    }
    in_namespace(|| {
        let (image, host) = (image(), tempfile::tempdir().unwrap());
        for name in ["cpu", "pids", "v2"] {
            fs::create_dir(host.path().join(name)).unwrap();
            fs::write(host.path().join(name).join(name), "").unwrap();
        }
        let mounts = json!([
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]}
        ]);
        let donated = ["cpu", "pids"].map(|n| detached(&host.path().join(n)));
        let cgroup = CgroupView {
            v2: false,
            names: vec!["cpu,cpuacct".to_owned(), "pids".to_owned()],
            mounts: donated.into(),
            new_ns: false,
        };
        build_here(&spec(bare(mounts.clone())), image.path(), Vec::new(), cgroup).unwrap();
        assert!(Path::new("/sys/fs/cgroup/cpu,cpuacct/cpu").exists());
        assert!(Path::new("/sys/fs/cgroup/pids/pids").exists());
        assert_eq!(fs::read_link("/sys/fs/cgroup/cpuacct").unwrap(), Path::new("cpu,cpuacct"));
        for place in ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"] {
            assert!(mount_options(place).starts_with("ro"), "{place}");
        }
    });
}

#[test]
fn donated_v2_cgroups_are_used_with_a_cgroup_namespace() {
    if !root_or_skip("donated_v2_cgroups_are_used_with_a_cgroup_namespace") {
        return;
    }
    in_namespace(|| {
        let (image, host) = (image(), tempfile::tempdir().unwrap());
        fs::write(host.path().join("memory.max"), "5").unwrap();
        let mounts = json!([
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]},
            {"destination": "/own", "type": "cgroup2"},
            {"destination": "/fresh", "type": "cgroup2", "options": ["ro"]}
        ]);
        let donated = (0..2).map(|_| detached(host.path())).collect();
        let cgroup = CgroupView { v2: true, names: Vec::new(), mounts: donated, new_ns: true };
        build_here(&spec(bare(mounts)), image.path(), Vec::new(), cgroup).unwrap();
        for place in ["/sys/fs/cgroup", "/own"] {
            assert_eq!(fs::read_to_string(Path::new(place).join("memory.max")).unwrap(), "5", "{place}");
        }
        assert!(mount_options("/sys/fs/cgroup").starts_with("ro") && mount_options("/own").starts_with("rw"));
        // Without a donation there is the namespace's own.
        assert!(Path::new("/fresh/cgroup.procs").exists());
        // Read-only, the namespace's own is below: for programs that search the mount table.
        let table = mountinfo();
        let own = |place: &str| {
            table.iter().filter(|l| l.contains(&format!(" / {place} ")) && l.contains(" cgroup2 ")).count()
        };
        assert_eq!((own("/sys/fs/cgroup"), own("/own"), own("/fresh")), (1, 0, 1), "{table:#?}");
    });
}

#[test]
fn the_default_tree_is_quick() {
    if !root_or_skip("the_default_tree_is_quick") {
        return;
    }
    let mut times: Vec<_> = (0..15)
        .map(|_| {
            in_namespace(|| {
                let (image, spec) = (image(), spec(config()));
                let cgroup = CgroupView { v2: false, names: v1_names(), mounts: Vec::new(), new_ns: true };
                let rootfs = detached(image.path());
                let start = std::time::Instant::now();
                let built = build(MountInputs {
                    spec: &spec,
                    rootfs,
                    gofer: Vec::new(),
                    devices: Vec::new(),
                    cgroup,
                    in_userns: false,
                    generation: "",
                    pre_pivot: Box::new(|| Ok(())),
                });
                let time = start.elapsed();
                built.unwrap();
                time
            })
        })
        .collect();
    times.sort();
    eprintln!("build of the default tree: median {:?}, best {:?}", times[times.len() / 2], times[0]);
    // Debug build on a busy machine; the figure that counts is in docs/PERFORMANCE.md.
    assert!(times[0] < std::time::Duration::from_millis(500), "{times:?}");
}
