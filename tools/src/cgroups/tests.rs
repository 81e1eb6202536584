//! Real cgroups, as root.

use super::*;
use airlock_loader::cgroup::Cgroup;
use airlock_wire::error::Kind;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container id, and its cgroup's path, that no other test uses.
fn unique() -> (String, PathBuf) {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let cid = format!("test-{}-{number}", std::process::id());
    let path = PathBuf::from(format!("/airlock-cgroups-{cid}"));
    (cid, path)
}

/// Whether this machine can run a test that makes cgroups; says so if not.
fn can_make(test: &str) -> bool {
    let writable = nix::unistd::geteuid().is_root()
        && hierarchy::find(&path::Location::Root("x".into())).is_ok_and(|(_, all)| {
            let ro = |d: &Path| nix::unistd::access(d, nix::unistd::AccessFlags::W_OK).is_err();
            !all.iter().any(|(m, _)| ro(&m.point))
        });
    if !writable {
        eprintln!("skipped: {test} needs root and writable cgroups");
    }
    writable
}

fn is_v1() -> bool {
    hierarchy::find(&path::Location::Root("x".into())).is_ok_and(|(v2, _)| !v2)
}

/// A shell that joins the container's cgroups, its leaf too, before it does anything else.
fn shell(manager: &Manager, script: &str) -> Command {
    let mut joins = String::new();
    for h in manager.hierarchies() {
        let dir = if h.leaf { h.path.join(manager.leaf().unwrap()) } else { h.path.clone() };
        joins.push_str(&format!("echo 0 > '{}/cgroup.procs' && ", dir.display()));
    }
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{joins} {script}")]).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts such a shell and returns once it has joined.
fn start(manager: &Manager, script: &str) -> Child {
    let mut command = shell(manager, &format!("echo joined && {script}"));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "joined\n");
    child
}

/// Kills and removes at the end of a test, however it ends.
struct Cleanup(Manager);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let done = self.0.kill_all().and_then(|()| self.0.remove());
        if !std::thread::panicking() {
            done.unwrap();
        }
    }
}

fn make(cid: &str, path: &Path) -> Cleanup {
    let (manager, created) = Manager::create(cid, Some(path), false, CreateOptions::default()).unwrap();
    assert!(!created.dirs().is_empty());
    created.keep();
    Cleanup(manager)
}

fn nothing_left(manager: &Manager) {
    for h in manager.hierarchies() {
        assert!(!h.path.exists(), "{} is left", h.path.display());
    }
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

#[test]
fn life_of_a_container() {
    if !can_make("life_of_a_container") {
        return;
    }
    let (cid, path) = unique();
    let container = make(&cid, &path);
    let manager = &container.0;
    manager.apply_new(None).unwrap();
    assert!(manager.procs().unwrap().is_empty());
    let mut child = start(manager, "exec sleep 1000");
    let pid = child.id().cast_signed();
    assert_eq!(manager.procs().unwrap(), [pid]);
    assert_eq!(manager.all_procs().unwrap(), [pid]);
    // The description survives a state file.
    let text = serde_json::to_string(manager).unwrap();
    let loaded: Manager = serde_json::from_str(&text).unwrap();
    assert_eq!(&loaded, manager);
    loaded.freeze(true).unwrap();
    assert!(loaded.is_frozen().unwrap());
    loaded.freeze(false).unwrap();
    assert!(!loaded.is_frozen().unwrap());
    if is_v1() {
        let stats = loaded.stats().unwrap();
        assert_eq!(stats.pids.current, 1);
        assert!(stats.cpu.total > 0 && stats.memory.usage.usage > 0, "{stats:?}");
        assert!(stats.to_runc_json()["memory"]["raw"]["rss"].is_u64());
    }
    // Removal waits for processes; it does not kill them.
    let e = loaded.remove_by(Instant::now() + Duration::from_millis(30)).unwrap_err();
    assert!(e.kind == Kind::InvalidState && e.message.contains(&pid.to_string()), "{e}");
    assert!(child.try_wait().unwrap().is_none());
    loaded.freeze(true).unwrap();
    loaded.kill_all().unwrap();
    loaded.remove().unwrap();
    child.wait().unwrap();
    nothing_left(manager);
    assert!(loaded.procs().unwrap().is_empty());
    assert!(!loaded.is_frozen().unwrap());
    loaded.remove().unwrap();
}

#[test]
fn sandbox_joins_and_container_joins_deeper() {
    if !can_make("sandbox_joins_and_container_joins_deeper") {
        return;
    }
    let (cid, path) = unique();
    let container = make(&cid, &path);
    let opened = container.0.open(true, &[View::Limits]).unwrap();
    assert_eq!(opened.mounts.len(), if opened.v2 { 1 } else { opened.dirs.len() });
    // Stands for the loader: joins as the stage does.
    let mut loader = Command::new("sleep").arg("1000").spawn().unwrap();
    for dir in &opened.dirs {
        assert_eq!(dir.join.is_some(), !opened.v2 || dir.name == "limits");
        if let Some(join) = &dir.join {
            nix::unistd::write(join, loader.id().to_string().as_bytes()).unwrap();
        }
        // A sandbox cannot climb from the directory that it got to the host's root.
        for climb in ["../../../../../../etc", "../../../../../../cgroup"] {
            let found = nix::sys::stat::fstatat(&dir.dir, climb, nix::fcntl::AtFlags::empty());
            assert_eq!(found.unwrap_err(), nix::errno::Errno::ENOENT, "{climb} of {:?}", dir.name);
        }
    }
    let place = fs::read_to_string(format!("/proc/{}/cgroup", loader.id())).unwrap();
    let inside = place.lines().filter(|l| l.ends_with(path.to_str().unwrap())).count();
    assert_eq!(inside, container.0.hierarchies().len(), "{place}");
    // The loader's own view: the leaf, to which only new container processes go.
    let dirs = opened.dirs.into_iter().map(|d| (d.name, d.dir)).collect();
    let cgroup = Cgroup::new(opened.v2, dirs).unwrap().sandbox_inside();
    assert_eq!(cgroup.join_fd().unwrap().len(), usize::from(is_v1()));
    let mut child = start(&container.0, "exec sleep 1000");
    assert_eq!(cgroup.procs().unwrap(), [child.id().cast_signed()]);
    assert_eq!(container.0.procs().unwrap(), [child.id().cast_signed()]);
    assert_eq!(container.0.all_procs().unwrap().len(), 2);
    // A subcontainer without cgroups of its own gets a leaf beside.
    let sub = cgroup.make_child("sub").unwrap();
    sub.freeze(true).unwrap();
    assert!(!cgroup.frozen().unwrap());
    cgroup.kill().unwrap();
    child.wait().unwrap();
    assert!(loader.try_wait().unwrap().is_none(), "killing the container does not kill the sandbox");
    container.0.kill_all().unwrap();
    loader.wait().unwrap();
    // The subcontainer's leaf goes with the rest.
    container.0.remove().unwrap();
    nothing_left(&container.0);
}

#[test]
fn limits_are_written() {
    if !can_make("limits_are_written") || !is_v1() {
        return eprintln!("skipped: limits_are_written needs v1 controllers");
    }
    let (cid, path) = unique();
    let container = make(&cid, &path);
    let spec = r#"{"memory":{"limit":67108864,"swap":134217728,"reservation":33554432},
        "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0","mems":"0"},"pids":{"limit":20},
        "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    container.0.apply_new(Some(&resources(spec))).unwrap();
    let read = |controller: &str, file: &str| {
        let h =
            container.0.hierarchies().iter().find(|h| h.name.split(',').any(|c| c == controller)).unwrap();
        fs::read_to_string(h.path.join(file)).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(read("memory", "memory.memsw.limit_in_bytes"), "134217728");
    assert_eq!(read("cpu", "cpu.shares"), "512");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    assert_eq!(read("pids", "pids.max"), "20");
    assert_eq!(container.0.stats().unwrap().pids.limit, 20);
    // Up, down and away again, as `update` does.
    let update = |json: &str| container.0.update(&resources(json));
    update(r#"{"memory":{"limit":268435456,"swap":536870912},"cpu":{"period":50000,"quota":10000}}"#)
        .unwrap();
    update(r#"{"memory":{"limit":16777216,"swap":16777216}}"#).unwrap();
    update(r#"{"memory":{"limit":-1},"pids":{"limit":-1},"cpu":{"quota":-1}}"#).unwrap();
    assert_eq!(read("pids", "pids.max"), "max");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "-1");
    let list = read("devices", "devices.list");
    for line in ["c 1:11 rm", "c 1:3 rwm", "c *:* m", "c 136:* rwm"] {
        assert!(list.lines().any(|l| l == line), "{list}");
    }
    let e = update(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":2097152}]}"#);
    if !container.0.hierarchies().iter().any(|h| h.name.contains("hugetlb")) {
        assert!(e.unwrap_err().message.contains("hugetlb"));
    }
    let e = update(r#"{"unified":{"memory.high":"1"}}"#).unwrap_err();
    assert!(e.kind == Kind::Unsupported && e.message.contains("memory.high"), "{e}");
    let e = update(r#"{"cpu":{"cpus":"4000"}}"#).unwrap_err();
    assert!(e.message.contains("cpuset.cpus") && e.message.contains("4000"), "{e}");
}

#[test]
fn device_rules_hold() {
    if !can_make("device_rules_hold") {
        return;
    }
    let (cid, path) = unique();
    let container = make(&cid, &path);
    let script = "r=; for d in null zero full kmsg; do (: </dev/$d) && r=$r:$d; done; echo $r";
    let look = || {
        let output = shell(&container.0, script).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    container.0.apply_new(None).unwrap();
    assert_eq!(look(), ":null:zero:full");
    let more = r#"{"devices":[{"allow":false,"access":"rwm"},
        {"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    container.0.update(&resources(more)).unwrap();
    assert_eq!(look(), ":null:zero:full:kmsg");
    // Not given, they stay.
    container.0.update(&resources("{}")).unwrap();
    assert_eq!(look(), ":null:zero:full:kmsg");
    container.0.update(&resources(r#"{"devices":[]}"#)).unwrap();
    assert_eq!(look(), ":null:zero:full");
}

#[test]
fn used_and_frozen_cgroups_are_refused() {
    if !can_make("used_and_frozen_cgroups_are_refused") {
        return;
    }
    let (cid, path) = unique();
    let first = make(&cid, &path);
    let mut child = start(&first.0, "exec sleep 1000");
    for other in [cid.as_str(), "another"] {
        let e = Manager::create(other, Some(&path), false, CreateOptions::default()).unwrap_err();
        assert!(e.kind == Kind::InvalidState && e.message.contains("not empty"), "{e}");
    }
    // One of the same name, under another state directory perhaps, is planned but neither killed nor removed.
    let mut same = Manager::plan_path(&cid, Some(&path), false).unwrap();
    for _ in 0..2 {
        same.kill_all().unwrap();
        same.remove().unwrap();
        assert!(child.try_wait().unwrap().is_none() && first.0.hierarchies().iter().all(|h| h.path.is_dir()));
        let made = same.make_dirs(CreateOptions::default());
        assert!(made.is_err() || same == Manager::default());
    }
    assert!(child.try_wait().unwrap().is_none());
    first.0.kill_all().unwrap();
    child.wait().unwrap();
    let leaf = first.0.hierarchies().iter().find(|h| h.leaf).unwrap();
    let (file, on, off) =
        if leaf.v2_files { ("cgroup.freeze", "1", "0") } else { ("freezer.state", "FROZEN", "THAWED") };
    fs::write(leaf.path.join(file), on).unwrap();
    for place in [path.clone(), path.join("below")] {
        let e = Manager::create("another", Some(&place), false, CreateOptions::default()).unwrap_err();
        assert!(e.kind == Kind::InvalidState && e.message.contains("thaw it"), "{e}");
    }
    fs::write(leaf.path.join(file), off).unwrap();
}

#[test]
fn undoing_removes_exactly_what_was_made() {
    if !can_make("undoing_removes_exactly_what_was_made") {
        return;
    }
    let (cid, path) = unique();
    let nested = path.join("a/b");
    let (manager, created) = Manager::create(&cid, Some(&nested), false, CreateOptions::default()).unwrap();
    assert!(manager.hierarchies().iter().all(|h| h.path.is_dir()));
    created.undo();
    for h in manager.hierarchies() {
        assert!(!h.path.parent().unwrap().parent().unwrap().exists());
    }
    // What was there before stays: as root of another, and as the container's own cgroup.
    let outer = make("outer", &path);
    let (inner, created) = Manager::create(&cid, Some(&nested), false, CreateOptions::default()).unwrap();
    created.keep();
    let inner = Cleanup(inner);
    inner.0.remove().unwrap();
    assert!(outer.0.hierarchies().iter().all(|h| h.path.is_dir() && !h.path.join("a").exists()));
    if outer.0.v2() {
        // `inner` had the controllers handed on to it, as far as there are any: then nobody can join.
        let file = outer.0.hierarchies()[0].path.join("cgroup.subtree_control");
        for controller in fs::read_to_string(&file).unwrap().split_whitespace() {
            let e = Manager::create(&cid, Some(&path), false, CreateOptions::default()).unwrap_err();
            assert!(e.kind == Kind::InvalidState && e.message.contains(&format!("-{controller}")), "{e}");
            fs::write(&file, format!("-{controller}")).unwrap();
        }
    }
    let (same, created) = Manager::create(&cid, Some(&path), false, CreateOptions::default()).unwrap();
    assert_eq!(created.dirs().len(), 1, "only the leaf");
    created.keep();
    same.remove().unwrap();
    assert!(outer.0.hierarchies().iter().all(|h| h.path.is_dir()));
    outer.0.remove().unwrap();
    nothing_left(&outer.0);
}

#[test]
fn containers_own_cgroups_go_too() {
    if !can_make("containers_own_cgroups_go_too") {
        return;
    }
    let (cid, path) = unique();
    let container = make(&cid, &path);
    for h in container.0.hierarchies() {
        let dir = if h.leaf { h.path.join(container.0.leaf().unwrap()) } else { h.path.clone() };
        fs::create_dir_all(dir.join("x/y/z")).unwrap();
    }
    container.0.remove().unwrap();
    nothing_left(&container.0);
}

#[test]
fn a_plan_alone_touches_nothing_of_others() {
    if !can_make("a_plan_alone_touches_nothing_of_others") {
        return;
    }
    let (cid, path) = unique();
    let plan = Manager::plan_path(&cid, Some(&path), false).unwrap();
    nothing_left(&plan);
    // Another takes the place before the plan is carried out.
    let other = make("other", &path);
    let mut child = start(&other.0, "exec sleep 1000");
    let mut late = plan.clone();
    let e = late.make_dirs(CreateOptions::default()).unwrap_err();
    assert_eq!(e.kind, Kind::InvalidState, "{e}");
    for manager in [plan, late] {
        manager.kill_all().unwrap();
        manager.remove().unwrap();
    }
    assert!(child.try_wait().unwrap().is_none());
    assert!(other.0.hierarchies().iter().all(|h| h.path.is_dir()));
    other.0.kill_all().unwrap();
    child.wait().unwrap();
}

#[test]
fn remains_of_a_killed_create_are_taken_over() {
    if !can_make("remains_of_a_killed_create_are_taken_over") {
        return;
    }
    let (cid, path) = unique();
    let mut plan = Manager::plan_path(&cid, Some(&path), false).unwrap();
    let saved = plan.clone();
    plan.make_dirs(CreateOptions::default()).unwrap().keep();
    // Killed before the state was saved again: the plan in the state file is enough to clean up.
    saved.kill_all().unwrap();
    saved.remove().unwrap();
    nothing_left(&saved);
    // Killed, and the sandbox is still there: planned now, and made when it has gone.
    plan.make_dirs(CreateOptions::default()).unwrap().keep();
    let mut child = start(&plan, "exec sleep 1000");
    let mut next = Manager::plan_path(&cid, Some(&path), false).unwrap();
    plan.kill_all().unwrap();
    child.wait().unwrap();
    plan.remove().unwrap();
    next.make_dirs(CreateOptions::default()).unwrap().keep();
    next.remove().unwrap();
    nothing_left(&next);
    // Killed, and the state file lost: the next container of that name removes all.
    plan.make_dirs(CreateOptions::default()).unwrap().keep();
    let container = make_over(&cid, &path);
    container.0.remove().unwrap();
    nothing_left(&container.0);
}

fn make_over(cid: &str, path: &Path) -> Cleanup {
    let (manager, created) = Manager::create(cid, Some(path), false, CreateOptions::default()).unwrap();
    created.keep();
    Cleanup(manager)
}

#[test]
fn names_of_control_files_are_refused() {
    if !can_make("names_of_control_files_are_refused") {
        return;
    }
    let e =
        Manager::create("c", Some(Path::new("/cgroup.procs")), false, CreateOptions::default()).unwrap_err();
    assert!(e.kind == Kind::InvalidArgument && e.message.contains("cgroup.procs"), "{e}");
}

#[test]
fn owner_gets_the_files() {
    use std::os::unix::fs::MetadataExt;
    if !can_make("owner_gets_the_files") {
        return;
    }
    let (cid, path) = unique();
    let options = CreateOptions { owner: Some((4242, 4343)) };
    let (manager, created) = Manager::create(&cid, Some(&path), false, options).unwrap();
    for h in manager.hierarchies() {
        let dir = if h.leaf { h.path.join(manager.leaf().unwrap()) } else { h.path.clone() };
        let owner = |p: &Path| fs::metadata(p).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner(&dir.join("cgroup.procs")), (4242, 4343));
        if manager.v2() {
            assert_eq!(owner(&dir.join("cgroup.freeze")), (4242, 4343));
            // Its processes join the leaf through the cgroup above, where the sandbox itself is.
            assert_eq!(owner(&h.path.join("cgroup.procs")), (4242, 4343));
            for file in ["cgroup.freeze", "cgroup.kill", "cgroup.subtree_control"] {
                assert_eq!(owner(&h.path.join(file)).0, 0, "{file}");
            }
        }
        if h.name == "memory" {
            assert_eq!(owner(&dir.join("memory.limit_in_bytes")).0, 0, "limits stay the host's");
        }
    }
    created.undo();
    nothing_left(&manager);
}

/// Run by [`pure_v2`] where `/sys/fs/cgroup` is a v2 mount.
#[test]
#[ignore = "run by pure_v2 in a mount namespace of its own"]
fn pure_v2_inside() {
    assert!(!is_v1());
    life_of_a_container();
    sandbox_joins_and_container_joins_deeper();
    device_rules_hold();
    used_and_frozen_cgroups_are_refused();
    undoing_removes_exactly_what_was_made();
    containers_own_cgroups_go_too();
    a_plan_alone_touches_nothing_of_others();
    remains_of_a_killed_create_are_taken_over();
    owner_gets_the_files();
    let (cid, path) = unique();
    let container = make(&cid, &path);
    let path = &container.0.hierarchies()[0].path;
    // What needs a controller that v1 has names it.
    let e = container.0.apply(&resources(r#"{"memory":{"limit":1000000}}"#));
    if !path.join("memory.max").exists() {
        let e = e.unwrap_err();
        assert!(e.kind == Kind::Unsupported && e.message.contains("memory controller"), "{e}");
    }
    // Limits and statistics are at the container's cgroup, which hands nothing on to the leaf.
    assert_eq!(fs::read_to_string(path.join("cgroup.subtree_control")).unwrap().trim(), "");
    let huge = container.0.apply(&resources(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#));
    if path.join("hugetlb.2MB.max").exists() {
        huge.unwrap();
        assert_eq!(fs::read_to_string(path.join("hugetlb.2MB.max")).unwrap().trim(), "4194304");
        assert!(!path.join(container.0.leaf().unwrap()).join("hugetlb.2MB.max").exists());
        assert!(container.0.stats().unwrap().hugetlb.contains_key("2MB"));
    }
    assert!(shell(&container.0, "true").status().unwrap().success());
    assert!(container.0.stats().unwrap().cpu.total > 0);
}

/// Run by [`shared_mounts`] where all mounts are shared, as systemd has them.
#[test]
#[ignore = "run by shared_mounts in a mount namespace of its own"]
fn shared_mounts_inside() {
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = table();
    assert!(before.lines().any(|l| l.contains(" shared:") && l.contains(" - cgroup ")), "{before}");
    let (cid, path) = unique();
    let container = make(&cid, &path);
    let opened = container.0.open(true, &[View::Limits]).unwrap();
    assert_eq!(table(), before);
    drop(opened);
    assert_eq!(table(), before);
}

#[test]
fn shared_mounts() {
    if can_make("shared_mounts") {
        inside("shared_mounts_inside", &["-m", "--propagation", "shared"], "true");
    }
}

#[test]
fn pure_v2() {
    if can_make("pure_v2") {
        inside("pure_v2_inside", &["-m"], "mount -t cgroup2 none /sys/fs/cgroup");
    }
}

/// Runs an ignored test in other namespaces.
fn inside(test: &str, unshare: &[&str], prepare: &str) {
    let script = format!("{prepare} && exec \"$0\" --ignored --exact --nocapture \"$1\"");
    let test = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let program = std::env::current_exe().unwrap();
    let output =
        Command::new("unshare").args(unshare).args(["sh", "-c", &script]).arg(program).arg(test).output();
    let Ok(output) = output else { return eprintln!("skipped: needs unshare(1)") };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
