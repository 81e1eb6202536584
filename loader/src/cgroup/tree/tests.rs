//! Trees of real cgroups (as root; skipped where a hierarchy is not mounted).

use super::*;
use crate::cgroup::tests::{Scratch, unified_root};
use airlock_wire::error::Kind;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const V1: [&str; 5] = ["freezer", "memory", "cpu", "cpuset", "pids"];

/// A private root in each v1 hierarchy.
struct Roots(Vec<(String, Scratch)>);

impl Roots {
    fn v1() -> Option<Self> {
        let mount = |name: &str| Path::new("/sys/fs/cgroup").join(name);
        let there = V1.iter().all(|name| mount(name).join("tasks").exists());
        if !there || !nix::unistd::geteuid().is_root() {
            return None;
        }
        let roots = Self(V1.map(|name| (name.to_owned(), Scratch::new(&mount(name), "tree"))).into());
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let all = fs::read(mount("cpuset").join(file)).unwrap();
            fs::write(roots.0[3].1.path().join(file), all).unwrap();
        }
        Some(roots)
    }

    fn v2() -> Option<Self> {
        let root = unified_root()?;
        Some(Self(vec![(UNIFIED.to_owned(), Scratch::new(&root, "tree"))]))
    }

    fn all() -> Vec<Self> {
        Self::v1().into_iter().chain(Self::v2()).collect()
    }

    fn node(&self) -> Node {
        Node::root(self.0.iter().map(|(name, scratch)| (name.clone(), scratch.open())).collect()).unwrap()
    }

    fn has(&self, hierarchy: &str, path: &str) -> bool {
        self.path(hierarchy).join(path).is_dir()
    }

    fn path(&self, hierarchy: &str) -> &Path {
        self.0.iter().find(|(name, _)| name == hierarchy).unwrap().1.path()
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// A process that waits for its end.
fn sleeper() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
}

fn pid(child: &Child) -> i32 {
    child.id().try_into().unwrap()
}

fn memory(limit: i64) -> LinuxResources {
    serde_json::from_value(serde_json::json!({"memory": {"limit": limit}})).unwrap()
}

#[test]
fn a_node_has_directories_where_it_isolates() {
    let Some(roots) = Roots::v1() else { return };
    let root = roots.node();
    let a = root.make_child("a", &["memory", "cpu", "cpuset"]).unwrap().keep().unwrap();
    assert!(
        ["freezer", "memory", "cpu", "cpuset"].iter().all(|h| roots.has(h, "a")) && !roots.has("pids", "a")
    );
    assert!(a.dir("memory").unwrap().is_some() && a.dir("pids").unwrap().is_none());
    a.apply(&memory(8 << 20)).unwrap();
    assert_eq!(root.child("a").unwrap().stats().unwrap().memory.usage.limit, 8 << 20);
    let error = a.apply(&serde_json::from_str(r#"{"pids": {"limit": 5}}"#).unwrap()).unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported, "{error}");

    // A child of one that does not isolate is below a passage.
    let b = a.make_child("b", &["pids"]).unwrap().keep().unwrap();
    assert!(roots.has("pids", "a/b") && root.child("a").unwrap().dir("pids").unwrap().is_none());
    let mut child = sleeper();
    b.enter(pid(&child)).unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", pid(&child))).unwrap();
    assert!(cgroup.lines().any(|l| l.contains(":pids:") && l.ends_with("/a/b")), "{cgroup}");
    assert!(cgroup.lines().any(|l| l.contains(":memory:") && l.ends_with("/a")), "{cgroup}");
    assert_eq!((b.processes().unwrap(), a.processes().unwrap()), (vec![pid(&child)], vec![]));
    assert_eq!(a.processes_below().unwrap(), [pid(&child)]);
    let error = root.remove_child("a", Instant::now()).unwrap_err();
    assert_eq!(error.kind, Kind::InvalidState, "{error}");
    a.kill(soon()).unwrap();
    child.wait().unwrap();
    root.remove_child("a", soon()).unwrap();
    assert!(V1.iter().all(|h| !roots.has(h, "a")) && a.gone() && b.gone());
}

#[test]
fn what_is_being_made_is_found_by_nobody() {
    for roots in Roots::all() {
        let root = roots.node();
        let making = root.make_child("a", &[]).unwrap();
        assert_eq!(root.child("a").unwrap_err().kind, Kind::NoSuchEntity);
        assert_eq!(root.children().unwrap(), Vec::<String>::new());
        drop(making);
        assert!(!roots.0.iter().any(|(h, _)| roots.has(h, "a")));

        // Whoever made this was killed.
        std::mem::forget(root.make_child("a", &[]).unwrap());
        std::mem::forget(root.make_child("b", &[]).unwrap());
        root.make_child("a", &[]).unwrap().keep().unwrap();
        assert_eq!(root.children().unwrap(), ["a"]);
        let again = root.make_child("a", &[]).unwrap_err();
        assert_eq!(again.kind, Kind::InvalidState, "{again}");
        root.sweep().unwrap();
        assert!(roots.0.iter().all(|(h, _)| !roots.has(h, "b")) && root.child("a").is_ok());
    }
}

#[test]
fn nothing_outside_of_the_root_is_reached() {
    for roots in Roots::all() {
        let root = roots.node();
        for bad in ["", ".", "..", "a/b", "/", "a\0", "a b", &"x".repeat(256)] {
            assert_eq!(root.child(bad).unwrap_err().kind, Kind::InvalidArgument, "{bad:?}");
            assert_eq!(root.make_child(bad, &[]).unwrap_err().kind, Kind::InvalidArgument, "{bad:?}");
            assert_eq!(root.remove_child(bad, soon()).unwrap_err().kind, Kind::InvalidArgument, "{bad:?}");
        }
        // A control file is neither a node nor can one be made of its name.
        assert_eq!(root.child("cgroup.procs").unwrap_err().kind, Kind::NoSuchEntity);
        assert_eq!(root.make_child("cgroup.procs", &[]).unwrap_err().kind, Kind::InvalidArgument);
        assert_eq!(root.remove_child("cgroup.procs", soon()).unwrap_err().kind, Kind::NoSuchEntity);
        let error = root.make_child("a", &["nosuch"]).unwrap_err();
        assert!(error.kind == Kind::Unsupported && error.message.contains("nosuch"), "{error}");
    }
}

#[test]
fn frozen_nodes_and_fork_bombs_are_killed() {
    for roots in Roots::all() {
        let root = roots.node();
        let a = root.make_child("a", &[]).unwrap().keep().unwrap();
        let b = a.make_child("b", &[]).unwrap().keep().unwrap();
        // Waits until it is in its place, then makes children that make children.
        let mut bomb = Command::new("sh")
            .args(["-c", "read line; f() { while :; do sleep 0.02 & f & wait; done; }; f"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        b.enter(pid(&bomb)).unwrap();
        drop(bomb.stdin.take());
        while b.processes().unwrap().len() < 20 {
            std::thread::yield_now();
        }
        a.kill(soon()).unwrap();
        bomb.wait().unwrap();
        assert_eq!(a.threads_below().unwrap(), Vec::<i32>::new());

        let mut child = sleeper();
        b.enter(pid(&child)).unwrap();
        a.freeze(true).unwrap();
        assert!(a.frozen().unwrap() && b.frozen().unwrap());
        a.kill(soon()).unwrap();
        child.wait().unwrap();
        root.remove_child("a", soon()).unwrap();
        assert!(a.gone());
    }
}

#[test]
fn a_visitor_is_killed_last() {
    let Some(roots) = Roots::v1() else { return };
    let root = roots.node();
    let a = root.make_child("a", &["memory"]).unwrap().keep().unwrap();
    // A thread of this program would take the tests along; python's threads show their ids.
    let script = "import threading,time\nt=threading.Thread(target=time.sleep,args=(1000,),daemon=True)\nt.start()\n\
                  print(t.native_id,flush=True)\ntime.sleep(1000)";
    let Ok(mut host) = Command::new("python3").args(["-c", script]).stdout(Stdio::piped()).spawn() else {
        return;
    };
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(host.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    let tid: i32 = line.trim().parse().unwrap();
    let mut resident = sleeper();
    a.enter(tid).unwrap();
    a.enter(pid(&resident)).unwrap();
    let mut expected = [tid, pid(&resident)];
    expected.sort_unstable();
    assert_eq!(a.threads().unwrap(), expected);
    a.kill(soon()).unwrap();
    resident.wait().unwrap();
    host.wait().unwrap();
    root.remove_child("a", soon()).unwrap();
}

#[test]
fn a_node_serves_as_a_containers_cgroup() {
    for roots in Roots::all() {
        let root = roots.node();
        let cgroup = root.make_child("c", &[]).unwrap().keep().unwrap().cgroup().unwrap();
        assert_eq!(cgroup.procs().unwrap(), Vec::<i32>::new());
        // The tree below that cgroup is the tree below the node.
        Node::below(&cgroup).unwrap().make_child("d", &[]).unwrap().keep().unwrap();
        assert_eq!(root.child("c").unwrap().children().unwrap(), ["d"]);
        root.remove_child("c", soon()).unwrap();
    }
}
