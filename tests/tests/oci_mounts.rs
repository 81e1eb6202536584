//! `mounts` of the OCI runtime spec: every kind and family of options, as `/proc/self/mountinfo` and programs show them.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::oci::{mount, mounted, mounts, output, push, refused, run, run_in};
use airlock_tests::{Bundle, State, need, skip};
use nix::mount::{MntFlags, MsFlags};
use serde_json::{Value, json};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// A folder of the host with `dir/file`, and a tmpfs on `sub` that has `inner`. Unmounted at the end.
struct Source {
    dir: tempfile::TempDir,
}

impl Source {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("file"), "host\n").unwrap();
        let sub = dir.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        nix::mount::mount(Some("tmpfs"), &sub, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        std::fs::write(sub.join("inner"), "inner\n").unwrap();
        Self { dir }
    }

    fn text(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.path("sub"), MntFlags::MNT_DETACH);
    }
}

const INFO: &str = "cat /proc/self/mountinfo";

/// The mountinfo of a container with these mounts besides the usual ones.
#[track_caller]
fn info(edit: impl FnOnce(&mut Value)) -> String {
    output(INFO, edit)
}

#[test]
fn bind_takes_one_mount_and_rbind_all() {
    need!("busybox");
    let source = Source::new();
    let script = "cat /m/file; echo changed >/m/file; ls -A /m/sub";
    let one = output(script, |c| mount(c, "/m", "bind", source.text(), &["bind"]));
    assert_eq!(one, "host\n");
    assert_eq!(std::fs::read_to_string(source.path("file")).unwrap(), "changed\n");
    // `none` is what mount(8) users write, and no type at all will do.
    for kind in ["bind", "none", ""] {
        let all = output("ls -A /m/sub", |c| mount(c, "/m", kind, source.text(), &["rbind"]));
        assert_eq!(all, "inner\n", "{kind}");
    }
    let bundle = Bundle::with(&["cat", "/m/file"], |c| mount(c, "/m", "bind", "data", &["bind"]));
    std::fs::create_dir(bundle.path().join("data")).unwrap();
    std::fs::write(bundle.path().join("data/file"), "relative to the bundle\n").unwrap();
    assert_eq!(run_in(&State::new(), &bundle).stdout, "relative to the bundle\n");
}

#[test]
fn read_only_alone_or_with_everything_below() {
    need!("busybox");
    let source = Source::new();
    let script = "for f in /m/x /m/sub/x; do touch $f 2>/dev/null && echo written; done; true";
    let written =
        |options: &[&str]| output(script, |c| mount(c, "/m", "bind", source.text(), options)).lines().count();
    assert_eq!(written(&["rbind"]), 2);
    assert_eq!(written(&["rbind", "ro"]), 1);
    assert_eq!(written(&["rbind", "rro"]), 0);
    assert_eq!(written(&["rbind", "ro", "rw"]), 2);
    assert_eq!(written(&["rbind", "rro", "rrw"]), 2);
}

#[test]
fn attributes_and_their_recursive_forms() {
    need!("busybox");
    let source = Source::new();
    let at = |options: &[&str]| {
        let text = info(|c| mount(c, "/m", "bind", source.text(), &[&["rbind"], options].concat()));
        (mounted(&text, "/m"), mounted(&text, "/m/sub"))
    };
    let (top, below) = at(&["nosuid", "nodev", "noexec", "noatime", "nodiratime"]);
    assert!(top.has(&["nosuid", "nodev", "noexec", "noatime", "nodiratime"]), "{top:?}");
    assert!(!below.has(&["nosuid"]) && !below.has(&["noexec"]), "{below:?}");
    let (top, below) = at(&["rnosuid", "rnodev", "rnoexec", "rnoatime"]);
    for m in [top, below] {
        assert!(m.has(&["nosuid", "nodev", "noexec", "noatime"]), "{m:?}");
    }
    // The last one wins.
    let (top, _) = at(&["nosuid", "noexec", "nodev", "suid", "exec", "dev", "noatime", "strictatime"]);
    assert!(!["nosuid", "noexec", "nodev", "noatime", "relatime"].iter().any(|o| top.has(&[o])), "{top:?}");
    let (top, _) = at(&["relatime"]);
    assert!(top.has(&["relatime"]), "{top:?}");
    let text = info(|c| mount(c, "/m", "tmpfs", "tmpfs", &["nosymfollow"]));
    assert!(mounted(&text, "/m").has(&["nosymfollow"]));

    // And they are enforced.
    let noexec = run("cp /bin/busybox /m/true && /m/true", |c| mount(c, "/m", "tmpfs", "tmpfs", &["noexec"]));
    assert!(noexec.code == Some(126) && noexec.stderr.contains("Permission denied"), "{}", noexec.stderr);
    let links =
        run("ln -s /etc/passwd /m/l && cat /m/l", |c| mount(c, "/m", "tmpfs", "tmpfs", &["nosymfollow"]));
    assert_ne!(links.code, Some(0));
    output("cp /bin/busybox /m/true && /m/true", |c| mount(c, "/m", "tmpfs", "tmpfs", &["noexec", "exec"]));
}

#[test]
fn propagation() {
    need!("busybox");
    let source = Source::new();
    // A source of its own, that shares.
    nix::mount::mount(
        Some(source.dir.path()),
        source.dir.path(),
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .unwrap();
    nix::mount::mount(
        None::<&str>,
        source.dir.path(),
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
    .unwrap();
    let at = |options: &[&str]| {
        let text = info(|c| mount(c, "/m", "bind", source.text(), &[&["rbind"], options].concat()));
        let kinds = |place: &str| {
            let m = mounted(&text, place);
            m.propagation.iter().map(|p| p.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        (kinds("/m"), kinds("/m/sub"))
    };
    let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
    let (private, both, slave) = (own(&[]), own(&["shared", "master"]), own(&["master"]));
    let results = [
        (at(&["private"]).0, private.clone()),
        (at(&["rprivate"]).1, private.clone()),
        // Not peers of the host's mounts, unless the rootfs is shared too; as in runc.
        (at(&["rshared"]).0, both.clone()),
        (at(&["rshared"]).1, both.clone()),
        (at(&["slave"]).0, slave.clone()),
        (at(&["rslave"]).1, slave.clone()),
        (at(&["rprivate", "rshared"]).1, own(&["shared"])),
        (at(&["rslave", "rshared"]).1, both),
        (at(&["unbindable"]).0, own(&["unbindable"])),
        (at(&["runbindable"]).1, own(&["unbindable"])),
    ];
    let _ = nix::mount::umount2(source.dir.path(), MntFlags::MNT_DETACH);
    for (i, (got, wanted)) in results.into_iter().enumerate() {
        assert_eq!(got, wanted, "case {i}");
    }
}

#[test]
fn a_mount_of_the_host_arrives_through_a_slave_and_none_goes_back() {
    need!("busybox");
    let host = tempfile::tempdir().unwrap();
    let dir = host.path();
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    nix::mount::mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    std::fs::create_dir(dir.join("late")).unwrap();
    std::fs::create_dir(dir.join("inside")).unwrap();
    let state = State::new();
    let bundle = Bundle::with(&["sleep", "1000"], |c| {
        mount(c, "/slave", "bind", dir.to_str().unwrap(), &["rbind", "rslave"]);
        mount(c, "/private", "bind", dir.to_str().unwrap(), &["rbind", "rprivate"]);
        airlock_tests::oci::all_capabilities(c);
    });
    let id = airlock_tests::unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    nix::mount::mount(Some("tmpfs"), &dir.join("late"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .unwrap();
    std::fs::write(dir.join("late/arrived"), "").unwrap();
    let seen = state.ok([
        "exec",
        &id,
        "sh",
        "-c",
        "ls /slave/late /private/late; mount -t tmpfs t /slave/inside && touch /slave/inside/f",
    ]);
    let host_sees = std::fs::read_dir(dir.join("inside")).unwrap().count();
    let _ = nix::mount::umount2(&dir.join("late"), MntFlags::MNT_DETACH);
    drop(state);
    let _ = nix::mount::umount2(dir, MntFlags::MNT_DETACH);
    assert_eq!(seen, "/private/late:\n\n/slave/late:\narrived\n");
    assert_eq!(host_sees, 0);
}

#[test]
fn tmpfs_and_its_options() {
    need!("busybox");
    let text = info(|c| {
        mount(c, "/m", "tmpfs", "name", &["size=1m", "mode=1751", "uid=7", "gid=8", "nr_inodes=33", "ro"])
    });
    let m = mounted(&text, "/m");
    assert_eq!((m.kind.as_str(), m.source.as_str()), ("tmpfs", "name"));
    assert!(
        m.fs_has(&["size=1024k", "mode=1751", "uid=7", "gid=8", "nr_inodes=33"]) && m.has(&["ro"]),
        "{m:?}"
    );
    let full = run("head -c 2000000 /dev/zero >/m/f", |c| mount(c, "/m", "tmpfs", "t", &["size=1m"]));
    assert_ne!(full.code, Some(0), "{}", full.stderr);
    let size = output("head -c 2000000 /dev/zero >/m/f 2>/dev/null; stat -c %s /m/f", |c| {
        mount(c, "/m", "tmpfs", "t", &["size=1m"])
    });
    assert_eq!(size.trim(), (1 << 20).to_string());
    let wrong = refused(|c| mount(c, "/m", "tmpfs", "t", &["no-such-option=1"]));
    assert!(wrong.contains("mount \"/m\" (tmpfs)") && wrong.contains("no-such-option"), "{wrong}");
}

#[test]
fn tmpcopyup_starts_with_what_the_image_has() {
    need!("busybox");
    let bundle = Bundle::with(
        &["sh", "-c", "ls -An /data; cat /data/a/b; stat -c %a /data; touch /data/new; ls /other"],
        |c| {
            mount(c, "/data", "tmpfs", "t", &["tmpcopyup"]);
            mount(c, "/other", "tmpfs", "t", &[]);
        },
    );
    for dir in ["data/a", "other"] {
        std::fs::create_dir_all(bundle.rootfs().join(dir)).unwrap();
    }
    let data = bundle.rootfs().join("data");
    std::fs::write(data.join("a/b"), "content\n").unwrap();
    std::fs::write(bundle.rootfs().join("other/hidden"), "").unwrap();
    symlink("a/b", data.join("link")).unwrap();
    nix::unistd::chown(&data.join("a"), Some(3.into()), Some(4.into())).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o1711)).unwrap();
    let ran = run_in(&State::new(), &bundle);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines.iter().any(|l| l.starts_with('d') && l.contains(" 3 ") && l.ends_with(" a")), "{lines:?}");
    assert!(lines.iter().any(|l| l.ends_with("link -> a/b")), "{lines:?}");
    assert_eq!(lines[lines.len() - 2..], ["content", "1711"]);
    assert!(!data.join("new").exists(), "the image is not written to");
}

#[test]
fn proc_and_its_options() {
    need!("busybox");
    let with = |script: &str, options: &[&str]| {
        output(script, |c| {
            c["mounts"][0]["options"] = json!(options);
            c["linux"]["maskedPaths"] = json!([]);
            c["linux"]["readonlyPaths"] = json!([]);
        })
    };
    assert_eq!(
        with("test -e /proc/cpuinfo; echo $?; test -e /proc/1/status; echo $?", &["subset=pid"]),
        "1\n0\n"
    );
    let text = with(INFO, &["hidepid=invisible", "gid=5", "nosuid", "noexec", "nodev"]);
    let m = mounted(&text, "/proc");
    assert!(m.has(&["nosuid", "noexec", "nodev"]) && m.fs_has(&["gid=5"]), "{m:?}");
    assert!(m.superblock.iter().any(|o| o.starts_with("hidepid=")), "{m:?}");
    // PID 1 is the program itself: nobody else's processes.
    assert_eq!(with("ls /proc | grep -c '^[0-9]'; readlink /proc/self", &[]).lines().count(), 2);
    assert_eq!(output("echo $$", |_| {}), "1\n");
    assert!(refused(|c| mount(c, "/proc/sys", "tmpfs", "t", &[])).contains("inside /proc"));
}

#[test]
fn sysfs_devpts_and_mqueue() {
    need!("busybox");
    let text = info(|_| {});
    let sys = mounted(&text, "/sys");
    assert!(sys.kind == "sysfs" && sys.has(&["ro", "nosuid", "noexec", "nodev"]), "{sys:?}");
    let pts = mounted(&text, "/dev/pts");
    assert!(pts.kind == "devpts" && pts.fs_has(&["gid=5", "mode=620", "ptmxmode=666"]), "{pts:?}");
    let queue = mounted(&text, "/dev/mqueue");
    assert!(queue.kind == "mqueue" && queue.has(&["nosuid", "noexec", "nodev"]), "{queue:?}");
    let shm = mounted(&text, "/dev/shm");
    assert!(shm.kind == "tmpfs" && shm.fs_has(&["size=65536k"]), "{shm:?}");
    // An instance of its own: no terminals of the host; queues of its own namespace.
    assert_eq!(output("ls /dev/pts; touch /dev/mqueue/q && head -c 5 /dev/mqueue/q", |_| {}), "ptmx\nQSIZE");
    assert!(!Path::new("/dev/mqueue/q").exists());
    // The network of /sys is the container's.
    assert_eq!(output("ls /sys/class/net", |_| {}), "lo\n");
}

/// What a container sees of its cgroups: with a cgroup namespace, and with a mount for reading and writing.
fn cgroup_view(namespace: bool, writable: bool) -> airlock_tests::oci::Ran {
    let name = airlock_tests::unique("airlock-oci");
    let script =
        "ls /sys/fs/cgroup; echo ==; cat /proc/self/cgroup; echo ==; cat /proc/self/mountinfo; echo ==
        cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; echo ==
        mkdir /sys/fs/cgroup/pids/inner 2>&1 && rmdir /sys/fs/cgroup/pids/inner && echo made";
    run(script, |c| {
        c["linux"]["cgroupsPath"] = json!(format!("/{name}"));
        c["linux"]["resources"]["pids"] = json!({"limit": 77});
        if namespace {
            push(c, "/linux/namespaces", json!({"type": "cgroup"}));
        }
        if writable {
            c["mounts"][6]["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    })
}

#[test]
fn cgroups_are_the_containers_own() {
    need!("busybox");
    if !Path::new("/sys/fs/cgroup/pids").exists() {
        skip!("needs cgroup v1 with a pids hierarchy");
    }
    for namespace in [false, true] {
        let ran = cgroup_view(namespace, false);
        let parts: Vec<&str> = ran.stdout.split("==\n").collect();
        let mut shown: Vec<String> = parts[0].lines().map(str::to_owned).collect();
        shown.sort();
        let mut host: Vec<String> = std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        // The v2 hierarchy has no controllers beside v1 ones, and runc shows it neither.
        host.retain(|name| name != "unified");
        host.sort();
        assert_eq!(shown, host, "namespace {namespace}: {}", ran.stderr);
        let pids = parts[1].lines().find(|l| l.contains(":pids:")).unwrap().rsplit(':').next().unwrap();
        assert_eq!(pids == "/", namespace, "{pids}");
        let base = mounted(parts[2], "/sys/fs/cgroup");
        let controller = mounted(parts[2], "/sys/fs/cgroup/pids");
        assert!(
            base.has(&["ro"]) && controller.has(&["ro", "nosuid", "noexec", "nodev"]),
            "{base:?} {controller:?}"
        );
        assert_eq!(controller.kind, "cgroup");
        assert_eq!(parts[3], "77\n", "the files are those of the container's cgroup");
        assert!(parts[4].contains("Read-only file system"), "{}", parts[4]);
    }
    assert!(cgroup_view(true, true).stdout.ends_with("made\n"));
}

#[test]
fn overlay_by_spec() {
    need!("busybox");
    let layers = tempfile::tempdir().unwrap();
    for dir in ["low1", "low2", "up", "work"] {
        std::fs::create_dir(layers.path().join(dir)).unwrap();
    }
    std::fs::write(layers.path().join("low1/a"), "from 1\n").unwrap();
    std::fs::write(layers.path().join("low2/a"), "from 2\n").unwrap();
    std::fs::write(layers.path().join("low2/b"), "from 2\n").unwrap();
    let at = |name: &str| layers.path().join(name).display().to_string();
    let lower = format!("lowerdir={}:{}", at("low1"), at("low2"));
    let (upper, work) = (format!("upperdir={}", at("up")), format!("workdir={}", at("work")));
    let seen =
        output("cat /m/a /m/b; echo new >/m/a; rm /m/b; grep ' /m ' /proc/mounts | cut -d' ' -f3", |c| {
            mount(c, "/m", "overlay", "overlay", &[&lower, &upper, &work]);
        });
    assert_eq!(seen, "from 1\nfrom 2\noverlay\n");
    assert_eq!(std::fs::read_to_string(layers.path().join("up/a")).unwrap(), "new\n");
    assert_eq!(std::fs::read_to_string(layers.path().join("low1/a")).unwrap(), "from 1\n");
    assert!(std::fs::symlink_metadata(layers.path().join("up/b")).unwrap().file_type().is_char_device());
    let read_only = run("cat /m/b; touch /m/x", |c| mount(c, "/m", "overlay", "overlay", &[&lower]));
    assert!(read_only.stdout == "from 2\n" && read_only.stderr.contains("Read-only"), "{}", read_only.stderr);
}

#[test]
fn idmap_by_the_mounts_own_mappings() {
    need!("busybox");
    let source = Source::new();
    std::fs::write(source.path("owned"), "").unwrap();
    nix::unistd::chown(&source.path("owned"), Some(1000.into()), Some(2000.into())).unwrap();
    std::fs::write(source.path("sub/owned"), "").unwrap();
    nix::unistd::chown(&source.path("sub/owned"), Some(1000.into()), Some(2000.into())).unwrap();
    let with = |options: &[&str]| {
        run("stat -c %u:%g /m/owned /m/sub/owned", |c| {
            push(
                c,
                "/mounts",
                json!({"destination": "/m", "type": "bind", "source": source.text(), "options": options,
                "uidMappings": [{"containerID": 1000, "hostID": 5000, "size": 1}],
                "gidMappings": [{"containerID": 2000, "hostID": 6000, "size": 1}]}),
            );
        })
    };
    let top = with(&["rbind", "idmap"]);
    if top.code != Some(0) && top.stderr.contains("id-mapped") {
        skip!("the file system below /tmp cannot be id-mapped: {}", top.stderr.trim());
    }
    assert_eq!(top.stdout, "5000:6000\n1000:2000\n", "{}", top.stderr);
    assert_eq!(with(&["rbind", "ridmap"]).stdout, "5000:6000\n5000:6000\n");
    assert_eq!(with(&["rbind"]).stdout, "5000:6000\n1000:2000\n");
    let bare = refused(|c| mount(c, "/m", "bind", source.text(), &["rbind", "idmap"]));
    assert!(bare.contains("mounts[7]") && bare.contains("idmap needs"), "{bare}");
}

#[test]
fn a_file_a_socket_and_a_device_are_bound_to_files() {
    need!("busybox");
    let source = Source::new();
    let _socket = std::os::unix::net::UnixListener::bind(source.path("socket")).unwrap();
    let seen = output(
        "cat /etc/passwd; stat -c '%F %i' /run/s; head -c 3 /made/zero | od -An -tx1; stat -c %F /made/zero",
        |c| {
            let at = |name: &str| source.path(name).display().to_string();
            mount(c, "/etc/passwd", "bind", &at("file"), &["bind", "ro"]);
            mount(c, "/run/s", "bind", &at("socket"), &["bind"]);
            mount(c, "/made/zero", "bind", "/dev/zero", &["bind"]);
            push(
                c,
                "/linux/resources/devices",
                json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"}),
            );
        },
    );
    let inode = std::fs::metadata(source.path("socket")).unwrap().ino();
    assert_eq!(seen, format!("host\nsocket {inode}\n 00 00 00\ncharacter special file\n"));

    let folder_on_file = refused(|c| mount(c, "/etc/passwd", "bind", source.text(), &["bind"]));
    assert!(folder_on_file.to_lowercase().contains("not a directory"), "{folder_on_file}");
    let file_on_folder =
        refused(|c| mount(c, "/etc", "bind", source.path("file").to_str().unwrap(), &["bind"]));
    assert!(file_on_folder.to_lowercase().contains("is a directory"), "{file_on_folder}");
}

#[test]
fn remount_changes_what_is_there() {
    need!("busybox");
    let text = info(|c| {
        mount(c, "/m", "tmpfs", "t", &["size=1m"]);
        mount(c, "/m", "", "", &["remount", "bind", "ro", "nosuid"]);
    });
    assert!(mounted(&text, "/m").has(&["ro", "nosuid"]), "{text}");
    let text = info(|c| {
        mount(c, "/m", "tmpfs", "t", &["size=1m"]);
        mount(c, "/m", "tmpfs", "t", &["remount", "size=2m"]);
    });
    assert!(mounted(&text, "/m").fs_has(&["size=2048k"]), "{text}");
    assert!(refused(|c| mount(c, "/etc", "", "", &["remount", "ro"])).contains("nothing mounted there"));
}

#[test]
fn order_places_and_links() {
    need!("busybox");
    let bundle = Bundle::with(&["cat", "/proc/self/mountinfo"], |c| {
        mount(c, "/a", "tmpfs", "first", &[]);
        mount(c, "/a/b/c", "tmpfs", "inner", &[]);
        mount(c, "relative/../relative2", "tmpfs", "rel", &[]);
        mount(c, "/link/x", "tmpfs", "linked", &[]);
        mount(c, "/up", "tmpfs", "up", &[]);
        mount(c, "/stack", "tmpfs", "below", &[]);
        mount(c, "/stack", "tmpfs", "above", &["ro"]);
    });
    // Links of the image count from the image's root, however far up they go.
    symlink("/../../target", bundle.rootfs().join("link")).unwrap();
    symlink("../../../../../srv", bundle.rootfs().join("up")).unwrap();
    let ran = run_in(&State::new(), &bundle);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let sources = |place: &str| {
        mounts(&ran.stdout).into_iter().filter(|m| m.place == place).map(|m| m.source).collect::<Vec<_>>()
    };
    assert_eq!(sources("/a"), ["first"]);
    assert_eq!(sources("/a/b/c"), ["inner"]);
    assert_eq!(sources("/relative2"), ["rel"]);
    assert_eq!(sources("/target/x"), ["linked"]);
    assert_eq!(sources("/srv"), ["up"]);
    assert_eq!(sources("/stack"), ["below", "above"]);
    assert!(bundle.rootfs().join("target/x").is_dir() && bundle.rootfs().join("srv").is_dir());
    assert!(!Path::new("/target").exists());
}

#[test]
fn nothing_of_the_host_is_to_be_seen() {
    need!("busybox");
    let text = info(|_| {});
    let places: Vec<String> = mounts(&text).into_iter().map(|m| m.place).collect();
    let known = ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    for place in &places {
        let sealed = place.starts_with("/proc/") || place.starts_with("/sys/");
        assert!(sealed || known.contains(&place.as_str()), "{place} in {places:?}");
    }
    assert_eq!(places.iter().filter(|p| *p == "/").count(), 1);
}

#[test]
fn wrong_mounts_are_refused_by_name() {
    need!("busybox");
    let cases: [(&str, &str, &str, &[&str], &str); 6] = [
        ("", "tmpfs", "t", &[], "mounts[7]"),
        ("/", "tmpfs", "t", &[], "root itself"),
        ("/m", "bind", "", &["bind"], "mounts[7]"),
        ("/m", "", "", &[], "mounts[7]"),
        ("/m", "bind", "/no/such/source", &["bind"], "/no/such/source"),
        ("/m", "no-such-fs", "x", &[], "no-such-fs"),
    ];
    for (destination, kind, source, options, said) in cases {
        let told = refused(|c| mount(c, destination, kind, source, options));
        assert!(told.contains(said), "{said}: {told}");
    }
}

#[test]
fn other_file_systems_are_the_kernels_business() {
    need!("busybox");
    let text = info(|c| mount(c, "/m", "ramfs", "ram", &["mode=700"]));
    assert_eq!(mounted(&text, "/m").kind, "ramfs");
    // Words of mount(8) alone mean nothing here.
    output("true", |c| mount(c, "/m", "tmpfs", "t", &["defaults", "nofail", "silent", "auto", "_netdev"]));
}
