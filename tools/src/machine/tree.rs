//! The machine's hierarchies as the root of a tree of containers.

#![forbid(unsafe_code)]

use crate::cgroups::hierarchy::{self, parse_mountinfo};
use crate::cgroups::path::Location;
use airlock_loader::cgroup::UNIFIED;
use airlock_loader::cgroup::files::{Dir, explain};
use airlock_loader::cgroup::resources::cpu::inherit_cpuset;
use airlock_loader::cgroup::tree::{Node, check_name};
use airlock_wire::api::container::status::Code;
use airlock_wire::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_path, openat};
use nix::sys::stat::{Mode, mkdirat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

const DIRECTORY: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// Opens the cgroup `path` in every hierarchy that has controllers; makes it where it is missing.
///
/// # Errors
/// `INVALID_ARGUMENT` for another path than absolute plain names; no hierarchy is mounted; it cannot be made.
pub(super) fn open(path: &Path) -> Result<Node> {
    let wrong = || {
        Error::invalid_argument(format!(
            "{}: a cgroup is named by an absolute path of plain names",
            path.display()
        ))
    };
    let below = path.to_str().and_then(|p| p.strip_prefix('/')).ok_or_else(wrong)?;
    let names: Vec<&str> = below.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| check_name(name).is_err()) {
        return Err(wrong());
    }
    let (_, found) = hierarchy::find(&Location::Root("".into()))?;
    let mut dirs = Vec::new();
    for (mount, _) in found.into_iter().filter(|(mount, _)| !mount.named) {
        let mut dir = open_path(&mount.point, DIRECTORY, Mode::empty())
            .map_err(|e| Error::from(e).context(format!("opening {}", mount.point.display())))?;
        for name in &names {
            dir = step(&dir, name, &mount.name)?;
        }
        dirs.push((if mount.v2 { UNIFIED.to_owned() } else { mount.name }, dir));
    }
    Node::root(dirs)
}

/// Opens a directory, or makes it.
fn step(parent: &OwnedFd, name: &str, hierarchy: &str) -> Result<OwnedFd> {
    let failed = |e: Errno| explain(&format!("making {name} in {hierarchy}"), "cgroup", e);
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(failed(e)),
    }
    let dir = openat(parent, name, DIRECTORY, Mode::empty()).map_err(failed)?;
    if hierarchy.split(',').any(|c| c == "cpuset") {
        inherit_cpuset(&Dir(parent.as_fd()), &Dir(dir.as_fd()))?;
    }
    Ok(dir)
}

/// Checks that a hierarchy is mounted at `path`.
///
/// # Errors
/// `FAILED_PRECONDITION`: it is not.
pub(super) fn check_mount(path: &str, hierarchy: &str) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| Error::from(e).context("reading /proc/self/mountinfo"))?;
    let mounts = parse_mountinfo(&table);
    let there =
        mounts.iter().any(|m| m.point == Path::new(path) && m.name.split(',').any(|c| c == hierarchy));
    if there {
        return Ok(());
    }
    let places: Vec<String> = mounts
        .iter()
        .filter(|m| m.name.split(',').any(|c| c == hierarchy))
        .map(|m| m.point.display().to_string())
        .collect();
    let hint = if places.is_empty() { "nowhere".to_owned() } else { format!("at {}", places.join(", ")) };
    Err(Code::FailedPrecondition.error(format_args!(
        "cgroup_mount: {hierarchy} is not mounted at {path:?}, but {hint}; airlock mounts none itself"
    )))
}
