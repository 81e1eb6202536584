//! The `mounts` of a spec: what an entry is, and what its options mean.
//!
//! The same reading is used by the parent side, which opens what lies on the host, and by a container's init, which
//! makes the rest, so that the two agree on which descriptor belongs to which entry.

#![forbid(unsafe_code)]

use crate::sys::mount::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_RELATIME,
    MOUNT_ATTR_STRICTATIME, Propagation,
};
use oci_spec::runtime::Mount;
use std::path::{Component, Path, PathBuf};

/// Whether and how far a mount's owners are mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Idmap {
    /// Not at all, unless the entry has `uidMappings`.
    #[default]
    None,
    /// `idmap`: the mount itself.
    Top,
    /// `ridmap`: the mount and everything below it.
    Recursive,
}

/// A change to `MOUNT_ATTR_*` attributes, in the form that mount_setattr(2) wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttrChange {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear; includes [`MOUNT_ATTR__ATIME`] whenever an access time mode is chosen.
    pub clear: u64,
}

impl AttrChange {
    /// True when there is nothing to change.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    // A later option wins over an earlier one, as in mount(8).
    fn set(&mut self, attr: u64) {
        self.set |= attr;
        self.clear &= !attr;
    }

    fn clear(&mut self, attr: u64) {
        self.clear |= attr;
        self.set &= !attr;
    }

    fn atime(&mut self, mode: u64) {
        self.set = self.set & !MOUNT_ATTR__ATIME | mode;
        self.clear |= MOUNT_ATTR__ATIME;
    }
}

/// The options of a mount, sorted by what they act on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Attributes of the mount itself.
    pub attrs: AttrChange,
    /// Attributes of the mount and of everything below it (`rro`, `rnosuid`, …).
    pub recursive: AttrChange,
    /// Propagation changes in order; true for the recursive ones.
    pub propagation: Vec<(Propagation, bool)>,
    /// `bind`.
    pub bind: bool,
    /// `rbind`.
    pub rbind: bool,
    /// `remount`: change what is mounted there already.
    pub remount: bool,
    /// `idmap` and `ridmap`.
    pub idmap: Idmap,
    /// `tmpcopyup`: a tmpfs starts with what the image has at its place.
    pub tmpcopyup: bool,
    /// Superblock flags by their fsconfig(2) names: `sync`, `async`, `dirsync`, `lazytime`, `nolazytime`, `mand`,
    /// `nomand`; `ro` is in `attrs` (see [`MountOptions::read_only`]).
    pub superblock: Vec<&'static str>,
    /// Everything else, for the file system.
    pub data: Vec<(String, Option<String>)>,
}

impl MountOptions {
    /// True for `ro` and `rro`.
    pub fn read_only(&self) -> bool {
        (self.attrs.set | self.recursive.set) & MOUNT_ATTR_RDONLY != 0
    }

    /// The value of file system option `key`: `Some(None)` when it stands without a value.
    pub fn data_value(&self, key: &str) -> Option<Option<&str>> {
        self.data.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_deref())
    }

    /// What a new mount gets at once: a file system mounted here has nothing below it yet, so that the recursive
    /// attributes are ordinary ones.
    pub fn new_mount_attrs(&self) -> u64 {
        let own = self.attrs.set & !self.recursive.clear;
        let recursive = self.recursive.set;
        if recursive & MOUNT_ATTR__ATIME != 0 {
            (own & !MOUNT_ATTR__ATIME) | recursive
        } else {
            own | recursive
        }
    }
}

/// Options that set or clear one attribute. With an `r` in front they are recursive.
const ATTRIBUTES: &[(&str, bool, u64)] = &[
    ("ro", true, MOUNT_ATTR_RDONLY),
    ("rw", false, MOUNT_ATTR_RDONLY),
    ("nosuid", true, MOUNT_ATTR_NOSUID),
    ("suid", false, MOUNT_ATTR_NOSUID),
    ("nodev", true, MOUNT_ATTR_NODEV),
    ("dev", false, MOUNT_ATTR_NODEV),
    ("noexec", true, MOUNT_ATTR_NOEXEC),
    ("exec", false, MOUNT_ATTR_NOEXEC),
    ("nodiratime", true, MOUNT_ATTR_NODIRATIME),
    ("diratime", false, MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", true, MOUNT_ATTR_NOSYMFOLLOW),
    ("symfollow", false, MOUNT_ATTR_NOSYMFOLLOW),
];

const PROPAGATIONS: &[(&str, Propagation)] = &[
    ("private", Propagation::Private),
    ("shared", Propagation::Shared),
    ("slave", Propagation::Slave),
    ("unbindable", Propagation::Unbindable),
];

/// Flags of the superblock that fsconfig(2) knows for every file system.
const SUPERBLOCK: &[&str] = &["sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"];

/// Options that mount(8) knows and that have no effect here: they are the default, or concern messages, or ended
/// with the kernel that knew them (`iversion` is the file system's own choice since Linux 4.17).
const NO_EFFECT: &[&str] = &[
    "defaults",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "group",
    "owner",
    "nofail",
    "_netdev",
];

/// Changes the access time mode; false when `option` has nothing to do with it.
fn access_time(change: &mut AttrChange, option: &str) -> bool {
    let mode = change.set & MOUNT_ATTR__ATIME;
    match option {
        "noatime" => change.atime(MOUNT_ATTR_NOATIME),
        "strictatime" => change.atime(MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" => change.atime(MOUNT_ATTR_RELATIME),
        // The kernel has no mode that is none of the three: leaving one means going back to the default.
        "nostrictatime" if mode != MOUNT_ATTR_NOATIME => change.atime(MOUNT_ATTR_RELATIME),
        "nostrictatime" | "norelatime" => {}
        _ => return false,
    }
    true
}

/// The propagation that a word of `rootfsPropagation` or of a mount's options stands for; true when recursive.
pub fn parse_propagation(word: &str) -> Option<(Propagation, bool)> {
    let find = |word: &str| PROPAGATIONS.iter().find(|(name, _)| *name == word).map(|(_, p)| *p);
    match find(word) {
        Some(propagation) => Some((propagation, false)),
        None => word.strip_prefix('r').and_then(find).map(|propagation| (propagation, true)),
    }
}

/// Sorts mount options: those of mount(8), of the OCI runtime spec's list (`rro`, `ridmap`, `tmpcopyup`, …), and the
/// rest, which is the file system's business. A later option wins over an earlier one. Never fails: what no one
/// knows is refused by the kernel, in words that name it.
pub fn parse_options(options: &[String]) -> MountOptions {
    let mut all = MountOptions::default();
    for option in options.iter().flat_map(|o| split(o)) {
        parse_option(&mut all, option);
    }
    all
}

/// One OCI option is one list entry, but callers are known to join several with commas. Overlay's and SELinux's
/// values may hold commas of their own and stay whole.
fn split(option: &str) -> impl Iterator<Item = &str> {
    let whole = option.contains('"') || option.contains("dir=") || option.contains("context=");
    let mut parts = option.split(',');
    let mut once = whole.then_some(option).into_iter();
    std::iter::from_fn(move || if whole { once.next() } else { parts.find(|p| !p.is_empty()) })
}

fn parse_option(all: &mut MountOptions, option: &str) {
    let recursive = option.strip_prefix('r');
    if let Some((_, set, attr)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) {
        if *set { all.attrs.set(*attr) } else { all.attrs.clear(*attr) }
    } else if access_time(&mut all.attrs, option) {
    } else if let Some(entry) = parse_propagation(option) {
        all.propagation.push(entry);
    } else if let Some((_, set, attr)) =
        recursive.and_then(|r| ATTRIBUTES.iter().find(|(name, ..)| *name == r))
    {
        if *set { all.recursive.set(*attr) } else { all.recursive.clear(*attr) }
    } else if recursive.is_some_and(|r| access_time(&mut all.recursive, r)) {
    } else if let Some(flag) = SUPERBLOCK.iter().find(|flag| **flag == option) {
        all.superblock.push(flag);
    } else if !NO_EFFECT.contains(&option) {
        match option {
            "bind" => all.bind = true,
            "rbind" => all.rbind = true,
            "remount" => all.remount = true,
            "idmap" => all.idmap = Idmap::Top,
            "ridmap" => all.idmap = Idmap::Recursive,
            "tmpcopyup" => all.tmpcopyup = true,
            _ => all.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            }),
        }
    }
}

/// What an entry of `mounts` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind,
    /// A change to what is mounted there already.
    Remount,
    /// procfs.
    Proc,
    /// sysfs.
    Sysfs,
    /// tmpfs.
    Tmpfs,
    /// Pseudo terminals.
    Devpts,
    /// POSIX message queues.
    Mqueue,
    /// The container's cgroups, in the version that the host has.
    Cgroup,
    /// The container's v2 cgroup.
    Cgroup2,
    /// overlayfs, whose layers are directories of the host.
    Overlay,
    /// Any other file system, by name; empty when the entry names none.
    Other(String),
}

/// Tells what `mount` asks for, from its type and options.
pub fn kind(mount: &Mount) -> MountKind {
    kind_of(mount, &options(mount))
}

/// [`kind`] for a caller who has the options already.
pub fn kind_of(mount: &Mount, options: &MountOptions) -> MountKind {
    if options.remount {
        return MountKind::Remount;
    }
    if options.bind || options.rbind {
        return MountKind::Bind;
    }
    match mount.typ().as_deref().unwrap_or("") {
        "bind" | "rbind" => MountKind::Bind,
        "proc" => MountKind::Proc,
        "sysfs" => MountKind::Sysfs,
        "tmpfs" | "shm" => MountKind::Tmpfs,
        "devpts" => MountKind::Devpts,
        "mqueue" => MountKind::Mqueue,
        "cgroup" => MountKind::Cgroup,
        "cgroup2" => MountKind::Cgroup2,
        "overlay" => MountKind::Overlay,
        other => MountKind::Other(other.to_owned()),
    }
}

/// The options of `mount`, parsed.
pub fn options(mount: &Mount) -> MountOptions {
    parse_options(mount.options().as_deref().unwrap_or_default())
}

/// True when the parent has to open `mount`, because its source is something on the host: the descriptors of these
/// follow that of the rootfs, in the order of the spec. Everything else is made by the container's init, in the
/// container's own namespaces.
pub fn needs_gofer(mount: &Mount) -> bool {
    match kind(mount) {
        MountKind::Bind | MountKind::Overlay => true,
        // A device or an image of the host. Others (hugetlbfs, nfs, …) take what namespaces they are mounted in.
        MountKind::Other(name) => {
            !name.is_empty() && mount.source().as_ref().is_some_and(|s| s.is_absolute())
        }
        _ => false,
    }
}

/// True when the whole tree below a bind's source comes along.
pub fn is_recursive_bind(mount: &Mount, options: &MountOptions) -> bool {
    options.rbind || mount.typ().as_deref() == Some("rbind")
}

/// A container's path without `.`, `..` and double slashes, absolute. Relative destinations are taken from `/`, as
/// runc does. Purely textual: it says what was meant, not where symbolic links lead.
pub fn clean_destination(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
