//! Device nodes for containers that cannot make them: detached mounts of the host's own.

#![forbid(unsafe_code)]

use super::{bind, missing};
use airlock_loader::init::mounts::DEFAULT_DEVICES;
use airlock_loader::oci::mounts::clean_destination;
use airlock_wire::error::{Error, Result};
use nix::sys::stat::{SFlag, fstat, major, minor};
use oci_spec::runtime::{LinuxDeviceType, Spec};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Opens the default devices and those of the spec at their paths on the host, and checks that they are what the
/// spec says.
pub(super) fn open(spec: &Spec) -> Result<Vec<(String, OwnedFd)>> {
    let listed = spec.linux().as_ref().and_then(|l| l.devices().as_deref()).unwrap_or_default();
    let mut all = Vec::new();
    for device in listed {
        let path = clean_destination(device.path()).to_string_lossy().into_owned();
        let kind = match device.typ() {
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
            // Pipes are made in the container, by anybody; `a` is refused there.
            LinuxDeviceType::P | LinuxDeviceType::A => continue,
        };
        if path != "/dev/ptmx" {
            let fd = open_one(&path, kind, (device.major(), device.minor()))?;
            all.push((path, fd));
        }
    }
    for (name, major, minor) in DEFAULT_DEVICES {
        let path = format!("/dev/{name}");
        if !all.iter().any(|(known, _)| *known == path) {
            let fd = open_one(&path, SFlag::S_IFCHR, (major as i64, minor as i64))?;
            all.push((path, fd));
        }
    }
    Ok(all)
}

fn open_one(path: &str, kind: SFlag, numbers: (i64, i64)) -> Result<OwnedFd> {
    let open = || -> Result<OwnedFd> {
        let fd = bind::clone(Path::new(path), false)?;
        let status = fstat(&fd).map_err(|e| missing(e.into()))?;
        let found = (major(status.st_rdev) as i64, minor(status.st_rdev) as i64);
        if status.st_mode & SFlag::S_IFMT.bits() != kind.bits() || found != numbers {
            return Err(Error::invalid_argument(format!(
                "in a user namespace the host's node is used, which is not device {}:{}",
                numbers.0, numbers.1
            )));
        }
        Ok(fd)
    };
    open().map_err(|e| e.context(format!("device {path}")))
}
