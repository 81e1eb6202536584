//! podman with airlock as its runtime, all of its state in a private folder.
use super::{Ended, finish, finish_with_input, on_terminal, quiet};
use crate::{Bundle, airlock, leaks, wait};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A podman installation of its own with one root filesystem. Dropped, it removes its containers and checks that nothing
/// of them is left.
pub struct Podman {
    dir: tempfile::TempDir,
    rootfs: Bundle,
}

impl Podman {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // podman's own defaults are beyond what this machine's root may set.
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n";
        std::fs::write(dir.path().join("containers.conf"), conf).unwrap();
        // conmon leaves a file where podman was called.
        std::fs::create_dir(dir.path().join("cwd")).unwrap();
        // Not by --runtime-flag: what podman has conmon run at the end would not know it.
        let state = dir.path().join("airlock");
        let runtime = format!("#!/bin/sh\nexec {} --root {} \"$@\"\n", airlock().display(), state.display());
        crate::write_program(&dir.path().join("runtime"), &runtime);
        Self { dir, rootfs: Bundle::new(&["true"]) }
    }

    /// The root filesystem that all containers share.
    pub fn rootfs(&self) -> PathBuf {
        self.rootfs.rootfs()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where airlock keeps its state for this podman.
    pub fn airlock_root(&self) -> PathBuf {
        self.path("airlock")
    }

    /// `podman <private folders> args…`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut podman = Command::new("podman");
        podman
            .current_dir(self.path("cwd"))
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .arg("--root")
            .arg(self.path("root"))
            .arg("--runroot")
            .arg(self.path("runroot"))
            .arg("--tmpdir")
            .arg(self.path("tmp"))
            .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs"])
            .arg("--runtime")
            .arg(self.path("runtime"))
            .args(args);
        podman
    }

    /// Runs podman to its end.
    #[track_caller]
    pub fn call(&self, args: &[&str]) -> Ended {
        finish(&mut self.command(args))
    }

    /// Runs podman, which has to succeed; returns its trimmed standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.call(args);
        assert_eq!(ended.code, 0, "podman {args:?}\nstdout: {}\nstderr: {}", ended.out, ended.err);
        ended.out.trim().to_owned()
    }

    /// The arguments of `podman run OPTIONS --rootfs … ARGS`, without network unless the options name one.
    pub fn run_args(&self, options: &[&str], args: &[&str]) -> Vec<String> {
        let rootfs = self.rootfs();
        let mut all = vec!["run"];
        if !options.iter().any(|o| o.starts_with("--network") || o.starts_with("--pod")) {
            all.push("--network=none");
        }
        all.extend(options);
        all.extend(["--rootfs", rootfs.to_str().unwrap()]);
        all.extend(args);
        all.into_iter().map(str::to_owned).collect()
    }

    /// `podman run --rm OPTIONS --rootfs … ARGS` to its end.
    #[track_caller]
    pub fn run(&self, options: &[&str], args: &[&str]) -> Ended {
        self.run_with_input(options, args, "")
    }

    /// As [`Podman::run`], with standard input.
    #[track_caller]
    pub fn run_with_input(&self, options: &[&str], args: &[&str], input: &str) -> Ended {
        let options: Vec<&str> = std::iter::once("--rm").chain(options.iter().copied()).collect();
        let all = self.run_args(&options, args);
        finish_with_input(&mut self.command(&all.iter().map(String::as_str).collect::<Vec<_>>()), input)
    }

    /// A container in the background, named `name`.
    #[track_caller]
    pub fn start(&self, name: &str, options: &[&str], args: &[&str]) {
        let options: Vec<&str> = ["-d", "--name", name].iter().chain(options).copied().collect();
        let all = self.run_args(&options, args);
        self.ok(&all.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// podman on a terminal (see [`on_terminal`]); carriage returns are dropped from the output.
    #[track_caller]
    pub fn terminal(&self, args: &[&str], input: &str) -> Ended {
        let mut ended = finish_with_input(&mut on_terminal(&self.command(args)), input);
        ended.out = ended.out.replace('\r', "");
        ended
    }

    /// A value of `podman inspect`, by a Go template.
    #[track_caller]
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.ok(&["inspect", "--format", template, name])
    }

    /// The OCI pid of a container.
    #[track_caller]
    pub fn pid(&self, name: &str) -> i32 {
        self.inspect(name, "{{.State.Pid}}").parse().unwrap()
    }

    /// What the container has printed.
    #[track_caller]
    pub fn logs(&self, name: &str) -> String {
        self.ok(&["logs", name])
    }

    /// Waits until the container's output has `text` in it.
    #[track_caller]
    pub fn wait_for_log(&self, name: &str, text: &str) {
        wait::until(&format!("{text:?} in the log of {name}"), || {
            let logs = self.call(&["logs", name]);
            (logs.out.contains(text) || logs.err.contains(text)).then_some(())
        });
    }

    /// Names of what airlock has state of.
    pub fn known_to_airlock(&self) -> Vec<String> {
        names(&self.airlock_root())
    }

    fn remove_everything(&self) {
        quiet(&mut self.command(&["pod", "rm", "--all", "--force", "--time", "0"]));
        // Those on which others depend go in the second round.
        for _ in 0..2 {
            quiet(&mut self.command(&["rm", "--all", "--force", "--time", "0"]));
        }
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

impl Drop for Podman {
    fn drop(&mut self) {
        let ids = self.call(&["ps", "--all", "--quiet", "--no-trunc"]).out;
        self.remove_everything();
        if std::thread::panicking() {
            let state = self.airlock_root();
            for id in names(&state) {
                quiet(Command::new(airlock()).arg("--root").arg(&state).args(["delete", "--force", &id]));
            }
            return;
        }
        // conmon's own clean-up goes on after podman has returned.
        wait::until("airlock's state folder to be empty", || {
            self.known_to_airlock().is_empty().then_some(())
        });
        for id in ids.lines() {
            // conmon has a cgroup beside the container's.
            let own = format!("libpod-{id}");
            assert_eq!(leaks::cgroups(&own), Vec::<String>::new(), "cgroups are left");
        }
    }
}
