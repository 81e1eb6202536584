//! Somebody exchanges names while containers start whose mounts lie below them: nothing may be made, mounted or written
//! on the host, and no container may see what is not its own.
use super::*;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Exchanges two names as fast as it can while `work` runs. Returns how often it did.
fn exchanging(a: &Path, b: &Path, work: impl FnOnce()) -> u64 {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        // Also when `work` fails: the thread has to end.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    count.into_inner()
}

/// A volume, a directory of the host that nobody may touch, and links to it from the volume.
struct Scene {
    volume: tempfile::TempDir,
    outside: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { volume: tempfile::tempdir().unwrap(), outside: tempfile::tempdir().unwrap() };
        std::fs::create_dir(scene.volume.path().join("place")).unwrap();
        let up = "../".repeat(12);
        let target = format!("{up}{}", scene.outside.path().strip_prefix("/").unwrap().display());
        symlink(target, scene.volume.path().join("link")).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.volume.path().join(name)
    }

    fn untouched(&self) {
        let found: Vec<_> =
            std::fs::read_dir(self.outside.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(found.is_empty(), "made on the host: {found:?}");
        let outside = self.outside.path().display().to_string();
        assert_eq!(leaks::mounts_with(&outside), Vec::<String>::new());
        assert_eq!(leaks::mounts_with(&self.volume.path().display().to_string()), Vec::<String>::new());
    }
}

#[test]
fn mounts_inside_a_shared_volume() {
    need!("busybox");
    let scene = Scene::new();
    let state = State::new();
    // A neighbour has the same volume, as in the attack.
    let volume = json!({"destination": "/vol", "type": "bind", "source": scene.volume.path(), "options": ["rbind", "rw"]});
    let neighbour = Bundle::with(&["/bin/sleep", "1000"], |c| {
        c["mounts"].as_array_mut().unwrap().push(volume.clone());
    });
    let id = unique("neighbour");
    state.detached(&["run", "--detach", "--bundle", neighbour.text(), &id]);
    let mut started = 0;
    let exchanged = exchanging(&scene.path("place"), &scene.path("link"), || {
        for i in 0..40 {
            let below = ["/vol/place", "/vol/place/made/deeper", "/vol/link/made"][i % 3];
            let kind = [
                json!({"destination": below, "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}),
                json!({"destination": below, "type": "bind", "source": neighbour.path(), "options": ["bind", "ro"]}),
            ][i % 2]
                .clone();
            // What is mounted below shows in the container only.
            let bundle =
                Bundle::with(&["/bin/sh", "-c", "cat /proc/mounts > /dev/null; echo started"], |c| {
                    c["mounts"].as_array_mut().unwrap().extend([volume.clone(), kind]);
                });
            let out = state.run(["run", "--bundle", bundle.text(), &unique("racer")]);
            started += usize::from(out.stdout == b"started\n");
            if !out.status.success() {
                assert_eq!(String::from_utf8_lossy(&out.stderr).trim_end().lines().count(), 1, "{out:?}");
            }
            scene.untouched();
        }
    });
    assert!(exchanged > 100, "{exchanged} exchanges");
    assert!(started > 0, "no container ever started");
}

#[test]
fn masked_and_read_only_paths_with_an_exchanged_dev_null() {
    need!("busybox");
    let scene = Scene::new();
    let secret = scene.outside.path().join("secret");
    // No mount on /dev: the image's own /dev/null is what an attacker would exchange.
    let script = "cat /proc/keys /proc/timer_list | wc -c; echo x > /proc/sysrq-trigger && echo wrote";
    let bundle = Bundle::with(&["/bin/sh", "-c", script], |c| {
        c["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|m| m["destination"].as_str().is_some_and(|d| !d.starts_with("/dev")));
    });
    let dev = bundle.rootfs().join("dev");
    let target = format!("{}{}", "../".repeat(12), secret.strip_prefix("/").unwrap().display());
    symlink(target, dev.join("other")).unwrap();
    std::fs::write(dev.join("null"), "").unwrap();
    let state = State::new();
    let exchanged = exchanging(&dev.join("null"), &dev.join("other"), || {
        for _ in 0..30 {
            let out = state.run(["run", "--bundle", bundle.text(), &unique("mask")]);
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(text.is_empty() || text == "0\n", "masked paths were read or written: {out:?}");
            assert!(!secret.exists(), "a device or file was made on the host");
        }
    });
    assert!(exchanged > 100, "{exchanged} exchanges");
    scene.untouched();
}

#[test]
fn a_rootfs_whose_proc_and_dev_are_exchanged_with_links() {
    need!("busybox");
    let scene = Scene::new();
    let state = State::new();
    for name in ["proc", "dev"] {
        let bundle =
            Bundle::new(&["/bin/sh", "-c", "test -e /proc/self/status && test -c /dev/null && echo whole"]);
        let link = bundle.rootfs().join("link");
        let up = format!("{}{}", "../".repeat(12), scene.outside.path().strip_prefix("/").unwrap().display());
        symlink(up, &link).unwrap();
        exchanging(&bundle.rootfs().join(name), &link, || {
            for _ in 0..25 {
                // Either it is refused, or it is as it should be; if the name changes after the start, the program
                // finds the link.
                let out = state.run(["run", "--bundle", bundle.text(), &unique("exchanged")]);
                if !out.status.success() {
                    assert!(String::from_utf8_lossy(&out.stderr).trim_end().lines().count() <= 1, "{out:?}");
                }
                scene.untouched();
            }
        });
    }
}
