//! Attacks by processes of a container on the runtime's processes that they can meet.
use super::*;
use std::os::unix::net::UnixStream;

/// Adds capabilities that a container may have without being able to do anything to the host.
fn with_caps(config: &mut serde_json::Value, more: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        let caps = config["process"]["capabilities"][set].as_array_mut().unwrap();
        caps.extend(more.iter().map(|c| json!(c)));
    }
}

#[test]
fn a_runtime_process_that_a_container_executes_cannot_be_written_to_either() {
    need!("busybox");
    let before = std::fs::read(airlock()).unwrap();
    // The host's files, so that the runtime finds its libraries.
    let bundle = Bundle::with(&["/bin/sleep", "1000"], |c| {
        c["root"] = json!({"path": "/", "readonly": true});
        with_caps(c, &["CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"]);
    });
    let (state, id) = (State::new(), unique("exe"));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    // The joining process is told to execute itself; with a socket as standard input it then waits for a boot message.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut exec = state
        .command(["exec", &id, "/proc/self/exe", "boot", "hostile"])
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let executed = wait::until("the process", || {
        let pids: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
        pids.into_iter().find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|c| c.starts_with(b"/proc/self/exe\0boot\0"))
        })
    });
    // While any process executes the file, writers are told so (ETXTBSY); what keeps them out for good is the mount.
    let mount = nix::sys::statvfs::statvfs(format!("/proc/{executed}/exe").as_str()).unwrap();
    assert!(mount.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let script = r#"
        for p in /proc/[0-9]*; do
            case "$(tr '\0' ' ' < $p/cmdline)" in '/proc/self/exe boot hostile ') ;; *) continue ;; esac
            echo found; exec 3< $p/exe || exit
            (echo x >> $p/exe) && echo wrote; (echo x >> /proc/self/fd/3) && echo wrote
            kill -9 ${p#/proc/}; while [ -e $p/exe ] && readlink $p/exe > /dev/null; do :; done
            (echo x >> /proc/self/fd/3) && echo wrote
            echo tried
        done"#;
    let out = state.run(["exec", &id, "/bin/sh", "-c", script]);
    drop(ours);
    exec.wait().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(stdout, "found\ntried\n", "{stderr}");
    assert_eq!(stderr.matches("cannot create").count(), 3, "{stderr}");
    assert!(std::fs::read(airlock()).unwrap() == before, "the binary has changed");
}

#[test]
fn a_script_that_names_the_runtime_as_its_interpreter_gains_nothing() {
    need!("busybox");
    let before = std::fs::read(airlock()).unwrap();
    let bundle = Bundle::new(&["/bin/script"]);
    let script = bundle.rootfs().join("bin/script");
    airlock_tests::write_program(&script, "#!/proc/self/exe\n");
    let (state, id) = (State::new(), unique("script"));
    let out = state.run(["run", "--bundle", bundle.text(), &id]);
    assert!(!out.status.success(), "{out:?}");
    assert!(std::fs::read(airlock()).unwrap() == before, "the binary has changed");
    leaks::nothing_left(&state, &id);
}

#[test]
fn what_a_joining_process_has_cannot_be_looked_at() {
    need!("busybox");
    // The numbers of descriptors can be listed, by a root of the same user namespace; what is behind them cannot be seen.
    // Looks at each process while it has our name, and only believes what it saw if it still has it afterwards.
    let look = r#"cd /proc; while :; do for p in [0-9]*; do
        read -r c < $p/comm || continue
        case $c in airlock*) ;; *) continue ;; esac
        seen="$(readlink $p/exe; readlink $p/cwd; readlink $p/root; readlink $p/fd/*; head -c 1 $p/fd/[0-9]; head -c 1 $p/environ; head -c 1 $p/maps; head -c 1 $p/auxv)"
        read -r c < $p/comm || continue
        case $c in airlock*) echo met >> /tmp/met; [ -z "$seen" ] || echo "$p: $seen" >> /tmp/seen ;; esac
    done; done 2> /dev/null"#;
    let bundle = Bundle::new(&["/bin/sh", "-c", look]);
    let (state, id) = (State::new(), unique("look"));
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let tmp = bundle.rootfs().join("tmp");
    let met = || std::fs::read_to_string(tmp.join("met")).unwrap_or_default().lines().count();
    if std::thread::available_parallelism().is_ok_and(|n| n.get() == 1) {
        skip!("needs two processors: what joins is never seen with one");
    }
    wait::until("the container sees joining processes: nothing was tested yet", || {
        state.ok(["exec", &id, "/bin/true"]);
        (met() >= 3).then_some(())
    });
    assert_eq!(std::fs::read_to_string(tmp.join("seen")).unwrap_or_default(), "");
}

#[test]
fn descriptors_of_a_containers_processes_as_the_host_sees_them() {
    need!("busybox");
    let (state, id) = (State::new(), unique("fds"));
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let numbers = |pid: i32| -> Vec<i32> {
        let mut all: Vec<i32> = leaks::descriptors(pid)
            .iter()
            .map(|line| line.split_once(' ').unwrap().0.parse().unwrap())
            .collect();
        all.sort_unstable();
        all
    };
    let passed = |args: &str| {
        let line = format!("exec {} --root {} {args}", airlock().display(), state.root().display());
        let status = Command::new("sh")
            .args(["-c", &format!("{line} 3< /dev/null 4< /dev/null 5< /etc/passwd")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{args}");
    };
    let pids =
        |id: &str| -> Vec<i32> { serde_json::from_str(&state.ok(["ps", "--format", "json", id])).unwrap() };
    // What the caller happens to have open is not for the container, unless it says so.
    passed(&format!("run --detach --bundle {} {id}", bundle.text()));
    passed(&format!("exec --detach {id} /bin/sleep 2000"));
    passed(&format!("exec --detach --preserve-fds 2 {id} /bin/sleep 3000"));
    let wanted = [vec![0, 1, 2], vec![0, 1, 2], vec![0, 1, 2, 3, 4]];
    let all = pids(&id);
    assert_eq!(all.len(), 3);
    // By number of descriptors: pids may wrap around.
    let mut found: Vec<_> = all.into_iter().map(numbers).collect();
    found.sort_by_key(Vec::len);
    assert_eq!(found, wanted);
}

#[test]
fn a_host_directory_that_was_passed_is_no_working_directory() {
    need!("busybox");
    let (state, id) = (State::new(), unique("cwd"));
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let line = format!(
        "exec {} --root {} exec --preserve-fds 1 --cwd /proc/self/fd/3 {id} /bin/cat shadow",
        airlock().display(),
        state.root().display()
    );
    let out = Command::new("sh").args(["-c", &format!("{line} 3< /etc")]).output().unwrap();
    assert!(out.stdout.is_empty(), "{out:?}");
    assert!(!out.status.success(), "{out:?}");
}

#[test]
fn a_working_directory_behind_a_link_stays_inside() {
    need!("busybox");
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "of the host").unwrap();
    for (target, cwd) in [
        (outside.path().display().to_string(), "/work"),
        (outside.path().display().to_string(), "/work/made"),
        (format!("../../../../../..{}", outside.path().display()), "/work"),
        (format!("../../../../../..{}", outside.path().display()), "/work/made"),
        ("/proc/1/root".to_owned(), "/work"),
        ("/proc/self/cwd".to_owned(), "/work"),
    ] {
        let script = format!("cat secret ../secret {0}/secret; ls -a", outside.path().display());
        let bundle = Bundle::with(&["/bin/sh", "-c", &script], |c| c["process"]["cwd"] = json!(cwd));
        symlink(&target, bundle.rootfs().join("work")).unwrap();
        let (state, id) = (State::new(), unique("work"));
        let out = state.run(["run", "--bundle", bundle.text(), &id]);
        assert!(!String::from_utf8_lossy(&out.stdout).contains("secret"), "{target}: {out:?}");
        assert!(!String::from_utf8_lossy(&out.stdout).contains("of the host"), "{target}: {out:?}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{target}: made on the host");
        leaks::nothing_left(&state, &id);
    }
}

#[test]
fn the_socket_in_the_list_of_the_hosts_sockets_cannot_be_reached() {
    need!("busybox");
    let (state, id) = (State::new(), unique("net"));
    let bundle = Bundle::with(&["/bin/sleep", "1000"], |c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "network");
        c["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "sysfs" && m["type"] != "cgroup");
    });
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let listed = state.ok(["exec", &id, "/bin/cat", "/proc/net/unix"]);
    let paths: Vec<_> = listed
        .lines()
        .filter_map(|l| l.split_ascii_whitespace().nth(7))
        .filter(|p| p.contains(&id))
        .collect();
    assert!(paths.iter().all(|p| !p.starts_with('@')), "an abstract socket: {paths:?}");
    for path in paths {
        let out = state.run(["exec", &id, "/bin/ls", path]);
        assert!(!out.status.success(), "{path} is there");
    }
    // Nor is it where the runtime's processes are.
    let out = state.run(["exec", &id, "/bin/find", "/", "-xdev", "-name", "control.sock"]);
    assert!(out.stdout.is_empty(), "{out:?}");
}
