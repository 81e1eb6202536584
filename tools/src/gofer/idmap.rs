//! Idmapped mounts: owners seen through the maps of a user namespace (Linux 5.12).

#![forbid(unsafe_code)]

use airlock_loader::oci::mounts::{Idmap, MountOptions};
use airlock_loader::sys::idmap::user_namespace;
use airlock_loader::sys::mount::{self, MOUNT_ATTR_IDMAP, MountAttr};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// User namespaces by their maps, so that mounts with equal maps share one.
#[derive(Debug, Default)]
pub(super) struct UserNamespaces(Vec<((String, String), OwnedFd)>);

impl UserNamespaces {
    fn get(&mut self, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<BorrowedFd<'_>> {
        let maps = (text(uids), text(gids));
        let known = self.0.iter().position(|(m, _)| *m == maps);
        let i = match known {
            Some(i) => i,
            None => {
                let fd = user_namespace(&maps.0, &maps.1).map_err(|e| {
                    Error::from(e).context(format!(
                        "user namespace with uid map {:?} and gid map {:?}",
                        maps.0.trim_end(),
                        maps.1.trim_end()
                    ))
                })?;
                self.0.push((maps, fd));
                self.0.len() - 1
            }
        };
        Ok(self.0[i].1.as_fd())
    }
}

/// In the form of `/proc/<pid>/uid_map`. The ids on the file system are the `containerID`s, those that the host's
/// processes see the `hostID`s.
fn text(map: &[LinuxIdMapping]) -> String {
    map.iter().map(|m| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size())).collect()
}

/// Idmaps the detached mount `fd` if its entry asks for it: with its own maps, else `userns`, else the spec's maps.
pub(super) fn apply(
    fd: BorrowedFd<'_>,
    entry: &Mount,
    options: &MountOptions,
    spec: &Spec,
    userns: Option<BorrowedFd<'_>>,
    namespaces: &mut UserNamespaces,
) -> Result<()> {
    let own = |m: &Option<Vec<LinuxIdMapping>>| m.clone().filter(|m| !m.is_empty());
    let namespace = match (own(entry.uid_mappings()), own(entry.gid_mappings())) {
        (Some(uids), Some(gids)) => namespaces.get(&uids, &gids)?,
        (None, None) if options.idmap == Idmap::None => return Ok(()),
        (None, None) => match userns {
            Some(fd) => fd,
            None => {
                let linux = spec.linux().as_ref();
                let uids = linux.and_then(|l| own(l.uid_mappings()));
                let gids = linux.and_then(|l| own(l.gid_mappings()));
                let (Some(uids), Some(gids)) = (uids, gids) else {
                    return Err(Error::invalid_argument(
                        "idmap: neither the mount nor the container has id mappings",
                    ));
                };
                namespaces.get(&uids, &gids)?
            }
        },
        _ => return Err(Error::invalid_argument("uidMappings and gidMappings have to be given together")),
    };
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, userns: Some(namespace), ..Default::default() };
    mount::mount_setattr(fd, &attr, options.idmap == Idmap::Recursive).map_err(|e| match e {
        Errno::EINVAL => Error::new(
            Kind::Unsupported,
            "idmap: the file system of the source does not support idmapped mounts on this kernel",
        ),
        e => Error::from(e).context("idmap"),
    })
}
