#![forbid(unsafe_code)]
//! `linux.sysctl`: only what belongs to a namespace of the container can be set, as in runc.

use super::namespaces::Namespaces;
use super::{invalid, text};
use airlock_wire::error::Result;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

/// System V IPC (ipc_namespaces(7)); POSIX message queues are below `fs.mqueue.`.
const IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// The namespace kind that `name`, written with dots, belongs to.
pub(super) fn owner(name: &str) -> Option<LinuxNamespaceType> {
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        Some(LinuxNamespaceType::Ipc)
    } else if name.starts_with("net.") {
        Some(LinuxNamespaceType::Network)
    } else if matches!(name, "kernel.domainname" | "kernel.hostname") {
        Some(LinuxNamespaceType::Uts)
    } else {
        None
    }
}

/// A name in sysctl.d(5)'s two spellings as the one with dots: if its first separator is a slash, slashes and dots
/// have changed places.
pub(super) fn with_dots(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

pub(super) fn check(linux: &Linux, namespaces: &Namespaces<'_>) -> Result<()> {
    for (name, value) in linux.sysctl().iter().flatten() {
        let path = format_args!("linux.sysctl[{name:?}]");
        text(path, name)?;
        text(path, value)?;
        let dotted = with_dots(name);
        // The name becomes a path below /proc/sys; dots in a part of it are written as slashes here, so that this
        // also finds `..`.
        if dotted.split(['.', '/']).any(str::is_empty) {
            return Err(invalid(path, "is not the name of a kernel parameter"));
        }
        let Some(kind) = owner(&dotted) else {
            return Err(invalid(
                path,
                "is not in a separate kernel namespace: the whole machine would be changed",
            ));
        };
        if !namespaces.has(kind) {
            let kind = format!("{kind:?}").to_lowercase();
            return Err(invalid(path, format_args!("is not allowed in the host's {kind} namespace")));
        }
        if dotted == "kernel.hostname" {
            return Err(invalid(path, "conflicts with the field hostname: use that"));
        }
    }
    Ok(())
}
