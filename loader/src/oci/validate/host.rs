#![forbid(unsafe_code)]
//! What only the host can tell about a configuration.

use super::namespaces::Namespaces;
use super::{invalid, sysctl};
use airlock_wire::error::Result;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Checks, for a caller in the host's namespaces, that no `linux.sysctl` would be set in a namespace of the caller
/// itself, reached by a path. Looks at `/proc/self/ns` and the paths of `linux.namespaces`. To be called after
/// [`super::validate`], and not in a sandbox, which cannot see those paths.
///
/// # Errors
/// [`airlock_wire::error::Kind::InvalidArgument`] naming the sysctl.
pub fn validate_host(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let namespaces = Namespaces::of(Some(linux));
    for name in linux.sysctl().iter().flatten().map(|(name, _)| name) {
        let Some(kind) = sysctl::owner(&sysctl::with_dots(name)) else { continue };
        let own = match kind {
            LinuxNamespaceType::Network => "net",
            LinuxNamespaceType::Ipc => "ipc",
            _ => "uts",
        };
        if namespaces
            .joined(kind)
            .is_some_and(|path| same(path, Path::new("/proc/self/ns").join(own).as_path()))
        {
            return Err(invalid(
                format_args!("linux.sysctl[{name:?}]"),
                format_args!("not allowed in host {own} namespace, which linux.namespaces joins"),
            ));
        }
    }
    Ok(())
}

/// Whether two paths lead to the same file. A path that leads nowhere is reported by whoever opens it.
fn same(a: &Path, b: &Path) -> bool {
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}
