//! Counting what must not grow.
use std::path::Path;

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
