//! Making and removing nodes.
#![forbid(unsafe_code)]

use super::{Hierarchy, MAX_DEPTH, Node, Part, UNFINISHED, check_name, no_child, open_beneath, sticky};
use crate::cgroup::files::{Dir, Files, explain};
use crate::cgroup::{control, remove_tree, resources::cpu};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MODE: Mode = Mode::S_IRWXU.union(Mode::from_bits_truncate(0o055));

/// A node that is being made: nobody else finds it. Dropped, it is removed; [`Making::keep`] leaves it for everyone.
#[derive(Debug)]
#[must_use = "dropped, it removes the node"]
pub struct Making {
    node: Node,
    parent: Node,
    kept: bool,
}

impl Making {
    /// The node, to set limits.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Makes the node one that others find.
    ///
    /// # Errors
    /// As chmod(2); the node is removed then.
    pub fn keep(mut self) -> Result<Node> {
        fchmod(self.node.core_dir(), MODE).map_err(|e| explain("completing a cgroup", "cgroup", e))?;
        self.kept = true;
        Ok(self.node.clone())
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let Some(name) = self.node.path.last().filter(|_| !self.kept) else { return };
        if let Err(e) = self.parent.remove_by(name, Instant::now() + Duration::from_secs(1)) {
            log::warn!("cgroup {name} stays: {e}");
        }
    }
}

impl Node {
    /// Makes the child `name`: a directory in the core hierarchy, and one in every v1 hierarchy that has one of
    /// `controllers`; in v2 the controllers are handed on to the children of this node. A new v1 cpuset has the CPUs and
    /// memory nodes of the one above it. What a process that died while it made a node of that name left is removed
    /// first; callers see to it that no two make the same node at the same time.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::InvalidState`] when it exists; [`airlock_wire::error::Kind::Unsupported`] naming a
    /// controller that no hierarchy has, or that v2 cannot hand on here; else as mkdir(2).
    pub fn make_child(&self, name: &str, controllers: &[&str]) -> Result<Making> {
        check_name(name)?;
        if self.path.len() >= MAX_DEPTH {
            return Err(Error::invalid_argument(format!(
                "cgroup {name}: at most {MAX_DEPTH} levels are possible"
            )));
        }
        self.hand_on(controllers)?;
        let core = match make_dir(self.core_dir(), name, MODE | UNFINISHED)? {
            Some(core) => core,
            None => {
                self.clear_remains(name)?;
                make_dir(self.core_dir(), name, MODE | UNFINISHED)?
                    .ok_or_else(|| Error::invalid_state(format!("cgroup {name:?} exists already")))?
            }
        };
        // From here on dropping it removes it all.
        let making = Making { node: self.below_here(name, core), parent: self.clone(), kept: false };
        let mut parts = Vec::with_capacity(self.tree.others.len());
        for (index, hierarchy) in self.tree.others.iter().enumerate() {
            let wanted = controllers.iter().any(|c| hierarchy.has(c));
            parts.push(if wanted {
                let here = Arc::new(make_part(hierarchy, &making.node.path)?);
                Part { here: Some(here.clone()), joined: here }
            } else {
                let above = self.others()?.get(index).map(|p| p.joined.clone());
                Part { here: None, joined: above.unwrap_or_else(|| hierarchy.base.clone()) }
            });
        }
        // It is new: nobody has looked for them.
        let _ = making.node.others.set(parts);
        Ok(making)
    }

    /// Sees to it that `controllers` are there for a child.
    fn hand_on(&self, controllers: &[&str]) -> Result<()> {
        if let Some(absent) = controllers.iter().find(|c| !self.offers(c)) {
            return Err(Error::unsupported(format!(
                "the {absent} controller is not available here: no hierarchy that has it is mounted (v1), or \
                 cgroup.controllers does not list it (v2)"
            )));
        }
        if !self.v2() {
            return Ok(());
        }
        // The way down to here has to hand them on as well.
        let mut dir = self.tree.core.base.clone();
        for name in self.path.iter().map(Some).chain([None]) {
            enable(&Dir(dir.as_fd()), controllers)?;
            if let Some(name) = name {
                dir = Arc::new(open_beneath(dir.as_fd(), name)?.ok_or_else(|| no_child(name))?);
            }
        }
        Ok(())
    }

    /// Removes a child that was not completed, if there is one.
    fn clear_remains(&self, name: &str) -> Result<()> {
        let Some(dir) = open_beneath(self.core_dir(), name)? else { return Ok(()) };
        if sticky(fstat(&dir)?.st_mode) {
            control::kill(dir.as_fd(), self.v2())?;
            self.remove_by(name, Instant::now() + Duration::from_secs(1))?;
        }
        Ok(())
    }

    /// Removes what was left of nodes that were not completed, here and below. Call it while nobody makes nodes.
    ///
    /// # Errors
    /// The first that cannot be removed; the others are.
    pub fn sweep(&self) -> Result<()> {
        let mut result = Ok(());
        for name in control::children(self.core_dir())? {
            if check_name(&name).is_err() {
                continue;
            }
            let swept = match self.child(&name) {
                Ok(child) if self.path.len() < MAX_DEPTH => child.sweep(),
                _ => self.clear_remains(&name),
            };
            result = result.and(swept);
        }
        result
    }

    /// Removes the child `name` with everything below it in all hierarchies. Waits until `deadline` for processes that are
    /// ending; does not kill any. The directory in the core hierarchy goes last, so that what failed can be tried again.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::NoSuchEntity`] when there is none, [`airlock_wire::error::Kind::InvalidState`] naming
    /// the processes that are left.
    pub fn remove_child(&self, name: &str, deadline: Instant) -> Result<()> {
        check_name(name)?;
        if !self.finished(name) {
            return Err(no_child(name));
        }
        self.remove_by(name, deadline)
    }

    fn remove_by(&self, name: &str, deadline: Instant) -> Result<()> {
        check_name(name)?;
        let path = self.path.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("/");
        for hierarchy in &self.tree.others {
            remove_dir(hierarchy.base.as_fd(), &path, deadline)?;
        }
        remove_dir(self.core_dir(), name, deadline)
    }
}

/// Hands controllers on to the children of a v2 cgroup.
fn enable(dir: &dyn Files, controllers: &[&str]) -> Result<()> {
    const FILE: &str = "cgroup.subtree_control";
    let enabled = dir.read(FILE).unwrap_or_default();
    for one in controllers.iter().filter(|c| !enabled.split_whitespace().any(|e| e == **c)) {
        dir.write(FILE, &format!("+{one}")).map_err(|e| match e {
            Errno::EBUSY => Error::unsupported(format!(
                "the {one} controller cannot be handed on: cgroup v2 allows that only in a cgroup without processes of \
                 its own"
            )),
            e => explain(&format!("handing {one} on"), FILE, e),
        })?;
    }
    Ok(())
}

/// Makes a directory; `None` when it exists.
fn make_dir(parent: BorrowedFd<'_>, name: &str, mode: Mode) -> Result<Option<OwnedFd>> {
    match mkdirat(parent, name, mode) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            return match open_beneath(parent, name)? {
                Some(_) => Ok(None),
                None => Err(Error::invalid_argument(format!(
                    "cgroup {name:?}: a control file has that name; choose another"
                ))),
            };
        }
        Err(Errno::ENOENT | Errno::ENODEV) => {
            return Err(Error::no_such_entity(format!("the cgroup in which to make {name:?} was removed")));
        }
        Err(e) => return Err(explain(&format!("making {name}"), "cgroup", e)),
    }
    open_beneath(parent, name)?.map(Some).ok_or_else(|| no_child(name))
}

/// Makes a node's directory in one further hierarchy, and the passages to it.
fn make_part(hierarchy: &Hierarchy, path: &[String]) -> Result<OwnedFd> {
    let base = hierarchy.base.as_fd();
    let (full, above) = (path.join("/"), path.get(..path.len().saturating_sub(1)).unwrap_or_default());
    let made = match make_dir(base, &full, MODE) {
        Err(e) if e.kind == Kind::NoSuchEntity => {
            make_passages(hierarchy, above)?;
            make_dir(base, &full, MODE)?
        }
        made => made?,
    };
    let dir = match made {
        Some(dir) => dir,
        None => {
            // The core has no node of that name: this was left by one that is gone.
            remove_dir(base, &full, Instant::now() + Duration::from_secs(1))?;
            make_dir(base, &full, MODE)?.ok_or_else(|| {
                Error::invalid_state(format!("cgroup {full:?} exists already in {}", hierarchy.name))
            })?
        }
    };
    inherit(hierarchy, above, &dir)?;
    Ok(dir)
}

fn make_passages(hierarchy: &Hierarchy, path: &[String]) -> Result<()> {
    for length in 1..=path.len() {
        let names = path.get(..length).unwrap_or_default();
        // One that exists is another's way as well.
        if let Some(dir) = make_dir(hierarchy.base.as_fd(), &names.join("/"), MODE | UNFINISHED)? {
            inherit(hierarchy, path.get(..length - 1).unwrap_or_default(), &dir)?;
        }
    }
    Ok(())
}

/// Gives a new v1 cpuset what the one at `above` has.
fn inherit(hierarchy: &Hierarchy, above: &[String], dir: &OwnedFd) -> Result<()> {
    if !hierarchy.has("cpuset") {
        return Ok(());
    }
    let opened;
    let parent = if above.is_empty() {
        hierarchy.base.as_fd()
    } else {
        let name = above.join("/");
        opened = open_beneath(hierarchy.base.as_fd(), &name)?.ok_or_else(|| no_child(&name))?;
        opened.as_fd()
    };
    cpu::fill_new_cpuset(&Dir(parent), &Dir(dir.as_fd()))
}

/// Removes a directory and all below it, waiting for processes that are ending. One that is not there is no error.
fn remove_dir(parent: BorrowedFd<'_>, name: &str, deadline: Instant) -> Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
        // Something is in it; or it is a control file, which nobody made.
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
        Err(Errno::ENOTDIR | Errno::EPERM) if open_beneath(parent, name)?.is_none() => return Ok(()),
        Err(e) => return Err(explain(&format!("removing {name}"), "cgroup", e)),
    }
    let mut pause = Duration::from_micros(50);
    while !remove_tree(parent, name)? {
        let Some(dir) = open_beneath(parent, name)? else { return Ok(()) };
        let left = control::glance(dir.as_fd(), deadline)?;
        if Instant::now() >= deadline {
            return Err(Error::invalid_state(format!(
                "cgroup {name} cannot be removed: processes {left:?} are in it; kill them first"
            )));
        }
        if left.is_empty() {
            // The kernel counts a dead process until its last moment on a CPU, and tells nobody when that was.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
    Ok(())
}
