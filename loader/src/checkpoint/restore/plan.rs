//! In which order processes make each other so that parents, sessions and process groups come out as they were.
//!
//! Sessions and groups can only be inherited or founded, so the way to a tree is not the tree itself: a child that is in
//! an older session than its parent was forked before its parent's setsid(2); an orphan was forked by somebody who is
//! gone; a session's leader may be gone too. The plan repeats such histories with helpers, processes that end again
//! before the plan is through.
//!
//! This is arithmetic on process numbers alone; `tree` carries the steps out.
#![forbid(unsafe_code)]

use crate::checkpoint::state::Id;
use airlock_wire::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// A process as it shall be. Numbers are those of its pid namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Pid.
    pub pid: i32,
    /// Parent; 0: it is there already (a container's init), leads its session, and makes others.
    pub ppid: i32,
    /// Process group.
    pub pgid: i32,
    /// Session.
    pub sid: i32,
    /// Container, whose namespaces it can only inherit.
    pub container: Id,
    /// Shares something with its parent that it can only get by being forked by it.
    pub by_parent: bool,
    /// Signal that its parent gets at its end.
    pub exit_signal: i32,
}

/// One step. Processes are named by their pids, which no two processes of a plan have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `by` forks `pid`; with `sibling`, as a child of its own parent (CLONE_PARENT).
    Fork {
        /// Who.
        by: i32,
        /// The new process.
        pid: i32,
        /// Its parent is that of `by`, and its exit signal that of `by`.
        sibling: bool,
        /// Its exit signal.
        exit_signal: i32,
    },
    /// setsid(2).
    Setsid(i32),
    /// setpgid(2).
    Setpgid {
        /// Who.
        pid: i32,
        /// Group.
        pgid: i32,
    },
    /// PR_SET_CHILD_SUBREAPER on or off.
    Subreaper(i32, bool),
    /// The helper ends and its parent reaps it.
    End {
        /// The helper.
        pid: i32,
        /// Its parent.
        parent: i32,
    },
}

/// Makes a plan for the processes of one pid namespace; parents are before their children in `nodes`. `taken` are
/// numbers that helpers must not have besides those in `nodes` (threads).
///
/// # Errors
/// Numbers that contradict each other, and trees that no sequence of calls leads to, by process.
pub fn plan(nodes: &[Node], taken: &BTreeSet<i32>) -> Result<Vec<Step>> {
    let mut planner = Planner::new(nodes, taken)?;
    planner.choose_births();
    planner.place_leaders();
    planner.make_all()?;
    planner.groups()?;
    planner.end_helpers();
    Ok(planner.steps)
}

/// A process of the plan as it is at some moment.
#[derive(Debug, Clone)]
struct Now {
    parent: i32,
    sid: i32,
    pgid: i32,
    container: Id,
    exit_signal: i32,
}

struct Planner<'a> {
    nodes: &'a [Node],
    index: BTreeMap<i32, usize>,
    /// The first process of the pid namespace: orphans become its children.
    reaper: i32,
    /// Session in which a process must be born, by index: none where any will do.
    birth: Vec<Option<i32>>,
    /// Who makes the helper that leads a session whose leader is gone.
    leader_maker: BTreeMap<i32, i32>,
    now: BTreeMap<i32, Now>,
    /// Helpers in the order in which they were made, each with the process that their children are to be given to.
    helpers: Vec<(i32, Option<i32>)>,
    taken: BTreeSet<i32>,
    steps: Vec<Step>,
}

fn damaged(what: String) -> Error {
    Error::invalid_argument(format!("the statefile is damaged: {what}"))
}

impl<'a> Planner<'a> {
    fn new(nodes: &'a [Node], taken: &BTreeSet<i32>) -> Result<Self> {
        let mut taken = taken.clone();
        let mut index = BTreeMap::new();
        let mut now = BTreeMap::new();
        for (i, node) in nodes.iter().enumerate() {
            let pid = node.pid;
            if [pid, node.pgid, node.sid].iter().any(|n| *n <= 0) {
                return Err(damaged(format!(
                    "process {pid} has group {} and session {}",
                    node.pgid, node.sid
                )));
            }
            if node.ppid != 0 && !index.contains_key(&node.ppid) {
                return Err(damaged(format!(
                    "the parent {} of process {pid} does not come before it",
                    node.ppid
                )));
            }
            if index.insert(pid, i).is_some() {
                return Err(damaged(format!("there are two processes {pid}")));
            }
            if node.ppid == 0 {
                if (node.sid, node.pgid) != (pid, pid) {
                    return Err(damaged(format!("a container's first process, {pid}, leads no session")));
                }
                let (container, exit_signal) = (node.container, node.exit_signal);
                now.insert(pid, Now { parent: 0, sid: pid, pgid: pid, container, exit_signal });
            }
            taken.extend([pid, node.pgid, node.sid]);
        }
        for node in nodes {
            let session_of = |pid: i32| index.get(&pid).and_then(|i| nodes.get(*i)).map(|n| n.sid);
            if session_of(node.sid).is_some_and(|sid| sid != node.sid)
                || session_of(node.pgid).is_some_and(|sid| sid != node.sid)
                || (node.sid == node.pid && node.pgid != node.pid)
            {
                return Err(damaged(format!(
                    "process {} cannot be in group {} and session {}",
                    node.pid, node.pgid, node.sid
                )));
            }
        }
        let roots: Vec<i32> = nodes.iter().filter(|n| n.ppid == 0).map(|n| n.pid).collect();
        let reaper = roots.iter().copied().find(|pid| *pid == 1).or(roots.first().copied()).unwrap_or(0);
        Ok(Self {
            nodes,
            index,
            reaper,
            birth: vec![None; nodes.len()],
            leader_maker: BTreeMap::new(),
            now,
            helpers: Vec::new(),
            taken,
            steps: Vec::new(),
        })
    }

    fn node(&self, pid: i32) -> Option<&'a Node> {
        self.index.get(&pid).and_then(|i| self.nodes.get(*i))
    }

    fn born_in(&self, pid: i32) -> Option<i32> {
        self.index.get(&pid).and_then(|i| self.birth.get(*i).copied().flatten())
    }

    /// True when `pid` is `root` or descends from it.
    fn below(&self, pid: i32, root: i32) -> bool {
        let mut at = pid;
        while let Some(node) = self.node(at) {
            if at == root {
                return true;
            }
            at = node.ppid;
        }
        false
    }

    /// Session leaders whose children are in the session that they had left: they were born in that one. Others than
    /// session leaders are born in the session that they are in.
    fn choose_births(&mut self) {
        for (i, node) in self.nodes.iter().enumerate().rev() {
            let birth = if node.sid != node.pid { Some(node.sid) } else { self.left_session(node) };
            if let Some(slot) = self.birth.get_mut(i) {
                *slot = birth;
            }
        }
    }

    /// The session that a session leader was born in, if that can be told from its children, and matters.
    fn left_session(&self, leader: &Node) -> Option<i32> {
        if leader.ppid == 0 {
            return None;
        }
        let children = self.nodes.iter().filter(|n| n.ppid == leader.pid);
        let wanted: BTreeSet<i32> =
            children.filter_map(|n| self.born_in(n.pid)).filter(|sid| *sid != leader.sid).collect();
        let parent = self.node(leader.ppid).map_or(0, |p| p.sid);
        let elsewhere = |sid: i32| {
            !self.below(sid, leader.pid)
                && self.nodes.iter().any(|n| (n.sid == sid || n.pid == sid) && !self.below(n.pid, leader.pid))
        };
        // A session that exists only below it, or whose leader is there, is founded there.
        wanted
            .iter()
            .copied()
            .find(|sid| *sid == parent)
            .or(wanted.iter().copied().find(|sid| elsewhere(*sid)))
    }

    /// Who can fork a process: its parent, or, if that is in other namespaces, the first process of its container.
    fn maker(&self, node: &Node) -> i32 {
        match self.node(node.ppid) {
            Some(parent) if parent.container == node.container => parent.pid,
            _ => self
                .nodes
                .iter()
                .find(|n| n.ppid == 0 && n.container == node.container)
                .map_or(node.ppid, |root| root.pid),
        }
    }

    /// Sessions without a leader get one from the process deepest in the tree that has children in it, and is not in it
    /// itself.
    fn place_leaders(&mut self) {
        let depth = |mut pid: i32| {
            let mut depth = 0;
            while let Some(node) = self.node(pid) {
                pid = node.ppid;
                depth += 1;
            }
            depth
        };
        let mut makers: BTreeMap<i32, i32> = BTreeMap::new();
        for (node, birth) in self.nodes.iter().zip(&self.birth) {
            let Some(sid) = birth.filter(|sid| !self.index.contains_key(sid)) else { continue };
            let inherits = self.node(node.ppid).is_some_and(|p| {
                p.container == node.container && (p.sid == sid || self.born_in(p.pid) == Some(sid))
            });
            if inherits {
                continue;
            }
            let maker = self.maker(node);
            let best = makers.entry(sid).or_insert(maker);
            if depth(maker) > depth(*best) {
                *best = maker;
            }
        }
        self.leader_maker = makers;
    }

    fn make_all(&mut self) -> Result<()> {
        let mut left: Vec<usize> =
            self.nodes.iter().enumerate().filter(|(_, n)| n.ppid != 0).map(|(i, _)| i).collect();
        while !left.is_empty() {
            let before = self.steps.len();
            let mut still = Vec::new();
            for i in left {
                if !self.make(i) {
                    still.push(i);
                }
            }
            left = still;
            if self.steps.len() == before {
                let node = left.first().and_then(|i| self.nodes.get(*i));
                return Err(Error::unsupported(format!(
                    "process {} cannot be made as a child of {} in session {}: no sequence of system calls leads to it",
                    node.map_or(0, |n| n.pid),
                    node.map_or(0, |n| n.ppid),
                    node.map_or(0, |n| n.sid),
                )));
            }
        }
        Ok(())
    }

    fn make(&mut self, i: usize) -> bool {
        let Some(node) = self.nodes.get(i) else { return true };
        let Some(parent) = self.now.get(&node.ppid).cloned() else { return false };
        let birth = self.birth.get(i).copied().flatten();
        let made = match birth {
            _ if parent.container == node.container && birth.is_none_or(|sid| sid == parent.sid) => {
                self.fork(node.ppid, node.pid, false, node.exit_signal, node.container);
                true
            }
            Some(sid) if !node.by_parent => self.make_from_afar(node, sid),
            None if !node.by_parent => {
                // Any process of the right container will do.
                let sid = self.now.get(&self.maker(node)).map(|m| m.sid);
                sid.is_some_and(|sid| self.make_orphan(node, sid))
            }
            _ => false,
        };
        if made {
            self.settle(node.pid);
            self.settle(node.ppid);
        }
        made
    }

    /// Founds the session of a leader as soon as it has no more children to make in the one it was born in.
    fn settle(&mut self, pid: i32) {
        let (Some(node), Some(now)) = (self.node(pid), self.now.get(&pid)) else { return };
        if node.sid != pid || now.sid == pid {
            return;
        }
        let (sid, container) = (now.sid, now.container);
        let waits = self.nodes.iter().zip(&self.birth).any(|(n, birth)| {
            n.ppid == pid && n.container == container && *birth == Some(sid) && !self.now.contains_key(&n.pid)
        });
        if !waits {
            self.setsid(pid);
        }
    }

    /// Makes a process in a session that its parent is not in.
    fn make_from_afar(&mut self, node: &Node, sid: i32) -> bool {
        let Some(parent) = self.node(node.ppid) else { return false };
        let same_place = parent.container == node.container;
        // It will be, or was chosen to be.
        if same_place && parent.sid == sid && self.now.get(&parent.pid).is_some_and(|n| n.sid != sid) {
            return false;
        }
        if let Some(by) = self.sibling(node, sid, true) {
            self.fork(by, node.pid, true, node.exit_signal, node.container);
            return true;
        }
        if let Some(maker) = self.leader_maker.get(&sid).copied()
            && !self.now.contains_key(&sid)
            && let Some(container) = self.now.get(&maker).map(|m| m.container)
        {
            self.fork(maker, sid, false, node.exit_signal, container);
            self.setsid(sid);
            self.helpers.push((sid, None));
            return self.make_from_afar(node, sid);
        }
        if self.make_orphan(node, sid) {
            return true;
        }
        match self.sibling(node, sid, false) {
            Some(by) => {
                self.fork(by, node.pid, true, node.exit_signal, node.container);
                true
            }
            None => false,
        }
    }

    /// A child of the node's parent that is in the session and can make it a sibling. A sibling has the exit signal of
    /// its maker.
    fn sibling(&self, node: &Node, sid: i32, same_signal: bool) -> Option<i32> {
        let fits = |now: &Now| {
            now.parent == node.ppid
                && now.sid == sid
                && now.container == node.container
                && (!same_signal || now.exit_signal == node.exit_signal)
        };
        self.now.iter().find(|(_, now)| fits(now)).map(|(pid, _)| *pid)
    }

    /// Makes a process by a helper whose end gives it to its parent.
    fn make_orphan(&mut self, node: &Node, sid: i32) -> bool {
        let target = node.ppid;
        let reaches = |pid: i32| {
            // Up through helpers to the first process that stays.
            let mut at = pid;
            while self.node(at).is_none() {
                match self.now.get(&at) {
                    Some(now) => at = now.parent,
                    None => return false,
                }
            }
            target == self.reaper || self.below(at, target)
        };
        let ready = self.helpers.iter().find(|(pid, gives)| {
            *gives == Some(target)
                && self.now.get(pid).is_some_and(|n| n.sid == sid && n.container == node.container)
        });
        let helper = match ready {
            Some((pid, _)) => *pid,
            None => {
                let from = self
                    .now
                    .iter()
                    .find(|(pid, now)| {
                        now.sid == sid
                            && now.container == node.container
                            && reaches(**pid)
                            && self.helpers.iter().all(|(h, gives)| h != *pid || gives.is_none())
                    })
                    .map(|(pid, _)| *pid);
                let (Some(from), Some(pid)) = (from, self.free_number()) else { return false };
                self.fork(from, pid, false, libc::SIGCHLD, node.container);
                self.helpers.push((pid, Some(target)));
                pid
            }
        };
        self.fork(helper, node.pid, false, node.exit_signal, node.container);
        true
    }

    fn free_number(&mut self) -> Option<i32> {
        // Far below every pid_max, and few are needed.
        let free = (2..).find(|n| !self.taken.contains(n))?;
        self.taken.insert(free);
        Some(free)
    }

    fn fork(&mut self, by: i32, pid: i32, sibling: bool, exit_signal: i32, container: Id) {
        let Some(maker) = self.now.get(&by).cloned() else { return };
        let parent = if sibling { maker.parent } else { by };
        let exit_signal = if sibling { maker.exit_signal } else { exit_signal };
        self.now.insert(pid, Now { parent, sid: maker.sid, pgid: maker.pgid, container, exit_signal });
        self.steps.push(Step::Fork { by, pid, sibling, exit_signal });
    }

    fn setsid(&mut self, pid: i32) {
        if let Some(now) = self.now.get_mut(&pid) {
            (now.sid, now.pgid) = (pid, pid);
        }
        self.steps.push(Step::Setsid(pid));
    }

    fn setpgid(&mut self, pid: i32, pgid: i32) {
        if let Some(now) = self.now.get_mut(&pid) {
            now.pgid = pgid;
        }
        self.steps.push(Step::Setpgid { pid, pgid });
    }

    fn groups(&mut self) -> Result<()> {
        // Every group first gets its leader, be it one that leaves it again or a helper.
        for node in self.nodes {
            let group = node.pgid;
            match self.now.get(&group).map(|leader| leader.pgid) {
                Some(pgid) if pgid == group => {}
                Some(_) => self.setpgid(group, group),
                None => {
                    let by = self
                        .now
                        .iter()
                        .find(|(_, now)| now.sid == node.sid)
                        .map(|(pid, n)| (*pid, n.container));
                    let (by, container) =
                        by.ok_or_else(|| damaged(format!("nobody is in session {}", node.sid)))?;
                    self.fork(by, group, false, libc::SIGCHLD, container);
                    self.setpgid(group, group);
                    self.helpers.push((group, None));
                }
            }
        }
        let lead: BTreeSet<i32> = self.nodes.iter().map(|n| n.pgid).collect();
        for leaving in [false, true] {
            for node in self.nodes.iter().filter(|n| lead.contains(&n.pid) == leaving) {
                if self.now.get(&node.pid).is_some_and(|now| now.pgid != node.pgid) {
                    self.setpgid(node.pid, node.pgid);
                }
            }
        }
        Ok(())
    }

    /// In reverse order, so that a helper's own helpers are gone before it.
    fn end_helpers(&mut self) {
        while let Some((pid, gives)) = self.helpers.pop() {
            let Some(now) = self.now.remove(&pid) else { continue };
            let subreaper = gives.filter(|target| *target != self.reaper);
            self.steps.extend(subreaper.map(|target| Step::Subreaper(target, true)));
            self.steps.push(Step::End { pid, parent: now.parent });
            self.steps.extend(subreaper.map(|target| Step::Subreaper(target, false)));
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
