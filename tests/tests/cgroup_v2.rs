//! Containers on a machine that has v2 cgroups only. Where controllers are mounted as v1, a mount namespace with a v2
//! mount in the place of all others stands for such a machine, with the controllers that are left to it.
#![allow(clippy::unwrap_used, missing_docs)]

use airlock_tests::oci::{Mounted, mounts, push};
use airlock_tests::v2::{inside, is_v2};
use airlock_tests::wait::until;
use airlock_tests::{Bundle, State, skip, unique};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup of this test's own; what is left of it at the end is removed.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        Self(Path::new("/").join(unique("airlock-v2")))
    }

    /// Below `/sys/fs/cgroup`.
    fn host(&self) -> PathBuf {
        Path::new(ROOT).join(self.0.strip_prefix("/").unwrap())
    }

    fn leaf(&self, id: &str) -> PathBuf {
        self.host().join(format!("airlock-{id}"))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.host().join(file)).unwrap().trim().to_owned()
    }

    fn set(&self, config: &mut Value) {
        config["linux"]["cgroupsPath"] = json!(self.0);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.host().join("cgroup.kill"), "1");
        for child in fs::read_dir(self.host()).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(child.path());
        }
        let _ = fs::remove_dir(self.host());
    }
}

/// The place of a process in the v2 hierarchy.
fn v2_line(text: &str) -> &str {
    text.lines().find_map(|l| l.strip_prefix("0::")).unwrap()
}

fn cgroup_of(pid: i32) -> PathBuf {
    v2_line(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()).into()
}

fn pids(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    text.lines().map(|l| l.parse().unwrap()).collect()
}

fn pid(state: &State, id: &str) -> i32 {
    state.state(id)["pid"].as_i64().unwrap().try_into().unwrap()
}

fn stopped(state: &State, id: &str) -> Option<()> {
    (state.status(id) == "stopped").then_some(())
}

/// A bundle that sleeps in cgroup `place`; with a cgroup namespace unless `host_view`.
fn sleeper(place: &Place, options: &[&str], host_view: bool, edit: impl FnOnce(&mut Value)) -> Bundle {
    Bundle::with(&["sleep", "1000"], |config| {
        place.set(config);
        if !host_view {
            push(config, "/linux/namespaces", json!({"type": "cgroup"}));
        }
        let all = config["mounts"].as_array_mut().unwrap();
        all.iter_mut().find(|m| m["type"] == "cgroup").unwrap()["options"] = json!(options);
        edit(config);
    })
}

/// What the container's table says about `/sys/fs/cgroup`, in no order.
fn cgroup_mounts(state: &State, id: &str) -> Vec<Mounted> {
    let table = state.ok(["exec", id, "cat", "/proc/self/mountinfo"]);
    mounts(&table).into_iter().filter(|m| m.place == ROOT).collect()
}

/// Adds a limit if this machine has left v2 a controller to test with; true if so.
fn limit(config: &mut Value) -> bool {
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap();
    let has = controllers.split_whitespace().any(|c| c == "hugetlb");
    if has {
        let limits = json!([{"pageSize": "2MB", "limit": 4_194_304}]);
        config["linux"]["resources"]["hugepageLimits"] = limits;
    }
    has
}

#[test]
fn a_container_lives_below_its_limits() {
    inside("a_container_lives_below_its_limits_inside");
}

#[test]
#[ignore = "run by a_container_lives_below_its_limits in a mount namespace of its own"]
fn a_container_lives_below_its_limits_inside() {
    if !is_v2() {
        skip!("needs v2 cgroups");
    }
    for host_view in [false, true] {
        let (state, place, id) = (State::new(), Place::new(), unique("c"));
        let mut limited = false;
        let bundle = sleeper(&place, &["ro", "nosuid"], host_view, |config| limited = limit(config));
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        let leaf = place.leaf(&id);

        // Who looks where the OCI pid is finds everything that the container uses, and its limits.
        let loader = pid(&state, &id);
        assert_eq!(cgroup_of(loader), place.0);
        assert_eq!(place.read("cgroup.subtree_control"), "");
        assert_eq!(pids(&place.host()).len(), 2, "loader and spawner");
        let inits = pids(&leaf);
        assert_eq!(inits.len(), 1);
        assert_eq!(cgroup_of(inits[0]), place.0.join(leaf.file_name().unwrap()));
        if limited {
            assert_eq!(place.read("hugetlb.2MB.max"), "4194304");
            assert!(!leaf.join("hugetlb.2MB.max").exists());
        }

        // The container sees them too, cannot write there, and starts others beside itself.
        let seen = state.ok(["exec", &id, "cat", "/proc/self/cgroup"]);
        let own = place.0.join(leaf.file_name().unwrap());
        assert_eq!(v2_line(&seen), if host_view { own.to_str().unwrap() } else { "/" });
        let files = state.ok(["exec", &id, "ls", ROOT]);
        assert!(files.lines().any(|f| Path::new(f) == Path::new(leaf.file_name().unwrap())), "{files}");
        if limited {
            let max = state.ok(["exec", &id, "cat", "/sys/fs/cgroup/hugetlb.2MB.max"]);
            assert_eq!(max, "4194304\n");
        }
        state.fails(["exec", &id, "mkdir", "/sys/fs/cgroup/x"]);
        let table = cgroup_mounts(&state, &id);
        assert!(table.iter().all(|m| m.kind == "cgroup2" && m.has(&["ro", "nosuid"])), "{table:?}");
        let mut roots: Vec<_> = table.iter().map(|m| m.root.as_str()).collect();
        roots.sort_unstable();
        if host_view {
            assert_eq!(roots, [place.0.to_str().unwrap()]);
        } else {
            // The one on top, with the limits; and below it one for programs that look for a root that is theirs.
            assert_eq!(roots, ["/", "/.."]);
        }

        // Only the container's processes are listed and frozen.
        assert_eq!(state.ok(["ps", "--format", "json", &id]).trim(), format!("{inits:?}"));
        state.ok(["pause", &id]);
        let frozen = |dir: &Path| fs::read_to_string(dir.join("cgroup.events")).unwrap().contains("frozen 1");
        assert!(frozen(&leaf) && !frozen(&place.host()));
        assert_eq!(state.status(&id), "paused");
        state.ok(["resume", &id]);
        assert!(!frozen(&leaf));

        let stats: Value = serde_json::from_str(&state.ok(["events", "--stats", &id])).unwrap();
        let used = |text: &str| text.lines().find_map(|l| l.strip_prefix("usage_usec ")?.parse::<u64>().ok());
        let whole = stats["data"]["cpu"]["usage"]["total"].as_u64().unwrap();
        let of_leaf = used(&fs::read_to_string(leaf.join("cpu.stat")).unwrap()).unwrap() * 1000;
        assert!(whole > of_leaf, "{whole} is without the sandbox's own {of_leaf}");
        assert_eq!(stats["data"]["hugetlb"]["2MB"].is_object(), limited, "{stats}");

        state.ok(["delete", "--force", &id]);
        assert!(!place.host().exists());
    }
}

#[test]
fn a_container_that_may_write_gets_its_leaf() {
    inside("a_container_that_may_write_gets_its_leaf_inside");
}

#[test]
#[ignore = "run by a_container_that_may_write_gets_its_leaf in a mount namespace of its own"]
fn a_container_that_may_write_gets_its_leaf_inside() {
    if !is_v2() {
        skip!("needs v2 cgroups");
    }
    for host_view in [false, true] {
        let (state, place, id) = (State::new(), Place::new(), unique("c"));
        let bundle = sleeper(&place, &["nosuid"], host_view, |_| {});
        state.detached(&["run", "--detach", "--bundle", bundle.text(), &id]);
        // It moves itself to a cgroup of its own: it is still listed, and goes with the container.
        let script = "mkdir /sys/fs/cgroup/own && echo $$ >/sys/fs/cgroup/own/cgroup.procs && sleep 1000";
        state.detached(&["exec", "--detach", &id, "sh", "-c", script]);
        let own = place.leaf(&id).join("own");
        until("the program to move", || (own.exists() && !pids(&own).is_empty()).then_some(()));
        assert!(!place.host().join("own").exists());
        let listed: Vec<i32> = serde_json::from_str(&state.ok(["ps", "--format", "json", &id])).unwrap();
        assert!(pids(&own).iter().any(|pid| listed.contains(pid)), "{listed:?}");
        assert_eq!(cgroup_mounts(&state, &id).len(), 1);
        state.ok(["kill", &id, "KILL"]);
        until("the container to stop", || stopped(&state, &id));
        state.ok(["delete", &id]);
        assert!(!place.host().exists());
    }
}

#[test]
fn subcontainers_and_ends() {
    inside("subcontainers_and_ends_inside");
}

#[test]
#[ignore = "run by subcontainers_and_ends in a mount namespace of its own"]
fn subcontainers_and_ends_inside() {
    if !is_v2() {
        skip!("needs v2 cgroups");
    }
    let (state, places, id, sub) = (State::new(), [Place::new(), Place::new()], unique("pod"), unique("sub"));
    let pod = sleeper(&places[0], &["ro"], false, |_| {});
    let mut limited = false;
    let second = sleeper(&places[1], &["ro"], false, |config| {
        config["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]);
        config["hostname"] = Value::Null;
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": id,
        });
        limited = limit(config);
    });
    state.detached(&["run", "--detach", "--bundle", pod.text(), &id]);
    let start = || state.detached(&["run", "--detach", "--bundle", second.text(), &sub]);
    start();
    // Its own place has its proxy, whose pid callers look up, and nothing of the sandbox.
    let proxy = pid(&state, &sub);
    assert_eq!((pids(&places[1].host()), cgroup_of(proxy)), (vec![proxy], places[1].0.clone()));
    assert_eq!(pids(&places[1].leaf(&sub)).len(), 1);
    assert_eq!(v2_line(&state.ok(["exec", &sub, "cat", "/proc/self/cgroup"])), "/");
    if limited {
        assert_eq!(state.ok(["exec", &sub, "cat", "/sys/fs/cgroup/hugetlb.2MB.max"]), "4194304\n");
    }
    state.ok(["pause", &sub]);
    assert_eq!((state.status(&sub).as_str(), state.status(&id).as_str()), ("paused", "running"));
    state.ok(["delete", "--force", &sub]);
    assert!(!places[1].host().exists() && state.status(&id) == "running");

    // The sandbox is killed: everything in it ends, and what is left goes with `delete`.
    start();
    kill(Pid::from_raw(pid(&state, &id)), Signal::SIGKILL).unwrap();
    until("the sandbox to stop", || stopped(&state, &id));
    state.ok(["delete", &sub]);
    state.ok(["delete", &id]);
    assert!(places.iter().all(|p| !p.host().exists()));

    // One kill for all that is in the container's cgroup.
    state.detached(&["run", "--detach", "--bundle", pod.text(), &id]);
    fs::write(places[0].host().join("cgroup.kill"), "1").unwrap();
    until("the sandbox to stop", || stopped(&state, &id));
    state.ok(["delete", &id]);
    assert!(!places[0].host().exists());

    // A limit that nothing enforces is refused, and nothing stays.
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap();
    if !controllers.split_whitespace().any(|c| c == "memory") {
        let limited = sleeper(&places[0], &["ro"], false, |config| {
            config["linux"]["resources"]["memory"] = json!({"limit": 100_000_000});
        });
        let refused = state.fails(["run", "--detach", "--bundle", limited.text(), &id]);
        assert!(refused.contains("memory.max") && refused.contains("memory controller"), "{refused}");
        assert!(!places[0].host().exists() && state.ok(["list", "-q"]).is_empty());
    }
}
