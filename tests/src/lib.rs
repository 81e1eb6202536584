//! Helpers for whole-system tests: the real binary, real bundles, real programs.
//!
//! A test that lacks root, a program or a kernel feature says so with [`skip!`]; skips are printed and collected in
//! `target/skipped-tests.txt`, so that no run passes silently over what it could not do.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc)]

pub mod bench;
pub mod bundle;
pub mod fds;
pub mod fuzzing;
pub mod interop;
pub mod leaks;
pub mod machine;
pub mod network;
pub mod oci;
pub mod programs;
pub mod revive;
pub mod urpc;
pub mod v2;
pub mod wait;

pub use bundle::{Bundle, copy_program, write_program};

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ends the calling test as skipped, by name and reason.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        $crate::record_skip(&format!($($why)*));
        return;
    }};
}

/// Skips the calling test unless it runs as root and all named programs are installed.
#[macro_export]
macro_rules! need {
    ($($program:literal),* $(,)?) => {{
        if !$crate::is_root() {
            $crate::skip!("needs root");
        }
        for program in [$($program),*] as [&str; 0 $(+ { let _ = $program; 1 })*] {
            if $crate::which(program).is_none() {
                $crate::skip!("needs the program {program}");
            }
        }
    }};
}

pub fn record_skip(why: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    eprintln!("SKIPPED {name}: {why}");
    let path = workspace().join("target/skipped-tests.txt");
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(file, "{name}: {why}");
    }
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether processors and memory can be limited by cgroups, of whichever version.
pub fn has_limits() -> bool {
    let root = Path::new("/sys/fs/cgroup");
    let v2 = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    ["cpu", "memory"].iter().all(|name| {
        root.join(name).join("cgroup.procs").exists() || v2.split_whitespace().any(|c| c == *name)
    })
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Finds a program in `PATH` and the sbin directories.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .map(|dir| Path::new(dir).join(program))
        .find(|p| p.is_file())
}

/// The airlock binary: `$AIRLOCK_BINARY`, or the one that cargo builds now (nothing to do if it is up to date).
pub fn airlock() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("AIRLOCK_BINARY") {
            return path.into();
        }
        built(["--bin", "airlock"])
    })
}

/// An example of the crate `airlock`, built now.
pub fn example(name: &str) -> PathBuf {
    built(["--example", name])
}

fn built(target: [&str; 2]) -> PathBuf {
    let mut build = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    build.args(["build", "--quiet", "--package", "airlock", "--message-format=json"]).args(target);
    let out = build.current_dir(workspace()).stderr(Stdio::inherit()).output().unwrap();
    assert!(out.status.success(), "cargo build of {target:?} failed");
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter_map(|m| m["executable"].as_str().map(PathBuf::from))
        .next_back()
        .expect("cargo names the executable")
}

/// An id that no other test, run or process uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A private state directory; everything in it is deleted by force at the end.
pub struct State {
    pub dir: tempfile::TempDir,
}

impl State {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// `airlock --root <private> args…`, standard input closed.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(airlock());
        command.arg("--root").arg(self.root()).args(args).stdin(Stdio::null());
        command
    }

    /// Runs a command and collects its output. Not for commands that leave a container behind with our pipes as
    /// its stdio (see [`State::detached`]).
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; returns its standard output.
    #[track_caller]
    pub fn ok<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> String {
        let args: Vec<S> = args.into_iter().collect();
        let out = self.run(args.iter().map(AsRef::as_ref));
        assert!(
            out.status.success(),
            "{args:?}: {}\nstdout: {}\nstderr: {}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a command that must fail; returns its standard error.
    #[track_caller]
    pub fn fails<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> String {
        let args: Vec<S> = args.into_iter().collect();
        let out = self.run(args.iter().map(AsRef::as_ref));
        assert!(!out.status.success(), "{args:?} succeeded: {}", String::from_utf8_lossy(&out.stdout));
        String::from_utf8(out.stderr).unwrap()
    }

    /// `create` or `run --detach` of a bundle with `/dev/null` as stdio; must succeed.
    #[track_caller]
    pub fn detached(&self, args: &[&str]) {
        let stderr = tempfile::tempfile().unwrap();
        let status = self
            .command(args)
            .stdout(Stdio::null())
            .stderr(Stdio::from(stderr.try_clone().unwrap()))
            .status()
            .unwrap();
        assert!(status.success(), "{args:?}: {status}: {}", read_all(stderr));
    }

    /// The container's `state` as JSON.
    #[track_caller]
    pub fn state(&self, id: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(["state", id])).unwrap()
    }

    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    pub fn control_socket(&self, sandbox: &str) -> PathBuf {
        self.root().join(sandbox).join("control.sock")
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let listed = self.run(["list", "-q"]);
        for id in String::from_utf8_lossy(&listed.stdout).lines() {
            let _ = self.run(["delete", "--force", id]);
        }
    }
}

pub fn read_all(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut text = String::new();
    let _ = file.rewind();
    let _ = file.read_to_string(&mut text);
    text
}
