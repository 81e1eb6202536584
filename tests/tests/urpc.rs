//! gVisor's control interface as a foreign client sees it, in both dialects: semantics, texts of errors, blocking.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

#[path = "urpc/checkpoint.rs"]
mod checkpoint;
#[path = "urpc/containers.rs"]
mod containers;
#[path = "urpc/forward.rs"]
mod forward;
#[path = "urpc/fs.rs"]
mod fs;
#[path = "urpc/fssave.rs"]
mod fssave;
#[path = "urpc/hostile.rs"]
mod hostile;
#[path = "urpc/others.rs"]
mod others;
#[path = "urpc/own.rs"]
mod own;
#[path = "urpc/processes.rs"]
mod processes;
#[path = "urpc/signals.rs"]
mod signals;
#[path = "urpc/usage.rs"]
mod usage;
#[path = "urpc/waits.rs"]
mod waits;

use airlock_loader::sys::mount;
use airlock_tests::urpc::Caller;
use airlock_tests::{Bundle, State, unique, wait};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// A sandbox whose root container runs, with its control socket.
struct Sandbox {
    state: State,
    bundle: Bundle,
    id: String,
}

impl Sandbox {
    fn start(args: &[&str]) -> Self {
        Self::of(Bundle::new(args))
    }

    fn of(bundle: Bundle) -> Self {
        let (state, id) = (State::new(), unique("urpc"));
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        Self { state, bundle, id }
    }

    fn sleeping() -> Self {
        Self::start(&["/bin/sleep", "1000"])
    }

    fn socket(&self) -> PathBuf {
        self.state.control_socket(&self.id)
    }

    fn both(&self) -> [Caller; 2] {
        Caller::both(&self.socket())
    }

    fn json(&self) -> Caller {
        Caller::json(&self.socket())
    }

    fn loader(&self) -> i32 {
        self.state.state(&self.id)["pid"].as_i64().unwrap() as i32
    }

    /// Starts a program that does not end by itself; its pid in the container.
    fn spawn(&self, caller: &mut Caller, argv: &[&str]) -> i64 {
        let null = null();
        let fds = [null.as_fd(), null.as_fd(), null.as_fd()];
        caller.ok("containerManager.ExecuteAsync", &exec_args(&self.id, argv), &fds).as_i64().unwrap()
    }

    /// Runs a shell script in the root container; what it printed.
    fn shell(&self, script: &str) -> String {
        output(&mut self.json(), &exec_args(&self.id, &["/bin/sh", "-c", script]), None).1
    }

    /// The root filesystem as a donated, detached mount.
    fn rootfs(&self) -> OwnedFd {
        mount::open_tree(nix::fcntl::AT_FDCWD, &self.bundle.rootfs(), mount::OPEN_TREE_CLONE).unwrap()
    }

    /// Starts a subcontainer that was reserved; the arguments are 2022's.
    fn start_sub(&self, caller: &mut Caller, cid: &str, args: &[&str]) -> Result<Value, String> {
        let (null, rootfs) = (null(), self.rootfs());
        let arg = start_args(cid, args);
        let fds = [null.as_fd(), null.as_fd(), null.as_fd(), rootfs.as_fd()];
        caller.call("containerManager.StartSubcontainer", &arg, &fds)
    }

    fn sub(&self, caller: &mut Caller, args: &[&str]) -> String {
        let cid = unique("sub");
        caller.ok("containerManager.CreateSubcontainer", &json!({"CID": cid}), &[]);
        self.start_sub(caller, &cid, args).unwrap();
        cid
    }

    /// Waits until the state directory says so.
    fn until_stopped(&self) {
        wait::until("the container stops", || (self.state.status(&self.id) == "stopped").then_some(()));
    }
}

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

/// ExecuteAsync with `/dev/null`, a pipe and perhaps one more descriptor: the pid, and what was printed.
fn output(caller: &mut Caller, args: &Value, extra: Option<&File>) -> (Value, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let null = null();
    let mut fds = vec![null.as_fd(), writer.as_fd(), writer.as_fd()];
    fds.extend(extra.map(|f| f.as_fd()));
    let pid = caller.ok("containerManager.ExecuteAsync", args, &fds);
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    (pid, text)
}

/// What gVisor's command line sends for `exec`.
fn exec_args(cid: &str, argv: &[&str]) -> Value {
    json!({
        "filename": "", "argv": argv, "envv": ["PATH=/bin:/usr/bin"], "MountNamespace": null, "wd": "/",
        "KUID": 0, "KGID": 0, "ExtraKGIDs": [], "NoNewPrivileges": false, "Capabilities": null,
        "StdioIsPty": false, "SupportTTYs": true, "GuestFDs": [0, 1, 2], "FDTable": null, "ContainerID": cid,
        "PIDNamespace": null, "Limits": null
    })
}

/// A spec as a container of a pod has it.
fn sub_spec(args: &[&str]) -> Value {
    let mut spec = airlock_tests::bundle::default_config(args);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    spec.as_object_mut().unwrap().remove("hostname");
    spec
}

fn start_args(cid: &str, args: &[&str]) -> Value {
    json!({"Spec": sub_spec(args), "Conf": {"RootDir": "/r"}, "CID": cid})
}
