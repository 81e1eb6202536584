//! From the mount namespace that a container's init got to one that holds the container's root and nothing else.

#![forbid(unsafe_code)]

use crate::oci::mounts::parse_propagation;
use crate::sys::mount::{self, MOUNT_ATTR_RDONLY, MountAttr, Propagation};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Cuts the caller's whole mount tree off from where it was copied from: nothing that happens here may be seen
/// there, and the other way round. The tree is thrown away soon, so there is no reason to receive either.
///
/// # Errors
/// [`Kind::Failure`] when the root directory is not that of the mount namespace.
pub fn isolate() -> Result<()> {
    mount::set_root_propagation(Propagation::Private, true)
        .map_err(|e| Error::from(e).context("making the mount tree private"))
}

/// Attaches the detached mount `rootfs` on `place`, a path of the mount namespace's present tree. `/` means on top
/// of everything: lookups from the caller's root directory do not see it until [`pivot`].
///
/// # Errors
/// With the reason of move_mount(2).
pub fn attach(rootfs: BorrowedFd<'_>, place: &Path) -> Result<()> {
    mount::attach_at(rootfs, place)
        .map_err(|e| Error::from(e).context(format!("attaching the rootfs on {}", place.display())))
}

/// Makes the attached mount `rootfs` the root of the mount namespace and of the caller, drops everything else from
/// the namespace, and leaves the caller in `/`.
///
/// # Errors
/// With the step that failed.
pub fn pivot(rootfs: BorrowedFd<'_>) -> Result<()> {
    let step = |what: &'static str| move |e: Errno| Error::from(e).context(what);
    enter(rootfs)?;
    match mount::pivot_to_current_directory() {
        Ok(()) => mount::detach_current_directory().map_err(step("dropping the old mount tree"))?,
        // The namespace's root is the initramfs, which can be covered, but not replaced.
        Err(Errno::EINVAL) => return cover(rootfs, "rootfs"),
        Err(e) => return Err(step("pivot_root to the rootfs")(e)),
    }
    nix::unistd::chdir("/").map_err(step("chdir to /"))
}

/// On the initramfs (a root mount of type `kind`): takes down every other mount, so that nothing of the host but that
/// is left to be found by whoever gets out of the chroot, and changes the root directory only.
fn cover(rootfs: BorrowedFd<'_>, kind: &str) -> Result<()> {
    let (own, _) = mount::mount_id(rootfs)?;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")
        .map_err(|e| Error::from(e).context("mountinfo, to take down what covers the initramfs"))?;
    let mounts: Vec<_> = table.lines().filter_map(MountLine::parse).collect();
    let Some(base) = mounts.iter().find(|m| m.place == Path::new("/") && m.kind == kind && m.id != own)
    else {
        return Err(Error::new(
            Kind::Failure,
            "pivot_root to the rootfs: invalid argument (the present root is neither a mount of this namespace nor the initramfs)",
        ));
    };
    for mount in mounts.iter().rev().filter(|m| m.parent == base.id && m.id != own && m.id != base.id) {
        // A mount that was below another one went with it.
        match nix::mount::umount2(&mount.place, nix::mount::MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(e) => return Err(Error::from(e).context(format!("unmounting {}", mount.place.display()))),
        }
    }
    enter(rootfs)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn enter(rootfs: BorrowedFd<'_>) -> Result<()> {
    nix::unistd::fchdir(rootfs).map_err(|e| Error::from(e).context("entering the rootfs"))
}

/// The fields of a mountinfo line (proc_pid_mountinfo(5)) that matter here.
struct MountLine {
    id: u64,
    parent: u64,
    place: PathBuf,
    kind: String,
}

impl MountLine {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let place = unescape(fields.nth(2)?);
        let kind = fields.skip_while(|f| *f != "-").nth(1)?.to_owned();
        Some(Self { id, parent, place, kind })
    }
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let code = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        match code.and_then(|c| std::str::from_utf8(c).ok()).and_then(|c| u8::from_str_radix(c, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Applies `linux.rootfsPropagation` to the root. Done last, because pivot_root(2) wants nothing shared.
///
/// # Errors
/// [`Kind::InvalidArgument`] for a word that is no propagation.
pub fn set_propagation(root: BorrowedFd<'_>, word: &str) -> Result<()> {
    let (propagation, recursive) = parse_propagation(word).ok_or_else(|| {
        Error::invalid_argument(format!(
            "linux.rootfsPropagation: {word:?} is none of private, shared, slave, unbindable and their r… forms"
        ))
    })?;
    // Everything is private or a slave already, and a private mount must not be told to become one again:
    // that would cut off the slaves that the spec asked for.
    if propagation == Propagation::Private || propagation == Propagation::Slave {
        return Ok(());
    }
    let attr = MountAttr { propagation: Some(propagation), ..Default::default() };
    mount::mount_setattr(root, &attr, recursive)
        .map_err(|e| Error::from(e).context(format!("linux.rootfsPropagation {word}")))
}

/// Makes the root mount (not what is mounted below it) read-only.
///
/// # Errors
/// With the reason of mount_setattr(2).
pub fn set_read_only(root: BorrowedFd<'_>) -> Result<()> {
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..Default::default() };
    mount::mount_setattr(root.as_fd(), &attr, false).map_err(|e| Error::from(e).context("root.readonly"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_cannot_be_replaced_is_covered_and_emptied() {
        use crate::init::paths::{ProcHandle, testing};
        if !testing::root_or_skip("a_root_that_cannot_be_replaced_is_covered_and_emptied") {
            return;
        }
        let text = testing::in_namespace(|| {
            let image = testing::image();
            let rootfs = testing::detached(image.path());
            let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let lines: Vec<_> = table.lines().filter_map(MountLine::parse).collect();
            let base = lines.iter().find(|m| m.place == Path::new("/")).unwrap();
            attach(rootfs.as_fd(), Path::new("/")).unwrap();
            cover(rootfs.as_fd(), &base.kind).unwrap();
            assert!(Path::new("/var/data").exists() && !Path::new("/usr/lib").exists());
            // Out of the chroot there is the bare root mount, as the initramfs would be.
            String::from_utf8(ProcHandle::open().unwrap().read("thread-self/mountinfo").unwrap()).unwrap()
        });
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn mountinfo_lines_are_read() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let line = MountLine::parse(line).unwrap();
        assert_eq!((line.id, line.parent), (36, 35));
        assert_eq!(line.place, Path::new("/mnt 2"));
        assert_eq!(line.kind, "ext3");
        assert!(MountLine::parse("36 35").is_none());
        assert_eq!(unescape(r"a\04"), Path::new(r"a\04"));
    }
}
