//! What lets the runsc of 2022 drive a sandbox of ours: its state files, and its abstract socket address.
//!
//! That runsc always dials the abstract name `runsc-sandbox.<sandbox id>` with a NUL byte at its end. A [`Relay`]
//! listens there and passes bytes and descriptors on to the sandbox's control socket, both ways.
use super::{Ended, finish};
use crate::State;
use airlock_wire::scm::{recv_with_fds, send_with_fds};
use serde_json::json;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A relay from runsc's address of a sandbox to a control socket; ends when dropped.
pub struct Relay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    pub fn new(sandbox: &str, control: &Path) -> Self {
        let address = SocketAddr::from_abstract_name(format!("runsc-sandbox.{sandbox}\0")).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, control) = (stop.clone(), control.to_owned());
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A sandbox that is gone: the client finds its connection closed.
                if let (Ok(client), Ok(sandbox)) = (client, UnixStream::connect(&control)) {
                    connect(client, sandbox);
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect_addr(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn connect(client: UnixStream, sandbox: UnixStream) {
    for (from, to) in [(&client, &sandbox), (&sandbox, &client)] {
        let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        std::thread::spawn(move || pass_on(&from, &to));
    }
}

fn pass_on(from: &UnixStream, to: &UnixStream) {
    loop {
        let (mut bytes, mut fds) = (Vec::with_capacity(65536), Vec::new());
        match recv_with_fds(from, &mut bytes, 65536, &mut fds) {
            Ok(got) if got > 0 => {
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                if send_with_fds(to, &bytes, &borrowed).is_err() {
                    break;
                }
            }
            _ => break,
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

/// A sandbox of ours as runsc sees it: a relay, and a folder with a state file for each container.
pub struct RunscView {
    root: tempfile::TempDir,
    sandbox: String,
    _relay: Relay,
}

impl RunscView {
    /// The sandbox `sandbox` below `state`, which has to run.
    pub fn new(state: &State, sandbox: &str) -> Self {
        let relay = Relay::new(sandbox, &state.control_socket(sandbox));
        let view = Self { root: tempfile::tempdir().unwrap(), sandbox: sandbox.to_owned(), _relay: relay };
        view.add(state, sandbox);
        view
    }

    /// Makes a container of the sandbox known to runsc.
    pub fn add(&self, state: &State, cid: &str) {
        let root = self.root.path().to_str().unwrap();
        let sandbox = &self.sandbox;
        let none = json!({ "cgroupunknown": null });
        let file = json!({
            "id": cid,
            "spec": { "process": { "env": ["PATH=/bin"], "cwd": "/" } },
            "bundleDir": "/",
            "createdAt": "2026-01-01T00:00:00Z",
            "owner": "",
            "consoleSocket": "",
            "status": "running",
            "goferPid": 0,
            "sandbox": {
                "id": sandbox, "pid": state.state(sandbox)["pid"], "uid": 0, "gid": 0, "cgroup": none,
                "originalOomScoreAdj": 0,
            },
            "compatCgroup": none,
            "saver": { "rootDir": root, "id": { "sandboxId": sandbox, "containerId": cid } },
        });
        std::fs::write(self.root.path().join(format!("{cid}_sandbox:{sandbox}.state")), file.to_string())
            .unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut runsc = Command::new("runsc");
        // Should it write relative paths, then not into the repository.
        runsc.current_dir(self.root.path()).arg("--root").arg(self.root.path()).args(args);
        runsc
    }

    /// Runs runsc to its end.
    #[track_caller]
    pub fn call(&self, args: &[&str]) -> Ended {
        finish(&mut self.command(args))
    }

    /// Runs runsc, which has to succeed; returns its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.call(args);
        assert_eq!(ended.code, 0, "runsc {args:?}\nstdout: {}\nstderr: {}", ended.out, ended.err);
        ended.out
    }

    pub fn root(&self) -> PathBuf {
        self.root.path().to_owned()
    }
}
