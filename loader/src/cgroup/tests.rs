//! The handle on real cgroups (as root), and what it refuses.

use super::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Mount point of a v2 hierarchy, if tests may use it.
pub(crate) fn unified_root() -> Option<PathBuf> {
    let found = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .map(PathBuf::from)
        .find(|p| p.join("cgroup.controllers").exists());
    found.filter(|_| is_root())
}

fn freezer_root() -> Option<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup/freezer");
    (is_root() && root.join("cgroup.procs").exists()).then_some(root)
}

/// A cgroup of this test's own, removed with all processes in it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(root: &Path, what: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("airlock-test-{what}-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn open(&self) -> OwnedFd {
        fs::File::open(&self.0).unwrap().into()
    }

    /// A path for a device node that nobody else uses.
    pub(crate) fn node_path(&self) -> String {
        format!("/tmp/{}", self.0.file_name().unwrap().to_str().unwrap())
    }

    /// A shell that joins the cgroup before it does anything else.
    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        let join = format!("echo 0 > {}/cgroup.procs && {script}", self.0.display());
        command.args(["-c", &join]).stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    pub(crate) fn run(&self, script: &str) -> String {
        let output = self.shell(script).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts `script` and returns when it has printed a line.
    fn start(&self, script: &str) -> Child {
        use std::io::BufRead;
        let mut child = self.shell(&format!("echo; {script}")).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let parent = fs::File::open(self.0.parent().unwrap()).unwrap();
        let name = self.0.file_name().unwrap().to_str().unwrap().to_owned();
        let dir = self.open();
        let v2 = self.0.join("cgroup.freeze").exists();
        if v2 || self.0.join("freezer.state").exists() {
            let _ = control::kill(dir.as_fd(), v2);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while !remove_tree(parent.as_fd(), &name).unwrap() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn handle(scratch: &Scratch, v2: bool) -> Cgroup {
    let leaf = scratch.0.join("airlock-root");
    fs::create_dir(&leaf).unwrap();
    let leaf = fs::File::open(leaf).unwrap().into();
    if v2 {
        return Cgroup::new(v2, vec![("limits".to_owned(), scratch.open()), ("leaf".to_owned(), leaf)])
            .unwrap();
    }
    Cgroup::new(v2, vec![("freezer".to_owned(), leaf)]).unwrap()
}

/// The life of a leaf: list, freeze, thaw, kill, a leaf beside it.
fn live(root: &Path, v2: bool) {
    let scratch = Scratch::new(root, "live");
    let cgroup = handle(&scratch, v2);
    assert!(cgroup.procs().unwrap().is_empty());
    assert!(!cgroup.frozen().unwrap());
    let leaf = Scratch(scratch.0.join("airlock-root"));
    // A process in the leaf and one in a cgroup that the container made itself.
    let mut child = leaf.start("exec sleep 1000");
    let nested = leaf.0.join("own");
    fs::create_dir(&nested).unwrap();
    let nested = std::mem::ManuallyDrop::new(Scratch(nested));
    let mut deep = nested.start("exec sleep 1000");
    let mut pids = [child.id().cast_signed(), deep.id().cast_signed()];
    pids.sort_unstable();
    assert_eq!(cgroup.procs().unwrap(), pids);
    assert_eq!(cgroup.threads().unwrap(), pids);

    cgroup.freeze(true).unwrap();
    assert!(cgroup.frozen().unwrap());
    cgroup.freeze(true).unwrap();
    cgroup.freeze(false).unwrap();
    assert!(!cgroup.frozen().unwrap());

    // A further container is not touched by what happens to the first.
    let other = cgroup.make_child("other").unwrap();
    assert_eq!(cgroup.make_child("other").unwrap_err().kind, Kind::InvalidState);
    let other_scratch = std::mem::ManuallyDrop::new(Scratch(scratch.0.join("airlock-other")));
    let mut third = other_scratch.start("exec sleep 1000");
    assert_eq!(other.procs().unwrap(), [third.id().cast_signed()]);
    cgroup.freeze(true).unwrap();
    assert!(!other.frozen().unwrap());
    // Killing works on a frozen cgroup.
    cgroup.kill().unwrap();
    child.wait().unwrap();
    deep.wait().unwrap();
    assert!(third.try_wait().unwrap().is_none());
    assert_eq!(cgroup.remove_child("other").unwrap_err().kind, Kind::InvalidState);
    other.kill().unwrap();
    third.wait().unwrap();
    cgroup.remove_child("other").unwrap();
    assert!(!scratch.0.join("airlock-other").exists());
    std::mem::forget(leaf);
}

#[test]
fn v1_leaf_lives() {
    match freezer_root() {
        Some(root) => live(&root, false),
        None => eprintln!("skipped: v1_leaf_lives needs root and a v1 freezer"),
    }
}

#[test]
fn v2_leaf_lives() {
    match unified_root() {
        Some(root) => live(&root, true),
        None => eprintln!("skipped: v2_leaf_lives needs root and a v2 cgroup mount"),
    }
}

#[test]
fn fork_bomb_is_killed() {
    let Some(root) = freezer_root() else {
        return eprintln!("skipped: fork_bomb_is_killed needs root and a v1 freezer");
    };
    let scratch = Scratch::new(&root, "bomb");
    let cgroup = handle(&scratch, false);
    let leaf = std::mem::ManuallyDrop::new(Scratch(scratch.0.join("airlock-root")));
    let mut child = leaf.start("while :; do (sleep 100 & exec sleep 0.05) & sleep 0.001; done");
    cgroup.kill().unwrap();
    child.wait().unwrap();
    // The killed are reaped by init meanwhile: none may be left, and none may come.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !cgroup.procs().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", cgroup.procs());
        std::thread::yield_now();
    }
}

fn fake(name: &str) -> Cgroup {
    let dir = || OwnedFd::from(fs::File::open("/tmp").unwrap());
    Cgroup::new(false, vec![(name.to_owned(), dir()), ("freezer".to_owned(), dir())]).unwrap()
}

#[test]
fn controllers_are_found_in_joint_hierarchies() {
    let cgroup = fake("cpu,cpuacct");
    assert!(cgroup.dir("cpuacct").is_some() && cgroup.dir("cpu").is_some());
    assert!(cgroup.dir("cpu,cpuacct").is_none() && cgroup.dir("cp").is_none());
    assert!(cgroup.v2_dir().is_none());
    let e = Cgroup::new(false, vec![]).unwrap_err();
    assert_eq!(e.kind, Kind::InvalidArgument);
    let unified = vec![(UNIFIED.to_owned(), fs::File::open("/tmp").unwrap().into())];
    assert!(Cgroup::new(false, unified).unwrap().v2_dir().is_some());
}

#[test]
fn v2_has_a_leaf_and_limits() {
    let temporary = tempfile::tempdir().unwrap();
    let (limits, leaf) = (temporary.path(), temporary.path().join("airlock-c"));
    fs::create_dir(&leaf).unwrap();
    fs::write(limits.join("memory.current"), "4096\n").unwrap();
    fs::write(limits.join("hugetlb.2MB.current"), "7\n").unwrap();
    let open = |path: &Path| OwnedFd::from(fs::File::open(path).unwrap());
    let named = |names: &[&str]| {
        let dir = |name: &&str| ((*name).to_owned(), open(if *name == "leaf" { &leaf } else { limits }));
        Cgroup::new(true, names.iter().map(dir).collect())
    };
    let hostile: [&[&str]; 7] = [
        &[],
        &["leaf"],
        &["limits"],
        &["", ""],
        &["leaf", "leaf"],
        &["leaf", "freezer"],
        &["leaf", "limits", "x"],
    ];
    for names in hostile {
        let e = named(names).unwrap_err();
        assert!(e.kind == Kind::InvalidArgument && e.message.contains("limits"), "{names:?}: {e}");
    }
    for names in [["leaf", "limits"], ["limits", "leaf"]] {
        let cgroup = named(&names).unwrap();
        let stats = cgroup.stats().unwrap();
        assert_eq!(
            (stats.memory.usage.usage, stats.hugetlb["2MB"].usage),
            (4096, 7),
            "not those of the leaf"
        );
        assert_eq!(cgroup.read("memory", "", "memory.current").unwrap(), "4096\n");
        assert!(cgroup.join_fd().unwrap().is_empty());
        let same = |a: BorrowedFd<'_>, b: &Path| {
            use std::os::unix::fs::MetadataExt;
            nix::sys::stat::fstat(a).unwrap().st_ino == fs::metadata(b).unwrap().ino()
        };
        assert!(same(cgroup.v2_dir().unwrap(), &leaf) && same(cgroup.leaf(), &leaf));
        // A further container's leaf is beside the first's, and shares the limits.
        let other = cgroup.make_child("other").unwrap();
        assert!(same(other.leaf(), &limits.join("airlock-other")) && same(other.dir("cpu").unwrap(), limits));
        cgroup.remove_child("other").unwrap();
        assert!(!limits.join("airlock-other").exists());
    }
}

#[test]
fn names_are_checked() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("leaf");
    fs::create_dir(&dir).unwrap();
    let open = || OwnedFd::from(fs::File::open(&dir).unwrap());
    let cgroup =
        Cgroup::new(false, vec![("memory".to_owned(), open()), ("freezer".to_owned(), open())]).unwrap();
    fs::create_dir(dir.join("below")).unwrap();
    fs::write(dir.join("below/memory.stat"), "cache 1\n").unwrap();
    fs::write(temporary.path().join("memory.stat"), "secret").unwrap();
    std::os::unix::fs::symlink("..", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("../memory.stat", dir.join("memory.link")).unwrap();
    assert_eq!(cgroup.read("memory", "below", "memory.stat").unwrap(), "cache 1\n");
    for bad in ["..", "below/../..", "/", "/tmp", "link", "link/leaf", "below/memory.stat", "x\0y"] {
        assert!(cgroup.read("memory", bad, "memory.stat").is_err(), "{bad:?}");
    }
    assert!(cgroup.read("memory", "", "memory.link").is_err());
    let missing = cgroup.read("memory", "", "memory.none").unwrap_err();
    assert!(missing.message.starts_with(NO_SUCH_FILE), "{missing}");
    for bad in ["../x", "a/b", "", "..", "x\0y"] {
        assert_eq!(cgroup.read("memory", "", bad).unwrap_err().kind, Kind::InvalidArgument, "{bad:?}");
        assert_eq!(cgroup.write("memory", "", bad, "1").unwrap_err().kind, Kind::InvalidArgument, "{bad:?}");
        assert!(cgroup.make_child(bad).is_err(), "{bad:?}");
    }
    assert_eq!(cgroup.write("memory", "", "cgroup.procs", "1").unwrap_err().kind, Kind::InvalidArgument);
    let e = cgroup.read("nothing", "", "memory.stat").unwrap_err();
    assert!(e.kind == Kind::NoSuchEntity && e.message.contains("memory freezer"), "{e}");
    assert!(leaf_name(&"x".repeat(MAX_CID)).is_ok() && leaf_name(&"x".repeat(MAX_CID + 1)).is_err());
}
