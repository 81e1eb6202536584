//! Which pid namespace a caller means who names that of a container of ours.

#![forbid(unsafe_code)]

use crate::state::StateDir;
use airlock_wire::api::boot::Namespace;
use airlock_wire::error::{Error, Result};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// Callers name a container's pid namespace by its OCI pid, `/proc/<pid>/ns/pid`. With us that is the sandbox's, which has
/// loader and spawner in it, for others to see and to kill; the container's own is nested in it. So whoever joins the
/// former gets the latter.
///
/// # Errors
/// A descriptor that cannot be looked at. What is no sandbox of `dir` stays as it is.
pub(super) fn prefer_containers(dir: &StateDir, join: &mut [(Namespace, OwnedFd)]) -> Result<()> {
    for (_, fd) in join.iter_mut().filter(|(kind, _)| *kind == Namespace::Pid) {
        let wanted = identity(&format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .ok_or_else(|| Error::failure("cannot look at a pid namespace that is to be joined"))?;
        if identity("/proc/self/ns/pid") == Some(wanted) {
            continue;
        }
        for id in dir.list()? {
            // One that is being made or deleted now is none that the caller can mean.
            let Ok(state) = dir.load(&id) else { continue };
            let its = format!("/proc/{}/ns/pid", state.loader.pid);
            if state.is_subcontainer() || !state.loader.is_alive() || identity(&its) != Some(wanted) {
                continue;
            }
            let first = state.cgroup.procs()?.into_iter().find(|pid| is_nested_init(*pid));
            if let Some(init) = first
                && let Ok(namespace) = File::open(format!("/proc/{init}/ns/pid"))
            {
                *fd = namespace.into();
            }
            break;
        }
    }
    Ok(())
}

/// Device and inode of a file, which a namespace has as well.
fn identity(path: &str) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Whether a process is the first one of its pid namespace.
fn is_nested_init(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().next_back() == Some("1"))
}
