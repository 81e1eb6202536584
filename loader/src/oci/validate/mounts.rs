#![forbid(unsafe_code)]
//! `mounts`.

use super::namespaces::Namespaces;
use super::{id_mappings, invalid, path_text, text, texts};
use crate::oci::mounts::{Idmap, MountKind, kind_of, options};
use airlock_wire::error::Result;
use oci_spec::runtime::{LinuxNamespaceType, Mount};

pub(super) fn check(mounts: &[Mount], namespaces: &Namespaces<'_>) -> Result<()> {
    mounts
        .iter()
        .enumerate()
        .try_for_each(|(i, mount)| one(mount, namespaces).map_err(|e| e.context(format_args!("mounts[{i}]"))))
}

fn one(mount: &Mount, namespaces: &Namespaces<'_>) -> Result<()> {
    // A relative destination is deprecated and stands for one below `/`, as in runc.
    path_text("destination", mount.destination())?;
    if let Some(typ) = mount.typ() {
        text("type", typ)?;
    }
    let source = mount.source().as_deref().filter(|s| !s.as_os_str().is_empty());
    if let Some(source) = source {
        path_text("source", source)?;
    }
    texts("options", mount.options().as_deref())?;
    let options = options(mount);
    let kind = kind_of(mount, &options);
    match &kind {
        MountKind::Bind if source.is_none() => {
            return Err(invalid("source", "is missing: a bind mount needs one"));
        }
        MountKind::Other(name) if name.is_empty() => {
            return Err(invalid("type", "is missing, and no option says bind: name a file system"));
        }
        _ => {}
    }
    owners(mount, &kind, options.idmap, namespaces)
}

/// Id-mapped mounts: the mount's own mappings, else those of the container's user namespace.
fn owners(mount: &Mount, kind: &MountKind, idmap: Idmap, namespaces: &Namespaces<'_>) -> Result<()> {
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    if uids.is_empty() != gids.is_empty() {
        let (there, missing) =
            if uids.is_empty() { ("gidMappings", "uidMappings") } else { ("uidMappings", "gidMappings") };
        return Err(invalid(there, format_args!("needs {missing} as well")));
    }
    id_mappings("uidMappings", uids)?;
    id_mappings("gidMappings", gids)?;
    if idmap == Idmap::None && uids.is_empty() {
        return Ok(());
    }
    if *kind != MountKind::Bind {
        let what = if uids.is_empty() { "options" } else { "uidMappings" };
        return Err(invalid(what, "only bind mounts can be id-mapped"));
    }
    if uids.is_empty() && !namespaces.has(LinuxNamespaceType::User) {
        return Err(invalid(
            "options",
            "idmap needs uidMappings and gidMappings, or a user namespace whose mappings it takes",
        ));
    }
    Ok(())
}
