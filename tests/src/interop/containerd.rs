//! A containerd of our own, driven with ctr.
use super::{Ended, finish, finish_with_input, on_terminal, processes_with, quiet, wait_or_kill};
use crate::{Bundle, airlock, leaks, unique, wait};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// The runtime of containerd 1.6, a shim that executes the program that it is given.
pub const RUNC_V2: &str = "io.containerd.runc.v2";

/// A containerd with private folders and a private namespace, shared by the tests that run at the same time. It ends
/// with the last of them and then checks that nothing is left.
pub struct Containerd {
    dir: tempfile::TempDir,
    rootfs: Bundle,
    namespace: String,
    server: Mutex<Child>,
}

static SHARED: Mutex<Weak<Containerd>> = Mutex::new(Weak::new());

impl Containerd {
    /// The one that is running, or a new one.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let new = Arc::new(Self::start());
        *shared = Arc::downgrade(&new);
        new
    }

    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = {:?}\n[plugins.\"io.containerd.runtime.v1.linux\"]\n  runtime = {:?}\n",
            path("root"),
            path("state"),
            path("sock"),
            airlock(),
        );
        std::fs::write(path("config.toml"), config).unwrap();
        // Whoever asks for "runc" gets airlock.
        std::fs::create_dir(path("bin")).unwrap();
        symlink(airlock(), path("bin/runc")).unwrap();
        let programs = std::env::var("PATH").unwrap_or_default();
        let log = std::fs::File::create(path("log")).unwrap();
        let server = Command::new("containerd")
            .arg("--config")
            .arg(path("config.toml"))
            .env("PATH", format!("{}:{programs}", path("bin").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let rootfs = Bundle::new(&["true"]);
        let new = Self { dir, rootfs, namespace: unique("airlock-test"), server: Mutex::new(server) };
        wait::until("containerd to answer", || {
            (new.command(&["version"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success())
            .then_some(())
        });
        new
    }

    /// The root filesystem that all containers share.
    pub fn rootfs(&self) -> PathBuf {
        self.rootfs.rootfs()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// airlock's state of this containerd's containers: the shim chooses it.
    pub fn airlock_root(&self) -> PathBuf {
        Path::new("/run/containerd/runc").join(&self.namespace)
    }

    /// `ctr <this containerd> args…`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.path("sock")).args(["--namespace", &self.namespace]).args(args);
        ctr
    }

    /// Runs ctr to its end.
    #[track_caller]
    pub fn call(&self, args: &[&str]) -> Ended {
        finish(&mut self.command(args))
    }

    /// Runs ctr, which has to succeed; returns its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.call(args);
        assert_eq!(ended.code, 0, "ctr {args:?}\nstdout: {}\nstderr: {}", ended.out, ended.err);
        ended.out
    }

    /// `ctr run OPTIONS --rootfs … ID ARGS` with airlock as the shim's runc.
    pub fn run_command(&self, options: &[&str], id: &str, args: &[&str]) -> Command {
        let binary = airlock().to_str().unwrap();
        let all: Vec<&str> =
            ["--runtime", RUNC_V2, "--runc-binary", binary].iter().chain(options).copied().collect();
        self.run_as(&all, id, args)
    }

    /// `ctr run OPTIONS --rootfs … ID ARGS`; the options say which runtime.
    pub fn run_as(&self, options: &[&str], id: &str, args: &[&str]) -> Command {
        let rootfs = self.rootfs();
        let mut all = vec!["run"];
        all.extend(options);
        all.extend(["--rootfs", rootfs.to_str().unwrap(), id]);
        all.extend(args);
        self.command(&all)
    }

    /// A container that is waited for and removed.
    #[track_caller]
    pub fn run(&self, options: &[&str], id: &str, args: &[&str]) -> Ended {
        let options: Vec<&str> = std::iter::once("--rm").chain(options.iter().copied()).collect();
        finish(&mut self.run_command(&options, id, args))
    }

    /// A container in the background. Its end has to be asked for, see [`Containerd::remove`].
    #[track_caller]
    pub fn start_container(&self, options: &[&str], id: &str, args: &[&str]) {
        let options: Vec<&str> = ["--detach", "--null-io"].iter().chain(options).copied().collect();
        finish(&mut self.run_command(&options, id, args)).ok();
    }

    /// `ctr tasks exec --exec-id EXEC ID ARGS`.
    #[track_caller]
    pub fn exec(&self, id: &str, exec: &str, args: &[&str]) -> Ended {
        let all: Vec<&str> = ["tasks", "exec", "--exec-id", exec, id].iter().chain(args).copied().collect();
        self.call(&all)
    }

    /// ctr on a terminal; carriage returns are dropped from the output.
    #[track_caller]
    pub fn terminal(&self, command: &Command, input: &str) -> Ended {
        let mut ended = finish_with_input(&mut on_terminal(command), input);
        ended.out = ended.out.replace('\r', "");
        ended
    }

    /// Pid and status of a task, as `ctr tasks ls` has them.
    pub fn task(&self, id: &str) -> Option<(i32, String)> {
        let list = self.ok(&["tasks", "ls"]);
        list.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(id)).then_some(())?;
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        })
    }

    #[track_caller]
    pub fn wait_for_status(&self, id: &str, status: &str) {
        wait::until(&format!("task {id} to be {status}"), || {
            self.task(id).is_some_and(|(_, s)| s == status).then_some(())
        });
    }

    /// Kills the task if it runs, and removes task and container. Returns the task's exit status.
    #[track_caller]
    pub fn remove(&self, id: &str) -> i32 {
        if self.task(id).is_some_and(|(_, status)| status != "STOPPED") {
            self.ok(&["tasks", "kill", "--signal", "KILL", id]);
            self.wait_for_status(id, "STOPPED");
        }
        let ended = self.call(&["tasks", "rm", id]);
        assert_eq!(ended.code, 0, "{ended:?}");
        self.ok(&["containers", "rm", id]);
        // A warning tells it, unless it is 0.
        let code = ended.err.split("exit code ").nth(1).map(|rest| rest.trim().trim_matches('"').parse());
        code.map_or(0, |code| code.unwrap())
    }

    /// The events from now on, collected until the value is dropped.
    pub fn events(self: &Arc<Self>) -> Events {
        let file = tempfile::NamedTempFile::new().unwrap();
        let child = self
            .command(&["events"])
            .stdin(Stdio::null())
            .stdout(file.reopen().unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let events = Events { child, file, containerd: self.clone() };
        // Subscribed once something of ours comes through.
        let probe = unique("probe");
        wait::until("events to arrive", || {
            self.ok(&["namespaces", "label", &self.namespace, &format!("probe={probe}")]);
            events.text().contains(&probe).then_some(())
        });
        events
    }
}

/// A running `ctr events`.
pub struct Events {
    child: Child,
    file: tempfile::NamedTempFile,
    containerd: Arc<Containerd>,
}

impl Events {
    pub fn text(&self) -> String {
        std::fs::read_to_string(self.file.path()).unwrap()
    }

    /// The events of topic `topic` about container `id`, once there are `count` of them.
    #[track_caller]
    pub fn of(&self, topic: &str, id: &str, count: usize) -> Vec<serde_json::Value> {
        wait::until(&format!("{count} events {topic} of {id}"), || {
            let all: Vec<serde_json::Value> = self
                .text()
                .lines()
                .filter(|line| line.contains(&self.containerd.namespace) && line.contains(topic))
                .filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok())
                .filter(|event: &serde_json::Value| event["container_id"] == id)
                .collect();
            (all.len() >= count).then_some(all)
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let known = || -> Vec<String> {
            let entries = std::fs::read_dir(self.airlock_root()).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let left = known();
        for id in &left {
            quiet(&mut self.command(&["tasks", "kill", "--signal", "KILL", id]));
            quiet(&mut self.command(&["tasks", "rm", "--force", id]));
            quiet(&mut self.command(&["containers", "rm", id]));
            quiet(
                Command::new(airlock())
                    .arg("--root")
                    .arg(self.airlock_root())
                    .args(["delete", "--force", id]),
            );
        }
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(pid) = i32::try_from(server.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let panicking = std::thread::panicking();
        if panicking {
            let _ = server.kill();
            let _ = server.wait();
            return;
        }
        wait_or_kill(&mut server, Duration::from_secs(20));
        assert_eq!(left, Vec::<String>::new(), "airlock has state of containers whose tests have ended");
        let _ = std::fs::remove_dir(self.airlock_root());
        let cgroups = leaks::cgroups(&self.namespace);
        for dir in &cgroups {
            let _ = std::fs::remove_dir(dir);
        }
        // The namespace's own folder is containerd's, which does not remove it; below it nothing may be.
        let inside = cgroups.iter().filter(|dir| !dir.ends_with(&self.namespace)).collect::<Vec<_>>();
        assert_eq!(inside, Vec::<&String>::new(), "cgroups are left");
        assert_eq!(processes_with(self.dir.path().to_str().unwrap()), Vec::<i32>::new(), "shims are left");
    }
}
