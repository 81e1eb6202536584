//! Checkpoint and restore of small C programs, one for each row of state: each sets its state up, says `ready`, waits for
//! SIGUSR1, and then verifies that all is as it was.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::revive::{Way, revive, row_bundle};
use airlock_tests::{Bundle, State, need, unique, wait, workspace};
use serde_json::Value;
use std::process::Command;

/// One test for each program of `tests/rows`; some need what their column says.
macro_rules! rows {
    ($($name:ident $(: $edit:expr)?),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                need!("gcc", "busybox");
                let edits: &[fn(&mut Value)] = &[$($edit)?];
                let edit = |config: &mut Value| edits.iter().for_each(|edit| edit(config));
                revive(&row_bundle(stringify!($name), &[], edit), &Way::ALL);
            }
        )*

        /// A program that is not listed here would never be run.
        #[test]
        fn every_program_is_run() {
            let listed = [$(stringify!($name),)*];
            for entry in std::fs::read_dir(workspace().join("tests/rows")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "c") {
                    let name = path.file_stem().unwrap().to_str().unwrap();
                    assert!(listed.contains(&name), "{name}.c is not in the list of rows");
                }
            }
        }
    };
}

/// Lets the program do what root may do in its namespaces.
fn privileged(config: &mut Value) {
    let all = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "IPC_OWNER",
        "KILL",
        "MKNOD",
        "NET_ADMIN",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SYS_ADMIN",
        "SYS_RESOURCE",
    ];
    let all: Vec<String> = all.iter().map(|c| format!("CAP_{c}")).collect();
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = all.clone().into();
    }
}

/// Lets the program give files away.
fn owning(config: &mut Value) {
    let all = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL"].map(|c| format!("CAP_{c}"));
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = all.to_vec().into();
    }
}

/// Lets the program become other users, and lets new programs become more than it is.
fn identities(config: &mut Value) {
    let all =
        ["CHOWN", "KILL", "NET_BIND_SERVICE", "SETGID", "SETPCAP", "SETUID"].map(|c| format!("CAP_{c}"));
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = all.to_vec().into();
    }
    config["process"]["noNewPrivileges"] = false.into();
}

rows!(
    aio,
    altstack,
    clocks,
    counter,
    creds: identities,
    epoll,
    eventfd,
    fdtables,
    fifo,
    files: owning,
    full: |config| config["linux"]["resources"]["pids"] = serde_json::json!({"limit": 24}),
    generation,
    headless,
    hugetlb,
    inotify,
    interrupted,
    locks,
    manyfds,
    memfd,
    memory,
    mounts: privileged,
    mq: privileged,
    mqueue,
    netlink: privileged,
    pidfd,
    pipes: owning,
    process,
    program,
    pty: owning,
    robust,
    rseq,
    sched,
    seccomp,
    segments,
    sessions,
    sharing,
    signalfd,
    signals,
    stopped,
    sysv,
    tcp,
    threads,
    timerfd,
    timers,
    tmpfs: privileged,
    udp,
    unixsock: owning,
    vforks,
    zombies,
);

/// Files on a root filesystem that stays where it is. (Copies that run at the same time would share them.)
#[test]
fn files_on_disk() {
    need!("gcc", "busybox");
    for name in ["fifo", "files", "inotify", "locks", "unixsock"] {
        revive(&row_bundle(name, &["/"], owning), &[Way::Plain, Way::Background]);
    }
}

/// `--direct` leaves nothing of the pages in the page cache, and the image is as good as any.
#[test]
fn pages_are_written_past_the_page_cache() {
    need!("busybox", "fincore");
    let script = "x=$(head -c 2000000 /dev/urandom | base64); echo $x | md5sum >/tmp/sum; touch /tmp/ready
        while ! [ -e /tmp/go ]; do sleep 0.05; done; echo $x | md5sum >/tmp/again; sleep 1000";
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/sh", "-c", script]));
    let (id, copy) = (unique("direct"), unique("direct"));
    let inside = |name: &str| bundle.rootfs().join("tmp").join(name);
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    wait::until("it is ready", || inside("ready").exists().then_some(()));
    let cached = |options: &[&str]| {
        let image = state.dir.path().join("image");
        let args =
            [&["checkpoint", "--leave-running", "--image-path", image.to_str().unwrap()], options, &[&id]];
        state.ok(args.concat());
        let pages = image.join("pages.img");
        let out =
            Command::new("fincore").args(["-b", "-n", "-o", "RES"]).arg(&pages).output().unwrap().stdout;
        assert!(pages.metadata().unwrap().len() > 2_000_000);
        (image, String::from_utf8(out).unwrap().trim().parse::<u64>().unwrap())
    };
    let (_, with) = cached(&[]);
    let (image, without) = cached(&["--direct"]);
    // Of a filesystem in memory there is no other place.
    let in_memory =
        nix::sys::statfs::statfs(&image).unwrap().filesystem_type() == nix::sys::statfs::TMPFS_MAGIC;
    assert!(with > 2_000_000 && (without == 0 || in_memory), "{with} and {without} bytes");
    state.ok(["delete", "--force", &id]);
    state.detached(&[
        "restore",
        "--detach",
        "--image-path",
        image.to_str().unwrap(),
        "--bundle",
        bundle.text(),
        &copy,
    ]);
    std::fs::write(inside("go"), "").unwrap();
    let read = |name: &str| std::fs::read_to_string(inside(name)).ok().filter(|text| text.ends_with('\n'));
    let again = wait::until("the sum of what it has", || read("again"));
    assert_eq!(Some(again), read("sum"));
}
