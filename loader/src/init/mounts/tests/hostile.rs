//! Images with a symbolic link at every well-known path, and neighbours that exchange directories while the tree is
//! being built (security-history items 3, 4, 5, 6, 7, 9, 14, 15).

use super::*;
use crate::init::paths::testing::{Exchanger, plant_link};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Every path that a runtime makes, mounts on, writes to or hides.
const WELL_KNOWN: &[&str] = &[
    "/proc",
    "/sys",
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/null",
    "/dev/zero",
    "/dev/tty",
    "/dev/console",
    "/dev/ptmx",
    "/dev/fd",
    "/dev/core",
    "/sys/fs/cgroup",
    "/sys/fs",
    "/proc/self",
    "/proc/sys",
    "/proc/version",
    "/sys/firmware",
    "/etc",
    "/etc/passwd",
    "/tmp",
    "/var/data",
    "/run",
    "/a/new",
    "/a",
];

/// A directory of the host that no container may touch, with an image beside it.
struct Stage {
    base: tempfile::TempDir,
    image: std::path::PathBuf,
}

impl Stage {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let image = base.path().join("image");
        for name in ["fs/cgroup", "pts", "sys", "self/attr"] {
            fs::create_dir_all(base.path().join("outside").join(name)).unwrap();
        }
        for name in ["null", "passwd", "version", "sysrq-trigger"] {
            fs::write(base.path().join("outside").join(name), "untouched").unwrap();
        }
        let stage = Self { base, image };
        stage.reset_image();
        stage
    }

    fn reset_image(&self) {
        let _ = fs::remove_dir_all(&self.image);
        for name in ["bin", "dev/pts", "etc", "proc/sys", "sys/fs/cgroup", "tmp", "var/data"] {
            fs::create_dir_all(self.image.join(name)).unwrap();
        }
    }

    /// Names, kinds, modes and contents below `outside`.
    fn outside(&self) -> Vec<String> {
        fn collect(dir: &Path, into: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let status = fs::symlink_metadata(&path).unwrap();
                let content =
                    if status.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
                into.push(format!("{} {:o} {} {content}", path.display(), status.mode(), status.rdev()));
                if status.is_dir() {
                    collect(&path, into);
                }
            }
        }
        let mut all = Vec::new();
        collect(&self.base.path().join("outside"), &mut all);
        all.sort();
        all
    }
}

/// The default config, with `/dev` in the image itself (which is what can be tampered with) unless `dev_mount`.
fn hostile_config(dev_mount: bool) -> Value {
    let mut config = config();
    config["root"]["readonly"] = json!(false);
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| {
        m["type"] != "cgroup"
            && m["destination"] != "/dev/mqueue"
            && (dev_mount || m["destination"] != "/dev")
    });
    mounts.push(json!({"destination": "/a/new", "type": "tmpfs"}));
    config["process"]["terminal"] = json!(true);
    config["linux"]["maskedPaths"] = json!(["/proc/version", "/sys/firmware"]);
    config["linux"]["devices"] = json!([{"path": "/dev/loop", "type": "b", "major": 7, "minor": 0}]);
    config
}

/// What has to hold in a tree that was built, however hostile the image.
fn check_tree() {
    for (place, kind) in [("/proc", "- proc "), ("/sys", "- sysfs ")] {
        assert!(line(place).contains(kind), "{}", line(place));
    }
    assert!(is_char("/proc/version", 1, 3), "the mask is in place");
    assert_eq!(fs::read_dir("/sys/firmware").unwrap().count(), 0);
    assert!(mount_options("/proc/sys").starts_with("ro"));
    // Files that only the host has, wherever this is built.
    let ours = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    assert!(!ours.exists() && !Path::new("/usr/lib/os-release").exists());
}

fn attempt(
    image: std::path::PathBuf,
    dev_mount: bool,
    attackers: Arc<Vec<Exchanger>>,
) -> std::result::Result<(), String> {
    in_namespace(move || {
        let built = plain(&spec(hostile_config(dev_mount)), &image).map_err(|e| e.to_string())?;
        if let Some(devpts) = &built.devpts {
            let (_master, peer) = open_console(devpts.as_fd()).map_err(|e| e.to_string())?;
            let _ = mount_console(peer.as_fd());
        }
        Exchanger::paused(&attackers, check_tree);
        Ok(())
    })
}

#[test]
fn links_at_well_known_paths_do_nothing_to_the_host() {
    if !root_or_skip("links_at_well_known_paths_do_nothing_to_the_host") {
        return;
    }
    let stage = Stage::new();
    let outside = stage.base.path().join("outside");
    let before = stage.outside();
    let mut refused = 0;
    for path in WELL_KNOWN {
        let name = Path::new(path).file_name().unwrap();
        for target in [
            outside.to_str().unwrap(),
            outside.join(name).to_str().unwrap(),
            "../outside",
            "../../../../../../../../etc",
            "/proc/self/root",
            path,
        ] {
            // Without a mount of its own, /dev is the image's, and so are the nodes made in it.
            for dev_mount in [true, false].into_iter().filter(|own| *own || path.starts_with("/dev")) {
                stage.reset_image();
                plant_link(&stage.image, path, target);
                let result = attempt(stage.image.clone(), dev_mount, Arc::default());
                if ["/proc", "/sys"].contains(path) {
                    let text = result.as_ref().unwrap_err();
                    assert!(
                        text.contains("must be mounted on an ordinary directory"),
                        "{path} -> {target}: {text}"
                    );
                }
                refused += usize::from(result.is_err());
                assert_eq!(stage.outside(), before, "{path} -> {target}: {result:?}");
            }
        }
    }
    assert!(refused > 0);
}

/// Builds again and again while `swaps` are exchanged under it. Every tree that comes out has to be right, and the
/// host untouched.
fn race(swaps: &[(&str, &str)], dev_mount: bool) {
    let stage = Stage::new();
    let outside = stage.base.path().join("outside");
    let before = stage.outside();
    let mut attackers = Vec::new();
    for (i, (victim, target)) in swaps.iter().enumerate() {
        let decoy = stage.image.join(format!("decoy{i}"));
        std::os::unix::fs::symlink(outside.join(target), &decoy).unwrap();
        attackers.push(Exchanger::start(stage.image.join(victim), decoy));
    }
    let attackers = Arc::new(attackers);
    let end = Instant::now() + Duration::from_millis(1500);
    let (mut built, mut refused) = (0, 0);
    while Instant::now() < end || built + refused <= 10 || attackers.iter().any(|a| a.exchanges() < 100) {
        match attempt(stage.image.clone(), dev_mount, Arc::clone(&attackers)) {
            Ok(()) => built += 1,
            Err(_) => refused += 1,
        }
    }
    drop(attackers);
    assert_eq!(stage.outside(), before);
    eprintln!("race over {swaps:?}: {built} built, {refused} refused");
}

#[test]
fn exchanged_proc_and_sys_are_never_mounted_beside() {
    if root_or_skip("exchanged_proc_and_sys_are_never_mounted_beside") {
        race(&[("proc", ""), ("sys", "")], true);
    }
}

#[test]
fn exchanged_dev_and_null_neither_reach_the_host_nor_unmask() {
    if root_or_skip("exchanged_dev_and_null_neither_reach_the_host_nor_unmask") {
        race(&[("dev", "")], false);
        race(&[("dev/pts", "pts")], false);
    }
}

#[test]
fn exchanged_mount_points_of_volumes_stay_inside() {
    if root_or_skip("exchanged_mount_points_of_volumes_stay_inside") {
        race(&[("var", ""), ("etc", "sys")], true);
    }
}

#[test]
fn a_null_device_that_is_none_is_not_used_as_mask() {
    if !root_or_skip("a_null_device_that_is_none_is_not_used_as_mask") {
        return;
    }
    let refused = in_namespace(|| {
        let (image, host) = (image(), tempfile::tempdir().unwrap());
        fs::write(host.path().join("null"), "not null").unwrap();
        let mut config = bare(json!([
            {"destination": "/proc", "type": "proc"},
            {"destination": "/dev", "type": "bind", "source": "x", "options": ["bind"]}
        ]));
        config["linux"]["maskedPaths"] = json!(["/proc/version"]);
        let gofer = vec![detached(host.path())];
        build_here(&spec(config), image.path(), gofer, CgroupView::default()).unwrap_err().to_string()
    });
    assert!(refused.contains("not the null device"), "{refused}");
}
