//! One configuration, one container, one look at what it got.
use crate::{Bundle, State, unique};
use serde_json::Value;
use std::process::Output;

/// What a container that was run printed, and how it ended.
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        }
    }
}

/// Runs `script` in busybox' sh with a changed configuration.
pub fn run(script: &str, edit: impl FnOnce(&mut Value)) -> Ran {
    run_in(&State::new(), &Bundle::with(&["sh", "-c", script], edit))
}

/// Runs a bundle with `airlock run`.
pub fn run_in(state: &State, bundle: &Bundle) -> Ran {
    state.run(["run", "--bundle", bundle.text(), &unique("oci")]).into()
}

/// What `script` prints; it must succeed and print no errors.
#[track_caller]
pub fn output(script: &str, edit: impl FnOnce(&mut Value)) -> String {
    let ran = run(script, edit);
    assert!(
        ran.code == Some(0) && ran.stderr.is_empty(),
        "{script}: {:?}: {}{}",
        ran.code,
        ran.stdout,
        ran.stderr
    );
    ran.stdout
}

/// The one line that says why a configuration is refused: before the program runs, and leaving no container behind.
#[track_caller]
pub fn refused(edit: impl FnOnce(&mut Value)) -> String {
    let state = State::new();
    let ran = run_in(&state, &Bundle::with(&["sh", "-c", "echo ran; echo ran >&2"], edit));
    assert!(ran.code == Some(1) && ran.stdout.is_empty(), "{:?}: {}{}", ran.code, ran.stdout, ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    assert_eq!(state.ok(["list", "-q"]), "");
    ran.stderr
}

/// `Name:` lines of a `/proc/*/status`, or of anything like it.
pub fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, Clone)]
pub struct Mounted {
    pub root: String,
    pub place: String,
    /// Attributes of the mount: `rw,nosuid,…`.
    pub options: Vec<String>,
    /// `shared:1`, `master:1`, `unbindable`.
    pub propagation: Vec<String>,
    pub kind: String,
    pub source: String,
    /// Options of the file system.
    pub superblock: Vec<String>,
}

/// Reads a mountinfo.
pub fn mounts(text: &str) -> Vec<Mounted> {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    text.lines()
        .map(|line| {
            let (left, right) = line.split_once(" - ").expect("mountinfo has a separator");
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            Mounted {
                root: left[3].to_owned(),
                place: left[4].to_owned(),
                options: list(left[5]),
                propagation: left[6..].iter().map(|&p| p.to_owned()).collect(),
                kind: right[0].to_owned(),
                source: right[1].to_owned(),
                superblock: list(right[2]),
            }
        })
        .collect()
}

/// The topmost mount on `place`.
#[track_caller]
pub fn mounted(text: &str, place: &str) -> Mounted {
    let found = mounts(text).into_iter().rfind(|m| m.place == place);
    found.unwrap_or_else(|| panic!("nothing is mounted on {place}:\n{text}"))
}

impl Mounted {
    /// Has all of these attributes.
    pub fn has(&self, options: &[&str]) -> bool {
        options.iter().all(|wanted| self.options.iter().any(|o| o == wanted))
    }

    /// Its file system has all of these options.
    pub fn fs_has(&self, options: &[&str]) -> bool {
        options.iter().all(|wanted| self.superblock.iter().any(|o| o == wanted))
    }
}

/// Adds an entry to the list at `pointer` (JSON pointer), which is made if missing.
pub fn push(config: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
    let parent = config.pointer_mut(parent).expect("the parent exists");
    let list = &mut parent[name];
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    list.as_array_mut().expect("a list").push(value);
}

/// Adds a mount.
pub fn mount(config: &mut Value, destination: &str, kind: &str, source: &str, options: &[&str]) {
    let value =
        serde_json::json!({"destination": destination, "type": kind, "source": source, "options": options});
    push(config, "/mounts", value);
}

/// Replaces the namespaces: `type` or `type=path`.
pub fn namespaces(config: &mut Value, list: &[&str]) {
    let entries = list.iter().map(|entry| match entry.split_once('=') {
        Some((kind, path)) => serde_json::json!({"type": kind, "path": path}),
        None => serde_json::json!({"type": entry}),
    });
    config["linux"]["namespaces"] = entries.collect();
}

/// All capabilities that the kernel has, as a set of five equal sets.
pub fn all_capabilities(config: &mut Value) {
    let all: Vec<String> = (0..41).filter_map(airlock_loader::init::identity::capability_name).collect();
    let sets = ["bounding", "effective", "permitted", "inheritable", "ambient"];
    config["process"]["capabilities"] =
        sets.iter().map(|set| ((*set).to_owned(), Value::from(all.clone()))).collect();
}

/// Id of the host that is root in the user namespace of [`in_user_namespace`].
pub const BASE: u32 = 100_000;

/// Gives the container a user namespace of its own, whose ids begin at [`BASE`].
pub fn in_user_namespace(config: &mut Value) {
    push(config, "/linux/namespaces", serde_json::json!({"type": "user"}));
    for map in ["uidMappings", "gidMappings"] {
        config["linux"][map] = serde_json::json!([{"containerID": 0, "hostID": BASE, "size": 65536}]);
    }
}

/// Gives a tree to another user and group, links included.
pub fn chown_all(path: &std::path::Path, id: u32) {
    std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            chown_all(&entry.unwrap().path(), id);
        }
    }
}
