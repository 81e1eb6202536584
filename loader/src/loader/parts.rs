//! The donated descriptors of one container.
#![forbid(unsafe_code)]

use crate::boot::FdTable;
use crate::cgroup::{Cgroup, UNIFIED};
use crate::oci::mounts::needs_gofer;
use airlock_wire::api::boot::{ContainerFds, Namespace};
use airlock_wire::api::types::GoferMountConf;
use airlock_wire::error::Result;
use oci_spec::runtime::Spec;
use std::os::fd::OwnedFd;

/// What a container is made from, besides its spec.
#[derive(Debug, Default)]
pub struct ContainerParts {
    /// stdin, stdout, stderr; empty with a terminal.
    pub stdio: Vec<OwnedFd>,
    /// Detached mounts: rootfs first, then as `oci::mounts::needs_gofer` says, in spec order.
    pub mounts: Vec<OwnedFd>,
    /// Device mounts by path in the container.
    pub devices: Vec<(String, OwnedFd)>,
    /// The container's cgroup; `None` makes one below the sandbox's.
    pub cgroup: Option<Cgroup>,
    /// Detached cgroup mounts by hierarchy; of a pure v2 tree in spec order.
    pub cgroup_mounts: Vec<(String, OwnedFd)>,
    /// Namespaces to join.
    pub join: Vec<(Namespace, OwnedFd)>,
    /// Passed descriptors by number in the container.
    pub pass: Vec<(i32, OwnedFd)>,
    /// Behind the overlaid ones of `mounts`, in their order.
    pub filestores: Vec<OwnedFd>,
    /// How `mounts` were made; may be shorter.
    pub confs: Vec<GoferMountConf>,
    /// Program to execute.
    pub exec: Option<OwnedFd>,
    /// Console replica.
    pub tty: Option<OwnedFd>,
    /// It will be restored: a program that is not there is no failure before the container is started instead.
    pub to_restore: bool,
}

impl ContainerParts {
    /// Takes what `fds` names out of `table`.
    ///
    /// # Errors
    /// Indices out of range or named twice.
    pub fn take(fds: &ContainerFds, table: &mut FdTable) -> Result<Self> {
        let names: Vec<String> = fds.cgroup.dirs.iter().map(|d| d.name.clone()).collect();
        let dirs = fds
            .cgroup
            .dirs
            .iter()
            .map(|d| Ok((d.name.clone(), table.take(d.dir)?)))
            .collect::<Result<Vec<_>>>()?;
        let mounts = table.take_all(&fds.cgroup.mounts)?;
        let cgroup_mounts = if fds.cgroup.v2 {
            mounts.into_iter().map(|fd| (UNIFIED.to_owned(), fd)).collect()
        } else {
            names.into_iter().zip(mounts).collect()
        };
        Ok(Self {
            stdio: table.take_all(&fds.stdio)?,
            mounts: table.take_all(&fds.gofer)?,
            devices: fds
                .devices
                .iter()
                .map(|(p, fd)| Ok((p.clone(), table.take(*fd)?)))
                .collect::<Result<_>>()?,
            cgroup: if dirs.is_empty() { None } else { Some(Cgroup::new(fds.cgroup.v2, dirs)?) },
            cgroup_mounts,
            join: fds.join.iter().map(|(n, fd)| Ok((*n, table.take(*fd)?))).collect::<Result<_>>()?,
            pass: fds
                .pass
                .iter()
                .map(|m| {
                    Ok((
                        m.guest,
                        table.take(airlock_wire::api::boot::Fd(u16::try_from(m.host).unwrap_or(u16::MAX)))?,
                    ))
                })
                .collect::<Result<_>>()?,
            filestores: table.take_all(&fds.filestores)?,
            confs: Vec::new(),
            exec: table.take_option(fds.exec)?,
            tty: table.take_option(fds.tty)?,
            to_restore: false,
        })
    }
}

/// [`GoferMountConf::upper`] of a layer in memory.
const MEMORY: u8 = 1;

/// The upper layer of an overlay.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Place of the overlay in the container.
    pub place: String,
    /// In memory: the layer, or the copy of a single file. On a disk: the directory that holds it.
    pub fd: OwnedFd,
    /// It is on a disk.
    pub on_disk: bool,
}

/// The upper layers behind `filestores`.
pub(super) fn layers(spec: &Spec, confs: &[GoferMountConf], filestores: Vec<OwnedFd>) -> Vec<Layer> {
    let mounts = spec.mounts().iter().flatten().filter(|m| needs_gofer(m));
    let places = std::iter::once("/".to_owned()).chain(mounts.map(|m| m.destination().display().to_string()));
    places
        .zip(confs)
        .filter(|(_, conf)| conf.upper != 0)
        .zip(filestores)
        .map(|((place, conf), fd)| Layer { place, fd, on_disk: conf.upper != MEMORY })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_found_by_their_mounts() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","mounts":[{"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/a","type":"bind","source":"/a","options":["bind"]},
            {"destination":"/b","type":"bind","source":"/b","options":["bind"]}]}"#,
        )
        .unwrap();
        let conf = |upper| GoferMountConf { lower: 1, upper, size: 0 };
        let files =
            |n: usize| (0..n).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect::<Vec<_>>();
        let found = |confs: &[GoferMountConf], n| {
            let layers = layers(&spec, confs, files(n)).into_iter();
            layers
                .map(|l| format!("{}{}", l.place, if l.on_disk { " on disk" } else { "" }))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&[conf(1), conf(0), conf(1)], 2), ["/", "/b"]);
        assert_eq!(found(&[conf(2), conf(1), conf(3)], 3), ["/ on disk", "/a", "/b on disk"]);
        assert_eq!(found(&[conf(1), conf(1), conf(1)], 1), ["/"]);
        assert_eq!(found(&[], 2), Vec::<String>::new());
    }
}
