//! Checkpoint and restore of real programs: each is driven by one of `tests/programs` inside the container, saved, killed,
//! and restored in a new sandbox, in the background, twice at once, and beside the one that goes on; each copy must verify
//! that nothing is lost.
//!
//! The long set: `apt-get install nginx-light nodejs golang-go postgresql default-jdk-headless stress-ng`, and
//! `cargo test -p airlock-tests --test checkpoint_programs -- --include-ignored`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::programs::{self, compiled, host_bundle, python, show};
use airlock_tests::revive::{Way, revive, revive_with};
use airlock_tests::{Bundle, need, need_inside, skip, which};
use std::process::Command;

#[test]
fn busybox_loops_with_pipes() {
    need!("busybox");
    let script = std::fs::read_to_string(airlock_tests::workspace().join("tests/programs/pipes.sh")).unwrap();
    let bundle = Bundle::with(&["sh", "-c", &script], |config| {
        airlock_tests::oci::mount(config, "/data", "tmpfs", "tmpfs", &["mode=1777"]);
    });
    revive(&bundle, &Way::ALL);
}

#[test]
fn bash_loops_with_pipes() {
    need_inside!("bash");
    revive(&host_bundle(&["/bin/bash", "/programs/pipes.sh"], |_| {}), &Way::ALL);
}

#[test]
fn python_with_everything() {
    need_inside!("python3");
    // sqlite locks its files. They are outside of the image, so two copies at once would be in each other's way.
    revive_with(&python("everything", &[]), &[Way::Plain, Way::Background], &["--file-locks"]);
}

#[test]
fn redis_under_its_benchmark() {
    need_inside!("python3", "redis-server", "redis-benchmark");
    revive(&python("redis", &[]), &Way::ALL);
}

#[test]
fn nginx_with_workers() {
    need_inside!("python3", "nginx");
    revive(&python("nginx", &[]), &Way::ALL);
}

#[test]
fn node_with_timers_and_workers() {
    need_inside!("node");
    revive(&host_bundle(&["/usr/bin/env", "node", "/programs/timers.js"], |_| {}), &Way::ALL);
}

#[test]
#[ignore = "long set"]
fn go_with_many_goroutines() {
    need_inside!("python3");
    let Some(go) = which("go") else { skip!("needs the program go") };
    let made = compiled("goroutines.go", |source, dir| {
        let mut command = Command::new(go);
        command.args(["build", "-o"]).arg(dir.join("program")).arg(source);
        command.env("GO111MODULE", "off").env("GOCACHE", dir.join("cache")).env("GOFLAGS", "");
        command
    });
    let bundle = host_bundle(&["/made/program"], |_| {});
    show(&bundle, "/made", &made);
    revive(&bundle, &Way::ALL);
}

#[test]
fn rust_with_threads() {
    need_inside!("python3");
    let made = compiled("threads.rs", |source, dir| {
        let mut command = programs::rustc();
        command.args(["--edition=2021", "-O", "-o"]).arg(dir.join("program")).arg(source);
        command
    });
    let bundle = python("child", &["/made/program"]);
    show(&bundle, "/made", &made);
    revive(&bundle, &[Way::Plain, Way::Background]);
}

#[test]
fn postgresql_in_a_transaction() {
    need_inside!("python3");
    let Some(folder) = programs::postgresql() else { skip!("needs the program postgres") };
    revive(&python("postgres", &[folder.to_str().unwrap()]), &Way::ALL);
}

#[test]
#[ignore = "long set"]
fn a_java_virtual_machine() {
    need_inside!("python3", "java");
    let Some(javac) = which("javac") else { skip!("needs the program javac") };
    let made = compiled("Heap.java", |source, dir| {
        let mut command = Command::new(javac);
        command.args(["--release", "11", "-d"]).arg(dir).arg(source);
        command
    });
    let bundle = python("child", &["java", "-Xmx256m", "-cp", "/made", "Heap"]);
    show(&bundle, "/made", &made);
    revive(&bundle, &Way::ALL);
}

/// One test for each mix of stressors.
macro_rules! stress {
    ($($name:ident: $mix:literal),* $(,)?) => {
        $(
            #[test]
            #[ignore = "long set"]
            fn $name() {
                need_inside!("python3", "stress-ng");
                let mix: Vec<&str> = $mix.split(' ').collect();
                revive_with(&python("stress", &mix), &Way::ALL, &["--file-locks"]);
            }
        )*
    };
}

stress! {
    stress_of_memory: "--vm 2 --vm-bytes 64M --vm-method flip --mmap 1 --mmap-bytes 32M --malloc 1 --malloc-bytes 32M --mremap 1 --mremap-bytes 8M --madvise 1",
    stress_of_threads: "--pthread 2 --futex 2 --mutex 1 --switch 2 --cpu 1 --cpu-method crc16",
    stress_of_descriptors: "--pipe 2 --eventfd 1 --epoll 1 --sockpair 1 --inotify 1 --timerfd 1 --poll 1",
    stress_of_processes: "--fork 1 --clone 1 --clone-max 20 --vfork 1 --wait 1 --daemon 1",
    stress_of_signals: "--timer 1 --itimer 1 --sigq 1 --sigsegv 1 --sigfpe 1 --kill 1",
    stress_of_files: "--hdd 1 --hdd-bytes 8M --flock 1 --dentry 1 --fallocate 1 --fallocate-bytes 8M --rename 1",
    stress_of_shared_memory: "--shm 1 --shm-sysv 1 --sem 1 --sem-sysv 1 --msg 1",
}
