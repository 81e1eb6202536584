//! `fork`: further sandboxes that begin where one is now.

#![forbid(unsafe_code)]

use super::checkpoint::{checkpoint_into, running};
use super::image::Image;
use super::restore::Memory;
use super::start::run_poststart;
use super::{CreateOptions, create, purge};
use crate::podspec::Bundle;
use crate::state::{State, StateDir, check_id};
use crate::supervisor::Supervisor;
use airlock_wire::error::{Error, Result};
use memfd::{FileSeal, Memfd, MemfdOptions};
use serde_json::Value;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How sandboxes are forked.
#[derive(Debug, Clone, Copy, Default)]
pub struct ForkOptions {
    /// How many; 0 and 1: one.
    pub count: u32,
    /// Cgroups are named as systemd does.
    pub systemd_cgroup: bool,
    /// When their memory comes. On demand they share what none of them touches.
    pub memory: Memory,
}

/// The most sandboxes that one call makes.
const MAX_COUNT: u32 = 10_000;

/// Makes new sandboxes of the state that the sandbox of container `id` is in, which goes on (or stays paused). One is
/// called `new_id`, several `new_id-1`, `new_id-2` and so on. The image is kept in memory and shared.
///
/// `create` gives the options of each; its `restore` and `autostart` are set here.
///
/// # Errors
/// `container does not exist`; it is not running, or has further containers in its sandbox, or domains that run; an id is taken;
/// what cannot be saved. Of the new sandboxes none is left then.
pub fn fork(
    dir: &StateDir,
    id: &str,
    new_id: &str,
    options: ForkOptions,
    options_of: impl Fn(&str) -> Result<CreateOptions> + Sync,
) -> Result<Vec<State>> {
    let ids: Vec<String> = match options.count {
        0 | 1 => vec![new_id.to_owned()],
        n @ ..=MAX_COUNT => (1..=n).map(|i| format!("{new_id}-{i}")).collect(),
        n => return Err(Error::invalid_argument(format!("{n} forks at once: at most {MAX_COUNT}"))),
    };
    for new in &ids {
        check_id(new)?;
        if dir.exists(new) {
            return Err(Error::invalid_state(format!("container with given ID already exists: {new}")));
        }
    }
    let state = running(dir, id)?;
    let further = |other: &String| dir.load(other).is_ok_and(|s| s.is_subcontainer() && s.sandbox_id == id);
    if let Some(other) = dir.list()?.iter().find(|other| further(other)) {
        return Err(Error::unsupported(format!(
            "fork: sandbox {id} has further containers ({other}): checkpoint it and restore its containers one by one"
        )));
    }
    let domains = Supervisor::new(dir, id)?.domains()?;
    if let Some(domain) = domains.iter().find(|domain| !domain.cid.is_empty()) {
        return Err(Error::unsupported(format!(
            "fork: sandbox {id} has a domain that runs ({:?}), which each fork would have to define: checkpoint it and restore \
             it, or stop the domain first",
            domain.domain
        )));
    }
    let config = dir.config(id)?;
    let files = MemoryImage::new()?;
    let fds = files.0.iter().map(|f| f.as_file().as_fd()).collect::<Vec<_>>();
    checkpoint_into(dir, &state, &fds).map_err(|e| e.context(format!("fork container {id}")))?;
    drop(fds);
    files.seal();
    let one = |new: &String| -> Result<State> {
        let text = config_of_fork(&config, new, options.systemd_cgroup)?;
        let bundle = Bundle::from_text(state.bundle.clone(), text)?;
        let create_options = CreateOptions {
            image: Some((files.open()?, options.memory)),
            autostart: true,
            overlay: state.overlay.clone(),
            systemd_cgroup: options.systemd_cgroup,
            ..options_of(new)?
        };
        let created = create(dir, new, &bundle, create_options)?;
        run_poststart(dir, &created.state).inspect_err(|_| undo(dir, &created.state))?;
        Ok(created.state)
    };
    let outcome = each(&ids, |new| one(new).map_err(|e| e.context(format!("fork container {id} as {new}"))));
    outcome.map_err(|(made, e)| {
        made.iter().for_each(|state| undo(dir, state));
        e
    })
}

/// Does `work` for each of `items` on several threads: most of the time of making a sandbox is waiting for other processes.
/// Begins no more after a failure, and gives what was made beside it.
fn each<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> std::result::Result<Vec<R>, (Vec<R>, Error)> {
    const MOST: usize = 8;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let run = || {
        let mut made = Vec::new();
        while lock(&failure).is_none() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { break };
            match work(item) {
                Ok(one) => made.push((number, one)),
                Err(e) => drop(lock(&failure).get_or_insert(e)),
            }
        }
        made
    };
    let mut made = std::thread::scope(|scope| {
        let more = cores.min(MOST).min(items.len()).saturating_sub(1);
        // A thread that cannot be started is one less.
        let others: Vec<_> =
            (0..more).filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, run).ok()).collect();
        let mut made = run();
        for other in others {
            made.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        made
    });
    made.sort_unstable_by_key(|(number, _)| *number);
    let made = made.into_iter().map(|(_, one)| one).collect();
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err((made, e)),
        None => Ok(made),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn undo(dir: &StateDir, state: &State) {
    if let Err(e) = purge(dir, state, true) {
        log::warn!("undo the fork {}: {e}", state.id);
    }
}

/// An image in memory: statefile, pages' metadata, pages.
struct MemoryImage([Memfd; 3]);

impl MemoryImage {
    fn new() -> Result<Self> {
        let make = |name: &str| {
            MemfdOptions::new()
                .allow_sealing(true)
                .close_on_exec(true)
                .create(name)
                .map_err(|e| Error::failure(format!("make a file in memory: {e}")))
        };
        Ok(Self([make("checkpoint.img")?, make("pages_meta.img")?, make("pages.img")?]))
    }

    /// What several sandboxes map, none of them can change.
    fn seal(&self) {
        for file in &self.0 {
            let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealWrite, FileSeal::SealSeal];
            if let Err(e) = file.add_seals(&seals) {
                log::debug!("seal the image of a fork: {e}");
            }
        }
    }

    fn open(&self) -> Result<Image> {
        let clone = |file: &Memfd| -> Result<OwnedFd> { Ok(file.as_file().try_clone()?.into()) };
        let [statefile, meta, pages] = &self.0;
        Ok(Image {
            statefile: clone(statefile)?,
            pages: Some([clone(meta)?, clone(pages)?]),
            parents: Vec::new(),
            working_set: None,
        })
    }
}

/// The configuration of a fork: as that of the container, in a cgroup of its own beside that one's.
fn config_of_fork(config: &str, id: &str, systemd: bool) -> Result<String> {
    let bad = |e: serde_json::Error| Error::failure(format!("read the container's configuration: {e}"));
    let mut tree: Value = serde_json::from_str(config).map_err(bad)?;
    if let Some(path) = tree.pointer_mut("/linux/cgroupsPath")
        && let Some(old) = path.as_str().filter(|p| !p.is_empty())
    {
        *path = Value::String(beside(old, id, systemd));
    }
    serde_json::to_string(&tree).map_err(bad)
}

/// `id`'s cgroup path beside `old`.
pub(crate) fn beside(old: &str, id: &str, systemd: bool) -> String {
    if systemd {
        let mut parts: Vec<&str> = old.split(':').collect();
        if let Some(name) = parts.last_mut() {
            *name = id;
        }
        return parts.join(":");
    }
    let old = Path::new(old);
    let parent: PathBuf = match old.components().next_back() {
        Some(Component::Normal(_)) => old.parent().unwrap_or(Path::new("")).to_owned(),
        _ => old.to_owned(),
    };
    parent.join(id).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_has_a_cgroup_of_its_own() {
        assert_eq!(beside("/a/b", "n", false), "/a/n");
        assert_eq!(beside("b", "n", false), "n");
        assert_eq!(beside("/b", "n", false), "/n");
        assert_eq!(beside("/", "n", false), "/n");
        assert_eq!(beside("s.slice:p:b", "n", true), "s.slice:p:n");
        let config = r#"{"a":1,"linux":{"cgroupsPath":"/x/y"}}"#;
        let text = config_of_fork(config, "n", false).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["linux"]["cgroupsPath"], "/x/n");
        let without = r#"{"linux":{}}"#;
        assert_eq!(config_of_fork(without, "n", false).unwrap(), without);
    }

    #[test]
    fn what_was_made_beside_a_failure_is_told_of() {
        let items: Vec<u32> = (0..100).collect();
        assert_eq!(each(&items, |n| Ok(n * 2)).unwrap(), items.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert!(each(&[], |n: &u32| Ok(*n)).unwrap().is_empty());
        let done = Mutex::new(Vec::new());
        let failed = each(&items, |n| {
            if *n == 40 {
                return Err(Error::failure("forty"));
            }
            lock(&done).push(*n);
            Ok(*n)
        });
        let (made, e) = failed.unwrap_err();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!((made, e.message.as_str()), (done.clone(), "forty"));
        assert!(done.starts_with(&items[..40]) && !done.contains(&40), "{done:?}");
    }

    #[test]
    fn an_image_in_memory_is_shared_and_sealed() {
        use std::io::{Read, Seek, Write};
        let image = MemoryImage::new().unwrap();
        image.0[2].as_file().write_all(b"pages").unwrap();
        image.seal();
        let opened = image.open().unwrap();
        let [_, pages] = opened.pages.unwrap();
        let mut file = std::fs::File::from(pages);
        assert!(file.write_all(b"x").is_err());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "pages");
    }
}
