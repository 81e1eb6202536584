//! Where a container's cgroup is: `cgroupsPath` in cgroupfs's and in systemd's form.
#![forbid(unsafe_code)]

use airlock_loader::cgroup::leaf_name;
use airlock_wire::error::{Error, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Longest name of a directory.
const NAME_MAX: usize = 255;
/// Longest path below a hierarchy's root, with room for the mount point and the longest leaf below PATH_MAX.
const PATH_LIMIT: usize = 3072;

/// A place in every hierarchy: plain names, without leading slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// Counted from the hierarchy's root, as the caller sees it.
    Root(PathBuf),
    /// Counted from the caller's own cgroup.
    Own(PathBuf),
}

/// Finds the place of container `cid`.
///
/// Without `systemd`: `cgroups_path` as it is, absolute or relative to the caller's cgroup; `/<cid>` when absent or
/// empty. With `systemd`: `slice:prefix:name`, which is the unit `prefix-name.scope` (`name` itself when it is a
/// slice) below the expanded slice; an empty slice is `system.slice`, or `user.slice` for others than root; absent,
/// `:airlock:<cid>`.
///
/// # Errors
/// [`airlock_wire::error::Kind::InvalidArgument`] naming what is wrong: `..`, a control character, a name or path
/// that is too long, the root itself, a text that is not in systemd's form.
pub fn locate(cid: &str, cgroups_path: Option<&Path>, systemd: bool, is_root: bool) -> Result<Location> {
    leaf_name(cid)?;
    let given = cgroups_path.filter(|p| !p.as_os_str().is_empty());
    if systemd {
        let unit = match given {
            Some(path) => unit_path(path, is_root)?,
            None => unit_of("", "airlock", cid, is_root)?,
        };
        return Ok(Location::Root(plain(&unit)?));
    }
    match given {
        None => Ok(Location::Root(plain(Path::new(cid))?)),
        Some(path) if path.is_absolute() => Ok(Location::Root(plain(path)?)),
        Some(path) => Ok(Location::Own(plain(path)?)),
    }
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format!("linux.cgroupsPath {path:?}: {why}"))
}

/// Checks a path and strips it to its names.
fn plain(path: &Path) -> Result<PathBuf> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > PATH_LIMIT {
        return Err(Error::invalid_argument(format!(
            "linux.cgroupsPath is {} bytes long; at most {PATH_LIMIT} are possible",
            bytes.len()
        )));
    }
    // cgroupfs refuses newlines; NUL ends a C string; the rest would garble /proc/self/cgroup.
    if bytes.iter().any(u8::is_ascii_control) {
        return Err(bad(path, "it has control characters"));
    }
    if path.to_str().is_none() {
        return Err(bad(path, "it is not UTF-8"));
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) if name.len() > NAME_MAX => {
                return Err(bad(path, format!("a name in it is longer than {NAME_MAX} bytes")));
            }
            Component::Normal(name) => clean.push(name),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(bad(path, "\"..\" is not allowed: write the path out"));
            }
        }
    }
    if clean.as_os_str().is_empty() {
        return Err(bad(path, "a container needs a cgroup of its own below the root"));
    }
    Ok(clean)
}

/// `slice:prefix:name` as a path.
fn unit_path(path: &Path, is_root: bool) -> Result<PathBuf> {
    let text = path.to_str().ok_or_else(|| bad(path, "it is not UTF-8"))?;
    let parts: Vec<&str> = text.split(':').collect();
    let &[slice, prefix, name] = parts.as_slice() else {
        return Err(bad(
            path,
            "with --systemd-cgroup it has to be slice:prefix:name, as in machine.slice:libpod:0123; without that \
             option it is a path",
        ));
    };
    unit_of(slice, prefix, name, is_root).map_err(|e| bad(path, e.message))
}

fn unit_of(slice: &str, prefix: &str, name: &str, is_root: bool) -> Result<PathBuf> {
    let slice = match slice {
        "" if is_root => "system.slice",
        "" => "user.slice",
        given => given,
    };
    let unit = if name.ends_with(".slice") {
        name.to_owned()
    } else if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    };
    if name.is_empty() || unit.contains('/') {
        return Err(Error::invalid_argument(format!("{unit:?} is not the name of a unit")));
    }
    Ok(expand_slice(slice)?.join(unit))
}

/// The path of a slice (systemd.slice(5)): dashes nest, `a-b.slice` lies in `a.slice/a-b.slice`; `-.slice` is the
/// root.
///
/// # Errors
/// [`airlock_wire::error::Kind::InvalidArgument`] for a name that is no slice.
pub fn expand_slice(slice: &str) -> Result<PathBuf> {
    let no_slice = || Error::invalid_argument(format!("{slice:?} is not the name of a systemd slice"));
    let name =
        slice.strip_suffix(".slice").filter(|n| !n.is_empty() && !n.contains('/')).ok_or_else(no_slice)?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Ok(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(no_slice());
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(path: &str) -> Location {
        Location::Root(path.into())
    }

    #[test]
    fn cgroupfs_form() {
        let locate = |path: &str| locate("c1", Some(Path::new(path)), false, true);
        assert_eq!(locate("").unwrap(), root("c1"));
        assert_eq!(super::locate("c1", None, false, true).unwrap(), root("c1"));
        assert_eq!(locate("/kubepods/pod1/c1").unwrap(), root("kubepods/pod1/c1"));
        assert_eq!(locate("//a/./b/").unwrap(), root("a/b"));
        assert_eq!(locate("a/b").unwrap(), Location::Own("a/b".into()));
        assert_eq!(locate("a:b:c").unwrap(), Location::Own("a:b:c".into()));
        let long = format!("/{}", "x".repeat(256));
        let deep = "/y".repeat(2000);
        for hostile in ["/", ".", "/a/../../b", "..", "../x", "/a\nb", "/a\0b", &long, &deep] {
            let e = locate(hostile).unwrap_err();
            assert!(e.message.contains("cgroupsPath"), "{hostile:?}: {e}");
        }
        assert!(super::locate("../x", None, false, true).is_err());
    }

    #[test]
    fn systemd_form() {
        let locate = |path: &str, is_root| locate("c1", Some(Path::new(path)), true, is_root);
        assert_eq!(
            locate("kubepods-burstable-pod_1.slice:cri-containerd:0123", true).unwrap(),
            root(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_1.slice/cri-containerd-0123.scope"
            )
        );
        assert_eq!(locate(":libpod:c1", true).unwrap(), root("system.slice/libpod-c1.scope"));
        assert_eq!(locate(":libpod:c1", false).unwrap(), root("user.slice/libpod-c1.scope"));
        assert_eq!(locate("a.slice::c1", true).unwrap(), root("a.slice/c1.scope"));
        assert_eq!(locate("a.slice:x:a-b.slice", true).unwrap(), root("a.slice/a-b.slice"));
        assert_eq!(locate("-.slice:x:c", true).unwrap(), root("x-c.scope"));
        assert_eq!(super::locate("c1", None, true, true).unwrap(), root("system.slice/airlock-c1.scope"));
        for hostile in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "x:p:n",
            "a/b.slice:p:n",
            "a.slice:../p:n",
            "a--b.slice:p:n",
            "a.slice:p:",
        ] {
            let e = locate(hostile, true).unwrap_err();
            assert!(e.message.contains("cgroupsPath"), "{hostile:?}: {e}");
        }
        for bad in ["", ".slice", "a", "-a.slice", "a-.slice", "--.slice"] {
            assert!(expand_slice(bad).is_err(), "{bad}");
        }
    }
}
