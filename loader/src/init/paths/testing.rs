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
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Control {
    stop: AtomicBool,
    pause: AtomicBool,
    paused: AtomicBool,
    count: AtomicU64,
}

impl Exchanger {
    pub(crate) fn start(a: PathBuf, b: PathBuf) -> Self {
        let control = Arc::new(Control::default());
        let own = Arc::clone(&control);
        let thread = spawn(move || {
            let exchange = || {
                let done = renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE).is_ok();
                own.count.fetch_add(u64::from(done), Ordering::Relaxed);
            };
            while !own.stop.load(Ordering::Relaxed) {
                if !own.pause.load(Ordering::Relaxed) {
                    own.paused.store(false, Ordering::Relaxed);
                    exchange();
                } else if own.count.load(Ordering::Relaxed) % 2 == 1 {
                    exchange();
                } else {
                    own.paused.store(true, Ordering::Release);
                    std::thread::yield_now();
                }
            }
        });
        Self { control, thread: Some(thread) }
    }

    /// How many exchanges have happened: a race that nobody ran proves nothing.
    pub(crate) fn exchanges(&self) -> u64 {
        self.control.count.load(Ordering::Relaxed)
    }

    /// Stands still, with both names where they were at the start, while `work` runs.
    pub(crate) fn paused<R>(all: &[Self], work: impl FnOnce() -> R) -> R {
        all.iter().for_each(|e| e.control.pause.store(true, Ordering::Relaxed));
        while all.iter().any(|e| !e.control.paused.load(Ordering::Acquire)) {
            std::thread::yield_now();
        }
        let result = work();
        for e in all {
            e.control.paused.store(false, Ordering::Relaxed);
            e.control.pause.store(false, Ordering::Relaxed);
        }
        result
    }
}

impl Drop for Exchanger {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
