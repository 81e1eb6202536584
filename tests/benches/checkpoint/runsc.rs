//! runsc, if it is installed, with a state directory of its own.

use airlock_tests::bench::quiet;
use airlock_tests::{unique, wait, which};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub struct Runsc {
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Runsc {
    pub fn find() -> Option<Self> {
        let Some(program) = which("runsc") else {
            println!("(not installed: runsc)");
            return None;
        };
        Some(Self { program, dir: tempfile::tempdir().unwrap() })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.dir.path()).args(["--platform=ptrace", "--network=none"]).args(args);
        command
    }

    fn timed(&self, args: &[&str], output: Option<&Path>) -> Duration {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command.stdout(output.map_or(Stdio::null(), |path| File::create(path).unwrap().into()));
        let start = Instant::now();
        let status = command.status().unwrap();
        let took = start.elapsed();
        assert!(status.success(), "runsc {args:?}: {status}");
        took
    }

    /// Starts a bundle; waits until it has written `word`.
    pub fn run(&self, bundle: &str, word: &str) -> String {
        let (id, output) = (unique("bench-runsc"), self.dir.path().join("output"));
        self.timed(&["run", "-detach", "-bundle", bundle, &id], Some(&output));
        wait::until(word, || std::fs::read_to_string(&output).unwrap().contains(word).then_some(()));
        id
    }

    /// Saves a container, and deletes it: how long the first took.
    pub fn checkpoint(&self, id: &str, image: &Path) -> Duration {
        let took = self.timed(&["checkpoint", "-image-path", image.to_str().unwrap(), id], None);
        self.delete(id);
        took
    }

    pub fn restore(&self, bundle: &str, image: &Path) -> (String, Duration) {
        let id = unique("bench-runsc");
        let image = image.to_str().unwrap();
        let took = self.timed(&["restore", "-detach", "-image-path", image, "-bundle", bundle, &id], None);
        (id, took)
    }

    pub fn delete(&self, id: &str) {
        quiet(&mut self.command(&["delete", "-force", id]));
    }
}
