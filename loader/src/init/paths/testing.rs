//! What the tests of paths and mounts need: private namespaces, images, and attackers.
#![allow(clippy::unwrap_used)]

use crate::sys::mount;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};

/// True when the test may run; otherwise says so by name.
pub(crate) fn root_or_skip(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    root
}

/// Runs `work` in a thread with a mount, IPC and cgroup namespace (and so root, working directory and umask) of its
/// own. The namespace, and every mount in it, is gone afterwards.
pub(crate) fn in_namespace<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let thread = spawn(|| {
        let flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWCGROUP;
        unshare(flags).unwrap();
        mount::set_root_propagation(mount::Propagation::Private, true).unwrap();
        work()
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A directory that looks like an image with busybox in it.
pub(crate) fn image() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "usr/bin", "var/data"] {
        fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    if Path::new("/bin/busybox").exists() {
        fs::copy("/bin/busybox", dir.path().join("bin/busybox")).unwrap();
    }
    fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
    dir
}

/// A detached copy of the directory `path`, as the parent side makes for a rootfs.
pub(crate) fn detached(path: &Path) -> OwnedFd {
    mount::open_tree(AT_FDCWD, path, mount::OPEN_TREE_CLONE | mount::AT_RECURSIVE).unwrap()
}

/// Replaces the well-known `path` of an image by a link to `target`.
pub(crate) fn plant_link(image: &Path, path: &str, target: &str) {
    let place = image.join(path.trim_start_matches('/'));
    let _ = fs::remove_file(&place);
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    symlink(target, place).unwrap();
}

/// A thread that exchanges two names as fast as it can until it is dropped.
pub(crate) struct Exchanger {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Exchanger {
    pub(crate) fn start(a: PathBuf, b: PathBuf) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop2, count2) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = spawn(move || {
            while !stop2.load(Ordering::Relaxed) {
                if renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).is_ok() {
                    count2.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, count, thread: Some(thread) }
    }

    /// How many exchanges have happened: a race that nobody ran proves nothing.
    pub(crate) fn exchanges(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Exchanger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
