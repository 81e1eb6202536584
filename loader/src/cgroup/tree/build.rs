//! Making and removing nodes.
#![forbid(unsafe_code)]

use super::{MAX_DEPTH, Node, Part, UNFINISHED, check_name, no_child, open_beneath, sticky};
use crate::cgroup::files::{Dir, Files, explain};
use crate::cgroup::{control, remove_tree, resources::cpu};
use airlock_wire::error::{Error, Result};
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
        self.clear_remains(name)?;
        let core = make_dir(self.core_dir(), name, MODE | UNFINISHED)?
            .ok_or_else(|| Error::invalid_state(format!("cgroup {name:?} exists already")))?;
        let mut node = Self { parts: self.parts.clone(), path: self.path.clone() };
        node.path.push(name.to_owned());
        let core = Arc::new(core);
        // From here on dropping it removes it all.
        let mut making = Making { node, parent: self.clone(), kept: false };
        for (index, (part, above)) in making.node.parts.iter_mut().zip(&self.parts).enumerate() {
            let wanted = !part.v2 && controllers.iter().any(|c| part.has(c));
            part.here = if index == 0 {
                Some(core.clone())
            } else if wanted {
                Some(Arc::new(make_part(above, &self.path, name)?))
            } else {
                None
            };
            if let Some(here) = &part.here {
                part.joined = here.clone();
            }
        }
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
        let mut dir = self.core().base.clone();
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
        self.child(name)?;
        self.remove_by(name, deadline)
    }

    fn remove_by(&self, name: &str, deadline: Instant) -> Result<()> {
        check_name(name)?;
        for part in self.parts.iter().rev() {
            if let Some(parent) = &part.here {
                remove_dir(parent.as_fd(), name, deadline)?;
            }
        }
        Ok(())
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
fn make_part(above: &Part, path: &[String], name: &str) -> Result<OwnedFd> {
    let parent = match &above.here {
        Some(here) => here.clone(),
        None => Arc::new(make_passages(above, path)?),
    };
    let dir = match make_dir(parent.as_fd(), name, MODE)? {
        Some(dir) => dir,
        None => {
            // The core has no node of that name: this was left by one that is gone.
            remove_dir(parent.as_fd(), name, Instant::now() + Duration::from_secs(1))?;
            make_dir(parent.as_fd(), name, MODE)?.ok_or_else(|| {
                Error::invalid_state(format!("cgroup {name:?} exists already in {}", above.name))
            })?
        }
    };
    inherit(above, parent.as_fd(), dir.as_fd())?;
    Ok(dir)
}

fn make_passages(above: &Part, path: &[String]) -> Result<OwnedFd> {
    let mut dir = above.base.try_clone()?;
    for name in path {
        let next = match open_beneath(dir.as_fd(), name)? {
            Some(next) => next,
            None => match make_dir(dir.as_fd(), name, MODE | UNFINISHED)? {
                Some(next) => {
                    inherit(above, dir.as_fd(), next.as_fd())?;
                    next
                }
                // Made by another node's child meanwhile.
                None => open_beneath(dir.as_fd(), name)?.ok_or_else(|| no_child(name))?,
            },
        };
        dir = next;
    }
    Ok(dir)
}

fn inherit(part: &Part, parent: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Result<()> {
    if part.has("cpuset") { cpu::inherit_cpuset(&Dir(parent), &Dir(dir)) } else { Ok(()) }
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
