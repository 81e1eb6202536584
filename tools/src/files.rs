//! Files and sockets whose rights do not depend on the umask, and whose paths may be long.

#![forbid(unsafe_code)]

use airlock_wire::error::{Error, Result};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Longest path that fits a socket address with its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// A number that this process uses once: tells apart the temporary names that its threads make.
pub(crate) fn unique() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Connects to a Unix socket whose path may be longer than a socket address.
pub fn connect_stream(path: &Path) -> std::io::Result<UnixStream> {
    through_directory(path, |short| UnixStream::connect(short))
}

/// Listens on `path` (0600), which may be longer than a socket address. The caller removes a stale file.
pub(crate) fn bind_listener(path: &Path) -> std::io::Result<UnixListener> {
    through_directory(path, |short| {
        let listener = UnixListener::bind(short)?;
        std::fs::set_permissions(short, Permissions::from_mode(0o600))?;
        Ok(listener)
    })
}

/// Listens on `path` (0600), in the place of a socket that is left of a server which has ended.
pub(crate) fn listen_unix(path: &Path) -> std::io::Result<UnixListener> {
    let left = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && connect_stream(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    if left {
        std::fs::remove_file(path)?;
    }
    bind_listener(path)
}

/// Calls `f` with `path`, or with a short name for it by way of its opened directory.
fn through_directory<T>(path: &Path, f: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return f(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(parent)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    f(&short)
}

/// A new or emptied file, 0600 whatever the umask.
pub(crate) fn private_file(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if file.metadata()?.mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    private_file(path)?.write_all(bytes)
}

/// Puts `new` in the place of `path`. Not by renaming over it where that can be helped: ext4 then starts writing the
/// new file to disk, and removing it soon after waits for that, milliseconds for a file that lives as long.
fn replace(new: &Path, path: &Path) -> std::io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    match renameat2(AT_FDCWD, new, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => std::fs::remove_file(new),
        // There is nothing to exchange it with, or the file system cannot.
        Err(_) => std::fs::rename(new, path),
    }
}

/// Writes `path` so that a reader sees the old or the new text and nothing between.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::invalid_argument(format!("{} names no file", path.display())));
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}-{}", std::process::id(), unique()));
    let temporary = parent.join(hidden);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut f| {
            if f.metadata()?.mode() & 0o777 != mode {
                f.set_permissions(Permissions::from_mode(mode))?;
            }
            f.write_all(bytes)
        })
        .and_then(|()| replace(&temporary, path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Error::from(e).context(format!("write {}", path.display()))
    })
}
