//! Killing everything in a node.
#![forbid(unsafe_code)]

use super::Node;
use crate::cgroup::control;
use airlock_wire::error::{Error, Result};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

impl Node {
    /// Kills all processes in the node and below with SIGKILL, and returns when they are gone. A v1 node can have threads
    /// of processes that are elsewhere (visitor threads): their processes are killed when all others have ended. A frozen
    /// node is thawed, as the killed could not die otherwise. None can fork its way out.
    ///
    /// # Errors
    /// [`airlock_wire::error::Kind::Permission`] when a process may not be killed;
    /// [`airlock_wire::error::Kind::InvalidState`] naming those that are not gone by `deadline`: one is in an
    /// uninterruptible sleep, or a tracer holds it.
    pub fn kill(&self, deadline: Instant) -> Result<()> {
        if !self.v2() {
            self.kill_residents(deadline)?;
        }
        let mut pause = Duration::from_micros(50);
        loop {
            let strays = self.strays()?;
            if self.threads_below()?.is_empty() && strays.is_empty() {
                return Ok(());
            }
            control::kill(self.core_dir(), self.v2())?;
            control::kill_each(&strays)?;
            let mut left = control::glance(self.core_dir(), deadline)?;
            if left.is_empty() && !strays.is_empty() {
                control::wait_for(&strays, deadline)?;
                left = self.strays()?;
            }
            if Instant::now() >= deadline {
                return Err(Error::invalid_state(format!(
                    "processes {left:?} were killed and have not ended yet: they are in an uninterruptible sleep \
                     (state D) or held by a tracer"
                )));
            }
            if left.is_empty() {
                // Of threads whose process has ended the kernel tells nobody when they have.
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(5));
            }
        }
    }

    /// Processes that somebody has moved out of the core hierarchy alone.
    fn strays(&self) -> Result<Vec<i32>> {
        let mut all = Vec::new();
        for dir in self.others()?.iter().filter_map(|p| p.here.as_ref()) {
            all.extend(control::processes(dir.as_fd())?);
        }
        Ok(control::sorted(all))
    }

    /// Kills the processes whose leader is in the node while there are visitors, too, and waits for them.
    fn kill_residents(&self, deadline: Instant) -> Result<()> {
        loop {
            let (pids, tids) = (self.processes_below()?, self.threads_below()?);
            let residents: Vec<i32> =
                pids.iter().copied().filter(|p| tids.binary_search(p).is_ok()).collect();
            if residents.is_empty() || residents.len() == pids.len() || Instant::now() >= deadline {
                // No visitors, or nobody but them: all are killed at once.
                return Ok(());
            }
            // While they are frozen none has children that this would miss.
            let froze = control::freeze(self.core_dir(), false, true);
            let killed = control::kill_each(&residents);
            control::thaw_below(self.core_dir(), false)?;
            killed?;
            if let Err(e) = froze {
                log::debug!("killing without a freeze: {e}");
            }
            control::wait_for(&residents, deadline)?;
        }
    }
}
