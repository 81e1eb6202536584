//! A machine with v2 cgroups only.
use crate::{airlock, need, skip};
use std::path::Path;
use std::process::Command;

/// Runs an ignored test of the calling program where `/sys/fs/cgroup` is a v2 mount.
pub fn inside(test: &str) {
    need!("busybox", "unshare");
    let prepare = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup";
    let possible = Command::new("unshare").args(["-m", "sh", "-c", prepare]).output().unwrap();
    if !possible.status.success() {
        skip!("needs a v2 mount in a namespace: {}", String::from_utf8_lossy(&possible.stderr).trim());
    }
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &format!("{prepare} && exec \"$0\" --ignored --exact --nocapture {test}")])
        .arg(std::env::current_exe().unwrap())
        .env("AIRLOCK_BINARY", airlock())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Whether an ignored test was started by [`inside`], or by a person who wants all of them.
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup").join("cgroup.controllers").exists()
}
