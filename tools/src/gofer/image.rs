//! File systems on devices and in image files of the host.

#![forbid(unsafe_code)]

use super::missing;
use airlock_loader::oci::mounts::MountOptions;
use airlock_loader::sys::loopdev;
use airlock_loader::sys::mount::{self, FsError};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

/// File systems that cannot be written, so that their devices are opened read-only.
const READ_ONLY: &[&str] = &["erofs", "squashfs", "iso9660", "udf", "cramfs", "romfs"];

/// Where an erofs superblock has its magic number, and the number (little-endian).
const EROFS_MAGIC: (u64, [u8; 4]) = (1024, [0xe2, 0xe1, 0xf5, 0xe0]);

/// Mounts the erofs image `path` as a root filesystem.
pub(super) fn root_image(path: &Path) -> Result<OwnedFd> {
    if !is_erofs(path)? {
        return Err(Error::invalid_argument("is neither a directory nor an erofs image"));
    }
    mount("erofs", path, &MountOptions::default())
}

/// Whether the file `path` is an erofs image.
pub(super) fn is_erofs(path: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let file = File::open(path).map_err(missing)?;
    Ok(file.read_exact_at(&mut magic, EROFS_MAGIC.0).is_ok() && magic == EROFS_MAGIC.1)
}

/// Mounts file system `name` from `source`, detached: a block device, an image file, or whatever the file system
/// makes of the path. The mount's attributes are still the default ones.
pub(super) fn mount(name: &str, source: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let status =
        std::fs::metadata(source).map_err(|e| missing(e).context(format!("source {}", source.display())))?;
    let read_only = options.read_only() || READ_ONLY.contains(&name);
    let context = |e: Error| e.context(format!("{name} from {}", source.display()));
    if !status.is_file() {
        // A block device is opened by the kernel; a directory or a socket is the file system's business.
        let read_only = read_only && status.file_type().is_block_device();
        return attempt(name, source, options, read_only).map_err(|e| context(e.into()));
    }
    // erofs reads files itself since Linux 6.12; everything else needs a block device.
    if name == "erofs" {
        match attempt(name, source, options, true) {
            Err(e) if matches!(e.errno, Errno::ENOTBLK | Errno::EINVAL | Errno::EOPNOTSUPP) => {}
            result => return result.map_err(|e| context(e.into())),
        }
    }
    let image = File::options().read(true).write(!read_only).open(source).map_err(|e| context(missing(e)))?;
    let (device, _open) = loopdev::attach(image.as_fd(), read_only).map_err(|e| {
        context(Error::new(
            Kind::Unsupported,
            format!("an image file needs a loop device, and there is none: {e}"),
        ))
    })?;
    attempt(name, &device, options, read_only).map_err(|e| context(e.into()))
}

/// Mounts file system `name`, which needs no source, detached.
pub(super) fn without_source(name: &str, options: &MountOptions) -> Result<OwnedFd> {
    Ok(attempt(name, Path::new(name), options, options.read_only())?)
}

fn attempt(
    name: &str,
    source: &Path,
    options: &MountOptions,
    read_only: bool,
) -> std::result::Result<OwnedFd, FsError> {
    let context = mount::fsopen(name)?;
    let context = context.as_fd();
    // The kernel takes at most 255 bytes; a descriptor of the source is shorter than any path.
    let opened;
    let text = match source.to_str().filter(|s| s.len() < 256) {
        Some(text) => text.to_owned(),
        None => {
            let fail = |e: std::io::Error| FsError {
                errno: Errno::from_raw(e.raw_os_error().unwrap_or(libc::EINVAL)),
                step: "source".to_owned(),
                log: String::new(),
            };
            opened = File::open(source).map_err(fail)?;
            format!("/proc/thread-self/fd/{}", opened.as_raw_fd())
        }
    };
    mount::fsconfig_string(context, "source", &text)?;
    if read_only {
        mount::fsconfig_flag(context, "ro")?;
    }
    for flag in &options.superblock {
        mount::fsconfig_flag(context, flag)?;
    }
    for (key, value) in &options.data {
        match value {
            Some(value) => mount::fsconfig_string(context, key, value)?,
            // mount(8) takes it from the list as well: it means what happens here anyway.
            None if key == "loop" => {}
            None => mount::fsconfig_flag(context, key)?,
        }
    }
    mount::fsconfig_create(context)?;
    mount::fsmount(context, 0)
}
