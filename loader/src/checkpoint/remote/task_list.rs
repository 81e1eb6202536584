//! All threads of a set of processes, found and stopped.
#![forbid(unsafe_code)]

use super::{Options, Seizing, Tracee, procfs, stop};
use crate::procfs::ProcFs;
use crate::sys::ptrace;
use airlock_wire::error::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What [`seize_all`] found.
#[derive(Debug, Default)]
pub struct Stopped {
    /// Every thread, stopped, ascending by process and thread.
    pub threads: Vec<(i32, Tracee)>,
    /// Threads that have ended and were not waited for, as (process, thread): zombies, and leaders whose other threads
    /// live on.
    pub zombies: Vec<(i32, i32)>,
    /// Threads that could not be stopped, as (process, thread), and why.
    pub failed: Vec<(i32, i32, Error)>,
}

/// Processes of `proc`'s pid namespace that are or descend from one of `inits`, ascending; zombies too.
///
/// # Errors
/// When the procfs cannot be read, or processes come and go faster than they can be listed.
pub fn below(proc: &ProcFs, inits: &[i32]) -> Result<Vec<i32>> {
    const TRIES: usize = 1000;
    'again: for _ in 0..TRIES {
        let mut parents = BTreeMap::new();
        for pid in proc.pids()? {
            // One that ended since the list was read may have made another one since.
            let Ok(stat) = proc.stat(pid) else { continue 'again };
            parents.insert(pid, stat.ppid);
        }
        let mut found = BTreeSet::new();
        for pid in parents.keys() {
            let mut at = *pid;
            // As many steps as there are processes: a ring cannot be, unless numbers were reused in between.
            for _ in 0..=parents.len() {
                if inits.contains(&at) {
                    found.insert(*pid);
                    break;
                }
                match parents.get(&at) {
                    // Outside of the namespace, or the parent of PID 1.
                    Some(0) => break,
                    Some(parent) => at = *parent,
                    // Its parent ended between two reads, and it has another one now.
                    None => continue 'again,
                }
            }
        }
        return Ok(found.into_iter().collect());
    }
    Err(Error::failure(format!(
        "list the processes: they come and go too fast ({TRIES} attempts); pause the container first"
    )))
}

/// Stops all threads of the processes that `pids` lists, and those that they make meanwhile: until a look at all of them
/// finds nothing that is not stopped. All are told to stop before any is waited for. `begun` is called when all threads
/// of the first look have been told: the moment to thaw a frozen (v1 cgroup freezer) container, whose threads stop then
/// before they run any code of their own.
///
/// # Errors
/// When the processes cannot be listed or `begun` fails; what was stopped is let go. Threads that cannot be stopped by
/// `deadline` are in [`Stopped::failed`].
pub fn seize_all(
    proc: &ProcFs,
    pids: impl Fn() -> Result<Vec<i32>>,
    options: Options,
    deadline: Instant,
    begun: impl FnOnce() -> Result<()>,
) -> Result<Stopped> {
    let mut stopped = Stopped::default();
    let mut seen = BTreeSet::new();
    let (mut zombies, mut gone) = (BTreeSet::new(), BTreeSet::new());
    let mut begun = Some(begun);
    loop {
        let mut waiting: Vec<(i32, Seizing)> = Vec::new();
        // Whether this look found anything that may have run since the lists were read, and made a task then.
        let mut moved = false;
        for pid in pids()? {
            let Ok(tids) = proc.threads(pid) else {
                moved |= gone.insert(pid);
                continue;
            };
            for tid in tids {
                if seen.contains(&tid) {
                    continue;
                }
                match Tracee::seize_begin(tid, options) {
                    Ok(seizing) => {
                        seen.insert(tid);
                        gone.remove(&tid);
                        waiting.push((pid, seizing));
                    }
                    Err(e) if e.kind == Kind::NoSuchEntity => moved |= gone.insert(tid),
                    Err(_) if matches!(procfs::state(tid), Some('Z' | 'X') | None) => {
                        moved |= zombies.insert((pid, tid));
                    }
                    Err(e) => {
                        seen.insert(tid);
                        stopped.failed.push((pid, tid, e));
                    }
                }
            }
        }
        moved |= !waiting.is_empty();
        if let Some(begun) = begun.take() {
            begun()?;
        }
        for (pid, mut seizing) in waiting {
            match seizing.wait(deadline) {
                Ok(tracee) => stopped.threads.push((pid, tracee)),
                Err(e) if e.kind == Kind::NoSuchEntity => {
                    // It ended; should it be a zombie, the next look tells. Its number may be used again.
                    seen.remove(&seizing.tid());
                }
                Err(e) => stopped.failed.push((pid, seizing.tid(), e)),
            }
        }
        if !moved {
            break;
        }
        if Instant::now() >= deadline {
            let text = "stop the processes: they come and go too fast; pause the container first";
            return Err(Error::new(Kind::Timeout, text));
        }
    }
    stopped.threads.sort_by_key(|(pid, t)| (*pid, t.tid()));
    // A zombie may have been reaped by its parent since.
    stopped.zombies = zombies.into_iter().filter(|(_, tid)| procfs::state(*tid) == Some('Z')).collect();
    Ok(stopped)
}

/// Kills the processes of all these threads and waits until they are gone (or are zombies that their own parents have
/// not waited for), at most `timeout`.
///
/// # Errors
/// `Timeout`, naming a thread that would not die.
pub fn kill_all(threads: impl IntoIterator<Item = Tracee>, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let mut left: Vec<i32> = Vec::new();
    for mut t in threads {
        t.over = true;
        // The first kill of a process ends all of its threads; the rest fail, which is fine.
        let _ = ptrace::signal_thread(t.tid, libc::SIGKILL);
        left.push(t.tid);
    }
    // A leader is reported when its other threads have been waited for, so they come first.
    left.reverse();
    for tid in left {
        loop {
            match stop::next(tid, Some(deadline)) {
                Ok(None) => {
                    let text = format!("kill {}: it has not ended in {timeout:?}", procfs::describe(tid));
                    return Err(Error::new(Kind::Timeout, text));
                }
                Ok(Some(ptrace::Change::Ended(_))) | Err(_) => break,
                Ok(Some(_)) => {}
            }
        }
    }
    Ok(())
}
