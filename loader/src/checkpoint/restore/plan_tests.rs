//! Plans carried out on a model of the kernel: for trees that other sequences of calls have led to.

use super::*;
use proptest::prelude::*;

type Checked<T> = std::result::Result<T, String>;

/// What the kernel knows of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    parent: i32,
    sid: i32,
    pgid: i32,
    container: Id,
    exit_signal: i32,
    subreaper: bool,
    zombie: bool,
}

/// A pid namespace whose first process is 1; calls that the kernel would refuse are errors.
#[derive(Debug, Clone)]
struct Kernel(BTreeMap<i32, Task>);

impl Kernel {
    fn new(roots: &[i32]) -> Self {
        let root = |(i, pid): (usize, &i32)| {
            let task = Task {
                parent: 0,
                sid: *pid,
                pgid: *pid,
                container: i as Id,
                exit_signal: libc::SIGCHLD,
                subreaper: false,
                zombie: false,
            };
            (*pid, task)
        };
        Self(roots.iter().enumerate().map(root).collect())
    }

    fn alive(&self, pid: i32) -> Checked<&Task> {
        self.0.get(&pid).filter(|t| !t.zombie).ok_or(format!("{pid} is not alive"))
    }

    fn in_use(&self, n: i32) -> bool {
        self.0.iter().any(|(pid, t)| [*pid, t.sid, t.pgid].contains(&n))
    }

    fn fork(&mut self, by: i32, pid: i32, sibling: bool, exit_signal: i32) -> Checked<()> {
        let maker = self.alive(by)?.clone();
        // For PID 1, the kernel refuses it; a sibling of another container's init would be no process of its container.
        if sibling && maker.parent == 0 {
            return Err("EINVAL: CLONE_PARENT by a first process".into());
        }
        if self.in_use(pid) {
            return Err(format!("EEXIST: {pid}"));
        }
        let (parent, exit_signal) =
            if sibling { (maker.parent, maker.exit_signal) } else { (by, exit_signal) };
        self.0.insert(pid, Task { parent, exit_signal, subreaper: false, ..maker });
        Ok(())
    }

    fn setsid(&mut self, pid: i32) -> Checked<()> {
        self.alive(pid)?;
        if self.0.values().any(|t| t.pgid == pid) {
            return Err(format!("EPERM: setsid by {pid}, which leads a group"));
        }
        let task = self.0.get_mut(&pid).unwrap();
        (task.sid, task.pgid) = (pid, pid);
        Ok(())
    }

    fn setpgid(&mut self, pid: i32, pgid: i32) -> Checked<()> {
        let task = self.alive(pid)?;
        let sid = task.sid;
        if sid == pid {
            return Err(format!("EPERM: setpgid by the session leader {pid}"));
        }
        if pgid != pid && !self.0.values().any(|t| t.pgid == pgid && t.sid == sid) {
            return Err(format!("EPERM: no group {pgid} in session {sid}"));
        }
        self.0.get_mut(&pid).unwrap().pgid = pgid;
        Ok(())
    }

    fn exit(&mut self, pid: i32) -> Checked<()> {
        self.alive(pid)?;
        self.0.get_mut(&pid).unwrap().zombie = true;
        let mut heir = self.0[&pid].parent;
        while heir != 0 && (!self.0[&heir].subreaper || self.0[&heir].zombie) {
            heir = self.0[&heir].parent;
        }
        for task in self.0.values_mut().filter(|t| t.parent == pid) {
            task.parent = if heir == 0 { 1 } else { heir };
            task.exit_signal = libc::SIGCHLD;
        }
        Ok(())
    }

    fn reap(&mut self, pid: i32, parent: i32) -> Checked<()> {
        self.alive(parent)?;
        if self.0.get(&pid).is_none_or(|t| !t.zombie || t.parent != parent) {
            return Err(format!("ECHILD: {pid} of {parent}"));
        }
        self.0.remove(&pid);
        Ok(())
    }

    fn carry_out(&mut self, steps: &[Step]) -> Checked<()> {
        for step in steps {
            match *step {
                Step::Fork { by, pid, sibling, exit_signal } => self.fork(by, pid, sibling, exit_signal),
                Step::Setsid(pid) => self.setsid(pid),
                Step::Setpgid { pid, pgid } => self.setpgid(pid, pgid),
                Step::Subreaper(pid, on) => {
                    self.alive(pid)?;
                    self.0.get_mut(&pid).unwrap().subreaper = on;
                    Ok(())
                }
                Step::End { pid, parent } => self.exit(pid).and_then(|()| self.reap(pid, parent)),
            }
            .map_err(|e| format!("{step:?}: {e}"))?;
        }
        Ok(())
    }

    /// What a dump would say of it.
    fn nodes(&self) -> Vec<Node> {
        let mut order: Vec<i32> = self.0.iter().filter(|(_, t)| t.parent == 0).map(|(p, _)| *p).collect();
        let mut at = 0;
        while let Some(parent) = order.get(at).copied() {
            order.extend(self.0.iter().filter(|(_, t)| t.parent == parent).map(|(p, _)| *p));
            at += 1;
        }
        let node = |pid: &i32| {
            let t = &self.0[pid];
            Node {
                pid: *pid,
                ppid: t.parent,
                pgid: t.pgid,
                sid: t.sid,
                container: t.container,
                by_parent: false,
                exit_signal: t.exit_signal,
            }
        };
        order.iter().map(node).collect()
    }
}

fn check(nodes: &[Node]) -> Checked<()> {
    let steps = plan(nodes, &BTreeSet::new()).map_err(|e| e.message)?;
    let roots: Vec<i32> = nodes.iter().filter(|n| n.ppid == 0).map(|n| n.pid).collect();
    let mut kernel = Kernel::new(&roots);
    kernel.carry_out(&steps).map_err(|e| format!("{e}\nin {steps:?}"))?;
    let (mut made, mut wanted) = (kernel.nodes(), nodes.to_vec());
    made.sort_by_key(|n| n.pid);
    wanted.sort_by_key(|n| n.pid);
    match made.iter().zip(&wanted).find(|(a, b)| a != b) {
        None if made.len() == wanted.len() => Ok(()),
        different => Err(format!("{different:?}\nof {made:?}\nby {steps:?}")),
    }
}

/// `pid ppid pgid sid` of each.
fn tree(rows: &[[i32; 4]]) -> Vec<Node> {
    let node = |[pid, ppid, pgid, sid]: [i32; 4]| Node {
        pid,
        ppid,
        pgid,
        sid,
        container: 0,
        by_parent: false,
        exit_signal: libc::SIGCHLD,
    };
    rows.iter().copied().map(node).collect()
}

#[test]
fn typical_trees() {
    for rows in [
        // A shell with a pipeline in a group of its own, stopped jobs, and a background job.
        &[[1, 0, 1, 1], [10, 1, 10, 1], [11, 1, 10, 1], [12, 1, 12, 1], [20, 12, 12, 1]][..],
        // A daemon that forked twice: its session's leader is gone.
        &[[1, 0, 1, 1], [8, 1, 7, 7], [9, 8, 7, 7], [30, 1, 30, 30]],
        // A group whose leader is gone.
        &[[1, 0, 1, 1], [8, 1, 7, 1], [9, 1, 7, 1]],
        // A child that its parent forked before it founded a session.
        &[[1, 0, 1, 1], [5, 1, 5, 5], [6, 5, 1, 1]],
        // The same, two levels deep.
        &[[1, 0, 1, 1], [5, 1, 5, 5], [6, 5, 6, 6], [7, 6, 1, 1]],
        // An orphan in the session of a leader that is no child of init: script(1) and a background job.
        &[[1, 0, 1, 1], [5, 1, 1, 1], [6, 5, 6, 6], [9, 1, 9, 6], [10, 9, 9, 6]],
        // A leader that left its group, which lives on.
        &[[1, 0, 1, 1], [5, 1, 6, 1], [6, 1, 6, 1], [7, 1, 5, 1]],
        // Two dead leaders at different depths.
        &[[1, 0, 1, 1], [5, 1, 4, 4], [6, 5, 6, 6], [7, 6, 4, 4], [9, 6, 8, 8], [11, 1, 8, 8]],
    ] {
        if let Err(e) = check(&tree(rows)) {
            panic!("{rows:?}: {e}");
        }
    }
}

#[test]
fn pods_with_a_common_pid_namespace() {
    let mut nodes = tree(&[
        [1, 0, 1, 1],
        [50, 0, 50, 50],
        [51, 50, 50, 50],
        // Orphans of the second container: the first one's init is their parent now.
        [52, 1, 52, 50],
        [53, 1, 40, 40],
        [54, 53, 40, 40],
        [60, 1, 60, 60],
    ]);
    for node in &mut nodes {
        node.container = Id::from((50..60).contains(&node.pid));
    }
    check(&nodes).unwrap();
    // Likewise one that leads a session.
    let mut nodes = tree(&[[1, 0, 1, 1], [50, 0, 50, 50], [52, 1, 52, 52]]);
    nodes[1].container = 1;
    nodes[2].container = 1;
    check(&nodes).unwrap();
}

#[test]
fn hundreds_of_processes() {
    let chain: Vec<[i32; 4]> =
        (1..=400).map(|n| [n, n - 1, if n % 3 == 0 { n } else { n - n % 3 }.max(1), 1]).collect();
    check(&tree(&chain)).unwrap();
    let mut flat = vec![[1, 0, 1, 1]];
    flat.extend((2..=600).map(|n| [n, 1, n, n]));
    flat.extend((601..=900).map(|n| [n, n - 500, n - 500, n - 500]));
    check(&tree(&flat)).unwrap();
}

#[test]
fn contradictions_are_named() {
    for (rows, name) in [
        (&[[1, 0, 1, 1], [5, 9, 1, 1]][..], "parent 9"),
        (&[[1, 0, 1, 1], [5, 1, 1, 1], [5, 1, 1, 1]], "two processes 5"),
        (&[[1, 0, 1, 1], [5, 1, 0, 1]], "process 5"),
        (&[[1, 0, 2, 1]], "first process, 1"),
        (&[[1, 0, 1, 1], [5, 1, 5, 5], [6, 1, 5, 1]], "process 6"),
        (&[[1, 0, 1, 1], [5, 1, 1, 5]], "process 5"),
        (&[[1, 0, 1, 1], [5, 1, 1, 1], [6, 5, 6, 5]], "process 6"),
    ] {
        let e = plan(&tree(rows), &BTreeSet::new()).unwrap_err();
        assert!(e.message.contains(name), "{rows:?}: {e}");
    }
}

#[test]
fn what_shares_memory_is_made_by_its_parent() {
    let mut nodes = tree(&[[1, 0, 1, 1], [5, 1, 5, 5], [6, 5, 5, 5]]);
    nodes[2].by_parent = true;
    let steps = plan(&nodes, &BTreeSet::new()).unwrap();
    assert!(steps.contains(&Step::Fork { by: 5, pid: 6, sibling: false, exit_signal: libc::SIGCHLD }));
    nodes[2].sid = 4;
    nodes[2].pgid = 4;
    assert!(plan(&nodes, &BTreeSet::new()).is_err());
}

#[derive(Debug, Clone)]
enum Act {
    Fork(usize),
    Sibling(usize),
    Setsid(usize),
    Setpgid(usize, usize),
    Exit(usize),
    Reap(usize),
    Subreaper(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let n = 0usize..64;
    prop_oneof![
        6 => n.clone().prop_map(Act::Fork),
        1 => n.clone().prop_map(Act::Sibling),
        3 => n.clone().prop_map(Act::Setsid),
        2 => (n.clone(), n.clone()).prop_map(|(a, b)| Act::Setpgid(a, b)),
        3 => n.clone().prop_map(Act::Exit),
        3 => n.clone().prop_map(Act::Reap),
        1 => n.prop_map(Act::Subreaper),
    ]
}

/// Lets programs do what they like.
fn history(roots: &[i32], acts: &[Act]) -> Kernel {
    let mut kernel = Kernel::new(roots);
    let mut next = 5;
    for act in acts {
        let pids: Vec<i32> = kernel.0.keys().copied().collect();
        let pick = |n: usize| pids[n % pids.len()];
        // What the kernel refuses, it refuses.
        let _ = match *act {
            Act::Fork(n) => kernel.fork(pick(n), next, false, libc::SIGCHLD).map(|()| next += 1),
            Act::Sibling(n) => kernel.fork(pick(n), next, true, libc::SIGCHLD).map(|()| next += 1),
            Act::Setsid(n) => kernel.setsid(pick(n)),
            Act::Setpgid(n, group) => kernel.setpgid(pick(n), pick(group)),
            Act::Exit(n) if !roots.contains(&pick(n)) => kernel.exit(pick(n)),
            Act::Reap(n) => {
                kernel.0.get(&pick(n)).map(|t| t.parent).map_or(Ok(()), |p| kernel.reap(pick(n), p))
            }
            Act::Subreaper(n) => {
                kernel.0.get_mut(&pick(n)).unwrap().subreaper = true;
                Ok(())
            }
            Act::Exit(_) => Ok(()),
        };
    }
    kernel
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Every tree that calls have led to can be led to by calls.
    #[test]
    fn whatever_programs_do(acts in prop::collection::vec(act(), 0..60), pod: bool) {
        let nodes = history(if pod { &[1, 3] } else { &[1] }, &acts).nodes();
        if let Err(e) = check(&nodes) {
            let rows: Vec<_> = nodes.iter().map(|n| [n.pid, n.ppid, n.pgid, n.sid, n.exit_signal]).collect();
            prop_assert!(false, "{rows:?}: {e}");
        }
    }

    #[test]
    fn forged_trees_do_no_harm(rows in prop::collection::vec([0i32..9, 0i32..9, 0i32..9, 0i32..9], 0..9)) {
        let nodes = tree(&rows);
        if let Ok(steps) = plan(&nodes, &BTreeSet::new()) {
            prop_assert!(steps.len() < 1000);
        }
    }
}
