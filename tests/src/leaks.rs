//! Counting what must not grow.
use std::path::Path;
use std::time::{Duration, Instant};

/// Open descriptors of a process, with their targets.
pub fn descriptors(pid: i32) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .filter_map(|e| {
            let e = e.ok()?;
            let target = std::fs::read_link(e.path()).ok()?;
            Some(format!("{} -> {}", e.file_name().to_string_lossy(), target.display()))
        })
        .collect();
    all.sort();
    all
}

/// Threads of a loader that serves nobody: the main one, and two that stand by for connections that get none.
pub const IDLE_THREADS: usize = 3;

pub fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Threads that wait in poll(2): a loader's main thread, and every handler whose call waits for something.
pub fn threads_polling(pid: i32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter(|t| std::fs::read_to_string(t.path().join("wchan")).is_ok_and(|w| w.contains("poll")))
        .count()
}

/// The descriptors of a loader once no client is connected: its threads wait for events and for each other, none for a
/// client. The connection of the command that made the sandbox may last a little longer than the command.
#[track_caller]
pub fn idle(loader: i32) -> usize {
    crate::wait::until("the loader is idle", || {
        let tasks = std::fs::read_dir(format!("/proc/{loader}/task")).ok()?;
        let waits: Vec<String> = tasks
            .flatten()
            .map(|t| std::fs::read_to_string(t.path().join("wchan")).unwrap_or_default())
            .collect();
        let standing_by = waits.iter().filter(|w| w.contains("futex")).count();
        // The main thread may still be putting away what ended, after those who waited for it have heard of it.
        let main_waits = waits.iter().any(|w| w.contains("poll"));
        let idle = waits.len() == IDLE_THREADS && standing_by == IDLE_THREADS - 1 && main_waits;
        idle.then(|| descriptors(loader).len())
    })
}

/// Waits until an idle loader has `before` descriptors again: it keeps two of each process whose end the spawner has not told
/// it of, which may come after the answer to whoever failed to execute it.
#[track_caller]
pub fn idle_as_before(loader: i32, before: usize) {
    crate::wait::until("the loader has as many descriptors as before", || {
        (idle(loader) == before).then_some(())
    });
}

/// Resident memory in KiB.
pub fn rss(pid: i32) -> u64 {
    status_number(pid, "VmRSS:")
}

fn status_number(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix(field))
        .and_then(|v| v.split_ascii_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// Cgroup directories with `name` anywhere in their path.
pub fn cgroups(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), name, 0, &mut found);
    found
}

fn walk(dir: &Path, name: &str, depth: usize, found: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if depth < 6 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path();
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(path.display().to_string());
            }
            walk(&path, name, depth + 1, found);
        }
    }
}

/// Processes of this machine whose command name is `comm`.
pub fn processes_named(comm: &str) -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == comm))
        .collect();
    found.sort_unstable();
    found
}

/// Living processes that have `text` in their command line; zombies have none.
pub fn processes_with(text: &str) -> Vec<String> {
    let me = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()) && *pid != me)
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(text).then(|| format!("{pid}: {line}"))
        })
        .collect()
}

/// Mounts of this mount namespace with `text` in their line.
pub fn mounts_with(text: &str) -> Vec<String> {
    let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|l| l.contains(text)).map(str::to_owned).collect()
}

/// Waits until nothing of container `id` is left: no process, cgroup, state or half-made state directory. Mounts and
/// what is in the state directory must be gone at once.
#[track_caller]
pub fn nothing_left(state: &crate::State, id: &str) {
    let in_state: Vec<_> = std::fs::read_dir(state.root())
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| name == id || name.starts_with('.'))
        .collect();
    assert!(in_state.is_empty(), "left in the state directory: {in_state:?}");
    assert_eq!(mounts_with(id), Vec::<String>::new());
    assert_eq!(mounts_with(&state.root().display().to_string()), Vec::<String>::new());
    // A process that is killed takes a moment to end, and its cgroup can be removed only then.
    let deadline = Instant::now() + crate::wait::LIMIT;
    loop {
        let mut left = processes_with(id);
        left.extend(cgroups(id));
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left of {id}: {left:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
