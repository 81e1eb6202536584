//! In-root resolution against images that want out, standing still and racing.
#![allow(clippy::unwrap_used)]

use super::testing::{Exchanger, in_namespace, plant_link, root_or_skip};
use super::*;
use nix::fcntl::open;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

struct Sandbox {
    /// Holds the root, and what must never be reached.
    base: tempfile::TempDir,
    root: OwnedFd,
}

impl Sandbox {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("root/a/b")).unwrap();
        fs::create_dir_all(base.path().join("outside")).unwrap();
        fs::write(base.path().join("secret"), "secret").unwrap();
        let root = open(&base.path().join("root"), DIRECTORY, Mode::empty()).unwrap();
        Self { base, root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.base.path().join("root").join(path)
    }

    fn inode(&self, path: &str) -> u64 {
        fs::metadata(self.at(path)).unwrap().ino()
    }

    /// Resolves both ways, which have to agree, and returns the inode.
    fn both(&self, path: &str, flags: OFlag) -> Result<u64> {
        let path = Path::new(path);
        let kernel = open_in_root(self.root.as_fd(), path, flags).map(|fd| fstat(fd).unwrap().st_ino);
        let own =
            walk(self.root.as_fd(), path, flags, false, Missing::Fail).map(|fd| fstat(fd).unwrap().st_ino);
        assert_eq!(kernel, own, "{}", path.display());
        kernel
    }
}

#[test]
fn nothing_leads_out_of_the_root() {
    let s = Sandbox::new();
    symlink("/", s.at("abs")).unwrap();
    symlink("../../../../..", s.at("a/up")).unwrap();
    symlink("../../secret", s.at("a/secret")).unwrap();
    let root = s.inode("");
    for path in
        ["/", "..", "../../..", "a/../../..", "abs", "a/up", "a/up/../abs/a/..", "abs/../..", "a/b/../.."]
    {
        assert_eq!(s.both(path, OFlag::O_PATH), Ok(root), "{path}");
    }
    assert_eq!(s.both("a/secret", OFlag::O_PATH), Err(Errno::ENOENT));
    assert_eq!(s.both("../secret", OFlag::O_RDONLY), Err(Errno::ENOENT));
}

#[test]
fn both_ways_agree_on_ordinary_paths_and_errors() {
    let s = Sandbox::new();
    fs::write(s.at("a/file"), "x").unwrap();
    symlink("a", s.at("rel")).unwrap();
    symlink("/a/file", s.at("a/b/abs")).unwrap();
    symlink("loop", s.at("loop")).unwrap();
    symlink("nowhere", s.at("dangling")).unwrap();
    assert_eq!(s.both("rel/b", DIRECTORY), Ok(s.inode("a/b")));
    assert_eq!(s.both("a/b/abs", OFlag::O_RDONLY), Ok(s.inode("a/file")));
    assert_eq!(s.both("./a//b/.", OFlag::O_RDONLY), Ok(s.inode("a/b")));
    assert_eq!(s.both("loop", OFlag::O_PATH), Err(Errno::ELOOP));
    assert_eq!(s.both("dangling", OFlag::O_PATH), Err(Errno::ENOENT));
    assert_eq!(s.both("a/file/x", OFlag::O_PATH), Err(Errno::ENOTDIR));
    assert_eq!(s.both("a/file", DIRECTORY), Err(Errno::ENOTDIR));
    assert_eq!(s.both("rel", OFlag::O_RDONLY | OFlag::O_NOFOLLOW), Err(Errno::ELOOP));
    let link = s.both("rel", OFlag::O_PATH | OFlag::O_NOFOLLOW).unwrap();
    assert_eq!(link, fs::symlink_metadata(s.at("rel")).unwrap().ino());
    let strict = |p: &str| {
        let kernel = open_in_root_no_symlinks(s.root.as_fd(), Path::new(p), OFlag::O_PATH).map(drop);
        let own = walk(s.root.as_fd(), Path::new(p), OFlag::O_PATH, true, Missing::Fail).map(drop);
        assert_eq!(kernel, own, "{p}");
        kernel
    };
    assert_eq!(strict("rel/b"), Err(Errno::ELOOP));
    assert_eq!(strict("a/b"), Ok(()));
}

#[test]
fn missing_directories_are_made_where_links_lead() {
    let s = Sandbox::new();
    symlink("/made/by/link", s.at("dangling")).unwrap();
    symlink("../../../../outside/x", s.at("escape")).unwrap();
    let dir = mkdir_all_in_root(s.root.as_fd(), Path::new("/dangling/deep"), 0o750).unwrap();
    assert_eq!(fstat(&dir).unwrap().st_ino, s.inode("made/by/link/deep"));
    mkdir_all_in_root(s.root.as_fd(), Path::new("escape"), 0o755).unwrap();
    assert!(s.at("outside/x").is_dir());
    assert_eq!(fs::read_dir(s.base.path().join("outside")).unwrap().count(), 0);
    let refused = mkdir_all_no_symlinks(s.root.as_fd(), Path::new("escape/y"), 0o755).map(drop);
    assert_eq!(refused, Err(Errno::ELOOP));
    fs::write(s.at("file"), "").unwrap();
    let blocked = mkdir_all_in_root(s.root.as_fd(), Path::new("file/x"), 0o755).map(drop);
    assert_eq!(blocked, Err(Errno::ENOTDIR));
}

#[test]
fn files_are_made_and_existing_ones_left_alone() {
    let s = Sandbox::new();
    symlink("../../../secret-copy", s.at("a/link")).unwrap();
    let file = create_file_in_root(s.root.as_fd(), Path::new("/x/y/file"), 0o600).unwrap();
    assert_eq!(file_type(file.as_fd()), Ok(SFlag::S_IFREG));
    create_file_in_root(s.root.as_fd(), Path::new("a/link"), 0o600).unwrap();
    assert!(s.at("secret-copy").is_file());
    assert!(!s.base.path().join("secret-copy").exists());
    let there = create_file_in_root(s.root.as_fd(), Path::new("a/b"), 0o600).unwrap();
    assert_eq!(file_type(there.as_fd()), Ok(SFlag::S_IFDIR));
    let (parent, name) = parent_in_root(s.root.as_fd(), Path::new("/n/e/w/node")).unwrap();
    assert_eq!(fstat(&parent).unwrap().st_ino, s.inode("n/e/w"));
    assert_eq!(name, "node");
    assert_eq!(parent_in_root(s.root.as_fd(), Path::new("/..")).map(drop), Err(Errno::EINVAL));
}

#[test]
fn magic_links_are_refused() {
    if !root_or_skip("magic_links_are_refused") {
        return;
    }
    in_namespace(|| {
        let s = Sandbox::new();
        fs::create_dir(s.at("proc")).unwrap();
        let context = mount::fsopen("proc").unwrap();
        mount::fsconfig_create(context.as_fd()).unwrap();
        let procfs = mount::fsmount(context.as_fd(), 0).unwrap();
        mount::attach_at(procfs.as_fd(), &s.at("proc")).unwrap();
        plant_link(&s.at(""), "outside-cwd", "/proc/self/cwd");
        for path in ["proc/self/root", "proc/thread-self/cwd", "proc/self/fd/0", "outside-cwd"] {
            let kernel = open_in_root(s.root.as_fd(), Path::new(path), OFlag::O_PATH).map(drop);
            assert_eq!(kernel, Err(Errno::ELOOP), "{path}");
            let own = walk(s.root.as_fd(), Path::new(path), OFlag::O_PATH, false, Missing::Directory(0o755))
                .map(drop);
            assert_eq!(own, Err(Errno::ELOOP), "{path}");
        }
    });
}

#[test]
fn a_private_procfs_is_verified_and_strict() {
    if !root_or_skip("a_private_procfs_is_verified_and_strict") {
        return;
    }
    in_namespace(|| {
        let procfs = ProcHandle::open().unwrap();
        let status = String::from_utf8(procfs.read("thread-self/status").unwrap()).unwrap();
        assert!(status.contains(&format!("Pid:\t{}", nix::unistd::gettid())), "{status}");
        procfs.write("self/oom_score_adj", procfs.read("self/oom_score_adj").unwrap().trim_ascii()).unwrap();
        for path in ["", "/etc/passwd", "sys/../version", "self", "self/cwd/etc/passwd", "self/root"] {
            assert!(procfs.open_file(path, OFlag::O_RDONLY).is_err(), "{path}");
        }
        let missing = procfs.write("sys/no/such", b"1").unwrap_err();
        assert_eq!(missing.kind, airlock_wire::error::Kind::NoSuchEntity);
        let pid = nix::unistd::getpid();
        for (path, good) in [
            ("sys/kernel/ostype".to_owned(), true),
            (format!("{pid}/status"), true),
            (format!("{pid}/cwd/etc/passwd"), false),
            ("self/status".to_owned(), false),
            ("mounts".to_owned(), false),
        ] {
            assert_eq!(procfs.open_by_components(&path, OFlag::O_RDONLY).is_ok(), good, "{path}");
        }
        let decoy = open("/tmp", DIRECTORY, Mode::empty()).unwrap();
        assert!(ProcHandle::from_mount(decoy).is_err());
        let inner = open("/proc/sys", DIRECTORY, Mode::empty()).unwrap();
        assert!(ProcHandle::from_mount(inner).is_err());
    });
}

#[test]
fn what_is_mounted_over_parts_of_procfs_is_not_reached() {
    if !root_or_skip("what_is_mounted_over_parts_of_procfs_is_not_reached") {
        return;
    }
    in_namespace(|| {
        let s = Sandbox::new();
        fs::write(s.at("decoy"), "untouched").unwrap();
        let context = mount::fsopen("proc").unwrap();
        mount::fsconfig_create(context.as_fd()).unwrap();
        let root = mount::fsmount(context.as_fd(), 0).unwrap();
        mount::attach_at(root.as_fd(), &s.at("a")).unwrap();
        let decoy = mount::open_tree(nix::fcntl::AT_FDCWD, &s.at("decoy"), mount::OPEN_TREE_CLONE).unwrap();
        mount::attach_at(decoy.as_fd(), &s.at("a/sys/kernel/hostname")).unwrap();
        let procfs = ProcHandle::from_mount(root).unwrap();
        assert!(procfs.write("sys/kernel/hostname", b"x").is_err());
        assert_eq!(fs::read(s.at("decoy")).unwrap(), b"untouched");
        assert!(procfs.read("sys/kernel/ostype").is_ok());
    });
}

#[test]
fn races_stay_inside() {
    let s = Sandbox::new();
    fs::create_dir_all(s.at("swap/x")).unwrap();
    symlink("../../outside", s.at("link")).unwrap();
    fs::create_dir(s.base.path().join("outside/x")).unwrap();
    let outside = fs::metadata(s.base.path().join("outside/x")).unwrap().ino();
    let attacker = Exchanger::start(s.at("swap"), s.at("link"));
    let end = Instant::now() + Duration::from_millis(700);
    let mut resolved = 0u64;
    while Instant::now() < end || resolved == 0 || attacker.exchanges() < 100 {
        let path = Path::new("swap/x");
        let results = [
            open_in_root(s.root.as_fd(), path, OFlag::O_PATH),
            walk(s.root.as_fd(), path, OFlag::O_PATH, false, Missing::Fail),
            mkdir_all_in_root(s.root.as_fd(), Path::new("swap/x/new"), 0o755),
            create_file_in_root(s.root.as_fd(), Path::new("swap/x/file"), 0o644),
        ];
        for fd in results.into_iter().flatten() {
            resolved += 1;
            assert_ne!(fstat(fd).unwrap().st_ino, outside);
        }
    }
    drop(attacker);
    let leaked: Vec<_> = fs::read_dir(s.base.path().join("outside/x")).unwrap().collect();
    assert!(leaked.is_empty(), "made outside the root: {leaked:?}");
}
