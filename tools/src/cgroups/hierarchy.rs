//! Which cgroup hierarchies this machine has, and where a place in them lies in the file system.
#![forbid(unsafe_code)]

use super::path::Location;
use airlock_wire::error::{Error, Result};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use std::path::{Path, PathBuf};

/// Where hierarchies are mounted by convention.
const CONVENTIONAL: &str = "/sys/fs/cgroup";

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its controllers joined by commas, or its name (`systemd`), or `unified` for v2.
    pub name: String,
    /// Whether it has a name instead of controllers (`name=systemd`).
    pub named: bool,
    /// Whether it is a v2 hierarchy.
    pub v2: bool,
    /// Which of its directories is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
}

/// The hierarchies that a container gets a directory in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Pure v2: exactly one mount.
    pub v2: bool,
    /// v1: the freezer first, then all others; a v2 mount among them only if there is no v1 freezer.
    pub mounts: Vec<Mount>,
}

/// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)) for cgroup mounts that are not hidden by later ones, in the
/// order of mounting.
pub fn parse_mountinfo(text: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(root), Some(point)) = (fields.nth(3), fields.next()) else { continue };
        let Some((_, rest)) = line.split_once(" - ") else { continue };
        let mut rest = rest.split(' ');
        let (kind, options) = (rest.next().unwrap_or_default(), rest.nth(1).unwrap_or_default());
        let point = PathBuf::from(unescape(point));
        // What is mounted on or above an earlier mount hides it. Most mounts have nothing to do with cgroups.
        if !mounts.is_empty() {
            mounts.retain(|m| !m.point.starts_with(&point));
        }
        let root = PathBuf::from(unescape(root));
        match kind {
            "cgroup2" => mounts.push(Mount { name: "unified".into(), named: false, v2: true, root, point }),
            "cgroup" => {
                let flags = ["rw", "ro", "xattr", "clone_children", "noprefix", "none", "cpuset_v2_mode"];
                let controller = |o: &&str| !flags.contains(o) && !o.contains('=');
                let controllers: Vec<&str> = options.split(',').filter(controller).collect();
                let given_name = options.split(',').find_map(|o| o.strip_prefix("name="));
                let (name, named) = match given_name {
                    Some(name) if controllers.is_empty() => (name.to_owned(), true),
                    _ => (controllers.join(","), false),
                };
                mounts.push(Mount { name, named, v2: false, root, point });
            }
            _ => {}
        }
    }
    mounts
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = text.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(code) if byte == b'\\' => {
                out.push(code);
                at += 4;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads `/proc/<pid>/cgroup` (cgroups(7)): hierarchy names as in [`Mount::name`], and the process's place in each.
pub fn parse_own(text: &str) -> Vec<(String, PathBuf)> {
    let line = |l: &str| {
        let mut fields = l.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let name = match controllers {
            "" if number == "0" => "unified",
            c => c.strip_prefix("name=").unwrap_or(c),
        };
        Some((name.to_owned(), PathBuf::from(path)))
    };
    text.lines().filter_map(line).collect()
}

impl Hierarchies {
    /// Chooses among the mounts: one for each hierarchy, by preference the one below `/sys/fs/cgroup`. Controllers
    /// on v1 make the machine a v1 one.
    ///
    /// # Errors
    /// When nothing is mounted, or nothing that processes can be frozen with.
    pub fn choose(mounts: Vec<Mount>) -> Result<Self> {
        let mut chosen: Vec<Mount> = Vec::new();
        for mount in mounts.into_iter().filter(|m| !m.name.is_empty()) {
            match chosen.iter_mut().find(|c| c.name == mount.name && c.v2 == mount.v2) {
                Some(old)
                    if !old.point.starts_with(CONVENTIONAL) && mount.point.starts_with(CONVENTIONAL) =>
                {
                    *old = mount;
                }
                Some(_) => {}
                None => chosen.push(mount),
            }
        }
        let unified = chosen.iter().position(|m| m.v2).map(|i| chosen.remove(i));
        if chosen.iter().all(|m| m.named) {
            // Named v1 hierarchies beside v2 are relics that no controller hangs on.
            let v2 = unified.ok_or_else(|| {
                Error::unsupported(
                    "no cgroup hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup)",
                )
            })?;
            return Ok(Self { v2: true, mounts: vec![v2] });
        }
        let is_freezer = |m: &Mount| m.name.split(',').any(|c| c == "freezer");
        match (chosen.iter().position(is_freezer), unified) {
            (Some(index), _) => {
                let freezer = chosen.remove(index);
                chosen.insert(0, freezer);
            }
            (None, Some(unified)) => chosen.insert(0, unified),
            (None, None) => {
                return Err(Error::unsupported(
                    "no cgroup freezer is mounted: mount one (mkdir /sys/fs/cgroup/freezer; mount -t cgroup -o \
                     freezer freezer /sys/fs/cgroup/freezer)",
                ));
            }
        }
        Ok(Self { v2: false, mounts: chosen })
    }

    /// Looks at this machine.
    ///
    /// # Errors
    /// As [`Self::choose`]; `/proc` is not readable.
    fn of_this_machine() -> Result<Self> {
        Self::choose(parse_mountinfo(&read_proc("/proc/self/mountinfo")?))
    }
}

fn read_proc(path: &str) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|e| Error::from(e).context(format!("reading {path} (is /proc mounted?)")))
}

/// The directory of `place` in `mount`; `own` is the caller's own place there.
fn directory(mount: &Mount, place: &Location, own: Option<&Path>) -> PathBuf {
    match place {
        Location::Root(path) => mount.point.join(path),
        Location::Own(path) => {
            // Only what is mounted can be reached: below a cgroup namespace or a bind of a subtree the rest is
            // out of sight, and the mount's root is as near as one gets.
            let below = own.and_then(|own| own.strip_prefix(&mount.root).ok());
            mount.point.join(below.unwrap_or(Path::new(""))).join(path)
        }
    }
}

/// The hierarchies where convention has them, found without reading a mount table of any length: v2 on
/// `/sys/fs/cgroup`, or every v1 hierarchy of the kernel in a directory of its name. `None` when one is not there.
fn conventional() -> Result<Option<Hierarchies>> {
    let kind = |path: &Path| statfs(path).map(|s| s.filesystem_type()).ok();
    let mount = |name: &str, named, v2, point: PathBuf| Mount {
        name: name.to_owned(),
        named,
        v2,
        root: PathBuf::from("/"),
        point,
    };
    let root = Path::new(CONVENTIONAL);
    if kind(root) == Some(CGROUP2_SUPER_MAGIC) {
        return Ok(Some(Hierarchies {
            v2: true,
            mounts: vec![mount("unified", false, true, root.to_owned())],
        }));
    }
    let text = read_proc("/proc/self/cgroup")?;
    let mut mounts = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with("0::")) {
        let Some(controllers) = line.split(':').nth(1) else { return Ok(None) };
        let (name, named) = controllers.strip_prefix("name=").map_or((controllers, false), |n| (n, true));
        let point = root.join(name);
        if name.contains('/') || kind(&point) != Some(CGROUP_SUPER_MAGIC) {
            return Ok(None);
        }
        mounts.push(mount(name, named, false, point));
    }
    let complete = mounts.iter().any(|m| m.name.split(',').any(|c| c == "freezer"));
    if complete { Hierarchies::choose(mounts).map(Some) } else { Ok(None) }
}

/// Finds the directories of `place`: whether the machine is pure v2, and for each hierarchy the mount and the
/// directory.
///
/// # Errors
/// As [`Hierarchies::choose`]; `/proc` is not readable.
pub fn find(place: &Location) -> Result<(bool, Vec<(Mount, PathBuf)>)> {
    let (hierarchies, own) = match place {
        Location::Root(_) => (conventional()?, Vec::new()),
        // Which part of a hierarchy is mounted matters here.
        Location::Own(_) => (None, parse_own(&read_proc("/proc/self/cgroup")?)),
    };
    let hierarchies = hierarchies.map_or_else(Hierarchies::of_this_machine, Ok)?;
    let with_dir = |mount: Mount| {
        let own = own.iter().find(|(name, _)| *name == mount.name).map(|(_, path)| path.as_path());
        let dir = directory(&mount, place, own);
        (mount, dir)
    };
    Ok((hierarchies.v2, hierarchies.mounts.into_iter().map(with_dir).collect()))
}

#[cfg(test)]
#[path = "hierarchy_tests.rs"]
mod tests;
