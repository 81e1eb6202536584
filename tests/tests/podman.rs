//! podman drives airlock: run, exec, signals, limits, pods. With podman's default seccomp profile, unless told otherwise.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::interop::{Podman, alive, cgroup_value, processes_with};
use airlock_tests::{need, wait, which};
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;

#[test]
fn run_relays_output_input_and_exit_codes() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let ended = podman.run(&[], &["sh", "-c", "echo to-out; echo to-err >&2; exit 5"]);
    assert_eq!((ended.code, ended.out.as_str()), (5, "to-out\n"), "{}", ended.err);
    assert_eq!(ended.err, "to-err\n", "nothing but the container's own words on its standard error");
    assert_eq!(podman.run(&[], &["true"]).code, 0);
    assert_eq!(podman.run_with_input(&["--interactive"], &["cat"], "by pipe\n").ok(), "by pipe\n");
    let settings =
        ["--hostname", "hull", "--workdir", "/tmp", "--env", "DEPTH=9", "--umask", "077", "--user", "5:6"];
    let out = podman.run(&settings, &["sh", "-c", "hostname; pwd; echo $DEPTH; umask; id -u; id -g"]).ok();
    assert_eq!(out, "hull\n/tmp\n9\n0077\n5\n6\n");
}

#[test]
fn a_container_that_dies_of_a_signal() {
    need!("busybox", "podman");
    let podman = Podman::new();
    // PID 1 of a namespace does not die of its own signals: the default action is off for it.
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let script = format!("sh -c 'kill -{signal} $$'; exit $?");
        assert_eq!(podman.run(&[], &["sh", "-c", &script]).code, code, "{signal} of a child");
    }
    podman.start("target", &[], &["sleep", "1000"]);
    podman.ok(&["kill", "--signal", "KILL", "target"]);
    assert_eq!(podman.ok(&["wait", "target"]), "137");
}

#[test]
fn programs_that_cannot_be_executed() {
    need!("busybox", "podman");
    let podman = Podman::new();
    std::fs::write(podman.rootfs().join("etc/plain"), "text").unwrap();
    std::fs::set_permissions(podman.rootfs().join("etc/plain"), std::fs::Permissions::from_mode(0o644))
        .unwrap();
    podman.start("host", &[], &["sleep", "1000"]);
    for (program, code) in [("/nonexistent", 127), ("nonexistent", 127), ("/etc/plain", 126), ("/etc", 126)] {
        let ended = podman.run(&[], &[program]);
        assert_eq!(ended.code, code, "run {program}: {}", ended.err);
        let ended = podman.call(&["exec", "host", program]);
        assert_eq!(ended.code, code, "exec {program}: {}", ended.err);
    }
    // What failed to start is gone altogether.
    assert_eq!(podman.known_to_airlock().len(), 1);
}

#[test]
fn run_on_a_terminal() {
    need!("busybox", "podman", "script");
    let podman = Podman::new();
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && exit 7";
    let args = podman.run_args(&["--rm", "--tty"], &["sh", "-c", script]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = podman.terminal(&args, "");
    assert_eq!(ended.code, 7, "{ended:?}");
    assert!(ended.out.contains("/dev/pts/0"), "{ended:?}");

    // A conversation: what is typed arrives, and what is answered comes back.
    let args = podman.run_args(&["--rm", "--interactive", "--tty"], &["sh"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = podman.terminal(&args, "echo answer=$((6 * 7)); stty size\nexit 3\n");
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.out.contains("answer=42"), "{ended:?}");
}

#[test]
fn detached_containers_and_their_logs() {
    need!("busybox", "podman");
    let podman = Podman::new();
    podman.start(
        "job",
        &[],
        &[
            "sh",
            "-c",
            "echo early; until test -e /tmp/go; do sleep 0.05; done; echo late; echo bad >&2; exit 4",
        ],
    );
    podman.wait_for_log("job", "early");
    assert_eq!(podman.inspect("job", "{{.State.Status}}"), "running");
    assert!(alive(podman.pid("job")));
    // Starts again in the state in which it has stopped.
    podman.ok(&["kill", "job"]);
    assert_eq!(podman.ok(&["wait", "job"]), "137");
    std::fs::write(podman.rootfs().join("tmp/go"), "go\n").unwrap();
    let again = podman.call(&["start", "--attach", "job"]);
    assert_eq!(again.code, 4, "{again:?}");
    assert_eq!(again.out, "early\nlate\n");
    let logs = podman.call(&["logs", "job"]);
    assert_eq!((logs.out.as_str(), logs.err.as_str()), ("early\nearly\nlate\n", "bad\n"));
    assert_eq!(podman.inspect("job", "{{.State.ExitCode}} {{.State.Status}}"), "4 exited");
}

#[test]
fn exec_in_all_its_ways() {
    need!("busybox", "podman", "script");
    let podman = Podman::new();
    podman.start("host", &["--env", "OF=container"], &["sleep", "1000"]);
    let ended = podman.call(&["exec", "host", "sh", "-c", "echo in $OF; echo err >&2; exit 9"]);
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (9, "in container\n", "err\n"));
    assert_eq!(podman.call(&["exec", "host", "sh", "-c", "kill -9 $$"]).code, 137);
    assert_eq!(podman.call(&["exec", "host", "sh", "-c", "kill $$"]).code, 143);
    let id = podman.ok(&[
        "exec",
        "--user",
        "1000:7",
        "--workdir",
        "/tmp",
        "host",
        "sh",
        "-c",
        "id -u; id -g; pwd",
    ]);
    assert_eq!(id, "1000\n7\n/tmp");
    assert_eq!(podman.ok(&["exec", "--env", "OF=exec", "host", "sh", "-c", "echo $OF"]), "exec");
    // The same view as the container's own processes.
    assert!(podman.ok(&["exec", "host", "ps"]).contains("sleep 1000"));

    let ended =
        podman.terminal(&["exec", "--interactive", "--tty", "host", "sh"], "tty; echo $((40 + 2))\nexit 3\n");
    assert_eq!(ended.code, 3, "{ended:?}");
    assert!(ended.out.contains("/dev/pts/") && ended.out.contains("42"), "{ended:?}");

    podman.ok(&["exec", "--detach", "host", "sh", "-c", "echo done > /tmp/detached; sleep 1001"]);
    let written = podman.rootfs().join("tmp/detached");
    wait::until("the detached process to write", || {
        std::fs::read_to_string(&written).ok().filter(|t| t == "done\n")
    });
    assert!(podman.ok(&["top", "host", "args"]).contains("sleep 1001"));
}

#[test]
fn stop_asks_first_and_kills_then() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let polite = "trap 'echo asked; exit 42' TERM; echo ready; while :; do sleep 0.05; done";
    podman.start("polite", &[], &["sh", "-c", polite]);
    podman.wait_for_log("polite", "ready");
    podman.ok(&["stop", "--time", "30", "polite"]);
    assert_eq!(podman.inspect("polite", "{{.State.ExitCode}}"), "42");
    assert!(podman.logs("polite").contains("asked"));

    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    podman.start("deaf", &[], &["sh", "-c", deaf]);
    podman.wait_for_log("deaf", "ready");
    let pid = podman.pid("deaf");
    podman.ok(&["stop", "--time", "1", "deaf"]);
    assert_eq!(podman.inspect("deaf", "{{.State.ExitCode}} {{.State.Status}}"), "137 exited");
    assert!(!alive(pid));
}

#[test]
fn kill_delivers_any_signal() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let signals = ["HUP", "INT", "USR1", "USR2", "WINCH", "CONT"];
    let traps: String = signals.iter().map(|s| format!("trap 'echo got-{s}' {s}; ")).collect();
    podman.start("ears", &[], &["sh", "-c", &format!("{traps} echo ready; while :; do sleep 0.05; done")]);
    podman.wait_for_log("ears", "ready");
    for signal in signals {
        podman.ok(&["kill", "--signal", signal, "ears"]);
        podman.wait_for_log("ears", &format!("got-{signal}"));
    }
    // To the process that podman watches: it stands for the container's.
    let pid = nix::unistd::Pid::from_raw(podman.pid("ears"));
    nix::sys::signal::kill(pid, Signal::SIGUSR1).unwrap();
    wait::until("the passed-on signal", || {
        (podman.logs("ears").matches("got-USR1").count() == 2).then_some(())
    });
    podman.ok(&["kill", "ears"]);
    assert_eq!(podman.ok(&["wait", "ears"]), "137");
    let error = podman.call(&["kill", "ears"]).fails();
    assert!(error.contains("exited"), "{error}");
}

#[test]
fn pause_holds_every_process() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let count = "i=0; while :; do i=$((i + 1)); echo $i > /tmp/count; sleep 0.02; done";
    podman.start("clock", &[], &["sh", "-c", count]);
    let file = podman.rootfs().join("tmp/count");
    let read = || std::fs::read_to_string(&file).ok().and_then(|t| t.trim().parse::<u64>().ok());
    wait::until("the clock to tick", read);
    podman.ok(&["pause", "clock"]);
    assert_eq!(podman.inspect("clock", "{{.State.Status}}"), "paused");
    let stopped = std::fs::read_to_string(&file).unwrap();
    assert!(podman.call(&["exec", "clock", "true"]).fails().contains("on running containers"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), stopped, "it ticks while it is paused");
    podman.ok(&["unpause", "clock"]);
    let before = stopped.trim().parse::<u64>().unwrap_or(0);
    wait::until("the clock to go on", || read().filter(|n| *n > before));
    // A paused container can be removed by force.
    podman.ok(&["pause", "clock"]);
    podman.ok(&["rm", "--force", "--time", "0", "clock"]);
    assert_eq!(podman.known_to_airlock(), Vec::<String>::new());
}

#[test]
fn rm_by_force_ends_everything() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let sleep = format!("sleep {}1000", std::process::id());
    podman.start("crowd", &[], &["sh", "-c", &format!("{sleep} & {sleep} & echo ready; wait")]);
    podman.wait_for_log("crowd", "ready");
    let long: Vec<&str> = sleep.split(' ').collect();
    podman.ok(&["exec", "--detach", "crowd", long[0], long[1]]);
    wait::until("three of them", || {
        let top = podman.ok(&["top", "crowd", "args"]);
        (top.lines().filter(|line| line.starts_with(&sleep)).count() == 3).then_some(())
    });
    let pids = processes_with(&sleep);
    assert!(pids.len() >= 4, "{pids:?}");
    podman.ok(&["rm", "--force", "--time", "0", "crowd"]);
    for pid in pids {
        wait::until(&format!("process {pid} to end"), || (!alive(pid)).then_some(()));
    }
    assert_eq!(podman.ok(&["ps", "--all", "--quiet"]), "");
}

#[test]
fn top_and_stats_describe_the_container() {
    need!("busybox", "podman");
    let podman = Podman::new();
    podman.start("seen", &["--memory", "64m"], &["sh", "-c", "sleep 1000; true"]);
    let top = podman.ok(&["top", "seen"]);
    let mut lines = top.lines();
    assert!(lines.next().unwrap().starts_with("USER"), "{top}");
    let first: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(first[..3], ["root", "1", "0"].map(|s| if s == "root" { first[0] } else { s }), "{top}");
    assert!(top.contains("sleep 1000"), "{top}");
    let pids = podman.ok(&["top", "seen", "pid", "comm"]);
    assert!(!pids.contains("airlock"), "the sandbox's own processes are none of the container's: {pids}");

    let stats = podman.ok(&["stats", "--no-stream", "--format", "json", "seen"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats[0]["name"], "seen");
    assert!(stats[0]["pids"].as_str().unwrap().parse::<u32>().unwrap() >= 1, "{stats}");
    let memory = stats[0]["mem_usage"].as_str().unwrap();
    assert!(memory.ends_with("/ 67.11MB"), "{memory}");
    assert!(!memory.starts_with("0B"), "{memory}");
}

#[test]
fn memory_limit_ends_a_greedy_container() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let greedy = "x=0123456789; while :; do x=$x$x; done";
    podman.start("greedy", &["--memory", "32m"], &["sh", "-c", greedy]);
    assert_eq!(podman.ok(&["wait", "greedy"]), "137");
    assert_eq!(podman.inspect("greedy", "{{.State.ExitCode}}"), "137");
    // conmon has heard of it: a word from the memory cgroup of the pid that it knows. It notes that in a file which
    // podman 4.3 looks for elsewhere, so that State.OOMKilled stays false with every runtime.
    if cgroup_value(std::process::id() as i32, "memory", "memory.oom_control").is_some() {
        wait::until("conmon to note the end of memory", || podman.path("cwd/oom").exists().then_some(()));
    }
    let child = format!("({greedy}); echo status=$?; sleep 1000");
    podman.start("survivor", &["--memory", "32m"], &["sh", "-c", &child]);
    podman.wait_for_log("survivor", "status=137");
    if let Some(control) = cgroup_value(podman.pid("survivor"), "memory", "memory.oom_control") {
        let kills = control.lines().find_map(|l| l.strip_prefix("oom_kill ")).unwrap();
        assert_ne!(kills, "0", "the cgroup of the pid that podman knows counts the kill");
    }
    assert_eq!(podman.inspect("survivor", "{{.State.Status}}"), "running");
}

#[test]
fn limits_are_in_the_cgroup() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let limits = [
        "--memory",
        "64m",
        "--pids-limit",
        "77",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "333",
        "--cpuset-cpus",
        "0",
    ];
    podman.start("limited", &limits, &["sleep", "1000"]);
    let pid = podman.pid("limited");
    let expected = [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.shares", "333"),
        ("cpuset", "cpuset.cpus", "0"),
    ];
    for (controller, file, value) in expected {
        if let Some(found) = cgroup_value(pid, controller, file) {
            assert_eq!(found, value, "{file}");
        }
    }
    let id = podman.inspect("limited", "{{.ID}}");
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(&format!("/libpod-{id}")), "{cgroup}");
    let seen = podman.ok(&[
        "exec",
        "limited",
        "sh",
        "-c",
        "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>&-; true",
    ]);
    assert_eq!(seen, "77", "inside");
}

#[test]
fn a_container_that_fills_its_pids_limit_can_be_ended() {
    need!("busybox", "podman");
    let podman = Podman::new();
    std::fs::write(podman.rootfs().join("bomb"), "BEGIN { while (1) system(\"sleep 1000 &\") }").unwrap();
    podman.start("bomb", &["--pids-limit", "20"], &["awk", "-f", "/bomb"]);
    wait::until("the limit to be reached", || {
        let top = podman.ok(&["top", "bomb", "pid"]);
        (top.lines().count() > 16).then_some(())
    });
    podman.ok(&["pause", "bomb"]);
    podman.ok(&["unpause", "bomb"]);
    podman.ok(&["stop", "--time", "1", "bomb"]);
    assert_eq!(podman.inspect("bomb", "{{.State.ExitCode}}"), "137");
}

#[test]
fn file_systems() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let read_only = podman.run(
        &["--read-only"],
        &["sh", "-c", "touch /no 2>&-; echo $?; touch /tmp/yes /dev/shm/yes; echo $?"],
    );
    assert_eq!(read_only.ok(), "1\n0\n");
    assert!(!podman.rootfs().join("no").exists());

    let volume = podman.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("given"), "content\n").unwrap();
    let mount = format!("{}:/data", volume.display());
    let out =
        podman.run(&["--volume", &mount], &["sh", "-c", "cat /data/given; echo back > /data/taken"]).ok();
    assert_eq!(out, "content\n");
    assert_eq!(std::fs::read_to_string(volume.join("taken")).unwrap(), "back\n");
    let ended = podman.run(&["--volume", &format!("{mount}:ro")], &["touch", "/data/no"]);
    assert!(ended.fails().contains("Read-only file system"));

    let out = podman.run(
        &["--tmpfs", "/scratch:size=1m,mode=1777"],
        &["sh", "-c", "dd if=/dev/zero of=/scratch/x bs=64k 2>&-; stat -c '%s %a' /scratch/x /scratch"],
    );
    let out = out.ok();
    let sizes: Vec<&str> = out.split_whitespace().collect();
    assert_eq!((sizes[0], sizes[3]), ("1048576", "1777"), "{out}");
}

#[test]
fn confinement_as_podman_asks_for_it() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let status = ["grep", "-E", "^(CapEff|Seccomp|NoNewPrivs):", "/proc/self/status"];
    let field = |text: &str, name: &str| -> String {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let usual = podman.run(&[], &status).ok();
    assert_eq!(field(&usual, "Seccomp"), "2", "podman's default profile");
    let caps = u64::from_str_radix(&field(&usual, "CapEff"), 16).unwrap();
    assert!(caps != 0 && caps & (1 << 21) == 0, "some, without CAP_SYS_ADMIN: {usual}");
    assert!(podman.run(&[], &["unshare", "-m", "true"]).fails().contains("Operation not permitted"));

    let none = podman.run(&["--cap-drop", "all", "--security-opt", "no-new-privileges"], &status).ok();
    assert_eq!(
        (field(&none, "CapEff").as_str(), field(&none, "NoNewPrivs").as_str()),
        ("0000000000000000", "1")
    );
    assert_eq!(field(&podman.run(&["--security-opt", "seccomp=unconfined"], &status).ok(), "Seccomp"), "0");

    let script = "grep ^Seccomp: /proc/self/status; mount -t tmpfs none /tmp && echo mounted; test -c /dev/full; ls /dev | wc -l";
    let out = podman.run(&["--privileged"], &["sh", "-c", script]).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[1], "mounted", "{out}");
    assert!(lines[2].trim().parse::<u32>().unwrap() > 20, "the host's devices: {out}");
}

#[test]
fn namespaces_of_the_host_and_of_other_containers() {
    need!("busybox", "podman");
    let podman = Podman::new();
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let link = |kind: &str| format!("/proc/self/ns/{kind}");
    let host = podman.run(&["--pid=host"], &["readlink", &link("pid")]).ok();
    assert_eq!(host.trim(), own("pid"));
    let me = std::process::id().to_string();
    let seen = podman.run(&["--pid=host"], &["sh", "-c", &format!("test -d /proc/{me} && echo seen")]).ok();
    assert_eq!(seen, "seen\n");
    assert_eq!(
        podman.run(&["--ipc=host", "--uts=host"], &["readlink", &link("ipc")]).ok().trim(),
        own("ipc")
    );
    assert_ne!(podman.run(&[], &["readlink", &link("pid")]).ok().trim(), own("pid"));

    podman.start("base", &[], &["sleep", "1000"]);
    for (option, kind) in [("--network=container:base", "net"), ("--ipc=container:base", "ipc")] {
        let theirs = podman.ok(&["exec", "base", "readlink", &link(kind)]);
        assert_eq!(podman.run(&[option], &["readlink", &link(kind)]).ok().trim(), theirs, "{option}");
        assert_ne!(theirs, own(kind));
    }
    // The processes of that container with its numbers, and none of the sandbox's.
    let theirs = podman.ok(&["exec", "base", "readlink", &link("pid")]);
    let out = podman
        .run(&["--pid=container:base"], &["sh", "-c", "readlink /proc/self/ns/pid; ps -o pid,args"])
        .ok();
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    assert_eq!((lines[0], lines[2]), (theirs.as_str(), "1 sleep 1000"), "{out}");
    assert_eq!(podman.inspect("base", "{{.State.Status}}"), "running");
    podman.start("guest", &["--pid=container:base"], &["sh", "-c", "sleep 1001; true"]);
    assert!(podman.ok(&["exec", "base", "ps"]).contains("sleep 1001"));
    assert!(podman.ok(&["exec", "guest", "ps"]).contains("sleep 1000"));
    podman.ok(&["kill", "guest"]);
    assert_eq!(podman.ok(&["wait", "guest"]), "137");
    wait::until("the guest's child to end", || {
        (!podman.ok(&["exec", "base", "ps"]).contains("1001")).then_some(())
    });
}

#[test]
fn a_container_in_a_user_namespace() {
    need!("busybox", "podman");
    let podman = Podman::new();
    // Its root has to reach the files, and to make those that podman mounts.
    let owned =
        std::process::Command::new("chown").args(["-R", "100000:100000"]).arg(podman.rootfs()).status();
    assert!(owned.unwrap().success());
    for dir in [podman.path(""), podman.rootfs().parent().unwrap().to_owned()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let map = ["--uidmap", "0:100000:65536"];
    podman.start("mapped", &map, &["sh", "-c", "cat /proc/self/uid_map; sleep 1000"]);
    podman.wait_for_log("mapped", "100000");
    let map: Vec<String> = podman.logs("mapped").split_whitespace().map(str::to_owned).collect();
    assert_eq!(map, ["0", "100000", "65536"]);
    assert_eq!(podman.ok(&["exec", "mapped", "id", "-u"]), "0");
    podman.ok(&["pause", "mapped"]);
    podman.ok(&["unpause", "mapped"]);
    podman.ok(&["kill", "--signal", "KILL", "mapped"]);
    assert_eq!(podman.ok(&["wait", "mapped"]), "137");
}

#[test]
fn a_pod_shares_a_sandbox() {
    need!("busybox", "podman");
    let podman = Podman::new();
    // podman's own pause image needs catatonit; any image will do.
    let rootfs = podman.rootfs();
    airlock_tests::write_program(&rootfs.join("pause"), "#!/bin/sh\nexec sleep 1002\n");
    let image = podman.path("pause.tar");
    let tar =
        std::process::Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(&image).arg(".").status();
    assert!(tar.unwrap().success());
    podman.ok(&["import", "--quiet", image.to_str().unwrap(), "localhost/pause"]);
    podman.ok(&[
        "pod",
        "create",
        "--name",
        "pod",
        "--network=none",
        "--infra-image=localhost/pause",
        "--infra-command=/pause",
    ]);
    let rootfs = rootfs.to_str().unwrap();
    for name in ["one", "two"] {
        podman.ok(&["run", "-d", "--name", name, "--pod", "pod", "--rootfs", rootfs, "sleep", "1000"]);
    }
    let link =
        |name: &str, kind: &str| podman.ok(&["exec", name, "readlink", &format!("/proc/self/ns/{kind}")]);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(link("one", kind), link("two", kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(link("one", kind), link("two", kind), "{kind}");
    }
    // One sandbox for three containers: one control socket.
    let known = podman.known_to_airlock();
    let sockets =
        known.iter().filter(|id| podman.airlock_root().join(id).join("control.sock").exists()).count();
    assert_eq!((known.len(), sockets), (3, 1), "{known:?}");

    podman.ok(&["kill", "--signal", "KILL", "one"]);
    assert_eq!(podman.ok(&["wait", "one"]), "137");
    assert_eq!(podman.ok(&["exec", "two", "echo", "still here"]), "still here");
    podman.ok(&["start", "one"]);
    assert_eq!(link("one", "net"), link("two", "net"));
    podman.ok(&["pod", "stop", "--time", "1", "pod"]);
    assert_eq!(podman.ok(&["ps", "--quiet"]), "");
    podman.ok(&["pod", "rm", "--force", "pod"]);
}

#[test]
fn a_pod_without_a_sandbox_is_only_a_name() {
    need!("busybox", "podman");
    let podman = Podman::new();
    podman.ok(&["pod", "create", "--name", "group", "--infra=false"]);
    let ended = podman.run(&["--pod", "group"], &["sh", "-c", "echo alone; exit 6"]);
    assert_eq!((ended.code, ended.out.as_str()), (6, "alone\n"), "{}", ended.err);
}

#[test]
fn init_of_podman() {
    need!("busybox", "podman");
    if which("catatonit").is_none() && !std::path::Path::new("/usr/libexec/podman/catatonit").exists() {
        airlock_tests::skip!("--init needs catatonit");
    }
    let podman = Podman::new();
    assert_eq!(podman.run(&["--init"], &["sh", "-c", "exit 3"]).code, 3);
}
