//! Containers that are measured: `tests/programs/memory.c` at the end of two pipes, and images on a tmpfs.

use airlock_tests::{Bundle, State, programs, unique, wait};
use airlock_wire::api::airlock as own;
use airlock_wire::api::checkpoint::{CheckpointArgs, Report, SaveOpts};
use airlock_wire::{Client, Dialect};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Has containers be scheduled as `cp` is, which belongs to no cgroup, whatever else the machine does.
pub fn undisturbed(config: &mut serde_json::Value) {
    config["linux"]["resources"]["cpu"] = serde_json::json!({"shares": 262_144});
}

/// A directory on a tmpfs.
pub fn tmpfs() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// A bundle of `memory MB small|huge`.
pub fn memory_bundle(mb: u64, huge: bool) -> Bundle {
    let kind = if huge { "huge" } else { "small" };
    let bundle = Bundle::with(&["/bin/memory", &mb.to_string(), kind], undisturbed);
    let made = programs::compiled("memory.c", |source, dir| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-static", "-O2", "-o"]).arg(dir.join("memory")).arg(source);
        gcc
    });
    airlock_tests::copy_program(&made.join("memory"), &bundle.rootfs().join("bin/memory"));
    bundle
}

/// A container with a pipe as its input, and a file as its output. Deleted by force when dropped.
pub struct Running<'a> {
    pub state: &'a State,
    pub id: String,
    input: File,
    output: PathBuf,
    /// How long the command took that made it.
    pub took: Duration,
}

impl<'a> Running<'a> {
    /// Runs `airlock args… ID` with `letters` in the container's input already.
    pub fn launch(state: &'a State, dir: &Path, args: &[&str], letters: &str) -> Self {
        let id = unique("bench");
        let output = dir.join(&id);
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut input = File::from(writer);
        input.write_all(letters.as_bytes()).unwrap();
        let errors = dir.join("errors");
        let mut command = state.command(args.iter().copied().chain([id.as_str()]));
        let appended = File::options().append(true).create(true).open(&output).unwrap();
        command.stdin(Stdio::from(reader)).stdout(appended);
        command.stderr(File::create(&errors).unwrap());
        let start = Instant::now();
        let status = command.status().unwrap();
        let took = start.elapsed();
        assert!(status.success(), "{args:?}: {}", std::fs::read_to_string(errors).unwrap());
        Self { state, id, input, output, took }
    }

    /// Runs a bundle of [`memory_bundle`]; its memory is full.
    pub fn start(state: &'a State, dir: &Path, bundle: &Bundle) -> Self {
        let running = Self::launch(state, dir, &["run", "--detach", "--bundle", bundle.text()], "");
        running.answer("ready");
        running
    }

    /// Tells it a letter, and waits for the number after `word` in its answer.
    pub fn tell(&mut self, letter: &str, word: &str) -> String {
        self.input.write_all(letter.as_bytes()).unwrap();
        self.answer(word)
    }

    /// Waits for a line that begins with `word`: what follows that. The last such line counts.
    pub fn answer(&self, word: &str) -> String {
        wait::until(word, || {
            let text = std::fs::read_to_string(&self.output).unwrap();
            let line = text.lines().rfind(|l| l.starts_with(word)).filter(|_| text.ends_with('\n'))?;
            Some(line[word.len()..].trim().to_owned())
        })
    }

    /// Forgets what it has said.
    pub fn clear(&self) {
        File::options().write(true).open(&self.output).unwrap().set_len(0).unwrap();
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.state.control_socket(&self.id), Dialect::Binary).unwrap()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.state.run(["delete", "--force", &self.id]);
    }
}

/// Three new files for an image: statefile, pages' metadata, pages.
pub struct Files(pub [OwnedFd; 3]);

impl Files {
    pub fn new(dir: &Path) -> Self {
        Self([0, 1, 2].map(|_| tempfile::tempfile_in(dir).unwrap().into()))
    }

    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// Saves a sandbox by a call; how long it took until the answer, and the answer.
pub fn save(client: &mut Client, files: &Files, resume: bool) -> (Duration, Report) {
    let save = SaveOpts { have_pages_file: true, resume, ..SaveOpts::default() };
    let args = CheckpointArgs { save, ..CheckpointArgs::default() };
    let start = Instant::now();
    let report = client.call::<own::Checkpoint>(&args, &files.fds()).unwrap().value;
    (start.elapsed(), report)
}

/// `airlock checkpoint` into a new directory; how long it took.
pub fn checkpoint(running: &Running<'_>, image: &Path, more: &[&str]) -> Duration {
    let mut args = vec!["checkpoint", "--image-path", image.to_str().unwrap()];
    args.extend(more);
    args.push(&running.id);
    let start = Instant::now();
    running.state.ok(args);
    start.elapsed()
}
