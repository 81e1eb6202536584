#![forbid(unsafe_code)]
//! `linux.namespaces` and what hangs on them: id mappings and time offsets.

use super::{absolute, id_mappings, invalid, unsupported};
use airlock_wire::error::Result;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};
use std::path::Path;

/// The namespaces of a configuration, checked.
pub(super) struct Namespaces<'a>(&'a [LinuxNamespace]);

impl<'a> Namespaces<'a> {
    /// Whether the container gets a namespace of that kind, new or joined.
    pub(super) fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.find(kind).is_some()
    }

    /// Path of the namespace that is joined; `None` for a new one, or none at all.
    pub(super) fn joined(&self, kind: LinuxNamespaceType) -> Option<&'a Path> {
        crate::oci::namespaces::joined(self.find(kind)?)
    }

    fn find(&self, kind: LinuxNamespaceType) -> Option<&'a LinuxNamespace> {
        self.0.iter().find(|n| n.typ() == kind)
    }

    /// Reads the namespaces without checking them.
    pub(super) fn of(linux: Option<&'a Linux>) -> Self {
        Self(linux.and_then(|l| l.namespaces().as_deref()).unwrap_or_default())
    }
}

/// Checks the namespaces and returns them.
pub(super) fn check(linux: Option<&Linux>) -> Result<Namespaces<'_>> {
    const PATH: &str = "linux.namespaces";
    let namespaces = Namespaces::of(linux);
    for (i, namespace) in namespaces.0.iter().enumerate() {
        if namespaces.0[..i].iter().any(|n| n.typ() == namespace.typ()) {
            return Err(invalid(
                format_args!("{PATH}[{i}]"),
                format_args!("type {} is there twice", name(namespace.typ())),
            ));
        }
        if let Some(path) = crate::oci::namespaces::joined(namespace) {
            absolute(format_args!("{PATH}[{i}].path"), path)?;
        }
    }
    if !namespaces.has(LinuxNamespaceType::Mount) {
        return Err(unsupported(
            PATH,
            "airlock needs a mount namespace of the container's own: add type mount",
        ));
    }
    if namespaces.joined(LinuxNamespaceType::Mount).is_some() {
        return Err(unsupported(
            PATH,
            "airlock joins no other mount namespace: leave the path of type mount out",
        ));
    }
    if let Some(linux) = linux {
        user(linux, &namespaces)?;
        time(linux, &namespaces)?;
    }
    Ok(namespaces)
}

/// The spec's name of a namespace kind.
fn name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

fn user(linux: &Linux, namespaces: &Namespaces<'_>) -> Result<()> {
    let maps = [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())];
    for (path, mappings) in maps {
        let mappings = mappings.as_deref().unwrap_or_default();
        if !namespaces.has(LinuxNamespaceType::User) {
            if !mappings.is_empty() {
                return Err(invalid(path, "is specified, but linux.namespaces has no user namespace"));
            }
        } else if namespaces.joined(LinuxNamespaceType::User).is_none() && mappings.is_empty() {
            return Err(invalid(path, "a new user namespace needs at least one mapping"));
        }
        id_mappings(path, mappings)?;
    }
    Ok(())
}

fn time(linux: &Linux, namespaces: &Namespaces<'_>) -> Result<()> {
    const PATH: &str = "linux.timeOffsets";
    let Some(offsets) = linux.time_offsets().as_ref().filter(|o| !o.is_empty()) else { return Ok(()) };
    if !namespaces.has(LinuxNamespaceType::Time) {
        return Err(invalid(PATH, "is specified, but linux.namespaces has no time namespace"));
    }
    if namespaces.joined(LinuxNamespaceType::Time).is_some() {
        return Err(invalid(PATH, "the clocks of a joined time namespace cannot be changed"));
    }
    for (clock, offset) in offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(invalid(
                PATH,
                format_args!("{clock:?} is not a clock with an offset: use monotonic or boottime"),
            ));
        }
        if offset.nanosecs().is_some_and(|n| n >= 1_000_000_000) {
            return Err(invalid(format_args!("{PATH}.{clock}.nanosecs"), "must be below 1000000000"));
        }
    }
    Ok(())
}
