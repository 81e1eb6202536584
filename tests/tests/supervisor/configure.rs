//! Define and Configure: every field.
use super::*;
use std::os::unix::fs::PermissionsExt;

/// Starts a new domain with `more` configured, its root and `donated` in that order.
fn start(host: &Host, caller: &mut Caller, more: Value, donated: &[BorrowedFd<'_>]) -> String {
    let domain = unique("dom");
    let rootfs = host.rootfs();
    let mut all = vec![rootfs.as_fd()];
    all.extend(donated);
    caller.ok("Supervisor.Configure", &root(&domain, more), &all);
    caller.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
    domain
}

#[test]
fn donated_mounts_are_where_they_belong() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(one.path().join("file"), "one").unwrap();
        std::fs::write(two.path().join("file"), "two").unwrap();
        let mounts = json!([
            {"type": "drive", "source": "/dev/vdx", "destination": "/mnt/drive", "fs_type": "ext4",
             "options": ["noexec", "nosuid"], "chowner": [12, 34], "chmode": 0o1777},
            {"type": "bind", "source": "/two", "destination": "/mnt/bind", "options": ["ro"]},
        ]);
        let donated = [tree(one.path()), tree(two.path())];
        let domain = start(&host, &mut caller, json!({"mounts": mounts}), &fds(&donated));
        let text = shell(
            &mut caller,
            &domain,
            "cat /mnt/drive/file /mnt/bind/file; stat -c ' %u %g %a' /mnt/drive; touch /mnt/drive/x && echo rw; touch /mnt/bind/x 2>&1; grep /mnt/drive /proc/mounts",
        );
        assert!(text.starts_with("onetwo 12 34 1777\nrw\n"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(text.contains("nosuid") && text.contains("noexec"), "{text}");
        let meta = std::fs::metadata(one.path()).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o1777);
    }
}

#[test]
fn mounts_without_descriptors_come_from_the_parent_domain() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    std::fs::create_dir_all(host.bundle.rootfs().join("srv/inner")).unwrap();
    std::fs::write(host.bundle.rootfs().join("srv/inner/file"), "from the parent\n").unwrap();
    for mut caller in host.both() {
        let domain = unique("dom");
        let mounts = json!([
            {"type": "bind", "source": "/", "destination": "/"},
            {"type": "bind", "source": "/srv/inner", "destination": "/tmp/inner", "options": ["ro", "rbind"]},
            {"type": "drive", "source": "tmpfs", "destination": "/tmp/memory", "fs_type": "tmpfs",
             "options": ["size=1m", "nodev", "ro"], "chowner": [5, 6], "chmode": 0o1777},
        ]);
        caller.ok("Supervisor.Configure", &json!({"domain": domain, "mounts": mounts}), &[]);
        caller.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
        let text = shell(
            &mut caller,
            &domain,
            "cat /tmp/inner/file; stat -c '%u %g %a' /tmp/memory; grep ' /tmp/memory ' /proc/mounts",
        );
        assert!(text.starts_with("from the parent\n5 6 1777\n"), "{text}");
        assert!(text.contains("size=1024k") && text.contains("nodev") && text.contains(" ro,"), "{text}");

        let bad = |mount: Value| json!({"domain": unique("dom"), "mounts": [{"type": "bind", "source": "/", "destination": "/"}, mount]});
        for (mount, part) in [
            (
                json!({"type": "bind", "source": "/nowhere", "destination": "/a"}),
                "mount \"/a\": opening \"/nowhere\" in the parent domain",
            ),
            (
                json!({"type": "bind", "source": "/srv", "destination": "/a", "options": ["size=5"]}),
                "\"size\" is no option of a bind",
            ),
            (json!({"type": "bind", "source": "/srv", "destination": "/a", "options": ["idmap"]}), "idmap"),
            (
                json!({"type": "drive", "source": "x", "destination": "/a", "fs_type": "nofs"}),
                "no file system \"nofs\"",
            ),
            (
                json!({"type": "drive", "source": "x", "destination": "/a", "fs_type": "tmpfs", "options": ["nonsense=1"]}),
                "cannot be mounted",
            ),
            (
                json!({"type": "drive", "source": "x", "destination": "/a", "fs_type": "tmpfs", "chmode": 0o100000}),
                "permission bits",
            ),
            (json!({"type": "drive", "source": "x", "destination": "/a"}), "needs fs_type"),
            (json!({"type": "bind", "source": "/srv", "destination": "a"}), "not absolute"),
            (json!({"type": "bind", "source": "/srv", "destination": "/"}), "more than one root"),
        ] {
            refused(&caller.fails("Supervisor.Configure", &bad(mount), &[]), "failure", part);
        }
    }
    let mut caller = host.json();
    let none = caller.fails("Supervisor.Configure", &json!({"domain": "rootless"}), &[]);
    refused(
        &none,
        "failure",
        "domain \"rootless\" was not defined and has no root: give one of the mounts the destination \"/\"",
    );
    let union = json!({"domain": "d", "mounts": [{"type": "tape"}]});
    refused(
        &caller.fails("Supervisor.Configure", &union, &[]),
        "serde",
        "its type is \"tape\", want drive or bind",
    );
}

#[test]
fn images_of_drives_are_mounted() {
    airlock_tests::need!("busybox", "mkfs.erofs");
    let host = Host::new();
    let mut caller = host.json();
    let (dir, image) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(dir.path().join("file"), "in an image\n").unwrap();
    let made = std::process::Command::new("mkfs.erofs").arg(image.path()).arg(dir.path()).output().unwrap();
    assert!(made.status.success());
    let file: OwnedFd = std::fs::File::open(image.path()).unwrap().into();
    let drive = |kind: &str| json!({"mounts": [{"type": "drive", "source": "img", "destination": "/img", "fs_type": kind}]});
    let rootfs = host.rootfs();
    let domain = unique("dom");
    let text =
        caller.fails("Supervisor.Configure", &root(&domain, drive("ext4")), &[rootfs.as_fd(), file.as_fd()]);
    refused(&text, "failure", "an image of type \"ext4\" needs a loop device");
    match caller.call("Supervisor.Configure", &root(&domain, drive("erofs")), &[rootfs.as_fd(), file.as_fd()])
    {
        Ok(_) => {
            caller.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
            assert_eq!(shell(&mut caller, &domain, "cat /img/file"), "in an image\n");
        }
        // The kernel's own reason, by name.
        Err(text) => refused(&text, "failure", "erofs"),
    }
}

#[test]
fn users_capabilities_and_filters_hold_for_processes() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let look =
            "id -u; id -g; grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status; unshare -m true 2>&1; echo $?";
        // Nobody, with nothing, by default.
        let domain = host.started(&mut caller);
        let text = shell(&mut caller, &domain, look);
        assert!(text.starts_with("0\n0\n"), "{text}");
        assert!(text.contains("CapEff:\t0000000000000000") && text.contains("Seccomp:\t0"), "{text}");
        let all = json!(["CAP_SYS_ADMIN", "kill"]);
        let more = json!({
            "exec_user": {"uid": 993, "gid": 990},
            "capabilities": {"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all},
            "seccomp_filters": ["default"],
        });
        let domain = start(&host, &mut caller, more, &[]);
        let text = shell(&mut caller, &domain, look);
        assert!(text.starts_with("993\n990\n"), "{text}");
        assert!(
            text.contains("CapEff:\t0000000000200020") && text.contains("CapBnd:\t0000000000200020"),
            "{text}"
        );
        // It could, but for the filter.
        assert!(text.contains("Seccomp:\t2") && text.contains("Operation not permitted"), "{text}");
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}],
        });
        let domain = start(
            &host,
            &mut caller,
            json!({"seccomp_filters": [profile.to_string()], "exec_user": {"uid": null, "gid": 7}}),
            &[],
        );
        let text = shell(&mut caller, &domain, "id -u; id -g; mkdir /tmp/x 2>&1");
        assert!(text.starts_with("0\n7\n") && text.contains("Read-only file system"), "{text}");

        let rootfs = host.rootfs();
        for (more, part) in [
            (json!({"seccomp_filters": ["strict"]}), "\"strict\" is no filter; there are default, no-ptrace"),
            (
                json!({"capabilities": {"ambient": ["CAP_FLY"]}}),
                "capabilities.ambient: \"CAP_FLY\" is no capability",
            ),
            (json!({"start_profile": "throttled"}), "has no cgroup_profiles"),
            (json!({"cgroup_profiles": {"throttled": {"cpu_limit": -1.0}}}), "throttled.cpu_limit is -1"),
            (json!({"additional_start_hooks": [{"name": "h", "path": "h"}]}), "is not absolute"),
        ] {
            let text = caller.fails("Supervisor.Configure", &root(&unique("dom"), more), &[rootfs.as_fd()]);
            refused(&text, "failure", part);
        }
        for name in ["", "a/b", "..", "a b"] {
            let text = caller.fails("Supervisor.Configure", &root(name, json!({})), &[rootfs.as_fd()]);
            refused(&text, "failure", "a name has 1 to 247 of the characters");
        }
    }
}

#[test]
fn profiles_are_set_at_the_start_and_the_throttled_one_at_every_thaw() {
    airlock_tests::need!("busybox");
    if !std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        airlock_tests::skip!("needs cgroup v1 hierarchies of cpu and memory");
    }
    let host = Host::new();
    let mut caller = host.json();
    let profiles = json!({
        "throttled": {"cpu_limit": 0.25, "memory_limit_bytes": 64 << 20},
        "unthrottled": {"cpu_limit": 1.5, "memory_limit_bytes": 0},
    });
    let limits = |domain: &str| {
        let file = |controller: &str, file: &str| host.cgroup_file(controller, domain, file).unwrap();
        let memory: u64 = file("memory", "memory.limit_in_bytes").parse().unwrap();
        (file("cpu", "cpu.cfs_quota_us"), memory)
    };
    let domain =
        start(&host, &mut caller, json!({"cgroup_profiles": profiles, "start_profile": "unthrottled"}), &[]);
    let (quota, memory) = limits(&domain);
    assert_eq!(quota, "150000");
    assert!(memory > 1 << 50);
    caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
    assert_eq!(limits(&domain).0, "150000");
    caller.ok("Supervisor.Thaw", &json!({"domain": domain}), &[]);
    assert_eq!(limits(&domain), ("25000".to_owned(), 64 << 20));
    // Without a start profile nothing is set before the first thaw.
    let domain = start(&host, &mut caller, json!({"cgroup_profiles": profiles}), &[]);
    assert_eq!(limits(&domain).0, "-1");
    let domain =
        start(&host, &mut caller, json!({"cgroup_profiles": profiles, "start_profile": "throttled"}), &[]);
    assert_eq!(limits(&domain), ("25000".to_owned(), 64 << 20));
}

#[test]
fn hooks_run_in_the_parent_domain_at_the_start() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    let said = |file: &str| std::fs::read_to_string(host.bundle.rootfs().join(file)).unwrap();
    for mut caller in host.both() {
        let domain = unique("dom");
        // A root of its own: what hooks write is in the parent's.
        let own = Bundle::new(&["-"]);
        let hook = |name: &str, script: &str| json!({"name": name, "path": "/bin/sh", "args": ["-c", script, "zero"], "envs": {"K": name, "PATH": "/bin"}});
        let hooks = json!([
            hook("first", "echo \"$0 $K $(hostname)\" > /tmp/hooks; pwd >> /tmp/hooks"),
            hook("second", "cat /tmp/hooks > /tmp/second; echo $K >> /tmp/second"),
            {"name": "bare", "path": "/bin/sh", "args": ["-c", "/bin/env > /tmp/env"], "envs": null},
        ]);
        let rootfs = tree(&own.rootfs());
        caller.ok(
            "Supervisor.Configure",
            &root(&domain, json!({"additional_start_hooks": hooks})),
            &[rootfs.as_fd()],
        );
        let _ = std::fs::remove_file(host.bundle.rootfs().join("tmp/hooks"));
        caller.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
        assert_eq!(said("tmp/second"), "zero first airlock-test\n/\nsecond\n");
        assert!(!said("tmp/env").contains("K="), "{}", said("tmp/env"));
        assert!(!own.rootfs().join("tmp/hooks").exists());

        for (script, part) in [
            ("echo because >&2; exit 3", "start hook \"bad\": exit status 3; it said: because"),
            ("kill -9 $$", "start hook \"bad\": killed by signal 9"),
        ] {
            let domain = host.configured(
                &mut caller,
                json!({"additional_start_hooks": [hook("good", "true"), hook("bad", script)]}),
            );
            let text = caller.fails("Supervisor.Start", &json!({"domain": domain}), &[]);
            refused(&text, "failure", part);
            assert_eq!(info(&mut caller, &domain)["state"], "stopped");
            assert_eq!(airlock_tests::leaks::cgroups(&domain), Vec::<String>::new());
        }
        let nothing = json!({"additional_start_hooks": [{"name": "lost", "path": "/bin/nothing"}]});
        let domain = host.configured(&mut caller, nothing);
        let text = caller.fails("Supervisor.Start", &json!({"domain": domain}), &[]);
        refused(&text, "failure", "start hook \"lost\"");
    }
}

#[test]
fn a_definition_gives_a_domain_its_configuration() {
    airlock_tests::need!("busybox");
    let host = Host::new();
    for mut caller in host.both() {
        let domain = unique("dom");
        let own = Bundle::with(&["/bin/never"], |config| {
            config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}]);
            config.as_object_mut().unwrap().remove("hostname");
            config["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}]);
            config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "cgroup");
        });
        let (rootfs, data) = (tree(&own.rootfs()), tempfile::tempdir().unwrap());
        std::fs::write(data.path().join("file"), "data\n").unwrap();
        let define =
            json!({"domain": domain, "spec": own.config(), "bundle": own.text(), "fds": {"gofer": [0]}});
        caller.ok("Supervisor.Define", &define, &[rootfs.as_fd()]);
        refused(
            &caller.fails("Supervisor.Define", &define, &[rootfs.as_fd()]),
            "invalid_state",
            "exists: it is configured",
        );
        // Completed by Configure, whose mounts come behind those of the spec.
        let mount = json!({"domain": domain, "mounts": [{"type": "bind", "source": "/data", "destination": "/data"}]});
        caller.ok("Supervisor.Configure", &mount, &[tree(data.path()).as_fd()]);
        caller.ok("Supervisor.Start", &json!({"domain": domain}), &[]);
        let text =
            shell(&mut caller, &domain, "id -u; ulimit -n; cat /data/file; grep CapBnd /proc/self/status");
        assert!(text.starts_with("1000\n77\ndata\n"), "{text}");
        assert!(text.contains("CapBnd:\t0000000020000420"), "{text}");
        refused(
            &caller.fails("Supervisor.Define", &define, &[rootfs.as_fd()]),
            "invalid_state",
            "exists: it is started",
        );
        caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
        caller.ok("Supervisor.Define", &define, &[rootfs.as_fd()]);

        let other = |member: &str, value: Value| {
            let mut define = define.clone();
            define["domain"] = json!(unique("dom"));
            define[member] = value;
            define
        };
        for (define, kind, part) in [
            (other("spec", json!(null)), "failure", "spec is missing"),
            (other("spec", json!({"ociVersion": 5})), "serde", "spec"),
            (other("spec", json!({"ociVersion": "7.0.0"})), "failure", "ociVersion"),
            (other("fds", json!({"gofer": []})), "failure", "no descriptor came for the root filesystem"),
            (other("fds", json!({"gofer": [4]})), "failure", "4"),
        ] {
            refused(&caller.fails("Supervisor.Define", &define, &[rootfs.as_fd()]), kind, part);
        }
    }
}

#[test]
fn a_domain_lives_in_its_sandboxs_user_namespace() {
    airlock_tests::need!("busybox");
    use airlock_tests::oci::{BASE, chown_all, in_user_namespace};
    let bundle = Bundle::with(&["/bin/sleep", "1000000"], in_user_namespace);
    chown_all(&bundle.rootfs(), BASE);
    let host = Host::of(bundle);
    for mut caller in host.both() {
        let data = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(data.path(), Some(BASE), Some(BASE)).unwrap();
        let mounts = json!([
            {"type": "drive", "source": "x", "destination": "/mnt/data", "fs_type": "x", "chowner": [12, 34], "chmode": 0o755},
        ]);
        let more = json!({"mounts": mounts, "exec_user": {"uid": 5, "gid": 6}});
        let domain = start(&host, &mut caller, more, &[tree(data.path()).as_fd()]);
        let text = shell(
            &mut caller,
            &domain,
            "id -u; id -g; stat -c '%u %g' /mnt/data; cat /proc/self/uid_map; echo x > /dev/null; head -c 2 /dev/zero | wc -c",
        );
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        assert_eq!(words, ["5", "6", "12", "34", "0", "100000", "65536", "2"], "{text}");
        let meta = std::fs::metadata(data.path()).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), BASE + 12);
        caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
        caller.ok("Supervisor.Thaw", &json!({"domain": domain}), &[]);
        caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    }
}

#[test]
fn on_cgroup_v2_a_domain_without_a_donated_cgroup_has_no_profiles() {
    airlock_tests::v2::inside("configure::profiles_are_refused_on_v2_inside");
}

#[test]
#[ignore = "started by the test above"]
fn profiles_are_refused_on_v2_inside() {
    if !airlock_tests::v2::is_v2() {
        return;
    }
    let host = Host::new();
    let mut caller = host.json();
    let profiles = json!({"throttled": {"cpu_limit": 1, "memory_limit_bytes": 0}, "unthrottled": {}});
    let domain =
        host.configured(&mut caller, json!({"cgroup_profiles": profiles, "start_profile": "throttled"}));
    let text = caller.fails("Supervisor.Start", &json!({"domain": domain}), &[]);
    refused(
        &text,
        "failure",
        "start_profile: the domain has no cgroup of its own with the controllers cpu and memory",
    );
    // All else works there.
    let domain = host.started(&mut caller);
    spawn(&mut caller, &domain, &["/bin/sh", "-c", "while true; do true; done"]);
    let frozen = caller.ok("Supervisor.Freeze", &json!({"domain": domain}), &[]);
    assert!(frozen["cycle_delta_metrics"]["domain_cpu_run_ns"].as_u64().unwrap() > 0, "{frozen}");
    caller.ok("Supervisor.Stop", &json!({"domain": domain, "deadline": soon()}), &[]);
    assert_eq!(airlock_tests::leaks::cgroups(&domain), Vec::<String>::new());
}
