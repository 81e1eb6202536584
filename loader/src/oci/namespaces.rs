//! The `linux.namespaces` of a spec: which are new, which are joined.

#![forbid(unsafe_code)]

use oci_spec::runtime::LinuxNamespace;
use std::path::Path;

/// The path of the namespace that an entry joins; `None` for a new one, which callers also ask for by an empty path.
pub fn joined(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}
