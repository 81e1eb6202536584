//! The donated descriptors of one container.
#![forbid(unsafe_code)]

use crate::boot::FdTable;
use crate::cgroup::{Cgroup, UNIFIED};
use airlock_wire::api::boot::{ContainerFds, Namespace};
use airlock_wire::error::Result;
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
    /// Program to execute.
    pub exec: Option<OwnedFd>,
    /// Console replica.
    pub tty: Option<OwnedFd>,
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
        // Filestores back overlays that the parent has already built; holding them is all there is to do.
        drop(table.take_all(&fds.filestores)?);
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
            exec: table.take_option(fds.exec)?,
            tty: table.take_option(fds.tty)?,
        })
    }
}
