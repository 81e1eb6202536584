//! Resources that run out: disk space, processes, memory, descriptors.
use super::*;
use airlock_tests::{need, skip};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::path::{Path, PathBuf};

/// A file system of `size` bytes, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=700");
        mount(Some("small"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

fn airlock(root: &Path, args: &[&str]) -> std::process::Output {
    std::process::Command::new(airlock_tests::airlock())
        .arg("--root")
        .arg(root)
        .args(args)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn root_mountpoint_is_shared() -> bool {
    std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .any(|l| l.contains(" / / ") && l.contains("shared:"))
}

#[test]
fn a_full_disk_under_the_state_directory() {
    need!("busybox");
    let bundle = Bundle::new(&["/bin/true"]);
    // One more page each time, until it works: every file that create writes fails once.
    for pages in 1..40 {
        let small = Small::new(&format!("{}", pages * 4096));
        let id = unique("full");
        let out = airlock(&small.path(), &["run", "--bundle", bundle.text(), &id]);
        let left: Vec<_> = std::fs::read_dir(small.path())
            .map(|d| d.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{pages} pages: {left:?}");
        assert_eq!(leaks::cgroups(&id), Vec::<String>::new(), "{pages} pages");
        if out.status.success() {
            assert!(pages > 1, "no failure was tried");
            return;
        }
        let text = one_line(&out);
        assert!(text.contains("No space left on device"), "{pages} pages: {text}");
        wait::until("no process is left", || leaks::processes_with(&id).is_empty().then_some(()));
    }
    panic!("never enough space (root shared: {})", root_mountpoint_is_shared());
}

#[test]
fn a_container_on_a_disk_that_fills_up_is_deleted_all_the_same() {
    need!("busybox");
    let small = Small::new("256k");
    let bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let id = unique("full");
    let status = std::process::Command::new(airlock_tests::airlock())
        .arg("--root")
        .arg(small.path())
        .args(["run", "--detach", "--bundle", bundle.text(), &id])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let _ = std::fs::write(small.path().join("filler"), vec![0; 1 << 20]);
    for args in [vec!["state", &id], vec!["exec", &id, "/bin/true"], vec!["pause", &id], vec!["resume", &id]]
    {
        let out = airlock(&small.path(), &args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let out = airlock(&small.path(), &["delete", "--force", &id]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!small.path().join(&id).exists());
    assert!(leaks::cgroups(&id).is_empty());
}

/// Runs `f` with this thread, and what it starts, on a single processor.
fn on_one_processor(f: impl FnOnce()) {
    let me = nix::unistd::Pid::from_raw(0);
    let before = sched_getaffinity(me).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(me, &one).unwrap();
    f();
    sched_setaffinity(me, &before).unwrap();
}

#[test]
fn a_pids_limit_that_is_too_small() {
    need!("busybox");
    if !Path::new("/sys/fs/cgroup/pids").exists() && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
    {
        skip!("needs the pids controller");
    }
    let state = State::new();
    let attempt_with = |limit: i64| {
        let bundle =
            Bundle::with(&["/bin/true"], |c| c["linux"]["resources"]["pids"] = json!({"limit": limit}));
        let id = unique("pids");
        let out = attempt(&state, ["run", "--bundle", bundle.text(), &id]);
        if !out.status.success() {
            let text = one_line(&out);
            assert!(text.contains("pids"), "{limit}: {text}");
        }
        leaks::nothing_left(&state, &id);
        out.status.success()
    };
    for limit in 1..=6 {
        let worked = attempt_with(limit);
        // Just as many as it takes may be too few while the stage still counts.
        assert!(limit == 4 || worked == (limit > 4), "{limit}");
    }
    // On one processor the parts of a dying sandbox end in another order.
    on_one_processor(|| (0..10).for_each(|_| assert!(!attempt_with(3))));
    // Enough for the container, too little for what comes later.
    let bundle =
        Bundle::with(&["/bin/sleep", "1000"], |c| c["linux"]["resources"]["pids"] = json!({"limit": 12}));
    let id = unique("pids");
    state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
    let refused = (0..12)
        .map(|_| attempt(&state, ["exec", "--detach", &id, "/bin/sleep", "1000"]))
        .find(|out| !out.status.success())
        .expect("the limit is reached");
    let text = one_line(&refused);
    assert!(text.contains("pids"), "{text}");
    // The container goes on, and what was refused left nothing.
    let pids = || serde_json::from_str::<Vec<i32>>(&state.ok(["ps", "--format", "json", &id])).unwrap();
    let before = pids();
    assert!(!attempt(&state, ["exec", &id, "/bin/true"]).status.success());
    assert_eq!(pids(), before);
    state.ok(["delete", "--force", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn memory_that_runs_out_is_told_as_the_reason() {
    need!("busybox");
    let limit = 24 << 20;
    // tail keeps all of an endless line.
    let bundle = Bundle::with(&["/bin/tail", "/dev/zero"], |c| {
        c["linux"]["resources"]["memory"] = json!({"limit": limit, "swap": limit});
        c["process"]["oomScoreAdj"] = json!(500);
    });
    let (state, id) = (State::new(), unique("oom"));
    state.detached(&["create", "--bundle", bundle.text(), &id]);
    state.ok(["start", &id]);
    wait::until("it ends", || (state.status(&id) == "stopped").then_some(()));
    let record = std::fs::read_to_string(state.root().join(&id).join("exit.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["reason"], "oom", "{record}");
    assert_eq!(record["status"], 9);
    assert_eq!(state.ok(["wait", &id]).trim(), format!(r#"{{"id":"{id}","exitStatus":137}}"#));
    state.ok(["delete", &id]);
    leaks::nothing_left(&state, &id);
}

#[test]
fn descriptors_that_run_out_are_an_error() {
    need!("busybox");
    let (state, bundle) = (State::new(), Bundle::new(&["/bin/true"]));
    let mut works = false;
    for limit in [8, 12, 16, 20, 24, 32, 48, 128] {
        let id = unique("nofile");
        let airlock = state.command(["run", "--bundle", bundle.text(), &id]);
        let out = std::process::Command::new("/bin/sh")
            .args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"])
            .arg(airlock.get_program())
            .args(airlock.get_args())
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        works = out.status.success();
        if !works {
            let text = one_line(&out);
            assert!(
                text.to_lowercase().contains("open files") || text.contains("os error 24"),
                "{limit}: {text}"
            );
        }
        leaks::nothing_left(&state, &id);
    }
    assert!(works);
}
