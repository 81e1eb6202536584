//! Lists, freezes and kills the processes of one cgroup and everything below it.
#![forbid(unsafe_code)]

use super::files::{Dir, Files, explain, set};
use crate::sys::process::pidfd_open;
use airlock_wire::error::{Error, Kind, Result};
use nix::dir::{Dir as ReadDir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{self, Signal};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long freezing may take. A process in an uninterruptible sleep freezes only when that sleep ends.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long thawed processes (v2) may take to leave the frozen state.
const THAW_TIMEOUT: Duration = Duration::from_secs(1);
/// The same when freezing only precedes a kill, which succeeds without it too.
const FREEZE_TO_KILL: Duration = Duration::from_millis(200);
/// A v1 freezer can miss a task that was just forked: it is asked again this often.
const FREEZE_AGAIN: Duration = Duration::from_millis(10);
/// How deep below a container's cgroup its own cgroups are followed.
const MAX_DEPTH: usize = 32;
/// Rounds of listing and killing, for kernels without `cgroup.kill` and for v1.
const KILL_ROUNDS: usize = 64;

/// The ids in `file` (`cgroup.procs`, `tasks`, `cgroup.threads`) of the cgroup and all below it, sorted, each
/// once. Processes that the reader's pid namespace does not show (id 0) are left out.
pub(super) fn ids(dir: BorrowedFd<'_>, file: &str) -> Result<Vec<i32>> {
    let mut all = Vec::new();
    walk(dir, 0, &mut |dir| ids_of(dir, file, &mut all))?;
    Ok(sorted(all))
}

/// Adds the ids in `file` of this cgroup alone to `all`; see [`ids`].
pub(super) fn ids_of(dir: BorrowedFd<'_>, file: &str, all: &mut Vec<i32>) -> Result<()> {
    match Dir(dir).read(file) {
        Ok(text) => {
            all.extend(text.lines().filter_map(|l| l.trim().parse::<i32>().ok()).filter(|p| *p > 0));
            Ok(())
        }
        // Gone meanwhile, or a threaded cgroup, whose processes its domain lists.
        Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(()),
        Err(e) => Err(explain(&format!("reading {file}"), file, e)),
    }
}

/// Ids in ascending order, each once.
pub(super) fn sorted(mut ids: Vec<i32>) -> Vec<i32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The ids of all processes in the cgroup and below, sorted, as the caller's pid namespace shows them.
///
/// # Errors
/// As reading control files; a removed cgroup is empty.
pub fn processes(dir: BorrowedFd<'_>) -> Result<Vec<i32>> {
    ids(dir, "cgroup.procs")
}

/// Calls `f` for the cgroup and then for every cgroup below it.
fn walk(dir: BorrowedFd<'_>, depth: usize, f: &mut dyn FnMut(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
    f(dir)?;
    for child in children(dir)? {
        if depth == MAX_DEPTH {
            return Err(Error::failure(format!(
                "cgroup: more than {MAX_DEPTH} levels below the container's"
            )));
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        match Dir(dir).open(&child, flags) {
            Ok(fd) => walk(fd.as_fd(), depth + 1, f)?,
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(explain(&format!("opening {child}"), "cgroup", e)),
        }
    }
    Ok(())
}

/// Names of the cgroups directly below. The link count of a cgroup tells without a listing that there are none.
///
/// # Errors
/// As opening and reading a directory.
pub fn children(dir: BorrowedFd<'_>) -> Result<Vec<String>> {
    let failed = |e| explain("listing a cgroup", "cgroup", e);
    if fstat(dir).map_err(failed)?.st_nlink <= 2 {
        return Ok(Vec::new());
    }
    let mut list = match ReadDir::openat(dir, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(list) => list,
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in list.iter() {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if entry.file_type() == Some(Type::Directory) && name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Whether the cgroup is frozen, of v1 (`freezer.state`) or with `v2` files.
///
/// # Errors
/// As reading control files.
pub fn is_frozen(dir: BorrowedFd<'_>, v2: bool) -> Result<bool> {
    frozen(dir, v2)
}

/// Freezes or thaws a cgroup of v1's freezer, or with `v2` files, and returns when all processes have stopped (or may
/// run).
///
/// # Errors
/// [`Kind::Failure`] when a process does not stop within 5 seconds; the cgroup is thawed then.
pub fn freeze(dir: BorrowedFd<'_>, v2: bool, on: bool) -> Result<()> {
    if on {
        return freeze_within(dir, v2, FREEZE_TIMEOUT);
    }
    thaw(dir, v2)?;
    if v2 {
        // Processes leave the frozen state one by one, and whoever looks meanwhile finds them frozen. Below a frozen
        // cgroup they stay so, which is none of our business.
        wait_event(dir, "frozen 0", Instant::now() + THAW_TIMEOUT)?;
    }
    Ok(())
}

/// Asks for a freeze without waiting for it: for processes that a tracer holds, which stop when it lets go of them.
///
/// # Errors
/// As writing control files.
pub(super) fn start_freezing(dir: BorrowedFd<'_>, v2: bool) -> Result<()> {
    if v2 { set(&Dir(dir), "cgroup.freeze", 1) } else { set(&Dir(dir), "freezer.state", "FROZEN") }
}

fn thaw(dir: BorrowedFd<'_>, v2: bool) -> Result<()> {
    if v2 { set(&Dir(dir), "cgroup.freeze", 0) } else { set(&Dir(dir), "freezer.state", "THAWED") }
}

fn freeze_within(dir: BorrowedFd<'_>, v2: bool, timeout: Duration) -> Result<()> {
    let frozen = if v2 {
        set(&Dir(dir), "cgroup.freeze", 1)?;
        wait_event(dir, "frozen 1", Instant::now() + timeout)
    } else {
        freeze_v1(dir, timeout)
    };
    match frozen {
        Ok(true) => Ok(()),
        Ok(false) => {
            thaw(dir, v2)?;
            Err(not_frozen(dir, timeout))
        }
        Err(e) => {
            // The first error is the one to tell.
            let _ = thaw(dir, v2);
            Err(e)
        }
    }
}

/// Whether all processes are frozen. v1: asked for and complete; v2: `frozen 1` in `cgroup.events`.
pub(super) fn frozen(dir: BorrowedFd<'_>, v2: bool) -> Result<bool> {
    let (file, yes) = if v2 { ("cgroup.events", "frozen 1") } else { ("freezer.state", "FROZEN") };
    match Dir(dir).read(file) {
        Ok(text) => Ok(text.lines().any(|l| l == yes)),
        // The root cgroup has no such file and cannot be frozen.
        Err(Errno::ENOENT) => Ok(false),
        Err(e) => Err(explain(&format!("reading {file}"), file, e)),
    }
}

/// Asks for the freeze and waits; false when `timeout` passed first.
fn freeze_v1(dir: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    let files = Dir(dir);
    set(&files, "freezer.state", "FROZEN")?;
    let started = Instant::now();
    let mut asked = started;
    let mut pause = Duration::from_micros(20);
    loop {
        let state = files.read("freezer.state");
        let state = state.map_err(|e| explain("reading freezer.state", "freezer.state", e))?;
        if state.trim() == "FROZEN" {
            return Ok(true);
        }
        if started.elapsed() > timeout {
            return Ok(false);
        }
        if asked.elapsed() > FREEZE_AGAIN {
            set(&files, "freezer.state", "FROZEN")?;
            asked = Instant::now();
        }
        // The v1 freezer has no event to wait for.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

fn not_frozen(dir: BorrowedFd<'_>, timeout: Duration) -> Error {
    let pids = ids(dir, "cgroup.procs").unwrap_or_default();
    Error::failure(format!(
        "cgroup: not frozen after {} ms, so it runs on: one of processes {pids:?} is in an uninterruptible sleep \
         (state D: waiting for a disk, a network file system or vfork); try again when it has finished",
        timeout.as_millis()
    ))
}

/// Waits until `cgroup.events` (v2) has the line `wanted`; false when `deadline` passed first.
///
/// # Errors
/// As reading the file; a cgroup that was removed meanwhile counts as reached.
pub fn wait_event(dir: BorrowedFd<'_>, wanted: &str, deadline: Instant) -> Result<bool> {
    let failed = |e| explain("reading cgroup.events", "cgroup.events", e);
    let events: OwnedFd = match Dir(dir).open("cgroup.events", OFlag::O_RDONLY) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(true),
        Err(e) => return Err(failed(e)),
    };
    let mut buffer = [0u8; 128];
    loop {
        let n = match nix::sys::uio::pread(&events, &mut buffer, 0) {
            Ok(n) => n,
            Err(Errno::ENODEV) => return Ok(true),
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(failed(e)),
        };
        let text = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default());
        if text.lines().any(|l| l == wanted) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Sends SIGKILL to every process of the cgroup and below; none can fork its way out. Does not wait for their
/// end. A frozen cgroup is thawed, as the killed could not die otherwise. The cgroup is one of v1's freezer, or has
/// `v2` files.
///
/// # Errors
/// [`Kind::Permission`] when a process may not be killed.
pub fn kill(dir: BorrowedFd<'_>, v2: bool) -> Result<()> {
    if v2 {
        match Dir(dir).write("cgroup.kill", "1") {
            Ok(()) => return Ok(()),
            // Linux before 5.14, or a threaded cgroup.
            Err(Errno::ENOENT | Errno::EOPNOTSUPP) => {}
            Err(e) => return Err(explain("writing \"1\" to cgroup.kill", "cgroup.kill", e)),
        }
    }
    // Frozen processes cannot fork or have their ids reused. When freezing fails, repeated rounds do as well.
    let froze = freeze_within(dir, v2, FREEZE_TO_KILL);
    let mut result = Ok(());
    for _ in 0..KILL_ROUNDS {
        let pids = ids(dir, "cgroup.procs")?;
        result = kill_each(&pids);
        if froze.is_ok() || pids.is_empty() || result.is_err() {
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    thaw_below(dir, v2)?;
    result
}

/// Sends SIGKILL to each of `pids`; those that are gone do not matter.
///
/// # Errors
/// [`Kind::Permission`] for the last one that may not be killed; the others are.
pub fn kill_each(pids: &[i32]) -> Result<()> {
    let mut result = Ok(());
    for pid in pids.iter().filter(|p| **p > 0) {
        match signal::kill(Pid::from_raw(*pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => {
                let kind = if e == Errno::EPERM { Kind::Permission } else { Kind::Failure };
                result = Err(Error::new(kind, format!("cgroup: killing process {pid}: {}", e.desc())));
            }
        }
    }
    result
}

/// How long to wait for one process before the cgroup is looked at again. A sandbox's spawner is in no cgroup any more
/// while it waits, as PID 1 of its namespace, until somebody has reaped the loader: it may not end for as long as it likes.
const GLANCE: Duration = Duration::from_millis(10);

/// Waits a moment for processes of the cgroup that are ending, `deadline` at most. Returns those that were there: none
/// also when the last have just ended.
///
/// # Errors
/// As reading control files and poll(2).
pub fn glance(dir: BorrowedFd<'_>, deadline: Instant) -> Result<Vec<i32>> {
    let pids = processes(dir)?;
    // The last one to end tells that it is worth another look; a few are as good as all.
    let pidfds: Vec<OwnedFd> = pids.iter().rev().take(64).filter_map(|pid| pidfd_open(*pid).ok()).collect();
    for pidfd in &pidfds {
        // Time to look again, whatever this one does.
        if !ended(pidfd.as_fd(), deadline.min(Instant::now() + GLANCE))? {
            break;
        }
    }
    // Those that cannot be opened have just ended.
    Ok(if pidfds.is_empty() { Vec::new() } else { pids })
}

/// Waits until all of these processes have ended, `deadline` at most.
pub(super) fn wait_for(pids: &[i32], deadline: Instant) -> Result<()> {
    for pid in pids {
        // Those that cannot be opened have ended.
        if let Ok(pidfd) = pidfd_open(*pid)
            && !ended(pidfd.as_fd(), deadline)?
        {
            break;
        }
    }
    Ok(())
}

/// Whether the process ends by `deadline`.
fn ended(pidfd: BorrowedFd<'_>, deadline: Instant) -> Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    match nix::poll::poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
        Ok(0) => Ok(false),
        Ok(_) | Err(Errno::EINTR) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Thaws the cgroup and every one below it (a container may have frozen its own).
pub(super) fn thaw_below(dir: BorrowedFd<'_>, v2: bool) -> Result<()> {
    walk(dir, 0, &mut |dir| match thaw(dir, v2) {
        // The hierarchy's root has no freezer files; a removed one needs no thaw.
        Err(e) if matches!(e.kind, Kind::Unsupported | Kind::NoSuchEntity) => Ok(()),
        other => other,
    })
}

/// The huge page sizes (`2MB`) for which `dir` has a file `hugetlb.<size><end>`.
pub(super) fn page_sizes(dir: BorrowedFd<'_>, end: &str) -> Result<Vec<String>> {
    let failed = |e| explain("listing a cgroup", "hugetlb", e);
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut list = ReadDir::openat(dir, ".", flags, Mode::empty()).map_err(failed)?;
    let mut sizes = Vec::new();
    for entry in list.iter() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_str().unwrap_or_default();
        let size = name.strip_prefix("hugetlb.").and_then(|n| n.strip_suffix(end));
        sizes.extend(size.filter(|s| !s.contains('.')).map(str::to_owned));
    }
    Ok(sizes)
}
