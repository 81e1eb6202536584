//! A server of the container API with a tree of its own, and what is in its control files.
use crate::urpc::Caller;
use crate::{State, unique};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

const MOUNTS: &str = "/sys/fs/cgroup";

/// Every directory of cgroups that may hold a part of a tree.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(MOUNTS).join("cgroup.controllers").exists() {
        return vec![MOUNTS.into()];
    }
    let all = fs::read_dir(MOUNTS).unwrap().flatten().map(|e| e.path());
    all.filter(|p| p.join("cgroup.procs").exists()).collect()
}

/// `airlock machine serve` on a private root.
pub struct Machine {
    pub state: State,
    pub root: String,
    server: Option<Child>,
}

impl Machine {
    pub fn new() -> Self {
        let state = State::new();
        fs::create_dir_all(state.root()).unwrap();
        let mut machine = Self { state, root: unique("airlock-machine"), server: None };
        machine.start();
        machine
    }

    /// Starts the server; there is none.
    pub fn start(&mut self) {
        let mut command = self.state.command(["machine", "serve", "--cgroup", &format!("/{}", self.root)]);
        let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        self.server = Some(server);
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn pid(&self) -> i32 {
        self.server.as_ref().unwrap().id().cast_signed()
    }

    pub fn socket(&self) -> PathBuf {
        self.state.root().join("machine.sock")
    }

    pub fn caller(&self) -> Caller {
        Caller::binary(&self.socket())
    }

    /// The directory of a container (`/a`) in a v1 hierarchy.
    pub fn dir(&self, hierarchy: &str, name: &str) -> PathBuf {
        Path::new(MOUNTS).join(hierarchy).join(&self.root).join(name.trim_start_matches('/'))
    }

    /// A control file, without white space around its text.
    #[track_caller]
    pub fn file(&self, hierarchy: &str, name: &str, file: &str) -> String {
        let path = self.dir(hierarchy, name).join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
    }

    /// What is below the root in any hierarchy.
    pub fn left(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for hierarchy in hierarchies() {
            below(&hierarchy.join(&self.root), &mut all);
        }
        all
    }

    /// `airlock container WORDS` on this machine; must succeed.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> String {
        self.state.ok([&["container"], words].concat())
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

fn below(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            below(&entry.path(), all);
            all.push(entry.path());
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
        for hierarchy in hierarchies() {
            let root = hierarchy.join(&self.root);
            let mut dirs = Vec::new();
            below(&root, &mut dirs);
            dirs.push(root);
            for dir in dirs {
                let _ = fs::write(dir.join("freezer.state"), "THAWED");
                let _ = fs::write(dir.join("cgroup.kill"), "1");
                for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
                // What has just been killed is there for a moment.
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
                while fs::remove_dir(&dir).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
                    && std::time::Instant::now() < deadline
                {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
            }
        }
    }
}

/// Runs a command in a container with `/dev/null` for its standard streams; its pid.
#[track_caller]
pub fn run(caller: &mut Caller, name: &str, command: &[&str]) -> i32 {
    let arg = json!({"name": name, "command": command, "spec": {"fd_policy": "DETACHED"},
                     "env": ["PATH=/usr/bin:/bin"]});
    number(&caller.ok("Container.Run", &arg, &[])["pid"])
}

/// Runs a command in a container; what it has written, and its wait status.
#[track_caller]
pub fn output(caller: &mut Caller, name: &str, command: &[&str]) -> (String, u64) {
    let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fds: [BorrowedFd<'_>; 3] = [null.as_fd(), writer.as_fd(), writer.as_fd()];
    let arg = json!({"name": name, "command": command, "env": ["PATH=/usr/bin:/bin"], "cwd": "/"});
    let pid = caller.ok("Container.Run", &arg, &fds)["pid"].clone();
    drop(writer);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
    let status = caller.ok("Container.Wait", &json!({"pid": pid}), &[]);
    (text, status.as_u64().unwrap())
}

pub fn number(value: &Value) -> i32 {
    value.as_i64().unwrap_or_else(|| panic!("no number: {value}")).try_into().unwrap()
}

pub fn numbers(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(number).collect()
}
