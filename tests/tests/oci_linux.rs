//! `linux`, `hostname` and `domainname` of the OCI runtime spec, but for resources and seccomp.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::oci::{
    BASE, chown_all, in_user_namespace, mounted, namespaces, output, push, refused, run_in,
};
use airlock_tests::{Bundle, State, need, unique, wait};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A process in new namespaces, whose files in `/proc/<pid>/ns` can be joined. Killed at the end.
struct Elsewhere(Child);

impl Elsewhere {
    /// `flags` of unshare(1).
    fn new(flags: &[&str]) -> Self {
        let child = Command::new("unshare")
            .args(flags)
            .args(["sleep", "1000"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
        let elsewhere = Self(child);
        // Every use of it unshares the mount namespace as well, which is how its arrival is seen.
        wait::until("unshare", || {
            let pid = elsewhere.0.id();
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            let there = std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()? != own;
            (there && comm.trim() == "sleep").then_some(())
        });
        elsewhere
    }

    fn path(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.0.id())
    }

    fn link(&self, kind: &str) -> String {
        std::fs::read_link(self.path(kind)).unwrap().to_str().unwrap().to_owned()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn own(kind: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

const KINDS: [(&str, &str); 7] = [
    ("pid", "pid"),
    ("net", "network"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("time", "time"),
];

#[test]
fn namespaces_are_new_if_listed_and_the_callers_if_not() {
    need!("busybox");
    let script = "for n in pid net ipc uts cgroup user time mnt; do readlink /proc/self/ns/$n; done";
    let with = |list: &[&str], user: bool| {
        let bundle = Bundle::with(&["sh", "-c", script], |c| {
            namespaces(c, list);
            if user {
                in_user_namespace(c);
            }
            c["hostname"] = Value::Null;
            c["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] == "/proc");
        });
        if user {
            chown_all(&bundle.rootfs(), BASE);
        }
        let ran = run_in(&State::new(), &bundle);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = with(&["pid", "network", "ipc", "uts", "cgroup", "time", "mount"], true);
    let none = with(&["mount"], false);
    for (i, (file, _)) in KINDS.iter().enumerate() {
        assert_ne!(all[i], own(file), "{file}");
        assert_eq!(none[i], own(file), "{file}");
    }
    assert!(all[7] != own("mnt") && none[7] != own("mnt"));
    // An empty path is how some callers write "new".
    let empty = with(&["pid=", "network=", "ipc=", "uts=", "mount="], false);
    for (i, (file, _)) in KINDS.iter().enumerate().take(4) {
        assert_ne!(empty[i], own(file), "{file}");
    }
}

#[test]
fn namespaces_are_joined_by_path() {
    need!("busybox", "unshare");
    let elsewhere = Elsewhere::new(&["--mount", "--net", "--ipc", "--uts", "--cgroup", "--time"]);
    for (file, kind) in
        [("net", "network"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup"), ("time", "time")]
    {
        let got = output(&format!("readlink /proc/self/ns/{file}"), |c| {
            let list = c["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|n| n["type"] != kind);
            list.push(json!({"type": kind, "path": elsewhere.path(file)}));
            c["hostname"] = Value::Null;
        });
        assert_eq!(got.trim(), elsewhere.link(file), "{kind}");
    }
    let told = refused(|c| namespaces(c, &["mount", "uts", &format!("network={}", elsewhere.path("ipc"))]));
    assert!(told.contains("another kind"), "{told}");
    let told = refused(|c| namespaces(c, &["mount", "uts", "network=/etc/passwd"]));
    assert!(told.contains("not a namespace"), "{told}");
    assert!(refused(|c| namespaces(c, &["mount", "uts", "ipc=/no/such"])).contains("/no/such"));
    assert!(refused(|c| namespaces(c, &["mount", "uts", "uts"])).contains("linux.namespaces[2]"));
    assert!(refused(|c| namespaces(c, &["uts", "pid"])).contains("add type mount"));
    let path = format!("mount={}", elsewhere.path("mnt"));
    assert!(refused(|c| namespaces(c, &["uts", &path])).contains("joins no other mount namespace"));
}

#[test]
fn a_pid_namespace_is_joined_by_path() {
    need!("busybox", "unshare");
    let state = State::new();
    let first = Bundle::new(&["sleep", "1000"]);
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", first.text(), &id]);
    let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
    let path = format!("/proc/{}/ns/pid", pids[0]);
    let link = std::fs::read_link(&path).unwrap();
    let bundle = Bundle::with(&["sh", "-c", "readlink /proc/self/ns/pid; test $$ -ne 1 && ps"], |c| {
        namespaces(c, &["mount", "uts", "ipc", "network", &format!("pid={path}")]);
    });
    let ran = run_in(&state, &bundle);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().next(), link.to_str());
    assert!(ran.stdout.contains("sleep 1000"), "{}", ran.stdout);
    assert_eq!(state.status(&id), "running");
}

#[test]
fn the_hosts_pid_namespace() {
    need!("busybox");
    let me = std::process::id();
    let state = State::new();
    let bundle = Bundle::with(&["sh", "-c", &format!("test -d /proc/{me} && sleep 1000 & wait")], |c| {
        namespaces(c, &["mount", "network", "ipc", "uts"]);
    });
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let pids: Vec<i32> = wait::until("two processes", || {
        let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
        (pids.len() >= 2).then_some(pids)
    });
    // No pid namespace that ends takes them along: the container does.
    state.ok(["kill", &id, "KILL"]);
    wait::until("the end of all its processes", || {
        pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    wait::until("stopped", || (state.status(&id) == "stopped").then_some(()));
}

#[test]
fn the_hosts_network() {
    need!("busybox");
    let without: Vec<&str> = vec!["mount", "pid", "ipc", "uts"];
    let seen = output("ls /sys/class/net; readlink /proc/self/ns/net", |c| namespaces(c, &without));
    assert_eq!(seen.lines().last().unwrap(), own("net"));
    let mut devices: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    devices.sort();
    assert_eq!(seen.lines().take(devices.len()).collect::<Vec<_>>(), devices);
    // And a new one has loopback, up.
    assert!(output("ip -o addr show lo", |_| {}).contains("127.0.0.1/8"));
}

#[test]
fn hostname_and_domainname() {
    need!("busybox");
    let names = output("hostname; cat /proc/sys/kernel/domainname", |c| {
        c["hostname"] = json!("a-name");
        c["domainname"] = json!("example.org");
    });
    assert_eq!(names, "a-name\nexample.org\n");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(output("hostname", |c| c["hostname"] = Value::Null), host);
    for item in ["hostname", "domainname"] {
        let told = refused(|c| {
            namespaces(c, &["mount", "pid"]);
            c["hostname"] = Value::Null;
            c[item] = json!("x");
        });
        assert!(told.starts_with(item), "{told}");
        assert!(refused(|c| c[item] = json!("x".repeat(65))).contains("65 bytes"));
    }
}

#[test]
fn clocks_of_a_time_namespace() {
    need!("busybox");
    let up = |offset: i64| {
        let text = output("cat /proc/uptime /proc/self/timens_offsets", |c| {
            push(c, "/linux/namespaces", json!({"type": "time"}));
            c["linux"]["timeOffsets"] =
                json!({"boottime": {"secs": offset, "nanosecs": 5}, "monotonic": {"secs": 77}});
        });
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        assert_eq!(words[2..], ["monotonic", "77", "0", "boottime", &offset.to_string(), "5"]);
        words[0].parse::<f64>().unwrap()
    };
    let host: f64 =
        std::fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(up(1_000_000) >= host + 1_000_000.0);
    let told = refused(|c| c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}}));
    assert!(told.contains("linux.timeOffsets"), "{told}");
    let told = refused(|c| {
        push(c, "/linux/namespaces", json!({"type": "time"}));
        c["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}});
    });
    assert!(told.contains("linux.timeOffsets") && told.contains("realtime"), "{told}");
}

#[test]
fn devices_and_the_default_ones() {
    need!("busybox");
    let script = "cd /dev; for d in null zero full random urandom tty fuse block pipe sub/zero; do stat -c '%n %F %t:%T %a %u:%g' $d; done
        for l in fd stdin stdout stderr ptmx; do readlink $l; done";
    let seen = output(script, |c| {
        c["linux"]["devices"] = json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 3, "gid": 4},
            {"path": "/dev/block", "type": "b", "major": 7, "minor": 300},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
            {"path": "/dev/sub/zero", "type": "u", "major": 1, "minor": 5},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}
        ]);
    });
    let expected = [
        "null character special file 1:3 600 0:0",
        "zero character special file 1:5 666 0:0",
        "full character special file 1:7 666 0:0",
        "random character special file 1:8 666 0:0",
        "urandom character special file 1:9 666 0:0",
        "tty character special file 5:0 666 0:0",
        "fuse character special file a:e5 640 3:4",
        "block block special file 7:12c 666 0:0",
        "pipe fifo 0:0 600 0:0",
        "sub/zero character special file 1:5 666 0:0",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
    ];
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
    let told =
        refused(|c| c["linux"]["devices"] = json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 1}]));
    assert!(told.contains("linux.devices[0]"), "{told}");
    let told = refused(|c| {
        c["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": 5000, "minor": 1}])
    });
    assert!(told.contains("linux.devices[0]") && told.contains("5000"), "{told}");
}

#[test]
fn masked_and_read_only_paths() {
    need!("busybox");
    let script = "cat /secret/file; ls -A /hidden; cat /proc/kcore | head -c 1 | wc -c; ls -A /linked/
        echo x >/fixed/file; echo x >/free/file; echo 1 >/proc/sys/kernel/printk; cat /fixed/file; touch /hidden/new";
    let bundle = Bundle::with(&["sh", "-c", script], |c| {
        c["linux"]["maskedPaths"] =
            json!(["/secret/file", "/hidden", "/proc/kcore", "/linked", "/not/there"]);
        c["linux"]["readonlyPaths"] = json!(["/fixed", "/proc/sys", "/nor/there"]);
    });
    for file in ["secret/file", "hidden/file", "fixed/file", "free/file", "target/file"] {
        let path = bundle.rootfs().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "content\n").unwrap();
    }
    symlink("target", bundle.rootfs().join("linked")).unwrap();
    let ran = run_in(&State::new(), &bundle);
    assert_eq!(ran.stdout, "0\ncontent\n", "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("Read-only file system").count(), 3, "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(bundle.rootfs().join("free/file")).unwrap(), "x\n");
    assert!(refused(|c| c["linux"]["maskedPaths"] = json!(["proc/kcore"])).contains("linux.maskedPaths[0]"));
    assert!(refused(|c| c["linux"]["readonlyPaths"] = json!(["proc"])).contains("linux.readonlyPaths[0]"));
}

#[test]
fn sysctls() {
    need!("busybox");
    let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max /proc/sys/kernel/domainname";
    let seen = output(script, |c| {
        c["linux"]["sysctl"] = json!({
            "net.ipv4.ip_forward": "1", "net/ipv4/conf/lo/forwarding": "0", "kernel.msgmax": "7777", "fs.mqueue.msg_max": "33",
            "kernel.domainname": "by-sysctl"
        });
        // Sealed for the container, not for us.
        c["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    });
    let mut lines: Vec<&str> = seen.lines().collect();
    // ip_forward writes all of conf/, and nobody says in which order sysctls are written.
    assert!(["0", "1"].contains(&lines.remove(1)));
    assert_eq!(lines, ["1", "7777", "33", "by-sysctl"]);
    for (name, said) in [
        ("vm.overcommit_memory", "separate kernel namespace"),
        ("kernel.hostname", "conflicts"),
        ("net..x", "not the name"),
        ("net.no.such", "net.no.such"),
    ] {
        let told = refused(|c| c["linux"]["sysctl"] = json!({name: "1"}));
        assert!(told.contains("linux.sysctl") && told.contains(said), "{name}: {told}");
    }
    let hosts = refused(|c| {
        c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        namespaces(c, &["mount", "pid", "uts"]);
    });
    assert!(hosts.contains("host's network namespace"), "{hosts}");
    // Joined, but the caller's own all the same.
    let joined = refused(|c| {
        c["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        namespaces(c, &["mount", "pid", "uts", "network=/proc/self/ns/net"]);
    });
    assert!(joined.contains("linux.sysctl") && joined.contains("host net namespace"), "{joined}");
}

#[test]
fn rootfs_propagation() {
    need!("busybox");
    let root = |word: Option<&str>| {
        let text = output("cat /proc/self/mountinfo", |c| c["linux"]["rootfsPropagation"] = json!(word));
        mounted(&text, "/")
            .propagation
            .iter()
            .map(|p| p.split(':').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(!root(None).contains(&"shared".to_owned()));
    for word in ["private", "rprivate", "slave", "rslave"] {
        assert!(!root(Some(word)).contains(&"shared".to_owned()), "{word}");
    }
    for word in ["shared", "rshared"] {
        assert!(root(Some(word)).contains(&"shared".to_owned()), "{word}");
    }
    assert_eq!(root(Some("unbindable")), ["unbindable"]);
    assert!(refused(|c| c["linux"]["rootfsPropagation"] = json!("both")).contains("linux.rootfsPropagation"));
}

#[test]
fn personality_of_the_container_and_of_exec() {
    need!("busybox");
    let bundle =
        Bundle::with(&["sleep", "1000"], |c| c["linux"]["personality"] = json!({"domain": "LINUX32"}));
    symlink("busybox", bundle.rootfs().join("bin/uname")).unwrap();
    let state = State::new();
    let id = unique("oci");
    state.detached(&["run", "-d", "--bundle", bundle.text(), &id]);
    let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/personality", pids[0])).unwrap(), "00000008\n");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(state.ok(["exec", &id, "uname", "-m"]), "i686\n");
    }
    let own = std::fs::read_to_string("/proc/self/personality").unwrap();
    assert_eq!(
        output("cat /proc/self/personality", |c| c["linux"]["personality"] = json!({"domain": "LINUX"})),
        "00000000\n"
    );
    assert_eq!(output("cat /proc/self/personality", |_| {}), own);
    assert!(refused(|c| c["linux"]["personality"] = json!({"domain": "LINUX64"})).contains("LINUX64"));
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    need!("busybox");
    for (item, value) in [
        ("intelRdt", json!({"l3CacheSchema": "L3:0=f"})),
        ("memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"})),
        ("netDevices", json!({"eth9": {}})),
    ] {
        let told = refused(|c| c["linux"][item] = value);
        assert!(told.contains(&format!("linux.{item}")), "{told}");
    }
    for version in ["", "1", "2.0.0", "1.0.2.3", "latest"] {
        assert!(refused(|c| c["ociVersion"] = json!(version)).contains("ociVersion"), "{version}");
    }
    // Sections for other systems, and whatever else nobody knows, say nothing to us.
    output("true", |c| {
        c["windows"] = json!({"layerFolders": ["x"]});
        c["x-vendor"] = json!({"y": 1});
        c["linux"]["x-vendor"] = json!(null);
    });
}

#[test]
fn cgroups_path() {
    need!("busybox");
    let name = unique("airlock-oci-path");
    let script = "cat /proc/self/cgroup";
    let hierarchy = |text: &str| {
        let line = text.lines().find(|l| l.contains(":pids:") || l.starts_with("0::")).unwrap();
        line.rsplit(':').next().unwrap().to_owned()
    };
    let within = |text: &str, path: &str| {
        let own = hierarchy(&std::fs::read_to_string("/proc/self/cgroup").unwrap());
        let got = hierarchy(text);
        assert!(
            got == path || got.starts_with(&format!("{path}/")) || got.contains(path),
            "{got} is not {path} (we are in {own})"
        );
    };
    within(
        &output(script, |c| c["linux"]["cgroupsPath"] = json!(format!("/{name}/a"))),
        &format!("/{name}/a"),
    );
    within(&output(script, |c| c["linux"]["cgroupsPath"] = json!(format!("{name}/b"))), &format!("{name}/b"));
    assert!(refused(|c| c["linux"]["cgroupsPath"] = json!("/a/../../b")).contains("linux.cgroupsPath"));

    // systemd's naming, with the option that says so.
    let state = State::new();
    let bundle = Bundle::with(&["sh", "-c", script], |c| {
        c["linux"]["cgroupsPath"] = json!(format!("{name}.slice:air:{name}"))
    });
    let ran = state.run(["--systemd-cgroup", "run", "--bundle", bundle.text(), &name]);
    let told = String::from_utf8_lossy(&ran.stderr).into_owned();
    if ran.status.success() {
        within(&String::from_utf8_lossy(&ran.stdout), &format!("air-{name}.scope"));
    } else {
        assert!(told.to_lowercase().contains("systemd") || told.contains("cgroupsPath"), "{told}");
    }
    let bad = Bundle::with(&["true"], |c| c["linux"]["cgroupsPath"] = json!("/plain/path"));
    let told = state.fails(["--systemd-cgroup", "run", "--bundle", bad.text(), &name]);
    if Path::new("/run/systemd/system").exists() {
        assert!(told.contains("cgroupsPath") && told.contains("slice"), "{told}");
    } else {
        assert!(told.contains("--systemd-cgroup: systemd does not run here"), "{told}");
    }
    // Nothing of ours stays; parents that were made for it may.
    for left in airlock_tests::leaks::cgroups(&name) {
        assert!(!left.ends_with("/a") && !left.ends_with("/b") && !left.contains(".scope"), "{left}");
        let _ = std::fs::remove_dir(&left);
    }
}

#[test]
fn annotations_are_in_the_state() {
    need!("busybox");
    let state = State::new();
    let bundle =
        Bundle::with(&["sleep", "1000"], |c| c["annotations"] = json!({"org.example.a": "1", "b": ""}));
    let id = unique("oci");
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    assert_eq!(state.state(&id)["annotations"], json!({"org.example.a": "1", "b": ""}));
    assert!(refused(|c| c["annotations"] = json!({"": "x"})).contains("annotations"));
}
