//! Socket addresses that do not fit into a `sockaddr_un`, and abstract ones.

#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Longest path that fits into `sun_path` with its terminating NUL (unix(7)).
const MAX_PATH: usize = 107;

/// Connects to the socket at `path`, however long it is; a path `@name` is the abstract name `name`.
///
/// For an abstract name the form with a trailing NUL is tried as well, which is what runsc of 2022 uses
/// (`@runsc-sandbox.<id>`). A path that is too long is opened with `O_PATH` and reached through `/proc/self/fd`.
///
/// # Errors
/// `NoSuchEntity` when there is no such socket, `Disconnected` when nobody listens there, `Permission`.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    let connected = match bytes.strip_prefix(b"@") {
        Some(name) => connect_abstract(name),
        None if bytes.len() <= MAX_PATH => UnixStream::connect(path),
        None => opened(path).and_then(|fd| UnixStream::connect(in_proc(&fd))),
    };
    connected.map_err(|e| {
        let (kind, hint) = match e.kind() {
            io::ErrorKind::ConnectionRefused => {
                (Kind::Disconnected, ": nobody listens there, the sandbox is gone")
            }
            _ => (Error::from(io::Error::from(e.kind())).kind, ""),
        };
        Error::new(kind, format!("connecting to {}: {e}{hint}", path.display()))
    })
}

fn connect_abstract(name: &[u8]) -> io::Result<UnixStream> {
    let connect = |name: &[u8]| UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?);
    connect(name).or_else(|e| match e.kind() {
        io::ErrorKind::ConnectionRefused => connect(&[name, b"\0"].concat()).map_err(|_| e),
        _ => Err(e),
    })
}

/// Binds a listening socket at `path`, however long the path of its directory is. The file must not exist.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let bound = if path.as_os_str().len() <= MAX_PATH { UnixListener::bind(path) } else { bind_long(path) };
    bound.map_err(|e| Error::from(e).context(format_args!("binding a control socket at {}", path.display())))
}

fn bind_long(path: &Path) -> io::Result<UnixListener> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = opened(dir)?;
    UnixListener::bind(in_proc(&dir).join(name))
}

fn opened(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn in_proc(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test alone, removed with everything in it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("airlock-wire-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn long_paths_can_be_bound_and_reached() {
        let _leaks = crate::testing::LeakCheck::new();
        let base = Dir::new("long");
        let dir = base.0.join("d".repeat(200));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("control.sock");
        let listener = bind(&path).unwrap();
        assert!(path.exists());
        let client = connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(client);
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut &server, &mut byte).unwrap(), 0);
        drop(listener);
        let refused = connect(&path).unwrap_err();
        assert_eq!(refused.kind, Kind::Disconnected);
        assert!(refused.message.contains("nobody listens"), "{refused}");
        assert_eq!(connect(&dir.join("none")).unwrap_err().kind, Kind::NoSuchEntity);
    }

    #[test]
    fn abstract_names_with_and_without_a_trailing_nul() {
        let _leaks = crate::testing::LeakCheck::new();
        let name = format!("airlock-wire-test.{}", std::process::id());
        for suffix in ["", "\0"] {
            let address = SocketAddr::from_abstract_name(format!("{name}{suffix}")).unwrap();
            let listener = UnixListener::bind_addr(&address).unwrap();
            connect(Path::new(&format!("@{name}"))).unwrap();
            drop(listener);
        }
        assert_eq!(connect(Path::new(&format!("@{name}"))).unwrap_err().kind, Kind::Disconnected);
    }
}
