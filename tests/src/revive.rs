//! Checkpoints of real programs: made, killed, and restored in every way.
use crate::{Bundle, State, airlock, unique, wait, which, workspace};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How an image is brought back to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Not at all: the program itself is tried. Only by `AIRLOCK_WAYS`.
    Untouched,
    /// Not at all: it is saved, and goes on. Only by `AIRLOCK_WAYS`.
    Saved,
    /// In a new sandbox.
    Plain,
    /// With memory that follows.
    Background,
    /// Two at the same time.
    Twice,
    /// The saved one goes on, and so does the copy.
    LeaveRunning,
}

impl Way {
    pub const ALL: [Self; 4] = [Self::Plain, Self::Background, Self::Twice, Self::LeaveRunning];

    /// `AIRLOCK_WAYS=untouched,plain` has all tests go these ways alone, which helps to find what is wrong.
    fn chosen(ways: &[Self]) -> Vec<Self> {
        let Ok(names) = std::env::var("AIRLOCK_WAYS") else { return ways.to_vec() };
        let all = [Self::Untouched, Self::Saved].into_iter().chain(Self::ALL);
        all.filter(|way| names.split(',').any(|n| n.eq_ignore_ascii_case(&format!("{way:?}")))).collect()
    }
}

/// A program of `tests/rows`, compiled.
///
/// # Panics
/// When it does not compile.
pub fn compile(name: &str) -> PathBuf {
    let sources = workspace().join("tests/rows");
    let (source, shared) = (sources.join(format!("{name}.c")), sources.join("row.h"));
    let dir = workspace().join("target/rows");
    std::fs::create_dir_all(&dir).unwrap();
    let binary = dir.join(name);
    let made = |p: &Path| p.metadata().and_then(|m| m.modified()).ok();
    if made(&binary) > made(&source).max(made(&shared)) {
        return binary;
    }
    // Tests run at the same time, and in several processes.
    let fresh = dir.join(unique(name));
    let out = Command::new("gcc")
        .args(["-static", "-O1", "-g", "-pthread", "-Wall", "-o"])
        .args([&fresh, &source])
        .arg("-lrt")
        .output()
        .unwrap();
    assert!(out.status.success(), "{name}.c: {}", String::from_utf8_lossy(&out.stderr));
    std::fs::rename(&fresh, &binary).unwrap();
    binary
}

/// A container whose standard output is a file.
pub struct Running<'a> {
    pub state: &'a State,
    pub id: String,
    pub out: PathBuf,
}

impl<'a> Running<'a> {
    /// Starts a bundle, its output in `dir`.
    #[track_caller]
    pub fn start(state: &'a State, bundle: &Bundle, dir: &Path) -> Self {
        Self::launch(state, dir, &["run", "--detach", "--bundle", bundle.text()])
    }

    /// Restores an image, its output in `dir`.
    #[track_caller]
    pub fn restore(state: &'a State, bundle: &Bundle, image: &Path, dir: &Path, more: &[&str]) -> Self {
        let image = image.to_str().unwrap();
        let mut args = vec!["restore", "--detach", "--bundle", bundle.text(), "--image-path", image];
        args.extend(more);
        Self::launch(state, dir, &args)
    }

    /// Starts a container with these arguments (its ID is added), its output in `dir`.
    #[track_caller]
    pub fn launch(state: &'a State, dir: &Path, args: &[&str]) -> Self {
        let id = unique("revive");
        let out = dir.join(&id);
        let errors = dir.join(format!("{id}.err"));
        let status = state
            .command(args.iter().copied().chain([id.as_str()]))
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&errors).unwrap())
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{args:?}: {status}: {}", std::fs::read_to_string(&errors).unwrap());
        Self { state, id, out }
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    /// What it, and who started it, have said is wrong.
    fn errors(&self) -> String {
        std::fs::read_to_string(self.out.with_extension("err")).unwrap_or_default()
    }

    /// Waits until it has written `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        wait::until(&format!("{} writes {text:?}", self.id), || {
            let output = self.output();
            assert!(
                output.contains(text) || self.state.status(&self.id) != "stopped",
                "{} ended before it wrote {text:?}: {output}{}",
                self.id,
                self.errors()
            );
            output.contains(text).then_some(())
        });
    }

    /// Waits until it has written a whole line that begins with `start`; gives the rest of it.
    #[track_caller]
    pub fn wait_for_line(&self, start: &str) -> String {
        self.wait_for(start);
        wait::until(&format!("{} ends its line {start:?}", self.id), || {
            let output = self.output();
            let (_, rest) = output.split_once(start)?;
            rest.split_once('\n').map(|(line, _)| line.to_owned())
        })
    }

    /// Saves it into a directory that is made.
    #[track_caller]
    pub fn checkpoint(&self, image: &Path, more: &[&str]) {
        std::fs::create_dir_all(image).unwrap();
        let mut args = vec!["checkpoint", "--image-path", image.to_str().unwrap()];
        args.extend(more);
        args.push(&self.id);
        self.state.ok(args);
    }

    /// Sends it SIGUSR1 and waits until it says `ok`.
    #[track_caller]
    pub fn verify(&self) {
        self.state.ok(["kill", &self.id, "USR1"]);
        wait::until(&format!("{} verifies its state", self.id), || {
            let ended = self.state.status(&self.id) == "stopped";
            (ended || self.output().contains("ok\n")).then_some(())
        });
        let output = self.output();
        assert!(output.ends_with("ok\n"), "{}: {output}{}", self.id, self.errors());
    }

    #[track_caller]
    pub fn delete(&self) {
        self.state.ok(["delete", "--force", &self.id]);
    }
}

/// Starts a bundle whose program says `ready`, saves it, and brings it back in the ways given; each must verify.
#[track_caller]
pub fn revive(bundle: &Bundle, ways: &[Way]) {
    revive_with(bundle, ways, &[]);
}

/// As [`revive`], with options for `checkpoint`.
#[track_caller]
pub fn revive_with(bundle: &Bundle, ways: &[Way], options: &[&str]) {
    let state = State::new();
    let dir = tempfile::tempdir().unwrap();
    for way in Way::chosen(ways) {
        let image = dir.path().join(format!("{way:?}"));
        let first = Running::start(&state, bundle, dir.path());
        first.wait_for("ready\n");
        match way {
            Way::Untouched => first.verify(),
            Way::Saved => {
                first.checkpoint(&image, &[options, &["--leave-running"]].concat());
                first.verify();
            }
            Way::LeaveRunning => {
                first.checkpoint(&image, &[options, &["--leave-running"]].concat());
                let copy = Running::restore(&state, bundle, &image, dir.path(), &[]);
                copy.verify();
                first.verify();
                copy.delete();
            }
            Way::Plain | Way::Background | Way::Twice => {
                first.checkpoint(&image, options);
                first.delete();
                let more: &[&str] = if way == Way::Background { &["--background"] } else { &[] };
                let count = if way == Way::Twice { 2 } else { 1 };
                let copies: Vec<_> =
                    (0..count).map(|_| Running::restore(&state, bundle, &image, dir.path(), more)).collect();
                copies.iter().for_each(Running::verify);
                copies.iter().for_each(Running::delete);
                continue;
            }
        }
        first.delete();
    }
}

/// A bundle that runs a program of `tests/rows`.
pub fn row_bundle(name: &str, args: &[&str], edit: impl FnOnce(&mut serde_json::Value)) -> Bundle {
    let program = compile(name);
    let mut all = vec!["/bin/row"];
    all.extend(args);
    let bundle = Bundle::with(&all, edit);
    std::fs::copy(program, bundle.rootfs().join("bin/row")).unwrap();
    bundle
}

/// Whether static C programs can be compiled here.
pub fn can_compile() -> bool {
    which("gcc").is_some() && airlock().exists()
}
