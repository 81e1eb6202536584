//! The host's own tree as a root filesystem, read-only with an overlay (`airlock do`).

#![forbid(unsafe_code)]

use super::overlay::{
    self,
    layers::{self, Layer, Layers, Upper},
};
use super::{Cleanup, LOWER_TREE, Opened, Overlay, bind, missing};
use airlock_loader::sys::mount::{self, MOUNT_ATTR_RDONLY, MountAttr, Propagation};
use airlock_wire::api::types::GoferMountConf;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{Mount, MountBuilder};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Places that a sandbox has of its own: the default spec mounts them anew, or they concern the host alone.
const OWN: &[&str] = &["/proc", "/sys", "/dev", "/run", "/tmp", "/var/run"];

/// The host's tree, opened.
#[derive(Debug)]
pub struct HostRoot {
    /// The rootfs, and as its `mounts` the other file systems of the host.
    pub opened: Opened,
    /// Entries for these, to be put in front of the spec's own mounts.
    pub mounts: Vec<Mount>,
}

/// Opens the host's `/` for a sandbox: with `overlay` as a read-only layer below a writable one, without it read-only.
/// Other file systems that are mounted on the host are there too, read-only with everything below them, as an overlay
/// does not reach beyond its own; except below `/proc`, `/sys`, `/dev`, `/run` and `/tmp`.
///
/// # Errors
/// When the host's root cannot be copied or be a layer of an overlay. Other mounts that cannot be copied (unreachable
/// servers, other users' FUSE) are left out.
pub fn open_host_root(overlay: Option<&Overlay>) -> Result<HostRoot> {
    let root = Path::new("/");
    let mut cleanup = Cleanup::default();
    let mut filestores = Vec::new();
    let rootfs = match overlay {
        Some(overlay) => {
            let upper = match overlay::filestore(&overlay.medium, root)? {
                None => Upper::Memory { size: overlay.size },
                Some(directory) => {
                    cleanup.0.push(directory.clone());
                    Upper::Directory(directory)
                }
            };
            let layers = Layers { lowers: vec![Layer::Path(root.to_owned())], data_only: Vec::new(), upper };
            let (fd, filestore) =
                layers::mount(&layers, &[]).map_err(|e| e.context("the host's root as an overlay"))?;
            filestores.extend(filestore);
            fd
        }
        None => read_only(bind::clone(root, false).map_err(|e| e.context("the host's root"))?)?,
    };
    let note = |overlay: Option<&Overlay>| GoferMountConf {
        lower: LOWER_TREE,
        upper: overlay.map_or(0, |o| o.medium.number()),
        size: overlay.and_then(|o| o.size).unwrap_or(0),
    };
    let mut confs = vec![note(overlay)];
    let (mut fds, mut mounts) = (Vec::new(), Vec::new());
    for place in other_mounts()? {
        let copy = bind::clone(&place, true).and_then(read_only);
        let fd = match copy {
            Ok(fd) => fd,
            Err(e) => {
                log::warn!("leaving out the host's mount {}: {e}", place.display());
                continue;
            }
        };
        let entry = MountBuilder::default()
            .destination(&place)
            .typ("bind")
            .source(&place)
            .options(["rbind", "rro", "rprivate"].map(str::to_owned))
            .build()
            .map_err(|e| Error::failure(format!("mount entry for {}: {e}", place.display())))?;
        fds.push(fd);
        mounts.push(entry);
        confs.push(note(None));
    }
    let opened = Opened {
        rootfs,
        mounts: fds,
        devices: Vec::new(),
        filestores,
        confs,
        rootfs_path: root.to_owned(),
        shared: Vec::new(),
        cleanup: cleanup.keep(),
    };
    Ok(HostRoot { opened, mounts })
}

fn read_only(fd: OwnedFd) -> Result<OwnedFd> {
    let attr =
        MountAttr { set: MOUNT_ATTR_RDONLY, propagation: Some(Propagation::Private), ..Default::default() };
    mount::mount_setattr(fd.as_fd(), &attr, true)
        .map_err(|e| Error::from(e).context("making it read-only"))?;
    Ok(fd)
}

/// Mount points of the host below `/` and below no other of the list, without those of [`OWN`].
fn other_mounts() -> Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/thread-self/mountinfo")
        .map_err(|e| missing(e).context("reading the host's mounts"))?;
    Ok(select_mounts(&table))
}

fn select_mounts(table: &[u8]) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|place| place != Path::new("/") && !OWN.iter().any(|own| place.starts_with(own)))
        .collect();
    places.sort();
    let mut top: Vec<PathBuf> = Vec::new();
    for place in places {
        if !top.last().is_some_and(|last| place.starts_with(last)) {
            top.push(place);
        }
    }
    top
}

/// Undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)).
fn unescape(field: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\').and_then(|c| std::str::from_utf8(c).ok());
        match code.and_then(|c| u8::from_str_radix(c, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_uppermost_other_mounts_are_taken() {
        let table = b"1 0 8:1 / / rw - ext4 x rw\n\
            2 1 0:5 / /proc rw - proc proc rw\n\
            3 1 8:2 / /home\\040dir rw - ext4 x rw\n\
            4 3 8:3 / /home\\040dir/sub rw - ext4 x rw\n\
            5 1 8:4 / /data rw - ext4 x rw\n\
            6 1 8:5 / /data2 rw - ext4 x rw\n\
            7 1 0:9 / /run/user rw - tmpfs x rw\n";
        assert_eq!(select_mounts(table), [Path::new("/data"), Path::new("/data2"), Path::new("/home dir")]);
    }
}
