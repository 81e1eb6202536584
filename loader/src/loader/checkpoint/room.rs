//! Room below `pids.max` for the work itself.
//!
//! The agent is in the root container's cgroup, and shadows are in those of their processes: a container that has filled
//! its limit leaves them no pid. So limits are raised, while nobody else can use what that gives, until the agent is gone.
#![forbid(unsafe_code)]

use crate::container::Container;
use airlock_wire::error::Result;
use std::sync::Arc;

const PIDS: &str = "pids";
const LIMIT: &str = "pids.max";
/// The agent's threads.
const THREADS: u64 = 64;

/// Limits that are higher than they should be. They are lowered when this is dropped.
#[derive(Default)]
pub(super) struct Room(Vec<Raised>);

struct Raised {
    container: Arc<Container>,
    before: u64,
    now: u64,
}

impl Room {
    /// Calls `fork`, and if the root container has no pid left for it, once more when it has; the container, which runs, is
    /// frozen meanwhile.
    ///
    /// # Errors
    /// What `fork` answers.
    pub fn for_agent<T>(&mut self, root: &Arc<Container>, fork: impl Fn() -> Result<T>) -> Result<T> {
        let first = fork();
        let Some(cgroup) = root.cgroup.get().filter(|_| first.is_err() && read(root, LIMIT).is_some()) else {
            return first;
        };
        let running = cgroup.frozen().is_ok_and(|frozen| !frozen);
        if running {
            cgroup.freeze(true)?;
        }
        self.raise(root, 1);
        let second = fork();
        if running {
            cgroup.freeze(false)?;
        }
        second
    }

    /// Makes room in containers that stand still. Where that cannot be done, the work says what it lacks.
    pub fn make(&mut self, containers: &[Arc<Container>]) {
        for container in containers {
            self.raise(container, THREADS.saturating_add(read(container, "pids.current").unwrap_or(0)));
        }
    }

    fn raise(&mut self, container: &Arc<Container>, by: u64) {
        let Some(before) = read(container, LIMIT) else { return };
        let now = before.saturating_add(by);
        if write(container, now) {
            self.0.push(Raised { container: container.clone(), before, now });
        }
    }
}

/// A number; none where there is no limit.
fn read(container: &Container, file: &str) -> Option<u64> {
    container.cgroup.get()?.read(PIDS, "", file).ok()?.trim().parse().ok()
}

fn write(container: &Container, limit: u64) -> bool {
    container.cgroup.get().is_some_and(|c| c.write(PIDS, "", LIMIT, &limit.to_string()).is_ok())
}

impl Drop for Room {
    fn drop(&mut self) {
        // A cgroup may have been raised more than once.
        for raised in self.0.iter().rev() {
            // Somebody may have set another limit meanwhile.
            if read(&raised.container, LIMIT) == Some(raised.now) && !write(&raised.container, raised.before)
            {
                log::warn!("container {:?}: {LIMIT} stays at {}", raised.container.cid, raised.now);
            }
        }
    }
}
