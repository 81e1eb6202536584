//! Images of filesystems alone, as the loader coordinates them: who may, who stands still how long, who waits. The work is
//! a worker's ([`crate::checkpoint::filesystems`]).
#![forbid(unsafe_code)]

use super::checkpoint::{CHECKPOINTED, Kind, Notice};
use super::{Loader, Wait, Working};
use crate::checkpoint::filesystems::{Place, Wanted};
use crate::container::{Container, Process, State, lock};
use crate::worker::{Captured, RestoreFilesystems, SaveFilesystems};
use airlock_wire::binary;
use airlock_wire::error::{Error, Result};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

/// Left free of what may be used to let containers go on early, bytes.
const RESERVE: u64 = 32 << 20;

/// Everything about images of filesystems that outlives a call.
#[derive(Debug, Default)]
pub(super) struct Filesystems {
    /// Who waits for the next one to be saved.
    waiting: Mutex<Vec<Weak<Notice>>>,
    /// Restores by container ID.
    restored: Mutex<HashMap<String, Arc<Notice>>>,
}

/// A filesystem checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FsSaved {
    /// What was saved.
    pub captured: Captured,
    /// How long the containers stood still, microseconds.
    pub pause_us: u64,
}

impl Loader {
    /// Saves filesystems of the containers that run into two files, manifest and trees. The containers stand still until all
    /// is captured: in memory if there is enough of it, else in the files. With `exit` they do not go on, and the sandbox
    /// ends with status 0. Blocks until the files are complete, or `wait` fails.
    ///
    /// # Errors
    /// `no checkpointable filesystems`; what cannot be read or written. The containers go on.
    pub fn save_filesystems(
        &self,
        wanted: Vec<Wanted>,
        files: [OwnedFd; 2],
        exit: bool,
        wait: Wait<'_>,
    ) -> Result<FsSaved> {
        let _busy = self.work.begin(Kind::Filesystems)?;
        let saved = self.save_and_resume(wanted, &files, exit, wait);
        let outcome = saved.as_ref().map(drop).map_err(Clone::clone);
        for waiting in lock(&self.filesystems.waiting).drain(..).filter_map(|w| w.upgrade()) {
            waiting.set(outcome.clone());
        }
        saved
    }

    fn save_and_resume(
        &self,
        wanted: Vec<Wanted>,
        files: &[OwnedFd; 2],
        exit: bool,
        wait: Wait<'_>,
    ) -> Result<FsSaved> {
        let containers = self.with_filesystems();
        let places = self.places(containers.iter().map(|(c, _)| c));
        let mut fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        for (container, init) in &containers {
            fds.push(init.pidfd());
            fds.extend(container.layers.get().into_iter().flatten().map(|layer| layer.fd.as_fd()));
        }
        let room = if exit { 0 } else { self.room() };
        self.pause()?;
        let since = Instant::now();
        let task = SaveFilesystems { places, wanted, room };
        let captured = self.work_while(task, &fds, wait);
        let pause_us = since.elapsed().as_micros() as u64;
        let outcome = match captured {
            Ok((captured, _, working)) => {
                if !exit {
                    self.resume()?;
                }
                finish(&working, wait).map(|()| FsSaved { captured, pause_us })
            }
            Err(e) => {
                self.resume()?;
                return Err(e);
            }
        };
        if exit {
            if outcome.is_ok() {
                end(&containers);
            }
            // Whoever was killed while frozen dies now.
            self.resume()?;
        }
        outcome
    }

    /// Containers with an init that has not ended, the root container first.
    fn with_filesystems(&self) -> Vec<(Arc<Container>, Arc<Process>)> {
        let mut all: Vec<_> = self
            .containers()
            .into_iter()
            .filter(|c| c.state().runs())
            .filter_map(|c| c.init().filter(|init| init.status().is_none()).map(|init| (c, init)))
            .collect();
        all.sort_by_key(|(container, _)| !container.root);
        all
    }

    fn places<'a>(&self, containers: impl Iterator<Item = &'a Arc<Container>> + Clone) -> Vec<Place> {
        let names = super::checkpoint::names(containers.clone().map(|c| c.name_annotation()));
        containers.zip(names).map(|(container, name)| place(container, name)).collect()
    }

    /// How much memory may be used for a while: half of what the machine and the sandbox's cgroup have left.
    fn room(&self) -> u64 {
        let meminfo = self.config.procfs.read_path("meminfo").unwrap_or_default();
        let available = meminfo
            .lines()
            .find_map(|line| {
                line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.trim().parse().ok()
            })
            .map_or(0, |kib: u64| kib << 10);
        let stats = self.root().ok().and_then(|root| root.cgroup.get().and_then(|c| c.stats().ok()));
        let in_cgroup = stats.map_or(u64::MAX, |s| match s.memory.usage.limit {
            0 => u64::MAX,
            limit => limit.saturating_sub(s.memory.usage.usage),
        });
        (available.min(in_cgroup) / 2).saturating_sub(RESERVE)
    }

    /// The next filesystem checkpoint's end: whichever finishes next from now on, well or not.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn next_filesystems(&self) -> Result<Arc<Notice>> {
        let notice = Arc::new(Notice::new()?);
        let mut waiting = lock(&self.filesystems.waiting);
        waiting.retain(|w| w.strong_count() > 0);
        waiting.push(Arc::downgrade(&notice));
        Ok(notice)
    }

    /// Makes filesystems of container `cid`, which is created and not started, what an image says: manifest and trees.
    /// Answers what could not be made the same. Blocks until that is done.
    ///
    /// # Errors
    /// It has been started; the image is damaged or has nothing for it.
    pub fn restore_filesystems(&self, cid: &str, files: [OwnedFd; 2]) -> Result<Vec<String>> {
        let container = self.container(cid)?;
        let init = match (container.state(), container.init()) {
            (State::Created, Some(init)) => init,
            (state, _) => {
                return Err(Error::invalid_state(format!(
                    "filesystems are restored before a container starts: container {cid:?} is {}",
                    state.name()
                )));
            }
        };
        let notice = Arc::new(Notice::new()?);
        lock(&self.filesystems.restored).insert(cid.to_owned(), notice.clone());
        let name = container.name_annotation().unwrap_or("__no_name_0").to_owned();
        let task = RestoreFilesystems(place(&container, name));
        let [manifest, trees] = &files;
        let restored = self.work(task, &[manifest.as_fd(), trees.as_fd(), init.pidfd()]);
        notice.set(restored.as_ref().map(drop).map_err(Clone::clone));
        restored.map(|(warnings, ..)| warnings)
    }

    /// The end of the restore of a container's filesystems.
    ///
    /// # Errors
    /// gVisor's `filesystem restore is not enabled` and `no filesystems restored for container X`.
    pub fn filesystems_restored(&self, cid: &str) -> Result<Arc<Notice>> {
        let restored = lock(&self.filesystems.restored);
        if restored.is_empty() {
            return Err(Error::invalid_state("filesystem restore is not enabled"));
        }
        restored
            .get(cid)
            .cloned()
            .ok_or_else(|| Error::no_such_entity(format!("no filesystems restored for container {cid}")))
    }
}

fn place(container: &Container, name: String) -> Place {
    let layers = container.layers.get().into_iter().flatten();
    Place {
        cid: container.cid.clone(),
        name,
        spec: container.spec_text.get().cloned().unwrap_or_default(),
        upper: layers.map(|layer| (layer.place.clone(), layer.on_disk)).collect(),
    }
}

/// Waits for a worker's second answer.
fn finish(working: &Working, wait: Wait<'_>) -> Result<()> {
    let waited = wait(working.channel.as_fd());
    if waited.is_err()
        && let Some(process) = &working.process
    {
        let _ = process.signal(libc::SIGKILL);
    }
    waited?;
    binary::recv::<Result<()>>(&working.channel)?.0
}

/// Kills containers that live on in an image: they have ended with status 0.
fn end(containers: &[(Arc<Container>, Arc<Process>)]) {
    for (container, init) in containers {
        CHECKPOINTED.clone_into(&mut lock(&container.life).reason);
        let _ = init.signal(libc::SIGKILL);
        if let Some(cgroup) = container.cgroup.get() {
            let _ = cgroup.kill();
        }
    }
}
