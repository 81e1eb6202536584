//! Checkpoint and restore of small C programs, one for each row of state: each sets its state up, says `ready`, waits for
//! SIGUSR1, and then verifies that all is as it was.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::revive::{Way, revive, row_bundle};
use airlock_tests::{need, workspace};
use serde_json::Value;

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
