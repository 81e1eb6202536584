//! Attacks on container runtimes that became known, tried against the real binary. docs/THREAT-MODEL.md lists them.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "hostile/inside.rs"]
mod inside;
#[path = "hostile/races.rs"]
mod races;

use airlock_tests::{Bundle, State, airlock, leaks, need, skip, unique, wait};
use serde_json::json;
use std::fs::OpenOptions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

fn loader(state: &State, id: &str) -> i32 {
    state.state(id)["pid"].as_i64().unwrap() as i32
}

#[test]
fn the_runtime_binary_cannot_be_written_from_a_container() {
    need!("busybox");
    let before = std::fs::read(airlock()).unwrap();
    let (state, id) = (State::new(), unique("exe"));
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    // What a container could reach at best is the file as its runtime's process sees it: not even the host's root may
    // write it that way.
    let pid = loader(&state, &id);
    let error = OpenOptions::new().write(true).open(format!("/proc/{pid}/exe")).unwrap_err();
    let errno = error.raw_os_error();
    assert!(errno == Some(libc::EROFS) || errno == Some(libc::ETXTBSY), "{error}");
    // The init executes itself: whatever comes of it, nothing of it can be opened for writing.
    let script = "exec 3>>/proc/self/exe || exec /proc/self/exe --version; echo opened";
    for args in [vec!["/proc/self/exe", "--version"], vec!["/bin/sh", "-c", script]] {
        let out = state.run([vec!["run", "--bundle", Bundle::new(&args).text(), &unique("self")]].concat());
        assert!(!String::from_utf8_lossy(&out.stdout).contains("opened"), "{out:?}");
    }
    assert!(std::fs::read(airlock()).unwrap() == before, "the binary has changed");
}

#[test]
fn a_joining_process_shows_nothing() {
    need!("busybox");
    let look = "while :; do for p in /proc/[0-9]*; do readlink $p/exe; ls -l $p/fd; done; done 2>/dev/null \
                | grep -e airlock -e state.json -e control.sock >> /tmp/seen & while :; do sleep 1; done";
    let bundle = Bundle::new(&["/bin/sh", "-c", look]);
    let (state, id) = (State::new(), unique("look"));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    for _ in 0..40 {
        state.ok(["exec", &id, "/bin/true"]);
    }
    assert_eq!(std::fs::read_to_string(bundle.rootfs().join("tmp/seen")).unwrap_or_default(), "");
}

#[test]
fn proc_as_a_symlink_is_refused() {
    need!("busybox");
    for name in ["proc", "sys"] {
        let bundle = Bundle::new(&["/bin/true"]);
        std::fs::remove_dir(bundle.rootfs().join(name)).unwrap();
        symlink("/tmp", bundle.rootfs().join(name)).unwrap();
        let (state, id) = (State::new(), unique("link"));
        let text = state.fails(["run", "--bundle", bundle.text(), &id]);
        assert!(text.contains(name), "{text}");
        assert_eq!(leaks::cgroups(&id), Vec::<String>::new());
        assert_eq!(state.ok(["list", "-q"]), "");
    }
}

#[test]
fn dev_as_a_symlink_stays_inside() {
    need!("busybox");
    let outside = tempfile::tempdir().unwrap();
    let bundle = Bundle::new(&["/bin/true"]);
    std::fs::remove_dir(bundle.rootfs().join("dev")).unwrap();
    symlink(format!("../../../../../../../..{}", outside.path().display()), bundle.rootfs().join("dev"))
        .unwrap();
    let _ = State::new().run(["run", "--bundle", bundle.text(), &unique("dev")]);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "something was made on the host");
}

#[test]
fn a_descriptor_is_no_way_out_as_working_directory() {
    need!("busybox");
    let (state, id) = (State::new(), unique("cwd"));
    let sleeper = Bundle::new(&["/bin/sleep", "1000"]);
    state.detached(&["run", "--detach", "--bundle", sleeper.text(), &id]);
    let host_only = std::fs::metadata("/etc/shadow").is_ok();
    assert!(host_only, "the test looks for a file that only the host has");
    for n in 3..40 {
        let cwd = format!("/proc/self/fd/{n}");
        let bundle = Bundle::with(&["/bin/cat", "etc/shadow", "../etc/shadow", "../../etc/shadow"], |c| {
            c["process"]["cwd"] = json!(cwd);
        });
        if n < 20 {
            let out = state.run(["run", "--bundle", bundle.text(), &unique("cwd")]);
            assert!(out.stdout.is_empty(), "create with fd {n}: {}", String::from_utf8_lossy(&out.stdout));
        }
        let out =
            state.run(["exec", "--cwd", &cwd, &id, "cat", "etc/shadow", "../etc/shadow", "../../etc/shadow"]);
        assert!(out.stdout.is_empty(), "exec with fd {n}: {}", String::from_utf8_lossy(&out.stdout));
    }
}

#[test]
fn a_program_has_its_three_streams_and_nothing_else() {
    need!("busybox");
    let (state, id) = (State::new(), unique("fds"));
    let bundle = Bundle::new(&["/bin/sh", "-c", "ls /proc/self/fd; sleep 1000"]);
    let out =
        state.ok(["run", "--bundle", Bundle::new(&["/bin/ls", "/proc/self/fd"]).text(), &unique("fds")]);
    // The fourth is the directory that ls reads.
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let out = state.ok(["exec", &id, "/bin/ls", "/proc/self/fd"]);
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    // More than there are: none of our own is handed over instead.
    let out = state.ok(["exec", "--preserve-fds", "100", &id, "/bin/ls", "-l", "/proc/self/fd"]);
    assert!(!out.contains("airlock") && !out.contains("control.sock") && !out.contains("state"), "{out}");
}

#[test]
fn added_capabilities_are_not_inheritable() {
    need!("busybox");
    let (state, id) = (State::new(), unique("caps"));
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let out = state.ok(["exec", "--cap", "CAP_NET_RAW", &id, "/bin/grep", "Cap", "/proc/self/status"]);
    let field = |name: &str| {
        let line = out.lines().find(|l| l.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    assert_eq!(field("CapInh:"), 0, "{out}");
    assert_ne!(field("CapEff:") & (1 << 13), 0, "{out}");
}

#[test]
fn cgroup_files_are_not_writable() {
    need!("busybox");
    let script = "for f in /sys/fs/cgroup/*/tasks /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/cgroup.procs; do \
                  [ -e $f ] && echo 0 > $f && echo wrote $f; done; echo done";
    let out =
        State::new().run(["run", "--bundle", Bundle::new(&["/bin/sh", "-c", script]).text(), &unique("cg")]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "done\n");
}

#[test]
fn a_container_in_the_host_network_finds_no_control_socket() {
    need!("busybox");
    let bundle = Bundle::with(&["/bin/cat", "/proc/net/unix"], |c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "network");
        c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "sysfs" && m["type"] != "cgroup");
    });
    let (state, id) = (State::new(), unique("net"));
    let out = state.ok(["run", "--bundle", bundle.text(), &id]);
    assert!(out.contains("Path"), "the host's sockets are listed: {out}");
    let abstract_ones: Vec<_> = out.lines().filter(|l| l.contains('@') && l.contains(&id)).collect();
    assert_eq!(abstract_ones, Vec::<&str>::new());
}

#[test]
fn state_is_private_whatever_the_umask() {
    need!("busybox");
    let (state, id) = (State::new(), unique("umask"));
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let line = format!(
        "umask 0; exec {} --root {} run --detach --bundle {} {id}",
        airlock().display(),
        state.root().display(),
        bundle.text()
    );
    let status = Command::new("sh")
        .args(["-c", &line])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let mut open = vec![state.root()];
    let mut seen = 0;
    while let Some(path) = open.pop() {
        let mode = std::fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
        seen += 1;
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
    }
    assert!(seen > 3, "there is a state directory with files");
    wait::until("it runs", || (state.status(&id) == "running").then_some(()));
}

#[test]
fn an_annotation_changes_no_isolation() {
    need!("busybox");
    let annotations = json!({
        "run.oci.keep_original_groups": "1", "io.podman.annotations.privileged": "TRUE",
        "dev.gvisor.internal.nvproxy": "true", "run.oci.handler": "krun", "org.systemd.property.X": "'/etc'",
        "run.oci.seccomp_fail_unknown_syscall": "0", "run.oci.mount_context_type": "none", "run.oci.systemd.subgroup": "..",
        "io.kubernetes.cri-o.userns-mode": "auto", "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
        "io.kubernetes.cri.untrusted-workload": "true", "org.criu.config": "/etc/criu.conf", "privileged": "true",
        "dev.gvisor.flag.network": "host", "dev.gvisor.flag.debug": "true", "module.wasm.image/variant": "compat",
    });
    let args = [
        "/bin/sh",
        "-c",
        "grep -e Cap -e NoNew -e Seccomp: -e Groups /proc/self/status; cut -d' ' -f2-4 /proc/mounts | grep -v ' overlay'; \
         cat /proc/self/uid_map; id; ls /proc/self/fd /dev; hostname; ls /sys/class/net; ulimit -a",
    ];
    let outputs: Vec<String> = [false, true]
        .into_iter()
        .map(|with| {
            let bundle = Bundle::with(&args, |c| {
                if with {
                    c["annotations"] = annotations.clone();
                }
            });
            State::new().ok(["run", "--bundle", bundle.text(), &unique("note")])
        })
        .collect();
    assert_eq!(outputs[0], outputs[1]);
}
